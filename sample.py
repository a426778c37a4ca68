"""Render photographs of made-up cars on a studio turntable, with exact masks, named as Carvana's are."""

import math
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from tqdm import tqdm

WIDTH, HEIGHT = 1918, 1280
PARTS = BACKGROUND, BODY, WHEELS, WINDOWS = range(4)
BAND = (0, 230, WIDTH, 1210)  # no car reaches out of this box
FOCAL, HORIZON, EYE = 2650, 395, 1.65  # pixels, pixels from the top, metres above the floor
ANGLES = np.linspace(0, 2 * math.pi, 49)


class Kind(NamedTuple):
    """A body shape in metres; places along the car are fractions, from 0 at the nose to 1 at the tail."""

    size: tuple[float, float]  # length, width
    wheel: tuple[float, float, float]  # radius, place of the front axle, place of the rear axle
    belt: tuple[float, float]  # height of the side windows' lower edge at the nose and at the tail
    pillars: tuple[float, ...]  # the side windows lie between these places
    glass: tuple[tuple[float, float], ...]  # where windscreen and rear window begin and end
    roof_line: tuple[tuple[float, float], ...]  # (place, height) along the top


# fmt: off
KINDS = [
    Kind((4.8, 1.84), (.335, .195, .785), (.93, .99), (.29, .5, .66, .8), ((.29, .425), (.725, .84)),  # sedan
         ((0, .66), (.03, .76), (.12, .86), (.28, .96), (.43, 1.41), (.52, 1.46), (.62, 1.45), (.71, 1.38),
          (.85, 1.06), (.97, 1.04), (1, .95))),
    Kind((4.7, 1.90), (.37, .195, .79), (1.08, 1.14), (.28, .50, .70, .92), ((.275, .40), (.94, .985)),  # SUV
         ((0, .85), (.04, .98), (.24, 1.09), (.27, 1.12), (.41, 1.64), (.5, 1.71), (.86, 1.67), (.935, 1.6),
          (.985, 1.12), (1, 1))),
    Kind((4.1, 1.76), (.31, .19, .81), (.94, 1.01), (.26, .50, .70, .88), ((.25, .41), (.92, .98)),  # hatch
         ((0, .66), (.03, .77), (.2, .94), (.245, .98), (.42, 1.45), (.53, 1.51), (.86, 1.45), (.915, 1.38),
          (.98, .98), (1, .85))),
    Kind((5.4, 1.96), (.39, .18, .77), (1.16, 1.2), (.28, .44, .595), ((.275, .365), (.602, .622)),  # pickup
         ((0, .95), (.03, 1.08), (.24, 1.16), (.27, 1.18), (.375, 1.73), (.43, 1.82), (.56, 1.81), (.6, 1.74),
          (.625, 1.24), (.98, 1.23), (1, 1.2))),
    Kind((5.0, 1.96), (.34, .185, .8), (1.03, 1.07), (.22, .42, .66, .93), ((.21, .37), (.945, .988)),  # van
         ((0, .72), (.03, .84), (.17, 1.01), (.2, 1.05), (.38, 1.66), (.46, 1.74), (.89, 1.71), (.945, 1.62),
          (.988, 1.06), (1, .95))),
    Kind((4.5, 1.86), (.34, .2, .79), (.88, .94), (.33, .61, .78), ((.325, .475), (.65, .83)),  # coupe
         ((0, .6), (.04, .7), (.15, .79), (.32, .91), (.48, 1.28), (.55, 1.32), (.63, 1.3), (.85, .99),
          (.97, .98), (1, .88))),
]
PAINTS = [(176, 180, 184), (26, 27, 30), (150, 24, 28), (216, 216, 213), (34, 60, 112), (92, 96, 101),
          (196, 198, 199), (58, 66, 70), (128, 112, 92)]
