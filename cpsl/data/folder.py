"""Images and labels in folders of one's own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from cpsl.data.labels import IGNORE_INDEX, LabelSpace, distinct_palette
from cpsl.data.reading import (
    find_files,
    id_table,
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
        palette: Colours (R, G, B) of the classes, 0...255; chosen if None.
        ids: Stored value to class index, 255 to ignore; None if stored values are the class indices and
            255.

    Attributes:
        names: Key of each image: its relative path without suffix.

    Raises:
        FileNotFoundError: A folder is missing or empty, or images have no labels; some are named.
        ValueError: `ids` points to a class that is not there.
    """

    def __init__(
        self,
        images: str | Path,
        labels: str | Path | None = None,
        classes: Sequence[str] | LabelSpace = (),
        palette: Sequence[tuple[int, int, int]] | None = None,
        ids: Mapping[int, int] | None = None,
    ) -> None:
        if not isinstance(classes, LabelSpace):
            colors = distinct_palette(len(classes)) if palette is None else tuple(palette)
            classes = LabelSpace(tuple(classes), colors)
        self.label_space = classes
        found = find_files(Path(images), (".png", ".jpg", ".jpeg"), "images")
        self.names = list(found)
        self._images = list(found.values())
        self._labels: list[Path] | None = None
        if labels is not None:
            label_files = find_files(Path(labels), (".png",), "labels")
            without = [name for name in self.names if name not in label_files]
            if without:
                raise FileNotFoundError(
                    f"{len(without)} of {len(self.names)} images in {images} have no label of their "
                    f"name in {labels}, such as {', '.join(without[:3])}"
                )
            self._labels = [label_files[name] for name in self.names]
        if ids is None:
            ids = {index: index for index in [*range(len(classes)), IGNORE_INDEX]}
        wrong = sorted({v for v in ids.values() if v != IGNORE_INDEX and not 0 <= v < len(classes)})
        if wrong:
            raise ValueError(f"ids point to the classes {wrong}, but there are only {len(classes)}")
        self._table = id_table(ids)

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
        label = to_classes(read_stored_label(path), self._table, path)
        require_same_size(image, label, self._images[index], path)
        return Sample(image, label, self.names[index])

    def image(self, index: int) -> Tensor:
        """Returns the image alone, (3, H, W) uint8."""
        return read_image(self._images[index])
