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
from collections.abc import Callable, Mapping, Sequence
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
    from support.own_data import list_files

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
        out = (
            ["--out", "data_split"]
            if {*FOLDERS, ""} & {os.path.dirname(file).partition("/")[0] for file in files}
            else []
        )
        return f"Give {shlex.join(['python', 'prepare_data.py', 'split', *dict.fromkeys(folders), *out])}"
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
    from support.checks import refusals, refusals_together, report
    from support.conversion import Meaning
    from support.own_data import describe, make_plain

    if not 0 < share < 1:
        raise BadInput("--share", f"{share} can't be used", "Give a number between 0 and 1")
    with TemporaryDirectory() as scratch:
        plain = make_plain(sources, Meaning(**meaning), Path(scratch))
        if move and plain.origins:
            raise BadInput("--move", "can't be given where files are written anew", "Leave it out")
        pairs = list(plain.samples)
        if any(sample.side for sample in plain.samples.values()):
            if group:
                raise BadInput("--group", "says nothing of a set that is split already", "Leave it out")
            groups = {
                side: [pair for pair in pairs if plain.samples[pair].side == side] for side in ("train", "val")
            }
            val_groups = {"val"}
        else:
            stems = {image: sample.name for (image, _), sample in plain.samples.items()}
            groups = by_group(pairs, sources[0], group, stems)
            _join_identical(groups, {pair: m.digest for pair, m in plain.prepared.metadata.items()})
            val_groups = _choose(groups, share, seed)
        prepared = {True: {}, False: {}}
        for name, members in groups.items():
            prepared[name in val_groups] |= {pair: plain.prepared.metadata[pair] for pair in members}
        train, val = (plain.prepared._replace(metadata=prepared[side]) for side in (False, True))
        for name, part in (("training", train), ("validation", val)):
            if not part.metadata:
                raise BadInput(sources[0], f"no images for {name}", "Give others, or another list or share")
        twice = refusals_together(train, val)
        if twice and meaning.get("skip_bad"):
            warn(twice[0].subject, by_cause(twice)[0].finding, "Left out")
            dropped = {error.subject for error in twice}
            groups["val"] = [pair for pair in groups["val"] if str(pair[0]) not in dropped]
            val, twice = val._replace(metadata={pair: val.metadata[pair] for pair in groups["val"]}), []
        twice = [BadInput(e.subject, e.finding, f"{e.remedy}, or leave it out with --skip_bad") for e in twice]
        refuse(by_cause([*refusals(train), *refusals(val), *twice]))
        report(plain.prepared, plain.origins)
        print(describe(plain))
        names = {}
        for (image, mask), sample in plain.samples.items():
            names |= {image: sample.name + image.suffix, mask: sample.name + mask.suffix}
        _share_out(groups, val_groups, out, move, names)
    classes, size = plain.prepared.reading.classes, plain.prepared.reading.size
    known = {"NUM_CLASSES": classes.count, "CLASS_NAMES": plain.names, "IGNORE_INDEX": classes.ignored}
    known |= {"IN_CHANNELS": meaning.get("in_channels"), "RANGE": meaning.get("range")}
    _write_meaning(out, **{key: value for key, value in known.items() if value})
    seen = f"--CROP {plain.crop}" if plain.crop else f"--IMAGE_HEIGHT {size[0]} --IMAGE_WIDTH {size[1]}"
    print("to train with them:", shlex.join(["python", "train.py", *_dir_options(out), *seen.split()]))


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
    if words := _dir_options(out):
        print("to train with them:", shlex.join(["python", "train.py", *words]))


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
    _write_meaning(out, NUM_CLASSES=1, CLASS_NAMES=["background", "pet"])


def by_group(
    pairs: Sequence[Pair], source: str, group: str = "", names: Mapping[File, str] = MappingProxyType({})
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
    example = names.get(pairs[0][0], pairs[0][0].stem)
    remedy = r"Give what images of one group share, in parentheses: (\d+)_(?:left|right)"
    if group and not any(pattern.search(names.get(image, image.stem)) for image, _ in pairs):
        raise BadInput("--group", f"{group} matches no name, such as {example}", remedy)
    for image, mask in pairs:
        name = names.get(image, image.stem)
        if pattern.groups:
            part = " ".join(filter(None, found.groups())) if (found := pattern.search(name)) else ""
        elif group:
            part = name.rpartition(group)[0]
        else:
            part = car[1] if (car := CARVANA_NAME.match(image.stem)) else ""
        groups.setdefault(part or name, []).append((image, mask))
    if len(groups) < 2:
        raise BadInput(source, f"one group of {counted(len(pairs), 'image')}", "Give more, or another --group")
    if group and len(groups) == len(pairs):
        warn("--group", f"{group} puts each image, as {example}, into a group of its own", remedy)
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
    if not 0 < share < 1:
        raise BadInput("--share", f"{share} can't be used", "Give a number between 0 and 1")
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


def _dir_options(out: str) -> list[str]:
    """The options of train.py for the four folders under `out`; none for the ones that it has."""
    if Path(out) == Path("data"):
        return []
    options = zip(("TRAIN_IMG", "TRAIN_MASK", "VAL_IMG", "VAL_MASK"), FOLDERS, strict=True)
    return [word for which, name in options for word in (f"--{which}_DIR", str(Path(out, name)))]


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

    meaning = {
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

    def with_sources(added: OptionParser) -> OptionParser:
        added.add_argument(
            "sources",
            nargs="+",
            help="one folder; images and masks (or annotations); or both of training, then of validation",
        )
        added.add_argument("--skip_bad", action="store_true", help="leave out what can't be used")
        return added

    def called(run: Callable[..., None]) -> Callable[..., None]:
        def renamed(list: str, **options: Any) -> None:
            for name in ("NUM_CLASSES", "IGNORE_INDEX", "IN_CHANNELS", "RANGE"):
                options[name.lower()] = value = options.pop(name)
                if value and not RULES[name][0](value):
                    raise BadInput(name, f"{value} can't be used", f"Give {RULES[name][1]}")
            run(**options, list_file=list)

        return renamed

    def check_at(IMAGE_HEIGHT: int, IMAGE_WIDTH: int, CACHE_DIR: str, **options: Any) -> None:
        size = (IMAGE_HEIGHT, IMAGE_WIDTH) if IMAGE_HEIGHT and IMAGE_WIDTH else None
        check(size=size, cache_dir=CACHE_DIR, **options)

    with_sources(
        command(
            "check",
            called(check_at),
            "check images and masks as train.py does at its start",
            **meaning,
            IMAGE_HEIGHT=(0, "pixels that the network sees; 0 is what suits the images"),
            IMAGE_WIDTH=(0, "pixels"),
            CACHE_DIR=("data/cache/", 'keeps what was read, for train.py, too; "" keeps nothing'),
        )
    )

    placing = {
        "out": ("data", "where the four folders go"),
        "share": (0.2, "share of the groups for validation"),
        "seed": (0, "of the choice"),
    }
    added = with_sources(
        command(
            "split",
            called(split),
            "share out your own images (as hard links) and masks (as copies)",
            **placing,
            **meaning,
            group=(
                "",
                r"images stay together that agree in what it matches, as (\d+)_(?:left|right), or before it",
            ),
        )
    )
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
