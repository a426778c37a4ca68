import random

import albumentations as A
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from conftest import write_pairs
from PIL import Image

from dataset import CarvanaDataset, EpochBatches
from support.errors import BadInput
from support.pairs import find_pairs
from support.reading import Reading, read_image, read_mask


def test_item_is_what_the_tutorial_gives(tmp_path):
    write_pairs(tmp_path / "i", tmp_path / "m", ["b_01", "a_01"])
    dataset = CarvanaDataset(tmp_path / "i", tmp_path / "m")
    assert len(dataset) == 2 and dataset.images == ["a_01.jpg", "b_01.jpg"]
    image, mask = dataset[1]
    assert image.dtype == np.uint8 and mask.dtype == np.float32
    np.testing.assert_array_equal(image, np.array(Image.open(tmp_path / "i/b_01.jpg").convert("RGB")))
    expected = np.array(Image.open(tmp_path / "m/b_01_mask.gif").convert("L"), dtype=np.float32)
    expected[expected == 255.0] = 1.0
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("mask_name", ["x_mask.gif", "x_mask.png", "x.png", "x.gif", "x_mask.PNG"])
@pytest.mark.parametrize("image_name", ["x.jpg", "x.JPEG", "x.png", "x.tif", "x.webp", "x.bmp"])
def test_names_that_pair_up(tmp_path, image_name, mask_name):
    for folder in ("i", "m"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "i" / image_name)
    Image.new("L", (4, 4)).save(tmp_path / "m" / mask_name)
    for stray in ("note.txt", ".DS_Store", "._x.jpg"):
        (tmp_path / "i" / stray).write_text("no picture")
    assert find_pairs(tmp_path / "i", tmp_path / "m") == [(tmp_path / "i" / image_name, tmp_path / "m" / mask_name)]


@pytest.mark.parametrize("suffix", [".png", "_mask.png", "_mask.jpg"])
def test_images_and_masks_in_one_folder_are_refused_where_they_cant_be_told_apart(tmp_path, suffix):
    (tmp_path / "link").symlink_to(tmp_path)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg")
    Image.new("L", (8, 6)).save(tmp_path / f"a{suffix}")
    for images, masks in ((tmp_path, tmp_path), (tmp_path, tmp_path / "link")):
        with pytest.raises(BadInput, match="holds masks and images, and .* Move the masks into a folder of"):
            find_pairs(images, masks)
    (tmp_path / f"a{suffix}").rename(tmp_path / "a_mask.gif")  # by its ending no image
    assert find_pairs(tmp_path, tmp_path) == [(tmp_path / "a.jpg", tmp_path / "a_mask.gif")]


def test_unpaired_images_are_refused_by_name(tmp_path):
    write_pairs(tmp_path / "i", tmp_path / "m", ["a", "b"])
    Image.new("L", (4, 4)).save(tmp_path / "m/a.png")
    with pytest.raises(BadInput, match=r"a\.jpg: two masks, a_mask\.gif and a\.png"):
        find_pairs(tmp_path / "i", tmp_path / "m")
    (tmp_path / "m/a.png").unlink()
    (tmp_path / "m/b_mask.gif").unlink()
    with pytest.raises(BadInput, match=r"b\.jpg: no mask in .*tried b_mask and b, ending in \.gif \.png"):
        find_pairs(tmp_path / "i", tmp_path / "m")


MASK = np.array([[0, 0, 1], [1, 0, 1]], np.uint8)


def palette_mask(indices: np.ndarray, colours: list[int]) -> Image.Image:
    picture = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    picture.putpalette(colours)
    return picture


@pytest.mark.parametrize(
    "name, picture",
    [
        ("zero_one.png", Image.fromarray(MASK)),
        ("zero_255.png", Image.fromarray(MASK * 255)),
        ("one_bit.png", Image.fromarray(MASK.astype(bool))),
        ("rgb.png", Image.fromarray(MASK * 255).convert("RGB")),
        ("rgba.png", Image.fromarray(MASK * 255).convert("RGBA")),
        ("smooth.png", Image.fromarray(np.where(MASK, 140, 110).astype(np.uint8))),
        ("sixteen_bit.png", Image.fromarray(MASK.astype(np.uint16) * 65535)),
        ("carvana.gif", palette_mask(MASK, [0, 0, 0, 255, 255, 255])),
        ("white_first.gif", palette_mask(1 - MASK, [255, 255, 255, 0, 0, 0])),
        ("voc.png", palette_mask(MASK, [0, 0, 0, 128, 0, 0])),
    ],
)
def test_every_way_to_write_a_mask(tmp_path, name, picture):
    picture.save(tmp_path / name)
    np.testing.assert_array_equal(read_mask(tmp_path / name), MASK)


