"""Make and check the folders that train.py reads: train_images, train_masks, val_images and val_masks.

    python prepare_data.py sample                     # render a sample set of cars into data/sample/
    python prepare_data.py check photos/ masks/       # say what they hold, and everything that is wrong with them
    python prepare_data.py split photos/ masks/       # share out your own images and masks into data/
    python prepare_data.py carvana                    # share out Kaggle's train.zip and train_masks.zip

Each says with --help what it takes.
"""

import contextlib
import filecmp
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from support.carvana import TUTORIAL_CARS, Member, find_carvana
from support.errors import BadInput, counted, run_script
from support.options import OptionParser
from support.pairs import CARVANA_NAME, find_pairs
from support.reading import Classes

FOLDERS = ("train_images", "train_masks", "val_images", "val_masks")
DEFAULT_DIRS = tuple(f"data/{name}/" for name in FOLDERS)
SAMPLE_DIR = Path("data/sample")

File = Path | Member  # on the disk, or in an archive
Pair = tuple[File, File]  # a image and its mask


def sample_if_empty(dirs: Sequence[str], num_classes: int = 1) -> Sequence[str]:
    """`dirs` (images and masks of training, then of validation), or the sample set's where they are the default
    ones and hold no training images yet. The sample set is rendered on first use, with masks of `num_classes`,
    of which it has up to 4."""
    empty = not any(entry for entry in _entries(dirs[0]) if not entry.startswith("."))
    if tuple(dirs) != DEFAULT_DIRS or not empty:
        return dirs
    num_classes = min(num_classes, 4)
    folder = SAMPLE_DIR if num_classes == 1 else Path(f"{SAMPLE_DIR}_{num_classes}_classes")
    print(f"{dirs[0].rstrip('/')} is empty: training on rendered cars in {folder} instead (see README.md)")
    if not _entries(folder):
        from support.sample import make_sample

        make_sample(folder, num_classes=num_classes)
    return [str(folder / name) for name in FOLDERS]


