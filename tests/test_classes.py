"""Several classes, from index masks to index masks; the set at the end is rendered."""

import contextlib
import csv
import io
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import write_pairs
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import predict
import prepare_data
import train
from dataset import CarvanaDataset
from losses import CEDiceLoss
from support.checkpoint import read_checkpoint
from support.errors import BadInput, run_script
from support.preparation import prepare
from support.reading import IGNORED, Classes, Reading, inspect_pair, read_mask
from support.sample import BACKGROUND, BODY, PARTS, WHEELS, WINDOWS, make_sample, render
from support.visualize import (
    COLOURS,
    PALETTE,
    Prediction,
    draw_grid,
    draw_overlay,
    save_errors,
    save_mask,
    scale_to_mask,
)
from utils import check_accuracy, count_classes, image_scores, overall_scores, score_counts

THREE = Classes(3)


def palette_picture(mask: np.ndarray, colours: np.ndarray = PALETTE) -> Image.Image:
    picture = Image.fromarray(mask)
    picture.putpalette(colours.tobytes())
    return picture


def write_classes(folder: Path, names: str, values: tuple[int, ...] = (0, 1, 2, 255), size=(32, 48)) -> None:
    """Images in i/ and in m/ masks of stripes; each stripe is one of `values`."""
    write_pairs(folder / "i", folder / "m", list(names), size)
    for name in names:
        (folder / f"m/{name}_mask.gif").unlink()
        stripes = np.repeat(np.array(values, np.uint8), size[1] // len(values))
        palette_picture(np.tile(stripes, (size[0], 1))).save(folder / f"m/{name}.png")


def test_a_cache_of_other_classes_is_never_used(tmp_path):
    write_classes(tmp_path, "ab", (0, 1))
    seen = []
    for classes in (Classes(), Classes(2), THREE, Classes(2, 7), Classes(2)):
        reading = Reading((8, 12), classes)
        dataset = CarvanaDataset(tmp_path / "i", tmp_path / "m", reading=reading)
        prepared = prepare(tmp_path / "i", tmp_path / "m", reading, tmp_path / "cache")
        expected = [inspect_pair(pair, reading)[2] for pair in dataset.pairs]
        assert list(prepared.metadata.values()) == expected
        dataset.use_cache(tmp_path / "cache")
        seen.append(dataset.records.path)
        np.testing.assert_array_equal(dataset[0][1], dataset.records[0][1])
    assert len(set(seen)) == 4 and seen[1] == seen[4]


# The loss and the scores


# By hand, 1x6 pixels each. The first image ignores its last pixel; class 2 is in it neither predicted nor true.
# The second is all of class 2, of which half is predicted; class 1 is predicted for the other half.
TRUE = torch.tensor([[[0, 0, 1, 1, 1, 255]], [[2] * 6]], dtype=torch.uint8)
PREDICTED = torch.tensor([[[0, 1, 1, 1, 0, 2]], [[2, 2, 2, 1, 1, 1]]], dtype=torch.uint8)
COUNTS = [[[1, 2, 2, 5], [2, 3, 3, 5], [0, 0, 0, 5]], [[0, 0, 0, 6], [0, 3, 0, 6], [3, 3, 6, 6]]]


def test_scores_by_hand():
    counts = count_classes(PREDICTED, TRUE, 3)
    assert counts.tolist() == COUNTS
    dice, iou = [[1 / 2, 2 / 3, np.nan], [np.nan, 0, 2 / 3]], [[1 / 3, 1 / 2, np.nan], [np.nan, 0, 1 / 2]]
    np.testing.assert_allclose(score_counts(counts)["dice"], dice)
    np.testing.assert_allclose(score_counts(counts)["iou"], iou)
    np.testing.assert_allclose(image_scores(counts)["dice"], [(1 / 2 + 2 / 3) / 2, 1 / 3])
    assert image_scores(count_classes(PREDICTED, TRUE * 0 + 255, 3))["dice"].tolist() == [
        1,
        1,
    ]  # nothing can be wrong
    scores = overall_scores(counts)
    micro = {"micro_dice": [1 / 2, 4 / 9, 2 / 3], "micro_iou": [1 / 3, 2 / 7, 1 / 2]}
    expected = {"dice": [1 / 2, 1 / 3, 2 / 3], "iou": [1 / 3, 1 / 4, 1 / 2], **micro}
    expected |= {"precision": [1 / 2, 1 / 3, 1], "recall": [1 / 2, 2 / 3, 1 / 2]}
    each = {f"{name}/{number}": value for name, values in expected.items() for number, value in enumerate(values)}
    means = {name: sum(values) / 3 for name, values in expected.items()}
    assert scores == pytest.approx({**means, "accuracy": 6 / 11, **each})
    alone = overall_scores(counts[:1])
    assert "dice/2" not in alone and alone["dice"] == pytest.approx(7 / 12)


class Numbers(nn.Module):
    """A model whose logits are highest for the class that its input's first channel names."""

    def forward(self, x):
        return -(x[:, :1] - torch.arange(3.0).view(-1, 1, 1)).abs()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_check_accuracy_prints_a_line_for_each_class(batch_size, capsys):
    images = PREDICTED.float()[:, None].repeat(1, 3, 1, 1)
    loader = DataLoader(TensorDataset(images, TRUE.long()), batch_size)
    loss = CEDiceLoss()
    scores = check_accuracy(loader, Numbers(), "cpu", loss_fn=loss)
    expected = overall_scores(torch.tensor(COUNTS)) | {"loss": loss(Numbers()(images), TRUE.long()).item()}
    assert scores == pytest.approx(expected)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 images at 6x1: dice 0.5000, iou 0.3611, ") and ", loss " in lines[0]
    assert lines[1:] == [
        "class 0: dice 0.5000, iou 0.3333, micro_dice 0.5000, micro_iou 0.3333, precision 0.5000, recall 0.5000",
        "class 1: dice 0.3333, iou 0.2500, micro_dice 0.4444, micro_iou 0.2857, precision 0.3333, recall 0.6667",
        "class 2: dice 0.6667, iou 0.5000, micro_dice 0.6667, micro_iou 0.5000, precision 1.0000, recall 0.5000",
    ]
    assert scores.confusion.tolist() == [[1, 1, 0], [1, 2, 0], [0, 3, 3]]


# Pictures


def test_the_colours_can_be_told_apart():
    assert len(COLOURS) == 20 and PALETTE.shape == (256, 3) and PALETTE.dtype == np.uint8
    first = PALETTE[[*range(21), IGNORED]][None].astype(np.float32) / 255
    lab = cv2.cvtColor(first, cv2.COLOR_RGB2LAB)[0]
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 999 * np.eye(22)
    assert apart.min() > 25  # what an eye just notices is 2 to 3
    assert (PALETTE[1] == PALETTE[21]).all() and (PALETTE[0] == 0).all() and len(set(PALETTE[IGNORED])) == 1


def test_pictures_show_classes_errors_and_what_is_ignored(tmp_path):
    truth = np.repeat(np.array([0, 1, 2, IGNORED], np.uint8), 60)[None].repeat(40, 0)
    prediction = truth.copy()
    prediction[:20, 60:120], prediction[:, 180:] = 2, 1
    row = Prediction("x", np.zeros((3, 40, 240), np.float32), truth, prediction, 0.5)
    save_mask(truth, tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), truth)
        np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), PALETTE[truth])
    save_errors(row, tmp_path / "errors.png")
    errors = np.asarray(Image.open(tmp_path / "errors.png").convert("RGBA"))
    wrong = np.zeros((40, 240), bool)
    wrong[:20, 60:120] = True
    assert (errors[wrong] == (*PALETTE[1], 255)).all() and (errors[~wrong][:, 3] == 0).all()
    draw_grid([row], tmp_path / "grid.png")
    panels = np.asarray(Image.open(tmp_path / "grid.png"))[-48:-8]
    for column, values in enumerate((PALETTE[truth], PALETTE[prediction]), start=1):
        np.testing.assert_array_equal(panels[:, 8 + 248 * column : 248 * (column + 1)], values)
    many = np.arange(240, dtype=np.uint8)[None].repeat(40, 0)
    draw_grid([row._replace(target=many)], tmp_path / "many.png")  # a legend of several lines
    assert Image.open(tmp_path / "many.png").height > Image.open(tmp_path / "grid.png").height + 200
    draw_overlay(np.full((40, 240, 3), 200, np.uint8), truth, tmp_path / "overlay.jpg")
    overlay = np.asarray(Image.open(tmp_path / "overlay.jpg")).astype(int)
    assert abs(overlay[10:30, 10:50] - 200).max() < 5
    assert abs(overlay[10:30, 70:110] - (0.65 * 200 + 0.35 * PALETTE[1])).max() < 12
    assert overlay.shape[0] > 40  # a legend below, of what is there and no more
    first, second, third = (overlay[42:, x : x + 52].reshape(-1, 3) for x in (8, 60, 112))
    for part, number in ((first, 1), (second, 2), (third, IGNORED)):
        assert (abs(part - PALETTE[number]).max(1) < 20).sum() > 100
    assert (overlay[42:, 164:] > 240).all()


