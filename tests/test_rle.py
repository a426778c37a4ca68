import numpy as np
import pytest
from PIL import Image

from support.errors import BadInput
from support.rle import CARVANA_SIZE, decode, encode


@pytest.mark.parametrize(
    "rows, runs",
    [
        (["....", "...."], ""),
        (["####", "####"], "1 8"),
        (["#...", "...."], "1 1"),
        (["....", "...#"], "8 1"),
        ([".##.", ".##."], "2 2 6 2"),
        (["..##", "##.."], "3 4"),  # a run goes on in the next row
        (["#.#.", ".#.#"], "1 1 3 1 6 1 8 1"),
    ],
)
def test_by_hand(rows, runs):
    mask = np.array([[character == "#" for character in row] for row in rows])
    assert encode(mask) == runs
    assert (decode(runs, mask.shape) == mask).all()


def test_round_trip_and_a_plain_reference():
    rng = np.random.default_rng(0)
    for size in ((1, 1), (1, 9), (9, 1), (13, 17), (64, 96)):
        for share in (0.02, 0.5, 0.98):
            mask = rng.random(size) < share
            expected, before = [], False
            for number, value in enumerate(mask.ravel().tolist(), start=1):
                if value and before:
                    expected[-1] += 1
                elif value:
                    expected += [number, 1]
                before = value
            assert encode(mask) == " ".join(map(str, expected))
            assert (decode(encode(mask), size) == mask).all()


@pytest.mark.parametrize("text", ["1", "1 x", "0 3", "1 0", "5 5", "9 1", "-1 2", "99999999999999999999 1"])
def test_runs_that_dont_fit(text):
    with pytest.raises(BadInput):
        decode(text, (2, 4))


def test_round_trip_of_real_masks(carvana):
    paths = sorted((carvana / "val_masks").iterdir())[::8]
    for path in paths:
        mask = np.asarray(Image.open(path).convert("L")) > 127
        assert mask.shape == CARVANA_SIZE
        assert (decode(encode(mask), CARVANA_SIZE) == mask).all()
    assert len(paths) == 12
