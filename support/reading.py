"""Images and masks in files, as arrays."""

import hashlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from support.errors import BadInput, counted

FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM")  # by content, whatever a file's ending says
TIFF = (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")  # how such a file begins
MAX_PIXELS = 2**28  # 16,384 squared: more in a file's header is taken for an attack on the memory
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice this
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28  # texts and profiles of megabytes are common
IGNORED = 255  # in arrays of classes, whatever value files have for it: neither trained nor scored
ORIENTATION = 0x0112  # the EXIF tag, 1 to 8; 1 is upright, and of the others 5 and up lie on a side
GRAYS = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)  # the palette of a file without one

# How a file begins that is no image for us, what it is, and what to do.
NO_IMAGES = (
    (rb"\Z", "an empty file", "Copy or download it again"),
    (rb"version https://git-lfs", "a git-lfs pointer to an image", "Run git lfs pull"),
    (rb"\s*<(!doctype|html|\?xml)", "a web page or XML", "Download it again"),
    (rb"%!PS|%PDF|8BPS|SIMPLE  =", "a PostScript, PDF, Photoshop or FITS file", "Save it as JPEG or PNG"),
    (rb"....ftyp", "a HEIC, AVIF or film file", "Save it as JPEG or PNG"),
    (rb"\xff\xd8|\x89PNG|GIF8|II[*+]|MM\0[*+]|RIFF", "damaged or cut short", "Copy or download it again"),
    (rb"[\s -~]*\Z", "a text file", "Replace or remove it"),
    (rb"", f"none of {', '.join(FORMATS)}", "Save it as JPEG or PNG, or remove it"),
)

Size = tuple[int, int]  # (height, width) in pixels, as arrays and tensors have it
Pair = tuple[Path, Path]  # an image and its mask
WHITE = 2**16 - 1  # of 16 bits


@dataclass(frozen=True)
class Classes:
    """What the values of masks mean. With a `count` of 1 they tell foreground from background; with more they are
    class numbers, from 0, the background, to `count` - 1, and `ignored` for pixels of none.

    Raises BadInput if `ignored` is a class.
    """

    count: int = 1
    ignored: int = 255

    def __post_init__(self) -> None:
        if self.multiclass and self.ignored < self.count:
            remedy = f"Give {self.count} to 255: those below are classes"
            raise BadInput("IGNORE_INDEX", f"{self.ignored} can't be used", remedy)

    @property
    def multiclass(self) -> bool:
        """Whether masks hold class numbers."""
        return self.count > 1


@dataclass(frozen=True)
class Reading:
    """How files become arrays. The defaults are RGB and one class, at the images' own sizes."""

    size: Size | None = None  # (height, width) that images and masks are scaled to; None keeps their own
    classes: Classes = Classes()
    channels: int = 3  # of images: 1 is gray and 3 RGB, whatever a file holds; of others it must have as many
    highest: int = WHITE  # value of 16 bits, which becomes 255


AS_IS = Reading()


class Metadata(NamedTuple):
    """What reading a pair tells beside its pixels."""

    size: Size  # the image's own, upright
    shares: list[float]  # of the mask's pixels, for each class; of one class, for background and foreground
    scaled_shares: list[float]  # the same of the mask at the network's size
    ceiling: float  # Dice of the mask at the network's size, scaled back up: of the best possible prediction
    between: float  # share of the mask's pixels that are neither its darkest nor its brightest value
    digest: str  # of the image's bytes
    palette: dict[str, int]  # of a mask of classes, the colours that it uses and their numbers; {} if it has none

    @property
    def foreground(self) -> float:
        return sum(self.shares[1:])

    @property
    def scaled_foreground(self) -> float:
        return sum(self.scaled_shares[1:])


def read_image(path: str | Path, reading: Reading = AS_IS) -> np.ndarray:
    """An image as uint8 (H, W, channels), rotated as its EXIF orientation says.

    With a size, it is scaled by averaging over areas. A JPEG is then decoded at the smallest DCT scale of at least
    three times that, which gives the same to one gray level on average, and is several times faster.
    """
    return read_with_size(path, reading)[0]


def read_with_size(path: str | Path, reading: Reading = AS_IS) -> tuple[np.ndarray, Size]:
    """What `read_image` gives, and the (height, width) that the upright image has before it is scaled."""
    decoded = _decode(path, reading)
    return _to_image(decoded, path, reading), decoded.size


