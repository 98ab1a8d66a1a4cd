"""Proposals of the settings that describe labels as they are on the disk."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, TypeVar

from cpsl.data.files import list_names
from cpsl.data.kinds import Kinds, propose_kinds
from cpsl.data.labels import IGNORE_INDEX, LabelSpace
from cpsl.data.matching import count_matches
from cpsl.data.names import IMAGE_SUFFIXES, Pattern
from cpsl.data.values import StoredValues, count_stored_values, format_color, parse_color

V = TypeVar("V", int, str)

MANY_VALUES = 255
"""Number of stored numbers up to which `ids` are proposed."""

MANY_COLORS = 64
"""Number of colors from which on rare ones count as inexact copies, such as of smoothed edges."""

MAX_ID = 65535
"""Largest number that `ids` map."""

SHOWN_SHARE = 0.002
"""Share of the pixels from which on an inexact color counts as one of the label map's own."""

NOISE = 24
"""Difference in each channel within which inexact colors belong together."""

CLASS_NUMBERS = "numbers of classes cannot be recovered from JPEG and other lossy formats: store them as PNG"


class Proposal(NamedTuple):
    """Settings that are missing for a folder of labels.

    Attributes:
        lines: Lines of TOML for the table of the domain; a class that only a person knows is "?", which is
            refused until it is replaced.
        notes: What was found: sentences for a person.
    """

    lines: list[str]
    notes: list[str]


