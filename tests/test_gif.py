"""GIFs as masks: what gif.py reads is what Pillow reads, and what it leaves to Pillow is None."""

import io

import numpy as np
import pytest
from PIL import Image

from support import gif
from support.gif import read_sparse_gif


def outline(height: int = 600, width: int = 901, values: tuple[int, ...] = (0, 1)) -> np.ndarray:
    """Ellipses of some values within each other, with a ragged edge."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    radius = np.hypot(x, y) + 0.02 * np.sin(40 * np.arctan2(y, x))
    picture = np.full((height, width), values[0], np.uint8)
    for number, value in enumerate(values[1:], start=1):
        picture[radius < 1 - number / len(values)] = value
    return picture


def encoded(picture: np.ndarray, palette: list[int] | None = None, **options: object) -> bytes:
    """A GIF by Pillow, of gray values or of indices."""
    image, file = Image.fromarray(picture), io.BytesIO()
    if palette:
        image.putpalette(palette)
    image.save(file, "GIF", **options)
    return file.getvalue()


def plain(**options: object) -> bytes:
    return encoded(outline(1280, 1918), [0, 0, 0, 255, 255, 255], optimize=False, **{"interlace": False, **options})


def check(data: bytes) -> None:
    read = read_sparse_gif(data)
    assert read is not None
    expected = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(read[0], np.asarray(expected))
    if expected.mode == "P":
        np.testing.assert_array_equal(read[1].ravel(), expected.getpalette("RGB"))


def test_carvanas_masks_are_read_as_pillow_reads_them(carvana):
    for path in sorted((carvana / "train_masks").iterdir())[:4]:
        check(path.read_bytes())


@pytest.mark.parametrize("values", [(0, 1), (1, 0), (0, 255), (0, 1, 2), (3, 200, 17, 255), (0,), (7,)])
@pytest.mark.parametrize("size", [(600, 901), (1280, 1918), (2000, 1), (1, 9000), (2000, 1500)])
def test_so_are_other_values_and_sizes(values, size, monkeypatch):
    monkeypatch.setattr(gif, "PIXELS_PER_BYTE", 0)
    picture = outline(*size, values)
    palette = np.random.default_rng(0).integers(0, 256, 768).tolist()
    for colours in (palette, None):
        check(encoded(picture, colours, optimize=False, interlace=False))


def test_so_are_comments_and_a_control_block():
    check(plain(comment=b"made " * 60))
    check(plain(duration=10))


def lzw(picture: np.ndarray, clears: bool) -> bytes:
    """A GIF whose table of codes fills up, and is then cleared or used on as it is."""
    bits, clear, end = 2, 4, 5
    codes, table, width = [(clear, 3)], {}, 3
    number, string = 6, ()
    for value in picture.ravel().tolist():
        if not string or (*string, value) in table:
            string = (*string, value)
            continue
        codes.append((table.get(string, string[0]), width))
        if number < 4096:
            table[(*string, value)] = number
            width += number == 1 << width
            number += 1
        elif clears:
            codes.append((clear, 12))
            table, width, number = {}, 3, 6
        string = (value,)
    codes += [(table.get(string, string[0]), width), (end, width)]
    total = place = 0
    for code, size in codes:
        total |= code << place
        place += size
    data = total.to_bytes(place // 8 + 1, "little")
    blocks = b"".join(bytes([len(block := data[at : at + 255])]) + block for at in range(0, len(data), 255))
    size = picture.shape[1].to_bytes(2, "little") + picture.shape[0].to_bytes(2, "little")
    colours = bytes([0, 0, 0, 255, 255, 255])
    return b"GIF89a" + size + b"\xf0\0\0" + colours + b",\0\0\0\0" + size + bytes([0, bits]) + blocks + b"\0;"


@pytest.mark.parametrize("clears", [False, True])
def test_a_full_table_of_codes(clears, monkeypatch):
    monkeypatch.setattr(gif, "PIXELS_PER_BYTE", 0)
    picture = np.random.default_rng(0).integers(0, 3, (200, 300), np.uint8)
    data = lzw(picture, clears)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), picture)  # it is a GIF
    check(data)


def test_noise(monkeypatch):
    monkeypatch.setattr(gif, "PIXELS_PER_BYTE", 0)
    for colours in (2, 3, 16, 256):
        check(encoded(np.random.default_rng(0).integers(0, colours, (150, 170), np.uint8), interlace=False))


def test_what_is_not_plain_is_left_to_pillow():
    noise = np.random.default_rng(0).integers(0, 2, (600, 901), np.uint8)
    film = [Image.fromarray(outline() * scale) for scale in (1, 2)]
    file = io.BytesIO()
    film[0].save(file, "GIF", save_all=True, append_images=film[1:])
    for data in (
        encoded(noise),
        plain(interlace=True),
        plain(transparency=0),
        file.getvalue(),
    ):
        assert read_sparse_gif(data) is None
    assert read_sparse_gif(b"") is None and read_sparse_gif(b"GIF89a") is None


def test_broken_bytes_are_left_to_pillow_or_give_what_it_gives():
    whole, rng = plain(), np.random.default_rng(0)
    for length in range(0, len(whole) - 1, 19):
        assert read_sparse_gif(whole[:length]) is None
    read = 0
    for _ in range(400):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        if found := read_sparse_gif(bytes(data)):
            read += 1
            np.testing.assert_array_equal(found[0], np.asarray(Image.open(io.BytesIO(data))))
    assert read  # a flip in the palette, say, or one that makes another picture
