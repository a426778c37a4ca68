"""Render images of made-up cars on a studio turntable, with exact masks, named as Carvana's are."""

import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from tqdm import tqdm

from support.device import count_cores
from support.errors import BadInput
from support.visualize import save_mask

WIDTH, HEIGHT = 1918, 1280
PARTS = BACKGROUND, BODY, WHEELS, WINDOWS = range(4)
FOCAL, HORIZON, EYE = 2650, 395, 1.65  # pixels, pixels from the top, metres above the floor
SQUARE = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
AERIAL = np.array([(0.015, 0.015, 0), (-0.12, 0, 0.22)])
CIRCLE = np.array([(math.cos(angle), math.sin(angle)) for angle in np.linspace(0, 2 * math.pi, 48)])

# fmt: off
# Length, width and wheel radius in metres; places of the pillars, from 0 at the nose to 1 at the tail; places and
# heights of bonnet edge, windscreen's foot and top, two points of the roof, rear window's top and foot, boot edge.
KINDS = [
    (4.8, 1.84, .335, (.29, .50, .66, .80),  # sedan
     (.03, .28, .43, .52, .62, .71, .85, .97), (.76, .96, 1.41, 1.46, 1.45, 1.38, 1.06, 1.04)),
    (4.7, 1.90, .37, (.28, .50, .70, .92),  # SUV
     (.04, .27, .41, .50, .86, .93, .98, .99), (.98, 1.12, 1.64, 1.71, 1.67, 1.6, 1.15, 1.12)),
    (4.1, 1.76, .31, (.26, .50, .70, .88),  # hatchback
     (.03, .245, .42, .53, .86, .91, .975, .98), (.77, .98, 1.45, 1.51, 1.45, 1.38, 1.0, .98)),
    (5.4, 1.96, .39, (.28, .44, .58),  # pickup
     (.03, .27, .375, .43, .56, .59, .63, .98), (1.08, 1.18, 1.73, 1.82, 1.81, 1.74, 1.25, 1.23)),
    (4.5, 1.86, .34, (.33, .61, .78),  # coupe
     (.04, .32, .48, .55, .58, .63, .85, .97), (.70, .91, 1.28, 1.32, 1.32, 1.30, .99, .98)),
]
PAINTS = [(176, 180, 184), (26, 27, 30), (150, 24, 28), (216, 216, 213), (34, 60, 112), (90, 94, 98), (99, 87, 72)]
DARK, TYRE, METAL, WHITE, RED = (24, 24, 26), (38, 38, 40), (184, 186, 188), (226, 229, 232), (146, 16, 22)
# What lies on the body, on both sides: colour, the axis and direction it faces, and corners in the two other
# coordinates of place along the car, across (-1 right, 1 left) and up (0 sill, 1 belt line, 2 roof).
DETAILS = [
    (DARK, 0, 1, ((-.42, .92), (.42, .92), (.34, .66), (-.34, .66))),  # grille
    (WHITE, 0, 1, ((-.17, .56), (.17, .56), (.17, .41), (-.17, .41))),  # number plates
    (WHITE, 0, -1, ((-.17, .74), (.17, .74), (.17, .58), (-.17, .58))),
    (WHITE, 0, 1, ((.52, .7), (.88, .72), (.88, .93), (.6, .88))),  # head lamp
    (RED, 0, -1, ((.58, .74), (.89, .7), (.89, .94), (.64, .92))),  # tail lamp
]
# fmt: on


def outline(corners: np.ndarray, steps: int = 12, rounding: int = 2) -> np.ndarray:
    """The closed polygon of n * steps points through n corners, rounded off."""
    points = np.linspace(corners, np.roll(corners, -1, axis=0), steps, endpoint=False, axis=1)
    points = points.reshape(-1, *points.shape[2:])
    for _ in range(rounding):
        points = (np.roll(points, 1, axis=0) + 2 * points + np.roll(points, -1, axis=0)) / 4
    return points


