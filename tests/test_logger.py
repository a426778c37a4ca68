import io
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_resume import interrupted

import train
from support.run import Run

Series = dict[str, list[tuple[int, float]]]


def read(folder: Path) -> tuple[EventAccumulator, Series]:
    """What TensorBoard makes of a folder: all of it, and its series by name."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    return events, {
        name: [(point.step, point.value) for point in events.Scalars(name)] for name in events.Tags()["scalars"]
    }


def next_second() -> None:
    """Event files are sorted by the second that they were begun in."""
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.05)


@pytest.fixture(scope="module")
def arguments() -> list[str]:
    return ["--BATCH_SIZE", "1", "--NUM_WORKERS", "0"]  # 12 steps an epoch: looks after 10 and 12


def test_a_run_draws_what_it_prints(folders, tmp_path, arguments, capsys, monkeypatch):
    losses, after_step = [], Run.after_step

    def keep_loss(self, loss):
        losses.append(loss.item())
        after_step(self, loss)

    monkeypatch.setattr(Run, "after_step", keep_loss)
    train.main([*folders, *arguments, "--OUT_DIR", str(tmp_path)])
    printed = [
        line for line in capsys.readouterr().out.splitlines() if ": dice" in line and "own sizes" not in line
    ]

    events, series = read(tmp_path / "runs/train")
    assert series.keys() == {"loss", "learning_rate", "scale"}
    steps = [10, 12, 22, 24]
    assert all([step for step, _ in curve] == steps for curve in series.values())
    means = [np.mean(losses[start:end]) for start, end in ((0, 10), (10, 12), (12, 22), (22, 24))]
    assert [value for _, value in series["loss"]] == pytest.approx(means, rel=1e-5)
    rates = [train.LEARNING_RATE * train.warmup_cosine(step / 24) for step in steps]
    assert [value for _, value in series["learning_rate"]] == pytest.approx(rates, rel=1e-5, abs=1e-9)
    table = events.Tensors("constants/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| BATCH_SIZE | 1 |" in table and "| FEATURES | [4, 8] |" in table

    events, series = read(tmp_path / "runs/val")
    assert {"loss", "dice", "iou"} <= series.keys()
    for name, curve in series.items():
        assert [step for step, _ in curve] == [12, 24]
        assert all(f"{name} {value:.4f}" in line for (_, value), line in zip(curve, printed, strict=True))
    for number, grid in enumerate(events.Images("grid")):
        drawn = np.asarray(Image.open(io.BytesIO(grid.encoded_image_string)))
        saved = np.asarray(Image.open(tmp_path / f"saved_images/epoch_{number + 1:03d}/grid.png"))
        assert drawn.shape == saved.shape and abs(drawn.astype(int) - saved).mean() < 3  # of 255: it is a JPEG


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Series]:
    return {}


@pytest.mark.parametrize("stop", [(0, 11), (0, 12), (1, 10)])
def test_a_resumed_run_goes_on_with_its_curves(folders, tmp_path, arguments, uninterrupted, monkeypatch, stop):
    def curves_of(out: Path) -> dict[str, Series]:
        return {part: read(out / "runs" / part)[1] for part in ("train", "val")}

    arguments = [*folders, *arguments]
    if not uninterrupted:
        train.main([*arguments, "--OUT_DIR", str(tmp_path / "whole")])
        uninterrupted |= curves_of(tmp_path / "whole")

    out, restore = tmp_path / "out", Run._restore
    latest, copy = out / "my_checkpoint.pth.tar", tmp_path / "copy"

    def keep_copy(self, state, name):
        shutil.copy(latest, copy)
        next_second()
        restore(self, state, name)

    monkeypatch.setattr(Run, "_restore", keep_copy)
    interrupted(arguments, out, [stop], monkeypatch)
    assert curves_of(out) == uninterrupted
    shutil.copy(copy, latest)  # as if the machine had died with what was saved last, but for the event files
    train.main([*arguments, "--OUT_DIR", str(out), "--LOAD_MODEL"])
    assert len(list((out / "runs/val").iterdir())) == 2 + (stop == (1, 10))  # what is left out is still there
    assert curves_of(out) == uninterrupted
