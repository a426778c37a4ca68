"""Make and check the folders that train.py reads: train_images, train_masks, val_images and val_masks.

    python prepare_data.py sample                     # render a sample set of cars into data/sample/
    python prepare_data.py check images/ masks/       # what they hold, and everything that is wrong with them
    python prepare_data.py split images/ masks/       # share out your own images and masks into data/
    python prepare_data.py split folder/              # the same of one folder with all of them
    python prepare_data.py carvana                    # share out Kaggle's train.zip and train_masks.zip
    python prepare_data.py pets                       # fetch 7,349 images of cats and dogs (OxfordIIITPet)

Each says with --help what it takes.
"""

import filecmp
import json
import os
import random
import re
import shlex
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from tqdm import tqdm

from support.carvana import TUTORIAL_CARS, Member, find_carvana
from support.errors import BadInput, by_cause, counted, refuse, run_script, warn
from support.files import whole_file, writable_folder
from support.options import RULES, SET_BY_SPLIT, OptionParser
from support.pairs import CARVANA_NAME

FOLDERS = ("train_images", "train_masks", "val_images", "val_masks")
PETS_LISTS = {"train": "trainval", "val": "test"}
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
    if command := _command_that_fits(Path(dirs[0]).parent):
        finding = f"empty, though {Path(dirs[0]).parent} holds something else"
        raise BadInput(dirs[0], finding, f"{command}, or start in another folder to train on rendered cars")
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


def _command_that_fits(data: Path) -> str:
    """What to do with images and masks, or archives, that lie in `data` otherwise than train.py reads them."""
    from support.layouts import tell_apart
    from support.own_data import list_files, split_command

    zips = sorted(name for name in _entries(data) if name.lower().endswith(".zip"))
    if {"train.zip", "train_masks.zip"} <= {*zips}:
        return f"Give python prepare_data.py carvana {data / 'train.zip'} {data / 'train_masks.zip'}"
    ours = re.compile(r"(sample(_\d_classes)?|cache|pets)/")
    files = [file for file in list_files(data) if not ours.match(file)] if data.is_dir() else []
    try:
        found = tell_apart(files)[:2]
    except BadInput:  # several folders could be those of the masks
        return f"Give IMAGES and MASKS to python prepare_data.py split, folders in {data}"
    if all(found):
        folders = [str(data / os.path.commonpath([os.path.dirname(file) for file in some])) for some in found]
        taken = {*FOLDERS, ""} & {os.path.dirname(file).partition("/")[0] for file in files}
        return f"Give {split_command(*dict.fromkeys(folders), *['--out', 'data_split'] * bool(taken))}"
    return f"Unpack {data / zips[0]}, and give the folders to python prepare_data.py split" if zips else ""


def check(sources: Sequence[str], size: tuple[int, int] | None, cache_dir: str, **meaning: Any) -> None:
    """Say what folders hold, and everything that is wrong with them for a network that sees `size`, or one that
    suits the images. `meaning` is `conversion.Meaning`'s."""
    from support.checks import report  # with torch, which the other commands do without
    from support.conversion import Meaning
    from support.own_data import describe, make_plain

    with TemporaryDirectory() as scratch:
        plain = make_plain(sources, Meaning(**meaning), Path(scratch), size, cache_dir)
        report(plain.prepared, plain.origins)
        print(describe(plain))


