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
from support.device import count_cores
from support.errors import BadInput
from support.preparation import prepare
from support.reading import Reading, read_mask

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


@pytest.mark.parametrize("count", [3, 40])  # in this process, and by several
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
    dataset_of(tmp_path)
    names = [caches(tmp_path)]

    (tmp_path / "i/a.jpg").write_bytes((tmp_path / "i/b.jpg").read_bytes())
    changed = dataset_of(tmp_path)
    names.append(caches(tmp_path))
    np.testing.assert_array_equal(changed[0][0], changed[1][0])

    write_pairs(tmp_path / "i", tmp_path / "m", ["c"])
    dataset_of(tmp_path)
    names.append(caches(tmp_path))
    monkeypatch.setattr(preparation, "VERSION", preparation.VERSION + 1)
    dataset_of(tmp_path)
    names.append(caches(tmp_path))
    assert all(len(name) == 2 for name in names) and len({name[0] for name in names}) == 4

    dataset_of(tmp_path, Reading((8, 12)))  # another size stands beside it
    assert len(caches(tmp_path)) == 4


def test_a_file_that_breaks_it_off_leaves_nothing_half_written(tmp_path):
    write_pairs(tmp_path / "i", tmp_path / "m", [f"x{number:02d}" for number in range(40)])
    (tmp_path / "i/x33.jpg").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"x33\.jpg: can't be read as an image"):
        dataset_of(tmp_path)
    assert caches(tmp_path) == []


def test_without_room_it_goes_on_without(tmp_path, monkeypatch, capsys):
    write_pairs(tmp_path / "i", tmp_path / "m", ["a"])
    monkeypatch.setattr(preparation, "SPARE_BYTES", 2**62)
    dataset = dataset_of(tmp_path)
    assert dataset.records is None and dataset[0][0].shape == (16, 24, 3)
    assert "no room for" in capsys.readouterr().err


def test_a_cache_that_another_run_removed_is_not_missed(tmp_path):
    write_pairs(tmp_path / "i", tmp_path / "m", ["a"])
    dataset = dataset_of(tmp_path)
    expected = dataset[0][0].copy()
    (tmp_path / "cache" / caches(tmp_path)[0]).unlink()
    for process in (dataset, pickle.loads(pickle.dumps(dataset))):  # one has it open, the other comes too late
        np.testing.assert_array_equal(process[0][0], expected)


def test_who_writes_into_an_item_changes_no_later_one(tmp_path):
    write_pairs(tmp_path / "i", tmp_path / "m", ["a"])
    dataset = dataset_of(tmp_path)
    expected = [array.copy() for array in dataset[0]]
    for array in dataset[0]:
        array[:] = 7
    assert all(np.array_equal(array, other) for array, other in zip(dataset[0], expected, strict=True))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir() or count_cores() < 2, reason="one core reads by itself")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_files_are_read_leaves_no_process(tmp_path, number):
    write_pairs(tmp_path / "i", tmp_path / "m", ["x"], size=(700, 1000))
    for n in range(200):
        shutil.copy(tmp_path / "i/x.jpg", tmp_path / f"i/x{n}.jpg")
        shutil.copy(tmp_path / "m/x_mask.gif", tmp_path / f"m/x{n}_mask.gif")
    words = ["check", str(tmp_path / "i"), str(tmp_path / "m"), "--CACHE_DIR", str(tmp_path / "cache")]
    with subprocess.Popen([sys.executable, ROOT / "prepare_data.py", *words], stderr=subprocess.PIPE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None and not (found := children.read_text().split()):
            time.sleep(0.01)
        time.sleep(0.1)  # Python forgets an exception that a handler raises in the very moment of a fork
        process.send_signal(number)
        assert process.wait(60) == 128 + number and b"Traceback" not in process.stderr.read()
    assert found and not any(Path("/proc", child).is_dir() for child in found)


def test_a_cache_folder_that_cannot_be_written_is_warned_of(tmp_path, capsys):
    write_pairs(tmp_path / "i", tmp_path / "m", ["a"])
    (tmp_path / "file").touch()
    found = prepare(tmp_path / "i", tmp_path / "m", SMALL, tmp_path / "file/cache")
    assert found.records is None and len(found.metadata) == 1
    assert "warning: " in (error := capsys.readouterr().err) and "can't be written to" in error
