import builtins
import errno
import fcntl
import os
import pickle
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kills import same
from model import UNET
from support.checkpoint import CheckpointWriter, load_checkpoint, lock_folder, read_checkpoint, save_checkpoint
from support.errors import BadInput

ROOT = Path(__file__).parent.parent
STATE = {"state_dict": {"weight": torch.arange(6.0).reshape(2, 3)}, "epoch": 3}


def outcome(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    try:
        state = read_checkpoint(path)
    except BadInput as error:
        assert str(error).startswith(str(path))
        return "detected"
    return "harmless" if same(state, STATE) else "wrong"


def test_every_truncation_is_detected(tmp_path):
    save_checkpoint(STATE, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    found = [outcome(tmp_path / "cut", whole[:length]) for length in range(len(whole))]
    assert len(found) > 500 and set(found) == {"detected"}


def test_a_flip_in_any_byte_is_detected_or_harmless(tmp_path):
    save_checkpoint(STATE, tmp_path / "whole")
    assert same(read_checkpoint(tmp_path / "whole"), STATE)
    whole = bytearray((tmp_path / "whole").read_bytes())
    found = []
    for position in range(len(whole)):
        flipped = whole.copy()
        flipped[position] ^= 1 << position % 8
        found.append(outcome(tmp_path / "flipped", flipped))
    assert "wrong" not in found and found.count("detected") > 300


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (builtins.exec, (f"open({str(self.path)!r}, 'w').write('run')",))


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_malicious_pickle_is_refused_and_never_run(tmp_path, save):
    victim = tmp_path / "victim"
    save({"state_dict": Malicious(victim)}, tmp_path / "c.pth.tar")
    with pytest.raises(BadInput, match=r"c\.pth\.tar: not a checkpoint that can be read"):
        read_checkpoint(tmp_path / "c.pth.tar")
    assert not victim.exists()


def test_foreign_files_are_refused(tmp_path):
    for thing in ([1, 2], {"weights": 1}, {"state_dict": [1]}, torch.ones(3)):
        torch.save(thing, tmp_path / "c.pth.tar")
        assert outcome(tmp_path / "c.pth.tar", (tmp_path / "c.pth.tar").read_bytes()) == "detected"


@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
def test_a_failing_call_leaves_the_old_file(tmp_path, monkeypatch, call):
    save_checkpoint(STATE, tmp_path / "c.pth.tar")
    before = (tmp_path / "c.pth.tar").read_bytes()

    def fail(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    if call == "link":  # no hard links here: copies do
        writer = CheckpointWriter(tmp_path)
        writer.save(STATE, is_best=True)
        writer.save(STATE)
        writer.wait()
        assert all(same(read_checkpoint(path), STATE) for path in (writer.latest, writer.previous, writer.best))
    else:
        with pytest.raises(BadInput, match=r"c\.pth\.tar: can't be written \(Input/output error\)"):
            save_checkpoint({**STATE, "epoch": 4}, tmp_path / "c.pth.tar")
    assert (tmp_path / "c.pth.tar").read_bytes() == before
    assert not (tmp_path / "c.pth.tar.part").exists()


def test_a_disk_that_takes_only_so_many_bytes_leaves_the_old_file(tmp_path):
    path = tmp_path / "c.pth.tar"
    save_checkpoint(STATE, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for size in (0, 1, len(before) // 2, len(before) - 1):  # real writes, which the system breaks off
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            with pytest.raises(BadInput, match=r"can't be written"):
                save_checkpoint({**STATE, "epoch": 4}, path)
            assert path.read_bytes() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["c.pth.tar"]


def test_generations(tmp_path, capsys):
    writer = CheckpointWriter(tmp_path)
    for epoch, best in ((1, True), (2, False), (3, False)):
        writer.save({**STATE, "epoch": epoch}, best)
    writer.wait()
    epochs = [read_checkpoint(path)["epoch"] for path in (writer.latest, writer.previous, writer.best)]
    assert epochs == [3, 2, 1]
    writer.latest.write_bytes(writer.latest.read_bytes()[:100])
    assert writer.saved_state(True, "")["epoch"] == 2
    assert [read_checkpoint(path)["epoch"] for path in (writer.latest, writer.previous)] == [2, 2]
    assert f"Going on from {writer.previous} instead." in capsys.readouterr().err


def test_weights_that_do_not_fit_are_refused_before_anything_changes():
    model = UNET(features=[2, 4])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = {"state_dict": UNET(features=[2, 3]).state_dict()}
    with pytest.raises(BadInput, match=r"downs\.1\.conv\.0\.weight is \(3, 2, 3, 3\) instead of \(4, 2, 3, 3\)"):
        load_checkpoint(other, model)
    broken = {name: value.clone() for name, value in before.items()}
    broken["final_conv.bias"][0] = float("nan")
    with pytest.raises(BadInput, match="weights are not finite"):
        load_checkpoint({"state_dict": broken}, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    adam = {"state_dict": before, "optimizer": torch.optim.Adam(model.parameters()).state_dict()}
    with pytest.raises(BadInput, match="another optimizer"):
        load_checkpoint(adam, model, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EACCES, errno.EAGAIN])
def test_file_systems_without_locks_and_folder_syncs(tmp_path, monkeypatch, capsys, number):
    """As NFS without a lock daemon, Lustre without flock and CIFS are: only EACCES and EAGAIN mean another run."""
    fsync = os.fsync

    def no_lock(*_) -> None:
        raise OSError(number, os.strerror(number))

    def no_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(fcntl, "lockf", no_lock)
    monkeypatch.setattr(os, "fsync", no_folders)
    if number in (errno.EACCES, errno.EAGAIN):
        with pytest.raises(BadInput, match="another run is at work here"):
            CheckpointWriter(tmp_path)
    else:
        writer = CheckpointWriter(tmp_path)
        writer.save(STATE)
        writer.wait()
        assert same(read_checkpoint(writer.latest), STATE)
        assert "its file system has no locks" in capsys.readouterr().err


def test_a_folder_has_one_run_at_a_time_and_a_killed_one_frees_it(tmp_path):
    code = f"""if True:
        import sys; sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from support.checkpoint import lock_folder
        lock = lock_folder(Path({str(tmp_path)!r})); print('locked', flush=True); input()"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(BadInput, match=rf"another run is at work here \(process {other.pid}\)"):
            lock_folder(tmp_path)
        other.kill()
    lock_folder(tmp_path).close()


def test_what_a_kill_between_link_and_rename_has_left_stops_no_save(tmp_path):
    writer = CheckpointWriter(tmp_path)
    writer.save({"state_dict": {}, "step": 1})
    writer.wait()
    os.link(writer.latest, tmp_path / ".previous_checkpoint.pth.tar.part")
    writer.save({"state_dict": {}, "step": 2}, is_best=True)
    writer.wait()
    steps = [read_checkpoint(path)["step"] for path in (writer.previous, writer.latest, writer.best)]
    assert steps == [1, 2, 2] and not list(tmp_path.glob(".*.part"))
