"""Make and check the folders that train.py reads: train_images, train_masks, val_images and val_masks.

    python prepare_data.py sample                     # render a sample set of cars into data/sample/
    python prepare_data.py check images/ masks/       # what they hold, and everything that is wrong with them
    python prepare_data.py split images/ masks/       # split your own images and masks into data/
    python prepare_data.py split folder/              # the same of one folder with all of them
    python prepare_data.py carvana                    # split Kaggle's train.zip and train_masks.zip
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
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from tqdm import tqdm

from support.carvana import TUTORIAL_CARS, unpack_carvana
from support.checks import refusals, report
from support.conversion import Meaning
from support.errors import BadInput, by_cause, counted, refuse, run_script, warn
from support.files import whole_file, writable_folder
from support.layouts import tell_apart
from support.options import RULES, SET_BY_SPLIT, OptionParser
from support.own_data import describe, list_files, make_plain
from support.pairs import CARVANA_NAME
from support.reading import Pair
from support.sample import make_sample

FOLDERS = ("train_images", "train_masks", "val_images", "val_masks")
DEFAULT_DIRS = tuple(f"data/{name}/" for name in FOLDERS)
SAMPLE_DIR = Path("data/sample")


def sample_if_empty(dirs: Sequence[str], num_classes: int = 1) -> Sequence[str]:
    """`dirs` (images and masks of training, then of validation), or the sample set's if they are the default ones
    and hold no training images yet. The sample set is rendered on first use, with masks of `num_classes`, 4 at
    most."""
    if tuple(dirs) != DEFAULT_DIRS or _entries(Path(dirs[0])):
        return dirs
    if command := _command_that_fits(Path(dirs[0]).parent):
        finding = f"empty, though {Path(dirs[0]).parent} holds something else"
        remedy = f"Give python prepare_data.py {command}, or start in another folder to train on rendered cars"
        raise BadInput(dirs[0], finding, remedy)
    num_classes = min(num_classes, 4)
    folder = SAMPLE_DIR if num_classes == 1 else Path(f"{SAMPLE_DIR}_{num_classes}_classes")
    print(f"{dirs[0].rstrip('/')} is empty: training on rendered cars in {folder} instead (see README.md)")
    if not _entries(folder):
        remedy = "Start in a folder that can be written, or give TRAIN_IMG_DIR and the others"
        writable_folder(folder.parent, remedy)
        make_sample(folder, num_classes=num_classes)
    return [str(folder / name) for name in FOLDERS]


def _entries(folder: Path) -> set[str]:
    """The names in a folder, without hidden ones; none if there is no such folder."""
    return {name for name in os.listdir(folder) if not name.startswith(".")} if folder.is_dir() else set()


def _command_that_fits(data: Path) -> str:
    """What to do with images and masks, or archives, that lie in `data` otherwise than train.py reads them."""
    names = _entries(data)
    if {"train.zip", "train_masks.zip"} <= names:
        return f"carvana {data / 'train.zip'} {data / 'train_masks.zip'}"
    ours = re.compile(r"(sample(_\d_classes)?|cache|pets)/")
    files = [file for file in (list_files(data) if names else ()) if not ours.match(file)]
    if not files:
        zips = sorted(name for name in names if name.lower().endswith(".zip"))
        return f"split, with the folders that {data / zips[0]} unpacks to" if zips else ""
    sources = [str(data)]
    with suppress(BadInput):  # split says what is unclear
        if all(found := tell_apart(files)[:2]):
            folders = (os.path.commonpath([os.path.dirname(file) for file in some]) for some in found)
            sources = dict.fromkeys(str(data / folder) for folder in folders)
    out = ["--out", "data_split"] if {file.partition("/")[0] for file in files} & {*FOLDERS} else []
    return shlex.join(["split", *sources, *out])


def check(sources: Sequence[str], size: tuple[int, int] | None, cache_dir: str, **meaning: Any) -> None:
    """Say what folders hold, and everything that is wrong with them for a network that sees `size`, or one that
    suits the images. `meaning` is `conversion.Meaning`'s."""
    with TemporaryDirectory() as scratch:
        plain = make_plain(sources, Meaning(**meaning), Path(scratch), size, cache_dir)
        report(plain.prepared, plain.origins)
        print(describe(plain))


