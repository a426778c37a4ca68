"""The one way to refuse bad input: raise BadInput anywhere, and the script ends with one line and status 2."""

import sys
from collections.abc import Callable
from pathlib import Path


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


def run_script(main: Callable[[], None]) -> None:
    """Call a script's `main`; BadInput becomes one line on standard error and exit status 2, and Ctrl-C status 130.

    Any other exception is a bug and keeps its traceback.
    """
    try:
        main()
    except BadInput as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
