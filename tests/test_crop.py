"""CROP: training on squares at the images' own scale, and whole images seen in windows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_distributed import torchrun
from test_resume import differences, interrupted
from torch import nn

import predict
import train
from dataset import CarvanaDataset, random_crop
from model import UNET
from prepare_data import check
from support.checkpoint import read_checkpoint
from support.errors import BadInput
from support.preparation import prepare
from support.reading import Reading, ceiling
from support.sliding_window import SlidingWindow, blend

ROOT = Path(__file__).parent.parent
CROP = ["--CROP", "32", "--FEATURES", "8", "16"]


class Brightness(nn.Module):
    """Logits of each pixel by itself: the same in every window."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images)


def test_a_crop_is_a_place_of_both_and_half_of_them_show_foreground():
    small = np.arange(3 * 4 * 3, dtype=np.uint8).reshape(3, 4, 3)  # is continued by its mirror image
    part, _ = random_crop(small, np.zeros((3, 4), np.uint8), 5, np.random.default_rng(0))
    assert (part == small[[0, 1, 2, 1, 0]][:, [0, 1, 2, 3, 2]]).all()
    image = np.arange(50 * 70 * 3).reshape(50, 70, 3)
    mask = np.zeros((50, 70), np.uint8)
    mask[7, 9] = 1
    seen = 0
    for seed in range(400):
        part, part_mask = random_crop(image, mask, 16, np.random.default_rng(seed))
        assert part.shape == (16, 16, 3) and part_mask.shape == (16, 16)
        row, column = divmod(int(part[0, 0, 0]) // 3, 70)
        assert (part == image[row : row + 16, column : column + 16]).all()
        assert (part_mask == mask[row : row + 16, column : column + 16]).all()
        seen += part_mask.any()
    assert 0.42 < seen / 400 < 0.62


@pytest.mark.parametrize("size", [(100, 257), (64, 64), (10, 300), (65, 1), (1, 1)])
def test_windows_cover_every_pixel_once(size):
    images, model = torch.rand(2, 3, *size), Brightness()
    with torch.no_grad():
        torch.testing.assert_close(SlidingWindow(model, 32)(images), model(images))


def test_no_seam_is_seen_between_windows():
    """Against the whole image: where windows meet, logits differ no more than their own noise from place to
    place."""
    starts = list(blend(1918, 512, 128))
    assert starts[0] == 0 and starts[-1] == 1918 - 512 and max(np.diff(starts)) <= 512 - 128
    torch.manual_seed(0)
    model, image = UNET(features=[8, 16]).eval(), torch.rand(1, 3, 200, 400)
    with torch.no_grad():
        whole, tiled = model(image), SlidingWindow(model, 64)(image)
    assert (whole - tiled).abs().mean() < 0.05 * whole.std()
    steps = [(logits.diff(dim=3).abs().mean((0, 1, 2))) for logits in (whole, tiled)]
    torch.testing.assert_close(steps[1], steps[0], rtol=0.05, atol=0)


def test_records_keep_images_of_any_size(folders, tmp_path):
    images, masks = Path(folders[1]), Path(folders[3])
    Image.open(next(images.iterdir())).resize((40, 20)).save(images / "other.png")
    Image.open(next(masks.iterdir())).resize((40, 20)).save(masks / "other.png")
    prepared = prepare(images, masks, Reading(), tmp_path / "cache")
    plain = CarvanaDataset(images, masks)
    assert len(prepared.records) == len(plain) == 13
    for index in range(13):
        for mine, theirs in zip(prepared.records[index], plain.read(index), strict=True):
            assert np.array_equal(mine, theirs)


def test_a_run_on_crops_resumes_exactly_and_is_validated_at_full_size(folders, tmp_path, monkeypatch, capsys):
    val_images, val_masks = Path(folders[5]), Path(folders[7])
    for folder in (val_images, val_masks):  # of another size, smaller than a crop
        path = sorted(folder.iterdir())[0]
        Image.open(path).convert("L").resize((30, 20), Image.Resampling.NEAREST).save(path.with_suffix(".png"))
        path.unlink()
    words = [*folders, *CROP, "--NUM_EPOCHS", "3"]
    train.main([*words, "--OUT_DIR", str(tmp_path / "whole")])
    printed = capsys.readouterr().out
    assert "5 images at their own sizes: dice" in printed and "12 training images (6 crops of each)" in printed
    interrupted(words, tmp_path / "pieces", [(0, 2), (2, 7)], monkeypatch)
    assert not differences(tmp_path / "whole", tmp_path / "pieces")
    capsys.readouterr()
    best = tmp_path / "whole/best_checkpoint.pth.tar"
    predict.main([str(val_images), "--MASK_DIR", str(val_masks), "--CHECKPOINT", str(best), "--OUT", str(tmp_path)])
    dice = float(capsys.readouterr().out.partition("at full size: dice ")[2].partition(",")[0])
    assert dice == pytest.approx(read_checkpoint(best)["best_dice"], abs=2e-3) and dice > 0.9


def test_a_crop_larger_than_all_images_is_refused(folders, tmp_path):
    with pytest.raises(BadInput, match="CROP: 128, where the largest image has 96 pixels"):
        train.main([*folders, "--CROP", "128", "--OUT_DIR", str(tmp_path)])


def test_two_processes_train_on_crops(folders, tmp_path):
    words = [*folders, *CROP, "--NUM_EPOCHS", "1", "--BATCH_SIZE", "4"]
    done = torchrun(2, ROOT / "train.py", *words, "--OUT_DIR", tmp_path)
    assert done.returncode == 0 and done.stdout.count("5 images at 96x64: dice") == 1, done.stderr


def test_the_ceiling_is_what_perfect_masks_score():
    mask = np.zeros((80, 80), np.uint8)
    mask[10:50, 20:60] = 1
    scaled = mask.reshape(20, 4, 20, 4).mean((1, 3)) >= 0.5
    assert ceiling(mask, mask) == 1 and 0.9 < ceiling(mask, scaled.astype(np.uint8)) < 1
    assert ceiling(mask, np.zeros((20, 20), np.uint8)) == 0
    assert ceiling(np.zeros((80, 80), np.uint8), np.zeros((20, 20), np.uint8)) == 1


def test_fine_detail_is_warned_of_with_what_would_serve(tmp_path, capsys):
    for name in "abc":
        image, mask = Image.new("RGB", (300, 200), "gray"), Image.new("L", (300, 200))
        for x in range(10, 290, 20):
            ImageDraw.Draw(mask).line([(x, 0), (x + 9, 199)], 255, 5)
        for kind, picture in (("images", image), ("masks", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            picture.save(tmp_path / kind / f"{name}.png")
    check([str(tmp_path / "images"), str(tmp_path / "masks")], (64, 96), "")
    captured = capsys.readouterr()
    said = float(captured.out.partition("would score ")[2].split()[0])
    assert 0.6 < said < 0.95 and "perfect masks of 96x64 would score" in captured.out
    (line,) = [line for line in captured.err.splitlines() if "fine detail" in line]
    now, twice = (float(line.partition(f" at {size}")[0].split()[-1]) for size in ("96x64", "192x128"))
    assert now == round(said, 2) < twice and "1.00 with CROP" in line
