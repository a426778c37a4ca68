"""A script's UPPER_CASE constants, each of which the command line can set for one run.

`python train.py --BATCH_SIZE 8` runs with another value and leaves the file alone; `--help` shows every
constant with its default and the comment that stands beside it.
"""

import argparse
import ast
import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from support.errors import BadInput

Rule = tuple[Callable[[Any], bool], str]


def _at_least(least: int, auto: bool = False) -> Rule:
    told = f"{least} or more" + ', or "auto"' * auto
    return lambda v: (auto and v == "auto") or (isinstance(v, int) and v >= least), told


def _all_from_1(values: Sequence[Any]) -> bool:
    return len(values) > 0 and all(isinstance(n, int) and n >= 1 for n in values)


# What a constant's value must be, by name: a test, and how to say it. Holds for the file and the command line.
RULES: dict[str, Rule] = {
    **dict.fromkeys(("MIN_STEPS", "ACCUMULATION_STEPS", "STEPS", "REPEATS"), _at_least(1)),
    **dict.fromkeys(("PATIENCE", "CROP", "NUM_SAVED_IMAGES", "EPOCH_IMAGES", "FULL_SIZE_EVERY"), _at_least(0)),
    **dict.fromkeys(("IMAGE_HEIGHT", "IMAGE_WIDTH"), (lambda v: v == "auto" or v >= 1, "1 or more")),
    **dict.fromkeys(("BATCH_SIZE", "NUM_EPOCHS"), _at_least(1, auto=True)),
    "NUM_WORKERS": _at_least(0, auto=True),
    "NUM_THREADS": (lambda v: v == "auto" or (isinstance(v, int) and 1 <= v <= 1024), '1 to 1024, or "auto"'),
    "LEARNING_RATE": (lambda v: 0 < v < math.inf, "a positive number"),
    "SAVE_MINUTES": (lambda v: v > 0, "more than 0"),
    "TIME_LIMIT": (lambda v: 0 <= v < math.inf, "minutes, or 0 for none"),
    "THRESHOLD": (lambda v: 0 < v < 1, "a number between 0 and 1"),
    "PROGRESSIVE_RESIZING": (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "FEATURES": (lambda v: v == "auto" or _all_from_1(v), 'one or more numbers from 1 up, or "auto"'),
    "NUM_CLASSES": (lambda v: v == "auto" or 1 <= v <= 255, "1 for foreground alone, or 2 to 255"),
    "IN_CHANNELS": (lambda v: v == "auto" or v >= 1, "1 for gray, 3 for RGB, or another number of channels"),
    "RANGE": (lambda v: v == "auto" or 0 <= v <= 65535, "the highest value of 16 bits, or 0 for 65535"),
    "IGNORE_INDEX": (lambda v: 0 <= v <= 255, "0 to 255"),
    "SEED": (lambda v: 0 <= v < 2**63, "0 or more"),
    "VIEWS": (lambda v: v in (1, 2, 4, 8), "1, 2, 4 or 8"),
    "PRECISION": (lambda v: v in ("auto", "float32", "float16", "bfloat16"), "auto, float32, float16 or bfloat16"),
    "PARTS": (lambda v: {*v} <= {"reading", "step", "epoch"}, "reading, step or epoch"),
}
SET_BY_SPLIT = {"NUM_CLASSES": 1, "IN_CHANNELS": 3, "RANGE": 65535}  # without split's dataset.json
LISTS = {"FEATURES", "CHECKPOINT"}  # constants that take several values, even if the default is "auto"
RENAMED = {  # options of earlier versions
    "--ACCUMULATE": "--ACCUMULATION_STEPS",
    "--HALF_SIZE_SHARE": "--PROGRESSIVE_RESIZING",
    "--FLIP": "--VIEWS 2",
    "--NUM_PICTURES": "--NUM_SAVED_IMAGES",
    "--cache_dir": "--CACHE_DIR",
    "--num_classes": "--NUM_CLASSES",
    "--ignore_index": "--IGNORE_INDEX",
}
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class OptionParser(argparse.ArgumentParser):
    """An ArgumentParser that refuses with one line that names the nearest option, not with the whole usage."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        words = list(sys.argv[1:] if args is None else args)
        self._refuse_misspelt(words)
        parse = self.parse_known_args if self._subparsers else self.parse_known_intermixed_args
        options, unknown = parse(words, namespace)
        if unknown:
            raise BadInput(unknown[0], "not expected here", "--help lists the options")
        return options

    def _refuse_misspelt(self, words: Sequence[str]) -> None:
        """Refuse a command or an option that isn't there, before argparse misses something else for want of it."""
        options = self._names()
        named = [word for word in words if not word.startswith("-")]
        if self._subparsers and named:
            commands = self._subparsers._group_actions[0].choices
            _must_be_among(named[0], commands, "command")
            options += commands[named[0]]._names()
        for word in takewhile("--".__ne__, words):
            if re.match("--?[A-Za-z]", word):  # and no negative number
                _must_be_among(word.partition("=")[0], options, "option")

    def error(self, message: str) -> NoReturn:
        raise BadInput(self.prog, message, "--help lists the options")

    def _names(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def _must_be_among(name: str, known: Iterable[str], kind: str) -> None:
    """Raise BadInput where `name` is not one of the names, and suggest the nearest."""
    if name not in known:
        if RENAMED.get(name, "").partition(" ")[0] in known:
            raise BadInput(name, "has another name now", f"Give {RENAMED[name]}")
        spelt = {word.upper(): word for word in known if word not in ("-h", "--help")}
        near = difflib.get_close_matches(name.upper(), spelt, n=1)
        remedy = f"Perhaps you meant {spelt[near[0]]}" if near else f"--help lists the {kind}s"
        raise BadInput(name, f"no such {kind}", remedy)


class ConstantParser(OptionParser):
    """An OptionParser that knows every constant of a script, given as the script's `globals()`.

    A constant is an upper-case name with a bool, int, float, str or list of these. `parse_args` returns a
    Namespace that holds the values in force. With `add_argument`, a script takes files too, before, between or
    after its options.
    """

    def __init__(self, script: dict[str, Any]) -> None:
        super().__init__(prog=Path(script["__file__"]).name, description=script["__doc__"])
        meanings = _comments(Path(script["__file__"]))
        self.constants = {n: v for n, v in script.items() if n in meanings and n.isupper()}
        for name, value in self.constants.items():
            meaning = f"{meanings[name]} (default: {value!r})".replace("%", "%%")
            conversion = _conversion(value) | ({"nargs": "+"} if name in LISTS else {})
            self.add_argument(f"--{name}", default=value, help=meaning, metavar="", **conversion)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        words = list(sys.argv[1:] if args is None else args)
        if self._get_positional_actions():  # in `--OVERLAY photo.jpg` the image is not OVERLAY's value
            for i, (word, following) in enumerate(zip(words, [*words, ""][1:], strict=True)):
                is_flag = word.startswith("--") and isinstance(self.constants.get(word[2:]), bool)
                if is_flag and following.lower() not in BOOLEANS:
                    words[i] += "=True"
        options = super().parse_args(words, namespace)
        for name in LISTS & self.constants.keys():
            if getattr(options, name) == ["auto"]:
                setattr(options, name, "auto")
        for name in self.constants:
            if name in RULES and not _holds(RULES[name][0], value := getattr(options, name)):
                raise BadInput(name, f"{value!r} can't be used", f"Give {RULES[name][1]}")
        return options


def settle_classes(options: argparse.Namespace) -> None:
    """Give NUM_CLASSES, IN_CHANNELS and RANGE, if they are "auto", what dataset.json beside the training images'
    folder has for them, which `prepare_data.py split` writes; without it 1, 3 and 65535."""
    file = Path(options.TRAIN_IMG_DIR).parent / "dataset.json"
    for name, default in SET_BY_SPLIT.items():
        if getattr(options, name) != "auto":
            continue
        try:
            value = json.loads(file.read_text(encoding="utf-8")).get(name, default) if file.exists() else default
        except (OSError, ValueError, AttributeError) as error:
            raise BadInput(file, f"can't be read ({error})", "Correct or remove it") from error
        if type(value) is not int or not RULES[name][0](value):
            raise BadInput(file, f"{name} {value!r} can't be used", f"Give {RULES[name][1]}")
        setattr(options, name, value)
    options.RANGE = options.RANGE or SET_BY_SPLIT["RANGE"]


def _holds(rule: Callable[[Any], bool], value: Any) -> bool:
    try:
        return rule(value)
    except TypeError:  # a number was expected and the file says otherwise
        return False


def _comments(path: Path) -> dict[str, str]:
    """The comment on the line of each top-level `NAME = literal`."""
    source = path.read_text(encoding="utf-8")
    lines, comments = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            rest = lines[node.end_lineno - 1][node.end_col_offset :]
            comments[node.targets[0].id] = re.sub(r"^\s*#\s*", "", rest)
    return comments


def _conversion(value: Any) -> dict[str, Any]:
    """How argparse is to read a constant with this default."""
    if isinstance(value, bool):
        return {"type": _to_bool, "nargs": "?", "const": True}  # --LOAD_MODEL alone means True
    if isinstance(value, list | tuple):
        return {"type": type(value[0]), "nargs": "+"}
    if value == "auto":
        return {"type": lambda text: int(text) if re.fullmatch(r"[+-]?\d+", text) else text}
    return {"type": type(value)}


def _to_bool(text: str) -> bool:
    if text.lower() not in BOOLEANS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return BOOLEANS[text.lower()]
