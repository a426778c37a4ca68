"""Sets as their makers give them, drawn in the small: from the raw folder to masks that train.py reads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_pairs
from PIL import Image
from test_prepare_data import listing, names

import prepare_data
from support.conversion import are_classes, read_colours
from support.errors import BadInput
from support.options import ConstantParser, settle_classes
from support.own_data import suggest_size
from support.reading import read_image


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (32, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)).save(path)


def mask(path: Path, *boxes: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """A mask with a square of each value, side by side from the left, on 0."""
    values = np.zeros(size, np.uint8)
    for i, value in enumerate(boxes):
        values[4:14, 2 + 12 * i : 12 + 12 * i] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return values


def drive(root: Path) -> list[str]:
    for n in range(8):
        part, name = ("training", "training") if n < 5 else ("test", "test")
        draw(root / f"{part}/images/{n:02d}_{name}.tif", n)
        mask(root / f"{part}/1st_manual/{n:02d}_manual1.gif", 255, 255)
        if part == "test":
            mask(root / f"{part}/mask/{n:02d}_test_mask.gif", 255)
    return []


def camvid(root: Path) -> list[str]:
    """In colour, with a list; of sky and road, and void that isn't scored."""
    for n in range(6):
        part = "train" if n < 4 else "val"
        draw(root / f"{part}/{n}.png", n)
        numbers = mask(root / f"{part}annot/{n}_L.png", 1, 2)
        Image.fromarray(np.array([[128] * 3, [128, 64, 128], [0] * 3], np.uint8)[numbers]).save(
            root / f"{part}annot/{n}_L.png"
        )
    (root / "label_colors.txt").write_text("128 128 128\tSky\n128 64 128\tRoad\n0 0 0\t\tVoid\n")
    return ["--colours", str(root / "label_colors.txt")]


COCO = {
    "images": [{"id": n, "file_name": f"{n}.jpg", "width": 48, "height": 32} for n in range(4)],
    "annotations": [],
    "categories": [{"id": 1, "name": "car"}],
}


def split(root: Path, *words: str) -> Path:
    """Split `root`/raw, or the sources among the words, into `root`/data, and leave the user's own as it is."""
    before = listing(root / "raw")
    sources = [] if words and not words[0].startswith("-") else [str(root / "raw")]
    prepare_data.main(["split", *sources, *words, "--out", str(root / "data")])
    assert listing(root / "raw") == before
    return root / "data"


def written(data: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in data.glob("*_masks/*")}


def test_several_masks_are_united(tmp_path, capsys):
    wanted = {}
    for n in (1, 2, 3):  # BUSI's
        draw(tmp_path / f"raw/benign/benign ({n}).png", n)
        first = mask(tmp_path / f"raw/benign/benign ({n})_mask.png", 255)
        second = mask(tmp_path / f"raw/benign/benign ({n})_mask_1.png", 0, 255)
        wanted[f"benign_benign ({n})"] = first | second
    masks = written(split(tmp_path))
    assert "benign (1)_mask.png of benign/benign (1).png" in (printed := capsys.readouterr().out)
    assert "3 images with several masks, which are united" in printed
    assert masks.keys() == wanted.keys() and all((masks[name] == wanted[name]).all() for name in wanted)


def test_a_folder_of_instances_for_each_image(tmp_path, capsys):
    for n in range(4):  # DSB2018's
        draw(tmp_path / f"raw/stage1_train/a{n}/images/a{n}.png", n)
        for k in range(n):
            mask(tmp_path / f"raw/stage1_train/a{n}/masks/{n}{k}f.png", *[0] * k, 255)
    with pytest.raises(BadInput, match="a0.png: no mask in .*Add it"):
        split(tmp_path)
    masks = written(split(tmp_path, "--skip_bad"))
    assert sorted((values > 0).sum() for values in masks.values()) == [100, 200, 300]
    assert "a0.png: no mask" in capsys.readouterr().err


@pytest.mark.parametrize(
    "values, expected",
    [
        ([{0, 1}, {0, 1, 2}, {0, 1, 2, 3}], False),  # objects
        ([{0}, {0, 1, 2}, {0, 1}], False),
        ([{0, 1, 2}, {0, 2}], True),
        ([{0, 1, 2, 255}, {0, 1}], True),
        ([{0, 1, 2}, {0, 1, 2}], True),
        ([{0, 128}, {0, 1}], False),
    ],
)
def test_what_numbers_in_masks_mean(values, expected):
    assert are_classes(values) == expected


