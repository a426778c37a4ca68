"""Files as cameras, microscopes, GDAL and scripts write them: read right, or refused for what they are."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prepare_data import check
from support.errors import BadInput
from support.reading import Classes, Reading, read_image, read_mask

RGB = np.random.default_rng(0).integers(0, 255, (12, 20, 3)).astype(np.uint8)


def write_tiff(path: Path, pixels: np.ndarray, photometric: int, sample_format: int = 1) -> None:
    """A sound little-endian TIFF of one uncompressed strip, of any number of bands: Pillow writes few of them."""
    height, width, bands = pixels.shape
    data = pixels.tobytes()
    tags = {256: [width], 257: [height], 258: [pixels.itemsize * 8] * bands, 259: [1], 262: [photometric]}
    tags |= {273: [0], 277: [bands], 278: [height], 279: [len(data)], 339: [sample_format] * bands}
    tags |= {338: [0] * (bands - 3)} if bands > 3 else {}
    start = 8 + 2 + 12 * len(tags) + 4
    extra, entries = b"", b""
    tags[273] = [start + sum(2 * len(values) for values in tags.values() if len(values) > 2)]
    for tag, values in sorted(tags.items()):
        raw = struct.pack(f"<{len(values)}H", *values)
        place = struct.pack("<I", start + len(extra))
        extra += raw if len(raw) > 4 else b""
        entries += struct.pack("<HHI", tag, 3, len(values)) + (place if len(raw) > 4 else raw.ljust(4, b"\0"))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + extra + data)


@pytest.mark.parametrize(
    "pixels, photometric, sample_format, layout",
    [
        (np.dstack([RGB, RGB[..., :1]]), 1, 1, "4 bands, where IN_CHANNELS is 3"),
        (np.dstack([RGB] * 2 + [RGB[..., :2]]).astype(np.uint16), 1, 1, "8 bands, where IN_CHANNELS is 3"),
        ((RGB / 255).astype(np.float32), 2, 3, "pixels of type float32"),
        (RGB[..., :2].astype(np.uint16) * 257, 1, 1, "2 bands, where IN_CHANNELS is 3"),
    ],
)
def test_a_sound_file_of_an_unknown_layout_is_named(tmp_path, pixels, photometric, sample_format, layout):
    write_tiff(tmp_path / "a.tif", pixels, photometric, sample_format)
    with pytest.raises(BadInput, match=layout):
        read_image(tmp_path / "a.tif")
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[:20])
    with pytest.raises(BadInput, match="cut.tif: can.t be read as an image"):
        read_image(tmp_path / "cut.tif")


def test_a_tiff_of_three_bands_is_rgb(tmp_path):
    write_tiff(tmp_path / "rgb.tif", RGB, 2)
    write_tiff(tmp_path / "deep.tif", RGB.astype(np.uint16) * 257, 2)
    write_tiff(tmp_path / "gray.tif", RGB.astype(np.uint16) * 257, 1)
    write_tiff(tmp_path / "four.tif", np.dstack([RGB, RGB[..., :1]]), 2)
    for name in ("rgb", "deep", "gray", "four"):
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.tif"), RGB)


def test_pages_of_a_stack_are_refused(tmp_path):
    page = Image.fromarray(RGB)
    page.save(tmp_path / "stack.tif", save_all=True, append_images=[page, page])
    with pytest.raises(BadInput, match="stack.tif: holds 3 images. Save the one that counts by itself"):
        read_image(tmp_path / "stack.tif")


@pytest.mark.parametrize("most", [520, 4095])
def test_12_bits_in_16_are_refused_and_not_made_black(tmp_path, most):
    """A factor for each file would give each another brightness; the whole set has to be stretched alike."""
    values = np.linspace(0, most, 240).reshape(12, 20).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "gray.png")
    write_tiff(tmp_path / "rgb.tif", np.dstack([values] * 3), 2)
    for name in ("gray.png", "rgb.tif"):
        with pytest.raises(BadInput, match=f"{name}: 16 bits, of which it uses the lower 12 or fewer. Stretch all"):
            read_image(tmp_path / name)
    full = (values.astype(float) * 65535 / most).astype(np.uint16)
    Image.fromarray(full).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png")[..., 0], full >> 8)


def test_a_mask_of_0_and_1_in_a_jpeg_does_not_become_background(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[8:40, 16:48] = 1
    Image.fromarray(mask).save(tmp_path / "exact.jpg", quality=100, subsampling=0)
    np.testing.assert_array_equal(read_mask(tmp_path / "exact.jpg"), mask)  # nothing was lost in this one
    blurred = mask.copy()
    blurred[20:24, 20:24] = 2  # as its ringing leaves them
    Image.fromarray(blurred).save(tmp_path / "blurred.jpg", quality=100, subsampling=0)
    with pytest.raises(BadInput, match="a JPEG with values up to [2-9], .* Save it as PNG"):
        read_mask(tmp_path / "blurred.jpg")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(*chunks: bytes) -> bytes:
    """RGB as a PNG with these chunks before its pixels."""
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:33] + b"".join(chunks) + data[33:]


TIFF_ORIENTATION = b"II*\0\x08\0\0\0" + struct.pack("<H", 2) + struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0)
BAD_RATIONAL = struct.pack("<HHII", 0x011A, 5, 1, 2**31) + bytes(4)  # its value lies far behind the end


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"tEXt", b"Comment\0" + b"x" * 2**21)],
        [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2**24))],
        [chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**21)))],
        [chunk(b"eXIf", b"nothing of the kind")],
    ],
    ids=["long text", "compressed text", "large profile", "no Exif"],
)
def test_broken_metadata_leaves_the_pixels_of_a_png_alone(tmp_path, chunks):
    (tmp_path / "a.png").write_bytes(png_with(*chunks))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)


@pytest.mark.filterwarnings("ignore:Truncated File Read")  # of the test's own Image.open
@pytest.mark.parametrize("as_file", [lambda exif: png_with(chunk(b"eXIf", exif)), None], ids=["PNG", "JPEG"])
def test_a_bad_rational_beside_an_orientation_leaves_that_in_force(tmp_path, as_file: Callable | None):
    exif = TIFF_ORIENTATION + BAD_RATIONAL
    if as_file is None:
        buffer = io.BytesIO()
        Image.fromarray(RGB).save(buffer, "JPEG", quality=100, exif=b"Exif\0\0" + exif)
        upright = np.asarray(Image.open(buffer))
        data = buffer.getvalue()
    else:
        data, upright = as_file(exif), RGB
    (tmp_path / "a.img").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "a.img"), upright[::-1, ::-1])


def test_every_orientation_is_brought_upright(tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for ending in (".png", ".tif"):
            Image.fromarray(RGB).save(tmp_path / f"a{ending}", exif=exif)
            expected = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1]}
            expected |= {5: RGB.swapaxes(0, 1), 6: RGB[::-1].swapaxes(0, 1)}
            expected |= {7: RGB[::-1, ::-1].swapaxes(0, 1), 8: RGB[:, ::-1].swapaxes(0, 1)}
            np.testing.assert_array_equal(read_image(tmp_path / f"a{ending}"), expected[orientation])


def test_palettes_that_give_a_colour_two_numbers_are_refused(tmp_path):
    (tmp_path / "images").mkdir(), (tmp_path / "masks").mkdir()
    red, blue = (255, 0, 0), (0, 0, 255)
    for name, palette in (("a", (red, blue)), ("b", (red, blue)), ("c", (blue, red))):
        Image.fromarray(np.random.default_rng(ord(name)).integers(0, 255, (32, 48, 3)).astype(np.uint8)).save(
            tmp_path / f"images/{name}.png"
        )
        mask = Image.fromarray(np.arange(3, dtype=np.uint8).repeat(512).reshape(32, 48))
        mask.putpalette([0, 0, 0, *palette[0], *palette[1]])
        mask.save(tmp_path / f"masks/{name}.png")
        assert set(np.unique(read_mask(tmp_path / f"masks/{name}.png", Reading(classes=Classes(3))))) == {0, 1, 2}
        folders = str(tmp_path / "images"), str(tmp_path / "masks")
        if name != "c":
            check(folders, (32, 48), "", num_classes=3)
    with pytest.raises(
        BadInput, match="c.png: its palette differs from that of other masks: #0000ff is number 1, and in a"
    ):
        check(folders, (32, 48), "", num_classes=3)
