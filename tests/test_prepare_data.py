import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_pairs
from PIL import Image

import prepare_data
from support import sample
from support.errors import BadInput
from support.pairs import find_pairs


def listing(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_split_keeps_cars_whole(tmp_path, capsys):
    cars = [f"{car:012x}" for car in range(10)]
    write_pairs(
        tmp_path / "i", tmp_path / "m", [f"{car}_{view:02d}" for car in cars for view in (1, 2, 3)], (16, 16)
    )
    before = listing(tmp_path)
    prepare_data.main(["split", str(tmp_path / "i"), str(tmp_path / "m"), "--out", str(tmp_path / "data")])
    out = tmp_path / "data"
    assert f"python train.py --TRAIN_IMG_DIR {out}/train_images --TRAIN_MASK_DIR {out}/train_masks " in (
        capsys.readouterr().out
    )
    train, val = names(out / "train_images"), names(out / "val_images")
    assert len(train) == 24 and len(val) == 6 and train | val == names(tmp_path / "i")
    assert not {name[:12] for name in train} & {name[:12] for name in val}
    assert len(find_pairs(out / "train_images", out / "train_masks")) == 24
    assert len(find_pairs(out / "val_images", out / "val_masks")) == 6
    for path in out.glob("*_masks/*"):
        path.write_bytes(b"painted over in place")  # the user's own masks stay as they are
    assert {name: digest for name, digest in listing(tmp_path).items() if name[:2] in ("i/", "m/")} == before


def test_without_a_place_for_the_sample_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").touch()  # no folder can be made in it, as in a repository that is read-only
    with pytest.raises(BadInput, match=r"data: can't be written to .*Start in a folder that can be written"):
        prepare_data.sample_if_empty(prepare_data.DEFAULT_DIRS)


def test_pets_as_their_makers_give_them(tmp_path, monkeypatch):
    """The set's own layout, in the small: trimaps hold 1 for the pet, 2 for the background, 3 for the boundary."""
    home = tmp_path / "source/oxford-iiit-pet"
    write_pairs(home / "images", tmp_path / "unused", ["cat_1", "cat_2", "dog_1"], (16, 24))
    (home / "annotations/trimaps").mkdir(parents=True)
    for name in ("cat_1", "cat_2", "dog_1"):
        trimap = np.full((16, 24), 2, np.uint8)
        trimap[2:6, 3:9], trimap[3:5, 4:8] = 3, 1
        Image.fromarray(trimap).save(home / f"annotations/trimaps/{name}.png")
    for part, found in (("trainval", ["cat_1", "dog_1"]), ("test", ["cat_2"])):
        lines = "".join(f"{name} 1 1 1\n" for name in found)
        (home / f"annotations/{part}.txt").write_text(lines)
    prepare_data.pets(str(tmp_path / "data"), str(tmp_path / "source"), download=False)
    assert names(tmp_path / "data/train_images") == {"cat_1.jpg", "dog_1.jpg"}
    mask = np.asarray(Image.open(tmp_path / "data/val_masks/cat_2.png"))
    assert mask[2:6, 3:9].all() and (mask == 255).sum() == 24 and (mask == 0).sum() == 360
    with pytest.raises(BadInput, match="OxfordIIITPet: can't be fetched"):
        prepare_data.pets(str(tmp_path / "other"), str(tmp_path / "nothing"), download=False)


def test_split_of_symbolic_links_places_their_files(tmp_path):
    write_pairs(tmp_path / "i", tmp_path / "m", ["a", "b"], (16, 16))
    for name in ("i", "m"):
        (tmp_path / "links" / name).mkdir(parents=True)
        for file in (tmp_path / name).iterdir():
            (tmp_path / "links" / name / file.name).symlink_to(f"../../{name}/{file.name}")
    arguments = ["split", str(tmp_path / "links/i"), str(tmp_path / "links/m"), "--out", str(tmp_path / "data")]
    for _ in range(2):  # the second finds all in its place
        prepare_data.main(arguments)
        (tmp_path / "data/dataset.json").unlink()
        assert sorted(listing(tmp_path / "data").values()) == sorted(
            [*listing(tmp_path / "i").values(), *listing(tmp_path / "m").values()]
        )


def test_split_again_changes_nothing_and_refuses_changed_files(tmp_path):
    write_pairs(tmp_path / "i", tmp_path / "m", ["a", "b"], (16, 16))
    arguments = ["split", str(tmp_path / "i"), str(tmp_path / "m"), "--out", str(tmp_path / "data")]
    prepare_data.main(arguments)
    known = tmp_path / "data/dataset.json"
    known.write_text(known.read_text().replace("}", ', "CLASS_NAMES": ["ground", "car"]}'))
    before = listing(tmp_path)
    prepare_data.main(arguments)
    assert listing(tmp_path) == before
    known.write_text('{"NUM_CLASSES": 4}')
    prepare_data.main(arguments)
    assert '"NUM_CLASSES": 1' in known.read_text()
    (changed := next((tmp_path / "data/val_masks").iterdir())).write_bytes(b"painted over in place")
    with pytest.raises(BadInput, match=rf"val_masks: already holds files \({changed.name}\)"):
        prepare_data.main(arguments)


def test_split_refuses_and_leaves_all_as_it_was(tmp_path):
    write_pairs(tmp_path / "i", tmp_path / "m", ["a_1", "a_2"], (16, 16))
    (tmp_path / "full/val_masks").mkdir(parents=True)
    (tmp_path / "full/val_masks/old.png").write_text("precious")
    before = listing(tmp_path)
    arguments = ["split", str(tmp_path / "i"), str(tmp_path / "m"), "--out", str(tmp_path / "full")]
    for more, message in (
        ([], "val_masks: already holds files"),
        (["--share", "1"], "--share: 1.0 can't be used"),
        (["--group", "(a)_"], "one group of 2 images"),
    ):
        with pytest.raises(BadInput, match=message):
            prepare_data.main([*arguments, *more])
        assert listing(tmp_path) == before


def test_sample_set_is_whole_deterministic_and_split_by_car(tmp_path):
    cv2.warpAffine(np.zeros((2000, 2000, 3), np.uint8), np.eye(2, 3), (2000, 2000))  # starts threads, not in forks
    for name in ("one", "two"):
        sample.make_sample(tmp_path / name, train_cars=2, val_cars=1, views=2)
    assert listing(tmp_path / "one") == listing(tmp_path / "two") and len(listing(tmp_path / "one")) == 12
    pairs = find_pairs(tmp_path / "one/train_images", tmp_path / "one/train_masks")
    val_pairs = find_pairs(tmp_path / "one/val_images", tmp_path / "one/val_masks")
    cars = [{image.name[:12] for image, _ in some} for some in (pairs, val_pairs)]
    assert len(cars[0]) == 2 and len(cars[1]) == 1 and not cars[0] & cars[1]
    for image, mask in pairs + val_pairs:
        assert prepare_data.CARVANA_NAME.match(image.stem)
        image, truth = Image.open(image), np.asarray(Image.open(mask).convert("L"))
        assert image.format == "JPEG" and image.size == (1918, 1280) == truth.shape[::-1]
        assert set(np.unique(truth)) == {0, 255} and 0.08 < (truth == 255).mean() < 0.5


def test_masks_are_exact_and_parts_are_apart():
    image, parts = sample.render(0, 3)
    assert parts.shape == (1280, 1918) and set(np.unique(parts)) == set(sample.PARTS)
    # The red or white of the car never comes from outside the mask: rendering without a car changes nothing there
    # but the shadow below it, so the wall above the car is the same in images of different cars.
    other, other_parts = sample.render(1, 3)
    wall = (parts == 0) & (other_parts == 0)
    wall[500:] = False
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(other))[wall]
    assert difference.mean() < 3


def test_only_the_default_folders_fall_back_on_the_sample(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/train_images").mkdir(parents=True)
    (tmp_path / "data/train_images/.gitkeep").touch()
    named = ["mine/", *prepare_data.DEFAULT_DIRS[1:]]
    assert prepare_data.sample_if_empty(named) == named
    (tmp_path / "data/sample/train_images").mkdir(parents=True)  # it is there already, so nothing is rendered
    dirs = prepare_data.sample_if_empty(prepare_data.DEFAULT_DIRS)
    assert [Path(d) for d in dirs] == [Path("data/sample") / name for name in prepare_data.FOLDERS]
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "data/train_images is empty" in printed
    (tmp_path / "data/train_images/a.jpg").touch()
    assert prepare_data.sample_if_empty(prepare_data.DEFAULT_DIRS) == prepare_data.DEFAULT_DIRS
