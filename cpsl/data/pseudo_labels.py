"""Pseudo labels on disk: soft ones in a byte a value, hard ones as pictures."""

import math
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from cpsl.data.labels import IGNORE_INDEX
from cpsl.data.reading import load_verified
from cpsl.files import write_atomically

_CLASSES = "cpsl classes"  # entry of the PNG that says how many maps it holds


class SoftLabelStore:
    """Class probabilities of images, in a folder.

    A probability p is stored as the byte round(255·√p), the K maps one above the other in a PNG of greys
    that any viewer shows; 19 maps of 129x257 take about 0.2 MB. The square root spends the bytes on small
    probabilities: p is off by at most √p/255 + 4e-6, that is 0.004 near one and 0.0004 near 0.01;
    probabilities below 3.8e-6 become zero. Then what is read is divided by its sum over the classes, which
    is within √K/255 + 4e-6 · K of one.

    Args:
        folder: Made when the first map is written.
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
        self.folder = Path(folder)
        self.num_classes = num_classes

    def __contains__(self, name: str) -> bool:
        return path_of(self.folder, name).exists()

    def missing(self, names: Iterable[str]) -> list[str]:
        """Returns the names that have no map yet; none if the store is complete."""
        return [name for name in names if name not in self]

    def write(self, name: str, probabilities: Tensor) -> None:
        """Stores the map of an image; it is there as a whole or not at all.

        Args:
            name: Key of the image.
            probabilities: (K, h, w) in 0...1, summing to 1 over the classes.

        Raises:
            ValueError: The shape is another, the values are no probabilities (to 0.01), or the name leads
                out of the folder.
        """
        path = path_of(self.folder, name)
        if probabilities.ndim != 3:
            raise ValueError(f"{path}: (K, h, w) expected, got shape {tuple(probabilities.shape)}")
        p = probabilities.float()
        # Not written as "any below zero", since every comparison with NaN is false.
        if not (bool((p >= 0).all()) and bool(((p.sum(dim=0) - 1).abs() < 1e-2).all())):
            raise ValueError(
                f"{path}: the values must be probabilities that sum to 1 over the classes, got "
                f"{p.min():.3g} to {p.max():.3g} and sums of {p.sum(dim=0).min():.3g} to "
                f"{p.sum(dim=0).max():.3g}"
            )
        stored = (p.sqrt() * 255).round().clamp_max(255).to(torch.uint8).cpu()
        note = PngImagePlugin.PngInfo()
        note.add_text(_CLASSES, str(len(stored)))
        picture = Image.fromarray(stored.flatten(0, 1).numpy())
        # With a palette, of greys, PNGs are read and written without filters: that is faster by a fifth.
        picture.putpalette([grey for grey in range(256) for _ in range(3)])
        save_png(path, picture, note)

    def read(self, name: str) -> Tensor:
        """Returns the map of an image, (K, h, w) float32.

        Raises:
            FileNotFoundError: There is none.
            ValueError: The file is damaged or of something else.
        """
        path = path_of(self.folder, name)
        picture = _load(path)
        note = str(picture.info.get(_CLASSES))
        classes = int(note) if note.isdecimal() else 0
        if picture.mode not in ("L", "P") or classes < 1 or picture.height % classes:
            raise ValueError(f"{path} is no map of soft labels; delete it to have it made again")
        if self.num_classes not in (None, classes):
            raise ValueError(
                f"{path} has {classes} classes instead of {self.num_classes}; "
                "delete it to have it made again"
            )
        stored = torch.from_numpy(np.array(picture)).reshape(classes, -1, picture.width)
        p = stored.float().square_()
        total = p.sum(dim=0)
        # Each root is off by half a byte at most, and what was written may be off by 0.01.
        slack = 255**2 * (math.sqrt(classes) / 255 + 4e-6 * classes + 0.01)
        if (total - 255**2).abs().max() > slack:
            raise ValueError(
                f"{path} holds no probabilities: they sum to {total.min() / 255**2:.3g} to "
                f"{total.max() / 255**2:.3g}; delete it to have it made again"
            )
        return p.div_(total)


class HardLabelStore:
    """Label maps of images, in a folder, as PNGs of class indices.

    Args:
        folder: Made when the first map is written.
        palette: Colours that viewers show the classes in; grey if None.
        void: Number that ignored pixels have in the files, more than there are classes; the tools of the
            authors' release write 250. What is read has 255 again.
        num_classes: Number K of the classes that a file may name; any if None.

    Raises:
        ValueError: void lies outside 1...255.

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
        void: int = IGNORE_INDEX,
        num_classes: int | None = None,
    ) -> None:
        if not 1 <= void <= 255:
            raise ValueError(f"void must lie in 1...255, got {void}")
        self.folder = Path(folder)
        self.palette = palette
        self.void = void
        self.num_classes = num_classes

    def __contains__(self, name: str) -> bool:
        return path_of(self.folder, name).exists()

    def missing(self, names: Iterable[str]) -> list[str]:
        """Returns the names that have no labels yet; none if the store is complete."""
        return [name for name in names if name not in self]

    def write(self, name: str, label: Tensor) -> None:
        """Stores the labels of an image; they are there as a whole or not at all.

        Args:
            name: Key of the image.
            label: (H, W) uint8 class indices, 255 where ignored.

        Raises:
            ValueError: The shape or dtype is another, a class has the number that means void, or the name
                leads out of the folder.
        """
        path = path_of(self.folder, name)
        if label.ndim != 2 or label.dtype != torch.uint8:
            raise ValueError(
                f"{path}: (H, W) uint8 expected, got {label.dtype} {tuple(label.shape)}"
            )
        label = label.cpu()
        if self.void != IGNORE_INDEX:
            if (label == self.void).any():
                raise ValueError(
                    f"{path}: {self.void} means void in these files, but it is a class here"
                )
            label = label.masked_fill(label == IGNORE_INDEX, self.void)
        picture = Image.fromarray(label.numpy())
        if self.palette is not None:
            colors = [value for color in self.palette for value in color]
            picture.putpalette(colors + [0] * (3 * (IGNORE_INDEX + 1) - len(colors)))
        save_png(path, picture)

    def read(self, name: str) -> Tensor:
        """Returns the labels of an image, (H, W) uint8.

        Raises:
            FileNotFoundError: There are none.
            ValueError: The file is damaged or of something else.
        """
        path = path_of(self.folder, name)
        picture = _load(path)
        if picture.mode not in ("L", "P"):
            raise ValueError(f"{path} is no label map; delete it to have it made again")
        label = torch.from_numpy(np.array(picture))
        if self.void != IGNORE_INDEX:
            label = label.masked_fill_(label == self.void, IGNORE_INDEX)
        if self.num_classes is not None:
            wrong = label[(label >= self.num_classes) & (label != IGNORE_INDEX)]
            if len(wrong):
                raise ValueError(
                    f"{path} has the label {wrong[0]}, but there are {self.num_classes} classes; "
                    "delete it to have it made again"
                )
        return label


def path_of(folder: Path, name: str) -> Path:
    """Returns the PNG of an image in a folder; raises ValueError if the name leads out of it."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise ValueError(f"the name {name!r} is no path below a folder")
    return folder.joinpath(*parts[:-1], f"{parts[-1]}.png")


def save_png(path: Path, picture: Image.Image, note: PngImagePlugin.PngInfo | None = None) -> None:
    """Writes a picture of few colours, as a whole or not at all."""
    # Run-length coding: neighbouring bytes of such maps are mostly equal, and it is the fastest.
    options = {"compress_type": zlib.Z_RLE, "pnginfo": note}
    write_atomically(path, lambda partial: picture.save(partial, "PNG", **options))


def _load(path: Path) -> Image.Image:
    try:
        return load_verified(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there are no pseudo labels at {path}") from None
    except UnidentifiedImageError:
        why: object = "it is no PNG"
    except Exception as error:  # Pillow's parsers raise nearly anything on broken bytes
        why = error
    raise ValueError(f"{path} is damaged; delete it to have it made again ({why})")
