"""Signals: which process answers them, and how a script ends by one."""

import atexit
import multiprocessing
import signal
import sys


def exit_on_sigterm() -> None:
    """Have SIGTERM end this process as tidily as Ctrl-C does, with status 143."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def ignore_signals_in_worker(worker: int) -> None:
    """Have a loader's worker ignore SIGINT and SIGTERM, which can reach a run's whole group: the run still needs it
    for the step that it finishes before it saves. Together with `kill_workers_at_exit`, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def kill_workers_at_exit() -> None:
    """Have the workers of this process's loaders killed at its end, when Python would wait for them for ever."""
    atexit.unregister(_kill_workers)
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the loader's own handler would take it for an accident
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
