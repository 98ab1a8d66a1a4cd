"""Images and labels in folders of one's own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from cpsl.data.labels import IGNORE_INDEX, LabelSpace, distinct_palette
from cpsl.data.reading import (
    IdTable,
    find_files,
    id_table,
    labels_of,
    read_image,
    read_stored_label,
    require_same_size,
    to_classes,
)
from cpsl.data.sample import Sample


class SegmentationFolder:
    """Images, and labels of the same relative path, in any folders with any subfolders.

    `images/berlin/a.jpg` belongs to `labels/berlin/a.png`. Labels hold one number a pixel: grey or
    palette, 8 or 16 bits.

    Args:
        images: Folder of PNG or JPEG images.
        labels: Folder of PNG labels; None where there are none.
        classes: Names of the classes, in the order of their indices, or a whole label space.
        palette: Colours (R, G, B) of the classes, 0...255; chosen, or the label space's, if None.
        ids: Stored value to class name or index, 255 to ignore; None if stored values are the class
            indices and 255.

    Attributes:
        names: Key of each image: its relative path without suffix.

    Raises:
        FileNotFoundError: A folder is missing or empty, or an image or a label is without the other; some
            are named.
        ValueError: `ids` points to a class that is not there.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 4)).save(folder / "a.jpg")
        >>> dataset = SegmentationFolder(folder, classes=["road", "car"])
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
        if not isinstance(classes, LabelSpace):
            classes = LabelSpace(tuple(classes), distinct_palette(len(classes)))
        if palette is not None:
            classes = LabelSpace(classes.names, tuple(palette))
        self.label_space = classes
        self._table = _table(classes, ids)
        found = find_files(Path(images), (".png", ".jpg", ".jpeg"), "images")
        self.names = list(found)
        self._images = list(found.values())
        self._labels: list[Path] | None = None
        if labels is not None:
            label_files = find_files(Path(labels), (".png",), "labels")
            self._labels = labels_of(self.names, label_files, Path(labels))
            orphans = [name for name in label_files if name not in found]
            if orphans:
                raise FileNotFoundError(
                    f"{len(orphans)} of {len(label_files)} labels in {labels} have no image of their "
                    f"name in {images}, such as {', '.join(orphans[:3])}"
                )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Returns image, label and name; see `Sample`.

        Raises:
            ValueError: A file is damaged, the sizes differ, or the label has unknown ids.
        """
        image = self.image(index)
        if self._labels is None:
            return Sample(image, None, self.names[index])
        path = self._labels[index]
        stored = read_stored_label(path)
        try:
            label = to_classes(stored, self._table, path)
        except ValueError as error:
            raise ValueError(
                f"{error}; `ids` says which class each stored number is, 255 to ignore it"
            ) from None
        require_same_size(image, label, self._images[index], path)
        return Sample(image, label, self.names[index])

    def image(self, index: int) -> Tensor:
        """Returns the image alone, (3, H, W) uint8."""
        return read_image(self._images[index])


def _table(classes: LabelSpace, ids: Mapping[int, int] | Mapping[int, str] | None) -> IdTable:
    """Returns the class of each stored value, for `to_classes`."""
    indices = {index: index for index in [*range(len(classes)), IGNORE_INDEX]}
    if ids is None:
        return id_table(indices)
    index_of: dict[int | str, int] = {name: index for index, name in enumerate(classes.names)}
    index_of |= {index: index for index in indices}
    wrong = sorted({str(value) for value in ids.values() if value not in index_of})
    if wrong:
        raise ValueError(
            f"ids point to {', '.join(wrong)}, but the classes are "
            f"{', '.join(f'{i} {name}' for i, name in enumerate(classes.names))} and 255, which is ignored"
        )
    return id_table({stored: index_of[value] for stored, value in ids.items()})
