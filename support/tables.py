"""Tables of a run's scores: scores.csv with a row for each image, and which class is taken for which."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor


def save_scores(
    scores: Mapping[str, Tensor], names: Sequence[str], folder: Path, confusion: list[list[str]] | None = None
) -> None:
    """Write `folder`/scores.csv from the scores of each image, (N,) of each kind, the image with the lowest of the
    first kind above, and the rows of a `confusion_table` into confusion.csv."""
    rows = sorted(zip(names, *(values.tolist() for values in scores.values()), strict=True), key=lambda row: row[1])
    _write_csv(folder / "scores.csv", [["name", *scores], *([name, *map(_cell, row)] for name, *row in rows)])
    if confusion is not None:
        _write_csv(folder / "confusion.csv", confusion)


def confusion_table(confusion: Tensor) -> list[list[str]]:
    """A row for each true class: the fractions of its pixels that are predicted as each class. The first row is the
    head."""
    fractions = (confusion / confusion.sum(1, keepdim=True)).tolist()
    head = ["target / predicted", *map(str, range(len(fractions)))]
    return [head, *([str(number), *map(_cell, row)] for number, row in enumerate(fractions))]


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