def split(sources: Sequence[str], out: str, share: float, seed: int, group: str = "", **meaning: Any) -> None:
    """Split what folders hold into four under `out`, each group wholly on one side, unless it is split already; and
    say in `out`/dataset.json what the masks' numbers mean.

    `share` is the share of groups for validation. A group is as of `by_group`; images that are the same to the byte
    stay together. Images are hard-linked (copied if that can't be done), masks copied or written. What an
    interrupted split has placed stays there; raises BadInput, with nothing done, if a target folder holds any other
    file, and for all that train.py would refuse.
    """
    with TemporaryDirectory() as scratch:
        plain = make_plain(sources, Meaning(**meaning), Path(scratch))
        metadata, samples = plain.prepared.metadata, plain.samples
        if not any(sample.side for sample in samples.values()):
            groups = by_group(samples, group, {pair[0]: sample.name for pair, sample in samples.items()})
            _join_identical(groups, {pair: m.digest for pair, m in metadata.items()})
            sides = _by_groups(groups, sources[0], share, seed)
        elif group:
            raise BadInput("--group", "says nothing of a set that is split already", "Leave it out")
        else:
            sides = {side: [pair for pair in samples if samples[pair].side == side] for side in ("train", "val")}
        bad = []
        for side, pairs in sides.items():
            if not pairs:
                raise BadInput(sources[0], f"no images for {side}", "Give others, or another list or share")
            bad += refusals(plain.prepared._replace(metadata={pair: metadata[pair] for pair in pairs}))
        refuse(by_cause(bad))
        report(plain.prepared, plain.origins)
        print(describe(plain))
        _place(sides, out, {file: sample.name + file.suffix for pair, sample in samples.items() for file in pair})
    classes, size = plain.prepared.reading.classes, plain.prepared.reading.size
    known = {"NUM_CLASSES": classes.count, "CLASS_NAMES": plain.names, "IGNORE_INDEX": classes.ignored}
    known |= {"IN_CHANNELS": meaning.get("in_channels"), "RANGE": meaning.get("range")}
    _write_meaning(out, **{key: value for key, value in known.items() if value})
    seen = f"--CROP {plain.crop}" if plain.crop else f"--IMAGE_HEIGHT {size[0]} --IMAGE_WIDTH {size[1]}"
    _tell_command(out, seen)


def carvana(images: str, masks: str, out: str, share: float, seed: int, like_tutorial: bool = False) -> None:
    """Split Kaggle's archives, or folders unpacked from them, as `split` does; with `like_tutorial`, the tutorial's
    three cars are for validation."""
    with TemporaryDirectory() as scratch:
        groups = by_group(unpack_carvana(images, masks, Path(scratch)))
        if like_tutorial and (missing := set(TUTORIAL_CARS) - groups.keys()):
            raise BadInput("--like-tutorial", f"{images} lacks the car {min(missing)}", "Give all of train.zip")
        _place(_by_groups(groups, images, share, seed, TUTORIAL_CARS if like_tutorial else ()), out)
    _write_meaning(out, NUM_CLASSES=1)
    _tell_command(out)


def pets(out: str, source: str, download: bool = True) -> None:
    """Fetch OxfordIIITPet into `source` and split it under `out` as its makers do: cats and dogs, with masks of
    {0, 255}. Parkhi et al. 2012, https://www.robots.ox.ac.uk/~vgg/data/pets/"""
    from torchvision.datasets import OxfordIIITPet

    try:
        OxfordIIITPet(source, download=download)
    except (OSError, RuntimeError) as error:
        raise BadInput("OxfordIIITPet", f"can't be fetched ({error})", "Try again, or get it by hand") from error
    home = Path(source, "oxford-iiit-pet")
    lists = {"train_list": str(home / "annotations/trainval.txt"), "val_list": str(home / "annotations/test.txt")}
    folders = [str(home / "images"), str(home / "annotations/trimaps")]
    # In a trimap 1 is the pet, 3 its boundary, and 2 the background.
    split(folders, out, share=0.5, seed=0, foreground="1,3", skip_bad=True, **lists)


