"""Which mask belongs to which image, from names alone."""

import pytest

from support.errors import BadInput
from support.layouts import listed, match, plain_names, side, tell_apart

TABLE = [  # how images are called, and how masks
    ("{}.jpg", "{}.png"),
    ("{}.jpg", "{}_mask.png"),
    ("ISIC_000{}.jpg", "ISIC_000{}_segmentation.png"),
    ("{}.jpg", "{}_seg.png"),
    ("{}.jpg", "{}_drawn-by-Ann.png"),
    ("{}_training.tif", "{}_manual1.gif"),
    ("image_{}.jpg", "label_{}.png"),
    ("image{}.jpg", "mask{}.png"),
    ("{}.jpg", "{}.jpg.png"),
    ("aachen_{}_leftImg8bit.png", "aachen_{}_gtFine_labelIds.png"),
    ("{}_sat.jpg", "{}_mask.png"),
    ("case_{}_0000.png", "case_{}.png"),
    ("scan_{}_flair.png", "scan_{}_roi.png"),
    ("{}.jpg", "00{}.png"),
    ("IMG_{}.JPG", "img_{}.png"),
    ("train/a/{}.png", "train/a/{}_label.png"),
    ("x{0}/images/x{0}.png", "x{0}/masks/some{0}.png"),
    ("images/{0}.png", "masks/{0}/first.png"),
    ("{}_json/img.png", "{}_json/label.png"),
    ("p{}_L.jpg", "p{}_L_mask.png"),
]


@pytest.mark.parametrize("image, mask", TABLE)
def test_every_scheme_is_found(image, mask):
    numbers = [1, 2, 3, 10, 11, 12]
    images, masks = ([name.format(n) for n in numbers] for name in (image, mask))
    found = match(images, masks[::-1])
    assert found.pairs == {i: [m] for i, m in zip(images, masks, strict=True)}
    assert found.examples and not found.clashes and not found.unpaired and not found.unused
    less = match(images, masks[1:])
    assert less.unpaired == images[:1] and len(less.pairs) == 5


@pytest.mark.parametrize(
    "images, masks, pairs",
    [
        # Another image's exact mask is never this one's.
        (["a.jpg", "a_1.jpg"], ["a_1.png"], {"a_1.jpg": ["a_1.png"]}),
        (["a.jpg", "a_mask.jpg"], ["a_mask.png"], {"a_mask.jpg": ["a_mask.png"]}),
        (["1.jpg", "10.jpg"], ["10.png"], {"10.jpg": ["10.png"]}),
        (["1.jpg", "01.jpg"], ["1.png"], {"1.jpg": ["1.png"]}),
        (["benign (1).png"], ["malignant (1)_mask.png"], {}),
        (["train_1.jpg", "test_1.jpg"], ["test_1_mask.png"], {"test_1.jpg": ["test_1_mask.png"]}),
        (["1.jpg", "1.png"], ["1.jpg.png", "1.png.png"], {"1.jpg": ["1.jpg.png"], "1.png": ["1.png.png"]}),
        # Several masks
        (["CXR/1.png"], ["Mask/left/1.png", "Mask/right/1.png"], {"CXR/1.png": None}),
        (["a.png"], ["a_mask.png", "a_mask_1.png", "a_mask_2.png"], {"a.png": None}),
        (
            ["a.png", "b.png"],
            ["a_1.png", "a_2.png", "b_1.png"],
            {"a.png": ["a_1.png", "a_2.png"], "b.png": ["b_1.png"]},
        ),
        # Two schemes in one set
        (["a.jpg", "b.jpg"], ["a.png", "b_mask.png"], {"a.jpg": ["a.png"], "b.jpg": ["b_mask.png"]}),
        # Classes, and not what else lies beside them
        (
            ["a_1_leftImg8bit.png", "a_2_leftImg8bit.png"],
            [f"a_{n}_gtFine_{kind}.png" for n in (1, 2) for kind in ("color", "instanceIds", "labelIds")],
            {f"a_{n}_leftImg8bit.png": [f"a_{n}_gtFine_labelIds.png"] for n in (1, 2)},
        ),
    ],
)
def test_names_that_look_alike(images, masks, pairs):
    assert match(images, masks).pairs == {image: masks if some is None else some for image, some in pairs.items()}


