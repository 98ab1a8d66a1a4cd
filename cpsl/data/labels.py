"""Label spaces: names, order, colors and stored ids of classes."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

IGNORE_INDEX = 255
"""Label of pixels without a class; losses and metrics ignore them."""


def check_names(names: object) -> None:
    """Raises TypeError for one text in place of several names, whose letters would be the classes.

    Example:
        >>> check_names("road")
        Traceback (most recent call last):
        TypeError: classes must be a list of names, got one text: write ['road']
    """
    if isinstance(names, str):
        raise TypeError(f"classes must be a list of names, got one text: write [{names!r}]")


def _breaks_lines(character: str) -> bool:
    """Returns whether a character spoils tables and pictures, or cannot be written in UTF-8."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


@dataclass(frozen=True)
class LabelSpace:
    """Classes of a model in the order of their indices.

    Attributes:
        names: K class names.
        palette: K colors (R, G, B), 0...255.

    Raises:
        TypeError: The names are one text.
        ValueError: A name repeats, is empty or has a control character, the number of colors differs, or
            there are not 1 to 255 classes.

    Example:
        >>> CITYSCAPES_19.subset(("car", "bus")).palette
        ((0, 0, 142), (0, 60, 100))
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        check_names(self.names)
        if not 0 < len(self.names) <= IGNORE_INDEX:
            raise ValueError(f"there must be 1 to {IGNORE_INDEX} classes, got {len(self.names)}")
        if wrong := [name for name in self.names if not name.strip() or name != name.strip()]:
            raise ValueError(f"a class name must not be empty, begin or end with a space, got {wrong[0]!r}")
        if wrong := [name for name in self.names if any(map(_breaks_lines, name))]:
            raise ValueError(f"a class name must have no line break or control character, got {wrong[0]!r}")
        shown = [unicodedata.normalize("NFC", name) for name in self.names]  # what looks the same is the same
        if len(set(shown)) != len(shown):
            twice = sorted({name for name in shown if shown.count(name) > 1})
            raise ValueError(f"class names must differ, but these repeat: {', '.join(twice)}")
        if len(self.palette) != len(self.names):
            raise ValueError(f"{len(self.names)} classes need as many colors, got {len(self.palette)}")
        if not all(len(color) == 3 and all(0 <= v <= 255 for v in color) for color in self.palette):
            raise ValueError("each color must be three numbers in 0...255")

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, names: tuple[str, ...]) -> "LabelSpace":
        """Returns the label space of some of the classes, in the given order.

        Raises:
            ValueError: A name is unknown.
        """
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ValueError(f"{unknown} are none of the classes {', '.join(self.names)}")
        return LabelSpace(names, tuple(self.palette[self.names.index(name)] for name in names))

    def index_of_ids(self, ids: Mapping[int, str]) -> dict[int, int]:
        """Returns the class index of each stored id, given its name; 255 if it is outside this space."""
        index = {name: i for i, name in enumerate(self.names)}
        return {stored: index.get(name, IGNORE_INDEX) for stored, name in ids.items()}

    def stored_ids(self, ids: Mapping[int, str]) -> list[int]:
        """Returns the stored id of each class, the smallest of several; the inverse of `index_of_ids`.

        Raises:
            ValueError: A class has no id.

        Example:
            >>> CITYSCAPES_19.subset(("road", "bicycle")).stored_ids(CITYSCAPES_IDS)
            [7, 33]
        """
        id_of = {name: stored for stored, name in sorted(ids.items(), reverse=True)}
        without = [name for name in self.names if name not in id_of]
        if without:
            raise ValueError(f"these classes have no id: {', '.join(without)}")
        return [id_of[name] for name in self.names]


_CITYSCAPES_COLORS = {
    "road": (128, 64, 128), "sidewalk": (244, 35, 232), "building": (70, 70, 70), "wall": (102, 102, 156),
    "fence": (190, 153, 153), "pole": (153, 153, 153), "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0), "vegetation": (107, 142, 35), "terrain": (152, 251, 152),
    "sky": (70, 130, 180), "person": (220, 20, 60), "rider": (255, 0, 0), "car": (0, 0, 142),
    "truck": (0, 0, 70), "bus": (0, 60, 100), "train": (0, 80, 100), "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}  # fmt: skip
CITYSCAPES_19 = LabelSpace(tuple(_CITYSCAPES_COLORS), tuple(_CITYSCAPES_COLORS.values()))
"""The 19 evaluated classes of Cityscapes, in the order of their train ids."""

CITYSCAPES_16 = CITYSCAPES_19.subset(
    tuple(name for name in CITYSCAPES_19.names if name not in ("terrain", "truck", "train"))
)
"""The 16 classes that SYNTHIA shares with Cityscapes, in the same order."""

CITYSCAPES_13 = CITYSCAPES_16.subset(
    tuple(name for name in CITYSCAPES_16.names if name not in ("wall", "fence", "pole"))
)
"""The 16 classes without wall, fence and pole, which are also reported for SYNTHIA."""

CITYSCAPES_IDS: dict[int, str] = {
    0: "unlabeled", 1: "ego vehicle", 2: "rectification border", 3: "out of roi", 4: "static", 5: "dynamic",
    6: "ground", 7: "road", 8: "sidewalk", 9: "parking", 10: "rail track", 11: "building", 12: "wall",
    13: "fence", 14: "guard rail", 15: "bridge", 16: "tunnel", 17: "pole", 18: "polegroup",
    19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person",
    25: "rider", 26: "car", 27: "truck", 28: "bus", 29: "caravan", 30: "trailer", 31: "train",
    32: "motorcycle", 33: "bicycle", 34: "license plate", 255: "license plate",
}  # fmt: skip
"""Ids in `labelIds` files of Cityscapes and in GTA5; license plates, -1 in Cityscapes, are 34 or 255."""

CITYSCAPES_TRAIN_IDS: dict[int, str] = {**dict(enumerate(CITYSCAPES_19.names)), 255: "unlabeled"}
"""Ids in `labelTrainIds` files of Cityscapes."""

SYNTHIA_IDS: dict[int, str] = {
    0: "void", 1: "sky", 2: "building", 3: "road", 4: "sidewalk", 5: "fence", 6: "vegetation", 7: "pole",
    8: "car", 9: "traffic sign", 10: "person", 11: "bicycle", 12: "motorcycle", 13: "parking slot",
    14: "road work", 15: "traffic light", 16: "terrain", 17: "rider", 18: "truck", 19: "bus", 20: "train",
    21: "wall", 22: "lane marking",
}  # fmt: skip
"""Ids of SYNTHIA-RAND-CITYSCAPES; its pedestrians are the persons of Cityscapes."""