def by_group(
    pairs: Collection[Pair], group: str = "", names: Mapping[Path, str] = MappingProxyType({})
) -> dict[str, list[Pair]]:
    """The pairs by what has to stay on one side: images with the same match of a regular expression, or of what is
    in its parentheses; by default Carvana's cars. Others are groups of their own.

    `names` are used instead of the files' own.
    """
    try:
        pattern = re.compile(group) if group else CARVANA_NAME
    except re.error as error:
        remedy = "Close its parentheses"
        raise BadInput(f"--group {group}", f"not a regular expression ({error})", remedy) from error
    groups: dict[str, list[Pair]] = {}
    matched = False
    for pair in pairs:
        name = names.get(pair[0], pair[0].stem)
        if found := pattern.search(name):
            name, matched = " ".join(filter(None, found.groups())) or found[0], True
        groups.setdefault(name, []).append(pair)
    if group and not matched:
        remedy = r"Give what images of one group share, in parentheses: (\d+)_(?:left|right)"
        raise BadInput("--group", f"{group} matches no name, such as {name}", remedy)
    if group and len(groups) == len(pairs):
        finding = f"{group} puts each image, as {name}, into a group of its own"
        warn("--group", finding, "Give what images of one group share, in parentheses")
    return groups


def _join_identical(groups: dict[str, list[Pair]], digests: dict[Pair, str]) -> None:
    """Make one group of those that hold the same image: what is trained on must not be validated on."""
    before, owners = len(groups), {}
    for name in list(groups):
        for other in {owners[digests[pair]] for pair in groups[name] if digests[pair] in owners}:
            groups[name] += groups.pop(other)
        owners |= {digests[pair]: name for pair in groups[name]}
    if len(groups) < before:
        print(f"{counted(before - len(groups), 'group')} joined with others that hold the same image, to the byte")


def _by_groups(
    groups: dict[str, list[Pair]], source: str, share: float, seed: int, val: Sequence[str] = ()
) -> dict[str, list[Pair]]:
    """The pairs for training and those for validation: `val`, or else a share of the groups, but at least one, and
    not all."""
    if len(groups) < 2:
        finding = f"one group of {counted(sum(map(len, groups.values())), 'image')}"
        raise BadInput(source, finding, "Give images of two groups or more")
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    val = {*(val or names[: min(len(names) - 1, max(1, round(share * len(names))))])}
    print(f"{counted(len(groups) - len(val), 'group')} for training, {len(val)} for validation")
    return {
        side: [pair for name in groups if (name in val) == (side == "val") for pair in groups[name]]
        for side in ("train", "val")
    }


def _place(sides: dict[str, list[Pair]], out: str, names: Mapping[Path, str] = MappingProxyType({})) -> None:
    """Put every file that isn't there yet into the four folders under `out`, whole or not at all, under the name
    that `names` has for it or its own. A link is the user's own file under a second name."""
    todo = []
    for kind in ("masks", "images"):  # in this order no training takes a part for the whole without a word
        for side, pairs in sides.items():
            folder = Path(out, f"{side}_{kind}")
            files = {names.get(file, file.name): file for file in (pair[kind == "masks"] for pair in pairs)}
            there = _entries(folder)
            for name in sorted(there):
                same = name in files and (folder / name).exists()
                if not same or not filecmp.cmp(files[name], folder / name, shallow=False):
                    raise BadInput(folder, f"already holds files ({name})", "Move them away or give another --out")
            todo += [(file, folder / name, kind) for name, file in files.items() if name not in there]
    for file, target, kind in tqdm(todo, desc=f"filling {out}", unit="files", delay=1):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if kind == "images":
                with suppress(OSError):  # another disk, or a file system without hard links
                    os.link(file.resolve(), target)  # of a symbolic link, the file itself
                    continue
            with whole_file(target) as part:
                shutil.copy2(file, part)
        except OSError as error:
            remedy = "Fix that and start it again: what is there stays"
            raise BadInput(target, f"can't be written ({error.strerror})", remedy) from error
    print(f"{counted(len(sides['train']), 'image')} for training, {len(sides['val'])} for validation")


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


