"""What people feed to such a repository, by numbers: refused (E), warned about (W) or handled (OK).

A case changes a small copy of a data folder with a finished run of one epoch beside it, and then calls
`train.main(argv)`. Numbers that are missing here: 8, 10 to 12, 27, 28, 31 and 33 are files that `test_reading.py`
reads; 52, 63, 66, 80 and 84 to 86 are what `test_distributed.py`, `test_checkpoint.py` and `test_resume.py` do to
runs; 87 and up are `test_predict.py`'s.
"""

import contextlib
import hashlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import set_arguments, write_pairs
from PIL import Image

import train
from losses import BCEDiceLoss
from model import UNET
from prepare_data import check
from support.checkpoint import CheckpointWriter
from support.device import count_cores
from support.errors import BadInput, run_script
from support.run import Run


class World:
    """Pairs a to d for training and y, z for validation, 48x32 pixels each, and in `out` a run of one epoch."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, undo: contextlib.ExitStack) -> None:
        self.root, self.out, self.monkeypatch, self.undo = root, root / "out", monkeypatch, undo
        self.images, self.masks = root / "train_images", root / "train_masks"
        self.val_images, self.val_masks = root / "val_images", root / "val_masks"
        self.image, self.mask = self.images / "a.jpg", self.masks / "a_mask.gif"
        self.latest = self.out / "my_checkpoint.pth.tar"

    def argv(self) -> list[str]:
        places = ["--OUT_DIR", str(self.out), "--CACHE_DIR", str(self.root / "cache")]
        small = "--IMAGE_HEIGHT 32 --IMAGE_WIDTH 48 --FEATURES 4 8 --NUM_EPOCHS 1 --NUM_SAVED_IMAGES 1"
        return [*set_arguments(self.root), *places, *small.split()]

    def save_image(self, picture: Image.Image, name: str = "a.png", **options: Any) -> None:
        """Put another image in the place of a.jpg."""
        self.image.unlink()
        picture.save(self.images / name, **options)

    def save_mask(self, mask: np.ndarray | Image.Image, name: str = "a_mask.png", **options: Any) -> None:
        """Put another mask in the place of a_mask.gif."""
        self.mask.unlink()
        (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(self.masks / name, **options)

    def in_step(self, action: Callable[[], Any]) -> None:
        """Do something during training, after its first step."""
        after_step, done = Run.after_step, []

        def step(run: Run, loss: torch.Tensor) -> None:
            after_step(run, loss)
            if not done:
                done.append(action())

        self.monkeypatch.setattr(Run, "after_step", step)


class Watched(BCEDiceLoss):
    """The loss, which no target but 0 and 1 ever reaches (case 39)."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert set(targets.unique().tolist()) <= {0.0, 1.0}
        return super().forward(logits, targets)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    write_pairs(root / "train_images", root / "train_masks", list("abcd"), (32, 48))
    write_pairs(root / "val_images", root / "val_masks", list("yz"), (32, 48))
    train.main(World(root, None, None).argv())
    shutil.rmtree(root / "cache")
    return root


@pytest.fixture
def world(finished, tmp_path, monkeypatch) -> Iterator[World]:
    shutil.copytree(finished, tmp_path / "w")
    monkeypatch.setattr(train, "BCEDiceLoss", Watched)
    with contextlib.ExitStack() as undo:
        yield World(tmp_path / "w", monkeypatch, undo)


