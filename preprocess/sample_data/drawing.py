"""Drawn images for a sample archive: pictures in which a class looks like its branch of the tree, and like itself.

A class is drawn from its attributes, one per step down the tree: the top class sets the scene, the class below it the
shape that stands there, then its colour, its pattern, how many there are, and their rim. An image of a class at step 2
holds to the first three attributes; the deeper ones are drawn by chance, as pictures filed under `bird` show any bird.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw

Floats = npt.NDArray[np.floating]
Colour = tuple[int, int, int]
Size = tuple[int, int]  # width, height in pixels

# Width, height and how often: sizes of photographs as ImageNet holds them (the shares are guessed, by eye).
SIZES: dict[Size, float] = {
    (500, 375): 0.42,
    (375, 500): 0.16,
    (500, 333): 0.14,
    (333, 500): 0.06,
    (400, 300): 0.06,
    (500, 500): 0.04,
    (640, 480): 0.02,
    (240, 180): 0.03,
    (150, 120): 0.04,
    (1000, 750): 0.03,
}


@dataclass(frozen=True)
class Scene:
    """Where things stand.

    top, bottom:  colours above and below the horizon.
    grain:        width and height of the ground's texture patches, as parts of the picture's longer side.
    contrast:     how strong the texture is, in percent.
    """

    top: Colour
    bottom: Colour
    grain: tuple[float, float]
    contrast: int


SCENES = (
    Scene(top=(150, 190, 220), bottom=(96, 128, 58), grain=(0.006, 0.07), contrast=46),  # meadow
    Scene(top=(172, 170, 168), bottom=(112, 112, 118), grain=(0.16, 0.02), contrast=30),  # street
    Scene(top=(52, 84, 52), bottom=(84, 66, 42), grain=(0.045, 0.045), contrast=52),  # forest
    Scene(top=(226, 212, 186), bottom=(158, 104, 60), grain=(0.4, 0.012), contrast=36),  # table
    Scene(top=(44, 34, 64), bottom=(120, 58, 72), grain=(0.11, 0.11), contrast=60),  # bar at night
    Scene(top=(120, 130, 128), bottom=(186, 172, 140), grain=(0.02, 0.012), contrast=40),  # sand
)
FILLS: tuple[Colour, ...] = (
    (206, 52, 44),
    (52, 92, 196),
    (238, 196, 52),
    (236, 236, 230),
    (44, 44, 50),
    (226, 122, 36),
    (146, 62, 160),
    (52, 166, 162),
)
RIMS: tuple[Colour | None, ...] = (None, (250, 250, 250), (24, 22, 26), (250, 210, 40), (60, 120, 250))
# Centres and size of each copy, as parts of the whole group.
GROUPS: tuple[tuple[float, tuple[tuple[float, float], ...]], ...] = (
    (1.0, ((0, 0),)),
    (0.62, ((-0.55, 0), (0.55, 0))),
    (0.56, ((0, -0.5), (-0.52, 0.4), (0.52, 0.4))),
    (0.54, ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5))),
    (0.6, ((0, -0.58), (0, 0.58))),
    (0.42, ((-0.66, -0.6), (0.66, -0.6), (0, 0), (-0.66, 0.6), (0.66, 0.6))),
)


def _round(radius: Callable[[Floats], Floats], points: int = 96) -> Floats:
    """Trace radius(angle), the angle counted clockwise from the top; returns (points, 2) in -1..1."""
    angle = np.linspace(0, 2 * math.pi, points, endpoint=False, dtype=np.float32)
    return np.stack([radius(angle) * np.sin(angle), -radius(angle) * np.cos(angle)], axis=1)


def _outline(*points: tuple[float, float]) -> Floats:
    return np.array(points, np.float32)


def _crescent() -> Floats:
    turn = np.linspace(-2.4, 2.4, 60, dtype=np.float32)
    outer = np.stack([0.2 - np.cos(turn), np.sin(turn)], axis=1)
    inner = np.stack([0.62 - 0.78 * np.cos(turn), 0.78 * np.sin(turn)], axis=1)[::-1]
    return np.concatenate([outer, inner])


def _heart() -> Floats:
    t = np.linspace(0, 2 * math.pi, 80, endpoint=False, dtype=np.float32)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2], axis=1) / 16


SHAPES: tuple[Floats, ...] = (
    _round(lambda angle: 0.9 + 0 * angle),  # disc
    _outline((-0.9, 0.75), (0, -0.95), (0.9, 0.75)),  # triangle
    _outline((-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)),  # square
    _round(lambda angle: np.where(np.arange(angle.size) % 2 == 0, 1.0, 0.42).astype(np.float32), 10),  # star
    _outline(
        *((-0.32, -0.95), (0.32, -0.95), (0.32, -0.32), (0.95, -0.32), (0.95, 0.32), (0.32, 0.32)),
        *((0.32, 0.95), (-0.32, 0.95), (-0.32, 0.32), (-0.95, 0.32), (-0.95, -0.32), (-0.32, -0.32)),
    ),  # cross
    _crescent(),
    _heart(),
    _outline((-0.85, -0.9), (0.85, -0.9), (0.16, 0), (0.85, 0.9), (-0.85, 0.9), (-0.16, 0)),  # hourglass
)


def _sharp(wave: Floats) -> Floats:
    return np.clip(wave * 4 + 0.5, 0, 1)


# Each takes x and y in -1..1 over the shape and gives how much of the second colour stands there, 0..1.
PATTERNS: tuple[Callable[[Floats, Floats], Floats], ...] = (
    lambda x, y: 0 * (x + y),  # plain
    lambda x, y: _sharp(np.sin(9 * x)) + 0 * y,  # upright stripes
    lambda x, y: _sharp(np.sin(8 * x) * np.sin(8 * y) - 0.3),  # dots
    lambda x, y: _sharp(y) + 0 * x,  # halves, one above the other
    lambda x, y: _sharp(np.sin(11 * np.hypot(x, y))),  # rings
    lambda x, y: _sharp(np.sin(9 * y)) + 0 * x,  # level stripes
    lambda x, y: _sharp(np.sin(6 * x) * np.sin(6 * y) * 2),  # checks
    lambda x, y: _sharp(np.sin(6 * np.arctan2(y, x))),  # rays
)
# Per step down the tree how many attributes there are to choose from: scene, shape, fill, pattern, group, rim.
NUM_ATTRIBUTES = (len(SCENES), len(SHAPES), len(FILLS), len(PATTERNS), len(GROUPS), len(RIMS))
# Where chance decides, the plain attribute (number 0) comes this often: most things stand alone and have no rim.
_PLAIN_SHARE = (0, 0, 0, 0.2, 0.55, 0.6)


def draw(attributes: Sequence[int], rng: np.random.Generator) -> Image.Image:
    """Draw one RGB image of a class, of one of SIZES.

    attributes: scene, shape, fill, pattern, group, rim, each below its NUM_ATTRIBUTES; the rest is drawn by chance.
    """
    scene, *look = _completed(attributes, rng)
    sizes = list(SIZES)
    size = sizes[rng.choice(len(sizes), p=list(SIZES.values()))]
    picture = _background(SCENES[scene], size, rng)
    _clutter(picture, rng)
    if rng.random() < 0.25:  # something else stands about, smaller and off the middle
        _place(picture, _completed((scene,), rng)[1:4], scale=0.16, drift=1.0, rng=rng)
    scale = 0.2 if rng.random() < 0.08 else rng.uniform(0.36, 0.56)
    _place(picture, look, scale=scale, drift=0.35, rng=rng)
    _occlude(picture, SCENES[scene], rng)
    return _photograph(picture, rng)


def _completed(attributes: Sequence[int], rng: np.random.Generator) -> list[int]:
    chosen = list(attributes)
    for number, plain in list(zip(NUM_ATTRIBUTES, _PLAIN_SHARE, strict=True))[len(chosen) :]:
        chosen.append(0 if rng.random() < plain else int(rng.integers(number)))
    return chosen


def _soft_noise(size: Size, cells: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Blur cells (width, height) random grey values over a picture of `size`; mode L."""
    values = rng.integers(0, 256, (max(cells[1], 2), max(cells[0], 2)), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)


