"""Files as cameras, microscopes, GDAL and scripts write them: read right, or refused for what they are."""

import io
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from support.errors import BadInput
from support.reading import Classes, Reading, image_size, read_image, read_mask

BYTES = np.random.default_rng(0).integers(0, 256, (48, 64, 8)).astype(np.uint8)
RGB = BYTES[..., :3]


def write_tiff(path: Path, pixels: np.ndarray, planar: bool = False, **more) -> Path:
    """A TIFF of (H, W, N), as GDAL writes it: with `planar`, one band after the other."""
    several = {"planarconfig": "separate" if planar else "contig"} if pixels.shape[2] > 1 else {}
    pixels = np.moveaxis(pixels, 2, 0) if planar and several else pixels
    settings = {"photometric": "minisblack", **several, **more}
    tifffile.imwrite(path, pixels if several else pixels[..., 0], **settings)
    return path


# Images


def test_every_kind_of_image_becomes_rgb(tmp_path):
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.repeat(gray[..., None], 3, axis=2)
    for picture in (
        Image.fromarray(gray),
        Image.fromarray(gray.astype(np.uint16) * 256),
        Image.fromarray(np.dstack([expected, gray])),
        Image.fromarray(np.dstack([gray, gray[::-1]]), "LA"),
        Image.fromarray(gray).convert("P"),
    ):
        picture.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)
    Image.fromarray(RGB).save(tmp_path / "a.jpg")
    gray = np.asarray(Image.open(tmp_path / "a.jpg").convert("L"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg", Reading(channels=1)), gray[..., None])
    Image.fromarray(BYTES[..., :4]).save(tmp_path / "four.png")
    np.testing.assert_array_equal(read_image(tmp_path / "four.png", Reading(channels=4)), BYTES[..., :4])
    Image.fromarray(np.full((160, 160, 3), 3, np.uint8)).save(tmp_path / "dark.tif")  # 8 bits, whatever its width
    assert read_image(tmp_path / "dark.tif").max() == 3


@pytest.mark.parametrize("planar", [False, True], ids=["chunky", "planar"])
@pytest.mark.parametrize("bands", [1, 2, 4, 8])
def test_each_band_is_read_and_scaled_as_those_of_rgb_are(tmp_path, bands, planar):
    pixels = BYTES[..., :bands]
    tiled = {"tile": (16, 16), "compression": "zlib", "predictor": True}
    files = [
        write_tiff(tmp_path / "bytes.tif", pixels, planar),
        write_tiff(tmp_path / "deep.tif", pixels.astype(np.uint16) * 257, planar, byteorder=">", **tiled),
        write_tiff(tmp_path / "twelve.tif", pixels.astype(np.uint16) << 4, planar),
    ]
    for file, highest in zip(files, (65535, 65535, 4095), strict=True):
        np.testing.assert_array_equal(read_image(file, Reading(channels=bands, highest=highest)), pixels)
        assert image_size(file) == (48, 64)
        for size in ((24, 20), (96, 64)):
            scaled = read_image(file, Reading(size, channels=bands, highest=highest))
            for band in range(bands):
                Image.fromarray(np.dstack([BYTES[..., band]] * 3)).save(tmp_path / "rgb.png")
                expected = read_image(tmp_path / "rgb.png", Reading(size))[..., 0]
                np.testing.assert_array_equal(scaled[..., band], expected)


@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
@pytest.mark.parametrize("planar", [False, True], ids=["chunky", "planar"])
def test_rgb_with_16_bits_is_read_right_in_every_layout(tmp_path, planar, photometric):
    """Pillow makes rubbish of planes with 16 bits, and keeps but the upper 8 of colours, which 12 bits lack."""
    deep = write_tiff(tmp_path / "deep.tif", RGB.astype(np.uint16) * 257, planar, photometric=photometric)
    twelve = write_tiff(tmp_path / "twelve.tif", RGB.astype(np.uint16) << 4, planar, photometric=photometric)
    cv2.imwrite(str(png := tmp_path / "twelve.png"), RGB[..., ::-1].astype(np.uint16) << 4)
    np.testing.assert_array_equal(read_image(deep), RGB)
    gray = np.asarray(Image.fromarray(RGB).convert("L"))
    np.testing.assert_array_equal(read_image(deep, Reading(channels=1))[..., 0], gray)
    for file in (twelve, png):
        np.testing.assert_array_equal(read_image(file, Reading(highest=4095)), RGB)
        with pytest.raises(BadInput, match="16 bits, of which it uses the lower 12 .* --RANGE 4095"):
            read_image(file)
    mask = np.dstack([(RGB[..., 0] > 99).astype(np.uint16) * 65535] * 3)
    file = write_tiff(tmp_path / "m.tif", mask, planar, photometric="rgb")
    np.testing.assert_array_equal(read_mask(file), mask[..., 0] > 0)


@pytest.mark.parametrize(
    "pixels, reading, words",
    [
        (BYTES.astype(np.float32), Reading(channels=8), "pixels of type float32"),
        (RGB.astype(np.float32), Reading(), "pixels of type float32"),
        (BYTES, Reading(channels=5), "8 bands, where IN_CHANNELS is 5. .* --IN_CHANNELS 8"),
        (BYTES.astype(np.uint16), Reading(), "8 bands, where IN_CHANNELS is 3. .* --IN_CHANNELS 8"),
        (BYTES[..., :4], Reading(), "4 bands, where IN_CHANNELS is 3"),  # the fourth may be infrared
        (BYTES.astype(np.uint16) << 4, Reading(channels=8), "the lower 12 or fewer. .* --RANGE 4095"),
        (BYTES.astype(np.uint16) << 4, Reading(channels=8, highest=4000), "up to 4080, where RANGE is 4000"),
    ],
)
def test_what_cannot_be_read_of_a_tiff_is_named(tmp_path, pixels, reading, words):
    file = write_tiff(tmp_path / "a.tif", pixels)
    with pytest.raises(BadInput, match=f"a.tif: .*{words}") as refusal:
        read_image(file, reading)
    assert "\n" not in str(refusal.value)
    with pytest.raises(BadInput, match="a.tif: "):
        read_mask(file)
    for length in (20, 2000):
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(BadInput, match="a.tif: can't be read as an image"):
            read_image(file, reading)


def test_stacks_previews_and_codecs(tmp_path):
    settings = {"photometric": "minisblack", "planarconfig": "contig"}
    with tifffile.TiffWriter(tmp_path / "preview.tif") as file:
        file.write(BYTES, **settings), file.write(BYTES[::2, ::2], subfiletype=1, **settings)
    np.testing.assert_array_equal(read_image(tmp_path / "preview.tif", Reading(channels=8)), BYTES)
    tifffile.imwrite(tmp_path / "stack.tif", np.moveaxis(BYTES, 2, 0), photometric="minisblack")
    for channels in (3, 8):
        with pytest.raises(BadInput, match="stack.tif: holds 8 images"):
            read_image(tmp_path / "stack.tif", Reading(channels=channels))
    Image.fromarray(BYTES[..., :2], "LA").save(tmp_path / "lzw.tif", compression="tiff_lzw")
    if not find_spec("imagecodecs"):
        with pytest.raises(BadInput, match="lzw.tif: .*LZW.* pip install tifffile imagecodecs"):
            read_image(tmp_path / "lzw.tif", Reading(channels=2))


def test_every_orientation_is_brought_upright_at_every_decoding_scale(tmp_path):
    upright = {1: BYTES, 2: BYTES[:, ::-1], 3: BYTES[::-1, ::-1], 4: BYTES[::-1], 5: BYTES.swapaxes(0, 1)}
    upright |= {
        6: BYTES[::-1].swapaxes(0, 1),
        7: BYTES[::-1, ::-1].swapaxes(0, 1),
        8: BYTES[:, ::-1].swapaxes(0, 1),
    }
    large = np.kron(RGB[:4, :8], np.ones((80, 80, 1), np.uint8))
    for orientation, expected in upright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name in ("a.png", "a.tif"):
            Image.fromarray(RGB).save(tmp_path / name, exif=exif)
            np.testing.assert_array_equal(read_image(tmp_path / name), expected[..., :3])
            assert image_size(tmp_path / name) == expected.shape[:2]
        eight = write_tiff(tmp_path / "eight.tif", BYTES, extratags=[(274, 3, 1, orientation, True)])
        np.testing.assert_array_equal(read_image(eight, Reading(channels=8)), expected)
        Image.fromarray(large).save(tmp_path / "a.jpg", exif=exif, quality=95)
        full = read_image(tmp_path / "a.jpg")
        size = tuple(side // 10 for side in full.shape[:2])
        small = np.asarray(Image.fromarray(full).resize(size[::-1], Image.Resampling.BOX)).astype(int)
        assert abs(read_image(tmp_path / "a.jpg", Reading(size)) - small).mean() < 2


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# An orientation of 180 degrees, beside a rational whose value lies far behind the end.
BAD_RATIONAL = b"II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIHHHHIII", 0x0112, 3, 1, 3, 0, 0x011A, 5, 1, 2**31, 0)


@pytest.mark.parametrize(
    "extra, expected",
    [
        (chunk(b"tEXt", b"Comment\0" + b"x" * 2**21), RGB),
        (chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2**24)), RGB),
        (chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**21))), RGB),
        (chunk(b"eXIf", b"nothing of the kind"), RGB),
        (chunk(b"eXIf", BAD_RATIONAL), RGB[::-1, ::-1]),
    ],
    ids=["long text", "compressed text", "large profile", "no Exif", "Exif that is broken in part"],
)
def test_long_or_broken_metadata_leaves_the_pixels_of_a_png_alone(tmp_path, extra, expected):
    Image.fromarray(RGB).save(buffer := io.BytesIO(), "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue()[:33] + extra + buffer.getvalue()[33:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("size", [(160, 240), (128, 192), (256, 256), (512, 768)])
def test_reduced_decoding_equals_full_decoding_and_area_averaging(carvana, size):
    for path in sorted((carvana / "train_images").iterdir())[:3]:
        full = Image.open(path).convert("RGB").resize(size[::-1], Image.Resampling.BOX)
        assert np.abs(read_image(path, Reading(size)).astype(int) - np.asarray(full)).mean() <= 1


# Masks


MASK = np.array([[0, 0, 1], [1, 0, 1]], np.uint8)
NUMBERS = np.array([[0, 1, 2, 255], [2, 1, 0, 0]], np.uint8)
GRAYS = np.repeat(np.arange(255, -1, -1, np.uint8)[:, None], 3, 1)


def palette(indices: np.ndarray, colours: list[int] | np.ndarray) -> Image.Image:
    picture = Image.fromarray(indices)
    picture.putpalette(np.asarray(colours).ravel().tolist())
    return picture


@pytest.mark.parametrize(
    "name, picture",
    [
        ("zero_one.png", Image.fromarray(MASK)),
        ("zero_255.png", Image.fromarray(MASK * 255)),
        ("one_bit.png", Image.fromarray(MASK.astype(bool))),
        ("rgb.png", Image.fromarray(MASK * 255).convert("RGB")),
        ("rgba.png", Image.fromarray(MASK * 255).convert("RGBA")),
        ("smooth.png", Image.fromarray(np.where(MASK, 140, 110).astype(np.uint8))),
        ("sixteen_bit.png", Image.fromarray(MASK.astype(np.uint16) * 65535)),
        ("carvana.gif", palette(MASK, [0, 0, 0, 255, 255, 255])),
        ("white_first.gif", palette(1 - MASK, [255, 255, 255, 0, 0, 0])),
        ("voc.png", palette(MASK, [0, 0, 0, 128, 0, 0])),
    ],
)
def test_every_way_to_write_a_mask(tmp_path, name, picture):
    picture.save(tmp_path / name)
    np.testing.assert_array_equal(read_mask(tmp_path / name), MASK)


@pytest.mark.parametrize(
    "name, picture",
    [
        ("gray.png", Image.fromarray(NUMBERS)),
        ("palette.png", palette(NUMBERS, np.arange(768) % 251)),
        ("gray_palette.png", palette(NUMBERS, GRAYS)),
        ("palette.gif", palette(NUMBERS, np.arange(768) % 251)),
        ("sixteen.png", Image.fromarray(NUMBERS.astype(np.uint16))),
        ("rgb.png", Image.fromarray(np.dstack([NUMBERS] * 3))),
    ],
)
def test_every_way_to_write_class_numbers(tmp_path, name, picture):
    picture.save(tmp_path / name, optimize=False)  # else a GIF gets other numbers
    np.testing.assert_array_equal(read_mask(tmp_path / name, Reading(classes=Classes(3))), NUMBERS)


def test_one_bit_is_two_classes_and_another_number_may_be_ignored(tmp_path):
    Image.fromarray(MASK == 1).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bits.png", Reading(classes=Classes(2))), MASK)
    Image.fromarray(np.where(NUMBERS == 255, 7, NUMBERS).astype(np.uint8)).save(tmp_path / "seven.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "seven.png", Reading(classes=Classes(3, 7))), NUMBERS)


@pytest.mark.parametrize(
    "picture, classes, finding",
    [
        (Image.fromarray(MASK * 3), Classes(), "values up to 3, .* NUM_CLASSES"),
        (Image.fromarray(MASK.astype(np.uint16) * 1000), Classes(), "values up to 1000"),
        (palette(1 - MASK, [128, 0, 0, 0, 0, 0]), Classes(), "a palette in colour, whose black is number 1"),
        (Image.fromarray(NUMBERS), Classes(2), "the value 2, where classes are 0 to 1 and 255 is ignored"),
        (Image.fromarray(NUMBERS), Classes(3, 9), "the value 255, where classes are 0 to 2 and 9 is ignored"),
        (Image.fromarray(NUMBERS.astype(np.uint16) * 200), Classes(3), "values up to 51000"),
        (Image.fromarray(np.dstack([NUMBERS, NUMBERS * 0, NUMBERS])), Classes(3), "a mask in colour"),
    ],
)
def test_masks_with_other_meanings_are_refused(tmp_path, picture, classes, finding):
    picture.save(tmp_path / "mask.png")
    with pytest.raises(BadInput, match=rf"mask\.png: {finding}"):
        read_mask(tmp_path / "mask.png", Reading(classes=classes))


def test_a_jpeg_of_small_numbers_does_not_become_background(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[8:40, 16:48] = 1
    mask[20:24, 20:24] = 2  # as its ringing leaves them
    Image.fromarray(mask).save(tmp_path / "blurred.jpg", quality=100, subsampling=0)
    for classes in (Classes(), Classes(3)):
        with pytest.raises(BadInput, match="blurred.jpg: .* PNG"):
            read_mask(tmp_path / "blurred.jpg", Reading(classes=classes))


@pytest.mark.parametrize("size", [(20, 30), (15, 90), (25, 30), (59, 89), (1, 1)])
def test_scaled_mask_covers_at_least_half_of_each_pixel(tmp_path, size):
    foreground = (np.random.default_rng(0).random((60, 90)) < 0.5).astype(np.float32)
    Image.fromarray(foreground > 0).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", Reading(size))
    areas = np.asarray(Image.fromarray(foreground).resize(size[::-1], Image.Resampling.BOX))
    clear = np.abs(areas - 0.5) > 1e-6  # beyond rounding
    np.testing.assert_array_equal(mask[clear], (areas >= 0.5)[clear])
    if 60 % size[0] == 0 and 90 % size[1] == 0:
        areas = foreground.reshape(size[0], 60 // size[0], size[1], 90 // size[1]).mean((1, 3))
        np.testing.assert_array_equal(mask, areas >= 0.5)


def test_a_pixel_is_of_the_class_with_most_of_its_area(tmp_path):
    mask = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (60, 90), p=(0.3, 0.3, 0.2, 0.2))
    Image.fromarray(mask).save(tmp_path / "m.png")
    blocks = mask.reshape(20, 3, 30, 3).transpose(0, 2, 1, 3).reshape(20, 30, 9)
    areas = np.stack([(blocks == value).sum(-1) for value in (0, 1, 2, 255)], -1)
    small = read_mask(tmp_path / "m.png", Reading((20, 30), Classes(3)))
    chosen = np.searchsorted([0, 1, 2, 255], small)[..., None]
    assert (np.take_along_axis(areas, chosen, -1)[..., 0] == areas.max(-1)).all()
    assert np.unique(small).tolist() == [0, 1, 2, 255]


def test_a_shape_in_the_alpha_channel_alone_is_refused(tmp_path):
    image = Image.new("RGBA", (12, 8), "white")
    image.putalpha(Image.fromarray(MASK * np.uint8(255)).resize(image.size))
    image.save(tmp_path / "m.png")
    with pytest.raises(BadInput, match="m.png: of one colour, with its shape in the alpha channel"):
        read_mask(tmp_path / "m.png")