def loft(length: float, width: float, radius: float, places: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """The body as n quadrilaterals, nose towards x, left towards y: corners and DETAILS' coordinates, (n, 4, 6)."""
    place = (1 - np.cos(math.pi * (1 - np.cos(np.linspace(0, math.pi, 120))) / 2)) / 2  # dense at the ends
    end = np.abs(2 * place - 1)  # 1 at both ends
    roof = np.interp(place + np.linspace(-0.012, 0.012, 7)[:, None], places, heights).mean(0)  # rounded off
    belt = np.minimum(roof, np.interp(place, places[1:7:5], heights[1:7:5])) - 0.03
    sill, nose = 0.62 * radius, 1.6 * radius  # at nose and tail the sections shrink to a point
    half = width / 2 * (1 - end**7) ** (1 / 6)
    heights = np.array([sill + 0.3 * (end - 0.78).clip(0), belt, roof])
    bottom, middle, top = nose + (heights - nose) * (1 - end**28) ** (1 / 4)
    # The corners of a section's left half, from below.
    edge = 0.95 * half - 0.42 * (top - middle)  # the windows lean in
    y = np.array([0.92 * half, 0.985 * half, 0.98 * half, half, 0.95 * half, edge, 0.75 * edge, 0 * half])
    up = np.array([0, 0.12, 0.45, 0.76, 1, 1.86, 1.97, 2])[:, None]
    z = np.where(up <= 1, bottom + up * (middle - bottom), middle + (up - 1) * (top - middle))
    level = np.where(z < belt, (z - sill) / (belt - sill), 1 + (z - belt) / (roof - belt))  # without the shrinking
    corners = np.stack(np.broadcast_arrays(length * (0.5 - place), y, z, place, 2 * y / width, level), axis=-1)
    mesh = outline(np.concatenate([corners, corners[-2::-1] * (1, -1, 1, 1, -1, 1)]), steps=5, rounding=5)
    above = np.roll(mesh, -1, axis=0)
    return np.stack([mesh[:, :-1], above[:, :-1], above[:, 1:], mesh[:, 1:]], axis=2).reshape(-1, 4, 6)


def drape(body: np.ndarray, normals: np.ndarray, corners: np.ndarray, axis: int, sign: int) -> np.ndarray:
    """Lay a polygon onto the side of the body that faces along an axis: its (n, 6) points and normals."""
    area, cells = np.linalg.norm(normals, axis=1), body.mean(1)
    side = normals[:, axis] * sign > 0.2 * area
    offsets = outline(corners)[:, None] - np.delete(cells[side, 3:], axis, axis=1)
    distance = ((offsets * np.delete((4.8, 0.9, 0.75), axis)) ** 2).sum(-1)  # roughly in square metres
    weight = area[side] * np.exp((distance.min(1, keepdims=True) - distance) / 0.005)  # for means over some 7 cm
    return weight @ np.hstack([cells[side, :3], normals[side]]) / weight.sum(1, keepdims=True)


def ellipse(centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The (n, 6) points, and normals to the left, of an ellipse with the given two half-axes."""
    points = centre + CIRCLE @ axes
    return np.hstack([points, np.tile((0, 1, 0), (len(points), 1))])


@lru_cache(maxsize=8)
def build(car: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple], list[tuple]]:
    """A car's paint, its body's cells and their normals, and what is painted before and after them: (n, 6) points
    and normals, colour, part."""
    rng = np.random.default_rng(car)
    length, width, radius, pillars, places, heights = KINDS[car % len(KINDS)]
    length, width, tall = (length, width, 1) * rng.uniform((0.95, 0.96, 0.95), (1.04, 1.03, 1.05))
    heights, paint = tall * np.array(heights), (PAINTS[car % len(PAINTS)] * rng.uniform(0.94, 1.05, 1)).astype(int)
    body = loft(length, width, radius, places, heights)
    normals = np.cross(body[:, 3, :3] - body[:, 1, :3], body[:, 2, :3] - body[:, 0, :3])  # as long as areas
    details = [(*detail, BODY) for detail in DETAILS]
    for start, end in zip(pillars[:-1], pillars[1:], strict=True):  # side window, gap at the door
        details.append((DARK, 1, 1, (start + 0.008, 1.05) + SQUARE * (end - start - 0.016, 0.8), WINDOWS))
        details.append((paint // 3, 1, 1, (start, 0.14) + SQUARE * (0.0025, 0.86), BODY))
    for foot, top in (places[1:3], places[6:4:-1]):  # windscreen and rear window
        details.append((DARK, 2, 1, ((foot, -0.78), (top, -0.58), (top, 0.58), (foot, 0.78)), WINDOWS))
    after = [(drape(body, normals, corners, *side), colour, part) for colour, *side, corners, part in details]
    before = [(ellipse((length * (0.5 - places[4]), 0, heights[4]), AERIAL), DARK, BODY)]
    for axle in (0.19, 0.79):
        centre, axes = np.array([length * (0.5 - axle), width / 2 - 0.03, radius]), radius * np.eye(3)[[0, 2]]
        # A row of discs makes a tyre.
        before += [(ellipse(centre - (0, depth, 0), axes), DARK, WHEELS) for depth in np.linspace(0.22, 0, 20)]
        after.append((ellipse(centre + (0, 0, 0.12 * radius), 1.06 * axes), DARK, BODY))  # the arch
        rings = ((1, TYRE), (0.7, METAL), (0.6, DARK), (0.56, METAL), (0.2, TYRE))
        after += [(ellipse(centre, size * axes), colour, WHEELS) for size, colour in rings]
    mirror = (length * (0.45 - pillars[0]), 0.475 * width + 0.11, heights[1] + 0.07)
    for across in ((0.07, 0, 0), (0, 0.12, 0)):  # from every side, two crossed discs look like a mirror
        after.append((ellipse(mirror, (across, (0, 0, 0.085))), paint * 3 // 5, BODY))
    before += after[-2:]  # a far mirror is behind the body
    # The right side mirrors the left. What has no normals is painted wherever the camera is.
    before = [(points * (1, y, 1, 0, 0, 0), *rest) for points, *rest in before for y in (1, -1)]
    after = [(points * (1, y, 1, 1, y, 1), *rest) for points, *rest in after for y in (1, -1)]
    return paint, body[..., :3], normals, before, after


def shade(cells: np.ndarray, normals: np.ndarray, paint: np.ndarray, eye: np.ndarray) -> np.ndarray:
    """The colours of cells of the body, (n, 4) with their part, in glossy paint."""
    to_eye = eye - cells.mean(1)
    to_eye, normals = (vectors / (np.linalg.norm(vectors, axis=1)[:, None] + 1e-9) for vectors in (to_eye, normals))
    facing, upwards = (to_eye * normals).sum(1)[:, None], normals[:, 2:]
    # What the paint mirrors, from below to above: floor, horizon, wall, overhead light.
    room = np.interp(2 * facing * upwards - to_eye[:, 2:], (-0.4, -0.1, 0.1, 0.8), (0.26, 0.4, 0.77, 1))
    gloss = 255 * room * (0.09 + 0.5 * (1 - facing.clip(0)) ** 4)
    colours = (paint * (0.34 + 0.26 * upwards + 0.48 * room) + gloss).clip(0, 255).astype(int)
    return np.insert(colours, 3, BODY, axis=1)


@lru_cache(maxsize=1)
def studio() -> tuple[Image.Image, np.ndarray]:
    """The empty studio (wall, lettering, floor and turntable), and noise to cut an image's out of."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (230, 232, 232))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(230)
    draw.text((WIDTH / 2, 440), "FAIR & SQUARE", (86, 88, 94), font, anchor="mm", stroke_width=5)
    draw.ellipse((-1700, 530, WIDTH + 1700, 3000), (150, 155, 159))
    draw.ellipse((-150, 660, WIDTH + 150, 1250), outline=(128, 132, 136), width=3)
    y, x = np.ogrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    light = 1.04 - 0.09 * x**2 - 0.06 * y**2 + 0.06 * np.exp(-((y - 0.5) ** 2) * 8 - x**2 * 3)
    image = Image.fromarray((np.asarray(image) * light[..., None]).clip(0, 255).astype(np.uint8))
    return image, np.random.default_rng(0).integers(-4, 5, (HEIGHT + 99, WIDTH + 99, 3), dtype=np.int8)


def render(car: int, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Car number `car` from view 1..16: uint8 RGB image (1280, 1918, 3) and indices into PARTS (1280, 1918)."""
    rng, (paint, body, normals, before, after) = np.random.default_rng((car, view)), build(car)
    length, width = np.ptp(body[..., :2], axis=(0, 1))
    azimuth = math.radians((view - 1) * 22.5 + rng.normal(0, 0.5))
    forward, right = (np.array([-math.cos(a), -math.sin(a), 0]) for a in (azimuth, azimuth - math.pi / 2))
    eye = (0, 0, EYE) - (3.6 + 0.95 * length + rng.uniform(-0.1, 0.15)) * forward
    camera = np.stack([FOCAL * right + WIDTH / 2 * forward, HORIZON * forward - (0, 0, FOCAL), forward], axis=1)

    def project(points: np.ndarray) -> np.ndarray:
        pixels = (points - eye) @ camera
        return pixels[..., :2] / pixels[..., 2:]

    floor = outline((SQUARE - 0.5) @ np.diag((length, width, 0))[:2])
    shadow = Image.new("L", (WIDTH // 4, HEIGHT // 4))
    ImageDraw.Draw(shadow).polygon((project(floor) / 4).ravel().tolist(), 220)
    empty, noise = studio()
    canvas = empty.copy()
    canvas.paste((30, 31, 33), mask=shadow.filter(ImageFilter.GaussianBlur(5)).resize(empty.size, Image.BILINEAR))
    canvas.putalpha(BACKGROUND)  # the fourth channel is the part that a pixel belongs to
    draw = ImageDraw.Draw(canvas)

    def in_view(shapes: list[tuple]) -> Iterator[tuple]:
        for points, colour, part in shapes:
            facing = ((eye - points[:, :3]) * points[:, 3:]).sum(1) >= 0
            yield project(points[facing, :3]), (*colour, part)

    front = np.argsort(-np.linalg.norm(eye - body[:, 0], axis=1))  # the far cells first
    front = front[((eye - body[front, 0]) * normals[front]).sum(1) > 0]
    cells = zip(project(body[front]), shade(body[front], normals[front], paint, eye).tolist(), strict=True)
    for corners, colour in chain(in_view(before), cells, in_view(after)):
        if len(corners) > 2:
            draw.polygon(corners.ravel().tolist(), tuple(colour))
    pixels, parts = cv2.cvtColor(np.asarray(canvas), cv2.COLOR_RGBA2RGB), np.asarray(canvas.getchannel("A"))
    y, x = np.nonzero(parts == WINDOWS)
    pixels[y, x] = np.interp(y, (y.min(), y.max()), (135, 45))[:, None] * (0.95, 1, 1)  # what the glass shows
    y, x = rng.integers(99, size=2)
    pixels = cv2.GaussianBlur(pixels, (3, 3), 0)  # a lens's
    return cv2.add(pixels, noise[y : y + HEIGHT, x : x + WIDTH], dtype=cv2.CV_8U), parts


def _save(job: tuple[Path, str, int, int, int]) -> None:
    """Render and write one image and its mask; at module level, so that it can be sent to a process."""
    folder, split, car, view, num_classes = job
    image, parts = render(car, view)
    name = f"{np.random.default_rng(car).bytes(6).hex()}_{view:02d}"
    Image.fromarray(image).save(folder / f"{split}_images" / f"{name}.jpg", quality=90)
    mask = folder / f"{split}_masks" / f"{name}_mask"
    if num_classes == 1:
        Image.fromarray(parts != BACKGROUND).save(mask.with_suffix(".gif"))
    else:
        save_mask(np.where(parts < num_classes, parts, np.uint8(BODY)), mask.with_suffix(".png"))


def make_sample(
    folder: str | Path, train_cars: int = 6, val_cars: int = 2, views: int = 16, num_classes: int = 1
) -> None:
    """Write train_images, train_masks, val_images and val_masks into a folder, which appears once complete.

    With 2 to 4 for `num_classes`, masks hold numbers out of PARTS; if these are too few, the rest is BODY.
    """
    folder = Path(folder)
    for option, cars in (("--train_cars", train_cars), ("--val_cars", val_cars)):
        if cars < 1:
            raise BadInput(option, f"{cars} can't be used", "Give 1 or more")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BadInput(folder, "already exists", "Remove it or choose another --out")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for name in ("train_images", "train_masks", "val_images", "val_masks"):
        (part / name).mkdir(parents=True)
    # Kinds take turns, so validation begins where they start over: it shows kinds that training has seen.
    first = math.ceil(train_cars / len(KINDS)) * len(KINDS)
    cars = [("train", car) for car in range(train_cars)] + [("val", first + car) for car in range(val_cars)]
    jobs = [(part, split, car, view, num_classes) for split, car in cars for view in range(1, views + 1)]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # here: a forked process that sets it can wait for ever for threads that it lacks
    with ProcessPoolExecutor(count_cores()) as pool:
        list(tqdm(pool.map(_save, jobs, chunksize=4), total=len(jobs), desc="rendering the sample set"))
    cv2.setNumThreads(threads)
    if folder.exists():
        folder.rmdir()
    part.rename(folder)
