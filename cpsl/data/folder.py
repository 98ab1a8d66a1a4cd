"""Images and labels in any two folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from cpsl.data.labels import IGNORE_INDEX, LabelSpace, distinct_palette
from cpsl.data.reading import find_files, find_labels, read_stored_label, to_classes
from cpsl.data.sample import Files


class SegmentationFolder(Files):
    """Images, and labels with the same relative paths.

    `images/berlin/a.jpg` belongs to `labels/berlin/a.png`. Labels hold one number per pixel: gray or
    palette, 8 or 16 bits.

    Args:
        images: Folder of PNG or JPEG images.
        labels: Folder of PNG labels; None if there are none.
        classes: Names of the classes in the order of their indices, or a label space. Without labels they may
            be omitted: `label_space` then has the single class "unlabeled".
        palette: Colors (R, G, B) of the classes, 0...255; generated, or the label space's, if None.
        ids: Stored value to class name or index, or to 255 to ignore it; None if class indices are stored.

    Attributes:
        names: Key of each image: its relative path without suffix.

    Raises:
        FileNotFoundError: A folder is missing or empty, or images or labels lack their counterparts.
        ValueError: There are labels but no classes, or `ids` names an unknown class.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 4)).save(folder / "a.jpg")
        >>> dataset = SegmentationFolder(folder)
        >>> dataset[0].image.shape, dataset[0].label, dataset[0].name
        (torch.Size([3, 4, 8]), None, 'a')
    """

    def __init__(
        self,
        images: str | Path,
        labels: str | Path | None = None,
        classes: Sequence[str] | LabelSpace = (),
        palette: Sequence[tuple[int, int, int]] | None = None,
        ids: Mapping[int, int] | Mapping[int, str] | None = None,
    ) -> None:
        if not classes:
            if labels is not None:
                raise ValueError(f"classes must name the classes in {labels}, the labels of {images}")
            classes = ("unlabeled",)
        if not isinstance(classes, LabelSpace):
            classes = LabelSpace(tuple(classes), distinct_palette(len(classes)))
        if palette is not None:
            classes = LabelSpace(classes.names, tuple(palette))
        indices = _index_of_ids(classes, ids)
        found = find_files(Path(images), (".png", ".jpg", ".jpeg"), "images")
        label_files: Sequence[Path | None] = [None] * len(found)
        if labels is not None:
            label_files = find_labels(found, Path(labels), "labels", image_folder=Path(images))
        super().__init__(classes, found, label_files, indices)

    def _read_label(self, path: Path) -> Tensor:
        stored = read_stored_label(path)
        try:
            return to_classes(stored, self._table, path)
        except ValueError as error:
            raise ValueError(f"{error}; `ids` maps each stored number to its class, or to 255") from None


def _index_of_ids(classes: LabelSpace, ids: Mapping[int, int] | Mapping[int, str] | None) -> dict[int, int]:
    """Returns the class index or 255 of each stored value."""
    indices = {index: index for index in [*range(len(classes)), IGNORE_INDEX]}
    if ids is None:
        return indices
    index_of = indices | {name: index for index, name in enumerate(classes.names)}
    wrong = sorted({str(value) for value in ids.values() if value not in index_of})
    if wrong:
        raise ValueError(
            f"ids point to {', '.join(wrong)}, but the classes are "
            f"{', '.join(f'{i} {name}' for i, name in enumerate(classes.names))} and 255 (ignored)"
        )
    return {stored: index_of[value] for stored, value in ids.items()}
