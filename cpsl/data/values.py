"""Values and colors that label files store, and the classes they stand for."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import ImageColor
from torch import Tensor

from cpsl.data.class_tables import NO_CLASS, Stored, id_table, to_classes
from cpsl.data.labels import IGNORE_INDEX, LabelSpace
from cpsl.data.reading import label_kind, read_stored
from cpsl.data.unknown import UnknownValuesError

Ids = (
    Mapping[int, int]
    | Mapping[int, str]
    | Mapping[int, int | str]
    | Mapping[str, int]
    | Mapping[str, str]
    | Mapping[str, int | str]
    | Mapping[int | str, int | str]
)
OPAQUE = 0xFF
"""Last byte of a color without transparency."""


def parse_color(text: str) -> int:
    """Returns a color as the number 0xRRGGBBAA.

    Args:
        text: "#rrggbb", "#rrggbbaa" with a transparency, or three or four numbers of 0...255 such as
            "255, 0, 0".

    Raises:
        ValueError: The text is none of these.

    Example:
        >>> hex(parse_color("#ff0001")), hex(parse_color("255, 0, 1"))
        ('0xff0001ff', '0xff0001ff')
    """
    digits = re.fullmatch(r"#([0-9a-f]{6})([0-9a-f]{2})?", text.strip().lower())
    if digits:
        return int(digits[1] + (digits[2] or "ff"), 16)
    numbers = re.fullmatch(r"\[?\s*(\d+)[,\s]+(\d+)[,\s]+(\d+)(?:[,\s]+(\d+))?\s*\]?", text)
    channels = [int(number or OPAQUE) for number in numbers.groups()] if numbers else [256]
    if max(channels) > 255:
        raise ValueError(
            f'"{text}" is neither a whole number below 65536 nor a color such as "#ff0000" or "255, 0, 0"'
            f"{_describe_key(text.strip())}"
        )
    return int.from_bytes(bytes(channels), "big")


def _describe_key(text: str) -> str:
    """Returns how to write a key of `ids` that is neither number nor color, "" if nothing suggests it.

    Example:
        >>> _describe_key("#00f"), _describe_key("0x1f"), _describe_key("(1, 2, 3)")
        (': if it is a color, write "#0000ff"', ': write 31', ': write "1, 2, 3"')
    """
    if re.fullmatch(r"0x[0-9a-f]{1,4}|\d{1,5}", text):
        return f": write {int(text, 16 if 'x' in text else 10)}"
    if inside := re.fullmatch(r"\w*[({<]\s*([\d,\s]+?)\s*[)}>]", text):
        return f': write "{inside[1]}"'
    hints = list[str]()
    for name in (text, f"#{text.removeprefix('0x')}"):
        with suppress(ValueError):
            color = f"#{bytes(ImageColor.getrgb(name)).hex()}"
            hints = [f'if it is a color, write "{name if color == name.lower() else color}"']
            break
    if text[:1].isalpha():
        hints.append('if it is a class, swap the sides: what is stored stands first, as in 7 = "road"')
    return f": {'; '.join(hints)}" if hints else ""


def format_color(color: int) -> str:
    """Returns "#rrggbb", or "#rrggbbaa" if the color is transparent.

    Example:
        >>> format_color(0xFF0001FF), format_color(0)
        ('#ff0001', '#00000000')
    """
    digits = f"{color:08x}"
    return f"#{digits[:6] if color & 0xFF == OPAQUE else digits}"


class ClassMap:
    """Classes of the stored values or colors of label files.

    Args:
        classes: Label space.
        ids: Class index, class name, or 255 or "ignore", of each stored number (int) or color (str, see
            `parse_color`); class indices, and 255 to ignore, are stored if None.
        first_id: Without `ids`, the stored value of the first class; smaller ones are ignored.
        tolerance: Largest difference, in each channel, from the values of `ids`; the nearest value counts.
            For label maps whose values are inexact, such as JPEG.
        ignore_unknown: Whether all other values are ignored; they are errors otherwise.

    Attributes:
        colors: Whether colors are read, not numbers.

    Raises:
        TypeError: `first_id` or `tolerance` is no whole number.
        ValueError: `ids` are no numbers or colors, mix both, or point to an unknown or ambiguous class.

    Example:
        >>> classes = LabelSpace(("road", "car"), ((0, 0, 0), (255, 0, 0)))
        >>> colored = ClassMap(classes, {"#000000": "road", "#ff0000": "car"}, tolerance=9)
        >>> colored.convert(np.array([[0x000000FF, 0xFF0304FF]], np.uint32), Path("a.png"))
        tensor([[0, 1]], dtype=torch.uint8)
    """

    def __init__(
        self,
        classes: LabelSpace,
        ids: Ids | None = None,
        *,
        first_id: int = 0,
        tolerance: int = 0,
        ignore_unknown: bool = False,
    ) -> None:
        if ids and first_id:
            raise ValueError("first_id is for labels without ids: remove one of them")
        for name, value in (("first_id", first_id), ("tolerance", tolerance)):
            if not isinstance(value, int | np.integer) or isinstance(value, bool):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
        if not 0 <= first_id <= 65535 - len(classes):
            raise ValueError(f"first_id must lie in 0...{65535 - len(classes)}, got {first_id}")
        if not 0 <= tolerance <= 255:
            raise ValueError(f"tolerance must lie in 0...255, got {tolerance}")
        self.tolerance = tolerance
        self.ignore_unknown = ignore_unknown
        known = _index_of_ids(classes, ids, first_id)
        colors = [key for key in known if isinstance(key, str)]
        if 0 < len(colors) < len(known):
            raise ValueError(f"ids must be numbers or colors, not both, got {', '.join(map(str, known))}")
        self.colors = bool(colors)
        index_of = dict[int, int]()
        for key, index in known.items():
            if not isinstance(key, int | np.integer | str) or isinstance(key, bool):
                raise ValueError(f"ids must be whole numbers or colors, got {key!r}")
            value = parse_color(key) if isinstance(key, str) else int(key)
            if index_of.setdefault(value, index) != index:
                raise ValueError(f"ids give {key} two classes, {index_of[value]} and {index}")
        self._values = np.array(sorted(index_of), np.int64)
        self._indices = np.array([index_of[value] for value in self._values.tolist()], np.int16)
        if tolerance:
            self._check_tolerance()
        self._table = None if self.colors else id_table(index_of)
        if self._table is not None and tolerance:
            self._table = self._nearest(np.arange(len(self._table)))

    def read(self, path: Path) -> tuple[Tensor, int]:
        """Reads a label file as class indices (H, W) uint8, before any rotation, and its own orientation."""
        stored, orientation = read_stored(path, colors=self.colors, lossy=self.tolerance > 0)
        return self.convert(stored, path), orientation

    def convert(self, stored: Stored, path: Path) -> Tensor:
        """Converts stored values (H, W) of a file, colors as 0xRRGGBBAA, to class indices uint8.

        Raises:
            UnknownValuesError: Values have no class; the message lists them with their pixels.
        """
        if self._table is not None:
            try:
                return to_classes(stored, self._table, path, ignore_unknown=self.ignore_unknown)
            except UnknownValuesError as error:
                text = f"{error}; {self._advice('stored number')}"
                raise UnknownValuesError(text, error.values, error.pixels) from None
        return self._convert_colors(stored, path)

    def _convert_colors(self, stored: Stored, path: Path) -> Tensor:
        values, inverse, counts = count_runs(stored)
        indices = self._nearest(values)
        unknown = np.flatnonzero(indices == NO_CLASS)
        if len(unknown) and not self.ignore_unknown:
            most = unknown[np.argsort(-counts[unknown], kind="stable")]
            pixels: dict[int | str, int] = {format_color(int(values[i])): int(counts[i]) for i in most}
            listed = ", ".join(f"{color} ({count} pixels)" for color, count in list(pixels.items())[:8])
            raise UnknownValuesError(
                f"{path} has {len(unknown)} color(s) without a class, in {counts[unknown].sum()} of "
                f"{stored.size} pixels: {listed}; {self._advice('color')}",
                pixels,
                stored.size,
            )
        indices[unknown] = IGNORE_INDEX
        return torch.from_numpy(inverse(indices.astype(np.uint8)).reshape(stored.shape))

    def _advice(self, what: str) -> str:
        return (
            f"`ids` maps each {what} to its class, or to 255; `tolerance` accepts inexact values, and "
            "ignore_unknown = true ignores all others"
        )

    def _check_tolerance(self) -> None:
        """Raises ValueError if a value of one class is within the tolerance of another class."""
        channels = self._as_channels(self._values)
        gap, pair = self.tolerance + 1, (0, 0)
        for i in range(len(channels) - 1):
            gaps = np.abs(channels[i + 1 :] - channels[i]).max(axis=1)
            gaps[self._indices[i + 1 :] == self._indices[i]] = gap
            if (smallest := int(gaps.min())) < gap:
                gap, pair = smallest, (i, i + 1 + int(gaps.argmin()))
        if gap <= self.tolerance:
            values = self._values[list(pair)].tolist()
            first, second = (format_color(value) if self.colors else str(value) for value in values)
            raise ValueError(
                f"tolerance {self.tolerance} must be less than {gap}, the difference of {first} and "
                f"{second}, which are two classes"
            )

    def _as_channels(self, stored: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns the channels (N, 4) of colors, or (N, 1) numbers."""
        if not self.colors:
            return stored[:, None]
        return np.ascontiguousarray(stored.astype(">u4")).view(np.uint8).reshape(-1, 4).astype(np.int64)

    def _nearest(self, stored: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
        """Returns the class index of each number or color, NO_CLASS if none is near, or two equally."""
        place = np.searchsorted(self._values, stored).clip(max=len(self._values) - 1)
        found = np.where(self._values[place] == stored, self._indices[place], np.int16(NO_CLASS))
        inexact = np.flatnonzero((found == NO_CLASS) & (self.tolerance > 0))
        for part in np.array_split(inexact, len(inexact) // 100_000 + 1):
            given = self._as_channels(stored[part])
            nearest, classes = np.full(len(part), 65536), np.full(len(part), NO_CLASS, np.int16)
            for value, index in zip(self._as_channels(self._values), self._indices, strict=True):
                distance = np.abs(given - value).max(axis=1)
                classes[(distance == nearest) & (classes != index)] = NO_CLASS
                classes[distance < nearest] = index
                nearest = np.minimum(nearest, distance)
            found[part] = np.where(nearest <= self.tolerance, classes, np.int16(NO_CLASS))
        return found


def _index_of_ids(classes: LabelSpace, ids: Ids | None, first: int) -> dict[int | str, int]:
    """Returns the class index or 255 of each stored value or color."""
    indices: dict[int | str, int] = {index: index for index in [*range(len(classes)), IGNORE_INDEX]}
    if not ids:
        known: dict[int | str, int] = dict.fromkeys([*range(first), IGNORE_INDEX], IGNORE_INDEX)
        return known | {first + index: index for index in range(len(classes))}
    meanings = {"ignore": IGNORE_INDEX, **{str(index): index for index in indices}}
    for index, name in enumerate(classes.names):
        if meanings.get(name, index) != index and name in map(str, ids.values()):
            other = "the pixels to be ignored" if name == "ignore" else f"the index {name}"
            raise ValueError(
                f"ids point to {name}, which is both {other} and class {index}: rename the class"
            )
    index_of: dict[int | str, int] = {
        "ignore": IGNORE_INDEX,
        **indices,
        **{name: i for i, name in enumerate(classes.names)},
    }
    wrong = sorted({str(value) for value in ids.values() if value not in index_of})
    if wrong:
        raise ValueError(
            f"ids point to {', '.join(wrong)}, but the classes are "
            f"{', '.join(f'{i} {name}' for i, name in enumerate(classes.names))} and 255 (ignored)"
        )
    return {stored: index_of[value] for stored, value in ids.items()}


Inverse = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]


def count_runs(stored: Stored) -> tuple[npt.NDArray[np.int64], Inverse, npt.NDArray[np.int64]]:
    """Counts the pixels of each value, fast since neighbors are mostly equal.

    Returns:
        The values (V,), sorted; a function from numbers (V,) of the values to those of all pixels; the
        pixels (V,) of each value.

    Example:
        >>> values, inverse, counts = count_runs(np.array([[7, 7, 9]]))
        >>> values, counts, inverse(np.array([0, 1], np.uint8))
        (array([7, 9]), array([2, 1]), array([0, 0, 1], dtype=uint8))
    """
    flat = stored.reshape(-1)
    starts = (
        np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])) if flat.size else np.array([], int)
    )
    lengths = np.diff(starts, append=flat.size)
    values, of_run = np.unique(flat[starts].astype(np.int64), return_inverse=True)
    counts = np.bincount(of_run, weights=lengths, minlength=len(values)).astype(np.int64)
    return values, lambda numbers: np.repeat(numbers[of_run], lengths), counts


