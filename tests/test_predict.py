import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_rle import decode

import predict
from model import UNET
from support.checkpoint import save_checkpoint
from support.coco import outlines
from support.errors import BadInput, run_script
from support.networks import load_network
from support.reading import Reading
from support.rle import CARVANA_SIZE
from support.video import predict_video
from support.visualize import STRONG, overlay, scale_to_mask

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(trained, tmp_path):
    """Runs predict.py's main with the trained network, and returns the folder that it writes to."""

    def call(*words: str | Path) -> Path:
        checkpoint = trained / "best_checkpoint.pth.tar"
        # The test's own words come last and so win.
        predict.main(["--CHECKPOINT", str(checkpoint), "--OUT", str(tmp_path / "out"), *map(str, words)])
        return tmp_path / "out"

    return call


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A smooth coloured picture of (width, height)."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def mask_of(path: Path) -> np.ndarray:
    with Image.open(path) as mask:
        assert mask.mode == "L"
        values = np.asarray(mask)
    assert set(np.unique(values)) <= {0, 255}
    return values > 0


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_masks_have_the_images_own_sizes_and_a_second_run_gives_the_same_bytes(run, tmp_path):  # case 94
    images = tmp_path / "in"
    images.mkdir()
    sizes = {"large.jpg": (1918, 1280), "odd.png": (481, 321), "tall.jpg": (33, 2000), "tiny.bmp": (2, 3)}
    for name, size in sizes.items():
        picture(size).save(images / name)
    first = contents(run(images))
    assert first.keys() == {f"{Path(name).stem}.png" for name in sizes}
    for name, (width, height) in sizes.items():
        assert mask_of(tmp_path / f"out/{Path(name).stem}.png").shape == (height, width)
    assert contents(run(images)) == first


def test_a_large_mask_takes_no_float_for_each_pixel(tmp_path):  # case 90
    resource = pytest.importorskip("resource")
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux's account of memory")
    script = """
import resource
import numpy as np
from support.visualize import scale_to_mask
logits = np.linspace(-1, 1, 160 * 240, dtype=np.float32).reshape(160, 240)
scale_to_mask(logits, (64, 64), 0.0)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + 6000 * 9000 * 2  # half of what float32 takes; the mask itself takes a quarter
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
mask = scale_to_mask(logits, (6000, 9000), 0.0)
print(mask.shape, mask[:2900].any(), mask[3100:].all())
"""
    assert resource.RLIMIT_AS is not None
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "(6000, 9000) False True\n", done.stderr


@pytest.mark.parametrize("classes", [1, 5])
def test_logits_scale_as_pytorch_scales_them_without_a_seam(classes):
    logits = np.random.default_rng(0).normal(size=(classes, 7, 11)).astype(np.float32)
    for size in ((2000, 1500), (1999, 777), (3, 5), (7, 11), (7, 3000), (1, 1)):
        whole = F.interpolate(torch.from_numpy(logits)[None], size, mode="bilinear", antialias=True)[0]
        whole = torch.cat((whole, torch.full_like(whole, 0.3))) if classes == 1 else whole
        first, second = whole.topk(2, 0).values
        expected = whole[0] > 0.3 if classes == 1 else whole.argmax(0)
        mask = scale_to_mask(logits[0] if classes == 1 else logits, size, 0.3)
        assert (mask == expected.numpy())[(first - second > 1e-5).numpy()].all()
        assert mask.dtype == (bool if classes == 1 else np.uint8)