def test_numbers_that_could_be_more_than_one_thing_are_asked_for(tmp_path):
    for n in range(10):  # Penn-Fudan's
        draw(tmp_path / f"raw/PNGImages/Ped{n}.png", n)
        mask(tmp_path / f"raw/PedMasks/Ped{n}_mask.png", *range(1, 2 + n % 3))
    with pytest.raises(BadInput, match="masks hold 0 1 2 3. Give --foreground nonzero for objects"):
        split(tmp_path)
    assert not (tmp_path / "data").exists()
    masks = written(split(tmp_path, "--foreground", "2,3"))
    assert {(values == 255).sum() for values in masks.values()} == {0, 100, 200}
    shutil.rmtree(tmp_path / "data")
    masks = written(split(tmp_path, "--foreground", "nonzero"))
    assert {(values == 255).sum() for values in masks.values()} == {100, 200, 300}


def test_colours_that_the_list_lacks_are_named_with_their_share(tmp_path):
    more = camvid(tmp_path / "raw")
    with pytest.raises(BadInput, match=r"in colour: 128 128 128 \(87.0%\).* Give --colours FILE"):
        split(tmp_path)
    colours = tmp_path / "raw/label_colors.txt"
    colours.write_text("128 128 128 Sky\n#000000 void\n")
    spot = np.array(Image.open(first := tmp_path / "raw/trainannot/0_L.png"))
    spot[0, :8] = (1, 2, 3)
    Image.fromarray(spot).save(first)
    lacks = r"txt: lacks colours of 6 masks: 128 64 128 \(6.5%\), 1 2 3 \(0.1%\). Add a line"
    with pytest.raises(BadInput, match=lacks):
        split(tmp_path, *more)
    camvid(tmp_path / "raw")
    colours.write_text("background:128,128,128::\nroad:128,64,128::\nother:0,0,0::\n")
    masks = written(split(tmp_path, *more))
    assert {tuple(np.unique(values)) for values in masks.values()} == {(0, 1, 2)}
    known = json.loads((tmp_path / "data/dataset.json").read_text())
    assert known == {"NUM_CLASSES": 3, "CLASS_NAMES": ["background", "road", "other"], "IGNORE_INDEX": 255}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("# label:color_rgb:parts:actions\nbg:0,0,0::\nbig car:128,0,0::\n", (["bg", "big car"], [0, 1])),
        ("64 128 64\tAnimal\n0 0 0\t\tVoid\n", (["Animal"], [0, 255])),
        ("name,r,g,b\nroad,1,2,3\nbackground,0,0,0\n", (["background", "road"], [1, 0])),
        ("#ff0000 lane\n#00ff00 lane\n#0000ff\n", (["lane", "#0000ff"], [0, 0, 1])),
    ],
)
def test_lists_of_colours(tmp_path, text, expected):
    (tmp_path / "colours.txt").write_text(text)
    names, numbers = read_colours(str(tmp_path / "colours.txt"))
    assert (names, [*numbers.values()]) == expected


def test_sets_that_are_split_already(tmp_path, capsys):
    drive(tmp_path / "raw")
    split(tmp_path)
    assert names(tmp_path / "data/val_images") == {f"{n:02d}_test.tif" for n in (5, 6, 7)}
    assert "left alone: 3 files, as" in (printed := capsys.readouterr().out) and "folders call test" in printed
    (tmp_path / "data").rename(tmp_path / "first")
    pairs = [
        str(tmp_path / "raw" / part / kind) for part in ("training", "test") for kind in ("images", "1st_manual")
    ]
    split(tmp_path, *pairs)
    assert listing(tmp_path / "data") == listing(tmp_path / "first")
    (tmp_path / "data").rename(tmp_path / "second")
    twice = tmp_path / "raw/test/images/05_test.tif"
    twice.write_bytes((tmp_path / "raw/training/images/00_training.tif").read_bytes())
    with pytest.raises(BadInput, match="05_test.tif: the very image that is also trained on, .* with --skip_bad"):
        split(tmp_path)
    assert names(split(tmp_path, "--skip_bad") / "val_images") == {"06_test.tif", "07_test.tif"}
    (tmp_path / "data").rename(tmp_path / "third")
    (tmp_path / "val.txt").write_text("00_training\n03_training.tif\n\n99\n")
    split(tmp_path, *pairs[:2], "--val_list", str(tmp_path / "val.txt"))
    assert names(tmp_path / "data/val_images") == {"00_training.tif", "03_training.tif"}
    assert "val.txt: 1 name that no image has, 99 for one" in capsys.readouterr().err


