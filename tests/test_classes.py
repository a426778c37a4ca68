"""Several classes, from index masks to index masks; the set at the end is rendered."""

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import set_arguments, write_pairs
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
from support.sample import BODY, WINDOWS, make_sample, render
from support.visualize import COLOURS, PALETTE, Prediction, draw_grid, draw_overlay, errors, save_mask
from utils import check_accuracy, count_classes, image_scores, overall_scores, score_counts

THREE = Classes(3)


def write_classes(images: Path, masks: Path, names: str, values: tuple[int, ...] = (0, 1, 2, 255)) -> None:
    """Images, and masks of stripes; each stripe is one of `values`."""
    write_pairs(images, masks, list(names), (32, 48))
    for name in names:
        (masks / f"{name}_mask.gif").unlink()
        save_mask(np.tile(np.repeat(np.array(values, np.uint8), 48 // len(values)), (32, 1)), masks / f"{name}.png")


def test_a_cache_of_other_classes_is_never_used(tmp_path):
    write_classes(tmp_path / "i", tmp_path / "m", "ab", (0, 1))
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
    ignored = image_scores(count_classes(PREDICTED, TRUE * 0 + 255, 3))
    assert ignored["dice"].tolist() == [1, 1] and ignored["foreground"].tolist() == [0, 0]  # nothing can be wrong
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
    assert len(lines) == 4 and lines[3] == (
        "class 2: dice 0.6667, iou 0.5000, micro_dice 0.6667, micro_iou 0.5000, precision 1.0000, recall 0.5000"
    )
    assert scores.confusion.tolist() == [[1, 1, 0], [1, 2, 0], [0, 3, 3]]


# Images


def test_the_colours_can_be_told_apart():
    assert len(COLOURS) == 20 and PALETTE.shape == (256, 3) and PALETTE.dtype == np.uint8
    first = PALETTE[[*range(21), IGNORED]][None].astype(np.float32) / 255
    lab = cv2.cvtColor(first, cv2.COLOR_RGB2LAB)[0]
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 999 * np.eye(22)
    assert apart.min() > 25  # what an eye just notices is 2 to 3
    assert (PALETTE[1] == PALETTE[21]).all() and (PALETTE[0] == 0).all() and len(set(PALETTE[IGNORED])) == 1


def test_images_show_classes_errors_and_what_is_ignored(tmp_path):
    truth = np.repeat(np.array([0, 1, 2, IGNORED], np.uint8), 60)[None].repeat(40, 0)
    prediction = truth.copy()
    prediction[:20, 60:120], prediction[:, 180:] = 2, 1
    row = Prediction("x", np.zeros((3, 40, 240), np.float32), truth, prediction, 0.5)
    save_mask(truth, tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), truth)
        np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), PALETTE[truth])
    wrong = np.zeros((40, 240), bool)
    wrong[:20, 60:120] = True
    assert (errors(row)[wrong] == (*PALETTE[1], 255)).all() and (errors(row)[~wrong] == 0).all()
    panels = np.asarray(draw_grid([row], tmp_path / "grid.png"))[-44:-4]
    for column, values in enumerate((truth, prediction), start=1):
        np.testing.assert_array_equal(panels[:, 248 * column + 4 : 248 * column + 244], PALETTE[values])
    many = np.arange(240, dtype=np.uint8)[None].repeat(40, 0)  # a legend of several lines
    assert draw_grid([row._replace(target=many)], tmp_path / "many.png").height > len(panels) + 300
    overlay = draw_overlay(np.full((40, 240, 3), 200, np.uint8), truth).astype(int)
    assert (overlay[10:30, 10:50] == 200).all() and overlay.shape[0] > 40  # a legend below, of what is there
    assert abs(overlay[10:30, 70:110] - (0.65 * 200 + 0.35 * PALETTE[1])).max() < 1
    for number in (1, 2, IGNORED):
        assert ((overlay[40:] == PALETTE[number]).all(2).sum() > 50) and not (overlay[40:] == PALETTE[3]).all(
            2
        ).any()


# Whole runs


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    """Rendered cars: three classes."""
    folder = tmp_path_factory.mktemp("rendered") / "set"
    make_sample(folder, train_cars=5, val_cars=1, views=8, num_classes=3)
    return folder


def words(data: Path, out: Path, *more: str) -> list[str]:
    return [*set_arguments(data), *f"--OUT_DIR {out} --CACHE_DIR {out}/cache --NUM_WORKERS 0".split(), *more]


