"""A script's UPPER_CASE constants, each of which the command line can set for one run.

`python train.py --BATCH_SIZE 8` runs with another value and leaves the file alone; `--help` shows every
constant with its default and the comment that stands beside it.
"""

import argparse
import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from support.errors import BadInput

Rule = tuple[Callable[[Any], bool], str]


def _whole(least: int, most: int = 2**63 - 1, *, auto: bool = False, several: bool = False) -> Rule:
    """A whole number, or `several`, or "auto" instead."""

    def holds(value: Any) -> bool:
        numbers = value if several and isinstance(value, list) else [value]
        whole = bool(numbers) and all(isinstance(n, int) and least <= n <= most for n in numbers)
        return whole or (auto and value == "auto")

    told = f"{least} or more" if most == 2**63 - 1 else f"{least} to {most}"
    return holds, told + ', or "auto"' * auto


def _real(test: Callable[[float], bool], told: str) -> Rule:
    return lambda value: isinstance(value, int | float) and test(value), told


def _among(*choices: Any) -> Rule:
    told = " or ".join(map(str, choices))
    return lambda value: {*(value if isinstance(value, list) else [value])} <= {*choices}, told


# What a constant's value must be, by name: a test, and how to say it. Holds for the file and the command line.
RULES: dict[str, Rule] = {
    **dict.fromkeys(("MIN_STEPS", "ACCUMULATION_STEPS", "STEPS", "REPEATS"), _whole(1)),
    **dict.fromkeys(
        ("BATCH_SIZE", "NUM_EPOCHS", "IMAGE_HEIGHT", "IMAGE_WIDTH", "IN_CHANNELS"), _whole(1, auto=True)
    ),
    **dict.fromkeys(("PATIENCE", "CROP", "NUM_SAVED_IMAGES", "EPOCH_IMAGES", "FULL_SIZE_EVERY", "SEED"), _whole(0)),
    "FEATURES": _whole(1, auto=True, several=True),
    "NUM_WORKERS": _whole(0, auto=True),
    "NUM_THREADS": _whole(1, 1024, auto=True),
    "NUM_CLASSES": _whole(1, 255, auto=True),
    "RANGE": _whole(1, 65535, auto=True),
    "IGNORE_INDEX": _whole(0, 255),
    "LEARNING_RATE": _real(lambda v: 0 < v < math.inf, "a positive number"),
    "SAVE_MINUTES": _real(lambda v: v > 0, "more than 0"),
    "TIME_LIMIT": _real(lambda v: 0 <= v < math.inf, "minutes, or 0 for none"),
    "THRESHOLD": _real(lambda v: 0 < v < 1, "a number between 0 and 1"),
    "PROGRESSIVE_RESIZING": _real(lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "VIEWS": _among(1, 2, 4, 8),
    "PRECISION": _among("auto", "float32", "float16", "bfloat16"),
    "PARTS": _among("reading", "step", "epoch"),
}
SET_BY_SPLIT = {"NUM_CLASSES": 1, "IN_CHANNELS": 3, "RANGE": 65535}  # without split's dataset.json
LISTS = {"FEATURES", "CHECKPOINT"}  # constants that take several values, even if the default is "auto"
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class OptionParser(argparse.ArgumentParser):
    """An ArgumentParser that refuses with one line, not with the whole usage, and names the nearest option."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        parse = self.parse_known_args if self._subparsers else self.parse_known_intermixed_args
        options, unknown = parse(args, namespace)
        if unknown:
            parser = self
            if self._subparsers:
                (commands,) = self._subparsers._group_actions
                parser = commands.choices[getattr(options, commands.dest)]
            name, known = unknown[0].partition("=")[0], {o.upper(): o for o in parser._option_string_actions}
            near = difflib.get_close_matches(name.upper(), known, n=1)
            remedy = f"Perhaps you meant {known[near[0]]}" if near else "--help lists the options"
            raise BadInput(name, "no such option", remedy)
        return options

    def error(self, message: str) -> NoReturn:
        raise BadInput(self.prog, message, "--help lists the options")


class ConstantParser(OptionParser):
    """An OptionParser that knows every constant of a script, given as the script's `globals()`.

    A constant is an upper-case name with a bool, int, float, str or list of these. `parse_args` returns a
    Namespace that holds the values in force. With `add_argument`, a script takes files too, before, between or
    after its options.
    """

    def __init__(self, script: dict[str, Any]) -> None:
        super().__init__(prog=Path(script["__file__"]).name, description=script["__doc__"])
        source = Path(script["__file__"]).read_text(encoding="utf-8")
        meanings = dict(re.findall(r"^([A-Z_]+) = [^#\n]*#? *(.*)$", source, re.M))  # the comment on its line
        self.constants = {n: v for n, v in script.items() if n in meanings}
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
            if name in RULES and not RULES[name][0](value := getattr(options, name)):
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
