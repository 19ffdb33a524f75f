"""Silhouettes of the drawn products, in unit coordinates: x to the right, y down, all within about [-1, 1].

Each function takes the length (0 short ... 1 long: of sleeves, hem, handle, brim, ... as the product has it) and
whether its detail (collar, belt, heel, handle, ...) is there, and returns the parts to paint, back to front.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """A polygon [P, 2], or a stroke along it where `width` > 0; `tone` names its paint, `body` being the patterned."""

    tone: str
    points: Points
    width: float = 0.0


def _part(tone: str, points: Sequence[Sequence[float]] | Points, width: float = 0.0) -> Part:
    return Part(tone, np.asarray(points, dtype=np.float64), width)


def _both(tone: str, points: Sequence[Sequence[float]] | Points, width: float = 0.0) -> list[Part]:
    """Return a part and its mirror image."""
    right = np.asarray(points, dtype=np.float64)
    return [Part(tone, right, width), Part(tone, right * (-1.0, 1.0), width)]


def _whole(tone: str, half: Sequence[Sequence[float]]) -> Part:
    """Return the polygon whose right half runs from the top centre to the bottom centre."""
    right = np.asarray(half, dtype=np.float64)
    return Part(tone, np.concatenate([right, right[::-1] * (-1.0, 1.0)]))


def _arc(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> Points:
    """Return points on an ellipse from `start` to `end` degrees, clockwise from the right as seen."""
    angle = np.deg2rad(np.linspace(start, end, 25))
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _sleeves(top: float, length: float, drop: float = 0.42) -> list[Part]:
    along, across = np.array([0.5, 0.866]), np.array([-0.866, 0.5])
    shoulder = np.array([0.4, top])
    end = shoulder + along * length + np.array([0.06, 0.0])
    sleeve = [shoulder, shoulder + np.array([0.12, 0.03]), end, end + across * 0.28, (0.4, top + drop)]
    return _both("body", np.array(sleeve))


def _shirt(length: float, detail: bool) -> list[Part]:
    torso = [(0, -0.6), (0.12, -0.65), (0.2, -0.8), (0.46, -0.7), (0.44, -0.1), (0.47, 0.82), (0, 0.84)]
    parts = [*_sleeves(-0.71, 0.42 + 0.76 * length), _whole("body", torso)]
    if detail:
        parts += _both("trim", [(0, -0.56), (0.13, -0.36), (0.3, -0.66), (0.19, -0.86), (0.1, -0.78)])
    else:
        parts.append(_part("dark", [(-0.2, -0.8), (-0.12, -0.66), (0, -0.6), (0.12, -0.66), (0.2, -0.8)], 0.06))
    return parts


def _dress(length: float, detail: bool) -> list[Part]:
    hem = 0.2 + 0.76 * length
    wide = 0.27 + 0.46 * (hem + 0.2)
    half = [(0, -0.6), (0.1, -0.68), (0.17, -0.95), (0.29, -0.95), (0.33, -0.58), (0.25, -0.2), (wide, hem)]
    parts = [_whole("body", [*half, (wide * 0.5, hem + 0.05), (0, hem + 0.06)])]
    for x in (0.08, 0.17):
        parts += _both("fold", [(x, -0.08), (x * wide / 0.3, hem)], 0.025)
    if detail:
        parts.append(_part("trim", _rectangle(-0.28, -0.29, 0.28, -0.11)))
    return parts


def _trousers(length: float, detail: bool) -> list[Part]:
    hem = -0.1 + 1.05 * length
    leg = [(0, -0.92), (0.4, -0.92), (0.5, -0.5), (0.53, hem), (0.13, hem), (0.03, -0.32), (0, -0.32)]
    parts = [_whole("body", leg), _part("fold", [(0, -0.75), (0, -0.34)], 0.03)]
    parts += _both("fold", [(0.36, -0.72), (0.44, -0.5)], 0.03)
    if detail:
        parts += [
            _part("trim", _rectangle(-0.42, -0.94, 0.42, -0.74)),
            _part("metal", _rectangle(-0.1, -0.96, 0.1, -0.72)),
        ]
    else:
        parts.append(_part("dark", _rectangle(-0.41, -0.92, 0.41, -0.82)))
    return parts


def _skirt(length: float, detail: bool) -> list[Part]:
    hem = -0.02 + 0.92 * length
    wide = 0.34 + 0.42 * (hem + 0.65)
    half = [(0, -0.7), (0.33, -0.7), (wide, hem), (wide * 0.5, hem + 0.06), (0, hem + 0.08)]
    parts = [_whole("body", half), _part("fold", [(0, -0.55), (0, hem + 0.06)], 0.025)]
    parts += _both("fold", [(0.17, -0.55), (wide * 0.55, hem + 0.04)], 0.025)
    parts.append(_part("dark", _rectangle(-0.34, -0.72, 0.34, -0.6)))
    if detail:
        parts += _both("trim", [(0.0, -0.64), (0.36, -0.88), (0.4, -0.42)])
        parts += _both("trim", [(0.0, -0.62), (0.07, -0.64), (0.2, -0.2), (0.08, -0.2)])
    return parts


def _jacket(length: float, detail: bool) -> list[Part]:
    hem = 0.12 + 0.82 * length
    parts = [_part("trim", _arc(0, -0.66, 0.36, 0.34))] if detail else []
    parts += [_part("dark", _arc(0, -0.62, 0.22, 0.18))]
    torso = [(0, -0.5), (0.16, -0.66), (0.22, -0.7), (0.5, -0.6), (0.47, 0.0), (0.52, hem), (0, hem + 0.02)]
    parts += [*_sleeves(-0.6, 1.08, 0.44), _whole("body", torso)]
    parts += _both("dark", [(0.0, -0.12), (0.26, -0.4), (0.2, -0.7), (0.12, -0.62)])
    parts += _both("fold", [(0.18, hem - 0.22), (0.38, hem - 0.26)], 0.045)
    return [*parts, _part("metal", [(0, -0.2), (0, hem)], 0.05)]


def _bag(length: float, detail: bool) -> list[Part]:
    rise = 0.22 + 0.68 * length
    parts = [_part("dark", _arc(0, 0.02, 0.36, rise, 180, 360), 0.1)]
    half = [(0, 0.0), (0.56, 0.0), (0.62, 0.06), (0.76, 0.78), (0.7, 0.88), (0, 0.88)]
    parts += [_whole("body", half), _part("dark", _rectangle(-0.57, 0.0, 0.57, 0.1))]
    if detail:
        parts += [
            _part("trim", _rectangle(-0.36, 0.32, 0.36, 0.74)),
            _part("metal", _rectangle(-0.07, 0.28, 0.07, 0.42)),
        ]
    return parts


def _shoe(length: float, detail: bool) -> list[Part]:
    top = 0.02 - 0.92 * length
    upper = [(-0.66, top), (-0.1, top), (-0.06, 0.02), (0.12, 0.2), (0.45, 0.28), (0.74, 0.34), (0.9, 0.46)]
    parts = [_part("body", [*upper, (0.93, 0.62), (-0.7, 0.62), (-0.7, 0.3)])]
    parts.append(_part("dark", _rectangle(-0.67, top - 0.02, -0.09, top + 0.08)))
    for x, y in ((0.02, 0.1), (0.14, 0.18), (0.27, 0.23)):
        parts.append(_part("light", [(x - 0.1, y + 0.12), (x + 0.04, y)], 0.05))
    parts.append(_part("sole", [(-0.72, 0.6), (0.95, 0.6), (0.95, 0.7), (0.88, 0.74), (-0.72, 0.74)]))
    if detail:
        parts.append(_part("trim", [(-0.72, 0.72), (-0.22, 0.72), (-0.32, 1.02), (-0.66, 1.02)]))
    return parts


def _hat(length: float, detail: bool) -> list[Part]:
    brim = 0.6 + 0.38 * length
    crown = np.concatenate([_arc(0, -0.3, 0.44, 0.4, 180, 360), [(0.5, 0.34), (0, 0.44), (-0.5, 0.34)]])
    parts = [_part("body", _arc(0, 0.34, brim, 0.22)), _part("body", crown)]
    parts.append(_part("fold", _arc(0, 0.28, 0.5, 0.14, 0, 180), 0.05))
    if detail:
        band = np.concatenate([_arc(0, 0.02, 0.47, 0.1, 180, 0), _arc(0, 0.27, 0.5, 0.12, 0, 180)])
        parts.append(_part("trim", band))
    return parts


def _mug(length: float, detail: bool) -> list[Part]:
    top = 0.1 - 0.86 * length
    middle, tall = (top + 0.72) / 2 + 0.04, 0.78 - top
    parts = [_part("trim", _arc(0.5, middle, 0.32, 0.2 + tall * 0.16), 0.13)] if detail else []
    sides = np.concatenate([_arc(0, 0.72, 0.46, 0.14, 0, 180), [(-0.52, top), (0.52, top)]])
    parts += [_part("body", sides), _part("light", _arc(0, top, 0.52, 0.15))]
    return [*parts, _part("inside", _arc(0, top + 0.01, 0.43, 0.1))]


def _chair(length: float, detail: bool) -> list[Part]:
    top = -0.2 - 0.74 * length
    parts = _both("wood", [(0.4, 0.3), (0.46, 0.95)], 0.1) + _both("wood", [(0.28, 0.3), (0.3, 0.8)], 0.08)
    parts += _both("wood", [(0.3, 0.2), (0.3, top + 0.1)], 0.09)
    back = [(0, top), (0.34, top), (0.42, top + 0.08), (0.4, 0.02), (0, 0.02)]
    parts += [_whole("body", back), _whole("body", [(0, 0.1), (0.42, 0.1), (0.55, 0.34), (0.5, 0.42), (0, 0.42)])]
    if detail:
        parts += _both("trim", [(0.46, -0.14), (0.66, -0.08), (0.6, 0.34)], 0.13)
    return parts


def _lamp(length: float, detail: bool) -> list[Part]:
    shade = -0.98 + 1.0 * (1 - length)
    parts = [_part("metal", [(0, shade + 0.5), (0, 0.9)], 0.09), _part("metal", _arc(0, 0.92, 0.36, 0.09))]
    if detail:
        parts += [_part("metal", [(0.32, shade + 0.5), (0.32, shade + 0.8)], 0.04)]
        parts.append(_part("trim", _arc(0.32, shade + 0.82, 0.1, 0.12)))
    rim = [(0, shade), (0.3, shade), (0.6, shade + 0.62), (0.3, shade + 0.66), (0, shade + 0.67)]
    top = [(0, shade), (0.3, shade), (0.33, shade + 0.06), (0, shade + 0.06)]
    return [*parts, _whole("body", rim), _whole("dark", top)]


def _sofa(length: float, detail: bool) -> list[Part]:
    wide = 0.5 + 0.46 * length
    parts = _both("wood", [(wide - 0.1, 0.5), (wide - 0.08, 0.72)], 0.1)
    back = [(0, -0.48), (wide - 0.2, -0.48), (wide - 0.12, -0.4), (wide - 0.12, 0.2), (0, 0.2)]
    parts += [_whole("body", back), _whole("body", [(0, 0.12), (wide - 0.1, 0.12), (wide - 0.1, 0.52), (0, 0.52)])]
    parts += _both("body", [(wide - 0.2, -0.1), (wide - 0.06, -0.16), (wide, -0.06), (wide, 0.56), (wide - 0.2, 0.56)])
    parts += [
        _part("fold", [(-wide + 0.2, 0.3), (wide - 0.2, 0.3)], 0.04),
        _part("fold", [(0, -0.45), (0, 0.5)], 0.035),
    ]
    if detail:
        x = wide - 0.36
        parts += _both("trim", [(x, -0.32), (x + 0.17, -0.12), (x, 0.1), (x - 0.19, -0.1)])
    return parts


SHAPES: dict[str, Callable[[float, bool], list[Part]]] = {
    "shirt": _shirt,
    "dress": _dress,
    "trousers": _trousers,
    "skirt": _skirt,
    "jacket": _jacket,
    "bag": _bag,
    "shoe": _shoe,
    "hat": _hat,
    "mug": _mug,
    "chair": _chair,
    "lamp": _lamp,
    "sofa": _sofa,
}


@functools.cache
def shape(category: str, length: float, detail: bool) -> tuple[Part, ...]:
    """Return the parts of one product, back to front, its bounding rectangle centred on the origin."""
    parts = SHAPES[category](length, detail)
    spots = np.concatenate([part.points for part in parts])
    middle = (spots.min(axis=0) + spots.max(axis=0)) / 2
    return tuple(Part(part.tone, part.points - middle, part.width) for part in parts)