DARK, LAMP, RED, WHITE, SEAM = (24, 24, 26), (196, 201, 205), (146, 16, 22), (240, 242, 244), None
# What lies on the body: axis and direction it faces, colour, corners. These are fractions: across of half the
# width or along of the length, then up from the sill (0) to the edge of bonnet or boot (1).
DETAILS = [
    (0, 1, DARK, ((-.42, .9), (.42, .9), (.34, .6), (-.34, .6))),  # grille
    (0, 1, SEAM, ((-.72, .5), (.72, .5), (.72, .48), (-.72, .48))),  # bumper, and the air intakes in it
    (0, 1, DARK, ((-.56, .3), (.56, .3), (.6, .17), (-.6, .17))),
    (0, 1, DARK, ((.68, .36), (.84, .4), (.84, .26), (.72, .22))),
    (0, 1, LAMP, ((.52, .68), (.88, .72), (.88, .96), (.6, .88))),
    (0, 1, WHITE, ((.62, .74), (.76, .75), (.76, .88), (.66, .86))),
    (1, 1, LAMP, ((.022, .74), (.06, .83), (.09, .96), (.022, .93))),
    (0, 1, WHITE, ((-.17, .46), (.17, .46), (.17, .28), (-.17, .28))),  # number plate
    (0, -1, SEAM, ((-.78, .5), (.78, .5), (.78, .48), (-.78, .48))),  # the same at the rear
    (0, -1, DARK, ((-.7, .28), (.7, .28), (.66, .14), (-.66, .14))),
    (0, -1, RED, ((.58, .72), (.89, .68), (.89, .95), (.64, .92))),
    (0, -1, WHITE, ((.64, .75), (.8, .74), (.8, .8), (.65, .81))),
    (1, 1, RED, ((.983, .7), (.955, .8), (.945, .93), (.983, .94))),
    (0, -1, WHITE, ((-.17, .76), (.17, .76), (.17, .58), (-.17, .58))),
]
# fmt: on


class Car(NamedTuple):
    """A car that stands at the origin, with its nose towards positive x; y is to its left and z up."""

    name: str  # 12 hexadecimal digits
    kind: Kind
    paint: np.ndarray  # (3,) RGB
    body: np.ndarray  # (150, 81, 9) points, normals, RGB: sections from nose to tail, left to right
    decals: list[tuple]  # flat-coloured shapes on the body: (n, 9) like the body, colour, part
    spokes: int
    tint: float  # brightness of what is seen through the glass


def smooth(values: np.ndarray, times: int) -> np.ndarray:
    """Round off corners along the first axis; the ends stay where they are."""
    for _ in range(times):
        values = np.concatenate([values[:1], (values[:-2] + 2 * values[1:-1] + values[2:]) / 4, values[-1:]])
    return values


def box(left: float, right: float, low: float, high: float) -> tuple[tuple[float, float], ...]:
    """The corners of a rectangle."""
    return (left, low), (right, low), (right, high), (left, high)


def outline(corners: tuple[tuple[float, float], ...], rounding: int = 2) -> np.ndarray:
    """A closed (12 n, 2) outline through n corners, which are rounded."""
    ring = np.array([*corners, *corners, corners[0]], float)
    steps = np.arange(len(ring) * 12 - 11) / 12
    points = np.stack([np.interp(steps, np.arange(len(ring)), column) for column in ring.T], axis=1)
    return smooth(points, rounding)[6 * len(corners) : 18 * len(corners)]


def circle(x: float, y: float, z: float, radius: float | np.ndarray, angle: np.ndarray = ANGLES) -> np.ndarray:
    """The (n, 3) points at some angles and radii around a centre, in the plane that wheels stand in."""
    return np.stack(np.broadcast_arrays(x + radius * np.cos(angle), y, z + radius * np.sin(angle)), axis=-1)


