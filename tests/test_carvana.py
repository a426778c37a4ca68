"""Archives in Kaggle's form, made by the tests, through `prepare_data.py carvana`."""

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import write_pairs
from test_prepare_data import listing, names

import prepare_data
from support.carvana import TUTORIAL_CARS
from support.errors import BadInput
from support.pairs import find_pairs
from support.reading import read_pair

ROOT = Path(__file__).parent.parent
CARS = (*TUTORIAL_CARS, "00087a6bd4dc", "02159e548029")


def pack(folder: Path, archive: Path, top: str) -> None:
    """A zip as Kaggle's and a Mac make them: a top folder, and beside the files what a Mac leaves in it."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{top}/", "")
        for path in sorted(folder.iterdir()):
            file.write(path, f"{top}/{path.name}")
            file.writestr(f"__MACOSX/{top}/._{path.name}", b"resource fork")
        file.writestr(f"{top}/.DS_Store", b"junk")
        file.writestr(f"{top}/Thumbs.db", b"junk")
        file.writestr("../../outside.jpg", b"a name that leads out of the folder")


@pytest.fixture
def kaggle(tmp_path) -> Path:
    """A folder with train.zip and train_masks.zip: five cars, three views each."""
    write_pairs(
        tmp_path / "i", tmp_path / "m", [f"{car}_{view:02d}" for car in CARS for view in (1, 2, 3)], (16, 24)
    )
    folder = tmp_path / "kaggle"
    folder.mkdir()
    pack(tmp_path / "i", folder / "train.zip", "train")
    pack(tmp_path / "m", folder / "train_masks.zip", "train_masks")
    return folder


def arguments(kaggle: Path, out: Path, *more: str) -> list[str]:
    return ["carvana", str(kaggle / "train.zip"), str(kaggle / "train_masks.zip"), "--out", str(out), *more]


def test_archives_become_the_four_folders(kaggle, tmp_path, capsys):
    out = tmp_path / "deep/data"
    prepare_data.main(arguments(kaggle, out, "--share", "0.4"))
    train, val = (find_pairs(out / f"{side}_images", out / f"{side}_masks") for side in ("train", "val"))
    assert "9 images for training, 6 for validation" in capsys.readouterr().out
    cars = [{image.name[:12] for image, _ in pairs} for pairs in (train, val)]
    assert len(cars[0]) == 3 and len(cars[1]) == 2 and cars[0] | cars[1] == set(CARS)
    for image, mask in train + val:
        assert image.read_bytes() == (tmp_path / "i" / image.name).read_bytes()
        assert mask.read_bytes() == (tmp_path / "m" / mask.name).read_bytes()
        read_pair((image, mask))
    assert len(listing(tmp_path / "deep")) == 31  # dataset.json and nothing else, and nothing outside
    assert not list(tmp_path.rglob("outside.jpg"))

    prepare_data.main(arguments(kaggle, tmp_path / "other", "--share", "0.4", "--seed", "1"))
    assert names(tmp_path / "other/val_images") != names(out / "val_images")


def test_folders_that_were_unpacked_by_hand_and_the_tutorials_split(kaggle, tmp_path):
    unpacked = ["carvana", str(tmp_path / "i"), str(tmp_path / "m"), "--out", str(tmp_path / "one")]
    prepare_data.main([*unpacked, "--like-tutorial"])
    prepare_data.main(arguments(kaggle, tmp_path / "two", "--like-tutorial"))
    assert listing(tmp_path / "one") == listing(tmp_path / "two")
    assert {name[:12] for name in names(tmp_path / "one/val_images")} == set(TUTORIAL_CARS)
    assert len(names(tmp_path / "one/val_images")) == 9 and len(names(tmp_path / "one/train_masks")) == 6


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import prepare_data

replace, targets = os.replace, []

def replace_or_die(source, target):
    targets.append(target)
    if len(targets) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace_or_die
prepare_data.main({arguments!r})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_and_started_again(kaggle, tmp_path):
    prepare_data.main(arguments(kaggle, tmp_path / "whole"))
    out, whole = tmp_path / "killed", listing(tmp_path / "whole")
    script = KILLED.format(root=str(ROOT), arguments=arguments(kaggle, out))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    placed = {path: path.stat() for path in out.rglob("[!.]*") if path.is_file()}
    assert len(placed) == 7 and all(path.parent.name.endswith("masks") for path in placed)
    assert all(listing(path.parent)[path.name] == whole[str(path.relative_to(out))] for path in placed)

    prepare_data.main(arguments(kaggle, out))
    assert listing(out) == whole
    for path, status in placed.items():  # left alone
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)


def spoil(archive: Path, ending: str) -> None:
    """Change a byte within a member's packed data."""
    with zipfile.ZipFile(archive) as file:
        info = next(info for info in file.infolist() if info.filename.endswith(ending))
    data = bytearray(archive.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
    archive.write_bytes(data)


def leave_out(archive: Path, part: str) -> None:
    with zipfile.ZipFile(archive) as file:
        kept = {info.filename: file.read(info) for info in file.infolist() if part not in info.filename}
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in kept.items():
            file.writestr(name, data)


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "train.zip: can't be unpacked"),
        (lambda path: path.write_text("<html>Sign in</html>"), "train.zip: can't be unpacked"),
        (lambda path: spoil(path, f"{CARS[0]}_02.jpg"), "train.zip: can't be unpacked"),
        (lambda path: leave_out(path, f"{CARS[1]}_03.jpg"), "train.zip: lacks 1 image"),
        (
            lambda path: leave_out(path.with_name("train_masks.zip"), "_02_mask.gif"),
            f"train_masks.zip: lacks 5 masks, the first of them that of {min(CARS)}_02",
        ),
    ],
)
def test_broken_archives_get_one_line(kaggle, tmp_path, harm, message):
    harm(kaggle / "train.zip")
    with pytest.raises(BadInput, match=message) as error:
        prepare_data.main(arguments(kaggle, tmp_path / "data"))
    assert "\n" not in str(error.value) and not (tmp_path / "data").exists()


def test_a_car_of_the_tutorial_that_is_missing_is_named(kaggle, tmp_path):
    for name in ("train.zip", "train_masks.zip"):
        leave_out(kaggle / name, TUTORIAL_CARS[2])
    with pytest.raises(BadInput, match=f"--like-tutorial: .*train.zip lacks the car {TUTORIAL_CARS[2]}"):
        prepare_data.main(arguments(kaggle, tmp_path / "data", "--like-tutorial"))


def test_without_archives_it_says_how_to_fetch_them(tmp_path):
    command = [sys.executable, str(ROOT / "prepare_data.py"), "carvana"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    for name in ("train.zip", "train_masks.zip"):
        assert f"kaggle competitions download -c carvana-image-masking-challenge -f {name}" in done.stdout
    assert "/rules" in done.stdout and "KAGGLE_API_TOKEN" in done.stdout and "~/.kaggle/kaggle.json" in done.stdout
    assert done.stderr == "train.zip: no such archive or folder. Fetch it as shown, or say where it is.\n"
    assert os.listdir(tmp_path) == []
