"""Pseudo labels on disk: soft ones with one byte per value, hard ones as label maps."""

import math
import os
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from cpsl._internal.files import is_passing, write_atomically
from cpsl.data.labels import IGNORE_INDEX
from cpsl.data.reading import load_verified

WRITER = "cpsl"
"""Text in the PNGs of this package; labels of other origin do not have it."""

_CLASSES = "cpsl classes"  # text entry of the PNG with the number of maps
_REMEDY = "delete it to have it made again"


class _Store:
    """Base of the stores: one PNG per image in a folder."""

    def __init__(self, folder: str | Path, num_classes: int | None) -> None:
        self.folder = Path(folder)
        self.num_classes = num_classes

    def __contains__(self, name: str) -> bool:
        return path_of(self.folder, name).exists()

    def missing(self, names: Iterable[str]) -> list[str]:
        """Returns the names without a file, in their order.

        Folders are listed once: a question for each of 100,000 files would take minutes on a network drive.
        """
        listed: dict[str, set[str]] = {}

        def is_listed(name: str) -> bool:
            parent, _, last = name.rpartition("/")
            if parent not in listed:
                listed[parent] = _files_in(self.folder / parent)
            return last not in ("", ".") and f"{last}.png" in listed[parent]

        # Names that are not listed may still exist, where the system does not distinguish their letters.
        return [name for name in names if not (_is_plain(name) and is_listed(name)) and name not in self]


class SoftLabelStore(_Store):
    """Class probabilities of images, one PNG per image in a folder.

    A probability p is stored as the byte round(255·√p), the K maps one above the other in a gray PNG; 19
    maps of 129x257 need about 0.2 MB. The square root makes small probabilities precise: the error of p is at
    most √p/255 + 4e-6, and probabilities below 3.8e-6 become zero. `read` then divides by the sum over the
    classes, which is within √K/255 + 4e-6 · K of one.

    Args:
        folder: Created when the first map is written.
        num_classes: Number K of maps that a file must have; any if None.

    Example:
        >>> import tempfile
        >>> store = SoftLabelStore(tempfile.mkdtemp())
        >>> store.write("city/image", torch.tensor([0.9, 0.1]).reshape(2, 1, 1))
        >>> store.read("city/image").flatten().round(decimals=2)
        tensor([0.9000, 0.1000])
        >>> store.missing(["city/image", "city/other"])
        ['city/other']
    """

    def __init__(self, folder: str | Path, num_classes: int | None = None) -> None:
        super().__init__(folder, num_classes)

    def write(self, name: str, probabilities: Tensor) -> None:
        """Stores the map of an image, (K, h, w) probabilities that sum to 1 over the classes, atomically.

        Raises:
            ValueError: The shape differs, the values are not probabilities (within 0.01), or the name points
                outside of the folder.
        """
        path = path_of(self.folder, name)
        if probabilities.ndim != 3:
            raise ValueError(f"{path}: (K, h, w) expected, got shape {tuple(probabilities.shape)}")
        p = probabilities.float()
        total = p.sum(dim=0)
        # In this form NaN fails, since every comparison with it is false.
        if not ((p >= 0).all() and ((total - 1).abs() < 1e-2).all()):
            raise ValueError(
                f"{path}: the values must be probabilities that sum to 1 over the classes, got "
                f"{p.min():.3g} to {p.max():.3g} and sums of {total.min():.3g} to {total.max():.3g}"
            )
        stored = (p.sqrt() * 255).round().clamp_max(255).to(torch.uint8).cpu()
        note = PngImagePlugin.PngInfo()
        note.add_text(_CLASSES, str(len(stored)))
        picture = Image.fromarray(stored.flatten(0, 1).numpy())
        # PNGs with a palette, here of grays, are read and written without filters, which is a fifth faster.
        picture.putpalette([gray for gray in range(256) for _ in range(3)])
        save_png(path, picture, note)

    def read(self, name: str) -> Tensor:
        """Returns the map of an image, (K, h, w) float32.

        Raises:
            FileNotFoundError: There is no map.
            ValueError: The file is damaged or not a map of this store.
        """
        path = path_of(self.folder, name)
        picture = _load(path)
        note = str(picture.info.get(_CLASSES))
        classes = int(note) if note.isdecimal() else 0
        if picture.mode not in ("L", "P") or classes < 1 or picture.height % classes:
            raise ValueError(f"{path} is not a map of soft labels; {_REMEDY}")
        if self.num_classes not in (None, classes):
            raise ValueError(f"{path} has {classes} classes instead of {self.num_classes}; {_REMEDY}")
        stored = torch.from_numpy(np.array(picture)).reshape(classes, -1, picture.width)
        p = stored.float().square_()
        total = p.sum(dim=0)
        # The error of each root is at most half a byte, and that of the written sum 0.01.
        slack = 255**2 * (math.sqrt(classes) / 255 + 4e-6 * classes + 0.01)
        if (total - 255**2).abs().max() > slack:
            sums = f"{total.min() / 255**2:.3g} to {total.max() / 255**2:.3g}"
            raise ValueError(f"{path} does not hold probabilities: they sum to {sums}; {_REMEDY}")
        return p.div_(total)


