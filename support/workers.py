"""The processes of a DataLoader: their signals and their end."""

import atexit
import multiprocessing
import signal

ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows lacks the last


def init_worker(worker: int) -> None:
    """Have a loader's worker ignore signals that can reach a run's whole group: the run still needs it for the step
    that it finishes before it saves. Together with `kill_workers_at_exit`, which ends it."""
    for name in ENDINGS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


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
