"""A scene: shapes in meters, projected to labeled polygons.

World coordinates in meters: x to the right of the center line, y above the ground, z ahead of the camera.
Image coordinates in image heights: (0, 0) is the center of the top edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi, sin
from random import Random
from typing import NamedTuple

from cpsl.data.labels import CITYSCAPES_19

Point = tuple[float, float]
Corner = tuple[float, float, float]
Outline = Sequence[Point]
Color = tuple[int, ...]
Range = tuple[float, float]
Label = int | None

LABEL = {name: index for index, name in enumerate(CITYSCAPES_19.names)}

NEAR = 1.5
"""Distance in meters at which shapes are clipped; the ground there is below the image."""
WINDOWS_UNTIL = 50.0
"""Distance in meters beyond which windows are too small to draw."""

# Rounded, so that differences of libm cannot change a pixel.
_CIRCLE = [(round(cos(pi * i / 6), 6), round(sin(pi * i / 6), 6)) for i in range(12)]


class Polygon(NamedTuple):
    """A polygon of the image."""

    points: list[Point]  # corners in image coordinates
    color: Color  # RGB, or RGBA if it is transparent, 0...255
    label: Label  # class index or 255; None keeps the label behind


@dataclass(frozen=True)
class Town:
    """A kind of street; lengths in meters, numbers of objects per 100 m of one side."""

    camera_height: Range
    focal: Range  # focal length in image heights
    horizon: Range  # row of the horizon in image heights
    road: Range  # half the width of the road
    sidewalk: Range  # width of the sidewalk
    house: Range  # height of a building
    plots: tuple[float, float, float, float]  # weights of building, park, fence and wall
    verge: float  # probability of a strip of grass along the sidewalk
    haze: Range  # distance at which haze is half of a color
    trees: Range
    parked: Range
    traffic: Range
    people: Range
    two_wheelers: Range  # with a rider or parked
    posts: Range  # lamp posts, signs and traffic lights
    bonnet: bool  # whether the camera's own car is visible
    colors: dict[str, Sequence[Color]]  # of each material


class Scene:
    """A street under construction: camera, source of randomness and polygons so far."""

    def __init__(self, town: Town, random: Random) -> None:
        self.town = town
        self.random = random
        self.camera_height = self.between(town.camera_height)
        self.camera_x = 0.0  # until the road is known
        self.focal = self.between(town.focal)
        self.horizon = self.between(town.horizon)
        self.haze = self.between(town.haze)
        self.haze_color = self.color("haze")
        self.sun = random.choice((-1, 1))
        self.polygons: list[Polygon] = []

    def between(self, limits: Range) -> float:
        """Samples a number from a range."""
        return limits[0] + (limits[1] - limits[0]) * self.random.random()

    def chance(self, probability: float) -> bool:
        """Returns True with a probability."""
        return self.random.random() < probability

    def color(self, material: str) -> Color:
        """Samples one of a material's colors and varies its brightness and tint."""
        brightness = self.between((0.8, 1.2))
        base = self.random.choice(self.town.colors[material])
        return tuple(max(0, round(c * brightness + self.between((-8, 8)))) for c in base)

    def draw(self, label: Label, color: Color, corners: Sequence[Corner], shade: float = 1.0) -> None:
        """Adds a polygon of the world."""
        distances = [z for _, _, z in corners]
        if max(distances) <= NEAR:
            return
        points, left, eye = [], self.camera_x, self.camera_height
        for x, y, z in corners:
            scale = self.focal / max(z, NEAR)
            points.append(((x - left) * scale, self.horizon + (eye - y) * scale))
        if any(row > 0 for _, row in points):
            self._add(label, color, points, shade, min(distances))

    def upright(self, label: Label, color: Color, place: Point, outline: Outline, shade: float = 1.0) -> None:
        """Adds a flat shape that faces the camera: `outline` in meters around its foot at (x, z)."""
        x, z = place
        if z <= NEAR:
            return
        scale = self.focal / z
        left, foot = (x - self.camera_x) * scale, self.horizon + self.camera_height * scale
        points = [(left + dx * scale, foot - y * scale) for dx, y in outline]
        self._add(label, color, points, shade, z)

    def _add(self, label: Label, color: Color, points: list[Point], shade: float, distance: float) -> None:
        """Adds a polygon of the image in its shaded color, seen through haze."""
        fog = max(distance, 0.0) / (max(distance, 0.0) + self.haze)
        clear, (red, green, blue) = shade * (1 - fog), self.haze_color
        haze = (red * fog, green * fog, blue * fog)
        mixed = (min(255, int(c * clear + h)) for c, h in zip(color, haze, strict=False))
        self.polygons.append(Polygon(points, (*mixed, *color[3:]), label))

    def ground(self, label: Label, color: Color, x: Range, z: Range) -> None:
        """Adds a rectangle of the ground, in pieces, since haze increases along it."""
        ends = [z[0], *(end for end in (5, 10, 20, 35, 60, 100) if z[0] < end < z[1]), z[1]]
        for near, far in pairwise(ends):
            self.draw(label, color, [(x[0], 0, near), (x[1], 0, near), (x[1], 0, far), (x[0], 0, far)])

    def box(self, label: Label, color: Color, x: Range, y: Range, z: Range, taper: float = 0.0) -> None:
        """Adds the visible faces of a block, whose top is smaller by `taper` meters on each side."""
        (x1, x2), (y1, y2), (z1, z2) = x, y, z
        tx1, tx2, tz1, tz2 = x1 + taper, x2 - taper, z1 + taper, z2 - taper
        if y2 < self.camera_height:
            self.draw(label, color, [(tx1, y2, tz1), (tx2, y2, tz1), (tx2, y2, tz2), (tx1, y2, tz2)], 1.15)
        for side, face, top_face in ((-1, x1, tx1), (1, x2, tx2)):
            if (self.camera_x - face) * side > 0:
                quad = [(face, y1, z1), (top_face, y2, tz1), (top_face, y2, tz2), (face, y1, z2)]
                self.draw(label, color, quad, 1.05 if side == self.sun else 0.72)
        if z1 > NEAR:
            self.draw(label, color, [(x1, y1, z1), (x2, y1, z1), (tx2, y2, tz1), (tx1, y2, tz1)])

    def facade(self, label: Label, color: Color, x: float, y: Range, z: Range, shade: float = 1.0) -> None:
        """Adds an upright rectangle along the street."""
        self.draw(label, color, [(x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1])], shade)

    def shadow(self, x: Range, z: Range) -> None:
        """Darkens a rectangle of the ground."""
        self.ground(None, self.town.colors["shadow"][0], x, z)


def disc(x: float, y: float, radius: float, squeeze: float = 1.0) -> list[Point]:
    """Returns the outline of a circle, or of an ellipse that is `squeeze` times as wide."""
    return [(x + radius * squeeze * c, y + radius * s) for c, s in _CIRCLE]


def bar(start: Point, end: Point, width: float) -> list[Point]:
    """Returns the outline of a line; its width is measured along the axis that it crosses."""
    (x1, y1), (x2, y2) = start, end
    dx, dy = (width / 2, 0.0) if abs(y2 - y1) > abs(x2 - x1) else (0.0, width / 2)
    return [(x1 - dx, y1 - dy), (x1 + dx, y1 + dy), (x2 + dx, y2 + dy), (x2 - dx, y2 - dy)]