class HardLabelStore(_Store):
    """Label maps of images as PNGs of class indices in a folder.

    Args:
        folder: Created when the first map is written.
        palette: Colors in which viewers show the classes; gray if None.
        ignore_index: Value of ignored pixels in the files, such as the authors' 250; in memory it is 255.
        num_classes: Number K of classes that a file may contain; any if None.

    Raises:
        ValueError: ignore_index lies outside 1...255.

    Example:
        >>> import tempfile
        >>> store = HardLabelStore(tempfile.mkdtemp())
        >>> store.write("city/image", torch.tensor([[0, 18, 255]], dtype=torch.uint8))
        >>> store.read("city/image")
        tensor([[  0,  18, 255]], dtype=torch.uint8)
    """

    def __init__(
        self,
        folder: str | Path,
        palette: tuple[tuple[int, int, int], ...] | None = None,
        ignore_index: int = IGNORE_INDEX,
        num_classes: int | None = None,
    ) -> None:
        if not 1 <= ignore_index <= 255:
            raise ValueError(f"ignore_index must lie in 1...255, got {ignore_index}")
        super().__init__(folder, num_classes)
        self.palette = palette
        self.ignore_index = ignore_index

    def write(self, name: str, label: Tensor) -> None:
        """Stores the labels of an image, (H, W) uint8 class indices and 255 where ignored, atomically.

        Raises:
            ValueError: The shape or dtype differs, a class has the value of ignored pixels, or the name
                points outside of the folder.
        """
        path = path_of(self.folder, name)
        if label.ndim != 2 or label.dtype != torch.uint8:
            raise ValueError(f"{path}: (H, W) uint8 expected, got {label.dtype} {tuple(label.shape)}")
        label = label.cpu()
        if self.ignore_index != IGNORE_INDEX:
            if (label == self.ignore_index).any():
                raise ValueError(f"{path}: {self.ignore_index} marks ignored pixels, but is a class here")
            label = label.masked_fill(label == IGNORE_INDEX, self.ignore_index)
        picture = Image.fromarray(label.numpy())
        if self.palette is not None:
            colors = [value for color in self.palette for value in color]
            picture.putpalette(colors + [0] * (3 * (IGNORE_INDEX + 1) - len(colors)))
        save_png(path, picture)

    def read(self, name: str) -> Tensor:
        """Returns the labels of an image, (H, W) uint8.

        Raises:
            FileNotFoundError: There are no labels.
            ValueError: The file is damaged or not a label map of this store.
        """
        path = path_of(self.folder, name)
        picture = _load(path)
        if picture.mode not in ("L", "P"):
            raise ValueError(f"{path} is not a label map; {_REMEDY}")
        label = torch.from_numpy(np.array(picture))
        if self.ignore_index != IGNORE_INDEX:
            label = label.masked_fill_(label == self.ignore_index, IGNORE_INDEX)
        if self.num_classes is not None:
            wrong = label[(label >= self.num_classes) & (label != IGNORE_INDEX)]
            if len(wrong):
                raise ValueError(
                    f"{path} has the label {wrong[0]}, but there are {self.num_classes} classes; {_REMEDY}"
                )
        return label


def path_of(folder: Path, name: str) -> Path:
    """Returns the PNG of an image in a folder; raises ValueError if the name points outside of it."""
    parts = PurePosixPath(name).parts
    if not parts or not _is_plain(name):
        raise ValueError(f"the name {name!r} is not a path below a folder")
    return folder.joinpath(*parts[:-1], f"{parts[-1]}.png")


def _is_plain(name: str) -> bool:
    """Returns whether a name stays below the folder that it is appended to."""
    return not (name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"))


def _files_in(folder: Path) -> set[str]:
    """Returns the names in a folder, without those of links, whose targets may not exist."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_symlink()}
    except OSError:  # such as a missing folder
        return set()


def save_png(path: Path, picture: Image.Image, note: PngImagePlugin.PngInfo | None = None) -> None:
    """Writes a picture atomically, marked as written by this package."""
    note = note or PngImagePlugin.PngInfo()
    note.add_text("Software", WRITER)
    # Run-length coding is the fastest, and neighboring bytes of label maps are mostly equal.
    options = {"compress_type": zlib.Z_RLE, "pnginfo": note}
    write_atomically(path, lambda partial: picture.save(partial, "PNG", **options))


def is_own(path: Path) -> bool:
    """Returns whether a file is a PNG that `save_png` has written, so that it may be replaced.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_png(folder / "own.png", Image.new("L", (2, 2)))
        >>> Image.new("L", (2, 2)).save(folder / "other.png")
        >>> is_own(folder / "own.png"), is_own(folder / "other.png")
        (True, False)
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get("Software") == WRITER
    except Exception as error:  # Pillow's parsers raise nearly anything on broken bytes
        if is_passing(error):
            raise
        return False


def _load(path: Path) -> Image.Image:
    try:
        return load_verified(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there are no pseudo labels at {path}") from None
    except UnidentifiedImageError:
        why: object = "it is not a PNG"
    except Exception as error:  # Pillow's parsers raise nearly anything on broken bytes
        if is_passing(error):
            error.add_note(f"This happened while reading {path}.")
            raise
        why = error
    raise ValueError(f"{path} is damaged; {_REMEDY} ({why})")
