"""GTA5 (Richter et al., 2016)."""

from pathlib import Path

from torch import Tensor

from cpsl.data.labels import CITYSCAPES_19, CITYSCAPES_IDS, LabelSpace
from cpsl.data.reading import (
    find_files,
    id_table,
    read_image,
    read_stored_label,
    require_same_size,
    to_classes,
)
from cpsl.data.sample import Sample


class GTA5:
    """Images of a game with Cityscapes' labels, as unpacked: `images/` and `labels/`.

    No `split.mat` is needed: all pairs of files are used. A handful of the original labels have another
    size than their image; reading one raises an error that names it, `cpsl.data.check_dataset` lists them
    all, and deleting either file leaves the pair out.

    Args:
        root: Folder with `images` and `labels`.
        label_space: Classes to tell apart, by Cityscapes' names; others are ignored.

    Attributes:
        names: Key of each image, such as "00001".

    Raises:
        FileNotFoundError: A folder is missing or empty.
    """

    def __init__(self, root: str | Path, label_space: LabelSpace = CITYSCAPES_19) -> None:
        self.label_space = label_space
        images = find_files(Path(root) / "images", (".png", ".jpg", ".jpeg"), "GTA5 images")
        labels = find_files(Path(root) / "labels", (".png",), "GTA5 labels")
        self.names = [name for name in images if name in labels]
        if not self.names:
            raise FileNotFoundError(f"no image in {root}/images has a label of its name in {root}/labels")
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