def test_logits_of_classes_scale_as_pytorch_scales_them():
    logits = np.random.default_rng(0).normal(size=(5, 16, 24)).astype(np.float32)
    for size in ((160, 240), (333, 500), (7, 3000), (1, 1), (16, 24)):
        whole = F.interpolate(torch.from_numpy(logits)[None], size=size, mode="bilinear")[0]
        first, second = whole.topk(2, 0).values
        sure = (first - second > 1e-5).numpy()
        mask = scale_to_mask(logits, size)
        assert mask.dtype == np.uint8 and (mask == whole.argmax(0).numpy())[sure].all()


# Whole runs


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    """Rendered cars: three classes."""
    folder = tmp_path_factory.mktemp("rendered") / "set"
    make_sample(folder, train_cars=5, val_cars=1, views=8, num_classes=3)
    return folder


def words(data: Path, out: Path, *more: str) -> list[str]:
    dirs = ("train_images", "train_masks", "val_images", "val_masks")
    names = ("TRAIN_IMG_DIR", "TRAIN_MASK_DIR", "VAL_IMG_DIR", "VAL_MASK_DIR")
    paths = [word for name, path in zip(names, dirs, strict=True) for word in (f"--{name}", str(data / path))]
    return [*paths, "--OUT_DIR", str(out), "--CACHE_DIR", str(out / "cache"), "--NUM_WORKERS", "0", *more]


