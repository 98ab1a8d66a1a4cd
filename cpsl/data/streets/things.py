"""Objects in a street, one short function each: outlines and blocks in meters.

Each is drawn at a place (x, z) on the left (side -1) or the right (side 1) of the street.
"""

from cpsl.data.labels import IGNORE_INDEX
from cpsl.data.streets.scene import LABEL, NEAR, Point, Scene, bar, disc


def foliage(scene: Scene, place: Point, height: float, radius: float) -> None:
    """Draws foliage around a height, darker below."""
    color = scene.color("vegetation")
    for _ in range(6):
        dx, dy = (scene.between((-radius, radius)) * 0.7 for _ in range(2))
        shade = 1 + 0.25 * dy / radius + scene.between((-0.15, 0.15))
        leaves = disc(dx, max(height + dy, 0.3), radius * scene.between((0.4, 0.75)))
        scene.upright(LABEL["vegetation"], color, place, leaves, shade)


def tree(scene: Scene, place: Point, side: int) -> None:
    """Draws a trunk and a crown; both are vegetation."""
    height = scene.between((4, 8))
    scene.shadow((place[0] - 1.5, place[0] + 1.5), (place[1] - 0.8, place[1] + 0.8))
    trunk = bar((0, 0), (0, height), scene.between((0.25, 0.5)))
    scene.upright(LABEL["vegetation"], scene.color("trunk"), place, trunk)
    foliage(scene, place, height, scene.between((1.4, 3.0)))


def _vehicle(scene: Scene, place: Point, name: str, size: tuple[float, float, float], lower: float) -> None:
    """Draws wheels, a body `lower` meters high, and above it a glass cabin with a roof."""
    width, height, length = size
    (x, z), label, color, black = place, LABEL[name], scene.color(name), (22, 22, 25)
    sides = (x - width / 2, x + width / 2)
    scene.shadow((sides[0] - 0.3, sides[1] + 0.3), (z - 0.3, z + length))
    for wheel in (sides[0], sides[1] - 0.25):
        scene.box(label, black, (wheel, wheel + 0.25), (0, 0.5), (z + 0.1, z + 0.7))
    scene.box(label, color, sides, (0.28, lower), (z, z + length))
    face = sides[0] if x > scene.camera_x else sides[1]
    for middle in (0.18 * length, 0.8 * length):
        scene.draw(label, black, [(face, y, along) for along, y in disc(z + middle, 0.33, 0.36)])
    if name in ("car", "train", "bus"):
        ends = (z + 0.1 * length, z + 0.75 * length) if name == "car" else (z, z + length)
        taper = 0.18 if name == "car" else 0.04
        inside = (sides[0] + 0.05, sides[1] - 0.05)
        scene.box(label, scene.color("window"), inside, (lower, height), ends, taper)
        roof = (inside[0] + taper, inside[1] - taper), (height, height + 0.08)
        scene.box(label, color, *roof, (ends[0] + taper, ends[1] - taper))
        for middle in (ends[0] + (ends[1] - ends[0]) * part / 6 for part in range(1, 6)):
            scene.facade(label, color, face, (lower, height), (middle, middle + 0.15), 0.8)
    lights = (200, 30, 30) if x > scene.camera_x - 2 else (250, 245, 220)
    if z > NEAR:
        for middle in (-0.42 * width, 0.42 * width):
            scene.upright(None, lights, place, bar((middle - 0.12, 0.75), (middle + 0.12, 0.75), 0.16))
        scene.upright(None, (225, 225, 215), place, bar((-0.26, 0.5), (0.26, 0.5), 0.12))


def car(scene: Scene, place: Point, side: int) -> None:
    """Draws a car along the street."""
    height = scene.between((1.4, 1.85))
    size = (scene.between((1.65, 1.9)), height, scene.between((3.8, 4.8)))
    _vehicle(scene, place, "car", size, 0.62 * height)


def crossing_car(scene: Scene, place: Point, side: int) -> None:
    """Draws a car from its side."""
    (x, z), label, color = place, LABEL["car"], scene.color("car")
    scene.shadow((x - 2.4, x + 2.4), (z - 0.2, z + 1.8))
    body = [(-2.2, 0.3), (2.2, 0.3), (2.15, 0.85), (1.2, 0.95), (-2.1, 0.95)]
    scene.upright(label, color, place, body)
    scene.upright(label, color, place, [(-1.9, 0.9), (1.3, 0.9), (0.5, 1.5), (-1.3, 1.5)], 1.1)
    glass = scene.color("window")
    scene.upright(None, glass, place, [(-1.5, 0.95), (-0.5, 0.95), (-0.5, 1.4), (-1.1, 1.4)])
    scene.upright(None, glass, place, [(-0.35, 0.95), (0.9, 0.95), (0.35, 1.4), (-0.35, 1.4)])
    for wheel in (-1.35, 1.35):
        scene.upright(label, (22, 22, 25), place, disc(wheel, 0.34, 0.34))
        scene.upright(None, (120, 120, 125), place, disc(wheel, 0.34, 0.17))