def image_size(path: Path) -> Size | None:
    """An upright image's (height, width), from its header; None if that can't be read."""
    _quiet()
    with suppress(Exception):  # what is wrong is found when it is read
        if not path.is_file():  # reading from a pipe would wait for ever
            return None
        with suppress(Exception), Image.open(path) as image:
            return image.size if _orientation(image) >= 5 else image.size[::-1]
        with _tiff_page(path, path) as page:  # of many bands
            return page.imagelength, page.imagewidth
    return None


def read_mask(path: str | Path, reading: Reading = AS_IS) -> np.ndarray:
    """A mask as uint8 (H, W) in {0, 1}; of several classes, in {0, ..., count - 1, IGNORED}.

    A palette of grays is read by its colours, a coloured one by index. Values in {0, 1} stand as they are;
    otherwise foreground is 128 and up. With a size, a pixel is foreground if at least half of its area is: so the
    mask stays centred on its image, and nearest-neighbour scaling would shift it.

    Of several classes, a palette is read by index and anything else by value, and with a size a pixel is of the
    class, or of the ignored, with most of its area. Raises BadInput for a value that is neither.
    """
    return _scale_mask(_to_mask(_decode(path), path, reading.classes)[0], reading.size)


def read_values(path: str | Path, colour: bool = False) -> np.ndarray:
    """What a mask's file holds: gray values or palette indices (H, W), or, of RGB whose channels differ and with
    `colour` of anything, RGB (H, W, 3)."""
    if colour:
        return read_image(path)
    values = _visible(_decode(path), path)
    return values.astype(np.uint8) if values.dtype == bool else values


def read_pair(pair: Pair, reading: Reading = AS_IS) -> tuple[np.ndarray, np.ndarray]:
    """An image, as of `read_image`, and its mask, as of `read_mask`. Raises BadInput if their sizes differ."""
    return inspect_pair(pair, reading)[:2]


def inspect_pair(pair: Pair, reading: Reading = AS_IS) -> tuple[np.ndarray, np.ndarray, Metadata]:
    """What `read_pair` gives, and the metadata that the same reading tells."""
    image, decoded = _decode(pair[0], reading), _decode(pair[1])
    if image.data == decoded.data:
        raise BadInput(pair[1], "byte for byte its image", "Put the mask in its place")
    must_match(pair[1], decoded.size, image.size, image.turned)
    mask, between, palette = _to_mask(decoded, pair[1], reading.classes)
    scaled = _scale_mask(mask, reading.size)
    metadata = Metadata(
        image.size,
        *((_count(m)[: max(2, reading.classes.count)] / m.size).tolist() for m in (mask, scaled)),
        ceiling(mask, scaled),
        between,
        hashlib.blake2b(image.data, digest_size=16).hexdigest(),
        palette,
    )
    return _to_image(image, pair[0], reading), scaled, metadata


