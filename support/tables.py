"""Tables of a run's scores: scores.csv with a row for each image, and which class is taken for which."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from utils import Scores, image_scores, score_counts


def save_scores(scores: Scores, names: Sequence[str], folder: Path) -> None:
    """Write `folder`/scores.csv, the worst image first, and of several classes confusion.csv."""
    counts = scores.counts
    columns = image_scores(counts)
    target = counts[..., 2] if counts.dim() == 2 else counts[:, 1:, 2].sum(1)
    columns["foreground"] = target / counts.flatten(1)[:, 3].clamp(min=1)  # fraction of the pixels
    if counts.dim() == 3:
        columns |= {f"dice/{number}": dice for number, dice in enumerate(score_counts(counts)["dice"].T)}
        if scores.confusion is not None:
            _write_csv(folder / "confusion.csv", confusion_table(scores.confusion))
    rows = sorted(zip(names, zip(*columns.values(), strict=True), strict=True), key=lambda row: row[1][0])
    _write_csv(folder / "scores.csv", [["name", *columns], *([name, *map(_cell, row)] for name, row in rows)])


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