def truck(scene: Scene, place: Point, side: int) -> None:
    """Draws a truck, on the right from its rear, on the left from its front."""
    (x, z), height = place, scene.between((2.7, 3.5))
    if side > 0:
        _vehicle(scene, (x, z + 4.5), "truck", (2.1, 2.4, 2.0), 2.4)
        _vehicle(scene, place, "truck", (2.4, height, 4.5), height)
    else:
        _vehicle(scene, (x, z + 2.0), "truck", (2.4, height, 4.5), height)
        _vehicle(scene, place, "truck", (2.1, 2.4, 2.0), 2.4)
        windscreen = [(-0.9, 1.4), (0.9, 1.4), (0.85, 2.15), (-0.85, 2.15)]
        scene.upright(None, scene.color("window"), place, windscreen)


def bus(scene: Scene, place: Point, side: int) -> None:
    """Draws a long block with a band of windows."""
    _vehicle(scene, place, "bus", (2.5, 3.0, scene.between((9, 12))), 1.3)


def train(scene: Scene, place: Point, side: int) -> None:
    """Draws a tram on rails in the road."""
    x, z = place
    for rail in (-0.75, 0.75):
        scene.ground(None, (90, 85, 80), (x + rail - 0.05, x + rail + 0.05), (0, z))
    _vehicle(scene, place, "train", (2.4, 3.3, scene.between((18, 30))), 1.2)
    scene.upright(LABEL["train"], scene.color("train"), place, bar((-0.9, 3.1), (0.9, 3.1), 0.5))
    scene.upright(LABEL["train"], (40, 40, 40), place, bar((0, 3.4), (0.6, 4.6), 0.12))


def _body(scene: Scene, label: int, place: Point, hip: float, lean: float) -> None:
    """Draws trunk, arms and head above the hip; `lean` shifts the shoulders, in meters."""
    coat, skin = scene.color("clothes"), scene.random.choice(((205, 160, 130), (120, 80, 55)))
    shoulder = hip + 0.58
    scene.upright(label, coat, place, bar((0, hip - 0.05), (lean, shoulder), 0.46))
    for arm in (-0.25, 0.25):
        hand = (arm * 1.4 + lean * 1.8, hip + 0.05)
        scene.upright(label, coat, place, bar((arm + lean, shoulder), hand, 0.13), 0.85)
    scene.upright(label, skin, place, disc(lean, shoulder + 0.17, 0.14))
    if scene.chance(0.7):
        hair = [(x, y) for x, y in disc(lean, shoulder + 0.2, 0.14) if y > shoulder + 0.19]
        scene.upright(label, scene.color("clothes"), place, hair)


def person(scene: Scene, place: Point, side: int) -> None:
    """Draws a pedestrian."""
    label, hip, step = LABEL["person"], scene.between((0.75, 0.95)), scene.between((0.08, 0.28))
    scene.shadow((place[0] - 0.4, place[0] + 0.4), (place[1] - 0.2, place[1] + 0.3))
    trousers = scene.color("clothes")
    for leg in (-step, step):
        scene.upright(label, trousers, place, bar((leg / 3, hip), (leg, 0), 0.2))
    _body(scene, label, place, hip, scene.between((-0.06, 0.06)))


def bicycle(scene: Scene, place: Point, side: int) -> None:
    """Draws a bicycle from its side, with transparent wheels."""
    label, color = LABEL["bicycle"], scene.color("two-wheeler")
    for wheel in (-0.52, 0.52):
        scene.upright(label, (25, 25, 25, 190), place, disc(wheel, 0.36, 0.37))
        scene.upright(None, (130, 130, 130, 150), place, disc(wheel, 0.36, 0.28))
    starts = (-0.52, 0.36), (-0.15, 0.8), (-0.1, 0.4), (0.35, 1.02)
    ends = (-0.15, 0.85), (0.4, 0.8), (0.4, 0.8), (0.52, 0.36)
    for start, end in zip(starts, ends, strict=True):
        scene.upright(label, color, place, bar(start, end, 0.11))
    scene.upright(label, (30, 30, 30), place, bar((-0.3, 0.92), (0, 0.92), 0.1))


