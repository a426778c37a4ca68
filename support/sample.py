"""Render images of made-up cars on a studio turntable, with exact masks, named as Carvana's are."""

import math
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

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
# Length, width, height and the wheels' radius in metres; heights of bonnet, belt line and boot; and where the cabin
# begins and ends at the belt line and at the roof, from 0 at the nose to 1 at the tail.
KINDS = [
    (4.8, 1.84, 1.46, 0.335, (0.76, 0.96, 1.04), (0.28, 0.90), (0.46, 0.72)),  # sedan
    (4.7, 1.90, 1.71, 0.37, (0.98, 1.12, 1.12), (0.27, 0.99), (0.43, 0.93)),  # SUV
    (4.1, 1.76, 1.51, 0.31, (0.77, 0.98, 0.98), (0.25, 0.98), (0.44, 0.91)),  # hatchback
    (5.4, 1.96, 1.82, 0.39, (1.08, 1.18, 1.23), (0.27, 0.63), (0.38, 0.59)),  # pickup
    (4.5, 1.86, 1.32, 0.34, (0.70, 0.91, 0.99), (0.32, 0.90), (0.50, 0.66)),  # coupe
]
PAINTS = [(176, 180, 184), (26, 27, 30), (150, 24, 28), (216, 216, 213), (34, 60, 112), (90, 94, 98), (99, 87, 72)]
DARK, TYRE, METAL, WHITE, RED = (24, 24, 26), (38, 38, 40), (184, 186, 188), (226, 229, 232), (146, 16, 22)
COS, SIN = (wave(np.linspace(0, 2 * math.pi, 49)) for wave in (np.cos, np.sin))
CIRCLE = np.stack([COS, 0 * COS, SIN], axis=1)  # seen from the side
# Rings around a car, from below: height (0 sill, 1 belt line, 2 roof), inset at both ends, fraction of the width.
RINGS = [
    (0, 0.02, 0.92), (0.15, 0.005, 0.98), (0.55, 0, 1), (0.75, 0.004, 0.99), (0.93, 0.01, 0.96), (0.98, 0.03, 0.9),
    (1, 0, 0.88), (1.08, 0, 0.87), (1.85, 0, 0.68), (2, 0.015, 0.6),
]  # fmt: skip
# What isn't painted: the ring below, and places from 0 in the middle of the front to 23 in the middle of the rear.
DETAILS = {
    **dict.fromkeys(product([1], range(2)), (DARK, BODY)),  # grille
    **dict.fromkeys(product([3], range(2, 5)), (WHITE, BODY)),  # head lamps
    **dict.fromkeys(product([3], range(19, 22)), (RED, BODY)),  # tail lamps
    **dict.fromkeys(product([7], {*range(24)} - {5, 6, 17, 18}), (DARK, WINDOWS)),  # but for the pillars
}


class Face(NamedTuple):
    """A flat piece of a car, whose nose is towards x and whose left side is towards y."""

    points: np.ndarray  # (n, 3), in metres
    normal: np.ndarray | tuple[int, int, int]  # zeros if it is seen from both sides
    paint: tuple[int, int, int] | np.ndarray
    part: int


