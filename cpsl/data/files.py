"""Search for image and label files in folders."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from cpsl._internal.files import in_full
from cpsl.data.legends import is_legend
from cpsl.data.names import UNREAD_SUFFIXES, Pattern

SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "__macosx", "@tmp", "#recycle", "@recycle", "$recycle.bin", "recycler", "lost+found"),
        *("#snapshot", "@recently-snapshot", "system volume information"),
    )
)
"""Folders that devices and archives add, in lower case: thumbnails, copies, and deleted or older images."""

HIDDEN = "hidden, since the name begins with a dot"
OF_SYSTEM = "added by a device or an archive"

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")

LONGEST_NAME = 200  # bytes; systems allow 255, and files written for an image have longer names


def find_files(
    folder: Path,
    suffixes: tuple[str, ...],
    what: str,
    *,
    pattern: Pattern | None = None,
    containers: tuple[str, ...] = (),
    skipped: dict[Path, str] | None = None,
) -> dict[str, Path]:
    """Finds the files below a folder, sorted by key: the relative path without extension.

    Linked folders are searched too; hidden files and folders, those of `SYSTEM_FOLDERS` and legends of colors
    (`cpsl.data.legends`) are not. Keys must differ, and must be valid in names of other files on all systems;
    composed and decomposed Unicode letters (NFC, NFD) are the same.

    Args:
        folder: Where to search.
        suffixes: Extensions of the files, in lower case.
        what: Describes the files in errors.
        pattern: Only files whose relative path matches; all if None.
        containers: Extensions of files that hold several images, such as videos: their keys end in a slash,
            so that they differ from that of an image of the same name.
        skipped: Takes the other files that are not hidden, and the folders of `SYSTEM_FOLDERS` that hold such
            files, with the reason.
    """
    _require_folder(folder, f" of {what}")
    skipped = {} if skipped is None else skipped
    others, found, passed = dict[Path, str](), dict[str, Path](), dict[Path, str]()
    for path in _files_below(folder, passed):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in suffixes:
            others[path] = _reason(path.suffix.lower())
            continue
        if pattern is not None and pattern.key(relative.as_posix()) is None:
            others[path] = f'does not match the pattern "{pattern.text}"'
            continue
        name = relative.with_suffix("").as_posix()
        _require_plain(name, path)
        name = unicodedata.normalize("NFC", name) + "/" * (path.suffix.lower() in containers)
        if name in found:
            raise ValueError(_describe_twins(found[name], path, has_pattern=pattern is not None))
        found[name] = path
    others |= {
        path: reason for path, reason in passed.items() if reason == OF_SYSTEM and _holds(path, suffixes)
    }
    if not found:
        others |= {path: HIDDEN for path in passed if path.name.lower().endswith(suffixes)}
        listed = ", ".join(suffixes) if pattern is None else f"{', '.join(suffixes)}; {pattern.text}"
        raise FileNotFoundError(f"there are no {what} ({listed}) in {folder}{and_skipped(others)}")
    skipped |= others
    return dict(sorted(found.items()))


def _require_folder(folder: Path, of_what: str = "") -> None:
    """Raises FileNotFoundError, which says what a path is in place of a folder."""
    if folder.is_dir():
        return
    if folder.is_file():
        advice = "unpack it first" if folder.suffix.lower() in ARCHIVES else f"its folder is {folder.parent}"
        raise FileNotFoundError(f"{folder} is a file, not a folder{of_what}: {advice}")
    if "*" in str(folder):
        above = next(path for path in folder.parents if "*" not in str(path))
        raise FileNotFoundError(
            f"{folder} is a pattern, not a folder{of_what}: name the folder, such as {above}, and select its "
            "files by image_pattern and label_pattern"
        )
    raise FileNotFoundError(f"there is no folder {in_full(folder)}{of_what}")


def list_names(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Returns the relative paths of the files below a folder, whether their keys differ or not.

    Raises:
        FileNotFoundError: There is no such folder, or nothing in it.
    """
    _require_folder(folder)
    paths = [path for path in _files_below(folder, {}) if path.suffix.lower() in suffixes]
    if not paths:
        raise FileNotFoundError(f"there are no files ({', '.join(suffixes)}) in {folder}")
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _reason(suffix: str) -> str:
    if suffix in UNREAD_SUFFIXES:
        return f"the format {suffix} is not supported: convert it to PNG"
    return "its extension is not that of an image"