def split(
    sources: Sequence[str], out: str, share: float, seed: int, group: str = "", move: bool = False, **meaning: Any
) -> None:
    """Share out what folders hold into four under `out`, each group wholly on one side, unless they are shared out
    already; and say in `out`/dataset.json what the masks' numbers mean.

    `share` is the share of groups for validation. A group is a car in Carvana's names, else one image; with
    `group` it is as of `by_group`. Images that are the same to the byte stay together. Images are hard-linked
    (copied if that can't be done), masks copied or written; or both are moved. What an interrupted split has placed
    stays there; raises BadInput, with nothing done, if a target folder holds any other file, and for all that
    train.py would refuse.
    """
    from support.checks import refusals, report
    from support.conversion import Meaning
    from support.own_data import describe, make_plain

    with TemporaryDirectory() as scratch:
        plain = make_plain(sources, Meaning(**meaning), Path(scratch))
        metadata, samples = plain.prepared.metadata, plain.samples
        if move and plain.origins:
            raise BadInput("--move", "can't be given where files are written anew", "Leave it out")
        if any(sample.side for sample in samples.values()):
            if group:
                raise BadInput("--group", "says nothing of a set that is split already", "Leave it out")
            groups = {side: [pair for pair in samples if samples[pair].side == side] for side in ("train", "val")}
            val_groups = {"val"}
        else:
            groups = by_group(samples, sources[0], group, {pair[0]: samples[pair].name for pair in samples})
            _join_identical(groups, {pair: m.digest for pair, m in metadata.items()})
            val_groups = _choose(groups, share, seed)
        bad = []
        for side in ("training", "validation"):
            chosen = [groups[name] for name in groups if (name in val_groups) == (side == "validation")]
            if not (part := {pair: metadata[pair] for pairs in chosen for pair in pairs}):
                raise BadInput(sources[0], f"no images for {side}", "Give others, or another list or share")
            bad += refusals(plain.prepared._replace(metadata=part))
        refuse(by_cause(bad))
        report(plain.prepared, plain.origins)
        print(describe(plain))
        names = {file: sample.name + file.suffix for pair, sample in samples.items() for file in pair}
        _share_out(groups, val_groups, out, move, names)
    classes, size = plain.prepared.reading.classes, plain.prepared.reading.size
    known = {"NUM_CLASSES": classes.count, "CLASS_NAMES": plain.names, "IGNORE_INDEX": classes.ignored}
    known |= {"IN_CHANNELS": meaning.get("in_channels"), "RANGE": meaning.get("range")}
    _write_meaning(out, **{key: value for key, value in known.items() if value})
    seen = f"--CROP {plain.crop}" if plain.crop else f"--IMAGE_HEIGHT {size[0]} --IMAGE_WIDTH {size[1]}"
    _tell_command(out, seen)


def carvana(images: str, masks: str, out: str, share: float, seed: int, like_tutorial: bool = False) -> None:
    """Share out Kaggle's archives, or folders unpacked from them, as `split` does.

    With `like_tutorial`, validation gets the tutorial's three cars. Each file is checked against its checksum in
    the archive, those that an earlier, interrupted start has unpacked too.
    """
    groups = by_group(find_carvana(images, masks), images)
    if like_tutorial and (missing := set(TUTORIAL_CARS) - groups.keys()):
        raise BadInput("--like-tutorial", f"{images} lacks the car {min(missing)}", "Give all of train.zip")
    _share_out(groups, set(TUTORIAL_CARS) if like_tutorial else _choose(groups, share, seed), out)
    _write_meaning(out, NUM_CLASSES=1)
    _tell_command(out)


def pets(out: str, source: str, download: bool = True) -> None:
    """Fetch OxfordIIITPet into `source` and share it out under `out` as its makers do: cats and dogs, with masks of
    {0, 255}. Parkhi et al. 2012, https://www.robots.ox.ac.uk/~vgg/data/pets/"""
    from torchvision.datasets import OxfordIIITPet

    try:
        OxfordIIITPet(source, download=download)
    except (OSError, RuntimeError) as error:
        raise BadInput("OxfordIIITPet", f"can't be fetched ({error})", "Try again, or get it by hand") from error
    home = Path(source, "oxford-iiit-pet")
    lists = {f"{side}_list": str(home / f"annotations/{part}.txt") for side, part in PETS_LISTS.items()}
    trimaps = {"foreground": "1,3"}  # 1 is the pet, 3 its boundary, 2 the background
    folders = [str(home / "images"), str(home / "annotations/trimaps")]
    split(folders, out, share=0.5, seed=0, **lists, **trimaps, skip_bad=True)


