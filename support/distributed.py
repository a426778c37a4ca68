"""The processes of one run, as PyTorch's launcher `torchrun` starts them; `python train.py` is the case of one."""

import os
import platform
import sys
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
        found = self.all_gather((platform.node(), set(names)))
        for rank, (machine, there) in enumerate(found):
            if differing := there ^ found[0][1]:
                finding = f"on {machine} (process {rank}) it differs from process 0's in {min(differing)}"
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

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, each of which has those of its `shard`, in their order and on the CPU."""
        whole = torch.cat(self.all_gather(rows.cpu()))
        order = [index for rank in range(self.world_size) for index in range(rank, len(whole), self.world_size)]
        return whole[torch.tensor(order).argsort()]

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of the processes' tensors, on the CPU; of equal ones it is just that."""
        return torch.stack(self.all_gather(tensor.cpu().double())).mean(0).to(tensor.dtype)

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give rank 0's BatchNorm statistics to all: its are scored and saved."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, model: nn.Module, image: Tensor, sync_batchnorm: bool = False) -> nn.Module:
        """`model` for training: with each backward pass, the processes take the mean of their gradients. `image` is
        any (1, C, H, W) that it takes."""
        if self.world_size == 1:
            return model
        if sync_batchnorm and self.device.type == "cuda":
            synchronize_batchnorm(model)
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


def synchronize_batchnorm(model: nn.Module) -> None:
    """Make all of a model's BatchNorm synchronize, in place."""
    from timm.layers import convert_sync_batchnorm  # PyTorch's would lose the activations that timm's BatchNorm has

    convert_sync_batchnorm(model)


ALONE = Group()
_store: dist.Store | None = None  # what the processes of a start can use even while one of them fails


def init_distributed(device: str = "auto") -> Group:
    """This process's place among those that torchrun started, each with a device of its own; or a process alone.

    Of several, only the first prints from here on.
    """
    global _store
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Group(choose_device(device))
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, size, local_rank, local_world_size = (int(os.environ[name]) for name in names)
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "False"  # else torchrun does
    store = dist.TCPStore(*address, is_master=hosts, timeout=timedelta(minutes=30))
    run_id = store.compare_set("run id", "", uuid4().hex).decode()
    # torchrun's store outlives a restart, and PyTorch would find there the addresses of processes that have died.
    _store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    if size == 1:
        return Group(choose_device(device), run_id=run_id)
    if device not in ("auto", "cuda", "cpu"):
        raise BadInput(f"DEVICE {device}", f"one device for {size} processes", 'Use "auto", "cuda" or "cpu"')
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    place = choose_device(f"cuda:{local_rank}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if cuda else "gloo", store=_store, rank=rank, world_size=size)
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lives
    return Group(place, rank, size, local_rank, local_world_size, run_id, control)


def end_together(main: Callable[[], None]) -> Callable[[], None]:
    """`main` for `run_script`: the first process to fail tells why, and those that miss it then end in silence."""

    def together() -> None:
        try:
            main()
        except Exception as error:
            # Before there is a store: what is wrong with the options is wrong in all processes.
            first = os.environ.get("RANK", "0") == "0"
            with suppress(RuntimeError):  # torchrun, and its store, may be gone
                first = _store.add("failed", 1) == 1 if _store is not None else first
            if isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error)):
                if first:  # it was killed
                    print("another process of this run has ended, and so this one ends too", file=sys.stderr)
                sys.exit(1)
            if first or not isinstance(error, BadInput):
                raise
            sys.exit(2)
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    return together
