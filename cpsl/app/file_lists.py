"""Lists of files with sizes, times and checksums, and how two of them differ.

A file is unchanged if its size and modification time are. If only the time differs, contents are compared by
the stored checksum, which large data sets have of some files only: if all files have new times and these have
the same content, the data set is a copy. A file that was changed in place under its old time has another time
of status change: where a checksum is stored, the contents are compared. Files that share size and time with
others, as after some archives are unpacked, could be swapped unnoticed: of these, the first and last bytes
are compared as well.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

CHECKED_BYTES = 2**27
"""Checksums are stored of about this many bytes of each list: of all files of a small data set."""

THREADS = 16
"""Files that are read at once: network drives answer many requests as fast as one."""

FEW = 8
"""Checksums are stored of at least this many files of each list."""

ENDS = 4096
"""First and last bytes that are compared of files that share size and time."""


class File(NamedTuple):
    """What is known of a file.

    Attributes:
        size: Bytes, -1 if absent.
        time: Modification time in ns.
        checksum: SHA-256 of the content, "" if not computed.
        ends: SHA-256 of the first and last `ENDS` bytes, "" if not computed.
        status_time: Time of the last change of content or attributes in ns, 0 if not known.
    """

    size: int
    time: int
    checksum: str = ""
    ends: str = ""
    status_time: int = 0


FileList = dict[str, File]
"""Files by path."""


class Difference(NamedTuple):
    """How files differ from those of a record; `touched` have a new time but the same content."""

    changed: list[str]
    added: list[str]
    removed: list[str]
    touched: list[str]

    def __str__(self) -> str:
        """Returns the counts and two examples of each, "" without differences; `touched` are none."""
        parts = {"changed": self.changed, "added": self.added, "removed": self.removed}
        return "; ".join(
            f"{len(paths)} {what}, such as {' and '.join(paths[:2])}"
            for what, paths in parts.items()
            if paths
        )


def compare(before: FileList, now: FileList) -> Difference:
    """Compares files with those of a record."""
    same_content, unknown = list[str](), list[str]()
    changed = list({*_find_swapped(before, now), *_find_edited(before, now)})
    for path in now.keys() & before.keys():
        old = before[path]
        if now[path].size != old.size:
            changed.append(path)
        elif now[path].time != old.time:
            if not old.checksum:
                unknown.append(path)
            else:
                (same_content if _checksum(path) == old.checksum else changed).append(path)
    added, removed = now.keys() - before.keys(), before.keys() - now.keys()
    copied = same_content and len(same_content) + len(unknown) == len(before) and not (changed or added)
    touched = same_content + unknown if copied else same_content
    changed += [] if copied else unknown
    return Difference(*map(sorted, (changed, added, removed, touched)))


def _find_edited(before: FileList, now: FileList) -> list[str]:
    """Returns the files of the same size and time whose status and checksum changed."""
    suspicious = [
        path
        for path, old in before.items()
        if old.checksum
        and old.status_time
        and path in now
        and now[path][:2] == old[:2]
        and now[path].status_time != old.status_time
    ]
    return [path for path, checksum in _map(_checksum, suspicious) if checksum != before[path].checksum]


def add_checksums(now: FileList, before: FileList) -> FileList:
    """Adds checksums to files: of `FEW` evenly spaced ones, of more in small data sets.

    Of the others that share size and time, the ends alone are read. Checksums of files that are the same as
    before are not computed again.
    """
    files, total = dict(now), sum(file.size for file in now.values())
    share = min(max(CHECKED_BYTES / max(total, 1), FEW / max(len(now), 1)), 1)
    for index, (path, file) in enumerate(now.items()):
        old = before.get(path)
        if old is not None and (old[:2], old.status_time) == (file[:2], file.status_time):
            files[path] = old
        elif int((index + 1) * share) > int(index * share):
            files[path] = file._replace(checksum=_checksum(path))
    unread = [path for path in _twins(files) if not (files[path].checksum or files[path].ends)]
    return files | {path: files[path]._replace(ends=ends) for path, ends in _map(_ends, unread)}


def _twins(files: FileList) -> list[str]:
    """Returns the files that share size and time with another."""
    count = Counter(file[:2] for file in files.values())
    return [path for path, file in files.items() if count[file[:2]] > 1 and file.size > 0]


def _find_swapped(before: FileList, now: FileList) -> list[str]:
    """Returns the files with the size and time of before, and of others, whose content is another."""
    same = [path for path in _twins(before) if path in now and now[path][:2] == before[path][:2]]
    whole = [path for path in same if before[path].checksum]
    parts = [path for path in same if before[path].ends]
    changed = [path for path, checksum in _map(_checksum, whole) if checksum != before[path].checksum]
    return changed + [path for path, ends in _map(_ends, parts) if ends != before[path].ends]


def _map(function: Callable[[str], T], paths: Sequence[str]) -> Iterator[tuple[str, T]]:
    """Yields files with what a function returns for them, in threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from zip(paths, pool.map(function, paths), strict=True)


def stat_files(paths: Collection[str]) -> FileList:
    """Returns size and times of files, without checksums."""

    def stat(path: str) -> File:
        try:
            status = os.stat(path)  # faster than by a Path
        except OSError:  # such as a broken link: reading it names it
            return File(-1, 0)
        return File(status.st_size, status.st_mtime_ns, status_time=status.st_ctime_ns)

    return dict(_map(stat, list(paths)))


def _checksum(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _ends(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:  # faster than by a Path
            first = file.read(ENDS)
            file.seek(max(os.fstat(file.fileno()).st_size - ENDS, 0))
            return hashlib.sha256(first + file.read(ENDS)).hexdigest()[:16]
    except OSError:
        return ""
