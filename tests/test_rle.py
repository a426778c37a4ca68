import numpy as np
import pytest

from support.rle import encode


def decode(text: str, size: tuple[int, int]) -> np.ndarray:
    """The boolean mask of (height, width) that has these runs."""
    mask, numbers = np.zeros(size, bool), [int(word) for word in text.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        mask.ravel()[start - 1 : start - 1 + length] = True
    return mask


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
    assert encode(np.array([[character == "#" for character in row] for row in rows])) == runs


def test_round_trip():
    rng = np.random.default_rng(0)
    for size in ((1, 1), (1, 9), (9, 1), (13, 17), (64, 96)):
        for share in (0.02, 0.5, 0.98):
            mask = rng.random(size) < share
            assert (decode(encode(mask), size) == mask).all()