@pytest.fixture(scope="module")
def trained(rendered, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a small network's run on the rendered cars, and what it printed."""
    out = tmp_path_factory.mktemp("trained")
    small = "--IMAGE_HEIGHT 96 --IMAGE_WIDTH 144 --FEATURES 8 16 32 --NUM_EPOCHS 20"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        train.main(words(rendered, out, "--NUM_CLASSES", "3", *small.split()))
    return out, printed.getvalue()


def dice_by_class(printed: str) -> list[float]:
    return [float(dice) for dice in re.findall(r"^class \d: dice (\d\.\d{4}), iou", printed, re.MULTILINE)]


def dice_of(predicted: np.ndarray, truth: np.ndarray) -> list[float]:
    """Dice of each of three classes, all of which are there."""
    pairs = [(predicted == number, truth == number) for number in range(3)]
    return [2 * (one & other).sum() / (one.sum() + other.sum()) for one, other in pairs]


@pytest.mark.slow
def test_car_and_wheels_are_told_apart(trained):
    out, printed = trained
    assert "classes 0 1 2; 5 cars" in printed
    dice = dice_by_class(printed.partition("best checkpoint")[0])
    assert len(dice) == 3 * 20 and min(dice[-3:]) >= 0.9, dice[-3:]
    checkpoint = read_checkpoint(out / "best_checkpoint.pth.tar")
    assert checkpoint["best_dice"] == pytest.approx(max(np.mean(np.reshape(dice, (-1, 3)), 1)), abs=1e-4)
    page = (out / "saved_images/index.html").read_text(encoding="utf-8")
    run = json.loads(re.search(r'id="run">(.*?)</script>', page, re.DOTALL)[1])
    assert run["classes"] == {"0": "#000000", "1": "#e69f00", "2": "#56b4e9"}
    for name, score in run["epochs"]["20"]:
        with Image.open(out / f"saved_images/epoch_020/{name}_pred.png") as prediction:
            assert prediction.mode == "P" and set(np.unique(prediction)) == {0, 1, 2}
            truth = np.asarray(Image.open(out / f"saved_images/images/{name}_target.png"))
        assert score == pytest.approx(np.mean(dice_of(np.asarray(prediction), truth)), abs=1e-6)


@pytest.mark.slow
def test_predicting_classes(trained, rendered, tmp_path, capsys):
    checkpoint = ["--CHECKPOINT", str(trained[0] / "best_checkpoint.pth.tar"), "--OUT", str(tmp_path / "out")]
    images = str(rendered / "val_images")
    predict.main([images, *checkpoint, "--MASK_DIR", str(rendered / "val_masks"), "--OVERLAY"])
    printed = capsys.readouterr().out
    dice = []
    for mask in sorted((rendered / "val_masks").iterdir()):
        with Image.open(tmp_path / f"out/{mask.stem.removesuffix('_mask')}.png") as prediction:
            assert prediction.mode == "P" and prediction.size == (1918, 1280)
            assert prediction.getpalette()[:9] == PALETTE[:3].ravel().tolist()
            predicted, truth = np.asarray(prediction), np.asarray(Image.open(mask))
        dice.append(dice_of(predicted, truth))
        assert (tmp_path / f"out/{mask.stem.removesuffix('_mask')}_overlay.jpg").exists()
    dice = np.mean(dice, axis=0)
    assert dice_by_class(printed) == pytest.approx(dice, abs=1e-4) and dice.min() > 0.85
    assert f"8 images at full size: dice {dice.mean():.4f}, " in printed
    for more in (["--SUBMISSION", str(tmp_path / "s.csv")], ["--THRESHOLD", "0.7"]):
        with pytest.raises(BadInput, match=f"{more[0][2:]}: meant for one class"):
            predict.main([images, *checkpoint, *more])


def test_parts_become_classes(rendered):
    mask = sorted((rendered / "val_masks").iterdir())[2]
    _, parts = render(5, 3)
    np.testing.assert_array_equal(read_mask(mask, Reading(classes=THREE)), np.where(parts == WINDOWS, BODY, parts))
    assert (BACKGROUND, BODY, WHEELS, WINDOWS) == tuple(PARTS) == (0, 1, 2, 3)


@pytest.fixture
def striped(tmp_path) -> Path:
    """Small pairs of stripes, all four of which have classes 0 to 2 and what is ignored."""
    write_classes(tmp_path / "train", "abc")
    write_classes(tmp_path / "val", "yz")
    for split in ("train", "val"):
        (tmp_path / split / "i").rename(tmp_path / f"{split}_images")
        (tmp_path / split / "m").rename(tmp_path / f"{split}_masks")
    return tmp_path


SMALL = ["--IMAGE_HEIGHT", "32", "--IMAGE_WIDTH", "48", "--FEATURES", "4", "8", "--NUM_EPOCHS", "1"]


def test_more_classes_than_the_masks_have_and_what_is_ignored(striped, capsys):
    train.main(words(striped, striped / "out", *SMALL, "--NUM_CLASSES", "25"))
    output = capsys.readouterr()
    assert "foreground 50.0% on average, 50.0% to 50.0%; classes 0 1 2" in output.out
    expected = "train_masks: class 3 is in no mask (and 21 like it). It can be neither trained nor scored here"
    assert expected in output.err and output.err.count("warning: ") == 2
    accuracy = re.search(r"2 images at 48x32: .*accuracy (\d\.\d+)", output.out)[1]
    predictions = [Image.open(striped / f"out/saved_images/epoch_001/{name}_pred.png") for name in "yz"]
    truth = np.repeat(np.arange(4), 12)[None, :36]
    assert np.mean([np.asarray(p)[:, :36] == truth for p in predictions]) == pytest.approx(
        float(accuracy), abs=1e-4
    )


def test_tables_say_which_images_are_bad_and_which_class_is_taken_for_which(striped):
    out = striped / "out"
    train.main(words(striped, out, *SMALL, "--NUM_CLASSES", "4"))
    folder, confusion, expected = out / "saved_images/epoch_001", np.zeros((4, 4)), {}
    for name in "yz":
        predicted = np.asarray(Image.open(folder / f"{name}_pred.png"))
        truth = np.asarray(Image.open(out / f"saved_images/images/{name}_target.png"))
        predicted, truth = predicted[truth != IGNORED], truth[truth != IGNORED]
        np.add.at(confusion, (truth, predicted), 1)
        pairs = [(predicted == number, truth == number) for number in range(4)]
        dice = [2 * (p & t).sum() / (p.sum() + t.sum()) if (p | t).any() else None for p, t in pairs]
        expected[f"{name}.jpg"] = [np.mean([d for d in dice if d is not None]), (truth > 0).mean(), *dice]

    def table(file: str) -> list[list[str | float | None]]:
        with open(folder / file, newline="") as opened:
            head, *rows = csv.reader(opened)
        return [head, *([row[0], *(float(cell) if cell else None for cell in row[1:])] for row in rows)]

    head, *rows = table("scores.csv")
    assert ",".join(head) == "name,dice,iou,precision,recall,foreground,dice/0,dice/1,dice/2,dice/3"
    assert {row[0]: pytest.approx([row[1], *row[5:]], abs=1e-5) for row in rows} == expected
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)
    head, *rows = table("confusion.csv")
    assert head == ["target / predicted", "0", "1", "2", "3"] and rows[3] == ["3", None, None, None, None]
    shares = confusion[:3] / confusion[:3].sum(1, keepdims=True)
    np.testing.assert_allclose([row[1:] for row in rows[:3]], shares, atol=1e-5)
    events = EventAccumulator(str(out / "runs/val")).Reload()
    text = events.Tensors("confusion/text_summary")[0].tensor_proto.string_val[0].decode()
    first = [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]
    assert [float(cell) for cell in first] == pytest.approx([0, *shares[0]], abs=1e-5)


