"""A run's curves, for TensorBoard: `tensorboard --logdir runs`."""

from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def markdown(rows: Sequence[Sequence[Any]]) -> str:
    """A table, the first row of which is its head."""
    head, *lines = (f"| {' | '.join(map(str, row))} |\n" for row in rows)
    return "".join((head, "|---" * len(rows[0]) + "|\n", *lines))


class Logger:
    """Writes values over a run's steps into `folder`, each part of a run (train, val) into a folder of its own.

    The file of a part is begun with its first value. From that step on, TensorBoard leaves out what earlier files
    of the part hold: so a resumed run goes on with its curves, without a gap and without a double. A value is in
    the file when `add` returns, before any checkpoint of its step.
    """

    def __init__(self, folder: Path, constants: dict[str, Any], *, enabled: bool = True) -> None:
        self.folder, self.constants, self.enabled = folder, constants, enabled
        self.writers: dict[str, SummaryWriter] = {}

    def add(
        self,
        part: str,
        step: int,
        values: dict[str, float],
        grid: Image.Image | None = None,
        confusion: list[list[str]] | None = None,
    ) -> None:
        """Write the values after so many steps, the image `grid`, and the rows of a table."""
        if not self.enabled:
            return
        try:
            writer = self.writers.get(part) or self._begin(part, step)
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            if grid is not None:  # as a JPEG: add_image makes a PNG, whose checksum takes TensorBoard its time
                from tensorboard.compat.proto.summary_pb2 import Summary

                grid.save(encoded := BytesIO(), "JPEG", quality=85)
                content = {"height": grid.height, "width": grid.width, "encoded_image_string": encoded.getvalue()}
                summary = Summary(value=[Summary.Value(tag="grid", image=Summary.Image(**content))])
                writer.file_writer.add_summary(summary, step)
            if confusion is not None:
                writer.add_text("confusion", markdown(confusion), step)
            writer.flush()
        except OSError as error:  # no reason to stop: a full disk gets its refusal from the next checkpoint
            print(f"{self.folder} can't be written ({error.strerror or error}): the run goes on without curves")
            self.enabled = False

    def _begin(self, part: str, step: int) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter  # only here: its import takes a moment

        writer = self.writers[part] = SummaryWriter(self.folder / part, purge_step=step)
        if len(self.writers) == 1:
            writer.add_text("constants", markdown([("constant", "value"), *self.constants.items()]), step)
        return writer

    def close(self) -> None:
        """End the files."""
        for writer in self.writers.values():
            with suppress(OSError):
                writer.close()
