"""Masks from the files of other tools, each against a mask drawn by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.annotations import load_annotations
from support.errors import BadInput

SQUARE = [[1, 1, 4, 1, 4, 3, 1, 3]]  # columns 1 to 3 of rows 1 and 2
MASK = np.array([[0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three images of 6x4 pixels; by EXIF, the last one lies on its side in its file."""
    folder = tmp_path / "images"
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (6, 4)).save(folder / "a.jpg")
    Image.new("RGB", (6, 4)).save(folder / "b.png")
    Image.new("RGB", (4, 6)).save(folder / "c.jpg", exif=turned)
    return sorted(folder.iterdir())


def load(source: Path, images: list[Path]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of classes, and the mask of each image."""
    names, _, masks = load_annotations(source, images)
    return names, {path.name: draw() for path, draw in masks.items()}


def coco(*objects: dict[str, Any], **other: Any) -> str:
    """COCO's file of the three images; objects are of image 0 and category 7 if they say nothing else."""
    listed = [
        {"id": i, "file_name": f"some/{name}", "width": 6, "height": 4} for i, name in enumerate(["a.jpg", "b.png"])
    ]
    drawn = [{"id": i, "image_id": 0, "category_id": 7, "iscrowd": 0} | each for i, each in enumerate(objects, 100)]
    names = [{"id": 9, "name": "dog"}, {"id": 7, "name": "car"}]
    return json.dumps({"images": listed, "annotations": drawn, "categories": names} | other)


def labelme(*shapes: tuple[str, str, list[list[float]]], **other: Any) -> str:
    """LabelMe's file of a.jpg."""
    drawn = [{"label": label, "shape_type": kind, "points": points} for label, kind, points in shapes]
    return json.dumps({"shapes": drawn, "imagePath": r"..\images\a.jpg", "imageHeight": 4, "imageWidth": 6} | other)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    "shape",
    [
        SQUARE,
        [[1.4, 0.6, 4.4, 0.6, 4.4, 2.6, 1.4, 2.6]],  # the same centres
        {"size": [4, 6], "counts": [5, 2, 2, 2, 2, 2, 9]},  # down the columns
        {"size": [4, 6], "counts": "5220007"},  # the same; from the fourth on, the change from the last but one
    ],
)
def test_cocos_outlines_and_runs_give_the_same_square(shape: Any, images: list[Path], tmp_path: Path) -> None:
    source = write(tmp_path, {"coco.json": coco({"segmentation": shape})}) / "coco.json"
    names, masks = load(source, images)
    assert names == ["car", "dog"] and set(masks) == {"a.jpg", "b.png"}
    np.testing.assert_array_equal(masks["a.jpg"], MASK)
    assert masks["b.png"].shape == (4, 6) and not masks["b.png"].any()


def test_later_objects_lie_over_earlier_ones_and_crowds_over_all(images: list[Path], tmp_path: Path) -> None:
    crowd = {"segmentation": {"size": [4, 6], "counts": [1, 1, 22]}, "iscrowd": 1}  # row 1 of column 0
    crowd_inside = {"segmentation": {"size": [4, 6], "counts": [5, 1, 18]}, "iscrowd": 1}
    right = {"segmentation": [[3, 0, 6.5, 0, 6.5, 4, 3, 4]], "category_id": 9}  # half a pixel is cut off
    text = coco(crowd, crowd_inside, {"segmentation": SQUARE}, right)
    _, masks = load(write(tmp_path / "one", {"x.json": text}), images)
    expected = np.where(np.arange(6) >= 3, 2, MASK)
    expected[1, :2] = 255
    np.testing.assert_array_equal(masks["a.jpg"], expected)


@pytest.mark.parametrize("corners", [[[4, 3], [1, 1]], [[1, 1], [4, 1], [4, 3], [1, 3]]])
def test_labelmes_shapes(corners: list[list[float]], images: list[Path], tmp_path: Path) -> None:
    shapes = [("car", "rectangle", corners), ("bus", "circle", [[5, 2], [5, 2.8]])]
    hole = ("_background_", "polygon", [[1, 1], [2, 1], [2, 2], [1, 2]])
    files = {"a.json": labelme(*shapes, hole), "b.json": labelme(imagePath="b.png")}
    names, masks = load(write(tmp_path / "labelme", files), images)
    expected = 2 * MASK
    expected[1:3, 4:] = 1  # the four pixels whose centres are 0.71 from the circle's
    expected[1, 1] = 0
    assert names == ["bus", "car"] and not masks["b.png"].any()
    np.testing.assert_array_equal(masks["a.jpg"], expected)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({}, ["class 0", "class 1"]),
        ({"labels/classes.txt": "cat\ncar\ndog\n"}, ["cat", "car", "dog"]),
        ({"data.yaml": "names: [cat, car, dog]"}, ["cat", "car", "dog"]),
        ({"data.yaml": "names:\n  0: cat\n  1: car\n"}, ["cat", "car"]),
    ],
)
def test_yolos_shares_and_names(
    files: dict[str, str], names: list[str], images: list[Path], tmp_path: Path
) -> None:
    row = "1 0.16667 0.25 0.66667 0.25 0.66667 0.75 0.16667 0.75\n"
    write(tmp_path, files)
    folder = write(tmp_path / "labels", {"c.txt": row, "b.txt": ""})
    found, masks = load(folder, images)
    assert found == names and set(masks) == {"b.png", "c.jpg"}
    np.testing.assert_array_equal(masks["c.jpg"], 2 * MASK)