def test_groups_by_a_pattern_and_identical_images_stay_together(tmp_path, capsys):
    images, masks = tmp_path / "raw/images", tmp_path / "raw/masks"
    write_pairs(images, masks, [f"p{n}_{eye}" for n in range(8) for eye in ("left", "right")], (32, 48))
    for left, right in ((0, 1), (1, 2)):
        (images / f"p{right}_right.jpg").write_bytes((images / f"p{left}_left.jpg").read_bytes())
    data = split(tmp_path, "--group", r"(p\d+)_(?:left|right)", "--share", "0.5")
    sides = [{int(name[1]) for name in names(data / f"{side}_images")} for side in ("train", "val")]
    assert not sides[0] & sides[1] and any({0, 1, 2} <= side for side in sides)
    assert "2 groups joined with others that hold the same image" in capsys.readouterr().out
    prepare_data.main(["split", str(tmp_path / "raw"), "--out", str(tmp_path / "o"), "--group", r"(p\d+_\w+)"])
    assert "puts each image, as p7_right, into a group of its own" in capsys.readouterr().err


def test_findings_come_by_cause_and_may_be_left_out(tmp_path, capsys):
    images, masks = tmp_path / "raw/images", tmp_path / "raw/masks"
    write_pairs(images, masks, [f"n{n:02d}" for n in range(40)], (32, 48))
    for n in range(25):
        (masks / f"n{n:02d}_mask.gif").unlink()
    (images / "n30.jpg").write_bytes(b"")
    draw(images / "n31.jpg", size=(48, 32))
    mask(masks / "n32_mask.gif", 1, size=(48, 32))
    (images / "n33.jpg").rename(images / "n33.heic").write_bytes(b"....ftypheic")
    with pytest.raises(BadInput) as error:
        split(tmp_path, "--list", str(tmp_path / "all.txt"))
    lines = str(error.value).splitlines()
    assert len(lines) == 5 and "n00.jpg: no mask in" in lines[0] and "(and 24 like it)" in lines[0]
    assert "is 48x32, its image 32x48, and with n32_mask.gif it is the other way round" in "\n".join(lines)
    assert all("or leave it out with --skip_bad." in line for line in lines[:-1])
    assert len((tmp_path / "all.txt").read_text().splitlines()) == 29 and not (tmp_path / "data").exists()
    data = split(tmp_path, "--skip_bad")
    assert len(listing(data)) == 2 * 11 + 1 and "n33" not in {Path(name).stem for name in listing(data)}


def test_check_says_shares_and_a_size_and_changes_nothing(tmp_path, capsys):
    for n in range(4):
        draw(tmp_path / f"raw/images/{n}.jpg", n, (300, 400 + 10 * n))
        mask(tmp_path / f"raw/masks/{n}.png", 1, 2, size=(300, 400 + 10 * n))
    before = listing(tmp_path)
    prepare_data.main(["check", str(tmp_path / "raw"), "--CACHE_DIR", ""])
    printed = capsys.readouterr().out
    assert "masks hold the numbers 0 to 2: NUM_CLASSES is 3" in printed
    assert "pixels: class 0 99.8%, class 1 0.1%, class 2 0.1%" in printed
    assert "median shape 415x300; a size to train at: 320x240" in printed and listing(tmp_path) == before