def loft(kind: Kind) -> np.ndarray:
    """The body as a (150, 81, 6) mesh through cross-sections, which shrink to a point at nose and tail."""
    (length, width), radius = kind.size, kind.wheel[0]
    place = (1 - np.cos(np.linspace(0, math.pi, 3001))) / 2  # dense at the ends
    even = np.linspace(0, 1, 301)
    top = np.interp(place, even, smooth(np.interp(even, *np.transpose(kind.roof_line)), 20))
    end = np.abs(2 * place - 1)  # 1 at both ends
    half = width / 2 * (1 - end ** np.where(place < 0.5, 6, 9)) ** (1 / 6)
    bumper, close = 1.6 * radius, (1 - end**28) ** (1 / 4)
    bottom = bumper + (0.62 * radius + np.maximum(0, end - 0.78) * 0.5 - bumper) * close
    top = bumper + (top - bumper) * close
    belt = np.minimum(np.interp(place, (0, 1), kind.belt), bumper + (top - bumper) * 0.9)
    # Sections at equal distances over the surface, so that steep parts get as many as flat ones.
    lines = np.stack([length * (0.5 - place), top, half, bottom, belt])
    path = np.cumsum(np.linalg.norm(np.gradient(lines[:3], axis=1), axis=0))
    even = np.linspace(path[0], path[-1], 150)
    x, top, half, bottom, belt = (np.interp(even, path, line) for line in lines)
    side, glass = belt - bottom, top - belt
    edge = half * 0.95 - 0.42 * glass  # the windows lean in
    # fmt: off
    y = np.array([0 * half, half * .92, half * .985, half * .98, half, half * .95, edge, edge * .75, 0 * x])
    z = np.array([bottom, bottom, bottom + .12 * side, bottom + .45 * side, bottom + .76 * side, belt,
                  belt + .86 * glass, belt + .97 * glass, top])
    # fmt: on
    section = np.stack([np.broadcast_to(x, y.shape), y, z], axis=-1)
    section = np.concatenate([section, section[-2::-1] * (1, -1, 1)])
    rows = np.arange(81) / 5
    low = rows.astype(int).clip(max=15)
    section = smooth(section[low] + (section[low + 1] - section[low]) * (rows - low)[:, None, None], 4)
    normals = np.cross(np.gradient(section, axis=1), np.gradient(section, axis=0))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-9
    return np.concatenate([section, normals], axis=-1).transpose(1, 0, 2)


def drape(body: np.ndarray, ring: np.ndarray, axis: int, sign: int) -> np.ndarray:
    """Lay an (n, 2) outline onto the side of the body that faces along an axis: (n, 9) like the body."""
    vertices, others = body[body[..., 3 + axis] * sign > 0.3], [i for i in range(3) if i != axis]
    distance = ((ring[:, None] - vertices[None, :, others]) ** 2).sum(-1)
    nearest = np.argpartition(distance, 12)[:, :12]
    weight = 1 / (np.take_along_axis(distance, nearest, 1)[..., None] + 5e-4)
    points = (vertices[nearest] * weight).sum(1) / weight.sum(1)
    points = smooth(np.concatenate([points] * 3), 8)[len(ring) : 2 * len(ring)]
    points[:, others] = ring
    return points