def main(argv: list[str] | None = None) -> None:
    """Run the command that `argv` names."""
    parser = OptionParser(prog="prepare_data.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(to: Any, option: str, default: object, text: str, **more: Any) -> None:
        text = f"{text} (default: {default!r})"
        to.add_argument(f"--{option}", type=type(default), default=default, help=text, metavar="", **more)

    rendering = commands.add_parser("sample", help="render a sample set of cars")
    add(rendering, "out", str(SAMPLE_DIR), "a new folder", dest="folder")
    add(rendering, "train_cars", 6, "cars to train on, 16 views each")
    add(rendering, "val_cars", 2, "cars to validate on")
    add(rendering, "num_classes", 1, "3 has wheels, 4 windows, too", choices=(1, 2, 3, 4))
    checking = commands.add_parser("check", help="check images and masks as train.py does at its start")
    add(checking, "IMAGE_HEIGHT", 0, "pixels that the network sees; 0 is what suits the images")
    add(checking, "IMAGE_WIDTH", 0, "pixels")
    add(checking, "CACHE_DIR", "data/cache/", 'keeps what was read, for train.py, too; "" keeps nothing')
    splitting = commands.add_parser("split", help="split your own images (as hard links) and masks (as copies)")
    add(splitting, "group", "", r"images stay together that have the same match, as of (\d+)_(?:left|right)")
    kaggle = commands.add_parser("carvana", help="split Kaggle's images and masks, whole cars to a side")
    kaggle.add_argument("images", nargs="?", default="train.zip", help="train.zip, train_hq.zip or a folder")
    kaggle.add_argument("masks", nargs="?", default="train_masks.zip", help="an archive or a folder")
    kaggle.add_argument("--like-tutorial", action="store_true", help="hold back the tutorial's three cars instead")
    fetching = commands.add_parser("pets", help="fetch OxfordIIITPet, images of cats and dogs, and split it")
    add(fetching, "source", "data/pets", "where the set is, or is fetched to")
    for added in (splitting, kaggle, fetching):
        add(added, "out", "data", "where the four folders go")
    for added in (splitting, kaggle):
        add(added, "share", 0.2, "share of the groups for validation")
        add(added, "seed", 0, "of the choice")
    for added in (checking, splitting):
        sources = "one folder; images and masks (or annotations); or both of training, then of validation"
        added.add_argument("sources", nargs="+", help=sources)
        added.add_argument("--skip_bad", action="store_true", help="leave out what can't be used")
        values = added.add_mutually_exclusive_group()
        for field in (field for field in fields(Meaning) if field.metadata):
            name = field.name.upper() if field.name.upper() in RULES else field.name
            to = values if name in ("foreground", "colours") else added
            add(to, name, field.default, field.metadata["help"])

    options = vars(parser.parse_args(argv))
    for name, value in options.items():
        if name in RULES and value and not RULES[name][0](value):
            raise BadInput(name, f"{value} can't be used", f"Give {RULES[name][1]}")
    if not 0 < options.get("share", 0.5) < 1:
        raise BadInput("--share", f"{options['share']} can't be used", "Give a number between 0 and 1")
    runs = {"sample": make_sample, "check": check, "split": split, "carvana": carvana, "pets": pets}
    run = runs[options.pop("command")]
    options = {name.lower(): value for name, value in options.items()}
    if run is check:
        size = options.pop("image_height"), options.pop("image_width")
        if any(size) != all(size):
            raise BadInput("IMAGE_HEIGHT and IMAGE_WIDTH", "one without the other", "Give both")
        options["size"] = size if all(size) else None
    run(**options)


if __name__ == "__main__":
    run_script(main)