@pytest.mark.parametrize(
    "picture, finding",
    [
        (Image.fromarray(MASK * 3), "values up to 3, 2 in all"),
        (Image.fromarray(MASK.astype(np.uint16) * 1000), "values up to 1000, where white has 65535"),
        (Image.fromarray(np.stack([MASK * 255, MASK * 0, MASK * 0], -1)), "a mask in colour"),
        (palette_mask(1 - MASK, [128, 0, 0, 0, 0, 0]), "a palette in colour, whose black is number 1"),
        (
            Image.fromarray(np.stack([MASK * 0, MASK * 255], -1)),
            "of one colour, with its shape in the alpha",
        ),
    ],
)
def test_masks_with_other_meanings_are_refused(tmp_path, picture, finding):
    picture.save(tmp_path / "mask.png")
    with pytest.raises(BadInput, match=rf"mask\.png: {finding}"):
        read_mask(tmp_path / "mask.png")


def test_broken_files_are_named(tmp_path):
    write_pairs(tmp_path / "i", tmp_path / "m", ["a"])
    whole = (tmp_path / "i/a.jpg").read_bytes()
    for content in (b"", b"<html>404</html>", whole[: len(whole) // 2]):
        (tmp_path / "i/a.jpg").write_bytes(content)
        with pytest.raises(BadInput, match=r"a\.jpg: can't be read as an image"):
            read_image(tmp_path / "i/a.jpg", Reading((16, 24)))
    mask = tmp_path / "m/a_mask.gif"
    mask.write_bytes(mask.read_bytes()[:12])
    with pytest.raises(BadInput, match=r"a_mask\.gif: can't be read as an image \(damaged or cut short\)"):
        read_mask(mask)


def test_image_modes_become_rgb(tmp_path):
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.repeat(gray[..., None], 3, axis=2)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray.astype(np.uint16) * 256).save(tmp_path / "sixteen.png")
    Image.fromarray(np.dstack([expected, gray])).save(tmp_path / "alpha.png")
    for name in ("gray.png", "sixteen.png", "alpha.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), expected)


def test_exif_orientation_is_applied_at_every_decoding_scale(tmp_path):
    image = np.zeros((320, 640, 3), np.uint8)
    image[:, :320] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the left becomes the top
    Image.fromarray(image).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    full, small = read_image(tmp_path / "turned.jpg"), read_image(tmp_path / "turned.jpg", Reading((64, 32)))
    assert full.shape == (640, 320, 3) and small.shape == (64, 32, 3)
    assert full[:300].mean() > 250 and full[340:].mean() < 5
    assert small[:30].mean() > 250 and small[34:].mean() < 5


@pytest.mark.parametrize("size", [(20, 30), (60, 30), (15, 90), (30, 45), (25, 30), (20, 31), (59, 89), (1, 1)])
@pytest.mark.parametrize("values", [(0, 1), (0, 255), (254, 255), (255, 0)])
def test_scaled_mask_covers_at_least_half_of_each_pixel(tmp_path, size, values):
    rng = np.random.default_rng(0)
    picture = np.where(rng.random((60, 90)) < 0.5, *values).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", Reading(size))
    foreground = (picture >= (128 if picture.max() > 1 else 1)).astype(np.float32)
    areas = np.asarray(Image.fromarray(foreground).resize(size[::-1], Image.Resampling.BOX))
    clear = np.abs(areas - 0.5) > 0.005  # beyond the rounding to 8 bits
    np.testing.assert_array_equal(mask[clear], (areas >= 0.5)[clear])
    if 60 % size[0] == 0 and 90 % size[1] == 0:
        areas = foreground.reshape(size[0], 60 // size[0], size[1], 90 // size[1]).mean((1, 3))
        np.testing.assert_array_equal(mask, areas >= 0.5)


@pytest.mark.parametrize("size", [(160, 240), (80, 120), (128, 192), (200, 300), (256, 256), (512, 768)])
def test_reduced_decoding_equals_full_decoding_and_area_averaging(carvana, size):
    for path in sorted((carvana / "train_images").iterdir())[:3]:
        full = Image.open(path).convert("RGB").resize(size[::-1], Image.Resampling.BOX)
        difference = np.abs(read_image(path, Reading(size)).astype(int) - np.asarray(full))
        assert difference.mean() <= 1


def test_real_masks_are_zero_and_one_at_both_sizes(carvana):
    path = sorted((carvana / "train_masks").iterdir())[0]
    full, small = read_mask(path), read_mask(path, Reading((160, 240)))
    assert full.shape == (1280, 1918) and small.shape == (160, 240)
    np.testing.assert_array_equal(full, np.asarray(Image.open(path).convert("L")) // 255)
    assert set(np.unique(small)) == {0, 1} and abs(full.mean() - small.mean()) < 1e-3


def test_mask_and_image_stay_aligned_through_augmentation(tmp_path):
    # A image of its own mask: whatever is done to one must be done to the other.
    rng = np.random.default_rng(0)
    blobs = np.kron(rng.random((4, 6)) < 0.5, np.ones((40, 40), bool))
    (tmp_path / "i").mkdir(), (tmp_path / "m").mkdir()
    Image.fromarray(blobs).convert("RGB").save(tmp_path / "i/x.png")
    Image.fromarray(blobs).save(tmp_path / "m/x.png")
    transform = A.Compose([A.HorizontalFlip(p=0.5), A.Affine(scale=(0.9, 1.1), rotate=(-5, 5), p=1), ToTensorV2()])
    dataset = CarvanaDataset(tmp_path / "i", tmp_path / "m", transform, Reading((80, 120)))
    for epoch in range(20):
        image, mask = dataset[epoch, 0]
        assert ((image[0] >= 128) == (mask > 0)).float().mean() > 0.99


def test_augmentation_depends_on_seed_epoch_and_image_alone(tmp_path):
    write_pairs(tmp_path / "i", tmp_path / "m", ["a", "b"])
    transform = A.Compose([A.HorizontalFlip(p=0.5), A.Affine(rotate=(-30, 30), p=1), ToTensorV2()])
    make = lambda seed=0: CarvanaDataset(tmp_path / "i", tmp_path / "m", transform, seed=seed)  # noqa: E731
    dataset = make()
    again = {key: dataset[key][0] for key in ((0, 0), (1, 0), (0, 1), (7, 1))}
    random.seed(5), np.random.seed(5)
    for key in reversed(again):
        assert torch.equal(make()[key][0], again[key])
    assert not torch.equal(again[0, 0], again[1, 0])
    assert not torch.equal(make(seed=1)[0, 0][0], again[0, 0])


def test_two_flips_are_drawn_apart(tmp_path):
    (tmp_path / "i").mkdir(), (tmp_path / "m").mkdir()
    corner = np.zeros((2, 2), np.uint8)
    corner[0, 0] = 255
    Image.fromarray(corner).save(tmp_path / "i/x.bmp"), Image.fromarray(corner).save(tmp_path / "m/x.png")
    transform = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    dataset = CarvanaDataset(tmp_path / "i", tmp_path / "m", transform)
    corners = [int(dataset[epoch, 0][1].argmax()) for epoch in range(400)]
    assert min(corners.count(k) for k in range(4)) > 60  # 100 each are expected


def test_epoch_batches():
    batches = EpochBatches(10, 4, seed=3)
    first, second = list(batches), list(batches)
    assert [len(b) for b in first] == [4, 4, 2] == [len(b) for b in second] and len(batches) == 3
    assert {epoch for b in first for epoch, _ in b} == {0} and {epoch for b in second for epoch, _ in b} == {1}
    assert sorted(i for b in first for _, i in b) == list(range(10)) == sorted(i for b in second for _, i in b)
    assert [i for b in first for _, i in b] != [i for b in second for _, i in b]

    batches = EpochBatches(10, 4, seed=3)
    batches.epoch, batches.first_batch = 1, 2
    assert list(batches) == second[2:] and batches.epoch == 2
    dropped = EpochBatches(10, 4, seed=3, drop_last=True)
    assert list(dropped) == first[:2] and len(dropped) == 2