def test_masks_that_contradict_each_other_and_an_option_that_decides():
    images, masks = ["a.jpg", "b.jpg"], ["a.png", "a_mask.png", "b.png"]
    found = match(images, masks)
    assert found.clashes == {"a.jpg": ["a.png", "a_mask.png"]} and found.pairs == {"b.jpg": ["b.png"]}
    assert match(images, masks, "NAME_mask").pairs == {"a.jpg": ["a_mask.png"]}
    assert match(["a_x.jpg"], ["y-a.png"], "NAME_x=y-NAME").pairs == {"a_x.jpg": ["y-a.png"]}
    two = [f"{n}_{who}HO.png" for n in ("1L", "1R") for who in ("1st", "2nd")]
    assert match(["1L.jpg", "1R.jpg"], two).clashes == {"1L.jpg": two[:2], "1R.jpg": two[2:]}


@pytest.mark.parametrize(
    "images, masks, others",
    [
        (["b (1).png", "b (2).png"], ["b (1)_mask.png", "b (1)_mask_1.png", "b (2)_mask.png"], []),
        (["1.jpg", "2.jpg"], ["1.png", "2.png"], []),
        (["1L.jpg", "1R.jpg"], ["1L_1stHO.png", "1R_1stHO.png"], []),
        (["imgs/1.jpg"], ["masks/1.png"], []),
        (["train/1.jpg"], ["train_masks/1_mask.gif"], []),
        (["PNGImages/F1.png"], ["PedMasks/F1_mask.png"], []),
        (["train/1.png", "val/2.png"], ["trainannot/1.png", "valannot/2.png"], []),
        (["images/train/1.jpg", "images/val/2.jpg"], ["labels/train/1.png", "labels/val/2.png"], []),
        (["VOC/JPEGImages/1.jpg"], ["VOC/SegmentationClass/1.png"], ["VOC/SegmentationObject/1.png"]),
        (["ds0/img/1.jpg"], ["ds0/masks_machine/1.jpg.png"], ["ds0/masks_human/1.jpg.png"]),
        (["images/01_g.jpg"], ["manual1/01_g.tif"], ["mask/01_g_mask.tif"]),
        (
            ["test/images/1_test.tif", "training/images/2_training.tif"],
            ["test/1st_manual/1_manual1.gif", "training/1st_manual/2_manual1.gif"],
            ["test/mask/1_test_mask.gif"],
        ),
    ],
)
def test_images_and_masks_are_told_apart(images, masks, others):
    told = tell_apart(sorted([*images, *masks, *others]))
    assert [sorted(some) for some in told] == [images, masks, others]
    found = match(*told[:2])
    assert sorted(found.pairs) == images and not found.unused


def test_folders_that_dont_tell():
    with pytest.raises(BadInput, match="labels: holds masks, and so does masks. Give two folders"):
        tell_apart(["images/1.png", "labels/1.png", "masks/1.png"])
    assert tell_apart(["a.jpg", "b.jpg"]) == (["a.jpg", "b.jpg"], [], [])
    images, masks, others = ([f"{n}{end}" for n in (1, 2)] for end in (".jpg", "_1stHO.png", "_2ndHO.png"))
    assert tell_apart(images + others + masks, "", "NAME_1stHO") == (images, masks, others)


@pytest.mark.parametrize(
    "file, expected",
    [
        ("training/images/1.tif", "train"),
        ("train2017/1.jpg", "train"),
        ("imagesTr/1.png", "train"),
        ("images/val/a/1.png", "val"),
        ("valannot/1.png", "val"),
        ("test_images/1.png", "test"),
        ("stage1_train/1.png", "train"),
        ("trains/1.png", ""),
        ("train.png", ""),
    ],
)
def test_sides_of_a_set_by_its_folders(file, expected):
    assert side(file) == expected


def test_names_become_plain_and_no_two_are_one():
    sides = {"train/images/1.png": "train", "val/images/1.png": "val", "b/1.png": "train", "b/1.jpg": "train"}
    sides |= {"a_mask.png": "train"}
    assert list(plain_names(sides).values()) == ["1", "1", "b_1_png", "b_1_jpg", "a-mask"]


def test_lists_name_images_in_any_way():
    images = ["set/a/1.png", "set/a/2.png", "set/b/3.v2.png", "set/b/2.png"]
    found, unknown = listed(images, ["1 1", "set/a/2.png", "./b/3.v2.png", "4"])
    assert found == {*images[:3]} and unknown == ["4"]
