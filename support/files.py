"""Files that are whole or not there, and folders that can be written to."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.errors import BadInput


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which gets the name `path` when all went well and is removed otherwise."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def writable_folder(folder: Path, remedy: str = "Give another --OUT_DIR") -> Path:
    """The folder, made where it is missing. Raises BadInput where it can't be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise BadInput(folder, f"can't be written to ({error.strerror})", remedy) from error