def describe_skipped(skipped: Mapping[Path, str]) -> str:
    """Returns the number of skipped files for each reason, with their extensions, or the names of folders.

    Example:
        >>> describe_skipped({Path("a.txt"): "its extension is not that of an image"})
        '1 *.txt (its extension is not that of an image)'
        >>> describe_skipped({Path("a/@eaDir"): OF_SYSTEM, Path("b/@eaDir"): OF_SYSTEM})
        '2 @eaDir/ (added by a device or an archive)'
    """
    names = defaultdict[str, Counter[str]](Counter)
    for path, reason in skipped.items():
        names[reason][f"{path.name}/" if reason == OF_SYSTEM else f"*{path.suffix}"] += 1
    return ", ".join(
        f"{counts.total()} {', '.join(name for name, _ in counts.most_common(4))} ({reason})"
        for reason, counts in names.items()
    )


def and_skipped(skipped: Mapping[Path, str]) -> str:
    """Returns the skipped files to be appended to a sentence about their folder, "" if there are none."""
    return f"; it has {described}" if (described := describe_skipped(skipped)) else ""


def _describe_twins(first: Path, second: Path, *, has_pattern: bool) -> str:
    """Describes two files that would share one key."""
    if first.with_suffix("").as_posix() != second.with_suffix("").as_posix():
        forms = " and ".join(ascii(path.name) for path in (first, second))
        return (
            f"{first} and {second} look the same, but are written in two forms of Unicode, composed and "
            f"decomposed: {forms}. Rename or remove one of them"
        )
    by_pattern = f', or name the files that are meant by a pattern such as "*{second.suffix}"'
    return (
        f"{first} and {second} differ only in their extension and would share one key; rename one of them "
        f"or move it away{by_pattern if has_pattern else ''}"
    )


def _files_below(folder: Path, passed: dict[Path, str], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yields the files below a folder; links count as their targets, broken links as files.

    `passed` takes hidden files and folders, and those of `SYSTEM_FOLDERS`, which are not searched.
    """
    here = folder.resolve()
    if here in above:
        raise ValueError(f"{folder} is a link to {here}, which contains it; remove the link")
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                passed[path] = HIDDEN
                continue
            if entry.name.lower() in SYSTEM_FOLDERS:
                passed[path] = OF_SYSTEM
                continue
            # Only links need another system call; for all files they would take minutes on a network drive.
            if path.is_dir() if entry.is_symlink() else entry.is_dir():
                yield from _files_below(path, passed, (*above, here))
            elif (entry.is_symlink() or entry.is_file()) and not is_legend(path):
                yield path


def _holds(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Returns whether there is a file with one of the extensions below a folder, as far as it is readable."""
    return any(name.lower().endswith(suffixes) for _, _, names in os.walk(folder) for name in names)


def _require_plain(name: str, path: Path) -> None:
    """Raises ValueError if a key cannot be part of other files' names."""
    try:
        longest = max(len(part.encode()) for part in name.split("/"))
    except UnicodeEncodeError:
        raise ValueError(f"{str(path)!r}: the name is not UTF-8; rename the file") from None
    if "\\" in name or any(ord(character) < 32 for character in name):
        raise ValueError(f"{str(path)!r}: the name has a backslash or a control character; rename the file")
    if longest > LONGEST_NAME:
        raise ValueError(f"{path}: the name has {longest} bytes, more than {LONGEST_NAME}; rename the file")


def find_labels(images: Collection[str], folder: Path, what: str) -> list[Path]:
    """Finds the label file of each image: the PNG with the same key, see `find_files`."""
    labels = find_files(folder, (".png",), what)
    without = [name for name in images if name not in labels]
    if without:
        raise FileNotFoundError(
            f"{len(without)} of {len(images)} images have no label of their name in {folder}, "
            f"such as {', '.join(without[:3])}: the label of {without[0]} would be {folder / without[0]}.png"
        )
    return [labels[name] for name in images]