def propose_settings(
    images: Path,
    labels: Path,
    classes: LabelSpace,
    *,
    image_pattern: str = "*",
    label_pattern: str = "*",
    ids_given: bool = False,
    skip_unpaired: bool = False,
    max_labels: int = 100,
) -> Proposal:
    """Returns the settings with which the labels of a folder could be read.

    Args:
        images: Folder of the images.
        labels: Folder of the labels.
        classes: Label space of the run.
        image_pattern: The setting as it is.
        label_pattern: The setting as it is.
        ids_given: Whether `ids` or `first_id` are set; then only patterns are proposed.
        skip_unpaired: The setting as it is.
        max_labels: Label files that are read, evenly spaced.

    Raises:
        FileNotFoundError: A folder is missing or has no images.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for name, color in (("images/1_image.png", "green"), ("labels/1_label.png", "#ff0000")):
        ...     (root / name).parent.mkdir()
        ...     Image.new("RGB", (8, 4), color).save(root / name)
        >>> car = LabelSpace(("car",), ((9, 9, 9),))
        >>> for line in propose_settings(root / "images", root / "labels", car).lines:
        ...     print(line)
        image_pattern = "*_image.png"
        label_pattern = "*_label.png"
        ids = { "#ff0000" = "?" }
    """
    first, second = images.resolve(), labels.resolve()
    names, of_labels = _names_outside(images, second), _names_outside(labels, first)
    lines, notes, patterns = list[str](), list[str](), (Pattern(image_pattern), Pattern(label_pattern))
    best, other_labels, other_images = _propose_patterns(images, labels, names, of_labels, patterns)
    if best is not None:
        patterns = Pattern(best.image_pattern), Pattern(best.label_pattern)
        lines += best.lines(image_pattern, label_pattern)
        of_all = f" of {len(names)}" if first != second else ""
        notes.append(f"{best.matched}{of_all} images have a label with these patterns")
        for one, other, kinds in (("images", "labels", other_labels), ("labels", "images", other_images)):
            settings = [" with ".join(kind.lines(best.image_pattern, best.label_pattern)) for kind in kinds]
            if settings:
                notes.append(f"the {one} have other {other} as well: {' or '.join(settings)}")
    pairs, unpaired = _pairs(names, of_labels, patterns)
    apart = not (first.is_relative_to(second) or second.is_relative_to(first))
    if pairs and unpaired and apart and not skip_unpaired:
        lines.append("skip_unpaired = true")
        notes.append(f"skip_unpaired: {unpaired} files would not be read, as they lack a label or an image")
    if not ids_given:
        chosen = [labels / name for name in pairs or of_labels]
        stored = count_stored_values(chosen[:: max(-(-len(chosen) // max_labels), 1)])
        of_values = propose_values(stored, classes)
        lines, notes = lines + of_values.lines, notes + of_values.notes
        if stored.unreadable:
            notes.append(f"labels that are not read ({len(stored.unreadable)}): {stored.unreadable[0]}")
    return Proposal(lines, notes)


def _names_outside(folder: Path, inner: Path) -> list[str]:
    """Returns the files below a folder without those of another folder within."""
    names, root = list_names(folder, IMAGE_SUFFIXES), folder.resolve()
    if inner == root or not inner.is_relative_to(root):
        return names
    return [name for name in names if not name.startswith(f"{inner.relative_to(root).as_posix()}/")]


def _propose_patterns(
    image_folder: Path,
    label_folder: Path,
    images: Sequence[str],
    labels: Sequence[str],
    patterns: tuple[Pattern, Pattern],
) -> Kinds:
    """Returns patterns that give more images a label than those of the settings."""
    first, second = patterns
    chosen = [name for name in images if first.key(name)]
    if image_folder.resolve() == label_folder.resolve():
        matched = 0 if first.text == second.text else len(chosen)  # then both are set
    else:
        matched = count_matches(chosen, labels, first, second)
    if matched == len(chosen):
        return Kinds(None, [], [])
    kinds = propose_kinds(image_folder, label_folder, images, labels)
    return kinds if kinds.best is not None and kinds.best.matched > matched else Kinds(None, [], [])


def _pairs(
    images: Sequence[str], labels: Sequence[str], patterns: tuple[Pattern, Pattern]
) -> tuple[list[str], int]:
    """Returns the labels that have an image, and the number of other files that match the patterns."""
    of_images, of_labels = (
        {key: name for name in names if (key := pattern.key(name))}
        for names, pattern in zip((images, labels), patterns, strict=True)
    )
    paired = [name for key, name in of_labels.items() if key in of_images]
    return paired, len(of_images) + len(of_labels) - 2 * len(paired)


def propose_values(stored: StoredValues, classes: LabelSpace) -> Proposal:
    """Returns the settings that describe stored values, nothing if they are class indices.

    Two values, 0 and 255 or black and white, of two classes are the first and the second. Values from 1 to
    the number of classes are offsets. Colors of the palette are their classes. All others have the class "?".

    Example:
        >>> stored = StoredValues(1, {"L": 1}, {0: 75, 255: 25}, {}, [])
        >>> print(*propose_values(stored, LabelSpace(("ground", "car"), ((0, 0, 0), (9, 9, 9)))).lines)
        ids = { 0 = "ground", 255 = "car" }
    """
    if stored.colors and set(stored.modes) - {"L", "1", "P"}:
        return _propose_colors(stored, classes)
    lossy = stored.lossy > 0
    values, copies = _own_values(stored.numbers, _distance, lossy)
    if lossy:  # the most frequent copy of black or white may be another number
        values = {_snapped(value, (0, 255), _distance): count for value, count in values.items()}
    notes = [f"the labels hold {_with_shares(values)}"] if values else []
    others = set(values) - {IGNORE_INDEX}
    if is_suspicious_mask(values, len(classes)):
        notes.append("255 is ignored unless ids give it a class")
        ids = dict(zip((0, IGNORE_INDEX), map(_quoted, classes.names), strict=True))
    elif others <= set(range(len(classes))) and not lossy:
        return Proposal([], notes)
    elif others <= set(range(len(classes) + 1)) and not lossy:
        return Proposal(["first_id = 1"], [*notes, "first_id = 1 means that 0 is ignored"])
    elif lossy and max(values, default=0) <= max(NOISE, len(classes)):
        return Proposal([], [*notes, CLASS_NUMBERS])
    elif len(values) > MANY_VALUES:
        return Proposal(
            [], [f"the labels hold {len(values)} numbers, too many for classes: {_with_shares(values)}"]
        )
    else:
        inside = [value for value in values if 0 <= value <= MAX_ID]
        ignored = "255" if len(values) > len(classes) else _quoted("?")  # may be a class if there are few
        ids = {value: ignored if value == IGNORE_INDEX else _quoted("?") for value in inside}
    if not lossy:
        lines = [_ids_line(ids)] if ids else []
        if others - set(ids):
            lines.append(f"ignore_unknown = true  # ids are 0...{MAX_ID}: all other numbers are ignored")
        return Proposal(lines, notes)
    if not ids:
        return Proposal([], notes)
    noise = min([NOISE, *(abs(a - b) - 1 for a, b in combinations(values, 2))])
    return _inexact(ids, notes, noise, copies / max(sum(stored.numbers.values()), 1))


def is_suspicious_mask(numbers: Iterable[int], classes: int) -> bool:
    """Returns whether stored numbers are those of a mask in black and white: 0 and 255, or 255 alone.

    Without `ids`, 255 is ignored, so that all classes but the first would be missing.

    Args:
        numbers: All numbers that the labels hold.
        classes: Number of classes.

    Example:
        >>> is_suspicious_mask([0, 255], classes=2), is_suspicious_mask([0, 1, 255], classes=2)
        (True, False)
    """
    found = set(numbers)
    return classes == 2 and IGNORE_INDEX in found and found <= {0, IGNORE_INDEX}


def _propose_colors(stored: StoredValues, classes: LabelSpace) -> Proposal:
    colors = dict(stored.colors)
    for number, count in stored.numbers.items():  # of gray files among them
        if 0 <= number < 256 and "P" not in stored.modes:
            color = _color((number, number, number))
            colors[color] = colors.get(color, 0) + count
    known = {_color(color): name for color, name in zip(classes.palette, classes.names, strict=True)}
    inexact = stored.lossy > 0 or len(colors) > MANY_COLORS
    own, copies = _own_values(colors, _difference, inexact)
    if inexact:
        own = {_snapped(color, (*known, "#000000", "#ffffff"), _difference): n for color, n in own.items()}
    if set(own) <= {"#000000", "#ffffff"} and len(classes) == 2:
        known = dict(zip(("#000000", "#ffffff"), classes.names, strict=True))
    elif levels := _class_levels(own, len(classes)):
        known = {color: "ignore" if i == IGNORE_INDEX else classes.names[i] for color, i in levels.items()}
    own = dict(sorted(own.items(), key=lambda item: -item[1]))
    ids = {_quoted(color): _quoted(known.get(color, "?")) for color in own}
    if not ids:
        return Proposal([], [f"the labels hold {len(colors)} colors, too many for classes"])
    notes = [f"the labels hold {_with_shares(own)}"]
    if not inexact:
        return Proposal([_ids_line(ids)], notes)
    if stored.lossy and max(_difference(color, "#000000") for color in own) <= max(NOISE, len(classes)):
        return Proposal([], [*notes, CLASS_NUMBERS])
    noise = min([NOISE, *(_difference(a, b) - 1 for a, b in combinations(own, 2))])
    return _inexact(ids, notes, noise, copies / max(sum(colors.values()), 1))


def _class_levels(colors: Iterable[str], classes: int) -> dict[str, int]:
    """Returns the class index, or 255, of each color if all are grays of class indices; nothing otherwise."""
    levels = {color: parse_color(color) >> 8 & 255 for color in colors}
    gray = all(color == _color((level, level, level)) for color, level in levels.items())
    return levels if gray and set(levels.values()) <= {*range(classes), IGNORE_INDEX} else {}


def _inexact(ids: Mapping[V, str], notes: list[str], noise: int, copies: float) -> Proposal:
    """Returns the settings for labels in which a share of the pixels has inexact copies of the values."""
    lines = [_ids_line(ids), f"tolerance = {noise}", "ignore_unknown = true  # beyond the tolerance"]
    return Proposal(lines, [*notes, f"{100 * copies:.3g} % of the pixels have other, inexact values"])


def _ids_line(ids: Mapping[V, str]) -> str:
    return f"ids = {{ {', '.join(f'{value} = {name}' for value, name in ids.items())} }}"


def _own_values(
    counts: Mapping[V, int], difference: Callable[[V, V], int], inexact: bool
) -> tuple[dict[V, int], int]:
    """Returns the values without inexact copies of more frequent ones, and the pixels of these copies."""
    if not inexact:
        return dict(counts), 0
    own, copies, pixels = dict[V, int](), 0, sum(counts.values())
    for value, count in sorted(counts.items(), key=lambda item: -item[1]):
        frequent = count >= SHOWN_SHARE * pixels and len(own) < IGNORE_INDEX
        if frequent and all(difference(value, other) > NOISE for other in own):
            own[value] = count
        else:
            copies += count
    return own, copies


def _color(channels: tuple[int, int, int]) -> str:
    return format_color(int.from_bytes(bytes([*channels, 255]), "big"))


def _snapped(value: V, known: Iterable[V], difference: Callable[[V, V], int]) -> V:
    """Returns the known value that is nearly the same, or the value itself."""
    return next((other for other in known if difference(value, other) <= NOISE // 3), value)


def _distance(first: int, second: int) -> int:
    return abs(first - second)


def _difference(first: str, second: str) -> int:
    """Returns the largest difference of two colors in a channel."""
    a, b = (parse_color(color).to_bytes(4, "big") for color in (first, second))
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def _with_shares(counts: Mapping[V, int]) -> str:
    total = max(sum(counts.values()), 1)
    listed = [f"{value} ({100 * count / total:.3g} %)" for value, count in list(counts.items())[:40]]
    return ", ".join(listed) + (f" and {len(counts) - 40} more" if len(counts) > 40 else "")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
