"""Masks as text, in the form of Kaggle's Carvana competition.

A mask is a line that holds a start and a length for each run of foreground: "3 2 11 5". Pixels are counted from 1,
along rows from left to right and rows from top to bottom; nothing in the foreground is an empty line.
"""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from support.files import whole_file

CARVANA_SIZE = (1280, 1918)  # (height, width) of the competition's images


def encode(mask: np.ndarray) -> str:
    """The runs of a boolean (H, W) mask."""
    flat = np.zeros(mask.size + 2, bool)  # background before and behind, so that each run has two ends
    flat[1:-1] = mask.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges[1::2] -= edges[::2]  # ends to lengths
    return " ".join(map(str, edges.tolist()))


@contextmanager
def submission_rows(path: Path) -> Iterator[Any]:
    """A writer of Kaggle's rows into `path`, which appears when they are all there."""
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("img", "rle_mask"))
        yield rows
