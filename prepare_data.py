"""Make and check the folders that train.py reads: train_images, train_masks, val_images and val_masks.

python prepare_data.py sample                     # render a sample set of cars into data/sample/
python prepare_data.py check photos/ masks/       # say what they hold, and everything that is wrong with them
python prepare_data.py split photos/ masks/       # share out your own photographs and masks into data/
"""

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from errors import BadInput, run_script
from options import OptionParser
from reading import CARVANA_NAME, find_pairs

FOLDERS = ("train_images", "train_masks", "val_images", "val_masks")
DEFAULT_DIRS = tuple(f"data/{name}/" for name in FOLDERS)
SAMPLE_DIR = Path("data/sample")


def sample_if_empty(dirs: Sequence[str]) -> Sequence[str]:
    """`dirs` (images and masks of training, then of validation), or the sample set's where they are the default
    ones and hold no training photographs yet. The sample set is rendered on first use."""
    empty = not any(entry for entry in _entries(dirs[0]) if not entry.startswith("."))
    if tuple(dirs) != DEFAULT_DIRS or not empty:
        return dirs
    print(f"{dirs[0].rstrip('/')} is empty: training on rendered cars in {SAMPLE_DIR} instead (see README.md)")
    if not _entries(SAMPLE_DIR):
        from sample import make_sample

        make_sample(SAMPLE_DIR)
    return [str(SAMPLE_DIR / name) for name in FOLDERS]


def _entries(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def split(
    images: str, masks: str, out: str, share: float, seed: int, group: str | None = None, move: bool = False
) -> None:
    """Share out the pairs of two folders into four under `out`, each group wholly on one side.

    `share` is the share of groups for validation. A group is a car in Carvana's names, else one photograph;
    with `group` it is the part of a name before the last `group`. Files are hard-linked (copied where that
    can't be done), or moved. Raises BadInput, with nothing done, where a target folder already holds files.
    """
    pairs = find_pairs(images, masks)
    if not 0 < share < 1:
        raise BadInput("--share", f"{share} can't be used", "Give a number between 0 and 1")
    groups: dict[str, list[tuple[Path, Path]]] = {}
    for image, mask in pairs:
        carvana = CARVANA_NAME.match(image.stem)
        name = image.stem.rpartition(group)[0] if group else carvana[1] if carvana else image.stem
        groups.setdefault(name or image.stem, []).append((image, mask))
    if len(groups) < 2:
        raise BadInput(images, f"all {len(pairs)} photographs are one group", "Give --group another separator")
    targets = [Path(out, name) for name in FOLDERS]
    for target in targets:
        if any(not entry.startswith(".") for entry in _entries(target)):
            raise BadInput(target, "already holds files", "Move them away or give another --out")
        target.mkdir(parents=True, exist_ok=True)

    names = sorted(groups)
    random.Random(seed).shuffle(names)
    val_groups = set(names[: min(len(names) - 1, max(1, round(share * len(names))))])
    for name, members in groups.items():
        image_dir, mask_dir = targets[2:] if name in val_groups else targets[:2]
        for image, mask in members:
            _place(image, image_dir / image.name, move)
            _place(mask, mask_dir / mask.name, move)
    val = sum(len(groups[name]) for name in val_groups)
    print(f"{len(pairs) - val} photographs for training, {val} for validation")
    print(f"{len(groups) - len(val_groups)} groups for training, {len(val_groups)} for validation")


def _place(source: Path, target: Path, move: bool) -> None:
    if move:
        shutil.move(source, target)
        return
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copy2(source, target)


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

    command = commands.add_parser("check", help="check photographs and masks, as train.py does at its start")
    command.add_argument("images", help="folder of photographs")
    command.add_argument("masks", help="folder of their masks")
    command.add_argument(
        "--cache_dir", default="data/cache", help='remembers what was checked; "" does not (default: %(default)s)'
    )

    command = commands.add_parser("split", help="share out your own photographs and masks")
    command.add_argument("images", help="folder of photographs")
    command.add_argument("masks", help="folder of their masks")
    command.add_argument("--out", default="data", help="where the four folders go (default: %(default)s)")
    command.add_argument("--share", type=float, default=0.2, help="share for validation (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the choice (default: %(default)s)")
    command.add_argument("--group", help="names equal before the last GROUP stay together, say _ for car7_01.jpg")
    command.add_argument("--move", action="store_true", help="move the files instead of linking them")
    options = vars(parser.parse_args(argv))

    command = options.pop("command")
    if command == "split":
        split(**options)
    elif command == "check":
        from checks import check_folder  # with torch, which the other commands do without

        check_folder(options["images"], options["masks"], options["cache_dir"])
    else:
        from sample import make_sample

        make_sample(options["out"], options["train_cars"], options["val_cars"])


if __name__ == "__main__":
    run_script(main)