def _flattened(percent: int) -> list[int]:
    """Make the table for `Image.point` that keeps this much of the contrast, around mid-grey."""
    return [round(128 + (value - 128) * percent / 100) for value in range(256)]


def _shifted(colour: Colour, spread: float, rng: np.random.Generator) -> Colour:
    """Move a colour by chance: `spread` is the deviation of each channel, in 0..255."""
    red, green, blue = np.clip(np.array(colour) + rng.normal(0, spread, 3), 0, 255).astype(int).tolist()
    return (red, green, blue)


def _background(scene: Scene, size: Size, rng: np.random.Generator) -> Image.Image:
    horizon, softness = rng.uniform(0.2, 0.6), rng.uniform(0.03, 0.15)
    below = 1 / (1 + np.exp((horizon - np.linspace(0, 1, size[1], dtype=np.float32)) / softness))
    column = Image.fromarray((below * 255).astype(np.uint8)[:, None]).resize(size, Image.Resampling.NEAREST)
    picture = Image.new("RGB", size, _shifted(scene.top, 11, rng))
    picture.paste(_shifted(scene.bottom, 11, rng), mask=column)
    cells = tuple(
        int(side / (part * max(size) * rng.uniform(0.7, 1.5))) for side, part in zip(size, scene.grain, strict=True)
    )
    ground = _soft_noise(size, (cells[0], cells[1]), rng).point(_flattened(scene.contrast))
    clouds = _soft_noise(size, (7, 9), rng).point(_flattened(24))
    texture = Image.composite(Image.blend(ground, clouds, 0.3), clouds, column)
    return ImageChops.add(picture, Image.merge("RGB", [texture] * 3), 1, -128)


