"""Images and masks in files, as arrays."""

import hashlib
import io
import os
import re
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from support.errors import BadInput
from support.gif import read_sparse_gif

FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP")  # by content, whatever a file's ending says
MAX_CLASSES = 64  # distinct values of a mask that may be numbers of classes; a soft edge has more
IGNORED = 255  # in arrays of classes, whatever number files have for it: neither learnt nor scored

# How a file begins that is no picture for us, what it is, and what to do.
NO_PICTURES = (
    (rb"\Z", "an empty file", "Copy or download it again"),
    (rb"version https://git-lfs", "a git-lfs pointer to a picture", "Run git lfs pull"),
    (rb"\s*<(!doctype|html|\?xml)", "a web page or XML", "Download it again"),
    (rb"%!PS|%PDF|8BPS|SIMPLE  =", "a PostScript, PDF, Photoshop or FITS file", "Save it as JPEG or PNG"),
    (rb"....ftyp", "a HEIC, AVIF or film file", "Save it as JPEG or PNG"),
    (rb"\xff\xd8\xff|\x89PNG|GIF8|II\*\0|MM\0\*|RIFF....WEBP", "damaged or cut short", "Copy or download it again"),
    (rb"[\s -~]*\Z", "a text file", "Replace or remove it"),
    (rb"", f"none of {', '.join(FORMATS)}", "Save it as JPEG or PNG, or remove it"),
)

Size = tuple[int, int]  # (height, width) in pixels, as arrays and tensors have it
Pair = tuple[Path, Path]  # a image and its mask


@dataclass(frozen=True)
class Classes:
    """What the values of masks mean. With a `count` of 1 they tell foreground from background; with more they are
    the numbers of classes, from 0, the background, to `count` - 1, and `ignored` for pixels of none.

    Raises BadInput where `count` isn't 1 to 255, and where `ignored` is a class or more than 255.
    """

    count: int = 1
    ignored: int = 255

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 255:
            raise BadInput("NUM_CLASSES", f"{self.count} can't be used", "Give 1 for foreground alone, or 2 to 255")
        if self.multiclass and not self.count <= self.ignored <= 255:
            remedy = f"Give {self.count} to 255: those below are classes"
            raise BadInput("IGNORE_INDEX", f"{self.ignored} can't be used", remedy)

    @property
    def multiclass(self) -> bool:
        """Whether masks hold numbers of classes."""
        return self.count > 1


ONE_CLASS = Classes()


def read_image(path: str | Path, size: Size | None = None) -> np.ndarray:
    """A image as uint8 (H, W, 3), turned upright as its EXIF orientation says.

    With `size`, it is scaled to (height, width) by averaging over areas. A JPEG is then decoded at the smallest
    DCT scale that gives the same, to one gray level on average, which is several times faster than in full.
    """
    return read_with_size(path, size)[0]


def read_with_size(path: str | Path, size: Size | None = None) -> tuple[np.ndarray, Size]:
    """What `read_image` gives, and the (height, width) that the upright image has before it is scaled."""
    decoded = _decode(path, _read_bytes(path), size)
    return _to_image(decoded, path, size), decoded.size


def read_mask(path: str | Path, size: Size | None = None, classes: Classes = ONE_CLASS) -> np.ndarray:
    """A mask as uint8 (H, W) in {0, 1}; of several classes, in {0, ..., count - 1, IGNORED}.

    A palette of grays is read by its colours, a coloured one by index. Values in {0, 1} stand as they are;
    otherwise foreground is 128 and up. With `size`, a pixel is foreground where at least half of its area is:
    so the mask stays centred on its image, where nearest-neighbour scaling would shift it.

    Of several classes, a palette is read by index and anything else by value, and with `size` a pixel is of the
    class, or of the ignored, that has the most of its area. Raises BadInput for a value that is neither.
    """
    return _to_mask(_decode_mask(path, _read_bytes(path), classes), path, size, classes)[0]


class Metadata(NamedTuple):
    """What reading a pair in full tells beside its pixels."""

    size: Size  # the image's own, upright
    shares: list[float]  # of the mask's pixels, for each class
    scaled_shares: list[float]  # the same of the mask at the network's size
    between: float  # share of the mask's pixels that are neither its darkest nor its brightest value
    reoriented: bool  # by EXIF, where the mask's file has no such orientation
    digest: str  # of the image's bytes

    @property
    def foreground(self) -> float:
        return sum(self.shares[1:])

    @property
    def scaled_foreground(self) -> float:
        return sum(self.scaled_shares[1:])

    @property
    def classes(self) -> list[int]:
        return [number for number, share in enumerate(self.shares) if share]


