"""Images and masks as people have them, made plain: what `prepare_data.py split` and `check` begin with.

`layouts.py` finds what belongs together; here masks get the form that train.py reads, class numbers or 0 and 255,
and all are checked by the rules of `checks.py`. Files are only read: new ones go into a scratch folder.
"""

import os
import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from support.checks import refusals
from support.errors import BadInput, by_cause, counted, refuse, warn
from support.layouts import listed, match, plain_names, side, tell_apart
from support.pairs import IMAGE_SUFFIXES, MASK_ENDINGS, MASK_FILES, Scan, list_folder
from support.preparation import Prepared, prepare
from support.reading import IGNORED, ORIENTATION, Classes, Pair, Size, read_mask, read_values

OTHER_SUFFIXES = (".gif", ".ppm", ".pgm", ".jp2", ".avif", ".heic", ".heif", ".npy", ".dcm", ".svg", ".psd")
AREA = 160 * 240  # pixels of the size that is suggested
SPECIAL = {
    "ignore": IGNORED,
    "void": IGNORED,
    "unlabelled": IGNORED,
    "unlabeled": IGNORED,
    "background": 0,
    "bg": 0,
}


@dataclass(frozen=True)
class Meaning:
    """What a user says about his data, each the command's option of that name."""

    mask_name: str = ""
    foreground: str = ""
    colours: str = ""
    num_classes: int = 0  # 0 for what the masks hold
    ignore_index: int = 255
    train_list: str = ""
    val_list: str = ""
    list_file: str = ""
    skip_bad: bool = False


class Sample(NamedTuple):
    name: str  # without an ending, of its own on its side
    image: Path
    masks: list[Path] | Callable[[], np.ndarray]  # files, or what draws it
    side: str  # "train", "val" or "", if the set isn't split yet


class Plain(NamedTuple):
    """A set in the form that train.py reads."""

    samples: dict[Pair, Sample]  # by files as they go into data/, of which some lie in the scratch folder
    prepared: Prepared  # of all of them
    names: list[str]  # of the classes, if they are known
    origins: dict[str, Path]  # of each file in the scratch folder, the user's own