@lru_cache(maxsize=8)
def build(car: int) -> tuple[list[Face], np.ndarray]:
    """The faces of a car, in an order in which they can be drawn from any side, and the floor below it, (49, 3)."""
    rng = np.random.default_rng(car)
    length, width, height, radius, (bonnet, belt, boot), foot, top = KINDS[car % len(KINDS)]
    length, width, tall = (length, width, 1) * rng.uniform((0.95, 0.96, 0.95), (1.04, 1.03, 1.05))
    paint = (PAINTS[car % len(PAINTS)] * rng.uniform(0.94, 1.05, 1)).astype(int)

    def ring(level: float, inset: float, share: float) -> np.ndarray:
        """A rounded rectangle around the car, (49, 3)."""
        start, end = np.array((0, 1)) if level < 1 else np.add(foot, np.subtract(top, foot) * (level - 1))
        along, across = (np.sign(wave) * np.abs(wave) ** 0.3 for wave in (COS, SIN))
        place = (start + end - (end - start - 2 * inset) * along) / 2
        deck, sill = tall * np.interp(place, (0, *foot, 1), (bonnet, belt, belt, boot)), 0.62 * radius
        z = sill + level * (deck - sill) if level < 1 else deck + (level - 1) * (tall * height - deck)
        return np.stack([length * (0.5 - place), share * width / 2 * across, z], axis=1)

    rings = [ring(*each) for each in RINGS]
    body = []
    for (level, (lower, upper)), i in product(enumerate(zip(rings[:-1], rings[1:], strict=True)), range(48)):
        points = np.stack([lower[i], lower[i + 1], upper[i + 1], upper[i]])
        normal = np.cross(points[2] - points[0], points[3] - points[1])
        body.append(Face(points, normal, *DETAILS.get((level, min(i, 47 - i)), (paint, BODY))))
    body.append(Face(rings[-1], (0, 0, 1), paint, BODY))  # the roof
    before, after = [], []
    for side in (1, -1):
        for axle in (0.19, 0.79):
            centre = np.array([length * (0.5 - axle), side * (width / 2 - 0.02), radius])
            for depth in np.linspace(0.22, 0, 20):  # a row of discs makes a tyre
                before.append(Face(centre - (0, side * depth, 0) + radius * CIRCLE, (0, 0, 0), DARK, WHEELS))
            after.append(Face(centre + (0, 0, 0.12 * radius) + 1.06 * radius * CIRCLE, (0, side, 0), DARK, BODY))
            for size, colour in ((1, TYRE), (0.7, METAL), (0.6, DARK), (0.56, METAL), (0.2, TYRE)):
                after.append(Face(centre + size * radius * CIRCLE, (0, side, 0), colour, WHEELS))
        mirror = np.array([length * (0.45 - foot[0]), side * (0.475 * width + 0.11), tall * belt + 0.07])
        for disc in (CIRCLE * (0.07, 0, 0.085), CIRCLE[:, [1, 0, 2]] * (0, 0.12, 0.085)):  # crossed
            before.append(Face(mirror + disc, (0, 0, 0), paint * 3 // 5, BODY))  # the far one is behind the body
            after.append(Face(mirror + disc, (0, side, 0), paint * 3 // 5, BODY))
    return before + body + after, rings[2] * (1.02, 1.02, 0)


def shade(face: Face, eye: np.ndarray) -> tuple[int, ...]:
    """The colour of a face: in glossy paint, but for the wheels."""
    if face.part == WHEELS:
        return face.paint
    vectors = eye - face.points.mean(0), np.array(face.normal)
    to_eye, normal = (vector / (np.linalg.norm(vector) + 1e-9) for vector in vectors)
    facing, upwards = to_eye @ normal, normal[2]
    # What the paint mirrors, from below to above: floor, horizon, wall, overhead light.
    room = np.interp(2 * facing * upwards - to_eye[2], (-0.4, -0.1, 0.1, 0.8), (0.26, 0.4, 0.77, 1))
    gloss = 255 * room * (0.09 + 0.5 * (1 - max(0, facing)) ** 4)
    return tuple(min(255, int(value * (0.34 + 0.26 * upwards + 0.48 * room) + gloss)) for value in face.paint)


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
    rng, (faces, floor) = np.random.default_rng((car, view)), build(car)
    azimuth = math.radians((view - 1) * 22.5 + rng.normal(0, 0.5))
    forward, right = (np.array([-math.cos(a), -math.sin(a), 0]) for a in (azimuth, azimuth - math.pi / 2))
    eye = (0, 0, EYE) - (3.6 + 0.93 * np.ptp(floor[:, 0]) + rng.uniform(-0.1, 0.15)) * forward
    camera = np.stack([FOCAL * right + WIDTH / 2 * forward, HORIZON * forward - (0, 0, FOCAL), forward], axis=1)

    def project(points: np.ndarray) -> list[float]:
        pixels = (points - eye) @ camera
        return (pixels[..., :2] / pixels[..., 2:]).ravel().tolist()

    empty, noise = studio()
    canvas, shadow = empty.copy(), Image.new("L", (WIDTH // 4, HEIGHT // 4))
    ImageDraw.Draw(shadow).polygon([value / 4 for value in project(floor)], 220)
    canvas.paste((30, 31, 33), mask=shadow.filter(ImageFilter.GaussianBlur(5)).resize(empty.size, Image.BILINEAR))
    canvas.putalpha(BACKGROUND)  # the fourth channel is the part that a pixel belongs to
    draw = ImageDraw.Draw(canvas)
    for face in faces:
        if (eye - face.points[0]) @ face.normal >= 0:
            draw.polygon(project(face.points), (*shade(face, eye), face.part))
    pixels, parts = cv2.cvtColor(np.asarray(canvas), cv2.COLOR_RGBA2RGB), np.asarray(canvas.getchannel("A"))
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
    if min(train_cars, val_cars) < 1:
        raise BadInput("--train_cars and --val_cars", f"{train_cars} and {val_cars}", "Give 1 or more each")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BadInput(folder, "already exists", "Remove it or choose another --out")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    # Kinds take turns, so validation begins where they start over: it shows kinds that training has seen.
    first = math.ceil(train_cars / len(KINDS)) * len(KINDS)
    jobs = []
    for split, cars in (("train", range(train_cars)), ("val", range(first, first + val_cars))):
        for kind in ("images", "masks"):
            (part / f"{split}_{kind}").mkdir(parents=True)
        jobs += [(part, split, car, view, num_classes) for car in cars for view in range(1, views + 1)]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # here: a forked process that sets it can wait for ever for threads that it lacks
    with ProcessPoolExecutor(count_cores()) as pool:
        list(tqdm(pool.map(_save, jobs, chunksize=4), total=len(jobs), desc="rendering the sample set"))
    cv2.setNumThreads(threads)
    if folder.exists():
        folder.rmdir()
    part.rename(folder)
