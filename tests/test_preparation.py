import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_pairs

from dataset import CarvanaDataset
from support import preparation
from support.errors import BadInput
from support.preparation import prepare
from support.reading import Reading, read_image, read_mask

ROOT = Path(__file__).parent.parent
SMALL = Reading((16, 24))


def dataset_of(folder: Path, reading: Reading = SMALL) -> CarvanaDataset:
    dataset = CarvanaDataset(folder / "i", folder / "m", reading=reading)
    dataset.use_cache(folder / "cache")
    return dataset


def caches(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cache").glob("*"))


def replace_unnoticed(path: Path) -> None:
    """Other bytes, of the same length and with the same time of change: only decoding would tell."""
    status = path.stat()
    path.write_bytes(b"?" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("count", [3, 40])  # at once, and in several turns
def test_one_pass_gives_metadata_and_records_and_a_later_run_decodes_nothing(tmp_path, count):
    write_pairs(tmp_path / "i", tmp_path / "m", [f"x{number:02d}" for number in range(count)])
    plain, cached = CarvanaDataset(tmp_path / "i", tmp_path / "m", reading=SMALL), dataset_of(tmp_path)
    assert cached.records is not None and len(caches(tmp_path)) == 2
    for index in range(count):
        for array, other in zip(cached.read(index), plain.read(index), strict=True):
            np.testing.assert_array_equal(array, other)
            assert array.dtype == other.dtype
    first = prepare(tmp_path / "i", tmp_path / "m", SMALL, tmp_path / "cache")
    metadata, masks = first.metadata.values(), [mask for _, mask in plain.pairs]
    assert [m.foreground for m in metadata] == pytest.approx([read_mask(mask).mean() for mask in masks])
    assert [m.scaled_foreground for m in metadata] == pytest.approx([read_mask(m, SMALL).mean() for m in masks])
    assert {m.size for m in metadata} == {(64, 96)} and len({m.digest for m in metadata}) == count
    for path in plain.pairs[1]:
        replace_unnoticed(path)
    second = prepare(tmp_path / "i", tmp_path / "m", SMALL, tmp_path / "cache")
    assert second.metadata == first.metadata
    assert all(np.array_equal(a, b) for a, b in zip(first.records[1], second.records[1], strict=True))


def test_a_change_of_files_size_or_version_makes_it_anew(tmp_path, monkeypatch):
    write_pairs(tmp_path / "i", tmp_path / "m", ["a", "b"])
    changes = (
        lambda: None,
        lambda: (tmp_path / "i/a.jpg").write_bytes((tmp_path / "i/b.jpg").read_bytes()),
        lambda: write_pairs(tmp_path / "i", tmp_path / "m", ["c"]),
        lambda: monkeypatch.setattr(preparation, "VERSION", preparation.VERSION + 1),
    )
    seen = set()
    for change in changes:
        change()
        dataset = dataset_of(tmp_path)
        for index, pair in enumerate(dataset.pairs):
            np.testing.assert_array_equal(dataset[index][0], read_image(pair[0], SMALL))
        assert len(caches(tmp_path)) == 2  # what is outdated is gone
        seen.update(caches(tmp_path))
    assert len(seen) == 8
    dataset_of(tmp_path, Reading((8, 12)))  # another size stands beside it
    assert len(caches(tmp_path)) == 4
    for file in (tmp_path / "cache").glob("*.json"):
        file.write_text("{")  # broken: everything is read again
    dataset_of(tmp_path)
    assert prepare(tmp_path / "i", tmp_path / "m", SMALL, tmp_path / "cache").metadata


def test_a_file_that_breaks_it_off_leaves_nothing_half_written(tmp_path):
    write_pairs(tmp_path / "i", tmp_path / "m", [f"x{number:02d}" for number in range(40)])
    (tmp_path / "i/x33.jpg").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"x33\.jpg: can't be read as an image"):
        dataset_of(tmp_path)
    assert caches(tmp_path) == []


def test_without_room_or_a_folder_it_goes_on_without(tmp_path, monkeypatch, capsys):
    write_pairs(tmp_path / "i", tmp_path / "m", ["a"])
    (tmp_path / "file").touch()
    found = prepare(tmp_path / "i", tmp_path / "m", SMALL, tmp_path / "file/cache")
    assert found.records is None and len(found.metadata) == 1
    assert "can't be written to" in capsys.readouterr().err
    monkeypatch.setattr(preparation, "SPARE_BYTES", 2**62)
    dataset = dataset_of(tmp_path)
    assert dataset.records is None and dataset[0][0].shape == (16, 24, 3)
    assert "warning: " in (error := capsys.readouterr().err) and "no room for" in error


def test_a_cache_that_another_run_removed_is_not_missed_and_an_item_is_ones_own(tmp_path):
    write_pairs(tmp_path / "i", tmp_path / "m", ["a"])
    dataset = dataset_of(tmp_path)
    expected = dataset[0][0].copy()
    dataset[0][0][:] = 7  # changes no later one
    (tmp_path / "cache" / caches(tmp_path)[0]).unlink()
    for process in (dataset, pickle.loads(pickle.dumps(dataset))):  # one has it open, the other comes too late
        np.testing.assert_array_equal(process[0][0], expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_files_are_read_ends_it_and_keeps_nothing(tmp_path, number):
    write_pairs(tmp_path / "i", tmp_path / "m", ["x"], size=(700, 1000))
    for n in range(300):
        shutil.copy(tmp_path / "i/x.jpg", tmp_path / f"i/x{n}.jpg")
        shutil.copy(tmp_path / "m/x_mask.gif", tmp_path / f"m/x{n}_mask.gif")
    words = ["check", str(tmp_path / "i"), str(tmp_path / "m"), "--CACHE_DIR", str(tmp_path / "cache")]
    with subprocess.Popen([sys.executable, ROOT / "prepare_data.py", *words], stderr=subprocess.PIPE) as process:
        while process.poll() is None and not caches(tmp_path):
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == 128 + number and b"Traceback" not in process.stderr.read()
    assert caches(tmp_path) == []
