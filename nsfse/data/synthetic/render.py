"""Paints one product from its attributes and a seed: the images of the drawn catalogue.

Attributes decide what is in the image; the seed decides only what no text speaks of: position, rotation, scale,
light, a little colour. Painted at twice the size and reduced, so that edges are smooth.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from nsfse.data.synthetic.shapes import Part, Points, shape
from nsfse_runtime.types import Pixels

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 38, 42),
    "dark red": (118, 22, 34),
    "pink": (240, 146, 170),
    "green": (44, 146, 70),
    "dark green": (20, 74, 44),
    "light green": (152, 212, 140),
    "blue": (44, 92, 208),
    "navy": (26, 34, 88),
    "light blue": (136, 188, 236),
    "black": (38, 37, 40),
    "grey": (132, 132, 136),
    "white": (240, 239, 236),
    "brown": (112, 68, 38),
    "beige": (212, 184, 142),
    "yellow": (240, 200, 44),
    "purple": (120, 52, 152),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (247, 246, 244),
    "grey": (186, 187, 190),
    "blue": (178, 208, 244),
    "pink": (250, 200, 208),
}
PATTERNS = ("plain", "stripes", "dots", "checks", "zigzag", "diamonds")
LENGTHS: dict[str, float] = {"short": 0.0, "medium": 0.5, "long": 1.0}
SIZES: dict[str, float] = {"small": 0.66, "large": 0.92}
_FIXED_TONES = {"wood": (150, 104, 62), "metal": (176, 170, 150), "sole": (226, 222, 214), "inside": (70, 52, 44)}

Colour = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Nuisance:
    """How far images of equal attributes may differ: shares of the image, degrees, and gains around 1."""

    shift: float
    turn: float
    scale: float
    light: float
    tint: float
    hue: float


MILD = Nuisance(shift=0.03, turn=5.0, scale=0.05, light=0.08, tint=0.02, hue=0.02)
STRONG = Nuisance(shift=0.06, turn=14.0, scale=0.09, light=0.18, tint=0.03, hue=0.05)


class _Canvas:
    """An image being painted in unit coordinates through one affine map."""

    def __init__(self, size: tuple[int, int], matrix: Points, offset: Points, ground: Colour) -> None:
        self.size = (size[1], size[0])
        self.matrix, self.offset, self.unit = matrix, offset, float(np.sqrt(abs(np.linalg.det(matrix))))
        self.image = Image.new("RGB", self.size, _rgb(ground))
        self.draw = ImageDraw.Draw(self.image)

    def put(self, draw: ImageDraw.ImageDraw, part: Part, fill: tuple[int, int, int] | int) -> None:
        spots = [tuple(xy) for xy in (part.points @ self.matrix.T + self.offset).tolist()]
        if part.width:
            draw.line(spots, fill=fill, width=max(1, round(part.width * self.unit)), joint="curve")
        else:
            draw.polygon(spots, fill=fill)

    def outline(self, part: Part, fill: tuple[int, int, int]) -> None:
        closed = part.points if part.width else np.concatenate([part.points, part.points[:1]])
        self.put(self.draw, Part(part.tone, closed, part.width + 0.035), fill)


def paint(attributes: Mapping[str, str], seed: int, size: tuple[int, int], nuisance: Nuisance = STRONG) -> Pixels:
    """Draw a product; the same arguments give the same pixels.

    Args:
        attributes: Category, colour, pattern, length, detail (`with` or `without`), size, background.
        seed: Chooses what the attributes leave open.
        size: (height, width) in pixels.
        nuisance: How much the drawing varies.

    Returns:
        The image [H, W, 3], uint8 RGB.
    """
    rng = np.random.default_rng(seed)
    height, width = size[0] * 2, size[1] * 2
    side = min(height, width)
    turn = np.deg2rad(rng.uniform(-1, 1) * nuisance.turn)
    scale = 0.5 * side * SIZES[attributes["size"]] * 0.92 * (1 + rng.uniform(-1, 1) * nuisance.scale)
    flip = rng.choice((-1.0, 1.0))
    matrix = scale * np.array([[np.cos(turn) * flip, -np.sin(turn)], [np.sin(turn) * flip, np.cos(turn)]])
    offset = np.array([width, height]) / 2 + rng.uniform(-1, 1, 2) * nuisance.shift * side
    base = np.clip(np.array(COLOURS[attributes["colour"]]) * (1 + rng.uniform(-1, 1, 3) * nuisance.hue), 0, 255)
    canvas = _Canvas((height, width), matrix, offset, np.array(BACKGROUNDS[attributes["background"]], dtype=float))
    parts = shape(attributes["category"], LENGTHS[attributes["length"]], attributes["detail"] == "with")
    _cast_shadow(canvas, parts)
    _paint_parts(canvas, parts, base, attributes["pattern"], rng)
    small = canvas.image.reduce(2)
    return _light(np.asarray(small, dtype=np.float32), rng, nuisance)


def _paint_parts(
    canvas: _Canvas, parts: tuple[Part, ...], base: Colour, pattern: str, rng: np.random.Generator
) -> None:
    """Paint the parts back to front, the body parts with the pattern and a darker outline."""
    dark = base * 0.66 if base.sum() > 160 else base + 46
    tones = {name: np.array(rgb, dtype=float) for name, rgb in _FIXED_TONES.items()}
    tones |= {"dark": dark, "fold": dark, "light": _towards(base, 255, 0.35), "trim": _contrast(base)}
    cloth = _cloth(canvas, base, pattern, rng)
    for part in parts:
        if part.tone != "body":
            if part.tone == "trim":
                canvas.outline(part, _rgb(_towards(tones["trim"], 128, 0.5)))
            canvas.put(canvas.draw, part, _rgb(tones[part.tone]))
            continue
        mask = Image.new("1", canvas.size)
        canvas.put(ImageDraw.Draw(mask), part, 1)
        canvas.image.paste(cloth, mask=mask)
        canvas.outline(part, _rgb(dark))


def _cloth(canvas: _Canvas, base: Colour, pattern: str, rng: np.random.Generator) -> Image.Image:
    """Return a whole image of the body's colour and pattern, turned with the product."""
    cloth = Image.new("RGB", canvas.size, _rgb(base))
    if pattern == "plain":
        return cloth
    draw = ImageDraw.Draw(cloth)
    accent = _rgb(base + (_contrast(base) - base) * 0.8)
    shift = rng.uniform(0, 0.3)
    for part in _pattern(pattern, shift):
        canvas.put(draw, part, _rgb(base + (_contrast(base) - base) * 0.45) if part.tone == "faint" else accent)
    return cloth


