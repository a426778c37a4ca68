"""What "auto" chooses: the one place where the machine at hand matters."""

import pytest
import torch

from support import device
from support.device import choose_num_threads, choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "has, is_intel, expected",
    [
        (set(), True, torch.float32),
        ({"avx512_bf16"}, True, torch.float32),
        ({"avx512_bf16"}, False, torch.bfloat16),
        ({"avx512_bf16", "amx_tile"}, True, torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_on_a_cpu_that_is_faster_with_it(monkeypatch, has, is_intel, expected):
    assert choose_precision("auto", CPU) in (torch.float32, torch.bfloat16)  # this machine has an answer
    monkeypatch.setattr(device, "_cpu_can", has.__contains__)
    monkeypatch.setattr(device, "_cpu_is_intel", lambda: is_intel)
    assert choose_precision("auto", CPU) == expected
    assert choose_precision("float32", CPU) == torch.float32
    assert choose_precision("bfloat16", CPU) == (torch.bfloat16 if has else torch.float32)


def test_the_faster_number_of_threads_is_chosen_and_nothing_else_changes(monkeypatch):
    class Slow(torch.nn.Conv2d):
        """A network that takes as many seconds as the clock says: one a step with this many threads."""

        slow = 2

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            now[0] += 1.0 if torch.get_num_threads() == self.slow else 0.5
            return super().forward(images)

    now, model = [0.0], torch.nn.Sequential(Slow(3, 1, 1), torch.nn.BatchNorm2d(1))
    model.arguments = {"in_channels": 3}
    monkeypatch.setattr(device.time, "perf_counter", lambda: now[0])
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        for Slow.slow, fast in ((2, 1), (1, 2)):
            assert choose_num_threads("auto", model, torch.float32, (8, 8), 2) == fast
            assert torch.get_num_threads() == 2
        assert choose_num_threads(3, model, torch.float32, (8, 8), 2) == 3
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
