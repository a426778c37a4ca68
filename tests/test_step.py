"""Measuring settings of the step, small, with its real processes."""

import pytest
import torch

from benchmarks import step
from support.errors import BadInput

SMALL = ["--IMAGE_HEIGHT", "32", "--IMAGE_WIDTH", "48", "--FEATURES", "4", "8", "--REPEATS", "2", "--DEVICE", "cpu"]


def rows(table: str) -> dict[str, list[str]]:
    lines = (line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| "))
    return {name: rest for name, *rest in lines}


@pytest.mark.slow
def test_settings_are_compared(tmp_path):
    out = tmp_path / "table.md"
    step.main([*SMALL, "--ONLY", "float32", "--OUT", str(out)])
    found = rows(out.read_text())
    assert list(found) == ["setting", step.DEFAULT, "float32", "float32 without TF32"]
    for precision, *cells in list(found.values())[1:]:
        assert precision in ("float32", "bfloat16") and min(float(cell.split()[0]) for cell in cells) > 0
    assert found[step.DEFAULT][2] == "1.00" and found["float32"][0] == "float32"


def test_a_word_that_no_setting_has_is_refused_with_all_their_names():
    with pytest.raises(BadInput, match="nothing has 'nosuch' in its name. The names are: train.py's"):
        step.main(["--ONLY", "nosuch"])


@pytest.mark.slow
def test_the_times_of_a_step_and_their_bounds(capsys):
    step.main([*SMALL, "--ONLY", "bounds"])
    found = rows(capsys.readouterr().out)
    assert {"work", step.DEFAULT, *step.KINDS} < {*found} and "float32" not in found
    shares = {name: [float(cell) for cell in found[name]] for name in step.KINDS}
    assert sum(cells[1] for cells in shares.values()) == pytest.approx(100, abs=0.5)
    for kind in ("convolutions", "BatchNorm", "ReLU", "pooling", "matrix products, of the optimizer"):
        assert shares[kind][0] > 0, kind


def test_an_impossible_batch_is_a_line_of_the_table():
    options = step.ConstantParser(vars(step)).parse_args([*SMALL, "--BATCH_SIZE", str(2**40)])
    assert "memory" in step.measure(step.DEFAULT, options).error


def test_needs_are_counted_by_hand():
    conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad(), step.Needs() as needs:
        conv(images)
    assert needs.flop["convolutions"] == 2 * 2 * 8 * 16 * 16 * 3 * 9
    assert needs.bytes["convolutions"] == 4 * (2 * 3 * 256 + 8 * 3 * 9 + 2 * 8 * 256)


@pytest.mark.parametrize("limit", [0, 1, 2, 9, 100, 1000])
def test_the_largest_that_fits(limit):
    assert limit - limit // 16 <= step.largest(lambda number: number <= limit) <= limit
