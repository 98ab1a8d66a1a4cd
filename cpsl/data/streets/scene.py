"""What stands in a drawn street: things in metres, projected to labelled polygons, far ones first.

World coordinates: x to the right of the road's middle, y above the ground, z ahead of the camera, in metres.
Picture coordinates: in image heights, (0, 0) is the middle of the top edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi, sin
from random import Random
from typing import NamedTuple

from cpsl.data.labels import CITYSCAPES_19

Point = tuple[float, float]
Color = tuple[int, ...]
Range = tuple[float, float]

LABEL = {name: index for index, name in enumerate(CITYSCAPES_19.names)}

NEAR = 1.5
"""Distance in metres at which things are cut off; the ground there is below the picture."""
WINDOWS_UNTIL = 50.0
"""Distance in metres from which on windows are too small to be drawn."""

# Rounded, so that no machine's libm decides on a pixel.
_CIRCLE = [(round(cos(pi * i / 6), 6), round(sin(pi * i / 6), 6)) for i in range(12)]


class Polygon(NamedTuple):
    """A flat piece of the picture.

    Attributes:
        points: Corners in picture coordinates.
        color: RGB or, where what is behind shines through, RGBA, 0...255.
        label: Class index or 255; None leaves the label of what is behind.
    """

    points: list[Point]
    color: Color
    label: int | None


@dataclass(frozen=True)
class Town:
    """What a kind of street has; ranges in metres, numbers of things per 100 m of one side of it.

    Attributes:
        camera_height: Above the ground.
        focal: Focal length in image heights.
        horizon: Row of the horizon in image heights.
        road: Half the width of the road.
        sidewalk: Width of the sidewalk.
        house: Height of a building.
        plots: Weights of what lines the street: building, park, fence, wall.
        verge: Probability of a strip of grass along the sidewalk.
        haze: Distance at which half of a colour is the haze's.
        trees: Street trees.
        parked: Parked cars.
        traffic: Moving vehicles.
        people: Pedestrians.
        two_wheelers: Bicycles and motorcycles, with a rider or parked.
        posts: Lamp posts, signs and traffic lights.
        bonnet: Whether the camera's own car is seen.
        colors: Colours of each material.
    """

    camera_height: Range
    focal: Range
    horizon: Range
    road: Range
    sidewalk: Range
    house: Range
    plots: tuple[float, float, float, float]
    verge: float
    haze: Range
    trees: Range
    parked: Range
    traffic: Range
    people: Range
    two_wheelers: Range
    posts: Range
    bonnet: bool
    colors: dict[str, Sequence[Color]]


class Scene:
    """A street that is being built: a camera, a source of randomness and the polygons so far."""

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
        """Draws a number from a range."""
        return limits[0] + (limits[1] - limits[0]) * self.random.random()

    def chance(self, probability: float) -> bool:
        """Draws whether something is so."""
        return self.random.random() < probability

    def color(self, material: str) -> Color:
        """Draws one of a material's colours and varies its brightness and tint a little."""
        brightness = self.between((0.8, 1.2))
        base = self.random.choice(self.town.colors[material])
        return tuple(max(0, round(c * brightness + self.between((-8, 8)))) for c in base)

    def draw(
        self,
        label: int | None,
        color: Color,
        corners: Sequence[tuple[float, float, float]],
        shade: float = 1.0,
    ) -> None:
        """Adds a polygon of the world with corners (x, y, z)."""
        distances = [z for _, _, z in corners]
        if max(distances) <= NEAR:
            return
        points, left, eye = [], self.camera_x, self.camera_height
        for x, y, z in corners:
            scale = self.focal / max(z, NEAR)
            points.append(((x - left) * scale, self.horizon + (eye - y) * scale))
        if any(row > 0 for _, row in points):
            self._add(label, color, points, shade, min(distances))

    def upright(
        self,
        label: int | None,
        color: Color,
        place: Point,
        outline: Sequence[Point],
        shade: float = 1.0,
    ) -> None:
        """Adds a flat thing that faces the camera: `outline` in metres around its foot at (x, z)."""
        x, z = place
        if z <= NEAR:
            return
        scale = self.focal / z
        left, foot = (x - self.camera_x) * scale, self.horizon + self.camera_height * scale
        points = [(left + dx * scale, foot - y * scale) for dx, y in outline]
        self._add(label, color, points, shade, z)

    def _add(
        self, label: int | None, color: Color, points: list[Point], shade: float, distance: float
    ) -> None:
        """Adds a polygon of the picture, its colour shaded and then as haze leaves it."""
        fog = max(distance, 0.0) / (max(distance, 0.0) + self.haze)
        clear, (red, green, blue) = shade * (1 - fog), self.haze_color
        seen = (
            min(255, int(color[0] * clear + red * fog)),
            min(255, int(color[1] * clear + green * fog)),
            min(255, int(color[2] * clear + blue * fog)),
            *color[3:],
        )
        self.polygons.append(Polygon(points, seen, label))

    def ground(self, label: int | None, color: Color, x: Range, z: Range) -> None:
        """Adds a level rectangle, in pieces where it is long, as haze changes along it."""
        ends = [z[0], *(end for end in (5, 10, 20, 35, 60, 100) if z[0] < end < z[1]), z[1]]
        for near, far in pairwise(ends):
            corners = [(x[0], 0, near), (x[1], 0, near), (x[1], 0, far), (x[0], 0, far)]
            self.draw(label, color, corners)

    def box(
        self,
        label: int | None,
        color: Color,
        x: Range,
        y: Range,
        z: Range,
        taper: float = 0.0,
    ) -> None:
        """Adds the faces of a block that the camera sees; its top is `taper` metres smaller all round."""
        (x1, x2), (y1, y2), (z1, z2) = x, y, z
        tx1, tx2, tz1, tz2 = x1 + taper, x2 - taper, z1 + taper, z2 - taper
        if y2 < self.camera_height:
            top = [(tx1, y2, tz1), (tx2, y2, tz1), (tx2, y2, tz2), (tx1, y2, tz2)]
            self.draw(label, color, top, 1.15)
        for side, face, top_face in ((-1, x1, tx1), (1, x2, tx2)):
            if (self.camera_x - face) * side > 0:
                quad = [(face, y1, z1), (top_face, y2, tz1), (top_face, y2, tz2), (face, y1, z2)]
                self.draw(label, color, quad, 1.05 if side == self.sun else 0.72)
        if z1 > NEAR:
            self.draw(label, color, [(x1, y1, z1), (x2, y1, z1), (tx2, y2, tz1), (tx1, y2, tz1)])

    def shadow(self, x: Range, z: Range) -> None:
        """Darkens a rectangle of the ground."""
        self.ground(None, self.town.colors["shadow"][0], x, z)


def disc(x: float, y: float, radius: float, squeeze: float = 1.0) -> list[Point]:
    """Returns a circle, or an ellipse that is `squeeze` times as wide."""
    return [(x + radius * squeeze * c, y + radius * s) for c, s in _CIRCLE]


def bar(start: Point, end: Point, width: float) -> list[Point]:
    """Returns a line with a width, measured across the axis that it crosses."""
    (x1, y1), (x2, y2) = start, end
    dx, dy = (width / 2, 0.0) if abs(y2 - y1) > abs(x2 - x1) else (0.0, width / 2)
    return [(x1 - dx, y1 - dy), (x1 + dx, y1 + dy), (x2 + dx, y2 + dy), (x2 - dx, y2 - dy)]