def _pattern(pattern: str, shift: float) -> list[Part]:
    """Return the marks of a pattern over [-1.2, 1.2] squared, moved by `shift`."""
    steps = np.arange(-1.4, 1.3, 0.3) + shift
    if pattern == "stripes":
        return [Part("mark", np.array([(x, -1.3), (x, 1.3)]), 0.12) for x in steps]
    if pattern == "checks":
        bands = [Part("faint", np.array([(-1.3, y), (1.3, y)]), 0.13) for y in steps]
        bands += [Part("faint", np.array([(x, -1.3), (x, 1.3)]), 0.13) for x in steps]
        return bands + [Part("mark", _square(x, y, 0.065)) for x in steps for y in steps]
    if pattern == "zigzag":
        xs = np.arange(-1.4, 1.5, 0.18)
        teeth = np.where(np.arange(len(xs)) % 2 == 0, -0.09, 0.09)
        return [Part("mark", np.stack([xs, teeth + y], axis=1), 0.09) for y in steps]
    diamond = pattern == "diamonds"
    spots = [(x + 0.15 * (row % 2), y) for row, y in enumerate(steps) for x in steps]
    if diamond:
        return [Part("mark", np.array([(x, y - 0.17), (x + 0.1, y), (x, y + 0.17), (x - 0.1, y)])) for x, y in spots]
    return [Part("mark", np.array([x, y]) + _DOT) for x, y in spots]


_ANGLES = np.linspace(0, 2 * np.pi, 10, endpoint=False)
_DOT = 0.095 * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def _square(x: float, y: float, half: float) -> Points:
    return np.array([(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)])


def _cast_shadow(canvas: _Canvas, parts: tuple[Part, ...]) -> None:
    """Darken the ground softly below and beside the product."""
    mask = Image.new("L", canvas.size)
    draw = ImageDraw.Draw(mask)
    for part in parts:
        if part.width == 0:
            canvas.put(draw, part, 96)
    soft = (
        mask.reduce(4)
        .filter(ImageFilter.BoxBlur(max(1, canvas.unit / 45)))
        .resize(canvas.size, Image.Resampling.BILINEAR)
    )
    away = max(1, round(canvas.unit * 0.06))
    canvas.image.paste((70, 66, 78), (away, away), soft)


def _light(pixels: NDArray[np.float32], rng: np.random.Generator, nuisance: Nuisance) -> Pixels:
    """Light the whole image: a gain, a tint of the lamp, a slope across it and a grain."""
    height, width, _ = pixels.shape
    gain = (1 + rng.uniform(-1.0, 0.5) * nuisance.light) * (1 + rng.uniform(-1, 1, 3) * nuisance.tint)
    slope = rng.uniform(-1, 1, 2) * nuisance.light * 0.6
    rows = 1 + slope[0] * np.linspace(-0.5, 0.5, height, dtype=np.float32)
    columns = 1 + slope[1] * np.linspace(-0.5, 0.5, width, dtype=np.float32)
    lit = pixels * gain.astype(np.float32) * (rows[:, None] * columns[None, :])[..., None].astype(np.float32)
    lit += rng.standard_normal((height, width, 1), dtype=np.float32) * 2.0
    pixels_lit: Pixels = np.clip(lit, 0, 255).astype(np.uint8)
    return pixels_lit


def _contrast(base: Colour) -> Colour:
    """Return the paint that stands out from `base`: cream on dark, ink on light."""
    bright = float(base @ np.array([0.299, 0.587, 0.114]))
    return np.array([248.0, 243, 232]) if bright < 140 else np.array([58.0, 48, 66])


def _towards(base: Colour, level: float, share: float) -> Colour:
    return base + (level - base) * share


def _rgb(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = np.clip(colour, 0, 255).round().astype(int).tolist()
    return red, green, blue