@pytest.mark.parametrize(
    "more, lines, message",
    [
        (["--NUM_CLASSES", "0"], 1, "NUM_CLASSES: 0 can't be used"),
        (["--NUM_CLASSES", "3", "--IGNORE_INDEX", "2"], 1, "IGNORE_INDEX: 2 can't be used"),
        (["--NUM_CLASSES", "2"], 6, "the value 2, where classes are 0 to 1 and 255 is ignored"),  # and their number
        ([], 6, "values up to 255, 4 in all"),
    ],
)
def test_refusals(striped, more, lines, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: train.main(words(striped, striped / "out", *SMALL, *more)))
    told = [line for line in capsys.readouterr().err.splitlines() if "reading" not in line]
    assert stop.value.code == 2 and message in told[0] and len(told) == lines


def test_masks_in_black_and_white_for_two_classes_are_refused(striped, capsys):
    for mask in (*(striped / "train_masks").iterdir(), *(striped / "val_masks").iterdir()):
        Image.fromarray((np.asarray(Image.open(mask)) == 1).astype(np.uint8) * 255).save(mask)
    with pytest.raises(BadInput, match="all 3 masks hold nothing but background and ignored pixels"):
        train.main(words(striped, striped / "out", *SMALL, "--NUM_CLASSES", "2"))
    assert "warning" not in capsys.readouterr().err