def _entries(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def split(
    images: str, masks: str, out: str, share: float, seed: int, group: str | None = None, move: bool = False
) -> None:
    """Share out the pairs of two folders into four under `out`, each group wholly on one side.

    `share` is the share of groups for validation. A group is a car in Carvana's names, else one image;
    with `group` it is the part of a name before the last `group`. Files are hard-linked (copied where that
    can't be done), or moved. What an interrupted split has placed stays there; raises BadInput, with nothing
    done, where a target folder holds any other file.
    """
    groups = by_group(find_pairs(images, masks), images, group)
    _share_out(groups, _choose(groups, share, seed), out, move)


def carvana(images: str, masks: str, out: str, share: float, seed: int, like_tutorial: bool = False) -> None:
    """Share out Kaggle's archives, or folders unpacked from them, as `split` does.

    With `like_tutorial`, validation gets the tutorial's three cars. Each file is checked against its checksum in
    the archive, those that an earlier, interrupted start has unpacked too.
    """
    groups = by_group(find_carvana(images, masks), images)
    if like_tutorial and (missing := set(TUTORIAL_CARS) - groups.keys()):
        raise BadInput("--like-tutorial", f"{images} lacks the car {min(missing)}", "Give all of train.zip")
    val_groups = set(TUTORIAL_CARS) if like_tutorial else _choose(groups, share, seed)
    _share_out(groups, val_groups, out)


def by_group(pairs: Sequence[Pair], source: str, separator: str | None = None) -> dict[str, list[Pair]]:
    """The pairs by what has to stay on one side: see `split`."""
    groups: dict[str, list[Pair]] = {}
    for image, mask in pairs:
        car = CARVANA_NAME.match(image.stem)
        name = image.stem.rpartition(separator)[0] if separator else car[1] if car else image.stem
        groups.setdefault(name or image.stem, []).append((image, mask))
    if len(groups) < 2:
        remedy = "Give more, or --group another separator"
        raise BadInput(source, f"one group of {counted(len(pairs), 'image')}", remedy)
    return groups


def _choose(groups: dict[str, Any], share: float, seed: int) -> set[str]:
    """The groups for validation: a share of them, but at least one, and not all."""
    if not 0 < share < 1:
        raise BadInput("--share", f"{share} can't be used", "Give a number between 0 and 1")
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    return set(names[: min(len(names) - 1, max(1, round(share * len(names))))])


def _share_out(groups: dict[str, list[Pair]], val_groups: set[str], out: str, move: bool = False) -> None:
    """Place every file that isn't there yet into the four folders under `out`."""
    # Masks come first: should it be interrupted, no training takes the half for the whole without a word.
    folders = [Path(out, name) for name in ("train_masks", "val_masks", "train_images", "val_images")]
    plan: dict[Path, dict[str, File]] = {folder: {} for folder in folders}
    for name, members in groups.items():
        side = "val" if name in val_groups else "train"
        for image, mask in members:
            plan[Path(out, f"{side}_images")][image.name] = image
            plan[Path(out, f"{side}_masks")][mask.name] = mask

    todo = []
    for folder, files in plan.items():
        there = {entry for entry in _entries(folder) if not entry.startswith(".")}
        for entry in sorted(there):
            if entry not in files or not _is_at(files[entry], folder / entry):
                raise BadInput(folder, f"already holds files ({entry})", "Move them away or give another --out")
        todo += [(file, folder / entry) for entry, file in files.items() if entry not in there]
    for file, target in tqdm(todo, desc=f"filling {out}", unit="files", delay=1):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(file, target)
        except OSError as error:
            remedy = "Make room and start it again: what is there stays"
            raise BadInput(target, f"can't be written ({error.strerror})", remedy) from error
    if move:
        for file in (file for files in plan.values() for file in files.values()):
            file.unlink()

    val = sum(len(groups[name]) for name in val_groups)
    print(f"{counted(sum(map(len, groups.values())) - val, 'image')} for training, {val} for validation")
    print(f"{counted(len(groups) - len(val_groups), 'group')} for training, {len(val_groups)} for validation")
    if Path(out) != Path("data"):
        options = zip(("TRAIN_IMG", "TRAIN_MASK", "VAL_IMG", "VAL_MASK"), FOLDERS, strict=True)
        words = (f"--{which}_DIR {Path(out, name)}" for which, name in options)
        print("to train with them: python train.py", *words)


def _is_at(file: File, target: Path) -> bool:
    if isinstance(file, Member):
        return file.is_at(target)
    if not target.exists():  # a broken link
        return False
    return os.path.samefile(file, target) or filecmp.cmp(file, target, shallow=False)


def _place(file: File, target: Path) -> None:
    """Put a file where it belongs, whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    if isinstance(file, Member):
        part.write_bytes(file.read())
    else:
        if not os.path.isfile(file):
            raise BadInput(file, "a broken link, a pipe or a device", "Replace or remove it")
        with contextlib.suppress(OSError):  # another disk, or a file system without hard links
            os.link(os.path.realpath(file), target)  # of a symbolic link, the file itself
            return
        shutil.copy2(file, part)
    os.replace(part, target)


def main(argv: list[str] | None = None) -> None:
    """Run the command that `argv` names."""
    parser = OptionParser(prog="prepare_data.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("sample", help="render a sample set of cars")
    command.add_argument("--out", default=str(SAMPLE_DIR), help="a new folder (default: %(default)s)")
    command.add_argument(
        "--train_cars", type=int, default=6, help="cars to train on, 16 views each (default: %(default)s)"
    )
    command.add_argument("--val_cars", type=int, default=2, help="cars to score on (default: %(default)s)")
    command.add_argument(
        "--num_classes", type=int, default=1, choices=(1, 2, 3, 4), help="3 tells wheels apart, 4 windows, too"
    )

    command = commands.add_parser("check", help="check images and masks, as train.py does at its start")
    command.add_argument("images", help="folder of images")
    command.add_argument("masks", help="folder of their masks")
    command.add_argument(
        "--cache_dir", default="data/cache", help='remembers what was checked; "" does not (default: %(default)s)'
    )
    command.add_argument("--num_classes", type=int, default=1, help="as train.py's NUM_CLASSES")
    command.add_argument("--ignore_index", type=int, default=255, help="as train.py's IGNORE_INDEX")

    command = commands.add_parser("split", help="share out your own images and masks")
    command.add_argument("images", help="folder of images")
    command.add_argument("masks", help="folder of their masks")
    command.add_argument("--out", default="data", help="where the four folders go (default: %(default)s)")
    command.add_argument("--share", type=float, default=0.2, help="share for validation (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the choice (default: %(default)s)")
    command.add_argument("--group", help="names equal before the last GROUP stay together, say _ for car7_01.jpg")
    command.add_argument("--move", action="store_true", help="move the files instead of linking them")

    command = commands.add_parser("carvana", help="share out Kaggle's images and masks, whole cars to a side")
    command.add_argument(
        "images", nargs="?", default="train.zip", help="train.zip, train_hq.zip or a folder (default: %(default)s)"
    )
    command.add_argument(
        "masks", nargs="?", default="train_masks.zip", help="an archive or a folder (default: %(default)s)"
    )
    command.add_argument("--out", default="data", help="where the four folders go (default: %(default)s)")
    choice = command.add_mutually_exclusive_group()
    choice.add_argument("--share", type=float, default=0.2, help="of cars for validation (default: %(default)s)")
    choice.add_argument("--like-tutorial", action="store_true", help="hold back the tutorial's three cars instead")
    command.add_argument("--seed", type=int, default=0, help="of the choice (default: %(default)s)")
    options = vars(parser.parse_args(argv))

    command = options.pop("command")
    if command == "sample":
        from support.sample import make_sample

        make_sample(options.pop("out"), **options)
    elif command == "check":
        from support.checks import check_folder  # with torch, which the other commands do without

        classes = Classes(options["num_classes"], options["ignore_index"])
        check_folder(options["images"], options["masks"], options["cache_dir"], classes)
    else:
        {"split": split, "carvana": carvana}[command](**options)


if __name__ == "__main__":
    run_script(main)
