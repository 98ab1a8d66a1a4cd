"""Patterns of file names, which tell which label belongs to which image."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Extensions of the files that are read as images and labels, in lower case."""

UNREAD_SUFFIXES = (
    *(".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".exr", ".hdr", ".tga", ".psd", ".svg", ".eps"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".raw", ".dcm", ".nii", ".gz"),
    *(".npy", ".npz", ".mat", ".h5", ".hdf5", ".dds", ".ico", ".pdf", ".pcx", ".dib"),
)
"""Extensions of other pictures and arrays, which would have to be converted."""


class Pattern:
    """Pattern of relative file names, such as `*_image.png`.

    `*` stands for any text of at least one character, across folders too; of several, the first ones are as
    long as possible. `**/` stands for any folders, or none, that are not compared. A pattern without an
    extension matches all those of `IMAGE_SUFFIXES`. Upper and lower case of the extension does not matter.

    Args:
        text: The pattern.

    Raises:
        ValueError: There is no star.

    Example:
        >>> Pattern("*_image.png").key("monday/001_image.PNG")
        ('monday/001',)
        >>> Pattern("*/rgb/*").key("scene/rgb/7.jpg"), Pattern("**/*").key("scene/rgb/7.jpg")
        (('scene', '7'), ('7',))
        >>> Pattern("*/semantic/*_ids.png").fill(("scene", "7"))
        'scene/semantic/7_ids.png'
    """

    def __init__(self, text: str = "*") -> None:
        self.text = unicodedata.normalize("NFC", text)
        stem, suffix = split_suffix(self.text)
        parts = re.split(r"(\*\*/|\*)", stem)
        if "*" not in parts:
            raise ValueError(f'the pattern "{text}" has no star, which stands for the name of each image')
        extensions = [suffix] if suffix else IMAGE_SUFFIXES
        self.stars = parts.count("*")
        self._parts = parts
        self._suffix = suffix
        regex = "".join({"*": "(.+)", "**/": "(?:.*/)?"}.get(part, re.escape(part)) for part in parts)
        self._regex = re.compile(f"{regex}(?i:{'|'.join(map(re.escape, extensions))})", re.DOTALL)

    def key(self, name: str) -> tuple[str, ...] | None:
        """Returns the texts of the stars in a relative path with slashes, None if it does not match."""
        match = self._regex.fullmatch(unicodedata.normalize("NFC", name))
        return None if match is None else match.groups()

    def fill(self, key: tuple[str, ...]) -> str:
        """Returns the relative path with these texts in place of the stars, and no folders for `**/`."""
        texts = iter(key)
        filled = (next(texts) if part == "*" else part.replace("**/", "") for part in self._parts)
        return "".join(filled) + self._suffix


def split_suffix(name: str) -> tuple[str, str]:
    """Splits a name before its extension, if this is one of `IMAGE_SUFFIXES`; the extension may be empty."""
    suffix = next((extension for extension in IMAGE_SUFFIXES if name.lower().endswith(extension)), "")
    return name[: len(name) - len(suffix)], name[len(name) - len(suffix) :]


def find_near_names(images: Iterable[str], labels: Iterable[str]) -> tuple[str, str] | None:
    """Returns an image and a label whose names differ only in what is easily overlooked, None if none do.

    These are upper and lower case, the extension, leading zeros of numbers, spaces, and invisible characters.

    Example:
        >>> find_near_names(["IMG_7.JPG"], ["img_8.png", "img_0007.png"])
        ('IMG_7.JPG', 'img_0007.png')
    """
    of_label = {_visible(label): label for label in labels}
    return next(((image, of_label[key]) for image in images if (key := _visible(image)) in of_label), None)


def _visible(name: str) -> str:
    text = unicodedata.normalize("NFKC", split_suffix(name)[0]).casefold()
    shown = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Zs", "Cc"))
    return re.sub(r"(?<!\d)0+(?=\d)", "", shown)


def match_labels(
    images: Mapping[str, Path],  # by relative path with extension, with slashes
    labels: Mapping[str, Path],
    image_pattern: Pattern,
    label_pattern: Pattern,
) -> tuple[dict[str, str | None], list[str]]:
    """Finds the label of each image: the one in which the stars stand for the same texts.

    Files that do not match their pattern are skipped.

    Returns:
        The label of each image, None if there is none, and the labels without an image.

    Raises:
        ValueError: The patterns differ in their number of stars, or two images or labels in a folder differ
            in nothing that is compared.

    Example:
        >>> images, labels = {"a_image.png": Path("a_image.png")}, {"a_mask.png": Path("a_mask.png")}
        >>> match_labels(images, labels, Pattern("*_image"), Pattern("*_mask"))
        ({'a_image.png': 'a_mask.png'}, [])
    """
    if image_pattern.stars != label_pattern.stars:
        raise ValueError(
            f'image_pattern "{image_pattern.text}" has {image_pattern.stars} star(s) and label_pattern '
            f'"{label_pattern.text}" has {label_pattern.stars}: they must have the same number'
        )
    image_of = _by_key(images, image_pattern, "image_pattern")
    label_of = _by_key(labels, label_pattern, "label_pattern")
    matched = {image: label_of.pop(key, None) for key, image in image_of.items()}
    return matched, list(label_of.values())


def _by_key(files: Mapping[str, Path], pattern: Pattern, setting: str) -> dict[tuple[str, ...], str]:
    found: dict[tuple[str, ...], str] = {}
    for name, path in files.items():
        key = pattern.key(name)
        if key is None:
            continue
        if key in found:
            raise ValueError(
                f"{files[found[key]]} and {path} are the same name, {'/'.join(key)}, in {setting} "
                f'"{pattern.text}": make it more precise'
            )
        found[key] = name
    return found