def read_pair(pair: Pair, size: Size | None = None, classes: Classes = ONE_CLASS) -> tuple[np.ndarray, np.ndarray]:
    """A image, uint8 (H, W, 3), and its mask, as of `read_mask`. Raises BadInput where their sizes differ."""
    return inspect_pair(pair, size, classes)[:2]


def inspect_pair(
    pair: Pair, size: Size | None = None, classes: Classes = ONE_CLASS
) -> tuple[np.ndarray, np.ndarray, Metadata]:
    """What `read_pair` gives, and the facts about it that the same reading tells."""
    contents = [_read_bytes(path) for path in pair]
    if contents[0] == contents[1]:
        raise BadInput(pair[1], "byte for byte its image", "Put the mask in its place")
    image, truth = _decode(pair[0], contents[0], size), _decode_mask(pair[1], contents[1], classes)
    must_match(pair[1], truth.values.shape, image.size, image.turned)
    mask, foreground, between, found = _to_mask(truth, pair[1], size, classes)
    digest = hashlib.blake2b(contents[0], digest_size=16).hexdigest()
    full = _to_mask(truth, pair[1], None, classes)[0]
    several = max(2, classes.count)
    shares = [[float((m == c).mean()) for c in range(several)] for m in (full, mask)]
    exif = Image.open(pair[0]).getexif().get(0x0112, 1)
    unseen = exif in (2, 3, 4) or (exif in (5, 6, 7, 8) and image.size[0] == image.size[1])
    metadata = Metadata(image.size, *shares, between, unseen, digest)
    return _to_image(image, pair[0], size), mask, metadata


def must_match(path: Path, mask: Size, image: Size, turned: bool = False) -> None:
    """Raise BadInput about a mask's file where its size is not its image's, which EXIF may have `turned`."""
    if mask != image:
        sizes = f"{mask[1]}x{mask[0]}, its image {image[1]}x{image[0]}"
        finding = f"the mask is {sizes}{' as its EXIF orientation turns it' * turned}"
        raise BadInput(path, finding, "Give both the same size")


class _Decoded(NamedTuple):
    picture: Image.Image  # turned upright; where it was decoded at a reduced scale, smaller than `size`
    size: Size  # its own, upright
    turned: bool  # by its EXIF orientation, so that height and width have changed places
    lossy: bool  # a JPEG, whose values have strayed from those that were saved


def _read_bytes(path: str | Path) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading from a pipe would wait for ever
            raise BadInput(path, "a folder, a pipe or a device", "Replace or remove it")
        return Path(path).read_bytes()
    except OSError as error:
        raise BadInput(path, f"can't be read ({error.strerror})", "Replace or remove it") from error


