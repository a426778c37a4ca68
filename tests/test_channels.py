"""Images of one band to many, with 8 or 16 bits, from the file to the network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_pairs
from PIL import Image
from test_reading import BYTES, write_tiff
from test_resume import differences, interrupted

import predict
import prepare_data
import train
from dataset import make_transforms, random_crop
from support.checkpoint import read_checkpoint
from support.errors import BadInput
from support.reading import read_image


def test_augmentation_and_crops_do_the_same_to_any_number_of_bands():
    augment, mask = make_transforms()[0], np.zeros((48, 64), np.uint8)
    for bands in (1, 2, 5, 8):
        alike = BYTES[..., :1].repeat(bands, axis=2)
        for seed in range(20):
            augment.set_random_seed(seed)
            image = augment(image=BYTES[..., :bands], mask=mask)["image"]
            assert (image.shape, image.dtype) == ((bands, 48, 64), torch.uint8)
        flip_move_and_brighten = type(augment)(augment.transforms[:3])
        flip_move_and_brighten.set_random_seed(1)
        changed = flip_move_and_brighten(image=alike, mask=mask)["image"]
        assert (changed == changed[..., :1]).all() and (changed != alike).any()
        assert random_crop(alike, mask, 80, np.random.default_rng(0))[0].shape == (80, 80, bands)


@pytest.fixture
def five_bands(tmp_path, folders) -> list[str]:
    """Arguments for train.py, with the images of `folders` as TIFF of five bands with 12 bits."""
    for side in ("train", "val"):
        for file in sorted((tmp_path / f"in/{side}_images").iterdir()):
            pixels = read_image(file)[..., [0, 1, 2, 0, 1]].astype(np.uint16) << 4
            write_tiff(file.with_suffix(".tif"), pixels, planar=file.stem.endswith("1"))
            file.unlink()
    return [*folders, "--IN_CHANNELS", "5", "--RANGE", "4095", "--NUM_WORKERS", "0"]


def test_a_run_on_five_bands_trains_resumes_and_predicts(five_bands, tmp_path, monkeypatch, capsys):
    train.main([*five_bands, "--OUT_DIR", str(tmp_path / "whole")])
    interrupted(five_bands, tmp_path / "parts", [(0, 3), (1, 1)], monkeypatch)
    assert differences(tmp_path / "whole", tmp_path / "parts") == []
    best = tmp_path / "whole/best_checkpoint.pth.tar"
    state = read_checkpoint(best)
    assert state["model"]["in_channels"] == 5 and state["constants"]["RANGE"] == 4095
    capsys.readouterr()
    options = f"--CHECKPOINT {best} --OUT {tmp_path / 'out'} --OVERLAY --CUTOUT --DEVICE cpu".split()
    predict.main([str(tmp_path / "in/val_images"), *options, "--MASK_DIR", str(tmp_path / "in/val_masks")])
    assert "5 of 5 images predicted" in capsys.readouterr().out
    overlay = next((tmp_path / "out").glob("*_overlay.jpg"))
    assert np.asarray(Image.open(overlay)).shape == (64, 96, 3)
    write_pairs(tmp_path / "rgb", tmp_path / "masks", ["a"])
    with pytest.raises(SystemExit):
        predict.main([str(tmp_path / "rgb"), *options])
    assert "a.jpg: 3 bands, where IN_CHANNELS is 5" in capsys.readouterr().err


def test_split_says_the_bands_and_train_takes_them_from_there(five_bands, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sources = ["in/train_images", "in/train_masks"]
    with pytest.raises(BadInput, match="5 bands, where IN_CHANNELS is 3.* --IN_CHANNELS 5"):
        prepare_data.main(["check", *sources])
    prepare_data.main(["split", *sources, "--IN_CHANNELS", "5", "--RANGE", "4095"])
    assert "a size to train at: 96x64" in capsys.readouterr().out
    known = json.loads(Path("data/dataset.json").read_text())
    assert (known["IN_CHANNELS"], known["RANGE"]) == (5, 4095)
    train.main(["--FEATURES", "4", "8", "--NUM_EPOCHS", "1", "--IMAGE_HEIGHT", "32", "--IMAGE_WIDTH", "48"])
    assert read_checkpoint("my_checkpoint.pth.tar")["model"]["in_channels"] == 5
    with pytest.raises(BadInput, match="where RANGE is 2000. Train with a higher --RANGE"):
        train.main(["--RANGE", "2000"])
