"""Make and check the folders that train.py reads: train_images, train_masks, val_images and val_masks.

    python prepare_data.py sample                     # render a sample set of cars into data/sample/
    python prepare_data.py check images/ masks/       # what they hold, and everything that is wrong with them
    python prepare_data.py split images/ masks/       # share out your own images and masks into data/
    python prepare_data.py carvana                    # share out Kaggle's train.zip and train_masks.zip
    python prepare_data.py pets                       # fetch 7,349 images of cats and dogs (OxfordIIITPet)

Each says with --help what it takes.
"""

import filecmp
import os
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from support.carvana import TUTORIAL_CARS, Member, find_carvana
from support.errors import BadInput, counted, refuse, run_script
from support.files import whole_file, writable_folder
from support.options import OptionParser
from support.pairs import CARVANA_NAME, find_pairs

FOLDERS = ("train_images", "train_masks", "val_images", "val_masks")
DEFAULT_DIRS = tuple(f"data/{name}/" for name in FOLDERS)
SAMPLE_DIR = Path("data/sample")

File = Path | Member  # on the disk, or in an archive
Pair = tuple[File, File]  # an image and its mask


def sample_if_empty(dirs: Sequence[str], num_classes: int = 1) -> Sequence[str]:
    """`dirs` (images and masks of training, then of validation), or the sample set's if they are the default ones
    and hold no training images yet. The sample set is rendered on first use, with masks of `num_classes`, 4 at
    most."""
    if tuple(dirs) != DEFAULT_DIRS or _entries(Path(dirs[0])):
        return dirs
    num_classes = min(num_classes, 4)
    folder = SAMPLE_DIR if num_classes == 1 else Path(f"{SAMPLE_DIR}_{num_classes}_classes")
    print(f"{dirs[0].rstrip('/')} is empty: training on rendered cars in {folder} instead (see README.md)")
    if not _entries(folder):
        from support.sample import make_sample

        writable_folder(
            folder.parent, "Start in a folder that can be written, or give TRAIN_IMG_DIR and the others"
        )
        make_sample(folder, num_classes=num_classes)
    return [str(folder / name) for name in FOLDERS]


def _entries(folder: Path) -> set[str]:
    """The names in a folder, without hidden ones; none if there is no such folder."""
    return {name for name in os.listdir(folder) if not name.startswith(".")} if folder.is_dir() else set()


def check(
    images: str, masks: str, size: tuple[int, int], cache_dir: str, num_classes: int, ignore_index: int
) -> None:
    """Say what two folders hold, and everything that is wrong with them for a network that sees `size`."""
    from support.checks import refusals, report  # with torch, which the other commands do without
    from support.preparation import prepare
    from support.reading import Classes

    folder = prepare(images, masks, size, cache_dir, Classes(num_classes, ignore_index))
    report(folder)
    refuse(refusals(folder))