def contents(folder: Path) -> dict[str, Any]:
    """What lies in a folder, but for caches, locks and what can't be read."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".lock" and path.parent.name != "cache":
            with contextlib.suppress(OSError):
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def said(error: str) -> list[str]:
    """The lines on standard error that are no progress bars."""
    lines = error.replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip() and not re.search(r"\d+%\||\dit/s|pairs/s|s/it|\?it", line)]


class Case(NamedTuple):
    verdict: str
    number: int
    name: str
    change: Callable[[World], Any]  # may return words for the command line, as a list
    says: str = ""


E, W, OK = (partial(Case, verdict) for verdict in ("E", "W", "OK"))


def flags(verdict: str, number: int, words: str, says: str) -> Case:
    return Case(verdict, number, words, lambda w: words.split(), says)


# Images, masks and folders


def image(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert(mode)


def square(low: int = 0, high: int = 1) -> np.ndarray:
    mask = np.full((32, 48), low, np.uint8)
    mask[8:24, 12:36] = high
    return mask


def with_values(*values: int) -> np.ndarray:
    """A mask with an area of each value."""
    return np.repeat(np.array(values, np.uint8), -(-48 // len(values)))[None, :48].repeat(32, 0)


def soft_edge() -> Image.Image:
    return Image.fromarray(square(0, 255)).resize((24, 16)).resize((48, 32), Image.BICUBIC)


def resized(path: Path, size: tuple[int, int]) -> None:
    with Image.open(path) as picture:
        picture.resize(size, Image.NEAREST).save(path)


def resize_pair(w: World, size: tuple[int, int]) -> None:
    resized(w.image, size), resized(w.mask, size)


def cut(path: Path, end: int = -99) -> None:
    path.write_bytes(path.read_bytes()[:end])


def turned(w: World, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    image(size=size).save(w.image, exif=exif)


def animated(save: Callable[..., None], name: str) -> None:
    frames = [Image.fromarray(square(0, high)) for high in (255, 200)]
    save(frames[0], name, save_all=True, append_images=frames[1:])


def link(path: Path, target: Path | str) -> None:
    path.unlink()
    path.symlink_to(target)


def pipe(path: Path) -> None:
    """Put a pipe that nothing writes to in the place of a file."""
    path.unlink()
    os.mkfifo(path)


def rename_pair(w: World, name: str, suffixes: tuple[str, str] = (".jpg", "_mask.gif"), mask: str = "") -> None:
    w.image.rename(w.images / f"{name}{suffixes[0]}")
    w.mask.rename(w.masks / f"{mask or name}{suffixes[1]}")


def keep(w: World, count: int) -> None:
    for name in "abcd"[count:]:
        (w.images / f"{name}.jpg").unlink(), (w.masks / f"{name}_mask.gif").unlink()


def all_masks(w: World, value: int) -> None:
    for path in w.masks.iterdir():
        Image.new("L", (48, 32), value).save(path)


def copy_pair(w: World, name: str) -> None:
    shutil.copy(w.image, w.val_images / f"{name}.jpg")
    shutil.copy(w.mask, w.val_masks / f"{name}_mask.gif")


def use_cars(w: World) -> None:
    rename_pair(w, f"{1:012x}_01")
    (w.val_images / "y.jpg").rename(w.val_images / f"{1:012x}_02.jpg")
    (w.val_masks / "y_mask.gif").rename(w.val_masks / f"{1:012x}_02_mask.gif")


def adding(change: Callable[[World], Any], *words: str) -> Callable[[World], list[str]]:
    """Change something, and give these words as well."""

    def changed(w: World) -> list[str]:
        change(w)
        return list(words)

    return changed


# Places, checkpoints and runs


def replace_saved_images(w: World, target: Path | str) -> None:
    shutil.rmtree(w.out / "saved_images")
    (w.out / "saved_images").symlink_to(target)


def resume(change: Callable[[World], Any], *words: str) -> Callable[[World], list[str]]:
    """Change something and go on from the checkpoint for another epoch."""
    return adding(change, "--LOAD_MODEL", "--NUM_EPOCHS", "2", *words)


def restate(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[World], list[str]]:
    """Resume from another state."""
    return resume(lambda w: torch.save(change(torch.load(w.latest, weights_only=True)), w.latest))


def with_one_before(change: Callable[[World], Any]) -> Callable[[World], list[str]]:
    return resume(lambda w: (shutil.copy(w.latest, w.out / "previous_checkpoint.pth.tar"), change(w)))


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return Path.write_text, (self.victim, "run")


def save_on_cuda(w: World) -> None:
    """The checkpoint as one that was saved on CUDA: its tensors' place stands in the pickle."""
    with zipfile.ZipFile(w.latest) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(w.latest, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(w.latest, weights_only=True)


def optimizer_of(kind: str) -> dict[str, Any]:
    parameters = train.make_optimizer(UNET(features=[4, 8]), 1e-3).param_groups
    return getattr(torch.optim, kind)(parameters, lr=0.1).state_dict()


def not_finite(state: dict[str, Any]) -> dict[str, Any]:
    state["state_dict"]["final_conv.bias"].fill_(float("nan"))
    return state


def prefixed(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "state_dict": {f"module._orig_mod.{name}": v for name, v in state["state_dict"].items()}}


class Greedy(UNET):
    """A network that asks for more memory than any machine has, as a batch too large does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**50) + super().forward(x)


def fill_disk(w: World) -> None:
    """From now on, have the system break off each write of more than 100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    w.undo.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
    w.in_step(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1])))


