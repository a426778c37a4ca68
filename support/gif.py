"""Masks such as Carvana's: GIFs with a few kilobytes for millions of pixels.

Pillow decodes these pixel by pixel, which takes longer than all else about a image together. LZW has a number
for each of its strings of pixels, and where strings are long, joining them is twice as fast even in Python.
"""

import struct

import numpy as np
from PIL import Image

PIXELS_PER_BYTE = 200  # of the file: with fewer, strings are short and Pillow is faster


def read_sparse_gif(data: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """The indices, uint8 (H, W), and the palette, uint8 (colours, 3), of a file of one opaque picture that is small
    for its pixels. https://www.w3.org/Graphics/GIF/spec-gif89a.txt

    None for whatever else is in `data`: Pillow knows it, or what is wrong with it.
    """
    try:
        width, height, flags = struct.unpack_from("<HHB", data, 6)
        pixels = width * height
        if data[:6] not in (b"GIF87a", b"GIF89a") or not flags & 0x80 or pixels < PIXELS_PER_BYTE * len(data):
            return None
        if pixels > (Image.MAX_IMAGE_PIXELS or pixels):
            return None
        place = first = 13 + (6 << (flags & 7))
        while data[place : place + 1] == b"!":  # an extension
            block, end = _blocks(data, place + 2)
            if data[place + 1] not in (0xF9, 0xFE) or (data[place + 1] == 0xF9 and block[0] & 1):  # transparent
                return None
            place = end
        descriptor = struct.unpack_from("<BHHHHBB", data, place)
        codes, end = _blocks(data, place + 11)
        if descriptor[:6] != (ord(","), 0, 0, width, height, 0) or data[end] != ord(";"):
            return None
        bits = descriptor[6]
        seen = _decompress(codes, bits, pixels) if 2 <= bits <= 8 else b""
        if len(seen) != 2**bits + pixels:
            return None
        palette = np.frombuffer(data[13:first], np.uint8)
        return np.frombuffer(seen, np.uint8, offset=2**bits).reshape(height, width), palette.reshape(-1, 3)
    except (IndexError, struct.error):  # it ends too soon
        return None


def _blocks(data: bytes, place: int) -> tuple[bytes, int]:
    """The content of the blocks that begin at `place`, and where they end."""
    parts = []
    while length := data[place]:
        parts.append(data[place + 1 : place + 1 + length])
        place += 1 + length
    return b"".join(parts), place + 1


def _decompress(codes: bytes, bits: int, pixels: int) -> bytearray:
    """The values below 2 ** `bits` and, after these, the pixels that LZW's codes stand for; another number than
    `pixels` where the codes are broken.

    A code's string has been seen before: it is what an earlier code stood for, with the pixel that came after.
    """
    clear, end = 1 << bits, (1 << bits) + 1
    seen = bytearray(range(clear))
    starts, ends = list(range(end + 1)), list(range(1, end + 2))  # in `seen`, of each code's string
    buffer = held = 0
    width, limit, previous = bits + 1, 2 << bits, -1
    for byte in codes:
        buffer |= byte << held
        held += 8
        while held >= width:
            code = buffer & (limit - 1)
            buffer >>= width
            held -= width
            if code == clear:
                del starts[end + 1 :], ends[end + 1 :]
                width, limit, previous = bits + 1, 2 << bits, -1
                continue
            place = len(seen)
            if previous >= 0 and len(starts) < 4096:
                starts.append(previous)
                ends.append(place + 1)
                if len(starts) == limit and width < 12:
                    width += 1
                    limit *= 2
            if code == end or code >= len(starts) or place > clear + pixels:
                return seen
            string = seen[starts[code] : ends[code]]
            seen += string
            if ends[code] > place:  # its last pixel is its own first
                seen.append(string[0])
            previous = place
    return seen
