"""Images and labels in any two folders."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from cpsl.data.files import and_skipped, find_files
from cpsl.data.kinds import propose_kinds
from cpsl.data.labels import LabelSpace, check_names
from cpsl.data.matching import PatternProposal, find_label_maps, label_names, pattern_of_some
from cpsl.data.names import IMAGE_SUFFIXES, Pattern, find_near_names, match_labels
from cpsl.data.orientation import Convention
from cpsl.data.palette import class_colors
from cpsl.data.propose import is_suspicious_mask
from cpsl.data.sample import Files
from cpsl.data.values import ClassMap, Ids, count_stored_values

SAMPLED_LABELS = 16
"""Labels of two classes that are read to recognize masks of 0 and 255."""


class SegmentationFolder(Files):
    """Images, and labels that are found by their names.

    `images/berlin/a.jpg` belongs to `labels/berlin/a.png`; patterns describe other names. Labels hold one
    number per pixel (gray or palette, 1 to 16 bits), or one color per pixel.

    Args:
        images: Folder of images; all formats of `IMAGE_SUFFIXES` are read.
        labels: Folder of labels; None if there are none.
        classes: Names of the classes in the order of their indices, or a label space. Without labels they may
            be omitted: `label_space` then has the single class "unlabeled".
        palette: Colors (R, G, B) of the classes, 0...255; those of `class_colors`, or the label
            space's, if None.
        ids: Stored number, or color "#rrggbb", to class name or index, or to 255 to ignore it; None if class
            indices are stored. See `ClassMap`.
        image_pattern: Names of the images in their folder, such as "*_image.png"; see `Pattern`.
        label_pattern: Names of the labels in their folder, such as "*_annotation.png": the stars stand for
            the same texts as in the image's name.
        first_id: Without `ids`, the stored number of the first class; smaller ones are ignored.
        tolerance: Largest difference from the numbers or colors of `ids`, for inexact labels such as JPEG.
        ignore_unknown: Whether other numbers or colors are ignored; they are errors otherwise.
        skip_unpaired: Whether images without a label, and labels without an image, are skipped; errors
            otherwise.
        resize_labels: Whether labels of another size than their image are resized; errors otherwise.
        label_orientation: Whether labels belong to the picture that EXIF rotates ("rotated") or to its stored
            pixels ("stored"); "auto" recognizes it by the size, or refuses the image. See `fit_label`.
        value_range: Stored values that mean black and white, for gray images of more than 8 bits.

    Attributes:
        names: Key of each image: its relative path without extension, whatever the pattern.
        skipped: Files in both folders that are not read, with the reason.

    Raises:
        FileNotFoundError: A folder is missing or empty, or images or labels lack their counterparts.
        TypeError: `classes` is one text.
        ValueError: There are labels but no classes, `ids` names an unknown class, the patterns do not fit
            each other, label maps lie among the images, or labels of two classes seem to be 0 and 255.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 4)).save(folder / "a_photo.jpg")
        >>> Image.new("RGB", (8, 4), "#ff0000").save(folder / "a_mask.png")
        >>> names = {"image_pattern": "*_photo", "label_pattern": "*_mask"}
        >>> dataset = SegmentationFolder(folder, folder, ["road", "car"], ids={"#ff0000": "car"}, **names)
        >>> dataset[0].image.shape, dataset[0].label.unique(), dataset[0].name
        (torch.Size([3, 4, 8]), tensor([1], dtype=torch.uint8), 'a_photo')
    """

    def __init__(
        self,
        images: str | Path,
        labels: str | Path | None = None,
        classes: Sequence[str] | LabelSpace = (),
        palette: Sequence[tuple[int, int, int]] | None = None,
        ids: Ids | None = None,
        *,
        image_pattern: str = "*",
        label_pattern: str = "*",
        first_id: int = 0,
        tolerance: int = 0,
        ignore_unknown: bool = False,
        skip_unpaired: bool = False,
        resize_labels: bool = False,
        label_orientation: Convention = "auto",
        value_range: tuple[float, float] | None = None,
    ) -> None:
        if not classes:
            if labels is not None:
                raise ValueError(f"classes must name the classes in {labels}, the labels of {images}")
            classes = ("unlabeled",)
        if not isinstance(classes, LabelSpace):
            check_names(classes)
            classes = LabelSpace(tuple(classes), class_colors(classes))
        if palette is not None:
            classes = LabelSpace(classes.names, tuple(palette))
        self._class_map = ClassMap(
            classes, ids, first_id=first_id, tolerance=tolerance, ignore_unknown=ignore_unknown
        )
        skipped: dict[Path, str] = {}
        patterns = Pattern(image_pattern), Pattern(label_pattern)
        found, label_files = _find_pairs(
            Path(images), None if labels is None else Path(labels), patterns, skipped, skip_unpaired
        )
        super().__init__(
            classes,
            found,
            label_files,
            label_orientation=label_orientation,
            resize_labels=resize_labels,
            value_range=value_range,
            skipped=skipped,
            how=(ids and dict(ids), first_id, tolerance, ignore_unknown),
        )
        if len(classes) == 2 and not (ids or first_id):
            self._refuse_masks()

    def _read_label(self, path: Path) -> tuple[Tensor, int]:
        return self._class_map.read(path)

    def _refuse_masks(self) -> None:
        """Raises ValueError if some labels suggest that 255 is the second class, which would be ignored."""
        paths = [path for path in self._labels if path is not None]
        chosen = paths[:: len(paths) // SAMPLED_LABELS + 1]
        numbers = count_stored_values(chosen).numbers
        if is_suspicious_mask(numbers, len(self.label_space)):
            first, second = self.label_space.names
            raise ValueError(
                f"{chosen[0]} and others, {len(chosen)} of {len(paths)} labels that were read, hold only "
                f"{' and '.join(map(str, numbers))}, and 255 is ignored without ids: set "
                f'ids = {{ 0 = "{first}", 255 = "{second}" }} if it is {second}, or '
                f'ids = {{ 0 = "{first}", 1 = "{second}", 255 = 255 }} if it is to be ignored'
            )


def _find_pairs(
    image_folder: Path,
    label_folder: Path | None,
    patterns: tuple[Pattern, Pattern],
    skipped: dict[Path, str],
    skip_unpaired: bool,
) -> tuple[dict[str, Path], Sequence[Path | None]]:
    """Finds the images by key, and the label of each."""
    image_pattern, label_pattern = patterns
    labels: dict[str, Path] = {}
    if label_folder is not None:
        found = find_files(label_folder, IMAGE_SUFFIXES, "labels", pattern=label_pattern, skipped=skipped)
        labels = _by_relative_path(label_folder, found)
    images = find_files(image_folder, IMAGE_SUFFIXES, "images", pattern=image_pattern, skipped=skipped)
    if label_folder is not None:
        if image_folder.resolve() == label_folder.resolve() and image_pattern.text == label_pattern.text:
            _refuse_one_folder(image_folder, images, patterns)
        images, labels = _separate(image_folder, images, label_folder, labels, patterns)
    if image_pattern.text == "*":
        _refuse_label_maps(image_folder, images)
    if label_folder is None:
        return images, [None] * len(images)
    by_path = _by_relative_path(image_folder, images)
    matched, orphans = match_labels(by_path, labels, image_pattern, label_pattern)
    without = [name for name, label in matched.items() if label is None]
    if skip_unpaired and len(without) < len(matched):
        skipped |= {by_path[name]: "it has no label" for name in without}
        skipped |= {labels[name]: "it has no image" for name in orphans}
        images = {name: path for name, path in images.items() if path not in skipped}
    elif without or orphans:
        _raise_unpaired(image_folder, label_folder, by_path, labels, matched, orphans, patterns, skipped)
    label_of: dict[Path, Path] = {
        by_path[name]: labels[label] for name, label in matched.items() if label is not None
    }
    return images, [label_of[path] for path in images.values()]


def _raise_unpaired(
    image_folder: Path,
    label_folder: Path,
    images: Mapping[str, Path],  # by relative path
    labels: Mapping[str, Path],
    matched: Mapping[str, str | None],
    orphans: Sequence[str],
    patterns: tuple[Pattern, Pattern],
    skipped: Mapping[Path, str],
) -> NoReturn:
    """Raises FileNotFoundError about images and labels without their counterparts."""
    without = [name for name, label in matched.items() if label is None]
    pairs = len(matched) - len(without)
    proposal = and_skipped(skipped)
    if pairs:
        proposal += f". skip_unpaired = true uses the {pairs} pairs alone"
    if image_folder.resolve() != label_folder.resolve():
        best = propose_kinds(image_folder, label_folder, list(images), list(labels)).best
        if best is not None and best.matched > pairs:  # better than the settings
            proposal += _describe_proposal(best, patterns, f" of {len(images)}")
    if near := find_near_names(without, orphans):
        written = " and ".join(map(ascii, near))
        proposal += (
            f". {written} differ only in case, zeros, spaces or invisible characters: rename such files"
        )
    if without:
        key = patterns[0].key(without[0])
        assert key is not None
        expected = label_folder / patterns[1].fill(key)
        extension = "" if expected.suffix else " with an extension of an image"
        raise FileNotFoundError(
            f"{len(without)} of {len(matched)} images have no label of their name in {label_folder}, such as "
            f"{', '.join(without[:3])}: the label of {without[0]} would be {expected}{extension}, but the "
            f"labels are {', '.join(list(labels)[:3])}{proposal}"
        )
    raise FileNotFoundError(
        f"{len(orphans)} of {len(labels)} labels in {label_folder} have no image of their name in "
        f"{image_folder}, such as {', '.join(orphans[:3])}{proposal}"
    )


def _by_relative_path(folder: Path, files: Mapping[str, Path]) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in files.values()}


def _separate(
    image_folder: Path,
    images: dict[str, Path],
    label_folder: Path,
    labels: dict[str, Path],
    patterns: tuple[Pattern, Pattern],
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Returns images and labels, each without the files of the other if one folder is in the other."""
    first, second = image_folder.resolve(), label_folder.resolve()
    if (first == second and patterns[0].text == "*" != patterns[1].text) or first in second.parents:
        others = set(labels.values()) if first == second else _below(images.values(), image_folder, second)
        images = {name: path for name, path in images.items() if path not in others}
    elif (first == second and patterns[1].text == "*" != patterns[0].text) or second in first.parents:
        others = set(images.values()) if first == second else _below(labels.values(), label_folder, first)
        labels = {name: path for name, path in labels.items() if path not in others}
    return images, labels


