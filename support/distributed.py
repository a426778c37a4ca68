"""The processes of one run, as PyTorch's launcher `torchrun` starts them; `python train.py` is the case of one."""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from support.device import choose_device
from support.errors import BadInput

PATIENCE = timedelta(hours=12)  # with a process that fills a cache, say; one that died is noticed at once


@dataclass(frozen=True)
class Group:
    """The processes of a run, and which of them this one is. The defaults are those of a process alone, for which
    nothing below waits or changes anything.

    A process that ends takes the others with it: whatever they wait for next raises RuntimeError.
    """

    device: torch.device = torch.device("cpu")
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among the processes of its machine
    local_world_size: int = 1
    run_id: str = ""  # a name for one torchrun command, the same after a restart
    control: Any = None  # a gloo group beside the one that the gradients go through: it needs no GPU, and has time

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def all_gather(self, value: Any) -> list[Any]:
        """What each process gave, in their order. Waits for all."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, function: Callable[[], Any]) -> Any:
        """What `function` returns on rank 0, the only one to call it."""
        values = [function() if self.is_main else None]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def require_same_files(self, folder: str | Path, names: Iterable[str]) -> None:
        """Raise BadInput, on all ranks, if one found other `names` in a folder than rank 0 did: its machine holds
        other files, and an index would stand for different images."""
        mine = set(names)
        first = self.broadcast(lambda: mine)
        finding = ""
        if mine != first:
            what = f"lacks {min(first - mine)}" if first - mine else f"also holds {min(mine - first)}"
            finding = f"on {platform.node()} (process {self.rank}) it {what}, unlike where the first process is"
        if finding := max(self.all_gather(finding)):
            raise BadInput(folder, finding, "Give all machines the same files")

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run a block on rank 0, then on the first rank of each other machine, then on all others: what the first
        ones make on the disk, the others find there."""
        turn = 0 if self.is_main else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            self.all_gather(None)
        yield
        for _ in range(2 - turn):
            self.all_gather(None)

    def shard(self, count: int) -> range:
        """The indices out of `count` that this rank scores."""
        return range(self.rank, count, self.world_size)

    def describe_shards(self, count: int) -> str:
        """How many of a step's `count` images each process gets, in words; nothing for one process."""
        least, most = count // self.world_size, -(-count // self.world_size)
        each = f"{least}" if least == most else f"{least} or {most}"
        return "" if self.world_size == 1 else f" ({each} in each of {self.world_size} processes)"

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, each of which has those of its `shard`, in their order and on the CPU."""
        parts = self.all_gather(rows.cpu())
        longest = max(parts, key=len)  # a process without rows may not know their shape
        whole = longest.new_empty((sum(map(len, parts)), *longest.shape[1:]))
        for rank, part in enumerate(parts):
            whole[rank :: self.world_size] = part.view(-1, *whole.shape[1:])
        return whole

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of the processes' tensors, on the CPU; of equal ones it is just that."""
        return torch.stack(self.all_gather(tensor.cpu().double())).mean(0).to(tensor.dtype)

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give rank 0's BatchNorm statistics to all: its are scored and saved."""
        buffers = self.broadcast(lambda: [buffer.cpu() for buffer in model.buffers()])
        if not self.is_main:
            for buffer, value in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(value)

    def wrap(self, model: nn.Module, image: Tensor, sync_batchnorm: bool = False) -> nn.Module:
        """`model` for training: with each backward pass, the processes take the mean of their gradients. `image` is
        any (1, C, H, W) that it takes."""
        if self.world_size == 1:
            return model
        if sync_batchnorm and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place
        wrapped = DistributedDataParallel(model)
        # After its first backward pass DDP orders the gradients anew, which changes the rounding of three and more
        # processes. Here that pass is over before the first step, be it a run's first or one after an interruption.
        wrapped.eval()(image.to(self.device)).sum().backward()
        model.zero_grad()
        return wrapped.train()

    def mean_batch_size(self, batch_size: int) -> float | None:
        """The mean number of images that the processes have of a batch; None for one process. Losses are divided by
        it, so that the mean of the gradients is one over images even if shards differ by one."""
        return None if self.world_size == 1 else batch_size / self.world_size


ALONE = Group()
_store: dist.Store | None = None  # what the processes of a run can read and write even while one of them fails


def init_distributed(device: str = "auto") -> Group:
    """This process's place among those that torchrun started, each with a device of its own; or a process alone.

    Of several, only the first prints from here on.
    """
    global _store
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Group(choose_device(device))
    rank, size, local_rank, local_world_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    torchruns = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank == 0 and os.environ["TORCHELASTIC_USE_AGENT_STORE"] != "True",
        timeout=timedelta(minutes=30),
    )
    run_id = torchruns.compare_set("launch", "", uuid4().hex).decode()
    _store = dist.PrefixStore(_name_of_start(torchruns, rank, size), torchruns)
    if size == 1:
        return Group(choose_device(device), run_id=run_id)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cuda", "cpu"):
        raise BadInput(f"DEVICE {device}", f"one device for {size} processes", 'Use "auto", "cuda" or "cpu"')
    place = choose_device(f"cuda:{local_rank}" if device == "cuda" else device)
    if device == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=_store, rank=rank, world_size=size)
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lives
    return Group(place, rank, size, local_rank, local_world_size, run_id, control)


def _name_of_start(store: dist.Store, rank: int, size: int) -> str:
    """A name on which all processes agree, new with each restart.

    torchrun keeps one store for all of them, and PyTorch (2.15) would find there the addresses of processes that
    have died. Counts of restarts are no such name: each machine has its own. So each process leaves a token, and
    takes the name that the first one leaves for this token.
    """
    token = uuid4().hex
    if rank > 0:
        store.set(f"token {rank}", token)
        name = store.get(f"name for {token}").decode()  # waits for it
        store.set(f"{name} {rank}", "taken")
        return name
    while not all(store.check([f"{token} {other}"]) for other in range(1, size)):
        for other in range(1, size):  # the token may be of a process that has died: then there will be another
            store.set(f"name for {store.get(f'token {other}').decode()}", token)
        time.sleep(0.02)
    return token


def end_together(main: Callable[[], None]) -> Callable[[], None]:
    """`main` for `run_script`: however many processes a run has, it ends with one line about what went wrong."""

    def together() -> None:
        try:
            main()
        except BadInput:
            if _is_first_to_tell():
                raise
            sys.exit(2)
        except Exception as error:
            if not _is_loss_of_another(error):
                _leave_reason(error)
                raise
            if _is_first_to_tell():
                print(
                    f"another process of this run has ended{_reason()}, and so this one ends too", file=sys.stderr
                )
            sys.exit(1)
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    return together


def _is_loss_of_another(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error))


def _leave_reason(error: Exception) -> None:
    """Say in the store why this process ends, for the others that will miss it."""
    if _store is not None:
        reason = (f"{type(error).__name__}: {error}".strip(": ").splitlines() or [""])[0]
        with suppress(RuntimeError):  # torchrun may be gone, too
            _store.set("reason", f" (process {os.environ['RANK']}, {reason[:200]})")


def _reason() -> str:
    """Why another process has ended, in brackets, where it could still say so."""
    with suppress(RuntimeError):
        if _store is not None and _store.check(["reason"]):
            return _store.get("reason").decode()
    return ""


def _is_first_to_tell() -> bool:
    """Whether no other process of this start has asked before, as far as torchrun can still be reached."""
    if _store is None:  # what is wrong with the options is wrong in all processes
        return os.environ.get("RANK", "0") == "0"
    try:
        return _store.add("told", 1) == 1
    except RuntimeError:
        return True