def split(
    images: str, masks: str, out: str, share: float, seed: int, group: str | None = None, move: bool = False
) -> None:
    """Share out the pairs of two folders into four under `out`, each group wholly on one side.

    `share` is the share of groups for validation. A group is a car in Carvana's names, else one image; with
    `group` it is the part of a name before the last `group`. Images are hard-linked (copied if that can't be
    done), masks copied; or both are moved. What an interrupted split has placed stays there; raises BadInput, with
    nothing done, if a target folder holds any other file.
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
    _share_out(groups, set(TUTORIAL_CARS) if like_tutorial else _choose(groups, share, seed), out)


def pets(out: str, source: str, download: bool = True) -> None:
    """Fetch OxfordIIITPet into `source` and share it out under `out` as its makers do: cats and dogs, with masks of
    {0, 255}. Parkhi et al. 2012, https://www.robots.ox.ac.uk/~vgg/data/pets/"""
    import numpy as np
    from PIL import Image
    from torchvision.datasets import OxfordIIITPet

    for side, part in (("train", "trainval"), ("val", "test")):
        for folder in (Path(out, f"{side}_images"), Path(out, f"{side}_masks")):
            if _entries(folder):
                raise BadInput(folder, "already holds files", "Move them away or give another --out")
        try:
            dataset = OxfordIIITPet(source, part, "segmentation", download=download)
        except (OSError, RuntimeError) as error:
            raise BadInput(
                "OxfordIIITPet", f"can't be fetched ({error})", "Try again, or get it by hand"
            ) from error
        paths = sorted(Path(source, "oxford-iiit-pet", "images").glob("*.jpg"))
        names = {line.split()[0] for line in (dataset._anns_folder / f"{part}.txt").read_text().splitlines()}
        for path in tqdm([path for path in paths if path.stem in names], desc=f"filling {out}", delay=1):
            _place(path, Path(out, f"{side}_images", path.name), link=True)
            with Image.open(dataset._segs_folder / f"{path.stem}.png") as trimap:
                mask = Image.fromarray(np.asarray(trimap) != 2)  # 1 is the pet, 3 its boundary, 2 the background
            target = Path(out, f"{side}_masks", f"{path.stem}.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as file:
                mask.save(file, "PNG")


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


def _choose(groups: dict[str, list[Pair]], share: float, seed: int) -> set[str]:
    """The groups for validation: a share of them, but at least one, and not all."""
    if not 0 < share < 1:
        raise BadInput("--share", f"{share} can't be used", "Give a number between 0 and 1")
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    return set(names[: min(len(names) - 1, max(1, round(share * len(names))))])


def _share_out(groups: dict[str, list[Pair]], val_groups: set[str], out: str, move: bool = False) -> None:
    """Place every file that isn't there yet into the four folders under `out`."""
    # Masks come first: after an interruption, no training takes a part for the whole without a word.
    plan: dict[Path, dict[str, File]] = {
        Path(out, name): {} for name in sorted(FOLDERS, key=lambda n: n[::-1])[::-1]
    }
    for name, pairs in groups.items():
        side = "val" if name in val_groups else "train"
        for image, mask in pairs:
            plan[Path(out, f"{side}_images")][image.name] = image
            plan[Path(out, f"{side}_masks")][mask.name] = mask

    todo = []
    for folder, files in plan.items():
        there = _entries(folder)
        for name in sorted(there):
            if name not in files or not _is_at(files[name], folder / name):
                raise BadInput(folder, f"already holds files ({name})", "Move them away or give another --out")
        todo += [(file, folder / name) for name, file in files.items() if name not in there]
    for file, target in tqdm(todo, desc=f"filling {out}", unit="files", delay=1):
        _place(file, target, link=target.parent.name.endswith("images"))
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
    return target.exists() and (os.path.samefile(file, target) or filecmp.cmp(file, target, shallow=False))


def _place(file: File, target: Path, link: bool) -> None:
    """Put a file where it belongs, whole or not at all. A link is the user's own file under a second name."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, Path) and not file.is_file():
            raise BadInput(file, "a broken link, a pipe or a device", "Replace or remove it")
        if isinstance(file, Path) and link:
            with suppress(OSError):  # another disk, or a file system without hard links
                os.link(file.resolve(), target)  # of a symbolic link, the file itself
                return
        with whole_file(target) as part:
            part.write_bytes(file.read()) if isinstance(file, Member) else shutil.copy2(file, part)
    except OSError as error:
        remedy = "Make room and start it again: what is there stays"
        raise BadInput(target, f"can't be written ({error.strerror})", remedy) from error


def main(argv: list[str] | None = None) -> None:
    """Run the command that `argv` names."""
    parser = OptionParser(prog="prepare_data.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., None], text: str, **options: tuple[object, str]) -> OptionParser:
        """A command, with its options: each a default and a meaning."""
        added = commands.add_parser(name, help=text)
        added.set_defaults(run=run)
        for option, (default, meaning) in options.items():
            meaning = f"{meaning} (default: {default!r})"
            added.add_argument(f"--{option}", type=type(default), default=default, help=meaning, metavar="")
        return added

    def sample(out: str, **options: int) -> None:
        from support.sample import make_sample

        make_sample(out, **options)

    added = command(
        "sample",
        sample,
        "render a sample set of cars",
        out=(str(SAMPLE_DIR), "a new folder"),
        train_cars=(6, "cars to train on, 16 views each"),
        val_cars=(2, "cars to validate on"),
    )
    added.add_argument(
        "--num_classes", type=int, default=1, choices=(1, 2, 3, 4), help="3 has wheels, 4 windows, too"
    )

    added = command(
        "check",
        lambda IMAGE_HEIGHT, IMAGE_WIDTH, CACHE_DIR, NUM_CLASSES, IGNORE_INDEX, **folders: check(
            **folders,
            size=(IMAGE_HEIGHT, IMAGE_WIDTH),
            cache_dir=CACHE_DIR,
            num_classes=NUM_CLASSES,
            ignore_index=IGNORE_INDEX,
        ),
        "check images and masks as train.py does at its start; the options are train.py's",
        IMAGE_HEIGHT=(160, "pixels that the network sees"),
        IMAGE_WIDTH=(240, "pixels"),
        NUM_CLASSES=(1, "1 for foreground alone"),
        IGNORE_INDEX=(255, "value of pixels that are left out, if there are several classes"),
        CACHE_DIR=("data/cache/", 'keeps what was read, for train.py, too; "" keeps nothing'),
    )
    added.add_argument("images", help="folder of images")
    added.add_argument("masks", help="folder of their masks")

    placing = {
        "out": ("data", "where the four folders go"),
        "share": (0.2, "share of the groups for validation"),
        "seed": (0, "of the choice"),
    }
    added = command("split", split, "share out your own images (as hard links) and masks (as copies)", **placing)
    added.add_argument("images", help="folder of images")
    added.add_argument("masks", help="folder of their masks")
    added.add_argument("--group", help="names equal before the last GROUP stay together, say _ for car7_01.jpg")
    added.add_argument("--move", action="store_true", help="move the files instead")

    added = command("carvana", carvana, "share out Kaggle's images and masks, whole cars to a side", **placing)
    added.add_argument("images", nargs="?", default="train.zip", help="train.zip, train_hq.zip or a folder")
    added.add_argument("masks", nargs="?", default="train_masks.zip", help="an archive or a folder")
    added.add_argument("--like-tutorial", action="store_true", help="hold back the tutorial's three cars instead")

    command(
        "pets",
        pets,
        "fetch OxfordIIITPet, images of cats and dogs, and share it out",
        out=("data", "where the four folders go"),
        source=("data/pets", "where the set is, or is fetched to"),
    )
    options = vars(parser.parse_args(argv))
    del options["command"]
    options.pop("run")(**options)


if __name__ == "__main__":
    run_script(main)