def _below(paths: Iterable[Path], folder: Path, inner: Path) -> set[Path]:
    """Returns those of the paths in a folder that are in a folder within."""
    part = folder / inner.relative_to(folder.resolve())
    return {path for path in paths if path.is_relative_to(part)}


def _describe_proposal(
    proposal: PatternProposal | None, patterns: tuple[Pattern, Pattern], of_all: str = ""
) -> str:
    lines = [] if proposal is None else proposal.lines(*(pattern.text for pattern in patterns))
    if proposal is None or not lines:
        return ""
    return f". These settings match {proposal.matched}{of_all} images: {', '.join(lines)}"


def _refuse_one_folder(folder: Path, images: Mapping[str, Path], patterns: tuple[Pattern, Pattern]) -> None:
    """Raises ValueError, since all files would be images, and their own labels."""
    names = list(_by_relative_path(folder, images))
    proposal = propose_kinds(folder, folder, names, names).best
    raise ValueError(
        f"images and labels are both in {folder}: set image_pattern and label_pattern to the names of each"
        f"{_describe_proposal(proposal, patterns)}"
    )


def _refuse_label_maps(folder: Path, images: Mapping[str, Path]) -> None:
    """Raises ValueError if the names say that label maps lie among the images."""
    by_path = _by_relative_path(folder, images)
    if not (maps := find_label_maps(list(by_path))):
        return
    label, image = next(iter(maps.items()))
    named = set(label_names(list(by_path)))  # more than `maps`, if images have several kinds
    pattern = pattern_of_some([name for name in by_path if name not in named], sorted(named))
    advice = f'image_pattern = "{pattern}"' if pattern else 'image_pattern, such as "**/*.jpg"'
    raise ValueError(
        f"{len(named)} of {len(by_path)} files in {folder} seem to be label maps of the others, such as "
        f"{label} of {image}: name the folder of the images alone, or set {advice}"
    )