def ceiling(mask: np.ndarray, scaled: np.ndarray) -> float:
    """Dice of a mask, uint8 (H, W), with what it is at the network's size, uint8 (h, w), when that is scaled back
    up as logits are: what a perfect prediction scores. Of several classes, the mean over those that the mask
    shows."""
    if mask.shape == scaled.shape:
        return 1.0
    scores = []
    for number in {*np.flatnonzero(_count(mask))} - ({0, IGNORED} if mask.any() else set()):
        logits = (scaled == number).astype(np.float32) - 0.5
        predicted, target = cv2.resize(logits, mask.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0, mask == number
        scores.append(2 * (predicted & target).sum() / (predicted.sum() + target.sum()))
    return float(np.mean(scores)) if scores else 1.0


def must_match(path: Path, mask: Size, image: Size, rotated: bool = False) -> None:
    """Raise BadInput about a mask's file if its size is not its image's, which EXIF may have `rotated`."""
    if mask != image:
        sizes = f"{mask[1]}x{mask[0]}, its image {image[1]}x{image[0]}"
        finding = f"the mask is {sizes}{' as its EXIF orientation rotates it' * rotated}"
        raise BadInput(path, finding, "Give both the same size")


class _Decoded(NamedTuple):
    data: bytes  # of the file
    values: np.ndarray  # its pixels, upright, (H, W) or (H, W, N); of a palette, the indices
    size: Size  # its own, upright; of a JPEG at a reduced scale, larger than that of the values
    turned: bool  # in the file it lies on its side, as EXIF says
    palette: np.ndarray = GRAYS
    lossy: bool = False  # a JPEG, whose values have strayed from those that were saved


def _decode(path: str | Path, reading: Reading | None = None) -> _Decoded:
    """A file's pixels as they are; with a `reading`, for 1 or 3 channels in gray or RGB, and no finer than its size
    needs. Whatever goes wrong becomes a BadInput that names the file."""
    data, remedy = b"", "Replace or remove it"
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # reading from a pipe would wait for ever
            raise BadInput(path, "a folder, a pipe or a device", remedy)
        data = Path(path).read_bytes()
        _quiet()
        return _decode_pixels(path, data, reading)
    except BadInput:
        raise
    except Image.UnidentifiedImageError:
        what, remedy = next(words for start, *words in NO_IMAGES if re.match(start, data[:64], re.I | re.S))
    except Exception as error:  # broken files raise almost anything, from SyntaxError to struct.error
        what = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        if re.search("imagecodecs|tifffile|'compression'", what):
            remedy = "Run pip install tifffile imagecodecs"
    raise BadInput(path, f"can't be read as an image ({what})", remedy)


def _decode_pixels(path: str | Path, data: bytes, reading: Reading | None) -> _Decoded:
    channels = reading.channels if reading else 3
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        if data[:4] not in TIFF:
            raise
        return _decode_bands(path, data, channels)
    if image.format == "TIFF" and not (channels in (1, 3) and _reads_all(image)):
        return _decode_bands(path, data, channels)
    if image.format != "MPO" and getattr(image, "is_animated", False):  # an MPO is one shot, twice
        raise BadInput(path, f"holds {image.n_frames} images", "Save the one that counts by itself")
    orientation, palette, lossy = _orientation(image), GRAYS, image.format in ("JPEG", "MPO")
    turned = orientation >= 5
    size = image.size if turned else image.size[::-1]
    if reading and reading.size:
        image.draft(None, [3 * side for side in (reading.size if turned else reading.size[::-1])])
    image.load()  # which says what is broken
    if image.format == "PNG" and data[24] == 16 and len(image.getbands()) > 1:  # Pillow keeps the upper 8 bits
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # BGR or BGRA
        values = values[..., [2, 1, 0, 3][: values.shape[2] if channels == 4 else 3]]
    else:
        wanted = "L" if channels == 1 else "RGB"
        if reading and channels in (1, 3) and image.mode[0] not in "IF" and image.mode != wanted:
            image = image.convert(wanted)
        if image.mode == "P":
            palette = np.reshape(image.getpalette("RGB"), (-1, 3)).astype(np.uint8)
            palette = np.pad(palette, ((0, 256 - len(palette)), (0, 0)))
        values = _pixels(image)
    return _Decoded(data, _upright(values, orientation), size, turned, palette, lossy)


def _pixels(image: Image.Image) -> np.ndarray:
    """An image's pixels, copied in strips: as a whole, Pillow would hold a large image in memory three times."""
    width, height = image.size
    strips = [(0, top, width, min(top + 256, height)) for top in range(0, height, 256)]
    first = np.asarray(image.crop(strips[0]))
    values = np.empty((height, *first.shape[1:]), first.dtype)
    for left, top, right, bottom in strips:
        values[top:bottom] = image.crop((left, top, right, bottom))
    return values


def _reads_all(image: Image.Image) -> bool:
    """Whether Pillow reads all of a TIFF: it takes the first of several planes for the image, keeps the upper 8 of
    16 bits in colours, and makes rubbish of both."""
    bands, bits = image.tag_v2.get(277, 1), image.tag_v2.get(258, (1,))[0]
    return bands == 1 or (bits < 16 and len(image.getbands()) > 1)


def _decode_bands(path: str | Path, data: bytes, channels: int) -> _Decoded:
    """A TIFF with any number of bands, interleaved or one after the other."""
    with _tiff_page(path, io.BytesIO(data)) as page:
        if page.imagelength * page.imagewidth > MAX_PIXELS:
            raise ValueError(f"more than {MAX_PIXELS} pixels")
        values, orientation = page.asarray(maxworkers=1), page.tags.valueof(ORIENTATION, 1)
        values = np.moveaxis(values, 0, -1) if page.axes == "SYX" else values
        if page.photometric.name == "RGB" and channels in (1, 3):
            values = values[..., :3]  # without alpha
    values = _upright(values, orientation)
    return _Decoded(data, values, values.shape[:2], orientation >= 5)


@contextmanager
def _tiff_page(path: str | Path, source: str | Path | io.BytesIO) -> Iterator[Any]:
    """The page of a TIFF that holds its image: GDAL adds reduced ones and masks."""
    import tifffile  # only here: few have such files

    with tifffile.TiffFile(source) as file:
        pages = [page for page in file.pages if not page.is_reduced and not page.is_mask]
        if not pages:
            raise Image.UnidentifiedImageError
        if len(pages) > 1:
            raise BadInput(path, f"holds {len(pages)} images", "Save the one that counts by itself")
        yield pages[0]


def _quiet() -> None:
    """Silence what Pillow and tifffile say about odd tags, which change nothing."""
    for library in ("PIL", "tifffile"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module=library)


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels, (H, W) or (H, W, N), as an EXIF orientation turns them."""
    values = values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values
    down, right = -1 if orientation in (3, 4, 7, 8) else 1, -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(values[::down, ::right])


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is to be applied, 1 to 8; 1 if it can't be read, and of a TIFF, which Pillow turns
    upright by itself."""
    with suppress(Exception):  # broken metadata raises almost anything, and says nothing about the pixels
        if image.format != "TIFF" and (value := image.getexif().get(ORIENTATION)) in range(1, 9):
            return value
    return 1


def _gray(values: np.ndarray) -> np.ndarray:
    """Pixels without alpha: (H, W), or (H, W, 3) of RGB whose channels differ."""
    if values.ndim == 2:
        return values
    values = values[..., : 1 if values.shape[2] == 2 else 3]
    return values if (values != values[..., :1]).any() else values[..., 0]


def _visible(decoded: _Decoded, path: str | Path) -> np.ndarray:
    """A mask's pixels without alpha, as of `_gray`. Raises BadInput if it is in alpha that its shape is."""
    values = _gray(decoded.values)
    if decoded.values.shape[2:] in ((2,), (4,)) and not np.ptp(values) and np.ptp(decoded.values[..., -1]):
        raise BadInput(path, "of one colour, with its shape in the alpha channel", "Save the shape as gray values")
    return values


def _to_image(decoded: _Decoded, path: str | Path, reading: Reading) -> np.ndarray:
    values, channels, highest = decoded.values, reading.channels, reading.highest
    if values.dtype.name not in ("uint8", "uint16"):
        raise BadInput(path, f"pixels of type {values.dtype}", "Save it with 8 bits, or 16 unsigned ones")
    bands = 1 if values.ndim == 2 else values.shape[2]
    if bands != channels and not {bands, channels} <= {1, 3}:
        finding = f"{counted(bands, 'band')}, where IN_CHANNELS is {channels}"
        raise BadInput(path, finding, f"Give images of {channels}, or train with --IN_CHANNELS {bands}")
    if values.itemsize == 2:
        most = int(values.max())
        if most < 2**12 and highest == WHITE:  # a factor of its own would give each image another brightness
            finding = "16 bits, of which it uses the lower 12 or fewer"
            raise BadInput(path, finding, "Stretch all images alike to 16 bits, or give --RANGE 4095, say")
        if most > highest:
            raise BadInput(path, f"values up to {most}, where RANGE is {highest}", "Train with a higher --RANGE")
        values = (values.astype(np.uint32) * 256 // (highest + 1)).astype(np.uint8)
    if bands == channels and reading.size is None:
        return np.atleast_3d(values)
    if channels in (1, 3):
        return to_array(Image.fromarray(values), reading)
    # Each by itself, since Pillow has no mode for them all.
    return np.dstack([_scale(Image.fromarray(values[..., band]), reading.size) for band in range(channels)])


def to_array(image: Image.Image, reading: Reading) -> np.ndarray:
    """An image of Pillow's as `read_image` gives it, gray or RGB: uint8 (H, W, 1) or (H, W, 3)."""
    return np.atleast_3d(np.array(_scale(image.convert("L" if reading.channels == 1 else "RGB"), reading.size)))


def _to_mask(decoded: _Decoded, path: str | Path, classes: Classes) -> tuple[np.ndarray, float, dict[str, int]]:
    """A mask's classes, and Metadata's `between` and `palette`."""
    values, colours, remedy = _visible(decoded, path), decoded.palette, "Save it in black and white"
    if classes.multiclass:
        remedy = f"Save it with the numbers 0 to {classes.count - 1}"
    if values.ndim > 2:
        raise BadInput(path, "a mask in colour", remedy)
    if values.dtype.kind not in "bu":
        raise BadInput(path, f"a mask with pixels of type {values.dtype}", "Save it with 8 bits")
    if (most := int(values.max())) > 255:
        if classes.multiclass or most < 2**15:
            raise BadInput(path, f"values up to {most}, where white has {WHITE}", remedy)
        values = values >> 8
    values = values.astype(np.uint8)
    counts = _count(values)
    used = np.flatnonzero(counts)
    gray = (colours[used] == colours[used, :1]).all()
    if classes.multiclass:
        if decoded.lossy:
            raise BadInput(path, "a JPEG, which blurs class numbers into others", "Save it as PNG")
        if wrong := [value for value in used.tolist() if value >= classes.count and value != classes.ignored]:
            known = f"classes are 0 to {classes.count - 1} and {classes.ignored} is ignored"
            remedy = "Change the mask, NUM_CLASSES or IGNORE_INDEX"
            raise BadInput(path, f"the value {wrong[0]}, where {known}", remedy)
        palette = {} if gray else {colours[number].tobytes().hex(): int(number) for number in used}
        return np.where(values == classes.ignored, np.uint8(IGNORED), values), 0.0, palette
    if not gray and (black := [index for index in used if index and not colours[index].any()]):
        finding = f"a palette in colour, whose black is number {black[0]}, where background is 0"
        raise BadInput(path, finding, remedy)
    levels = (colours if gray else GRAYS)[:, 0]  # of each value
    found = np.unique(levels[used]).astype(int)
    if 1 < found[-1] < 128 or not decoded.lossy and _has_flat_areas(levels[values], found[1:-1]):
        finding = f"values up to {found[-1]}, {len(found)} in all, where background is 0 and foreground 1 or 255"
        if decoded.lossy:
            raise BadInput(path, f"a JPEG with {finding}", "Save it as PNG: JPEG blurs 0 and 1 into each other")
        raise BadInput(path, finding, f"{remedy}, as PNG, or give NUM_CLASSES for more classes")
    between = counts[~np.isin(levels, found[[0, -1]])].sum() / values.size
    foreground = levels >= (1 if found[-1] <= 1 else 128)
    return foreground[values].astype(np.uint8), float(between), {}


def _has_flat_areas(gray: np.ndarray, between: np.ndarray) -> bool:
    """Whether a few values `between` black and white are class numbers: soft edges are thin, and no pixel of theirs
    has neighbours that are all like it."""
    if not 0 < len(between) < 63:
        return False
    square = np.ones((3, 3), np.uint8)
    flat = cv2.erode(gray, square) == cv2.dilate(gray, square)
    return bool(np.isin(gray[flat], between).any())


def _count(values: np.ndarray) -> np.ndarray:
    """How many pixels have each of the values 0 to 255: np.unique takes four times as long."""
    return np.bincount(values.ravel(), minlength=256)


def _scale_mask(mask: np.ndarray, size: Size | None) -> np.ndarray:
    """A mask at (height, width), by areas."""
    if size is None or mask.shape == size:
        return mask
    scaled, most = np.zeros(size, np.uint8), np.zeros(size, np.float32)
    for number in np.flatnonzero(_count(mask)):
        area = np.asarray(_scale(Image.fromarray((mask == number).astype(np.float32)), size))
        scaled[area >= most - 1e-6] = number  # of two classes with half of it each, the second
        most = np.maximum(most, area)
    return scaled


def _scale(image: Image.Image, size: Size | None) -> Image.Image:
    if size is None or image.size == size[::-1]:
        return image
    shrinks = image.height >= size[0] and image.width >= size[1]
    return image.resize(size[::-1], Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