def motorcycle(scene: Scene, place: Point, side: int) -> None:
    """Draws a motorcycle from its side: wheels, engine, tank and seat."""
    label, color = LABEL["motorcycle"], scene.color("two-wheeler")
    for wheel in (-0.68, 0.68):
        scene.upright(label, (20, 20, 20), place, disc(wheel, 0.32, 0.33))
        scene.upright(None, (110, 110, 115), place, disc(wheel, 0.32, 0.15))
    scene.upright(label, (60, 60, 65), place, [(-0.5, 0.3), (0.4, 0.3), (0.5, 0.7), (-0.5, 0.7)])
    body = [(-0.9, 0.8), (-0.5, 0.6), (0.5, 0.65), (0.55, 1.05), (0.1, 1.0), (-0.2, 0.8)]
    scene.upright(label, color, place, body)
    scene.upright(label, (40, 40, 40), place, bar((0.5, 1.2), (0.68, 0.4), 0.12))


def _rider(scene: Scene, place: Point, lean: float) -> None:
    """Draws a rider on a two-wheeler."""
    scene.upright(LABEL["rider"], scene.color("clothes"), place, bar((-0.1, 1.0), (0.1, 0.4), 0.22))
    _body(scene, LABEL["rider"], place, 1.0, lean)


def cyclist(scene: Scene, place: Point, side: int) -> None:
    """Draws a bicycle and its rider."""
    scene.shadow((place[0] - 0.8, place[0] + 0.8), (place[1] - 0.2, place[1] + 0.2))
    bicycle(scene, place, side)
    _rider(scene, place, 0.15)


def motorcyclist(scene: Scene, place: Point, side: int) -> None:
    """Draws a motorcycle and its rider."""
    scene.shadow((place[0] - 0.9, place[0] + 0.9), (place[1] - 0.2, place[1] + 0.2))
    motorcycle(scene, place, side)
    _rider(scene, place, 0.08)


def _post(scene: Scene, place: Point, height: float) -> None:
    """Draws an upright pole."""
    pole = bar((0, 0), (0, height), scene.between((0.18, 0.26)))
    scene.upright(LABEL["pole"], scene.color("pole"), place, pole)


def lamp(scene: Scene, place: Point, side: int) -> None:
    """Draws a street lamp that reaches over the road."""
    height = scene.between((5, 8))
    _post(scene, place, height)
    arm = bar((0, height), (-side * 1.6, height + 0.2), 0.16)
    scene.upright(LABEL["pole"], scene.color("pole"), place, arm)


def sign(scene: Scene, place: Point, side: int) -> None:
    """Draws one or two traffic signs on a pole: round, triangular or rectangular."""
    height, label = scene.between((2.4, 3.2)), LABEL["traffic sign"]
    _post(scene, place, height)
    for y in (height, height - 0.95)[: scene.random.choice((1, 1, 2))]:
        color, size = scene.random.choice(scene.town.colors["sign"]), scene.between((0.38, 0.55))
        triangle = [(-size, y - size), (size, y - size), (0, y + size)]
        board = [(-size, y - size), (size, y - size), (size, y + size), (-size, y + size)]
        outline = scene.random.choice((disc(0, y, size), triangle, board))
        scene.upright(label, color, place, outline)
        inner = [(dx * 0.65, y + (dy - y) * 0.65 - 0.03) for dx, dy in outline]
        scene.upright(None, scene.random.choice(((235, 235, 230), color)), place, inner)


def traffic_light(scene: Scene, place: Point, side: int) -> None:
    """Draws a traffic light with three lamps on a pole, one of them on."""
    height, label = scene.between((2.6, 3.6)), LABEL["traffic light"]
    _post(scene, place, height)
    scene.upright(label, (35, 38, 35), place, bar((0, height - 0.6), (0, height + 0.6), 0.5))
    lit = scene.random.randrange(3)
    for number, color in enumerate(((235, 50, 40), (240, 180, 50), (60, 220, 130))):
        shade = 1.0 if number == lit else 0.3
        scene.upright(None, color, place, disc(0, height + 0.36 - 0.36 * number, 0.16), shade)


def container(scene: Scene, place: Point, side: int) -> None:
    """Draws a rubbish container, which belongs to no class."""
    (x, z), color = place, scene.color("clothes")
    scene.box(IGNORE_INDEX, color, (x - 0.35, x + 0.35), (0, 1.1), (z, z + 0.7))