def by_group(
    pairs: Collection[Pair], source: str, group: str = "", names: Mapping[File, str] = MappingProxyType({})
) -> dict[str, list[Pair]]:
    """The pairs by what has to stay on one side: one of Carvana's cars, or images with equal parts of their names.

    `group` is a regular expression, of which what its parentheses match counts; without parentheses it is a text,
    and the part before the last of it counts. `names` are used instead of the files' own.
    """
    try:
        pattern = re.compile(group)
    except re.error as error:
        if "(" in group:
            finding = f"not a regular expression ({error})"
            raise BadInput(f"--group {group}", finding, "Close its parentheses") from error
        pattern = re.compile(re.escape(group))
    groups: dict[str, list[Pair]] = {}
    matched = False
    for image, mask in pairs:
        name, part = names.get(image, image.stem), ""
        found = pattern.search(name)
        if not group:
            part = car[1] if (car := CARVANA_NAME.match(image.stem)) else ""
        elif found:
            part = " ".join(filter(None, found.groups())) if pattern.groups else name.rpartition(group)[0]
        matched |= bool(found)
        groups.setdefault(part or name, []).append((image, mask))
    remedy = r"Give what images of one group share, in parentheses: (\d+)_(?:left|right)"
    if not matched:
        raise BadInput("--group", f"{group} matches no name, such as {name}", remedy)
    if len(groups) < 2:
        raise BadInput(source, f"one group of {counted(len(pairs), 'image')}", "Give more, or another --group")
    if group and len(groups) == len(pairs):
        warn("--group", f"{group} puts each image, as {name}, into a group of its own", remedy)
    return groups


def _join_identical(groups: dict[str, list[Pair]], digests: dict[Pair, str]) -> None:
    """Make one group of those that hold the same image: what is trained on must not be validated on."""
    first: dict[str, str] = {}
    joined = 0
    for name in list(groups):
        others = {first[digests[pair]] for pair in groups[name] if digests[pair] in first} - {name}
        for other in others:
            groups[name] += groups.pop(other)
            joined += 1
        first |= {digests[pair]: name for pair in groups[name]}
    if joined:
        print(f"{counted(joined, 'group')} joined with others that hold the same image, to the byte")
    if len(groups) < 2:
        raise BadInput("images", "all the same, to the byte, or of one group", "Give others")


def _choose(groups: dict[str, list[Pair]], share: float, seed: int) -> set[str]:
    """The groups for validation: a share of them, but at least one, and not all."""
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    return set(names[: min(len(names) - 1, max(1, round(share * len(names))))])


def _share_out(
    groups: dict[str, list[Pair]],
    val_groups: set[str],
    out: str,
    move: bool = False,
    names: Mapping[File, str] = MappingProxyType({}),
) -> None:
    """Place every file that isn't there yet into the four folders under `out`, under the name that `names` has for
    it or its own."""
    # Masks come first: after an interruption, no training takes a part for the whole without a word.
    plan: dict[Path, dict[str, File]] = {
        Path(out, name): {} for name in sorted(FOLDERS, key=lambda n: n[::-1])[::-1]
    }
    for name, pairs in groups.items():
        side = "val" if name in val_groups else "train"
        for image, mask in pairs:
            plan[Path(out, f"{side}_images")][names.get(image, image.name)] = image
            plan[Path(out, f"{side}_masks")][names.get(mask, mask.name)] = mask

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
    if groups.keys() != {"train", "val"}:
        print(f"{counted(len(groups) - len(val_groups), 'group')} for training, {len(val_groups)} for validation")


def _write_meaning(out: str, **known: Any) -> None:
    """Say in dataset.json beside the four folders what they hold. What a person has edited there stays, as long as
    it has the same NUM_CLASSES, IN_CHANNELS and RANGE."""
    path = Path(out, "dataset.json")
    with suppress(OSError, ValueError, AttributeError):
        there = json.loads(path.read_text(encoding="utf-8"))
        if all(there.get(name, usual) == known.get(name, usual) for name, usual in SET_BY_SPLIT.items()):
            return
    with whole_file(path) as file:
        file.write_text(json.dumps(known) + "\n", encoding="utf-8")


def _tell_command(out: str, options: str = "") -> None:
    """Print the command that trains on the four folders under `out`."""
    words = options.split()
    if Path(out) != Path("data"):
        dirs = zip(("TRAIN_IMG", "TRAIN_MASK", "VAL_IMG", "VAL_MASK"), FOLDERS, strict=True)
        words = [*(word for which, name in dirs for word in (f"--{which}_DIR", str(Path(out, name)))), *words]
    print("to train with them:", shlex.join(["python", "train.py", *words]))


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