def lift(body: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """The body's (n, 9) values at (n, 2) places (0 nose, 1 tail) and rows, also between the mesh's own."""
    x, rows = body[:, 0, 0], ring[:, 1]
    columns = np.interp(ring[:, 0], (x[0] - x) / (x[0] - x[-1]), np.arange(len(x)))
    i, j = columns.astype(int), rows.astype(int)
    a, b = (columns - i)[:, None], (rows - j)[:, None]
    near, far = (body[k, j] * (1 - b) + body[k, j + 1] * b for k in (i, i + 1))
    return near * (1 - a) + far * a


@lru_cache(maxsize=8)
def build(car: int) -> Car:
    """Car number `car`: kinds and paints take turns, sizes are drawn at random, seeded by the number."""
    rng = np.random.default_rng(car)
    kind, tall = KINDS[car % len(KINDS)], rng.uniform(0.95, 1.05)
    length, width = kind.size * rng.uniform((0.95, 0.96), (1.04, 1.03))
    belt, roof_line = tuple(z * tall for z in kind.belt), tuple((t, z * tall) for t, z in kind.roof_line)
    kind = kind._replace(size=(length, width), belt=belt, roof_line=roof_line)
    paint = np.array(PAINTS[car % len(PAINTS)]) * rng.uniform(0.94, 1.05)
    (radius, *axles), pillars, decals, body = kind.wheel, kind.pillars, [], loft(kind)
    body = np.concatenate([body, np.broadcast_to(paint, body.shape[:2] + (3,))], axis=-1)
    if kind.glass[1][1] < 0.7:  # an open bed, under a black cover
        body[np.abs(body[:, 40, 0] / length + 0.31) < 0.16, 33:48, 6:] = DARK
    sill, ends = 0.62 * radius, (roof_line[1][1], belt[1])
    doors = [box(p, p + 0.0025, low, 1.05) for p, low in zip(pillars, (0.14, 0.14, 0.72), strict=False)]
    handles = [box(p - 0.045, p - 0.01, 0.86, 0.9) for p in pillars[1:-1]]
    details = [*DETAILS, *((1, 1, SEAM, corners) for corners in (*doors, *handles))]
    windows = [box(*ends, 31.3, 48.7) for ends in kind.glass]
    for side in (1, -1):
        for axle in axles:
            arch = circle(length * (0.5 - axle), 0, radius, 1.15 * radius)[:, ::2].clip(min=(-9, sill + 0.04))
            decals.append((drape(body, arch, 1, side), DARK, BODY))
        for axis, sign, colour, corners in details:
            across, up = outline(corners).T
            high = np.interp(across, (0, 1), ends) if axis else ends[sign < 0]
            across = length * (0.5 - across) if axis else side * across * width / 2
            ring = np.stack([across, sill + up * (high - sill)], axis=1)
            shape = drape(body, ring, axis, side if axis else sign)
            decals.append((shape, colour or tuple((paint * 0.35).astype(int).tolist()), BODY))
        rows = (40 - side * 14.6, 40 - side * 10.2)
        windows += [box(start + 0.008, end - 0.008, *rows) for start, end in pairwise(pillars)]
    for ring in map(outline, windows):
        frame = ring.mean(0) + (ring - ring.mean(0)) * (1.02, 1.06)
        decals += [(lift(body, frame), DARK, BODY), (lift(body, ring), DARK, WINDOWS)]
    return Car(rng.bytes(6).hex(), kind, paint, body, decals, int(rng.integers(5, 11)), rng.uniform(0.55, 1))


def shade(normals: np.ndarray, to_eye: np.ndarray, paint: np.ndarray) -> np.ndarray:
    """RGB of glossy paint in the studio, from its own RGB, normals and directions to the eye, all (n, 3)."""
    facing = (normals * to_eye).sum(-1, keepdims=True).clip(0, 1)
    mirrored = (2 * facing * normals - to_eye)[:, 2:]
    # Seen in the paint, from below to above: floor, horizon, wall, overhead light box.
    room = np.interp(mirrored, (-0.4, -0.1, 0.1, 0.3, 0.8), (0.26, 0.4, 0.8, 0.75, 1))
    light = 0.34 + 0.26 * normals[:, 2:] + 0.48 * room
    return (paint * light + 255 * room * (0.09 + 0.5 * (1 - facing) ** 4)).clip(0, 255)


@lru_cache(maxsize=1)
def studio() -> Image.Image:
    """The empty studio: wall, lettering, floor and turntable."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (230, 232, 232))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(230)
    draw.text((WIDTH / 2, 440), "FAIR & SQUARE", (86, 88, 94), font, anchor="mm", stroke_width=5)
    draw.ellipse((-1700, 530, WIDTH + 1700, 3000), (150, 155, 159))
    draw.ellipse((-150, 660, WIDTH + 150, 1250), outline=(128, 132, 136), width=3)
    y, x = np.ogrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    light = 1.04 - 0.09 * x**2 - 0.06 * y**2 + 0.06 * np.exp(-((y - 0.5) ** 2) * 8 - x**2 * 3)
    image = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5))) * light[..., None]
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


class Painter:
    """A camera, and two canvases of the photograph's band at twice the size: colours and part indices."""

    def __init__(self, car: Car, azimuth: float, away: float) -> None:
        """Stand `away` metres from the car, at an angle in radians from its front to its left."""
        self.car, (length, width) = car, car.kind.size
        self.forward = np.array([-math.cos(azimuth), -math.sin(azimuth), 0])
        self.right = np.array([self.forward[1], -self.forward[0], 0])
        self.eye = np.array([0, 0, EYE]) - away * self.forward
        shadow = Image.new("L", (WIDTH // 4, HEIGHT // 4))
        for grow, dark, blur in ((0.5, 90, 7), (0.46, 220, 3)):
            x, y = grow * length, grow * width
            floor = self.project(np.pad(outline(box(-x, x, -y, y), 4), ((0, 0), (0, 1)))) / 2 + BAND[:2]
            ImageDraw.Draw(shadow).polygon((floor / 4).ravel().tolist(), dark)
            shadow = shadow.filter(ImageFilter.GaussianBlur(blur))
        self.photo = studio().copy()
        self.photo.paste((30, 31, 33), mask=shadow.resize((WIDTH, HEIGHT), Image.BILINEAR))
        size = (2 * (BAND[2] - BAND[0]), 2 * (BAND[3] - BAND[1]))
        self.image, self.parts = self.photo.crop(BAND).resize(size, Image.NEAREST), Image.new("L", size)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Canvas pixels (..., 2) of points (..., 3)."""
        ray = points - self.eye
        scale = FOCAL / (ray @ self.forward)
        flat = np.stack([WIDTH / 2 + scale * (ray @ self.right), HORIZON - scale * ray[..., 2]], axis=-1)
        return 2 * (flat - BAND[:2])

    def polygon(self, points: np.ndarray, colour: tuple[int, int, int], part: int = BODY) -> None:
        """Paint the polygon through (n, 3) points."""
        flat = self.project(points).ravel().tolist()
        ImageDraw.Draw(self.image).polygon(flat, colour)
        ImageDraw.Draw(self.parts).polygon(flat, part)

    def body(self) -> None:
        """Paint the body; its colours are blurred so that the cells don't show, its outline stays sharp."""
        mesh, (wide, high) = self.car.body, self.image.size
        cells = np.stack([mesh[:-1, :-1], mesh[1:, :-1], mesh[1:, 1:], mesh[:-1, 1:]], 2).reshape(-1, 4, 9)
        centre, normals, paint = np.split(cells.mean(1), 3, axis=-1)
        to_eye = self.eye - centre
        distance = np.linalg.norm(to_eye, axis=1)
        to_eye /= distance[:, None]
        order = np.argsort(-distance)  # far cells first
        order = order[(normals * to_eye).sum(1)[order] > -0.05]
        colours = shade(normals[order], to_eye[order], paint[order]).astype(int).tolist()
        layer, cover = Image.new("RGBA", (wide // 4, high // 4)), Image.new("1", (wide, high))
        draw_layer, draw_cover = ImageDraw.Draw(layer), ImageDraw.Draw(cover)
        for flat, colour in zip(self.project(cells[order, :, :3]).reshape(-1, 8), colours, strict=True):
            draw_layer.polygon((flat / 4).tolist(), (*colour, 255))
            draw_cover.polygon(flat.tolist(), 1)
        # Premultiplied ("RGBa"), so that nothing of the empty surroundings bleeds in.
        layer = layer.convert("RGBa").filter(ImageFilter.BoxBlur(3)).convert("RGBA").convert("RGB")
        self.image.paste(layer.resize((wide, high), Image.NEAREST), mask=cover)
        self.parts.paste(BODY, mask=cover)

    def tyre(self, x: float, y: float, radius: float) -> None:
        """Paint a tyre, all black, from its outer face at y inwards."""
        outer, inner = (circle(x, side, radius, radius) for side in (y, y - math.copysign(0.22, y)))
        for strip in (inner, outer, *np.stack([outer[:-1], outer[1:], inner[1:], inner[:-1]], axis=1)):
            self.polygon(strip, (28, 28, 29), WHEELS)

    def rim(self, x: float, y: float, radius: float) -> None:
        """Paint the outer face of a wheel: tyre, rim, spokes and hub."""
        for size, colour in ((1, (36, 36, 37)), (0.72, (172, 174, 176)), (0.66, (46, 47, 49))):
            self.polygon(circle(x, y, radius, radius * size), colour, WHEELS)
        for spoke in range(self.car.spokes):
            angles = (2 * math.pi * spoke + np.array([-0.9, 0.9, 2, -2])) / self.car.spokes + 9 * x
            corners = circle(x, y, radius, radius * np.array([0.68, 0.68, 0.1, 0.1]), angles)
            self.polygon(corners, (188, 190, 192), WHEELS)
        self.polygon(circle(x, y, radius, radius * 0.16), (150, 152, 154), WHEELS)

    def mirror(self, side: int) -> None:
        """Paint a mirror: its housing, and from behind its glass."""
        foot = lift(self.car.body, np.array([[self.car.kind.pillars[0] + 0.05, 40.0 - side * 15]]))[0, :3]
        across = self.right * math.hypot(0.07 * self.right[0], 0.12 * self.right[1])
        for size, light in ((1, 0.4), (0.95, 0.55), (0.88, 0.75), (0.78, 0.85), (0.6, 0.95)):
            centre = foot + (0, side * 0.11, 0.1 - 0.02 * size)
            ring = np.cos(ANGLES)[:, None] * across + np.sin(ANGLES)[:, None] * (0, 0, 0.085)
            glass = self.forward[0] > 0.2 and size < 0.9
            colour = (118, 122, 126) if glass else tuple((self.car.paint * light).astype(int).tolist())
            self.polygon(centre + size * ring, colour)

    def interior(self, glass: np.ndarray) -> np.ndarray:
        """What is seen through the glass, given as a mask (h, w): grey, darker further down, and seats."""
        seats = Image.new("L", glass.shape[::-1])
        shapes = ((0.25, -0.4, 0.22), (0.13, 0.26, 0.42))  # backrest and headrest: half width, bottom, top
        for place, y, (wide, low, high) in product(self.car.kind.pillars[1:3], (0.37, -0.37), shapes):
            ring = outline(((-wide, low), (-wide * 0.8, high), (wide * 0.8, high), (wide, low)), 4)
            centre = (self.car.kind.size[0] * (0.5 - place), y, self.car.kind.belt[0])
            ring = self.project(centre + ring[:, :1] * self.right + ring[:, 1:] * (0, 0, 1)) / 2
            ImageDraw.Draw(seats).polygon(ring.ravel().tolist(), 130)
        rows = np.flatnonzero(glass.any(1))
        fade = np.interp(np.arange(len(glass)), rows[[0, -1]], (160, 45)) * self.car.tint
        return fade[:, None] * (1 - np.asarray(seats.filter(ImageFilter.BoxBlur(2))) / 255)


def render(car: int, view: int) -> tuple[Image.Image, np.ndarray]:
    """Photograph car number `car` from view 1..16: RGB image and (1280, 1918) uint8 indices into PARTS."""
    rng, model = np.random.default_rng((car, view)), build(car)
    (length, width), (radius, *axles) = model.kind.size, model.kind.wheel
    azimuth = math.radians((view - 1) * 22.5 + rng.normal(0, 0.5))
    painter = Painter(model, azimuth, away=3.6 + 0.95 * length + rng.uniform(-0.1, 0.15))
    sides = sorted((1, -1), key=lambda side: side * painter.eye[1])  # the far one first
    near = [side for side in sides if side * painter.eye[1] > width / 2]
    wheels = [(length * (0.5 - axle), side * (width / 2 - 0.03), radius) for side in sides for axle in axles]
    for wheel in wheels:
        painter.tyre(*wheel)
    for side in set(sides) - set(near):
        painter.mirror(side)
    aerial = np.array([(0.03, 0, 0), (-0.14, 0, 0.22), (-0.15, 0, 0.22), (-0.02, 0.01, 0), (-0.02, -0.01, 0)])
    foot = lift(model.body, np.array([[np.mean(model.kind.pillars[-2:]), 40.0]]))[0, :3]
    painter.polygon(foot + aerial, DARK)
    painter.body()
    for shape, colour, part in model.decals:
        seen = ((painter.eye - shape[:, :3]) * shape[:, 3:6]).sum(1) > 0  # the rest faces away
        if seen.sum() > 2:
            painter.polygon(shape[seen, :3], colour, part)
    for wheel in wheels:
        if np.sign(wheel[1]) in near:
            painter.rim(*wheel)
    for side in near:
        painter.mirror(side)

    # A pixel is the car's where at least two of its four quarters are.
    quarters = np.asarray(painter.parts)
    quarters = np.stack([quarters[i::2, j::2] for i, j in product((0, 1), (0, 1))])
    part = np.where((quarters > 0).sum(0) >= 2, quarters.max(0), BACKGROUND).astype(np.uint8)
    pixels, glass = np.array(painter.image.reduce(2)), part == WINDOWS
    pixels[glass] = painter.interior(glass)[glass][:, None] * (0.95, 1, 1)
    parts = np.zeros((HEIGHT, WIDTH), np.uint8)
    painter.photo.paste(Image.fromarray(pixels), BAND[:2])
    parts[BAND[1] : BAND[3], BAND[0] : BAND[2]] = part
    noise = rng.standard_normal((HEIGHT, WIDTH, 1), dtype=np.float32) * 2
    return Image.fromarray((painter.photo + noise).clip(0, 255).astype(np.uint8)), parts


def _save(job: tuple[Path, str, int, int]) -> None:
    """Render and write one photograph and its mask; at module level, so that it can be sent to a process."""
    folder, split, car, view = job
    image, parts = render(car, view)
    name = f"{build(car).name}_{view:02d}"
    image.save(folder / f"{split}_images" / f"{name}.jpg", quality=90)
    Image.fromarray(parts != BACKGROUND).save(folder / f"{split}_masks" / f"{name}_mask.gif")


def make_sample(folder: str | Path, train_cars: int = 6, val_cars: int = 2, views: int = 16) -> None:
    """Write train_images, train_masks, val_images and val_masks into a new folder; each car is in one split.

    Everything is written into `<folder>.part`, renamed at the end, so that a folder is never half-written.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(folder)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for name in ("train_images", "train_masks", "val_images", "val_masks"):
        (part / name).mkdir(parents=True)
    # Validation starts at a number where the kinds start over, so that it meets kinds that training has.
    first = math.ceil(train_cars / len(KINDS)) * len(KINDS)
    cars = [("train", car) for car in range(train_cars)] + [("val", first + car) for car in range(val_cars)]
    jobs = [(part, split, car, view) for split, car in cars for view in range(1, views + 1)]
    with ProcessPoolExecutor() as pool:
        try:
            for _ in tqdm(pool.map(_save, jobs), total=len(jobs), desc="rendering the sample set"):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)  # without it, leaving would wait for all that are queued
            raise
    part.rename(folder)
