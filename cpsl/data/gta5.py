"""GTA5 (Richter et al., 2016)."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path

from cpsl.data.files import find_files, find_labels
from cpsl.data.labels import CITYSCAPES_19, CITYSCAPES_IDS, LabelSpace
from cpsl.data.names import IMAGE_SUFFIXES
from cpsl.data.reading import png_size
from cpsl.data.sample import Files


class GTA5(Files):
    """Images of a game with the classes of Cityscapes, as unpacked: `images/` and `labels/`.

    `split.mat` is not needed: all images are used except the few whose label has another size, which are
    skipped with a warning that names them. Reading the sizes of all 24,966 images takes about two seconds.

    Args:
        root: Folder with `images` and `labels`.
        label_space: Classes by Cityscapes' names; others are ignored.

    Attributes:
        names: Key of each image, such as "00001".
        mismatched: Keys of the skipped images.

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
        folder = Path(root) / "labels"
        skipped: dict[Path, str] = {}
        images = find_files(Path(root) / "images", IMAGE_SUFFIXES, "GTA5 images", skipped=skipped)
        labels = find_labels(images, folder, "GTA5 labels")
        same = _have_same_size(list(images.values()), labels)
        self.mismatched = [name for name, kept in zip(images, same, strict=True) if not kept]
        if len(self.mismatched) == len(images):
            raise ValueError(f"no label in {folder} has the size of its image in {root}/images")
        if self.mismatched:
            warnings.warn(
                f"{root}: {len(self.mismatched)} of {len(images)} images are skipped, since their "
                f"label has another size: {', '.join(self.mismatched[:20])}",
                stacklevel=2,
            )
        images, labels = dict(compress(images.items(), same)), list(compress(labels, same))
        super().__init__(
            label_space, images, labels, label_space.index_of_ids(CITYSCAPES_IDS), skipped=skipped
        )


def _have_same_size(images: Sequence[Path], labels: Sequence[Path]) -> list[bool]:
    """Compares the sizes in the headers; unreadable files count as equal and fail when read."""
    with ThreadPoolExecutor(16) as pool:  # network drives open many files at once as fast as one
        pairs = zip(pool.map(png_size, images), pool.map(png_size, labels), strict=True)
        return [None in pair or pair[0] == pair[1] for pair in pairs]