def dice_of(predicted: np.ndarray, truth: np.ndarray) -> list[float]:
    """Dice of each of three classes, all of which are there."""
    pairs = [(predicted == number, truth == number) for number in range(3)]
    return [2 * (one & other).sum() / (one.sum() + other.sum()) for one, other in pairs]


@pytest.mark.slow
def test_car_and_wheels_are_told_apart_in_training_and_prediction(rendered, tmp_path, capsys):
    small = "--IMAGE_HEIGHT 96 --IMAGE_WIDTH 144 --FEATURES 8 16 32 --NUM_EPOCHS 20"
    train.main(words(rendered, tmp_path, "--NUM_CLASSES", "3", *small.split()))
    printed = capsys.readouterr().out
    assert "classes 0 1 2" in printed

    def dice_by_class(printed: str) -> np.ndarray:
        found = re.findall(r"^class \d: dice (\d\.\d{4}), iou", printed, re.MULTILINE)
        return np.array(found, float).reshape(-1, 3)

    dice = dice_by_class(printed.partition("best checkpoint")[0])
    assert len(dice) == 20 and dice[-1].min() >= 0.9
    best = tmp_path / "best_checkpoint.pth.tar"
    assert read_checkpoint(best)["best_dice"] == pytest.approx(dice.mean(1).max(), abs=1e-4)
    page = (tmp_path / "saved_images/index.html").read_text(encoding="utf-8")
    run = json.loads(re.search(r'id="run">(.*?)</script>', page, re.DOTALL)[1])
    assert run["legend"] == {"0": "#000000", "1": "#e69f00", "2": "#56b4e9"}
    for name, score in run["epochs"]["20"]:
        prediction = np.asarray(Image.open(tmp_path / f"saved_images/epoch_020/{name}_pred.png"))
        truth = np.asarray(Image.open(tmp_path / f"saved_images/images/{name}_target.png"))
        assert score == pytest.approx(np.mean(dice_of(prediction, truth)), abs=1e-6)

    checkpoint = [str(rendered / "val_images"), "--CHECKPOINT", str(best), "--OUT", str(tmp_path / "out")]
    predict.main([*checkpoint, "--MASK_DIR", str(rendered / "val_masks"), "--OVERLAY"])
    dice = []
    for mask in sorted((rendered / "val_masks").iterdir()):
        with Image.open(tmp_path / f"out/{mask.stem.removesuffix('_mask')}.png") as prediction:
            assert prediction.mode == "P" and prediction.size == (1918, 1280)
            assert prediction.getpalette()[:9] == PALETTE[:3].ravel().tolist()
            dice.append(dice_of(np.asarray(prediction), np.asarray(Image.open(mask))))
        assert (tmp_path / f"out/{mask.stem.removesuffix('_mask')}_overlay.jpg").exists()
    (found,) = dice_by_class(capsys.readouterr().out)
    assert found == pytest.approx(np.mean(dice, axis=0), abs=1e-4) and found.min() > 0.85
    for more in (["--SUBMISSION", str(tmp_path / "s.csv")], ["--THRESHOLD", "0.7"]):
        with pytest.raises(BadInput, match=f"{more[0][2:]}: meant for one class"):
            predict.main([*checkpoint, *more])


def test_parts_become_classes(rendered):
    mask = sorted((rendered / "val_masks").iterdir())[2]
    _, parts = render(5, 3)
    np.testing.assert_array_equal(read_mask(mask, Reading(classes=THREE)), np.where(parts == WINDOWS, BODY, parts))


@pytest.fixture
def striped(tmp_path) -> Path:
    """Small pairs of stripes, all four of which have classes 0 to 2 and what is ignored."""
    for split, names in (("train", "abc"), ("val", "yz")):
        write_classes(tmp_path / f"{split}_images", tmp_path / f"{split}_masks", names)
    return tmp_path


SMALL = ["--IMAGE_HEIGHT", "32", "--IMAGE_WIDTH", "48", "--FEATURES", "4", "8", "--NUM_EPOCHS", "1"]


def test_tables_say_which_images_are_bad_and_which_class_is_taken_for_which(striped, capsys):
    out = striped / "out"
    train.main(words(striped, out, *SMALL, "--NUM_CLASSES", "4"))
    output = capsys.readouterr()
    assert "foreground 50.0% on average, 50.0% to 50.0%; classes 0 1 2" in output.out
    assert "train_masks: class 3 is in no mask. It can be neither trained nor scored here" in output.err
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