def make_plain(
    sources: Sequence[str], meaning: Meaning, scratch: Path, size: Size | None = None, cache_dir: str = ""
) -> Plain:
    """Pair, convert and read all that `sources` hold, at `size` or at one that suits it, and say what was found.

    Raises BadInput with all that is wrong, a line for each cause.
    """
    Classes(meaning.num_classes or 1, meaning.ignore_index)  # raises BadInput
    if meaning.ignore_index != IGNORED and meaning.num_classes < 2:
        raise BadInput("--IGNORE_INDEX", f"{meaning.ignore_index} says nothing alone", "Give --NUM_CLASSES, too")
    samples, bad, unused, names = _find(sources, meaning)
    colours = read_colours(meaning.colours) if meaning.colours else []
    if colours:
        names = list(
            {c.number: c.name for c in sorted(colours, key=lambda c: c.number) if c.number < IGNORED}.values()
        )
    pairs: dict[Pair, Sample] = {}
    origins: dict[str, Path] = {}
    unlisted: Counter[tuple[str, Path]] = Counter()
    with ThreadPoolExecutor() as pool:  # which decode and encode at the same time
        work = pool.map(lambda sample: _convert(sample, meaning, colours, scratch), samples)
        for sample, done in zip(samples, tqdm(work, "converting", len(samples), delay=1), strict=True):
            if isinstance(done, BadInput):
                bad.append(done)
                continue
            pair, shares = done
            pairs[pair] = sample
            unlisted.update({(colour, sample.image): share for colour, share in shares.items()})
            own = (sample.image, sample.masks[0] if isinstance(sample.masks, list) else Path(sources[-1]))
            origins |= {str(new): old for new, old in zip(pair, own, strict=True) if new != old}
    bad += _unlisted(unlisted, meaning.colours, len(samples))
    if not pairs:
        _tell(bad or [BadInput(sources[0], "nothing that can be used", "Give other folders or lists")], meaning)
    may_grow, size = not size, size or suggest_size([_size(image) for image, _ in pairs])
    drawn = not isinstance(samples[0].masks, list)
    if drawn or colours:
        classes = _binary_if_possible([Path(path) for path in origins if path.endswith(".mask.png")], len(names))
    else:
        count = 1 if meaning.foreground else meaning.num_classes or 1
        classes = Classes(count)  # masks with another number for ignored pixels are written anew
    skipped = [
        Path(source, name) for source in {*sources} if Path(source).is_dir() for name in list_files(source, False)
    ]
    scan = Scan(list(pairs), [], unused, [], skipped)
    folders = (sources[0], sources[min(1, len(sources) - 1)])
    cache = cache_dir if not origins else ""
    prepared = prepare(*folders, size, cache, classes, scan)
    if not (drawn or colours or meaning.foreground or meaning.num_classes):
        classes = _classes_in(prepared, meaning.ignore_index)
        if classes.multiclass:
            print(f"masks hold the numbers 0 to {classes.count - 1}: NUM_CLASSES is {classes.count}")
            prepared = prepare(*folders, size, cache, classes, scan)
    while (
        may_grow
        and any(error.finding.startswith("too thin") for error in refusals(prepared))
        and size[0] < _shape(prepared)[0]
    ):
        size = tuple(-(-side * 3 // 2) // 16 * 16 for side in size)  # more of thin things is left there
        prepared = prepare(*folders, size, cache, classes, scan)
    return _without_bad(Plain(pairs, prepared, names, origins), bad, meaning)


def _without_bad(plain: Plain, bad: Sequence[BadInput], meaning: Meaning) -> Plain:
    """The set without what can't be used, if that is asked for; raises BadInput if not, or if there is more."""
    prepared, bad = plain.prepared, list(bad)
    owners = {str(file): pair for pair in plain.samples for file in pair}
    while single := [error for error in refusals(prepared) if error.subject in owners]:
        own = (plain.origins.get(error.subject, error.subject) for error in single)
        bad += [BadInput(subject, e.finding, _hint(e)) for subject, e in zip(own, single, strict=True)]
        left_out = {owners[error.subject] for error in single}
        metadata = {pair: m for pair, m in prepared.metadata.items() if pair not in left_out}
        prepared = prepared._replace(bad=[], metadata=metadata, records=None)
    whole = refusals(prepared) if prepared.metadata else []
    _tell([*_swapped(bad), *whole], meaning, may_skip=bool(prepared.metadata) and not whole)
    return plain._replace(prepared=prepared, samples={pair: plain.samples[pair] for pair in prepared.metadata})


def _tell(bad: Sequence[BadInput], meaning: Meaning, may_skip: bool = False) -> None:
    """Refuse what is wrong, a line a cause, or only warn of it if it may be left out."""
    if meaning.list_file:
        try:
            Path(meaning.list_file).write_text("".join(f"{error}\n" for error in bad), encoding="utf-8")
        except OSError as error:
            raise BadInput(meaning.list_file, f"can't be written ({error.strerror})", "Give another") from error
    if not may_skip or not meaning.skip_bad:
        skip = ", or leave it out with --skip_bad" if may_skip else ""
        refuse([BadInput(e.subject, e.finding, e.remedy + skip) for e in by_cause(bad)])
    for error in by_cause(bad):
        warn(error.subject, error.finding, "Left out")


def _find(sources: Sequence[str], meaning: Meaning) -> tuple[list[Sample], list[BadInput], list[Path], list[str]]:
    """All samples, what can't be paired, masks without an image, and the classes' names if outlines tell them."""
    if len(sources) not in (1, 2, 4):
        remedy = "Give one folder, images and masks, or both of training and then both of validation"
        raise BadInput(sources[2], "not expected here", remedy)
    samples, bad, unused, names = [], [], [], []
    for number in range(0, len(sources), 2):
        some, *rest = _find_side(sources[number : number + 2], meaning)
        part = ("train", "val")[number // 2] if len(sources) == 4 else ""
        samples += [sample._replace(side=part or sample.side) for sample in some]
        for all_of_them, more in zip((bad, unused, names), rest, strict=True):
            all_of_them += more
    return _listed(samples, meaning), bad, unused, list(dict.fromkeys(names))


def _find_side(
    sources: Sequence[str], meaning: Meaning
) -> tuple[list[Sample], list[BadInput], list[Path], list[str]]:
    root, mask_root = Path(sources[0]), Path(sources[-1])
    files = list_files(root)
    if len(sources) == 1 or mask_root.is_dir() and os.path.samefile(root, mask_root):
        images, masks, others = tell_apart(files)
        if others:
            print(f"left alone: {counted(len(others), 'file')}, as {root / others[0]}")
        mask_root = root
    else:
        masks = list_files(mask_root) if mask_root.is_dir() else []
        inside = os.path.relpath(mask_root, root).replace(os.sep, "/") + "/"
        images = [file for file in files if not file.startswith(inside)]
    by_file = {os.path.basename(image): root / image for image in images}
    if not masks and (annotations := _annotations(mask_root, by_file)):
        drawn = {image: annotations.masks.get(os.path.basename(image)) for image in images}
        names = ["background", *annotations.names]
        bad = [
            BadInput(root / image, f"not in {mask_root}", "Annotate it")
            for image, draw in drawn.items()
            if not draw
        ]
        pairs, unused, names = {image: draw for image, draw in drawn.items() if draw}, []
        print(f"masks are drawn from the outlines in {mask_root}")
    else:
        found = match(images, masks, meaning.mask_name)
        bad = _unpaired(root, mask_root, images, masks, found.unpaired, found.schemes)
        bad += [
            BadInput(
                root / image,
                f"two masks, {os.path.basename(two[0])} and {os.path.basename(two[1])}",
                "Keep one of them, or say which with --mask_name, such as NAME_mask",
            )
            for image, two in found.clashes.items()
        ]
        pairs = {image: [mask_root / mask for mask in some] for image, some in found.pairs.items()}
        unused, names = [mask_root / mask for mask in found.unused], []
        if pairs:
            print(f"masks are found by: {', '.join(found.schemes)}")
        if several := sum(len(some) > 1 for some in pairs.values()):
            print(f"{counted(several, 'image')} with several masks, which are united")
    sides = {image: side(image) for image in images}
    wanted = {*filter(None, (sides[image] for image in pairs))}
    if "train" not in wanted or wanted == {"train"} or any(not sides[image] for image in pairs):
        sides = dict.fromkeys(images, "")  # not split, or in another way than by folders
    elif "val" not in wanted:
        sides = {image: part.replace("test", "val") for image, part in sides.items()}
        print("validation is what the folders call test")
    elif "test" in wanted:
        print(f"left out: {counted(sum(sides[image] == 'test' for image in pairs), 'image')} of test")
    tests = {str(root / image) for image in images if side(image) == "test" and image not in pairs}
    if "test" not in wanted:  # none of them has a mask
        bad = [error for error in bad if error.subject not in tests]
    plain = plain_names({image: sides[image] for image in pairs})
    samples = [
        Sample(plain[image], root / image, some, sides[image])
        for image, some in pairs.items()
        if sides[image] != "test"
    ]
    return samples, bad, unused, names


def list_files(root: Path, pictures: bool = True) -> list[str]:
    """All that may be an image or a mask below a folder, or all else; without what is hidden."""
    list_folder(root)  # raises BadInput for a missing one
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        places = (Path(folder, file).relative_to(root).as_posix() for file in sorted(files) if file[0] != ".")
        found += [place for place in places if place.lower().endswith((*MASK_FILES, *OTHER_SUFFIXES)) == pictures]
    return found


def _annotations(source: Path, images: dict[str, Path]) -> "Annotations | None":  # noqa: F821
    try:
        from support.annotations import load_annotations
    except ImportError:
        return None
    return load_annotations(source, images)


def _unpaired(
    root: Path,
    mask_root: Path,
    images: Sequence[str],
    masks: Sequence[str],
    unpaired: Sequence[str],
    schemes: Sequence[str],
) -> list[BadInput]:
    """What to say of images without a mask."""
    if not images:
        return [BadInput(root, "no images here", f"Expected files ending in {' '.join(IMAGE_SUFFIXES)}")]
    if not masks:
        finding = f"no masks among {counted(len(images), 'image')}"
        return [BadInput(mask_root, finding, "Give two folders, IMAGES MASKS, or name masks NAME_mask")]
    if len(unpaired) == len(images):
        finding = f"no mask fits an image: images are called {images[0]}, masks {masks[0]}"
        return [BadInput(mask_root, finding, "Say how masks are called with --mask_name, such as NAME_mask")]
    finding = f"no mask in {mask_root} by {', '.join(schemes)}"
    return [BadInput(root / image, finding, "Add it, or say how with --mask_name") for image in unpaired]


def _listed(samples: list[Sample], meaning: Meaning) -> list[Sample]:
    """The samples that lists of names have, on the side that these say."""
    lists = {part: name for part, name in (("train", meaning.train_list), ("val", meaning.val_list)) if name}
    if not lists:
        return samples
    by_path = {sample.image.as_posix(): sample for sample in samples}
    chosen: dict[str, str] = {}
    for part, name in lists.items():
        try:
            rows = [row.split() for row in Path(name).read_text(encoding="utf-8").splitlines() if row.strip()]
        except (OSError, ValueError) as error:
            raise BadInput(name, f"can't be read as a list of names ({error})", "Give one name a line") from error
        found, unknown = listed(list(by_path), (row[0] for row in rows))
        if unknown:
            warn(
                name,
                f"{counted(len(unknown), 'name')} that no image with a mask has, {unknown[0]} for one",
                "Unused",
            )
        chosen |= dict.fromkeys(found, part)
    if len(lists) == 1:
        other = ({"train", "val"} - lists.keys()).pop()
        chosen = {path: chosen.get(path, other) for path in by_path}
    return [by_path[path]._replace(side=part) for path, part in chosen.items()]


def _convert(
    sample: Sample, meaning: Meaning, colours: Sequence["Colour"], scratch: Path
) -> tuple[Pair, dict[str, float]] | BadInput:
    """A sample's files as train.py reads them: its own, or new ones; and shares of colours that aren't listed."""
    name = f"{sample.side}.{sample.name}"
    shares: dict[str, float] = {}
    try:
        image = sample.image
        if image.suffix.lower() not in IMAGE_SUFFIXES:
            image = scratch / f"{name}.png"
            try:
                with Image.open(sample.image) as picture:
                    picture.convert("RGB").save(image)
            except Exception as error:  # of formats that Pillow doesn't know, and broken files
                what = f"a {sample.image.suffix.lower()} file, which can't be read"
                raise BadInput(sample.image, what, "Save it as JPEG or PNG") from error
        masks, values = sample.masks, None
        if not isinstance(masks, list):
            values = masks()
        elif colours:
            values, shares = _from_colours(masks, colours)
        elif meaning.foreground:
            values = np.maximum.reduce([_from_values(mask, meaning.foreground) for mask in masks])
        elif len(masks) > 1:
            if meaning.num_classes > 1:
                raise BadInput(sample.image, "several masks, which can be united for one class alone", "Keep one")
            values = np.maximum.reduce([read_mask(mask) for mask in masks]) * np.uint8(255)
        elif masks[0].suffix.lower() not in MASK_ENDINGS:
            values = read_values(masks[0])
        elif meaning.ignore_index != IGNORED:
            values = read_mask(masks[0], classes=Classes(meaning.num_classes, meaning.ignore_index))
        if values is None:
            return (image, masks[0]), shares
        Image.fromarray(values).save(mask := scratch / f"{name}.mask.png")
        return (image, mask), shares
    except BadInput as error:
        return error
    except ValueError as error:  # masks of one image that differ in size
        return BadInput(sample.image, f"its masks can't be united ({error})", "Give all of them the image's size")


def _from_values(mask: Path, foreground: str) -> np.ndarray:
    values = read_values(mask)
    if values.ndim > 2:
        raise BadInput(mask, "a mask in colour", "Give --colours")
    try:
        chosen = (
            values != 0 if foreground == "nonzero" else np.isin(values, [int(n) for n in foreground.split(",")])
        )
    except ValueError as error:
        raise BadInput(
            "--foreground", f"{foreground!r} can't be used", "Give nonzero, or numbers as 1,2"
        ) from error
    return chosen.astype(np.uint8) * 255


class Colour(NamedTuple):
    name: str
    rgb: tuple[int, int, int]
    number: int  # of its class


def read_colours(file: str) -> list[Colour]:
    """The colours of a list, such as CVAT's `car:128,0,0::`, CamVid's `128 0 0 car` or `#800000 car`.

    Classes are numbered in the list's order. One called background is 0; ignore, void and unlabelled are ignored.
    """
    try:
        rows = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise BadInput(
            file, f"can't be read as a list of colours ({error})", "Give a line R G B NAME each"
        ) from error
    found: list[tuple[str, tuple[int, int, int]]] = []
    for row in rows:
        if hexed := re.search(r"#([0-9a-fA-F]{6})\b", row):
            rgb, rest = tuple(bytes.fromhex(hexed[1])), row.replace(hexed[0], " ")
        elif numbers := re.search(r"(?<![\w.])(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})(?![\w.])", row):
            rgb, rest = tuple(map(int, numbers.groups())), row.replace(numbers[0], " ", 1)
        else:
            continue
        words = [word.strip() for word in re.split(r"[:,;\t]|\s{2,}", rest) if word.strip()]
        found.append((words[0] if words else "#" + bytes(rgb).hex(), rgb))
    if not found or any(max(rgb) > 255 for _, rgb in found):
        raise BadInput(file, "no list of colours", "Give a line R G B NAME for each colour, from 0 to 255")
    special = {name: SPECIAL[name.strip("_").lower()] for name, _ in found if name.strip("_").lower() in SPECIAL}
    others = list(dict.fromkeys(name for name, _ in found if name not in special))
    first = 1 if 0 in special.values() else 0
    numbers = special | {name: number for number, name in enumerate(others, first)}
    return [Colour(name, rgb, numbers[name]) for name, rgb in found]


def _from_colours(masks: Sequence[Path], colours: Sequence[Colour]) -> tuple[np.ndarray, dict[str, float]]:
    """Class numbers of a mask in colour, and the shares of colours that aren't listed."""
    if len(masks) > 1:
        raise BadInput(masks[1], "a second mask in colour for its image", "Keep one")
    codes = _codes(masks[0])
    found, counts = np.unique(codes, return_counts=True)
    numbers = {int.from_bytes(bytes(colour.rgb), "big"): colour.number for colour in colours}
    shares = {f"#{c:06x}": n / codes.size for c, n in zip(found.tolist(), counts, strict=True) if c not in numbers}
    table = np.array([numbers.get(code, IGNORED) for code in found.tolist()], np.uint8)
    return table[np.searchsorted(found, codes)], shares


def _codes(mask: Path) -> np.ndarray:
    return read_values(mask, colour=True).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])


def _unlisted(shares: dict[tuple[str, Path], float], file: str, count: int) -> list[BadInput]:
    """The colours that aren't listed, each with its share of all masks; of many, the commonest."""
    total: Counter[str] = Counter()
    for (colour, _), share in shares.items():
        total[colour] += share / count
    told = ", ".join(f"{colour} ({share:.2%})" for colour, share in total.most_common(8))
    more = f" and {len(total) - 8} more" if len(total) > 8 else ""
    remedy = "Add a line for each, called ignore if its pixels are to be left out"
    return [BadInput(file, f"lacks colours of the masks: {told}{more}", remedy)] if total else []


def _binary_if_possible(masks: Sequence[Path], count: int) -> Classes:
    """The classes of masks written here. Of one without ignored pixels, 255 instead of 1 is written for it."""
    if count > 2 or any((np.asarray(Image.open(mask)) == IGNORED).any() for mask in masks):
        return Classes(max(2, count))
    for mask in masks:
        Image.fromarray(np.asarray(Image.open(mask)) * np.uint8(255)).save(mask)
    return Classes()


def meaning_of(values: Sequence[set[int]], ignored: int = 255) -> str:
    """What the values of many masks are: "objects" numbered in each mask anew, "classes", or "other"."""
    found = [some - {ignored} for some in values]
    together = set().union(*found)
    last = {max(some) for some in found if some and max(some)}
    whole = all(some <= {0} or some | {0} == {*range(max(some) + 1)} for some in found)
    if whole and len(last) > 1 and not any(ignored in some for some in values):
        return "objects"
    return "classes" if together == {*range(len(together))} and len(together) > 1 else "other"


def _classes_in(prepared: Prepared, ignored: int) -> Classes:
    """The classes of masks that aren't all of one. Raises BadInput that names an option, if they don't tell."""
    refused = {error.subject: error for error in prepared.bad if _VALUES.match(error.finding)}
    if not refused:
        return prepared.classes
    paths = [mask for _, mask in prepared.scan.pairs]
    colours = [mask for mask in paths if str(mask) in refused and "colour" in refused[str(mask)].finding]
    if colours:
        shares: Counter[int] = Counter()
        for mask in colours[:50]:
            shares.update(
                dict(zip(*(a.tolist() for a in np.unique(_codes(mask), return_counts=True)), strict=True))
            )
        rows = (f"{c >> 16} {c >> 8 & 255} {c & 255} ({n / shares.total():.1%})" for c, n in shares.most_common(8))
        finding = f"in colour, as {counted(len(colours) - 1, 'other mask')}: {', '.join(rows)}"
        raise BadInput(colours[0], finding, "Give --colours FILE, with a line R G B NAME for each colour")
    values = []
    for mask in paths:
        try:
            values.append({*np.unique(read_values(mask)).tolist()})
        except BadInput:  # it is among the findings
            values.append(set())
    kind, found = meaning_of(values, ignored), sorted(set().union(*values))
    last = max((n for n in found if n != ignored), default=0)
    told = " ".join(map(str, found[:10])) + " ..." * (len(found) > 10)
    example = next(iter(refused))
    if kind == "classes" and last < 255:
        return Classes(last + 1, ignored)
    if kind == "objects":
        ends = sorted(max(some) for some in values if some)
        finding = f"numbers from 0 on, up to {ends[0]} in one mask and {ends[-1]} in another, as objects have them"
        remedy = f"Give --foreground nonzero for one class, or --NUM_CLASSES {last + 1} if they are classes"
        raise BadInput(example, finding, remedy)
    remedy = f"Give --foreground {last} or others, as 1,2, or --NUM_CLASSES {last + 1} if they are classes"
    if last > 254 or len(found) > 30:
        remedy = "Give --foreground nonzero, or the numbers of the foreground, as 1,2"
    raise BadInput(example, f"masks hold {told}", remedy)


_VALUES = re.compile(r"values up to|a mask in colour|a palette in colour, whose black")


def _hint(error: BadInput) -> str:
    return (
        "Change the mask, or give --foreground or --NUM_CLASSES" if _VALUES.match(error.finding) else error.remedy
    )


def _swapped(bad: Sequence[BadInput]) -> list[BadInput]:
    """The findings; of a mask that has another image's size, and the other way round, both are named."""
    sizes = {
        i: f.groups()
        for i, e in enumerate(bad)
        if (f := re.search(r"is (\d+x\d+), its image (\d+x\d+)", e.finding))
    }
    told = list(bad)
    for i, (mask, image) in sizes.items():
        others = [j for j, other in sizes.items() if other == (image, mask)]
        if mask != image and len(others) == 1:
            told[i] = BadInput(
                bad[i].subject,
                f"{bad[i].finding}, and with {Path(bad[others[0]].subject).name} it is the other way round",
                "Look whether the two are swapped",
            )
    return told


def _size(image: Path) -> Size | None:
    """An upright image's (height, width), without reading its pixels."""
    try:
        if not image.is_file():  # reading from a pipe would wait for ever
            return None
        with Image.open(image) as opened:
            return opened.size if opened.getexif().get(ORIENTATION, 1) >= 5 else opened.size[::-1]
    except Exception:  # broken: what is wrong is found when it is read
        return None


def median_shape(sizes: Sequence[Size]) -> Size:
    return tuple(round(statistics.median(side)) for side in zip(*sizes, strict=True))


def suggest_size(sizes: Sequence[Size | None]) -> Size:
    """(height, width) to train at: of the median shape, with about AREA pixels or all that it has, in multiples of
    16 and 32 at the least."""
    known = [size for size in sizes if size]
    height, width = median_shape(known) if known else (160, 240)
    scale = min(1, (AREA / (height * width)) ** 0.5)
    return tuple(max(32, round(side * scale / 16) * 16) for side in (height, width))


def _shape(prepared: Prepared) -> Size:
    return median_shape([m.size for m in prepared.metadata.values()] or [(0, 0)])


def describe(plain: Plain) -> str:
    """The share of pixels of each class, the median shape, and a size to train at."""
    metadata, classes = plain.prepared.metadata.values(), plain.prepared.classes
    names = plain.names or ([] if classes.multiclass else ["background", "foreground"])
    totals = np.sum([np.multiply(m.shares, m.size[0] * m.size[1]) for m in metadata], axis=0)
    pixels = sum(m.size[0] * m.size[1] for m in metadata)
    labels = names if len(names) == len(totals) else [f"class {n}" for n in range(len(totals))]
    shares = ", ".join(f"{label} {total / pixels:.1%}" for label, total in zip(labels, totals, strict=True))
    if (ignored := 1 - totals.sum() / pixels) > 5e-4:
        shares += f", ignored {ignored:.1%}"
    (height, width), size = _shape(plain.prepared), plain.prepared.size
    return (
        f"pixels: {shares}\nmedian shape {width}x{height}; a size to train at: {size[1]}x{size[0]} (width x height)"
    )