class StoredValues(NamedTuple):
    """What label files store.

    Attributes:
        files: Number of files that were read.
        modes: Number of files of each mode of Pillow, such as "L" (gray), "P" (palette) or "RGB".
        numbers: Pixels of each stored number, over all gray and palette files.
        colors: Pixels of each color "#rrggbb", over all files with colors and palettes.
        unreadable: One message for each other file.
        lossy: Number of files of a lossy format, such as JPEG.
    """

    files: int
    modes: dict[str, int]
    numbers: dict[int, int]
    colors: dict[str, int]
    unreadable: list[str]
    lossy: int = 0


def count_stored_values(paths: Sequence[Path], threads: int = 4) -> StoredValues:
    """Counts the stored numbers and colors of label files, whatever they stand for.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> path = Path(tempfile.mkdtemp(), "a.png")
        >>> Image.fromarray(np.array([[0, 255, 255]], np.uint8)).save(path)
        >>> count_stored_values([path]).numbers
        {0: 1, 255: 2}
    """

    def read(path: Path) -> tuple[str, bool, dict[int, int], dict[int, int]] | str:
        try:
            return _count_file(path)
        except (FileNotFoundError, ValueError) as error:
            return str(error)

    modes, numbers, colors = Counter[str](), Counter[int](), Counter[str]()
    unreadable, lossy = list[str](), 0
    with ThreadPoolExecutor(threads) as pool:
        for result in pool.map(read, paths):
            if isinstance(result, str):
                unreadable.append(result)
                continue
            mode, lossless, of_numbers, of_colors = result
            lossy += not lossless
            modes[mode] += 1
            numbers.update(of_numbers)
            colors.update({format_color(color): count for color, count in of_colors.items()})
    files = len(paths) - len(unreadable)
    return StoredValues(
        files, dict(modes), dict(sorted(numbers.items())), dict(sorted(colors.items())), unreadable, lossy
    )


def _count_file(path: Path) -> tuple[str, bool, dict[int, int], dict[int, int]]:
    mode, lossless = label_kind(path)
    of_kind: list[dict[int, int]] = []
    for colors in (False, True):
        wanted = mode == "P" or colors == (mode not in ("L", "1") and mode[0] not in "IF")
        stored = read_stored(path, colors=colors, lossy=True)[0] if wanted else np.array([], np.int64)
        values, _, counts = count_runs(stored)
        of_kind.append(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return mode, lossless, of_kind[0], of_kind[1]