def kill_worker() -> None:
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    for _ in range(600):  # until the loader's handler breaks in
        time.sleep(0.1)


def unlink_images(w: World) -> None:
    w.in_step(lambda: [path.unlink() for path in w.images.iterdir()])


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HTML = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>"
STRAY = (".DS_Store", "Thumbs.db", "._a.jpg", "note.txt")
CASES = [
    # Images
    E(1, "empty", lambda w: w.image.write_bytes(b""), "a.jpg: .*empty file"),
    E(2, "truncated JPEG", lambda w: cut(w.image), "a.jpg: .*truncated"),
    E(2, "truncated GIF", lambda w: cut(w.mask), "a_mask.gif: can't be read as an image"),
    OK(3, "PNG without its end", lambda w: (w.save_image(image()), cut(w.images / "a.png", -12))),
    OK(4, "PNG named .jpg", lambda w: image().save(w.image, "PNG")),
    E(5, "text", lambda w: w.image.write_text("to do: take an image\n"), "a.jpg: .*text file"),
    E(5, "HTML", lambda w: w.image.write_bytes(HTML), "a.jpg: .*web page"),
    E(5, "git-lfs", lambda w: w.image.write_bytes(LFS), "a.jpg: .*git lfs pull"),
    E(6, "folder", lambda w: (w.images / "x.jpg").mkdir(), "x.jpg: a folder"),
    E(6, "pipe", lambda w: pipe(w.image), "a.jpg: .*a pipe or a dev"),
    E(6, "a device that never ends", lambda w: link(w.mask, "/dev/zero"), "a_mask.gif: .*a pipe or a dev"),
    OK(7, "CMYK", lambda w: w.save_image(image("CMYK"), "a.jpg")),
    E(9, "float TIFF", lambda w: w.save_image(image("F"), "a.tif"), "a.tif: pixels of type float32"),
    OK(13, "EXIF orientation", lambda w: turned(w, (32, 48))),
    E(13, "EXIF orientation against the mask", lambda w: turned(w, (48, 32)), "a_mask.gif: .*48x32.*32x48.*EXIF"),
    E(14, "animated WebP", lambda w: animated(w.save_image, "a.webp"), "a.webp: holds 2 images"),
    E(15, "too many pixels", lambda w: w.save_image(Image.new("1", (18_000, 15_000))), "a.png: .*exceeds limit"),
    E(16, "EPS", lambda w: w.image.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "a.jpg: .*PostScript"),
    E(16, "PSD", lambda w: w.image.write_bytes(b"8BPS\0\1" + bytes(20)), "a.jpg: .*Photoshop"),
    E(17, "1x1", lambda w: resize_pair(w, (1, 1)), "a.jpg: 1x1 pixels, .* 4"),
    E(18, "image below the stride", lambda w: resize_pair(w, (48, 3)), "a.jpg: 48x3 pixels"),
    flags("E", 18, "--IMAGE_HEIGHT 3", "IMAGE_HEIGHT and IMAGE_WIDTH: 3 and 48"),
    OK(19, "odd sizes", adding(lambda w: resize_pair(w, (47, 31)), "--IMAGE_HEIGHT", "31", "--IMAGE_WIDTH", "45")),
    E(20, "what not even root may read", lambda w: link(w.image, "/proc/self/mem"), "a.jpg: .*output error"),
    E(21, "broken link", lambda w: link(w.image, w.root / "gone.jpg"), "a.jpg: .*No such file"),
    E(21, "loop of links", lambda w: link(w.image, w.image), "a.jpg: .*symbolic"),
    E(22, "vanishing", resume(unlink_images, "--CACHE_DIR", ""), "[abcd].jpg: .*No such file"),
    # Masks and pairs
    E(23, "no mask", lambda w: w.mask.unlink(), "a.jpg: no mask .*a_mask"),
    W(24, "masks alone", lambda w: (w.image.unlink(), (w.images / "b.jpg").unlink()), "a_mask.gif: .*1 like it"),
    E(25, "two masks", lambda w: Image.new("L", (48, 32)).save(w.masks / "a.png"), "a.jpg: two masks, a_mask.gif"),
    E(26, "sizes differ", lambda w: resized(w.mask, (24, 16)), "a_mask.gif: .*24x16, its image 48x32"),
    E(29, "classes to 2", lambda w: w.save_mask(with_values(0, 1, 2)), "a_mask.png: values up to 2.*NUM_CLASSES"),
    E(29, "classes and 255", lambda w: w.save_mask(with_values(0, 1, 255)), "a_mask.png: values up to 255"),
    E(29, "gray classes", lambda w: w.save_mask(with_values(0, 85, 170, 255)), "a_mask.png: values up to 255"),
    W(30, "JPEG", lambda w: w.save_mask(square(0, 255), "a_mask.jpg", quality=30), "a_mask.jpg: .*black and white"),
    W(30, "soft edge", lambda w: w.save_mask(soft_edge()), "a_mask.png: .*black and white"),
    E(32, "colour", lambda w: w.save_mask(np.dstack([square(0, 255), *[square(0, 0)] * 2])), "png: .*in colour"),
    E(34, "animated GIF", lambda w: animated(w.save_mask, "a_mask.gif"), "a_mask.gif: holds 2 images"),
    OK(35, "one mask of background", lambda w: w.save_mask(square(0, 0))),
    E(35, "all of background", lambda w: all_masks(w, 0), "train_masks: all 4 masks are background"),
    W(36, "all foreground", lambda w: w.save_mask(square(255, 255)), "a_mask.png: foreground in every pixel"),
    E(37, "class 1 of 1 is the last", lambda w: w.save_mask(square(0, 2)), "png: values up to 2"),
    E(38, "mask is the image", lambda w: shutil.copy(w.image, w.mask), "a_mask.gif: byte for byte its image"),
    OK(39, "255 in 16 bits", lambda w: w.save_mask(square(0, 255).astype(np.uint16))),
    # Folders
    OK(40, "stray files", lambda w: [(w.images / name).write_text("?") for name in STRAY], "4 skipped files"),
    W(41, "subfolder", lambda w: (w.images / "more").mkdir(), "train_images/more: a subfolder"),
    OK(42, "upper-case endings", lambda w: rename_pair(w, "a", (".JPG", "_mask.GIF"))),
    OK(43, "normalisation", lambda w: rename_pair(w, "\u00e9", mask="e\u0301")),
    *(OK(44, repr(name), lambda w, name=name: rename_pair(w, name)) for name in ("a\nb", "\N{AUTOMOBILE}", "-a")),
    E(45, "empty folder", lambda w: [path.unlink() for path in w.images.iterdir()], "train_images: no images"),
    E(46, "missing folder", lambda w: ["--TRAIN_MASK_DIR", f"{w.root}/train_mask"], "train_mask: .*train_masks"),
    E(47, "the same folder", lambda w: ["--VAL_IMG_DIR", str(w.images), "--VAL_MASK_DIR", str(w.masks)], ", too. "),
    E(48, "an image in both", lambda w: copy_pair(w, "x"), "x.jpg: the very image that is also trained on"),
    W(48, "a name in both", lambda w: write_pairs(w.val_images, w.val_masks, ["a"], (30, 40)), "a.jpg: a name"),
    W(49, "a car in both", use_cars, "02.jpg: a view of a car that is also trained on"),
    OK(50, "one image", lambda w: keep(w, 1), "1 training image,"),
    OK(50, "a last batch of one", adding(lambda w: keep(w, 3), "--BATCH_SIZE", "2"), "batches of 2\n.* 1 step;"),
    E(50, "one pixel", adding(lambda w: keep(w, 1), "--IMAGE_HEIGHT", "4", "--IMAGE_WIDTH", "7"), "BatchNorm"),
    flags("E", 50, "--IMAGE_HEIGHT 4 --IMAGE_WIDTH 4 --BATCH_SIZE 2 --ACCUMULATION_STEPS 2", "BatchNorm"),
    flags("OK", 51, "--BATCH_SIZE 16 --MIN_STEPS 1", "batches of 4\n.* 1 step;"),
    # Constants
    *(flags("E", 53, f"--LEARNING_RATE {value}", "LEARNING_RATE: ") for value in ("0", "-1", "nan", "inf")),
    *(flags("E", 54, f"--{name} 0", f"{name}: 0 ") for name in ("BATCH_SIZE", "NUM_EPOCHS", "IMAGE_HEIGHT")),
    flags("E", 55, "--NUM_WORKERS -1", "NUM_WORKERS: -1 "),
    W(55, "too many", lambda w: ["--NUM_WORKERS", str(count_cores() + 1)], "NUM_WORKERS.*cores here"),
    flags("E", 56, "--BATCHSIZE 8", "--BATCHSIZE: .*--BATCH_SIZE"),
    flags("E", 57, "--MIN_STEPS many", "MIN_STEPS: .*'many'"),
    flags("E", 58, "--DEVICE cuda:99", "DEVICE cuda:99: not available"),
    flags("W", 59, "--DEVICE cpu --PRECISION float16", "PRECISION float16: "),
    E(60, "saved_images", lambda w: replace_saved_images(w, "/proc"), "saved_images: can't be written to"),
    E(60, "checkpoint's folder", lambda w: ["--OUT_DIR", "/proc/out"], "/proc/out: can't be written to"),
    E(62, "saved_images is a file", lambda w: replace_saved_images(w, w.image), "saved_images: .*File exists"),
    # Checkpoints
    E(64, "missing", resume(lambda w: w.latest.unlink()), "in this folder: best_checkpoint.pth.tar"),
    E(65, "empty", resume(lambda w: w.latest.write_bytes(b"")), "my_checkpoint.pth.tar: not a checkpoint"),
    E(65, "truncated", resume(lambda w: cut(w.latest)), "my_checkpoint.pth.tar: not a checkpoint"),
    E(65, "HTML", resume(lambda w: w.latest.write_bytes(HTML)), "my_checkpoint.pth.tar: not a checkpoint"),
    W(65, "broken, with one before", with_one_before(lambda w: cut(w.latest)), "previous_checkpoint.pth.tar"),
    E(67, "malicious", restate(lambda s: {"state_dict": Malicious(Path("victim"))}), "not a checkpoint"),
    E(68, "a module", restate(lambda s: UNET(features=[4, 8])), "not a checkpoint"),
    OK(69, "prefixes", restate(prefixed), "going on after 1 epoch and 0 steps"),
    flags("E", 70, "--LOAD_MODEL --FEATURES 4 6", 'differences in all.* 4 8, "" and 1'),
    E(71, "newer", with_one_before(restate(lambda s: {**s, "format": 99})), "my_checkpoint.pth.tar: .*format 99"),
    OK(72, "the tutorial's", restate(lambda s: {k: s[k] for k in ("state_dict", "optimizer")}), "weights alone"),
    OK(72, "another script's", restate(lambda s: {"state_dict": s["state_dict"], "epoch": 90, "arch": "unet"})),
    *(
        E(72, f"without {key}", restate(lambda s, key=key: {k: s[k] for k in s.keys() - {key}}), f"lacks '{key}'")
        for key in ("losses", "best_dice", "generators", "constants")
    ),
    E(72, "other contents", restate(lambda s: {**s, "losses": 3}), "my_checkpoint.pth.tar: .*'int' object"),
    OK(73, "weights alone", restate(lambda s: s["state_dict"]), "weights alone, with which a new run begins"),
    *(
        E(74, kind, restate(lambda s, kind=kind: {**s, "optimizer": optimizer_of(kind)}), "another optimizer")
        for kind in ("SGD", "Adam")
    ),
    OK(75, "no scaler's state", restate(lambda s: {k: v for k, v in s.items() if k != "scaler"})),
    OK(75, "an empty one", restate(lambda s: {**s, "scaler": {}})),
    OK(76, "saved on CUDA", resume(save_on_cuda), "going on after 1 epoch and 0 steps"),
    E(77, "NaN", restate(not_finite), "my_checkpoint.pth.tar: its weights are not finite"),
    flags("OK", 78, "--LOAD_MODEL", "NUM_EPOCHS 1 is reached"),
    W(79, "another image", resume(lambda w: write_pairs(w.images, w.masks, ["e"])), "images have changed"),
    # During training
    E(81, "out of memory", resume(lambda w: w.monkeypatch.setattr(train, "UNET", Greedy)), "batches of 2 .*memory"),
    E(82, "the disk fills", resume(fill_disk), "the disk is full"),
    E(83, "a worker dies", resume(lambda w: w.in_step(kill_worker), "--NUM_WORKERS", "2"), "process .* died"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number:02d} {case.verdict} {case.name}"[:60])
def test_case(case, world, capsys):
    words = case.change(world)
    words = [word for word in words if isinstance(word, str)] if isinstance(words, list) else []
    before = contents(world.out if case.number == 22 else world.root)
    status = 0
    try:
        run_script(lambda: train.main(world.argv() + words))
    except SystemExit as stop:
        status = stop.code
    finally:
        world.undo.close()
    printed = capsys.readouterr()
    lines = said(printed.err)
    assert status == (2 if case.verdict == "E" else 0), printed.err
    if case.verdict == "OK":
        assert lines == [] and re.search(case.says, printed.out)
        return
    if case.verdict == "E":
        lines = [line for line in lines if not line.startswith("warning: ")]
        after = contents(world.root)
        assert {name: after.get(name) for name in before} == before
    assert len(lines) == 1 and re.search(case.says, lines[0]) and lines[0].endswith("."), lines
    assert not Path("victim").exists()


def test_61_too_little_disk_is_refused_before_training(tmp_path):
    with torch.device("meta"):  # which has shapes and no memory
        model = UNET(features=[200_000])
    with pytest.raises(BadInput, match=r"GB free, where a run's checkpoints take \d+\.\d\d\. Make room"):
        CheckpointWriter(tmp_path).check_room(model)


def test_everything_wrong_is_told_together(world):
    write_pairs(world.images, world.masks, [f"n{number:02d}" for number in range(30)], (32, 48))
    for number in range(25):
        (world.images / f"n{number:02d}.jpg").write_bytes(b"" if number % 2 else HTML)
    (world.masks / "n27_mask.gif").unlink()
    copy_pair(world, "x")
    with pytest.raises(BadInput) as error:
        train.main(world.argv())
    lines = str(error.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "27 findings in all, of which these are the first 20"
    assert {line.partition(": ")[0][-7:] for line in lines[1:20]} == {f"n{number:02d}.jpg" for number in range(19)}


def test_the_check_sums_up(world, capsys):
    (world.images / "note.txt").touch()
    check([str(world.images), str(world.masks)], None, "")
    assert re.search(
        r"train_images: 4 images with masks; 48x32; foreground \d+\.\d% on average, \d+\.\d% to \d+\.\d%; "
        r"1 skipped file\n",
        capsys.readouterr().out,
    )
