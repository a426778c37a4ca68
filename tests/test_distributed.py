"""Two and three real processes against one. They run this file, as `torchrun test_distributed.py COMMAND ...`."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import set_arguments, write_set
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import DataLoader, TensorDataset

import train
from benchmarks.kills import end_of, same
from dataset import EpochBatches
from losses import BCEDiceLoss
from model import UNET
from support.distributed import Group, end_together, init_distributed
from support.errors import BadInput, run_script
from support.preparation import prepare
from support.reading import Reading
from support.run import Run
from utils import check_accuracy, count_overlap, get_loaders

ROOT = Path(__file__).parent.parent


def torchrun(processes: int, *words: str | Path, restarts: int = 0) -> subprocess.CompletedProcess:
    """Run a script in so many processes, to its end."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*launcher, f"--max-restarts={restarts}", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )


class Logits(nn.Module):
    """A model whose logits are its input's first channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1]


def examples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 16, 24) in [-1, 1] and masks (N, 16, 24), an empty one among them."""
    generator = torch.Generator().manual_seed(count)
    images = torch.rand(count, 3, 16, 24, generator=generator) * 2 - 1
    masks = (torch.rand(count, 16, 24, generator=generator) > 0.6).float()
    masks[count // 2] = 0
    return images, masks


def network(features: list[int]) -> UNET:
    torch.manual_seed(0)
    return UNET(features=features)


def scores_and_counts(group: Group) -> dict[int, Any]:
    """For 1 to 17 images: what check_accuracy says of fixed logits, the images' counts, and a network's loss."""
    found = {}
    for count in range(1, 18):
        images, masks = examples(count)
        loader = DataLoader(TensorDataset(images, masks), 4, sampler=group.shard(count))
        fixed = check_accuracy(loader, Logits(), "cpu", loss_fn=BCEDiceLoss(), group=group)
        counts = group.gather(
            count_overlap(images[group.rank :: group.world_size, 0] > 0, masks[group.shard(count)] > 0)
        )
        model = network([2, 4])
        for buffer in model.buffers():
            buffer += group.rank  # each process has statistics of its own: the first one's count
        real = check_accuracy(loader, model, "cpu", loss_fn=BCEDiceLoss(), group=group)
        found[count] = fixed, counts, real["loss"]
    return found


def gradients(group: Group, accumulation_steps: int = 1) -> list[torch.Tensor]:
    """Of a step with 7 images, which 2 and 3 processes can't share equally, and how often they were exchanged."""
    images, masks = examples(7)
    share = group.shard(7)
    model = network([4, 8])
    shared = group.wrap(model, images[:1]).eval()
    training = torch.optim.SGD(model.parameters(), 0.0), BCEDiceLoss(), torch.amp.GradScaler("cpu", enabled=False)
    exchanges = []
    if group.world_size > 1:
        shared.register_comm_hook(None, lambda _, bucket: exchanges.append(1) or allreduce_hook(None, bucket))
    options = {"mean_batch_size": group.mean_batch_size(7), "accumulation_steps": accumulation_steps}
    train.train_fn([(images[share], masks[share])], shared, *training, **options)
    assert len(exchanges) == (group.world_size > 1)  # with the last part alone
    return [weight.grad for weight in model.parameters()]


def weights_after_steps(group: Group, interrupted: bool) -> dict[str, torch.Tensor]:
    """Of a network whose gradients travel in several pieces, after 3 steps with an interruption or without."""
    weights, (images, masks), share = network([16, 32, 64]).state_dict(), examples(6), group.shard(6)
    for steps in (1, 2) if interrupted else (3,):
        model = network([16, 32, 64])
        model.load_state_dict(weights)
        shared = group.wrap(model, images[:1])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            BCEDiceLoss()(shared(images[share]), masks[share].unsqueeze(1)).backward()
            optimizer.step()
        weights = {**weights, **dict(model.named_parameters())}  # the statistics are each process's own
    return {name: value.detach() for name, value in model.named_parameters()}


def cache_seen(group: Group, folder: Path) -> tuple[bool, int]:
    """Whether a cache was there before this process asked for it, and which file it then was."""
    with group.main_first():
        before = (folder / "cache").exists()
        records = prepare(folder / "val_images", folder / "val_masks", Reading((16, 24)), folder / "cache").records
    return before, os.stat(records.path).st_ino


def check(out: Path, data: Path) -> None:
    """What each process found, in a file that the first one writes."""
    group = init_distributed("cpu")
    found = {
        "scores": scores_and_counts(group),
        "gradients": gradients(group),
        "accumulated": gradients(group, accumulation_steps=4),
        "whole": weights_after_steps(group, interrupted=False),
        "interrupted": weights_after_steps(group, interrupted=True),
        "cache": cache_seen(group, data),
        "mean": group.mean(torch.tensor([0.1, group.rank])),
        "first": group.broadcast(lambda: group.rank),
    }
    found = group.all_gather(found)
    if group.is_main:
        torch.save(found, out)


def train_apart(root: Path, *arguments: str) -> None:
    """Train with each process in a folder of its own, as on a machine of its own."""
    os.chdir(root / f"machine{os.environ['RANK']}")
    train.main(list(arguments))


def fail() -> None:
    """Have the second process fail while the first waits for it."""
    group = init_distributed("cpu")
    if group.rank == 1:
        raise ZeroDivisionError("no wheels")
    group.all_gather(None)


def train_until(what: str, epoch: str, step: str, *arguments: str) -> None:
    """Train; at a step of the first try, the second process is killed, or torchrun gets a SIGTERM from it."""
    after_step, first_try = Run.after_step, os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"

    def disturbed(self: Run, loss: torch.Tensor) -> None:
        here = self.group.rank == 1 and first_try and (self.epoch, self.step + 1)
        if here == (int(epoch), int(step)) and what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif here == (int(epoch), int(step)):
            os.kill(os.getppid(), signal.SIGTERM)
            while not self.signal:  # torchrun hands it on
                time.sleep(0.01)
        after_step(self, loss)

    Run.after_step = disturbed
    train.main(list(arguments))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_set(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(data) -> list[str]:
    small = "--IMAGE_HEIGHT 32 --IMAGE_WIDTH 48 --FEATURES 8 16 --NUM_EPOCHS 12 --BATCH_SIZE 4 --MIN_STEPS 1"
    small = f"{small} --PRECISION float32 --DEVICE cpu --CACHE_DIR {data / 'cache_of_runs'}"
    return [*set_arguments(data), *small.split()]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run of two processes, and what it printed."""
    out = tmp_path_factory.mktemp("undisturbed")
    done = torchrun(2, ROOT / "train.py", *arguments, "--OUT_DIR", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def last_dice(printed: str) -> float:
    return float(printed.rpartition(": dice ")[2].partition(",")[0])


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_find_what_one_does(processes, data, tmp_path):
    shutil.rmtree(data / "cache", ignore_errors=True)
    done = torchrun(processes, __file__, "check", tmp_path / "found", data)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found", weights_only=False)
    assert done.stdout.count("17 images at 24x16") == 2  # of fixed logits and of the network, each printed once
    alone, gradients_alone = scores_and_counts(Group()), gradients(Group())
    for mine in found:
        for count, (fixed, counts, loss) in alone.items():
            theirs = mine["scores"][count]
            assert theirs[0] == {**fixed, "loss": pytest.approx(fixed["loss"], abs=1e-6)}
            assert torch.equal(theirs[1], counts)
            assert theirs[2] == pytest.approx(loss, abs=1e-6)
        for found_gradients in (mine["gradients"], mine["accumulated"]):
            for one, other in zip(found_gradients, gradients_alone, strict=True):
                torch.testing.assert_close(one, other)
        assert same(mine["whole"], mine["interrupted"]) and same(mine["whole"], found[0]["whole"])
        assert mine["mean"].tolist() == pytest.approx([0.1, (processes - 1) / 2])
        assert mine["first"] == 0
    assert [mine["cache"] for mine in found] == [(rank > 0, found[0]["cache"][1]) for rank in range(processes)]


def test_two_processes_train_as_one(undisturbed, arguments, tmp_path, capsys):
    out, printed = undisturbed
    train.main([*arguments, "--OUT_DIR", str(tmp_path)])
    alone = capsys.readouterr().out
    assert "12 training images, 5 validation images; batches of 4 over 2 processes\n" in printed
    assert "12 training images, 5 validation images; batches of 4\nFEATURES 8 16; 12 epochs of 3 steps" in alone
    assert printed.count("mean training loss") == printed.count("5 images at 48x32") == 12
    assert last_dice(printed) > 0.9 and last_dice(printed) == pytest.approx(last_dice(alone), abs=0.03)
    assert sorted(path.name for path in out.rglob("*.png")) == sorted(path.name for path in tmp_path.rglob("*.png"))
    assert end_of(out)["state_dict"].keys() == end_of(tmp_path)["state_dict"].keys()


@pytest.mark.slow
def test_a_run_survives_the_death_of_a_process(undisturbed, arguments, tmp_path):
    # A former run's results are in the folder: they are neither gone on from nor set aside twice.
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    words = ["kill", 5, 2, *arguments, "--OUT_DIR", tmp_path, "--SAVE_MINUTES", "1e-9"]
    done = torchrun(2, __file__, *words, restarts=1)
    assert done.returncode == 0, done.stderr
    assert "going on after 5 epochs and 1 step" in done.stdout
    assert done.stderr.count("another process of this run has ended") == 1 and "gloo" not in done.stderr
    assert same(end_of(tmp_path), end_of(undisturbed[0]))
    (aside,) = (tmp_path / "previous_runs").iterdir()
    assert same(end_of(aside), end_of(undisturbed[0]))


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_and_the_run_resumes_exactly(undisturbed, arguments, tmp_path, capsys):
    done = torchrun(2, __file__, "terminate", 5, 2, *arguments, "--OUT_DIR", tmp_path / "two")
    assert done.returncode != 0 and done.stdout.count("stopped in epoch 6 after step 2") == 1
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    done = torchrun(2, ROOT / "train.py", *arguments, "--OUT_DIR", tmp_path / "two", "--LOAD_MODEL")
    assert done.returncode == 0 and "going on after 5 epochs and 2 steps" in done.stdout, done.stderr
    assert same(end_of(tmp_path / "two"), end_of(undisturbed[0]))
    # Another number of processes goes on with the same batches, only not to the bit.
    train.main([*arguments, "--OUT_DIR", str(tmp_path / "one"), "--LOAD_MODEL"])
    assert last_dice(capsys.readouterr().out) == pytest.approx(last_dice(undisturbed[1]), abs=0.03)


def test_bad_input_of_one_process_ends_all_with_one_line(data, arguments, tmp_path):
    shutil.copytree(data / "train_images", tmp_path / "broken")
    broken = tmp_path / f"broken/{2:012x}_01.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    words = [*arguments, "--TRAIN_IMG_DIR", tmp_path / "broken", "--CACHE_DIR", "", "--OUT_DIR", tmp_path / "out"]
    done = torchrun(2, ROOT / "train.py", *words)
    ours = done.stderr.partition("torch.distributed")[0]
    assert done.returncode != 0 and ours.count(f"{broken}: can't be read as an image") == 1
    assert "Traceback" not in ours.partition("torch/distributed/run.py")[0].partition("File ")[0], done.stderr
    assert "another process" not in done.stderr and "gloo" not in done.stderr


def test_machines_that_hold_other_files_are_refused_in_one_line(data, arguments, tmp_path):
    for machine in ("machine0", "machine1"):
        shutil.copytree(data, tmp_path / machine)
    lost = f"{3:012x}_04.jpg"
    (tmp_path / "machine1/val_images" / lost).unlink()
    words = [word.replace(f"{data}/", "") for word in arguments]
    done = torchrun(2, __file__, "apart", tmp_path, *words, "--OUT_DIR", tmp_path / "out", "--NUM_EPOCHS", "1")
    assert done.returncode != 0 and 'train.py", line' not in done.stderr and "another process" not in done.stderr
    finding = f"val_images: on {platform.node()} (process 1) it differs from process 0's in {lost}."
    assert done.stderr.count(finding) == 1, done.stderr


def test_a_process_that_fails_tells_why_and_the_others_end_in_silence():
    done = torchrun(2, __file__, "fail")
    assert done.returncode != 0 and done.stderr.count("ZeroDivisionError: no wheels\n") == 1, done.stderr
    assert "another process" not in done.stderr and "gloo" not in done.stderr, done.stderr


def test_a_step_has_an_image_for_each_process(data):
    dirs = [data / name for name in ("train_images", "train_masks", "val_images", "val_masks")]
    with pytest.raises(BadInput, match="train_images: 12 images for 13 processes"):
        get_loaders(*dirs, 16, None, None, 0, group=Group(world_size=13))
    with pytest.raises(BadInput, match="BATCH_SIZE: 4 images a step for 5 processes"):
        get_loaders(*dirs, 4, None, None, 0, group=Group(world_size=5))


def test_a_restart_goes_on_only_from_what_its_own_command_saved(arguments, tmp_path, monkeypatch, capsys):
    environment = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
    environment |= {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": 0}
    first, second = (dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in range(2))
    printed = []
    for torchruns, epochs in ((first, 1), (second, 1), (second, 2)):
        for name, value in {**environment, "MASTER_PORT": torchruns.port}.items():
            monkeypatch.setenv(name, str(value))
        train.main([*arguments, "--OUT_DIR", str(tmp_path), "--NUM_EPOCHS", str(epochs), "--FEATURES", "2", "4"])
        printed.append(capsys.readouterr().out)
    assert ["going on after 1 epoch and" in text for text in printed] == [False, False, True]
    assert ["run before are now in" in text for text in printed] == [False, True, False]


def test_the_shares_of_a_batch_are_the_batch():
    whole = list(EpochBatches(17, 5, drop_last=True))
    for size in (2, 3):
        shares = [list(EpochBatches(17, 5, drop_last=True, rank=rank, world_size=size)) for rank in range(size)]
        assert [sorted(sum(parts, [])) for parts in zip(*shares, strict=True)] == list(map(sorted, whole))


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    commands = {
        "check": lambda: check(*map(Path, words)),
        "apart": lambda: train_apart(Path(words[0]), *words[1:]),
        "fail": fail,
    }
    run_script(end_together(commands.get(command, lambda: train_until(command, *words))))