PLACING = {
    "out": ("data", "where the four folders go"),
    "share": (0.2, "share of the groups for validation"),
    "seed": (0, "of the choice"),
}
MEANING = {
    "mask_name": ("", "how masks are called for an image NAME, as NAME_mask or NAME_sat=NAME_mask"),
    "foreground": ("", "values of one class, as nonzero or 1,2, where masks hold numbers"),
    "colours": ("", "file with a line R G B NAME for each colour of the masks"),
    "NUM_CLASSES": (0, "1 for foreground alone; 0 is what the masks hold"),
    "IGNORE_INDEX": (255, "value of pixels that are left out, if there are several classes"),
    "IN_CHANNELS": (0, "bands of the images: 1 is gray, 3 RGB, others as TIFF has them; 0 is 3"),
    "RANGE": (0, "highest value of images with 16 bits, such as 4095 of 12 bits; 0 is 65535"),
    "train_list": ("", "file with the names of images for training"),
    "val_list": ("", "file with the names of images for validation"),
    "list": ("", "file to write all findings to"),
}
SEEN = {
    "IMAGE_HEIGHT": (0, "pixels that the network sees; 0 is what suits the images"),
    "IMAGE_WIDTH": (0, "pixels"),
    "CACHE_DIR": ("data/cache/", 'keeps what was read, for train.py, too; "" keeps nothing'),
}
TOGETHER = {
    "group": ("", r"images stay together that agree in what it matches, as (\d+)_(?:left|right), or before it"),
}


def main(argv: list[str] | None = None) -> None:
    """Run the command that `argv` names."""
    parser = OptionParser(prog="prepare_data.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[..., None], text: str, **options: tuple[object, str]) -> OptionParser:
        """A command, with its options: each a default and a meaning."""
        added = commands.add_parser(run.__name__, help=text)
        added.set_defaults(run=run)
        for option, (default, meaning) in options.items():
            meaning = f"{meaning} (default: {default!r})"
            added.add_argument(f"--{option}", type=type(default), default=default, help=meaning, metavar="")
        return added

    def sample(out: str, **options: int) -> None:
        from support.sample import make_sample

        make_sample(out, **options)

    cars = {"train_cars": (6, "cars to train on, 16 views each"), "val_cars": (2, "cars to validate on")}
    added = command(sample, "render a sample set of cars", out=(str(SAMPLE_DIR), "a new folder"), **cars)
    classes = {"type": int, "default": 1, "choices": (1, 2, 3, 4)}
    added.add_argument("--num_classes", **classes, help="3 has wheels, 4 windows, too")

    checking = command(check, "check images and masks as train.py does at its start", **MEANING, **SEEN)
    text = "share out your own images (as hard links) and masks (as copies)"
    splitting = command(split, text, **PLACING, **MEANING, **TOGETHER)
    sources = "one folder; images and masks (or annotations); or both of training, then of validation"
    for added in (checking, splitting):
        added.add_argument("sources", nargs="+", help=sources)
        added.add_argument("--skip_bad", action="store_true", help="leave out what can't be used")
    splitting.add_argument("--move", action="store_true", help="move the files instead")

    added = command(carvana, "share out Kaggle's images and masks, whole cars to a side", **PLACING)
    added.add_argument("images", nargs="?", default="train.zip", help="train.zip, train_hq.zip or a folder")
    added.add_argument("masks", nargs="?", default="train_masks.zip", help="an archive or a folder")
    added.add_argument("--like-tutorial", action="store_true", help="hold back the tutorial's three cars instead")

    text = "fetch OxfordIIITPet, images of cats and dogs, and share it out"
    command(pets, text, out=PLACING["out"], source=("data/pets", "where the set is, or is fetched to"))

    options = vars(parser.parse_args(argv))
    for name, value in options.items():
        if name in RULES and value and not RULES[name][0](value):
            raise BadInput(name, f"{value} can't be used", f"Give {RULES[name][1]}")
    if not 0 < options.get("share", 0.5) < 1:
        raise BadInput("--share", f"{options['share']} can't be used", "Give a number between 0 and 1")
    run, _ = options.pop("run"), options.pop("command")
    options = {name.lower(): value for name, value in options.items()}
    if run is check:
        size = options.pop("image_height"), options.pop("image_width")
        options["size"] = size if all(size) else None
    run(**options)


if __name__ == "__main__":
    run_script(main)