def test_two_views_predict_both_hands_alike(run, tmp_path):
    image = picture((96, 64))
    image.save(tmp_path / "left.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "right.png")
    for views, differ in (("1", True), ("2", False)):
        out = run(tmp_path / "left.png", tmp_path / "right.png", "--VIEWS", views)
        apart = (mask_of(out / "left.png") != mask_of(out / "right.png")[:, ::-1]).mean()
        assert (apart > 0.001) == differ


@pytest.mark.parametrize("colour", [*STRONG.tolist(), [0, 0, 0], [128, 128, 128], [245, 245, 245], [200, 90, 50]])
def test_an_outline_stands_out_from_any_image_and_fits_its_size(colour):
    for size in ((60, 90), (1200, 3000)):
        mask = np.zeros(size, bool)
        mask[:, size[1] // 3 :] = True
        drawn = overlay(np.full((*size, 3), colour, np.uint8), mask)[:1].astype(np.float32) / 255
        lab = cv2.cvtColor(drawn, cv2.COLOR_RGB2LAB)[0]
        apart = np.linalg.norm(lab - lab[0], axis=1)
        line = np.flatnonzero(apart > 60)
        assert abs(len(line) - max(1, size[1] / 300)) <= 1 and abs(line.mean() - size[1] / 3) <= 2
        assert 5 < apart[-1] < 60  # a faint fill


def test_scores_are_those_of_the_written_masks(run, trained, capsys):
    capsys.readouterr()
    out = run(trained / "train_images", "--MASK_DIR", trained / "train_masks")
    printed = capsys.readouterr().out
    dice, iou = {}, []
    for path in sorted(out.iterdir()):
        predicted = mask_of(path)
        truth = np.asarray(Image.open(trained / "train_masks" / f"{path.stem}_mask.gif").convert("L")) > 0
        dice[path.stem] = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
        iou.append((predicted & truth).sum() / (predicted | truth).sum())
    mean = np.mean(list(dice.values()))
    assert mean > 0.8 and f"12 images at full size: dice {mean:.4f}, iou {np.mean(iou):.4f}, " in printed
    worst = sorted((f"{score:.4f}", stem) for stem, score in dice.items())[:10]
    assert re.findall(r"^(\d\.\d{4}) .*/(\w+)\.jpg$", printed, re.MULTILINE) == worst


@pytest.fixture(params=[1, 3])
def classes(request, trained, tmp_path) -> tuple[Path, int]:
    """A checkpoint and the number of its classes: the trained network's, or weights that draw many small parts."""
    if request.param == 1:
        return trained / "best_checkpoint.pth.tar", 1
    torch.manual_seed(0)
    torch.save(UNET(3, 3, [4, 8]).state_dict(), tmp_path / "three.pth")
    return tmp_path / "three.pth", 3


def test_probabilities_and_cutouts_are_those_of_the_scaled_logits(classes, tmp_path):
    checkpoint, number = classes
    picture((481, 321)).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    words = ["--CHECKPOINT", str(checkpoint), "--OUT", str(out), *([] if number > 1 else ["--THRESHOLD", "0.7"])]
    predict.main([str(tmp_path / "photo.png"), *words, "--PROBABILITY", "--CUTOUT"])
    predictor = predict.Predictor(*load_network(checkpoint, torch.device("cpu")))
    seen = predictor.read((tmp_path / "photo.png", None)).values[None]
    logits = torch.from_numpy(predictor.logits(seen)).view(1, number, *predictor.reading.size)
    logits = F.interpolate(logits, (321, 481), mode="bilinear")[0]
    shares = (torch.cat((torch.zeros_like(logits), logits)) if number == 1 else logits).softmax(0)
    with Image.open(out / "photo_probability.png") as written:
        assert written.mode == "I;16"
        probability = np.asarray(written) / 65535
    np.testing.assert_allclose(probability, shares[1] if number == 1 else shares.amax(0), atol=2e-5)
    cutout, mask, image = (
        np.asarray(Image.open(f)) for f in (out / "photo_cutout.png", out / "photo.png", tmp_path / "photo.png")
    )
    opaque = cutout[..., 3] > 0
    assert cutout.shape == (321, 481, 4) and (cutout[opaque][:, :3] == image[opaque]).all()
    highest = shares.topk(2, dim=0).values
    if number == 1:  # half transparent where the probability is the threshold
        expected, opacity = shares[1] > 0.7, (logits[0] - np.log(0.7 / 0.3)).sigmoid()
        sure = (shares[1] - 0.7).abs() > 1e-3
    else:
        expected, opacity, sure = shares.argmax(0), 1 - shares[0], highest[0] - highest[1] > 1e-3
    assert ((mask > 0 if number == 1 else mask) == expected.numpy())[sure.numpy()].all()
    np.testing.assert_allclose(cutout[..., 3] / 255, opacity, atol=5e-3)


def fill(ring: list[float], size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres lie in a polygon of upright and level lines: those left of which it has been crossed
    an odd number of times. What is gone there and back has been crossed twice."""
    inside = np.zeros(size, bool)
    corners = np.reshape(ring, (-1, 2)).tolist()
    for (x, top), (other_x, bottom) in zip(corners, corners[1:] + corners[:1], strict=True):
        if x == other_x:
            inside[min(top, bottom) : max(top, bottom), x:] ^= True
    return inside


def test_polygons_are_the_masks_to_the_pixel_holes_and_all(classes, tmp_path):
    checkpoint, number = classes
    for name, size in (("a.png", (97, 64)), ("b.jpg", (120, 150))):
        picture(size, seed=3).save(tmp_path / name)
    words = ["--CHECKPOINT", checkpoint, "--OUT", tmp_path / "out", "--POLYGONS", tmp_path / "new/polygons.json"]
    predict.main([str(word) for word in (tmp_path / "a.png", tmp_path / "b.jpg", *words)])
    coco = json.loads((tmp_path / "new/polygons.json").read_text())
    sizes = [(image["file_name"], image["width"], image["height"]) for image in coco["images"]]
    assert sizes == [("a.png", 97, 64), ("b.jpg", 120, 150)]
    names = ["foreground"] if number == 1 else ["class 1", "class 2"]
    assert coco["categories"] == [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    assert [part["id"] for part in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    for image in coco["images"]:
        mask = np.asarray(Image.open(tmp_path / "out" / f"{Path(image['file_name']).stem}.png"))
        drawn = np.zeros_like(mask)
        for part in (part for part in coco["annotations"] if part["image_id"] == image["id"]):
            (ring,) = part["segmentation"]
            shape = fill(ring, mask.shape)
            y, x = np.nonzero(shape)
            assert part["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert part["area"] == shape.sum() and part["iscrowd"] == 0 and not drawn[shape].any()
            drawn[shape] = 255 if number == 1 else part["category_id"]
        np.testing.assert_array_equal(drawn, mask)


def test_outlines_of_noise_and_of_nothing():
    rng = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.6, 0.9, 1.0):
        mask = rng.random((40, 61)) < share
        rings = outlines(mask)
        np.testing.assert_array_equal(sum(fill(ring.ravel(), mask.shape) for _, ring in rings), mask)
        parts = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)[0] - 1
        assert len(rings) == parts
    assert outlines(np.zeros((5, 5), bool)) == [] == outlines(np.zeros((5, 5), np.uint8))


def test_a_submission_decodes_to_the_masks(run, tmp_path):
    images = tmp_path / "in"
    images.mkdir()
    for name, size in (("b.jpg", (1918, 1280)), ("a, b.jpg", (1918, 1280)), ("small.png", (240, 160))):
        picture(size, seed=1).save(images / name)
    out = run(images, "--SUBMISSION", tmp_path / "new/submission.csv")
    with open(tmp_path / "new/submission.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == ["img", "a, b.jpg", "b.jpg", "small.png"] and rows[0][1] == "rle_mask"
    for name, runs in rows[1:]:  # an image of another size gets a mask of the competition's size, too
        mask = np.asarray(
            Image.fromarray(mask_of(out / f"{Path(name).stem}.png")).convert("L").resize((1918, 1280))
        )
        assert (decode(runs, CARVANA_SIZE) != (mask > 127)).mean() < (0.01 if name == "small.png" else 1e-9)
        assert 0 < mask.mean() < 255

    alone = run(images, "--OUT", "", "--SUBMISSION", tmp_path / "alone.csv")
    assert (tmp_path / "alone.csv").read_bytes() == (tmp_path / "new/submission.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.csv", "in", "new", alone.name]


def test_the_tutorials_own_checkpoint_and_weights_alone(trained, tmp_path, capsys):
    state = torch.load(trained / "best_checkpoint.pth.tar")
    weights = {f"module.{name}": value for name, value in state["state_dict"].items()}
    torch.save({"state_dict": weights, "optimizer": state["optimizer"]}, tmp_path / "tutorial.pth.tar")
    torch.save(weights, tmp_path / "weights.pth")
    masks = []
    for name in ("tutorial.pth.tar", "weights.pth"):
        words = ["--CHECKPOINT", str(tmp_path / name), "--OUT", str(tmp_path / name[:3])]
        predict.main([str(trained / f"val_images/{3:012x}_01.jpg"), *words])
        assert f"{name}: doesn't say at what size it was trained" in capsys.readouterr().out
        masks.append(mask_of(tmp_path / name[:3] / f"{3:012x}_01.png"))
    assert masks[0].shape == (64, 96) and (masks[0] == masks[1]).all()


def test_good_and_bad_images_mixed(run, trained, tmp_path, capsys):  # case 87
    images = tmp_path / "in"
    shutil.copytree(trained / "val_images", images)
    for number in range(21):
        (images / f"broken_{number:02d}.jpg").write_bytes(b"")
    half = (images / f"{3:012x}_01.jpg").read_bytes()
    (images / "half.jpg").write_bytes(half[: len(half) // 2])
    for name in ("d.heic", "e.heic", "notes.txt", "LICENSE", ".hidden"):
        (images / name).touch()
    before = contents(images)
    (broken_link := tmp_path / "link.jpg").symlink_to("nowhere")
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: run(images, broken_link, "--SUBMISSION", tmp_path / "submission.csv"))
    output = capsys.readouterr()
    assert stop.value.code == 1 and "5 of 28 images predicted" in output.out
    assert "skipped: 2 .heic, 1 .txt, 1 without an ending\n" in output.out
    named = [line for line in output.err.splitlines() if "can't be read as an image" in line]
    assert [Path(line.partition(": ")[0]).name for line in named] == [f"broken_{i:02d}.jpg" for i in range(20)]
    assert output.err.splitlines()[-1].startswith("23 findings in all")
    assert contents(tmp_path / "out").keys() == {f"{3:012x}_{view:02d}.png" for view in range(1, 6)}
    assert len((tmp_path / "submission.csv").read_text().splitlines()) == 6
    assert contents(images) == before


@pytest.mark.skipif(sys.platform != "linux", reason="a name that is no UTF-8")
def test_a_name_that_is_no_utf8_ends_neither_submission_nor_report(trained, tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    for kind, source, target in (("images", ".jpg", name), ("masks", "_mask.gif", name.replace(".jpg", ".gif"))):
        (tmp_path / kind).mkdir()
        shutil.copy(trained / f"val_{kind}/{3:012x}_01{source}", tmp_path / kind / target)
    words = ["images", "--MASK_DIR", "masks", "--OUT", "out", "--SUBMISSION", "all.csv", "--CHECKPOINT"]
    command = [sys.executable, ROOT / "predict.py", *words, trained / "best_checkpoint.pth.tar"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "all.csv").read_bytes().splitlines()[1].startswith(b"caf\xe9.jpg,")
    assert b"caf\\udce9.jpg" in done.stdout


def test_a_run_stopped_while_it_saw_half_the_size_predicts_at_that(trained, tmp_path):
    state = torch.load(trained / "best_checkpoint.pth.tar", weights_only=True)
    assert state["half_size"] is False
    for half_size, sides, expected in ((True, [], (16, 24)), (False, [], (32, 48)), (False, [20, 30], (20, 30))):
        torch.save({**state, "half_size": half_size}, tmp_path / "stopped.pth.tar")
        assert load_network(tmp_path / "stopped.pth.tar", torch.device("cpu"), *sides)[1].size == expected


def test_a_true_mask_that_cant_be_used_is_a_failure_and_the_prediction_stands(run, trained, tmp_path, capsys):
    masks = tmp_path / "masks"
    shutil.copytree(trained / "val_masks", masks)
    bad, colours = masks / f"{3:012x}_02_mask.gif", masks / f"{3:012x}_03_mask.gif"
    Image.new("L", (50, 40), 255).save(bad)
    Image.fromarray(np.arange(6, dtype=np.uint8).repeat(1024).reshape(64, 96)).save(colours)
    with pytest.raises(SystemExit) as stop:
        run(trained / "val_images", "--MASK_DIR", masks, "--SUBMISSION", tmp_path / "all.csv")
    output = capsys.readouterr()
    assert stop.value.code == 1 and f"{bad}: the mask is 50x40, its image 96x64." in output.err
    assert f"{colours}: values up to 5" in output.err and "3 images at full size: dice " in output.out
    assert len(contents(tmp_path / "out")) == 5 == (tmp_path / "all.csv").read_text().count(".jpg,")


def test_two_images_for_one_mask(run, trained, tmp_path, refused):  # case 88
    images = trained / "val_images"
    one = images / f"{3:012x}_01.jpg"
    other = tmp_path / "in" / f"{one.stem}.png"
    other.parent.mkdir()
    picture((96, 64)).save(other)
    error = refused(lambda: run(images, other.parent))
    assert f"{other}: its mask would have the name of that of {one}. Rename one of the two." in error
    other = other.rename(tmp_path / f"in/{one.stem}_cutout.png")
    assert f"of that of {one}. Rename" in refused(lambda: run(one, other, "--CUTOUT"))
    assert not (tmp_path / "out").exists()
    assert len(contents(run(images, one, images))) == 5  # the same image twice is no such case


@pytest.mark.parametrize("which", ["val_images", "val_masks"])
def test_the_output_folder_is_an_input_folder(run, trained, tmp_path, refused, which):  # case 89
    (tmp_path / "link").symlink_to(trained / which)
    before = contents(trained / which)
    for out in (f"{trained}/val_images/../{which}", tmp_path / "link"):
        words = (trained / "val_images", "--MASK_DIR", trained / "val_masks", "--OUT", out)
        error = refused(lambda words=words: run(*words))
        assert f"{out}: holds the images or true masks, which must stay. Give another --OUT." in error
    assert contents(trained / which) == before


def test_inputs_and_places_that_cant_be_used(run, trained, tmp_path, refused):  # case 93
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/note.txt").write_text("no picture")
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "clip.mp4").touch()
    images, clip = trained / "val_images", tmp_path / "clip.mp4"
    for words, expected in (
        ([tmp_path / "empty"], "empty: no images here."),
        ([tmp_path / "misspelt.jpg"], "misspelt.jpg: no such file or folder."),
        ([], "predict.py: the following arguments are required: images."),
        ([images, "--OUT", ""], "OUT: empty, so there is nowhere to write to."),
        ([images, "--SUBMISSION", "x.csv", "--OUT", "", "--OVERLAY"], "OUT: empty, so there is nowhere"),
        ([images, "--OUT", tmp_path / "file"], "file: can't be written to (File exists). Give another --OUT."),
        ([images, "--SUBMISSION", tmp_path / "empty"], "empty is a folder"),
        ([f"{images}/{3:012x}_01.jpg", "--MASK_DIR", trained / "train_masks"], "_01.jpg: no mask in "),
        ([images, "--THRESHOLD", "1"], "THRESHOLD: 1.0 can't be used. Give a number between 0 and 1."),
        ([images, clip, "--SUBMISSION", "x.csv"], f"SUBMISSION: meant for images, and {clip} is a video."),
        ([clip, "--POLYGONS", "x.json"], "POLYGONS: meant for images"),
        ([clip, "--MASK_DIR", trained / "val_masks"], "MASK_DIR: meant for images"),
        (
            [images, "--CHECKPOINT", tmp_path / "other.pth"],
            "other.pth: not a U-Net of model.py: no weight 'downs.0",
        ),
        ([images, "--CHECKPOINT", trained / "bset_checkpoint.pth.tar"], "no such checkpoint. Checkpoints in this"),
    ):
        assert expected in refused(lambda words=words: run(*words)), words
        assert not list(tmp_path.glob("out/*"))


def test_a_stopped_run_leaves_whole_files(trained, tmp_path):  # cases 91 and 92
    images, processes = tmp_path / "in", {}
    images.mkdir()
    picture((1918, 1280)).save(images / "0000.jpg")
    names = [f"{number:04d}" for number in range(2000)]
    for name in names[1:]:
        os.link(images / "0000.jpg", images / f"{name}.jpg")
    for number in (signal.SIGTERM, signal.SIGKILL):
        out = tmp_path / f"out_{number}"
        out.mkdir()
        for name in names[::2]:
            (out / f"{name}.png").write_bytes(b"of the run before")
        words = [images, "--OUT", out, "--SUBMISSION", out / "submission.csv"]
        command = [sys.executable, "predict.py", *words, "--CHECKPOINT", trained / "best_checkpoint.pth.tar"]
        processes[number] = out, subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    for number, (out, process) in processes.items():
        while not (out / "0005.png").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
    for number, (out, process) in processes.items():
        assert process.wait() == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        parts = [path for path in out.iterdir() if path.name.endswith(".part")]
        masks = [path for path in out.glob("[0-9]*.png") if path.read_bytes() != b"of the run before"]
        assert not parts or number == signal.SIGKILL
        assert not (out / "submission.csv").exists() and 3 <= len(masks) < 1000
        assert all(mask_of(path).shape == (1280, 1918) for path in masks)


def test_no_more_than_so_many_are_under_way():
    pulled = taken = 0

    def items():
        nonlocal pulled
        for number in range(50):
            pulled = number + 1
            yield number

    predictor = predict.Predictor(None, Reading((8, 8)), torch.float32, batch_size=4, workers=3)
    with ThreadPoolExecutor(3) as pool:
        for taken, result in enumerate(predictor.in_order(pool, lambda number: number**2, items()), start=1):
            assert result == (taken - 1) ** 2 and pulled - taken <= 7
    assert taken == 50


def test_images_stand_anywhere_among_the_options(run, trained, tmp_path, monkeypatch):
    one, two, three = sorted((trained / "val_images").iterdir())[:3]
    out = run(one, "--OVERLAY", two, "--BATCH_SIZE", "1", three, "--VIEWS", "8")
    assert len(contents(out)) == 6 and Image.open(out / f"{one.stem}_overlay.jpg").size == (96, 64)
    monkeypatch.chdir(tmp_path)
    shutil.copy(one, "1.jpg")
    run("1.jpg", "--OUT", "relative")
    assert mask_of(Path("relative/1.png")).shape == (64, 96)


def test_a_video_is_predicted_frame_by_frame_and_a_broken_one_stops_nothing(run, trained, tmp_path, capsys):
    frames = [np.asarray(Image.open(image)) for image in sorted((trained / "val_images").iterdir())]
    clip = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for frame in frames:
        clip.write(frame[..., ::-1].copy())
    clip.release()
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "bad.mp4", tmp_path / "clip.avi", trained / "val_images")
    assert stop.value.code == 1 and "bad.mp4: not a video that OpenCV can read" in capsys.readouterr().err
    out = tmp_path / "out"
    masks = sorted((out / "clip").iterdir())
    assert [mask.name for mask in masks] == [f"{number:06d}.png" for number in range(len(frames))]
    for mask, image in zip(masks, sorted(out.glob("*.png")), strict=True):  # but for the video's own compression
        assert (mask_of(mask) != mask_of(image)).mean() < 0.02
    seen = cv2.VideoCapture(str(out / "clip_overlay.mp4"))
    assert (seen.get(cv2.CAP_PROP_FRAME_COUNT), seen.get(cv2.CAP_PROP_FPS)) == (len(frames), 10)
    assert np.abs(seen.read()[1][..., ::-1].astype(int) - frames[0]).max() > 100  # the boundary


def test_a_video_that_is_cut_short_is_told_of_and_one_that_is_interrupted_leaves_the_old_overlay(tmp_path, capsys):
    clip = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for level in range(12):
        clip.write(np.random.default_rng(level).integers(0, 255, (64, 96, 3), np.uint8))
    clip.release()

    def predict(image: np.ndarray) -> np.ndarray:
        return image[..., 0] > 100

    predict_video(tmp_path / "clip.avi", tmp_path, predict)
    whole = (tmp_path / "clip_overlay.mp4").read_bytes()
    turns = iter(range(3))
    with pytest.raises(StopIteration):
        predict_video(tmp_path / "clip.avi", tmp_path, lambda image: predict(image) if next(turns) < 9 else None)
    assert (tmp_path / "clip_overlay.mp4").read_bytes() == whole and not list(tmp_path.glob(".*"))
    content = (tmp_path / "clip.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) * 2 // 3])
    capsys.readouterr()
    predict_video(tmp_path / "cut.avi", tmp_path, predict)
    assert "frames can be read, where its header tells of 12" in capsys.readouterr().err


def test_a_video_is_refused_by_a_network_of_other_channels(run, tmp_path):
    save_checkpoint({"state_dict": UNET(4, 1, (4, 8)).state_dict()}, tmp_path / "four.pth.tar")
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(BadInput, match="clip.mp4: in colour, where the network takes 4 channels"):
        run(tmp_path / "clip.mp4", "--CHECKPOINT", tmp_path / "four.pth.tar")
