"""SYNTHIA-RAND-CITYSCAPES (Ros et al., 2016)."""

from pathlib import Path

from torch import Tensor

from cpsl.data.class_tables import to_classes
from cpsl.data.files import find_files, find_labels
from cpsl.data.labels import CITYSCAPES_16, SYNTHIA_IDS, LabelSpace
from cpsl.data.names import IMAGE_SUFFIXES
from cpsl.data.reading import read_png16
from cpsl.data.sample import Files


class Synthia(Files):
    """Images of a simulator, as unpacked: `RGB/` and `GT/LABELS/`.

    The labels are 16-bit PNGs with the class in the first channel and the instance in the second.

    Args:
        root: Folder with `RGB` and `GT/LABELS`.
        label_space: Classes by Cityscapes' names, such as its 16 or 13 classes; others are ignored.

    Attributes:
        names: Key of each image, such as "0000001".

    Raises:
        FileNotFoundError: A folder is missing or empty, or images have no labels; some are named.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for folder, mode in (("RGB", "RGB"), ("GT/LABELS", "I;16")):
        ...     (root / folder).mkdir(parents=True)
        ...     Image.new(mode, (2, 1), 3).save(root / folder / "0000001.png")
        >>> Synthia(root)[0].label  # 3 is road
        tensor([[0, 0]], dtype=torch.uint8)
    """

    def __init__(self, root: str | Path, label_space: LabelSpace = CITYSCAPES_16) -> None:
        skipped: dict[Path, str] = {}
        images = find_files(Path(root) / "RGB", IMAGE_SUFFIXES, "SYNTHIA images", skipped=skipped)
        labels = find_labels(images, Path(root) / "GT" / "LABELS", "SYNTHIA labels")
        super().__init__(label_space, images, labels, label_space.index_of_ids(SYNTHIA_IDS), skipped=skipped)

    def _read_label(self, path: Path) -> tuple[Tensor, int]:
        return to_classes(read_png16(path), self._table, path), 1
