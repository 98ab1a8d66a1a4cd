"""Layout of a street: sky, ground, buildings and gardens along it, and objects in it."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from cpsl.data.labels import IGNORE_INDEX
from cpsl.data.streets import things
from cpsl.data.streets.scene import LABEL, NEAR, WINDOWS_UNTIL, Point, Polygon, Range, Scene, Town, disc

Thing = Callable[[Scene, Point, int], None]
"""Draws an object at (x, z) on the left (-1) or the right (1) of the street."""


class Plan(NamedTuple):
    """Positions of the street's parts, in meters from the road's center line."""

    road: float  # half the width of the road
    sidewalk: float  # outer edge of the sidewalk
    plots: float  # inner edge of buildings and gardens
    crossing: Range  # nearest and farthest z of a crossing street; beyond the end if there is none
    end: float  # z at which the street ends


def draw_scene(town: Town, random: Random) -> list[Polygon]:
    """Draws a street: its polygons from back to front."""
    scene = Scene(town, random)
    road = scene.between(town.road)
    sidewalk = road + scene.between(town.sidewalk)
    plots = sidewalk + (scene.between((1.5, 6)) if scene.chance(town.verge) else 0)
    end = scene.between((90, 200))
    start = scene.between((14, 60)) if scene.chance(0.45) else end + 1
    plan = Plan(road, sidewalk, plots, (start, start + scene.between((7, 14))), end)
    scene.camera_x = road * scene.between((0.1, 0.5))

    sky(scene)
    ground(scene, plan)
    view(scene, plan)
    lined = [(z, side, length) for side in (-1, 1) for z, length in plots_along(scene, plan)]
    for z, side, length in sorted(lined, reverse=True):
        plot(scene, plan, side, (z, z + length))
    for thing, place, side in sorted(objects(scene, plan), key=lambda entry: -entry[1][1]):
        thing(scene, place, side)
    if town.bonnet:
        bonnet(scene)
    return scene.polygons


def objects(scene: Scene, plan: Plan) -> list[tuple[Thing, Point, int]]:
    """Samples the objects in the street, each with its position and side."""
    town, found = scene.town, list[tuple[Thing, Point, int]]()

    def spread(count: Range, x: Range, z: Range, **weights: float) -> None:
        """Adds objects on both sides, x meters from the center line; each kind has a weight."""
        for side in (-1, 1):
            expected = scene.between(count) * (z[1] - z[0]) / 100
            for _ in range(int(expected + scene.random.random())):
                place = (side * scene.between(x), scene.between(z))
                kind = scene.random.choices(list(weights), list(weights.values()))[0]
                found.append((getattr(things, kind), place, side))

    road, walk = plan.road, plan.sidewalk
    spread(town.trees, (road + 0.7, walk + 0.5), (9, 80), tree=1)
    spread(town.parked, (road - 1.1, road - 1.0), (8, 80), car=14, truck=0.5)
    spread(town.traffic, (1.4, max(1.5, road - 3.5)), (14, 80), car=13, truck=1.8, bus=2.4)
    spread((0, 0.3), (road * 0.3, road * 0.6), (10, 45), train=1)
    spread((0, 2.5), (0, road), (12, 45), crossing_car=1, person=2)
    spread(town.people, (road + 0.4, walk), (8, 45), person=1)
    spread(town.two_wheelers, (road - 1.0, road + 0.6), (7, 35), bicycle=3, motorcycle=1)
    spread(town.two_wheelers, (1.0, road - 0.8), (9, 40), cyclist=2, motorcyclist=1)
    spread(town.posts, (road + 0.3, road + 0.6), (7, 36), lamp=3, sign=4, traffic_light=3)
    spread((0, 2), (road + 0.6, walk), (8, 35), container=1)
    return found


def sky(scene: Scene) -> None:
    """Draws a sky that brightens towards the horizon, with clouds."""
    top, bands = scene.color("sky"), 24
    for band in range(bands):
        share = band / bands
        color = tuple(
            min(255, round(a * (1 - share) + b * share)) for a, b in zip(top, scene.haze_color, strict=True)
        )
        y1, y2 = scene.horizon * band / bands, scene.horizon * (band + 1) / bands + 0.02
        scene.polygons.append(Polygon([(-99, y1), (99, y1), (99, y2), (-99, y2)], color, LABEL["sky"]))
    for _ in range(scene.random.randrange(7)):
        x, y = scene.between((-1.2, 1.2)), scene.between((0, scene.horizon * 0.8))
        for _ in range(4):
            x, radius = x + scene.between((0, 0.15)), scene.between((0.02, 0.07))
            points = disc(x, y + scene.between((-0.02, 0.02)), radius, 2.0)
            scene.polygons.append(Polygon(points, (250, 250, 250, 60), None))


def ground(scene: Scene, plan: Plan) -> None:
    """Draws grass, sidewalks, road and crossing street, markings, and shadows of buildings."""
    far: Range = (0, plan.end + 60)
    scene.ground(LABEL["terrain"], scene.color("terrain"), (-400, 400), far)
    pavement, width = scene.color("sidewalk"), plan.road
    kerb, groove = tuple(min(255, c + 25) for c in pavement), (*(max(0, c - 40) for c in pavement), 110)
    for side in (-1, 1):
        across = (side * width, side * plan.sidewalk)
        scene.ground(LABEL["sidewalk"], pavement, across, far)
        scene.ground(LABEL["sidewalk"], kerb, (side * width, side * (width + 0.18)), (0, 60))
        for joint in range(3, 40, 2):
            scene.ground(None, groove, across, (joint, joint + 0.12))
    asphalt = scene.color("road")
    scene.ground(LABEL["road"], asphalt, (-width, width), far)
    scene.ground(LABEL["road"], asphalt, (-400, 400), plan.crossing)
    for _ in range(scene.random.randrange(8)):  # repaired and worn places
        x, z = scene.between((-width, width - 2)), scene.between((3, 30))
        tone = scene.random.choice((20, 160))
        patch = (x, x + scene.between((0.5, 2))), (z, z + scene.between((1, 9)))
        scene.ground(None, (tone, tone, tone, 45), *patch)
    paint = scene.color("marking")
    lines = scene.random.choice(((0.0,), (-width / 3, width / 3), (-0.2, 0.2), ()))
    dash, gap = scene.random.choice(((3, 4), (60, 1), (1.5, 1.5)))
    for line in lines:
        z = scene.between((1, 5))
        while z < min(plan.crossing[0], 70):
            scene.ground(None, paint, (line - 0.07, line + 0.07), (z, z + dash))
            z += dash + gap
    if scene.chance(0.5):
        for stripe in range(round(2 * width)):
            x, start = stripe - width + 0.2, plan.crossing[0] - 4
            scene.ground(None, paint, (x, x + 0.5), (start, start + 3))
    if scene.chance(0.6):
        reach = -scene.sun * width * scene.between((-0.5, 0.8))
        scene.shadow((reach, -scene.sun * -400), (0, plan.end))


def view(scene: Scene, plan: Plan) -> None:
    """Draws the buildings and trees at the end of the street."""
    x = -60.0
    while x < 60:
        width = scene.between((12, 40))
        if scene.chance(0.7):
            color, height = scene.color("building"), scene.between(scene.town.house)
            scene.box(LABEL["building"], color, (x, x + width), (0, height), (plan.end, plan.end + 20))
        else:
            for _ in range(3):
                place = (x + scene.between((0, width)), plan.end)
                things.foliage(scene, place, 4, scene.between((3, 8)))
        x += width


def plots_along(scene: Scene, plan: Plan) -> list[tuple[float, float]]:
    """Divides one side of the street into plots, (z, length), around the crossing street."""
    z, plots = 0.0, []
    while z < plan.end:
        length = scene.between((9, 26))
        if z < plan.crossing[1] + 2 and z + length > plan.crossing[0] - 2:
            length = plan.crossing[0] - 2 - z
        if length > 3:
            plots.append((z, length))
        z += max(length, 3)
        if plan.crossing[0] - 5 < z < plan.crossing[1] + 2:
            z = plan.crossing[1] + 2
    return plots


def plot(scene: Scene, plan: Plan, side: int, z: Range) -> None:
    """Draws a building, a park, or a garden behind a fence or a wall."""
    kind = scene.random.choices((building, park, fence, wall), scene.town.plots)[0]
    if kind is not building and scene.chance(0.5):  # a house farther back, behind the garden
        building(scene, side, plan.plots + scene.between((9, 15)), z)
    kind(scene, side, plan.plots, z)


def span(side: int, x: float, width: float) -> Range:
    """Returns the x range of a shape of this width that begins x meters from the center line."""
    return (x, x + width) if side > 0 else (-x - width, -x)


def building(scene: Scene, side: int, x: float, z: Range) -> None:
    """Draws a building with rows of windows on its visible faces."""
    label, color = LABEL["building"], scene.color("building")
    height, storey = scene.between(scene.town.house), scene.between((2.8, 3.8))
    scene.box(label, color, span(side, x, 14), (0, height), z)
    if scene.chance(0.5):  # a ground floor of another color: shops
        scene.box(label, scene.color("building"), span(side, x, 14), (0, storey), z)
    glass, bay = scene.color("window"), scene.between((2.2, 4.5))
    share, tall = scene.between((0.35, 0.7)), scene.between((0.4, 0.7))
    for floor in range(int(height / storey)):
        y1 = floor * storey + 0.8
        y2 = y1 + storey * tall
        for row in range(int((z[1] - z[0]) / bay)):
            z1 = z[0] + (row + (1 - share) / 2) * bay
            if NEAR < z1 < WINDOWS_UNTIL:
                ends, shade = (z1, z1 + bay * share), scene.between((0.7, 1.3))
                scene.facade(None, glass, side * x, (y1, y2), ends, shade)
        for row in range(int(14 / bay)):
            if NEAR < z[0] < WINDOWS_UNTIL:
                x1 = side * (x + (row + 0.5) * bay)
                outline = [(0, y1), (side * bay * share, y1), (side * bay * share, y2), (0, y2)]
                scene.upright(None, glass, (x1, z[0]), outline)


def park(scene: Scene, side: int, x: float, z: Range) -> None:
    """Draws grass with bushes and trees."""
    scene.ground(LABEL["terrain"], scene.color("terrain"), span(side, x, 30), z)
    depths = [scene.between(z) for _ in range(int((z[1] - z[0]) / 2.5))]
    for depth in sorted(depths, reverse=True):
        place = side * (x + scene.between((2, 10))), depth
        if scene.chance(0.6):
            things.tree(scene, place, side)
        else:
            things.foliage(scene, place, 0.8, scene.between((0.7, 1.6)))


def fence(scene: Scene, side: int, x: float, z: Range) -> None:
    """Draws a transparent fence of thin or broad pales."""
    park(scene, side, x + 0.5, z)
    color, height, face = scene.color("fence"), scene.between((1.1, 2.2)), side * x
    pale = scene.random.choice((0.08, 0.35))
    scene.facade(LABEL["fence"], (*color, 150), face, (0, height), z)
    for y in (0.2, height - 0.15):
        scene.facade(None, color, face, (y, y + 0.15), z, 0.8)
    for step in range(int((z[1] - z[0]) / (3 * pale + 0.2))):
        z1 = z[0] + step * (3 * pale + 0.2)
        if NEAR < z1 < 30:
            scene.facade(None, color, face, (0, height), (z1, z1 + pale), 0.9)


def wall(scene: Scene, side: int, x: float, z: Range) -> None:
    """Draws a wall without windows, lower than a building, with a coping."""
    park(scene, side, x + 0.5, z)
    color, height = scene.color("wall"), scene.between((1.6, 3.6))
    scene.box(LABEL["wall"], color, span(side, x, 0.4), (0, height), z)
    coping = span(side, x - 0.05, 0.5)
    scene.box(LABEL["wall"], scene.color("wall"), coping, (height - 0.1, height + 0.2), z)


def bonnet(scene: Scene) -> None:
    """Draws the bonnet of the camera's own car, which Cityscapes does not evaluate."""
    color, top = scene.color("car"), scene.between((0.9, 0.95))
    curve = [(dx * 0.16, top + 0.0018 * dx * dx) for dx in range(-12, 13)]
    scene.polygons.append(Polygon([(-2, 1.1), *curve, (2, 1.1)], color, IGNORE_INDEX))