def test_prepare_data_checks_and_splits_masks_of_classes(striped, capsys):
    folders = [str(striped / "train_images"), str(striped / "train_masks")]
    no_cache = ["--CACHE_DIR", ""]
    prepare_data.main(["check", *folders, *no_cache, "--NUM_CLASSES", "3"])
    assert "3 images with masks; 48x32; foreground 50.0%" in capsys.readouterr().out
    with pytest.raises(BadInput, match="the value 255, where classes are 0 to 2 and 9 is ignored"):
        prepare_data.main(["check", *folders, *no_cache, "--NUM_CLASSES", "3", "--IGNORE_INDEX", "9"])
    prepare_data.main(["split", *folders, "--out", str(striped / "data")])
    assert len(list((striped / "data/val_masks").iterdir())) == 1
    assert json.loads((striped / "data/dataset.json").read_text()) == {"NUM_CLASSES": 3, "IGNORE_INDEX": 255}


def test_empty_folders_fall_back_on_a_sample_of_as_many_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (2, 3, 4):
        (tmp_path / f"data/sample_{number}_classes/train_images").mkdir(parents=True)  # there: nothing is rendered
    for number in (2, 3, 4, 9):
        dirs = prepare_data.sample_if_empty(prepare_data.DEFAULT_DIRS, number)
        assert dirs[3] == f"data/sample_{min(number, 4)}_classes/val_masks"