def test_an_outline_holds_the_pixels_whose_centres_are_in_it(images: list[Path], tmp_path: Path) -> None:
    bow = [[0, 0, 6, 4, 6, 0, 0, 4]]  # crosses itself
    _, masks = load(write(tmp_path / "bow", {"x.json": coco({"segmentation": bow})}), images)
    expected = [[1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(masks["a.jpg"], expected)


def test_other_files_are_no_annotations(images: list[Path], tmp_path: Path) -> None:
    masks = write(tmp_path / "masks", {"a_mask.png": "", "notes.txt": "drawn by hand", "tool.json": "{}"})
    assert [load_annotations(source, images) for source in (masks, tmp_path / "none", masks / "notes.txt")] == [
        None
    ] * 3


def test_files_below_a_folder_are_read_together_and_the_nearest_image_is_meant(tmp_path: Path) -> None:
    annotated = {"categories": [{"id": 1, "name": "car"}], "images": [{"id": 0, "file_name": "a.png"}]}
    for n, part in enumerate(("train", "valid")):
        (tmp_path / part).mkdir()
        Image.new("RGB", (6, 4)).save(tmp_path / part / "a.png")
        drawn = {"id": 1, "image_id": 0, "category_id": 1, "segmentation": SQUARE if n else [[0, 0, 6, 0, 6, 4]]}
        write(tmp_path, {f"{part}/_annotations.coco.json": json.dumps(annotated | {"annotations": [drawn]})})
    images = sorted(tmp_path.glob("*/a.png"))
    masks = load_annotations(tmp_path, images).masks
    assert [masks[image]().sum() for image in images] == [12, 6]


FEW = {"segmentation": [[1, 1, 4, 1]]}
RLE = {"size": [4, 6], "counts": [5, 2]}
REFUSED = [
    ("coco.json", coco(FEW, FEW), "fewer than 3 points: a box alone is no outline (a.jpg, annotation 100)"),
    ("coco.json", coco({"segmentation": SQUARE, "image_id": 5}), "isn't there (image_id 5)"),
    ("coco.json", coco({"segmentation": SQUARE, "category_id": 5}), "class isn't listed (a.jpg, annotation 100)"),
    ("coco.json", coco({"segmentation": [[1, 1, 40, 1, 40, 30]]}), "far outside the image"),
    ("coco.json", coco({"segmentation": [[1, 1, 4, "x", 4, 3]]}), "could not convert"),
    ("coco.json", coco({"segmentation": [[1, 1, 4, 1, 4, 3, float("nan"), 3]]}), "far outside the image"),
    ("coco.json", coco({"segmentation": RLE}), "RLE of another size than the image"),
    ("coco.json", coco(images=[{"id": 0, "file_name": "a.jpg", "width": 60, "height": 40}]), "another size"),
    ("coco.json", coco(images=[{"id": i, "file_name": f"{i}/a.jpg"} for i in (0, 1)]), "annotated twice (a.jpg)"),
    ("coco.json", coco(categories=[{"id": i, "name": f"c{i}"} for i in range(255)]), "255 classes"),
    ("coco.json", coco()[:-9], "annotations (Expecting"),
    ("coco.json", "{}", "it lacks 'categories'"),
    ("a.json", labelme(("car", "polygon", [[1, 1], [4, 1], [4, 3]]), imagePath="z.jpg"), "isn't there (z.jpg)"),
    ("a.json", labelme(("car", "line", [[1, 1], [4, 1]])), "shape 1 is a line"),
    ("a.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5\n\n0 0.1 x 0.5 0.1 0.5 0.5", "could not convert"),
    ("a.txt", "car 0.1 0.1 0.5 0.1 0.5 0.5", "class isn't listed (a.jpg, line 1)"),
]


@pytest.mark.parametrize(("name", "text", "message"), REFUSED)
def test_refused(name: str, text: str, message: str, images: list[Path], tmp_path: Path) -> None:
    file = write(tmp_path / "drawn", {name: text}) / name
    with pytest.raises(BadInput) as caught:
        load(file if name == "coco.json" else file.parent, images)
    line = str(caught.value)
    assert line.startswith(f"{file}: ") and message in line and "\n" not in line


def test_a_broken_image_is_refused_for_what_it_is(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0broken")
    listed = {"images": [{"id": 1, "file_name": "a.tif"}], "annotations": [], "categories": []}
    (tmp_path / "coco.json").write_text(json.dumps(listed))
    with pytest.raises(BadInput, match=r"a\.tif: can't be read as an image .damaged or cut short."):
        load(tmp_path / "coco.json", [tmp_path / "a.tif"])
    assert not capfd.readouterr().err
