"""GTA5 (Richter et al., 2016)."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from cpsl.data.labels import CITYSCAPES_19, CITYSCAPES_IDS, LabelSpace
from cpsl.data.reading import (
    find_files,
    id_table,
    labels_of,
    png_size,
    read_image,
    read_stored_label,
    require_same_size,
    to_classes,
)
from cpsl.data.sample import Sample


class GTA5:
    """Images of a game with Cityscapes' labels, as unpacked: `images/` and `labels/`.

    No `split.mat` is needed: every image is used, but for the few of the original whose label has another
    size. Those are left out with a warning that names them. To find them, the first bytes of each PNG are
    read, which takes about two seconds for all 24,966 images.

    Args:
        root: Folder with `images` and `labels`.
        label_space: Classes to tell apart, by Cityscapes' names; others are ignored.

    Attributes:
        names: Key of each image, such as "00001".
        mismatched: Keys of the images that are left out.

    Raises:
        FileNotFoundError: A folder is missing or empty, or images have no labels; some are named.
        ValueError: No label has the size of its image.

    Example:
        >>> import tempfile
        >>> from cpsl.data.streets import write_streets
        >>> root = Path(tempfile.mkdtemp())
        >>> write_streets(root, layout="gta5", style="game", count=2, size=(64, 128))
        >>> image, label, name = GTA5(root)[1]
        >>> image.shape, label.shape, name
        (torch.Size([3, 64, 128]), torch.Size([64, 128]), '00002')
    """

    def __init__(self, root: str | Path, label_space: LabelSpace = CITYSCAPES_19) -> None:
        self.label_space = label_space
        images = find_files(Path(root) / "images", (".png", ".jpg", ".jpeg"), "GTA5 images")
        labels = find_files(Path(root) / "labels", (".png",), "GTA5 labels")
        label_files = labels_of(list(images), labels, Path(root) / "labels")
        same = _have_same_size(list(images.values()), label_files)
        self.mismatched = [name for name, kept in zip(images, same, strict=True) if not kept]
        self.names = [name for name, kept in zip(images, same, strict=True) if kept]
        if not self.names:
            raise ValueError(
                f"no label in {root}/labels has the size of its image in {root}/images"
            )
        if self.mismatched:
            warnings.warn(
                f"{root}: {len(self.mismatched)} of {len(images)} images are left out, since their label "
                f"has another size: {', '.join(self.mismatched[:20])}",
                stacklevel=2,
            )
        self._images = [images[name] for name in self.names]
        self._labels = [labels[name] for name in self.names]
        self._table = id_table(label_space.index_of_ids(CITYSCAPES_IDS))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Returns image, label and name; see `Sample`.

        Raises:
            ValueError: A file is damaged, the sizes differ, or the label has unknown ids.
        """
        image, path = self.image(index), self._labels[index]
        label = to_classes(read_stored_label(path), self._table, path)
        require_same_size(image, label, self._images[index], path)
        return Sample(image, label, self.names[index])

    def image(self, index: int) -> Tensor:
        """Returns the image alone, (3, H, W) uint8."""
        return read_image(self._images[index])


def _have_same_size(images: Sequence[Path], labels: Sequence[Path]) -> list[bool]:
    """Compares what the files say about their size; unreadable ones count as equal, to be named when read."""
    with ThreadPoolExecutor(16) as pool:  # a network drive is slow to open a file, not to open many
        pairs = zip(pool.map(png_size, images), pool.map(png_size, labels), strict=True)
        return [None in pair or pair[0] == pair[1] for pair in pairs]
