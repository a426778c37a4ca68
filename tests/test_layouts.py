"""Which mask belongs to which image, from names alone."""

import pytest

from support.errors import BadInput
from support.layouts import listed, masks_among, match, plain_names, side, tell_apart

TABLE = [  # how images are called, how masks, and what is said of it
    ("{}.jpg", "{}.png", "NAME"),
    ("{}.jpg", "{}_mask.png", "NAME_mask"),
    ("ISIC_000{}.jpg", "ISIC_000{}_segmentation.png", "NAME_segmentation"),
    ("{}.jpg", "{}_seg.png", "NAME_seg"),
    ("{}.jpg", "{}_drawn-by-Ann.png", "NAME_drawn-by-Ann"),
    ("{}_training.tif", "{}_manual1.gif", "NAME_manual1 for NAME_training"),
    ("image_{}.jpg", "label_{}.png", "label_NAME for image_NAME"),
    ("image{}.jpg", "mask{}.png", "maskNAME for imageNAME"),
    ("{}.jpg", "{}.jpg.png", "NAME.jpg.png"),
    ("aachen_{}_leftImg8bit.png", "aachen_{}_gtFine_labelIds.png", "NAME_gtFine_labelIds for NAME_leftImg8bit"),
    ("{}_sat.jpg", "{}_mask.png", "NAME_mask for NAME_sat"),
    ("case_{}_0000.png", "case_{}.png", "NAME for NAME_0000"),
    ("scan_{}_flair.png", "scan_{}_roi.png", "NAME_roi for NAME_flair"),
    ("{}.jpg", "00{}.png", "NAME (but for letter case and leading zeros)"),
    ("IMG_{}.JPG", "img_{}.png", "NAME (but for letter case and leading zeros)"),
    ("train/a/{}.png", "train/a/{}_label.png", "NAME_label"),
    ("x{0}/images/x{0}.png", "x{0}/masks/some{0}.png", "the folder of their image"),
    ("images/{0}.png", "masks/{0}/first.png", "the folder of their image"),
]


@pytest.mark.parametrize("image, mask, said", TABLE)
def test_every_scheme_is_found(image, mask, said):
    numbers = [1, 2, 3, 10, 11, 12]
    images, masks = ([name.format(n) for n in numbers] for name in (image, mask))
    found = match(images, masks[::-1])
    assert found.schemes == [said]
    assert found.pairs == {i: [m] for i, m in zip(images, masks, strict=True)}
    assert not found.clashes and not found.unpaired and not found.unused
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
        (["CXR/1.png"], ["Mask/left/1.png", "Mask/right/1.png"], {"CXR/1.png": None}),
        # Several masks
        (["a.png"], ["a_mask.png", "a_mask_1.png", "a_mask_2.png"], {"a.png": None}),
        (
            ["a.png", "b.png"],
            ["a_1.png", "a_2.png", "b_1.png"],
            {"a.png": ["a_1.png", "a_2.png"], "b.png": ["b_1.png"]},
        ),
        # Two schemes in one set
        (["a.jpg", "b.jpg", "c.jpg"], ["a.png", "b.png", "c_mask.png"], None),
    ],
)
def test_names_that_look_alike(images, masks, pairs):
    found = match(images, masks).pairs
    if pairs is None:
        assert found == {image: [mask] for image, mask in zip(images, masks, strict=True)}
    else:
        assert found == {image: masks if some is None else some for image, some in pairs.items()}


def test_two_masks_that_contradict_each_other_and_an_option_that_decides():
    images, masks = ["a.jpg", "b.jpg"], ["a.png", "a_mask.png", "b.png"]
    found = match(images, masks)
    assert found.clashes == {"a.jpg": ["a.png", "a_mask.png"]} and found.pairs == {"b.jpg": ["b.png"]}
    assert match(images, masks, "NAME_mask").pairs == {"a.jpg": ["a_mask.png"]}
    assert match(["a_x.jpg"], ["y-a.png"], "NAME_x=y-NAME").pairs == {"a_x.jpg": ["y-a.png"]}


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


def test_two_folders_of_masks_for_the_same_images_are_asked_for():
    files = ["images/1.png", "labels/1.png", "masks/1.png"]
    with pytest.raises(BadInput, match="labels: holds masks, and so does masks. Give two folders"):
        tell_apart(files)
    assert masks_among(["a.jpg", "b.jpg"]) == set()


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
        ("valley/1.png", ""),
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
    images = ["/set/a/1.png", "/set/a/2.png", "/set/b/3.v2.png"]
    found, unknown = listed(images, ["1", "2.png", "./b/3.v2.png", "4"])
    assert found == {*images} and unknown == ["4"]