@pytest.mark.parametrize(
    "sources, words, says",
    [
        ("p", "", "raw/p: no masks for 6 images. Give two folders, IMAGES MASKS, or name masks NAME_mask"),
        ("p m", "--colours {list} --NUM_CLASSES 2", "--colours: given beside the numbers of classes. Leave"),
        ("p m", "--colours {list} --IGNORE_INDEX 9", "--colours: given beside the numbers of classes. Leave"),
        ("p m", "--colours {list} --foreground 1", "argument --foreground: not allowed with argument --colours"),
        ("p m", "--IGNORE_INDEX 9", "--IGNORE_INDEX: 9 says nothing alone. Give --NUM_CLASSES, too"),
        ("p {coco}", "--foreground 1", "coco.json: outlines, which tell their classes themselves"),
        ("p m p m", "--val_list {val}", "--train_list or --val_list: says nothing beside four folders"),
        ("p m p m", "--group (.)", "--group: says nothing of a set that is split already. Leave it out"),
        ("p m", "--val_list {none}", "none.txt: no image by any of its 1 name"),
        ("p m", "--val_list {val} --train_list {val}", "val.txt: i0.png is in the other list, too"),
        ("p m", "--group (z.)", "--group: (z.) matches no name, such as i5. Give what images of one group share"),
        ("p m", "--group i", "raw/p: one group of 6 images"),
        ("p m", "--group (p", "--group (p: not a regular expression"),
        ("p m", "--mask_name foo", "--mask_name foo: no way to name masks"),
        ("p m", "--mask_name NAME_x", "raw/m: no mask fits an image: images are called i0.png, masks i0.png"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(tmp_path, sources, words, says):
    for n in range(6):
        draw(tmp_path / f"raw/p/i{n}.png", n)
        mask(tmp_path / f"raw/m/i{n}.png", 255)
    places = {"list": "0 0 0 other\n255 255 255 car\n", "val": "i0\n", "none": "99\n", "coco": json.dumps(COCO)}
    for name, text in places.items():
        places[name] = tmp_path / (f"{name}.json" if name == "coco" else f"{name}.txt")
        places[name].write_text(text)
    folders = [str(tmp_path / "raw" / name) for name in sources.format(**places).split()]
    with pytest.raises(BadInput) as caught:
        split(tmp_path, *folders, *words.format(**places).split())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()


def test_fine_detail_gets_a_larger_size_or_crops(tmp_path, capsys):
    for width, advice, command in (
        (12, "a size to train at: 272x272", "--IMAGE_HEIGHT 272 --IMAGE_WIDTH 272"),
        (3, "too fine for whole images: train on squares, --CROP 256", "--CROP 256"),
    ):
        bars = np.zeros((600, 600), np.uint8)
        for n in range(2):
            draw(tmp_path / f"raw/images/{n}.png", n, (600, 600))
            bars[:, np.arange(600) % 40 < width] = 255
            Image.fromarray(bars).save(tmp_path / f"raw/images/{n}_mask.png")
        split(tmp_path)
        printed, warned = capsys.readouterr()
        assert advice in printed and command in printed.splitlines()[-1] and "fine detail" not in warned
        shutil.rmtree(tmp_path / "data")


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ([(1280, 1918)], (160, 240)),
        ([(584, 565)], (192, 192)),
        ([(32, 48)], (32, 48)),
        ([(10, 900)], (32, 896)),
    ],
)
def test_sizes_to_train_at(sizes, expected):
    assert suggest_size(sizes) == expected


@pytest.mark.parametrize(
    "folders, command",
    [
        (("imgs", "masks"), "prepare_data.py split data/imgs data/masks, or start in another folder"),
        (("train", "train_masks"), "prepare_data.py split data/train data/train_masks --out data_split"),
        (("photos", "labels"), "prepare_data.py split data/photos data/labels, or"),
        (("train/images", "train/masks", "val/images", "val/masks"), "prepare_data.py split data, or"),
        ((".", "."), "prepare_data.py split data, or"),
        (("train.zip",), "prepare_data.py split, with the folders that data/train.zip unpacks to"),
        (("train.zip", "train_masks.zip"), "prepare_data.py carvana data/train.zip data/train_masks.zip"),
    ],
)
def test_other_files_in_data_get_the_command_that_fits(tmp_path, monkeypatch, folders, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/sample/train_images").mkdir(parents=True)
    if folders[0].endswith(".zip"):
        [(tmp_path / "data" / name).touch() for name in folders]
    else:
        for pair in zip(folders[::2], folders[1::2], strict=True):
            write_pairs(*(tmp_path / "data" / name for name in pair), ["a", "b"], (32, 48))
    with pytest.raises(BadInput, match=f"data/train_images/: empty, though data holds something else. .*{command}"):
        prepare_data.sample_if_empty(prepare_data.DEFAULT_DIRS)


def test_train_takes_its_classes_from_what_split_left(tmp_path):
    import train

    words = ["--TRAIN_IMG_DIR", str(tmp_path / "train_images")]

    def classes(*more: str) -> int:
        settle_classes(options := ConstantParser(vars(train)).parse_args([*words, *more]))
        return options.NUM_CLASSES

    assert classes() == 1
    (tmp_path / "dataset.json").write_text('{"NUM_CLASSES": 7}')
    assert classes() == 7 and classes("--NUM_CLASSES", "2") == 2
    for text, finding in (
        ("{", "can't be read"),
        ('{"NUM_CLASSES": 0}', "NUM_CLASSES 0 can't be used"),
        ("[]", ""),
    ):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(BadInput, match=f"dataset.json: {finding}"):
            classes()


def test_outlines_instead_of_masks(tmp_path):
    for n in range(4):
        draw(tmp_path / f"raw/{n}.jpg", n)
    shape = {"category_id": 1, "segmentation": [[4, 4, 24, 4, 24, 14, 4, 14]], "iscrowd": 0}
    drawn = [{"id": n, "image_id": n, **shape} for n in range(4)]
    (tmp_path / "coco.json").write_text(json.dumps(COCO | {"annotations": drawn}))
    masks = written(split(tmp_path, str(tmp_path / "raw"), str(tmp_path / "coco.json")))
    assert [(np.unique(values).tolist(), (values > 0).sum()) for values in masks.values()] == [([0, 255], 200)] * 4
    assert json.loads((tmp_path / "data/dataset.json").read_text())["CLASS_NAMES"] == ["background", "car"]
    shutil.rmtree(tmp_path / "data")
    crowd = drawn[0] | {"id": 4, "iscrowd": 1, "segmentation": {"size": [32, 48], "counts": [0, 32, 1504]}}
    faulty = drawn[3] | {"segmentation": [[1, 1]]}
    (tmp_path / "coco.json").write_text(json.dumps(COCO | {"annotations": [*drawn[:3], crowd, faulty]}))
    masks = written(split(tmp_path, str(tmp_path / "raw"), str(tmp_path / "coco.json"), "--skip_bad"))
    assert masks.keys() == {"0", "1", "2"} and sorted(np.unique(values).tolist() for values in masks.values()) == [
        [0, 1],
        [0, 1],
        [0, 1, 255],
    ]


def test_two_sides_whose_outlines_number_other_classes_are_refused(tmp_path):
    """Each side numbers its own labels: the same number would mean two things."""
    for side, label in (("t", "car"), ("v", "road")):
        draw(tmp_path / f"{side}/i/a{side}.jpg", size=(48, 32))
        points = [[1, 1], [20, 1], [20, 20]]
        content = {"imagePath": f"a{side}.jpg", "shapes": [{"label": label, "points": points}]}
        (tmp_path / f"{side}/m").mkdir()
        (tmp_path / f"{side}/m/a{side}.json").write_text(json.dumps(content))
    folders = [str(tmp_path / part) for part in ("t/i", "t/m", "v/i", "v/m")]
    with pytest.raises(BadInput, match="v/m: its classes are background road, those for training background car"):
        prepare_data.main(["split", *folders, "--out", str(tmp_path / "data")])


def test_formats_that_training_does_not_read_are_made_png_and_those_of_several_images_refused(tmp_path):
    for n in range(4):
        values = np.random.default_rng(n).integers(0, 2**16, (32, 48), np.uint16)
        (tmp_path / "raw/images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(tmp_path / f"raw/images/{n}.pgm")
        mask(tmp_path / f"raw/masks/{n}.pgm", 255)
    first = written(split(tmp_path, "--foreground", "nonzero", "--NUM_CLASSES", "1"))
    assert {(values == 255).sum() for values in first.values()} == {100}
    (image,) = (tmp_path / "data").glob("*_images/3.png")
    assert (read_image(image)[..., 0] == values >> 8).all()
    shutil.rmtree(tmp_path / "data")
    frames = [Image.new("L", (48, 32), 99 * n) for n in range(2)]
    frames[0].save(tmp_path / "raw/images/3.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "raw/images/3.pgm").unlink()
    with pytest.raises(BadInput, match="3.gif: a .gif file, which can't be read .2 images"):
        split(tmp_path)


def test_a_jpeg_of_0_and_1_is_to_be_saved_anew(tmp_path):
    for n in range(4):
        draw(tmp_path / f"raw/images/{n}.png", n)
        values = mask(tmp_path / f"raw/masks/{n}.png", 1)
        (tmp_path / f"raw/masks/{n}.png").unlink()
        Image.fromarray(values * 3).save(tmp_path / f"raw/masks/{n}.jpg")
    with pytest.raises(BadInput, match="0.jpg: a JPEG with values up to .* Save it as PNG: JPEG blurs"):
        split(tmp_path)


def test_a_height_alone_is_no_size(tmp_path):
    with pytest.raises(BadInput, match="IMAGE_HEIGHT and IMAGE_WIDTH: one without the other. Give both"):
        prepare_data.main(["check", str(tmp_path), "--IMAGE_HEIGHT", "64"])