def _clutter(picture: Image.Image, rng: np.random.Generator) -> None:
    """Strew pebbles, leaves and twigs."""
    pen = ImageDraw.Draw(picture)
    width, height = picture.size
    for _ in range(int(rng.integers(2, 14))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        long, wide = rng.uniform(0.01, 0.05, 2) * max(picture.size)
        colour = _shifted((128, 116, 92), 52, rng)
        if rng.random() < 0.6:
            pen.ellipse((x, y, x + long, y + wide), fill=colour)
        else:
            pen.line((x, y, x + 4 * rng.normal() * long, y + 4 * wide), fill=colour, width=max(1, round(long / 6)))


def _place(picture: Image.Image, look: Sequence[int], *, scale: float, drift: float, rng: np.random.Generator) -> None:
    """Draw a group of things.

    look:   shape, fill, pattern, group, rim; without the last two one thing without a rim.
    scale:  radius of the whole group as a part of the picture's shorter side.
    drift:  how far from the middle it may stand: 0 not at all, 1 up to the picture's edge.
    """
    shape, fill, pattern, group, rim = (*look, 0, 0)[:5]
    width, height = picture.size
    radius = scale * min(width, height)
    part, centres = GROUPS[group]
    middle_x, middle_y = (side / 2 + drift * rng.uniform(-0.5, 0.5) * side for side in (width, height))
    tilt = rng.normal(0, 0.2)
    cos, sin = math.cos(tilt), math.sin(tilt)
    colour = _shifted(FILLS[fill], 14, rng)
    bright = sum(colour) > 330
    second = _shifted((52, 40, 36) if bright else (232, 226, 206), 16, rng)
    stretch = rng.uniform(0.85, 1.18)
    for x, y in centres:
        _thing(
            picture,
            (middle_x + radius * (cos * x - sin * y), middle_y + radius * (sin * x + cos * y)),
            radius * part * rng.uniform(0.92, 1.08),
            (SHAPES[shape], PATTERNS[pattern], colour, second, RIMS[rim]),
            tilt + rng.normal(0, 0.08),
            stretch,
        )


def _thing(
    picture: Image.Image,
    centre: tuple[float, float],
    radius: float,
    look: tuple[Floats, Callable[[Floats, Floats], Floats], Colour, Colour, Colour | None],
    tilt: float,
    stretch: float,
) -> None:
    """Draw one thing with its shadow; radius in pixels, tilt in radians, stretch is its width over its height."""
    outline, pattern, colour, second, rim = look
    side = 2 * max(4, round(radius * 1.3))
    cos, sin = math.cos(tilt), math.sin(tilt)
    turn = np.array([[cos, sin], [-sin, cos]], np.float32)
    corners = (outline * np.array([math.sqrt(stretch), 1 / math.sqrt(stretch)], np.float32)) @ turn
    points = (corners * 2 * radius + side).ravel().tolist()  # on a sheet of twice the size, for smooth edges
    sheet = Image.new("L", (2 * side, 2 * side))
    ImageDraw.Draw(sheet).polygon(points, fill=255)
    mask = sheet.reduce(2)

    grid = (np.arange(side, dtype=np.float32) - side / 2) / radius
    x, y = grid[None] * cos + grid[:, None] * sin, grid[:, None] * cos - grid[None] * sin
    tile = Image.new("RGB", (side, side), colour)
    tile.paste(second, mask=Image.fromarray((pattern(x, y) * 255).astype(np.uint8)))
    light = Image.fromarray((128 - 18 * grid[None] - 26 * grid[:, None]).astype(np.uint8))
    tile = ImageChops.add(tile, Image.merge("RGB", [light] * 3), 1, -128)
    if rim is not None:
        edge = Image.new("L", sheet.size)
        ImageDraw.Draw(edge).line([*points, *points[:4]], fill=255, width=max(2, round(radius * 0.4)), joint="curve")
        tile.paste(rim, mask=edge.reduce(2))

    left, top = round(centre[0] - side / 2), round(centre[1] - side / 2)
    small = max(2, side // 12)
    shadow = mask.resize((small, small), Image.Resampling.BOX).resize(mask.size, Image.Resampling.BICUBIC)
    picture.paste(
        (20, 20, 24), (left + side // 16, top + side // 12), shadow.point([value // 2 for value in range(256)])
    )
    picture.paste(tile, (left, top), mask)


def _occlude(picture: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    """Now and then let something stand in front: blades or a bar of the scene's own colours."""
    if rng.random() > 0.3:
        return
    pen = ImageDraw.Draw(picture)
    width, height = picture.size
    for _ in range(int(rng.integers(1, 4))):
        x, lean = rng.uniform(0, width), rng.normal(0, 0.15) * width
        colour = _shifted(scene.bottom, 30, rng)
        pen.line(
            (x, height, x + lean, rng.uniform(0, 0.6) * height),
            fill=colour,
            width=round(rng.uniform(0.01, 0.05) * width),
        )


@cache
def _film(deviation: int) -> Image.Image:
    """Grey-centred camera noise, larger than any picture; made once, cut out at a chance place for each picture."""
    rng = np.random.default_rng(deviation)
    noise = rng.normal(128, deviation, (800, 1060, 3)) + rng.normal(0, deviation / 2, (800, 1060, 1))
    return Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))


def _photograph(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Give light, shade, white balance and noise."""
    size = picture.size
    depth = int(rng.integers(20, 70))
    shade = _soft_noise(size, (3, 3), rng).point([value * depth // 100 for value in range(256)])
    picture.paste((16, 18, 30), mask=shade)
    gain, gamma, balance = rng.uniform(0.8, 1.3), rng.uniform(0.75, 1.25), rng.normal(1, 0.05, 3)
    level = np.arange(256) / 255
    tables = np.clip(255 * gain * balance[:, None] * level[None] ** gamma, 0, 255).astype(int)
    film = _film(int(rng.choice([2, 4, 7])))
    left, top = (int(rng.integers(0, whole - side + 1)) for whole, side in zip(film.size, size, strict=True))
    noise = film.crop((left, top, left + size[0], top + size[1]))
    return ImageChops.add(picture.point(tables.ravel().tolist()), noise, 1, -128)