def _decode(path: str | Path, data: bytes, size: Size | None = None) -> _Decoded:
    """Decode a file's bytes, no finer than `size` needs; whatever goes wrong becomes a BadInput that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd tags, say, which change nothing
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            if picture.format == "PNG":
                _check_png(data)
            if picture.format != "MPO" and getattr(picture, "is_animated", False):  # an MPO is one shot, twice
                raise BadInput(path, f"holds {picture.n_frames} pictures", "Save the one that counts by itself")
            turned = picture.getexif().get(0x0112, 1) in range(5, 9)  # these orientations swap the sides
            own = picture.size if turned else picture.size[::-1]
            lossy = picture.format in ("JPEG", "MPO")
            drafted = size is not None and picture.draft(
                None, _reduced(picture.size, size if turned else size[::-1])
            )
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            own = own if drafted else picture.size[::-1]  # a TIFF has turned itself
            return _Decoded(picture, own, turned, lossy)
    except BadInput:
        raise
    except Image.UnidentifiedImageError as error:
        what, remedy = next(words for start, *words in NO_PICTURES if re.match(start, data[:64], re.I | re.S))
        raise BadInput(path, f"can't be read as a picture ({what})", remedy) from error
    except Exception as error:  # broken files raise almost anything, from SyntaxError to struct.error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BadInput(path, f"can't be read as a picture ({reason})", "Replace or remove it") from error


def _check_png(data: bytes) -> None:
    """Raise a ValueError where the pixels of a PNG aren't those that were saved.

    Pillow passes over their checksums, and its `verify` also refuses files that lack no more than an end marker.
    """
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        saved = data[end : end + 4]
        if (
            kind == b"IDAT"
            and len(saved) == 4
            and zlib.crc32(data[place + 4 : end]) != int.from_bytes(saved, "big")
        ):
            raise ValueError("its pixels have changed since they were saved")
        place = end + 4


def _reduced(own: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """What to ask of a JPEG's decoder, which knows a half, a quarter and an eighth, for a picture to be scaled to
    `wanted`: (width, height), as both are."""
    for scale in (8, 4, 2):
        whole = [-(-side // scale) for side in own]
        covers = all(have >= want for have, want in zip(whole, wanted, strict=True))
        # The two smaller ones, scaled once more, stray by over one gray level, unless whole pixels make one.
        if covers and (scale == 2 or not any(have % want for have, want in zip(whole, wanted, strict=True))):
            return max(1, own[0] // scale), max(1, own[1] // scale)
    return own


def _to_image(decoded: _Decoded, path: str | Path, size: Size | None) -> np.ndarray:
    picture = decoded.picture
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))  # convert() would saturate
    elif picture.mode in ("I", "F"):
        raise BadInput(path, f"pixels of type {picture.mode}, whose range is unknown", "Save it with 8 bits")
    return np.array(_scaled(picture.convert("RGB"), size))


class _Mask(NamedTuple):
    values: np.ndarray  # uint8 (H, W), as they stand in the file: grays, or indices of the palette
    palette: np.ndarray | None  # uint8 (colours, 3)
    lossy: bool


def _decode_mask(path: str | Path, data: bytes, classes: Classes) -> _Mask:
    if sparse := read_sparse_gif(data):
        return _Mask(*sparse, False)
    decoded = _decode(path, data)
    picture = decoded.picture
    remedy = (
        f"Save it with the numbers 0 to {classes.count - 1}" if classes.multiclass else "Save it in black and white"
    )
    values = np.asarray(picture)
    if picture.mode.startswith("I;16"):
        if classes.multiclass and values.max() > 255:
            raise BadInput(path, "values of more than 8 bits", remedy)
        if 255 < values.max() < 2**15:
            raise BadInput(path, f"values up to {values.max()}, where white has {2**16 - 1}", remedy)
        values = values if values.max() <= 255 else values >> 8
    elif picture.mode in ("LA", "RGB", "RGBA"):
        channels = values
        values = channels[..., : len(picture.mode.rstrip("A"))]
        if (values != values[..., :1]).any():
            raise BadInput(path, "a mask in colour", remedy)
        values = np.ascontiguousarray(values[..., 0])
        if picture.mode.endswith("A") and values.min() == values.max() and np.ptp(channels[..., -1]):
            raise BadInput(path, "of one colour, with its shape in the alpha channel", remedy)
    elif picture.mode not in ("1", "L", "P"):
        raise BadInput(path, f"a mask with pixels of type {picture.mode}", "Save it with 8 bits")
    palette = np.array(picture.getpalette("RGB")).reshape(-1, 3) if picture.mode == "P" else None
    return _Mask(values.astype(np.uint8, copy=False), palette, decoded.lossy)


def _to_mask(
    decoded: _Mask, path: str | Path, size: Size | None, classes: Classes
) -> tuple[np.ndarray, float, float, list[int]]:
    """The mask as `read_mask` has it, its share of foreground, the share of pixels between its two ends, and the
    classes that it holds."""
    if classes.multiclass:
        return _to_classes(decoded, path, size, classes)
    counts = _count_values(decoded.values)
    found = np.flatnonzero(counts)
    grays = np.arange(256)
    if decoded.palette is not None:
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(decoded.palette)] = decoded.palette
        if (colours[found] == colours[found, :1]).all():
            grays = colours[:, 0].astype(int)
        elif black := [number for number in found[1:] if found[0] == 0 and not colours[number].any()]:
            finding = f"a palette in colour, whose black is number {black[0]}, where background is 0"
            raise BadInput(path, finding, "Save it in black and white")
    levels = np.unique(grays[found])
    if not decoded.lossy and (1 < levels[-1] < 128 or _has_classes(decoded.values, grays, levels)):
        finding = f"values up to {levels[-1]}, {len(levels)} in all, where background is 0 and foreground 1 or 255"
        raise BadInput(path, finding, "Save it in black and white, or give NUM_CLASSES for more classes")
    limit = 1 if levels[-1] <= 1 else 128
    in_front = grays >= limit
    between = ~np.isin(grays, levels[[0, -1]])
    shares = [float(counts[some].sum() / counts.sum()) for some in (in_front, between)]
    if found[-1] <= 1 and in_front[1] and not in_front[0]:
        foreground = decoded.values.view(bool)  # as it is, to save the time
    elif decoded.palette is None:
        foreground = decoded.values >= limit
    else:
        foreground = in_front[decoded.values]
    return (_areas(foreground, size) >= 128).astype(np.uint8), *shares, []


def _to_classes(
    decoded: _Mask, path: str | Path, size: Size | None, classes: Classes
) -> tuple[np.ndarray, float, float, list[int]]:
    """What `_to_mask` gives, of a mask of several classes."""
    if decoded.lossy:
        raise BadInput(path, "a JPEG, which blurs numbers of classes into others", "Save it as PNG")
    counts = _count_values(decoded.values)
    found = np.flatnonzero(counts).tolist()
    if wrong := [value for value in found if value >= classes.count and value != classes.ignored]:
        finding = (
            f"the value {wrong[0]}, where classes are 0 to {classes.count - 1} and {classes.ignored} is ignored"
        )
        raise BadInput(path, finding, "Change the mask, NUM_CLASSES or IGNORE_INDEX")
    mask, most = np.zeros((2, *(size or decoded.values.shape)), np.uint8)
    for value in found:
        area = _areas(decoded.values == value, size)
        mask[area >= most] = value  # of equal ones the last, as foreground wins over background
        most = np.maximum(most, area)
    mask[mask == classes.ignored] = IGNORED
    foreground = counts[1 : classes.count].sum() / counts.sum()
    return mask, float(foreground), 0.0, [value for value in found if value < classes.count]


def _count_values(values: np.ndarray) -> np.ndarray:
    """How many pixels have each of the 256 values. Most masks have two values, whose pixels are sooner counted."""
    counts = np.zeros(256, np.int64)
    low, high = values.min(), values.max()
    counts[high] = np.count_nonzero(values if (low, high) == (0, 1) else values == high)
    if low < high:
        counts[low] = values.size - counts[high] if high - low == 1 else np.count_nonzero(values == low)
    return counts if counts.sum() == values.size else np.bincount(values.ravel(), minlength=256)


def _has_classes(values: np.ndarray, grays: np.ndarray, levels: np.ndarray) -> bool:
    """Whether levels between the ends number classes: these are few and fill areas, while those along a soft edge
    are many, or have no pixel whose neighbours are all like it."""
    if not 2 < len(levels) <= MAX_CLASSES:
        return False
    picture = Image.fromarray(grays.astype(np.uint8)[values])
    low, high = (np.asarray(picture.filter(f(3))) for f in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    return bool(np.isin(low[low == high], levels[1:-1]).any())


def _areas(pixels: np.ndarray, size: Size | None) -> np.ndarray:
    """The share of each pixel's area that is covered by true ones of `pixels`, bool (H, W), as 0 to 255: uint8 of
    (height, width)."""
    height, width = pixels.shape
    rows, rest = divmod(height, size[0]) if size else (1, 0)
    if rest or not 1 < rows < 256 or width < size[1]:
        return np.asarray(_scaled(Image.fromarray(pixels.view(np.uint8) * np.uint8(255)), size))
    # Whole rows that make one are added first, which leaves less for the rest to do.
    sums = np.add.reduce(pixels.view(np.uint8).reshape(size[0], rows, width), 1, dtype=np.uint8)
    areas = np.asarray(_scaled(Image.fromarray(sums.astype(np.float32)), size))
    return (areas * (255 / rows) + 0.5).astype(np.uint8)


def _scaled(picture: Image.Image, size: Size | None) -> Image.Image:
    if size is None or picture.size == size[::-1]:
        return picture
    shrinks = picture.height >= size[0] and picture.width >= size[1]
    return picture.resize(size[::-1], Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
