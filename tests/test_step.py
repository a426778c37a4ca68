"""Measuring settings of the step, small, with its real processes."""

import pytest

from benchmarks import step
from support.errors import BadInput

SMALL = ["--IMAGE_HEIGHT", "32", "--IMAGE_WIDTH", "48", "--FEATURES", "4", "8", "--REPEATS", "2", "--DEVICE", "cpu"]


def rows(table: str) -> dict[str, list[str]]:
    lines = (line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| "))
    return {name: rest for name, *rest in lines}


def test_settings_are_compared(tmp_path):
    out = tmp_path / "table.md"
    step.main([*SMALL, "--ONLY", "fused", "--OUT", str(out)])
    found = rows(out.read_text())
    assert list(found) == ["setting", step.DEFAULT, "AdamW, fused"]
    for cells in list(found.values())[1:]:
        rate, times, share, memory, first = (float(cell.split()[0]) for cell in cells)
        assert min(rate, times, share, memory, first) > 0
    assert found[step.DEFAULT][1] == "1.00"
    with pytest.raises(BadInput, match="nothing has 'nosuch' in its name. The names are: train.py's"):
        step.main(["--ONLY", "nosuch"])


def test_what_bounds_a_step_can_be_asked_for_alone(capsys):
    step.main([*SMALL, "--ONLY", "bounds"])
    found = rows(capsys.readouterr().out)
    assert {step.DEFAULT, *step.KINDS} < {*found} and "float32" not in found


def test_an_impossible_batch_is_a_line_of_the_table():
    parser = step.ConstantParser(vars(step))
    options = parser.parse_args([*SMALL, "--BATCH_SIZE", str(2**40)])
    assert "memory" in step.measure(step.DEFAULT, options).error


def test_the_times_of_a_step_and_their_bounds():
    options = step.ConstantParser(vars(step)).parse_args(SMALL)
    found = rows("\n".join(step.find_bounds(options)))
    assert {*found} == {"work", *step.KINDS}
    shares = {name: [float(cell) for cell in cells] for name, cells in found.items() if name != "work"}
    assert sum(cells[1] for cells in shares.values()) == pytest.approx(100, abs=0.5)
    for kind in ("convolutions", "BatchNorm", "ReLU", "pooling", "matrix products, of the optimizer"):
        assert shares[kind][0] > 0, kind


def test_needs_are_counted_by_hand():
    conv = step.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    images = step.torch.rand(2, 3, 16, 16)
    with step.torch.no_grad(), step.Needs() as needs:
        conv(images)
    assert needs.flop["convolutions"] == 2 * 2 * 8 * 16 * 16 * 3 * 9
    assert needs.bytes["convolutions"] == 4 * (2 * 3 * 256 + 8 * 3 * 9 + 2 * 8 * 256)


@pytest.mark.parametrize("limit", [0, 1, 2, 9, 100, 1000])
def test_the_largest_that_fits(limit):
    found = step.largest(lambda number: number <= limit)
    assert limit - limit // 16 <= found <= limit
