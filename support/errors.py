"""The one way to refuse bad input: raise BadInput anywhere, and the script ends with one line and status 2."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

SHOWN = 20  # lines of findings that are told together

# What a machine can run out of: how the system says so, what it means, and what to do. Searched in this order.
LIMITS = {
    r"DataLoader worker \(pid.*(exited unexpectedly|is killed)|shared memory|</torch_|Too many open files": (
        "a process that reads images died",
        "Set NUM_WORKERS lower, or to 0, or allow more memory (in Docker, --shm-size 8g) or files (ulimit -n)",
    ),
    r"out of memory|allocate memory|MemoryError|not enough memory": (
        "out of memory",
        "Lower BATCH_SIZE, IMAGE_HEIGHT and IMAGE_WIDTH, or FEATURES",
    ),
    r"No space left|quota exceeded|File too large": (
        "the disk is full",
        "Make room; what was saved before is whole",
    ),
    r"C\+\+ compiler|C compiler|triton installation": (
        "COMPILE finds no compiler",
        "Install one (g++; on CUDA Triton, too), or leave COMPILE out",
    ),
}


class BadInput(ValueError):
    """Something a user gave that can't be used: what it is, what is wrong with it, and what to do.

    `subject` is a file, a folder or an option; `finding` and `remedy` are phrases without a full stop.
    """

    def __init__(self, subject: str | Path, finding: str = "", remedy: str = "") -> None:
        self.subject, self.finding, self.remedy = str(subject), finding, remedy
        line = f"{subject}: {finding}. {remedy}."
        if not finding:  # a DataLoader raises its worker's exception anew, from the text of its traceback
            line = str(subject).strip().rpartition("BadInput: ")[2]
        super().__init__(line if line.isprintable() else ascii(line)[1:-1])  # a file's name may hold a line break


@contextmanager
def explain_limits(subject: str = "reading images") -> Iterator[None]:
    """Make a BadInput of what the body raises where the machine has run out of something; `subject` is the work."""
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        text = f"{type(error).__name__}: {error}"
        for pattern, (finding, remedy) in LIMITS.items():
            if re.search(pattern, text, re.I):
                raise BadInput(subject, f"{finding} ({text.splitlines()[0].rstrip('. ')[:200]})", remedy) from error
        raise


def refuse(errors: Sequence[BadInput]) -> None:
    """Raise the only error, or all of them together: the first 20, a line each, and their number."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        together, cut = BadInput(""), len(errors) > SHOWN
        told = f"{len(errors)} findings in all" + f", of which these are the first {SHOWN}" * cut
        together.args = ("\n".join([*map(str, errors[:SHOWN]), told]),)
        raise together


def by_cause(errors: Sequence[BadInput]) -> list[BadInput]:
    """One for each cause: the first of its errors, with the number of others."""
    causes: dict[tuple[str, str], list[BadInput]] = {}
    for error in errors:
        own = re.sub(r"[\w ().-]+\.\w{2,4}\b|[\d.]+", "", error.finding)  # names of files, and numbers
        causes.setdefault((own, error.remedy), []).append(error)
    return [
        BadInput(e.subject, e.finding + f" (and {len(more)} like it)" * bool(more), e.remedy)
        for e, *more in causes.values()
    ]


def warn(subject: str | Path, finding: str, remedy: str) -> None:
    """Say in one line on standard error what may be wrong, and go on. The phrases are BadInput's. Of the processes
    that torchrun started, only the first says it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {BadInput(subject, finding, remedy)}", file=sys.stderr)


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`: a number in a sentence."""
    return f"{number} {noun}{'s' * (number != 1)}"


def exit_on_sigterm() -> None:
    """Have SIGTERM and SIGHUP end this process as tidily as Ctrl-C does, with status 128 + signal."""
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:  # Windows lacks the latter
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def _end_with_reader(stream: TextIO, method: Callable[..., Any]) -> Callable[..., Any]:
    """A stream's method, for which the end of whoever reads the stream is a SIGTERM."""

    def call(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            signal.raise_signal(signal.SIGTERM)

    return call


def run_script(main: Callable[[], None]) -> None:
    """Call a script's `main`; BadInput becomes one line on standard error and exit status 2, Ctrl-C status 130, and
    SIGTERM and SIGHUP 128 + signal.

    Any other exception is a bug and keeps its traceback. What the terminal can't show is printed with backslashes.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
            stream.write, stream.flush = (_end_with_reader(stream, f) for f in (stream.write, stream.flush))
    exit_on_sigterm()
    try:
        with explain_limits("this machine"):
            main()
    except BadInput as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
