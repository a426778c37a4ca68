"""Images of one band to many, with 8 or 16 bits, from the file to the network."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import write_pairs
from PIL import Image
from test_resume import differences, interrupted

import predict
import prepare_data
import train
from dataset import CarvanaDataset, make_transforms, random_crop
from support.checkpoint import read_checkpoint
from support.errors import BadInput
from support.preparation import prepare
from support.reading import Reading, image_size, read_image, read_mask

ROOT = Path(__file__).parent.parent
BYTES = np.random.default_rng(0).integers(0, 256, (48, 64, 8)).astype(np.uint8)


def write_tiff(path: Path, pixels: np.ndarray, planar: bool = False, **more) -> Path:
    """A TIFF of (H, W, N), as GDAL writes it: with `planar`, one band after the other."""
    several = {"planarconfig": "separate" if planar else "contig"} if pixels.shape[2] > 1 else {}
    pixels = np.moveaxis(pixels, 2, 0) if planar and several else pixels
    settings = {"photometric": "minisblack", **several, **more}
    tifffile.imwrite(path, pixels if several else pixels[..., 0], **settings)
    return path


@pytest.mark.parametrize("planar", [False, True], ids=["chunky", "planar"])
@pytest.mark.parametrize("bands", [1, 2, 4, 8])
def test_each_band_is_read_and_scaled_as_those_of_rgb_are(tmp_path, bands, planar):
    pixels = BYTES[..., :bands]
    tiled = {"tile": (16, 16), "compression": "zlib", "predictor": True}
    files = [
        write_tiff(tmp_path / "bytes.tif", pixels, planar),
        write_tiff(tmp_path / "deep.tif", pixels.astype(np.uint16) * 257, planar, byteorder=">", **tiled),
        write_tiff(tmp_path / "twelve.tif", pixels.astype(np.uint16) << 4, planar),
    ]
    for file, highest in zip(files, (65535, 65535, 4095), strict=True):
        np.testing.assert_array_equal(read_image(file, Reading(channels=bands, highest=highest)), pixels)
        assert image_size(file) == (48, 64)
        for size in ((24, 20), (96, 64)):
            scaled = read_image(file, Reading(size, channels=bands, highest=highest))
            for band in range(bands):
                Image.fromarray(np.dstack([BYTES[..., band]] * 3)).save(tmp_path / "rgb.png")
                np.testing.assert_array_equal(
                    scaled[..., band], read_image(tmp_path / "rgb.png", Reading(size))[..., 0]
                )


@pytest.mark.parametrize("planar", [False, True], ids=["chunky", "planar"])
def test_rgb_with_16_bits_is_read_right_in_every_layout(tmp_path, planar):
    """Pillow makes rubbish of planes with 16 bits, and keeps but the upper 8 of colours, which 12 bits lack."""
    rgb = BYTES[..., :3]
    deep = write_tiff(tmp_path / "deep.tif", rgb.astype(np.uint16) * 257, planar, photometric="rgb")
    twelve = write_tiff(tmp_path / "twelve.tif", rgb.astype(np.uint16) << 4, planar, photometric="rgb")
    np.testing.assert_array_equal(read_image(deep), rgb)
    np.testing.assert_array_equal(read_image(twelve, Reading(highest=4095)), rgb)
    np.testing.assert_array_equal(
        read_image(deep, Reading(channels=1))[..., 0], np.asarray(Image.fromarray(rgb).convert("L"))
    )
    mask = np.dstack([(rgb[..., 0] > 99).astype(np.uint16) * 65535] * 3)
    np.testing.assert_array_equal(
        read_mask(write_tiff(tmp_path / "m.tif", mask, planar, photometric="rgb")), mask[..., 0] > 0
    )
    with pytest.raises(BadInput, match="twelve.tif: 16 bits, of which it uses the lower 12 .* --RANGE 4095"):
        read_image(twelve)


def test_png_of_12_bits_and_files_that_are_no_tiff(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "rgb.png"), BYTES[..., 2::-1].astype(np.uint16) << 4)
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png", Reading(highest=4095)), BYTES[..., :3])
    with pytest.raises(BadInput, match="rgb.png: 16 bits, of which it uses the lower 12 .* --RANGE 4095"):
        read_image(tmp_path / "rgb.png")
    Image.fromarray(BYTES[..., :4]).save(tmp_path / "four.png")
    np.testing.assert_array_equal(read_image(tmp_path / "four.png", Reading(channels=4)), BYTES[..., :4])
    Image.fromarray(BYTES[..., :3]).save(tmp_path / "a.jpg")
    gray = np.asarray(Image.open(tmp_path / "a.jpg").convert("L"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg", Reading(channels=1)), gray[..., None])
    Image.fromarray(np.full((160, 160, 3), 3, np.uint8)).save(tmp_path / "dark.tif")  # 8 bits, whatever its width
    assert read_image(tmp_path / "dark.tif").max() == 3


def test_orientation_previews_and_what_is_refused(tmp_path):
    turned = write_tiff(tmp_path / "turned.tif", BYTES, extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(read_image(turned, Reading(channels=8)), BYTES[::-1].swapaxes(0, 1))
    with tifffile.TiffWriter(tmp_path / "preview.tif") as file:
        settings = {"photometric": "minisblack", "planarconfig": "contig"}
        file.write(BYTES, **settings), file.write(BYTES[::2, ::2], subfiletype=1, **settings)
    np.testing.assert_array_equal(read_image(tmp_path / "preview.tif", Reading(channels=8)), BYTES)
    tifffile.imwrite(tmp_path / "stack.tif", np.moveaxis(BYTES, 2, 0), photometric="minisblack")
    floats = write_tiff(tmp_path / "floats.tif", BYTES.astype(np.float32))
    eight = write_tiff(tmp_path / "eight.tif", BYTES)
    (tmp_path / "cut.tif").write_bytes(eight.read_bytes()[:2000])
    deep = write_tiff(tmp_path / "deep.tif", BYTES.astype(np.uint16) << 4)
    Image.fromarray(BYTES[..., :2], "LA").save(tmp_path / "lzw.tif", compression="tiff_lzw")
    if not find_spec("imagecodecs"):
        with pytest.raises(BadInput, match="lzw.tif: .*LZW.* Run pip install tifffile imagecodecs"):
            read_image(tmp_path / "lzw.tif", Reading(channels=2))
    for file, channels, highest, words in (
        (tmp_path / "stack.tif", 8, 65535, "holds 8 images"),
        (floats, 8, 65535, "MINISBLACK pixels of type float32. Save it as RGB or bands of 8 or 16 bits"),
        (eight, 5, 65535, "8 bands, where IN_CHANNELS is 5. .* --IN_CHANNELS 8"),
        (eight, 3, 65535, "8 bands, where IN_CHANNELS is 3. .* --IN_CHANNELS 8"),
        (tmp_path / "cut.tif", 8, 65535, "cut.tif: can't be read as an image"),
        (deep, 8, 65535, "the lower 12 or fewer. .* --RANGE 4095"),
        (deep, 8, 4000, "values up to 4080, where RANGE is 4000. Train with a higher --RANGE"),
    ):
        with pytest.raises(BadInput, match=words) as refusal:
            read_image(file, Reading(channels=channels, highest=highest))
        assert "\n" not in str(refusal.value)


def test_augmentation_and_crops_do_the_same_to_any_number_of_bands():
    augment, mask = make_transforms()[0], np.zeros((48, 64), np.uint8)
    for bands in (1, 2, 5, 8):
        alike = BYTES[..., :1].repeat(bands, axis=2)
        for seed in range(20):
            augment.set_random_seed(seed)
            image = augment(image=BYTES[..., :bands], mask=mask)["image"]
            assert (image.shape, image.dtype) == ((bands, 48, 64), torch.float32) and image.min() >= 0
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
    options = [
        "--CHECKPOINT",
        str(best),
        "--OUT",
        str(tmp_path / "out"),
        "--OVERLAY",
        "--CUTOUT",
        "--DEVICE",
        "cpu",
    ]
    predict.main([str(tmp_path / "in/val_images"), *options, "--MASK_DIR", str(tmp_path / "in/val_masks")])
    assert "5 of 5 images predicted" in capsys.readouterr().out
    overlay = next((tmp_path / "out").glob("*_overlay.jpg"))
    assert np.asarray(Image.open(overlay)).shape == (64, 96, 3)
    write_pairs(tmp_path / "rgb", tmp_path / "masks", ["a"])
    with pytest.raises(SystemExit):
        predict.main([str(tmp_path / "rgb"), *options])
    assert "a.jpg: 3 bands, where IN_CHANNELS is 5" in capsys.readouterr().err


def test_the_records_hold_all_bands_and_depend_on_them(five_bands, tmp_path):
    folders = tmp_path / "in/val_images", tmp_path / "in/val_masks"
    paths = set()
    for channels, highest in ((5, 4095), (5, 65535), (5, 4080)):
        reading = Reading((32, 48), channels=channels, highest=highest)
        prepared = prepare(*folders, reading, tmp_path / "cache")
        assert bool(prepared.records) == (highest < 65535)
        if prepared.records:
            paths.add(prepared.records.path)
            data = CarvanaDataset(*folders, reading=reading)
            for index, (image, mask) in enumerate(map(prepared.records.__getitem__, range(5))):
                np.testing.assert_array_equal(image, data[index][0])
                np.testing.assert_array_equal(mask, data[index][1])
    assert len(paths) == 2


def test_split_says_the_bands_and_train_takes_them_from_there(five_bands, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sources = ["in/train_images", "in/train_masks"]
    with pytest.raises(BadInput, match="5 bands, where IN_CHANNELS is 3.* --IN_CHANNELS 5"):
        prepare_data.main(["check", *sources])
    with pytest.raises(BadInput, match="IN_CHANNELS: -1 can't be used"):
        prepare_data.main(["check", *sources, "--IN_CHANNELS", "-1"])
    prepare_data.main(["check", *sources, "--IN_CHANNELS", "5", "--RANGE", "4095"])
    prepare_data.main(["split", *sources, "--IN_CHANNELS", "5", "--RANGE", "4095"])
    assert "a size to train at: 96x64" in capsys.readouterr().out
    known = json.loads(Path("data/dataset.json").read_text())
    assert (known["IN_CHANNELS"], known["RANGE"]) == (5, 4095)
    train.main(["--FEATURES", "4", "8", "--NUM_EPOCHS", "1", "--IMAGE_HEIGHT", "32", "--IMAGE_WIDTH", "48"])
    assert read_checkpoint("my_checkpoint.pth.tar")["model"]["in_channels"] == 5
    for more, words in (
        (["--IN_CHANNELS", "4"], "5 bands, where IN_CHANNELS is 4"),
        (["--RANGE", "2000"], "where RANGE is 2000. Train with a higher --RANGE"),
    ):
        command = [sys.executable, str(ROOT / "train.py"), *more, "--FEATURES", "4", "8", "--BATCH_SIZE", "2"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
