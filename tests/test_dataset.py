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
from support.reading import Reading


def test_item_is_what_the_tutorial_gives(tmp_path):
    write_pairs(tmp_path / "i", tmp_path / "m", ["b_01", "a_01"])
    dataset = CarvanaDataset(tmp_path / "i", tmp_path / "m")
    assert len(dataset) == 2 and dataset.images == ["a_01.jpg", "b_01.jpg"]
    image, mask = dataset[1]
    assert image.dtype == np.uint8 and mask.dtype == bool
    np.testing.assert_array_equal(image, np.array(Image.open(tmp_path / "i/b_01.jpg").convert("RGB")))
    expected = np.array(Image.open(tmp_path / "m/b_01_mask.gif").convert("L"), dtype=np.float32)
    expected[expected == 255.0] = 1.0
    np.testing.assert_array_equal(mask, expected)


def test_names_that_pair_up(tmp_path):
    images = [f"{n}.{ending}" for n, ending in enumerate(("jpg", "JPEG", "png", "tif", "webp", "bmp"))]
    masks = ["0_mask.gif", "1_mask.png", "2.png", "3.gif", "4_mask.PNG", "5.tiff"]
    for folder, names in (("i", [*images, "note.txt", ".DS_Store", "._0.jpg"]), ("m", masks)):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    assert find_pairs(tmp_path / "i", tmp_path / "m") == [
        (tmp_path / "i" / image, tmp_path / "m" / mask) for image, mask in zip(images, masks, strict=True)
    ]


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


def test_mask_and_image_stay_aligned_through_augmentation(tmp_path):
    blobs = np.kron(np.random.default_rng(0).random((4, 6)) < 0.5, np.ones((40, 40), bool))  # its own mask
    for folder in ("i", "m"):
        (tmp_path / folder).mkdir()
        Image.fromarray(blobs).convert("RGB" if folder == "i" else "1").save(tmp_path / folder / "x.png")
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
