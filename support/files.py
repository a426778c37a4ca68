"""Files that are whole or not there, and folders that can be written to."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.errors import BadInput


@contextmanager
def whole_file(path: Path, sync: bool = False, shared: bool = False) -> Iterator[Path]:
    """A file to write, which gets the name `path` when all went well and is removed otherwise. With `sync`, it is
    on the disk by then: otherwise a power cut could leave the new name on an empty file. A `shared` one may be
    written by several processes at once."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    part = path.with_name(f".{path.name}{f'.{os.getpid()}' * shared}.part")
    part.unlink(missing_ok=True)  # of a killed process: it may be a hard link to a file that must stay as it is
    try:
        yield part
        if sync:
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
        if sync and os.name == "posix":  # Windows syncs renames by itself
            with suppress(OSError):  # some file systems can't sync a folder
                descriptor = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
    finally:
        part.unlink(missing_ok=True)


def writable_folder(folder: Path, remedy: str = "Give another --OUT_DIR") -> Path:
    """The folder, made if it is missing. Raises BadInput if it can't be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise BadInput(folder, f"can't be written to ({error.strerror})", remedy) from error
