"""Kinds of images and labels in two folders, ordered by their names and their content."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cpsl.data.appearance import appearance_of
from cpsl.data.matching import (
    PatternProposal,
    propose_all_patterns,
    propose_for_one_folder,
    propose_other_images,
)
from cpsl.data.names import Pattern
from cpsl.data.pictures import read_picture
from cpsl.data.values import count_stored_values

EXAMPLES = 4
"""Files of each kind of images or labels that are read to compare the kinds."""


class Kinds(NamedTuple):
    """Patterns of the most likely kinds of images and labels, None if there are none, and of other kinds."""

    best: PatternProposal | None
    other_labels: list[PatternProposal]
    other_images: list[PatternProposal]


def propose_kinds(
    image_folder: Path, label_folder: Path, images: Sequence[str], labels: Sequence[str]
) -> Kinds:
    """Returns the patterns of labels and images: of several kinds, the most likely of each, and the others.

    The names tell most, see `propose_all_patterns`. Labels of a single value come last, and images in color
    before gray ones. If both folders are one, `images` and `labels` are the same names.
    """
    one_folder = image_folder.resolve() == label_folder.resolve()
    kinds = propose_for_one_folder(images) if one_folder else propose_all_patterns(images, labels)
    if not kinds:
        return Kinds(None, [], [])
    if len(kinds) > 1:
        kinds.sort(key=lambda kind: _is_uniform(_some(label_folder, labels, kind.label_pattern)))
    patterns = [Pattern(kind.label_pattern) for kind in kinds] if one_folder else []
    maps = [name for name in images if any(pattern.key(name) for pattern in patterns)]
    images = sorted({*images} - {*maps})
    first = kinds[0].image_pattern
    photos = [kinds[0], *propose_other_images(images, labels, kinds[0], maps)]
    if len(photos) > 1:
        photos.sort(key=lambda kind: _is_gray(_some(image_folder, images, kind.image_pattern)))
    of_best = [
        kind._replace(image_pattern=photos[0].image_pattern) if kind.image_pattern == first else kind
        for kind in kinds[1:]
    ]
    return Kinds(photos[0], of_best, photos[1:])


def _some(folder: Path, names: Sequence[str], pattern: str) -> list[Path]:
    """Returns up to `EXAMPLES` of the files that match a pattern, evenly spaced."""
    chosen = [folder / name for name in names if Pattern(pattern).key(name)]
    return chosen[:: max(-(-len(chosen) // EXAMPLES), 1)]


def _is_uniform(labels: Sequence[Path]) -> bool:
    stored = count_stored_values(labels)
    return max(len(stored.numbers), len(stored.colors)) <= 1


def _is_gray(images: Iterable[Path]) -> bool:
    try:
        return all(appearance_of(read_picture(path)).colorless for path in images)
    except (OSError, ValueError):
        return True
