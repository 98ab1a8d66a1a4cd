"""The files that a run was computed from: stored in `data.json` of its folder, compared when it resumes.

A file is unchanged if its size and modification time are. If only the time differs, contents are compared by
the stored checksum, which large data sets have of some files only: if all files have new times and these have
the same content, the data set is a copy. Files that share size and time with others, as after some archives
are unpacked, could be swapped unnoticed: of these, the first and last bytes are compared as well.
docs/faults.md lists what follows from a change.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cpsl.app.config import Config
from cpsl.app.datasets import domains, open_dataset
from cpsl.app.stages import trained_stages
from cpsl.data import SegmentationDataset
from cpsl.data.sample import files_of
from cpsl.training import logger
from cpsl.training.checkpoints import write_text

T = TypeVar("T")

NAME = "data.json"
"""Name of the record in the folder of a run."""

CHECKED_BYTES = 2**27
"""Checksums are stored of about this many bytes of each list: of all files of a small data set."""

THREADS = 16
"""Files that are read at once: network drives answer many requests as fast as one."""

FEW = 8
"""Checksums are stored of at least this many files of each list."""

ENDS = 4096
"""First and last bytes that are compared of files that share size and time."""

EVALUATION = ("evaluation images", "evaluation labels")
"""The lists of files on which stages are evaluated."""


class File(NamedTuple):
    """What is known of a file.

    Attributes:
        size: Bytes, -1 if absent.
        time: Modification time in ns.
        checksum: SHA-256 of the content, "" if not computed.
        ends: SHA-256 of the first and last `ENDS` bytes, "" if not computed.
    """

    size: int
    time: int
    checksum: str = ""
    ends: str = ""


FileList = dict[str, File]
"""FileList by path."""


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


def record_data(config: Config) -> None:
    """Compares the data with those of the run in the folder, and writes the record.

    Changed evaluation data give a new `evaluation_version`.

    Raises:
        ValueError: Data changed after something was trained on them, or the record is damaged.
    """
    path = config.output / NAME
    record, now = _read(path), _stat_lists(config)
    before: dict[str, FileList] = record["files"]
    differences = {name: compare(before[name], now[name]) for name in now if name in before}
    if refusal := _refusal(config, differences):
        raise ValueError(refusal)
    files = {name: add_checksums(listed, before.get(name, {})) for name, listed in now.items()}
    evaluated = [name for name in EVALUATION if name not in before or str(differences[name])]
    for name in evaluated:
        if name in differences:
            logger.info(f"{name}: {differences[name]}: finished stages are evaluated again")
    if touched := [path for difference in differences.values() for path in difference.touched]:
        logger.info(f"{len(touched)} files are copies: new times, same content, such as {touched[0]}")
    version = _digest({name: files[name] for name in EVALUATION}) if evaluated else record["evaluation"]
    write_text(path, json.dumps({"evaluation": version, "files": files}))


def changed_data(config: Config, datasets: Mapping[str, SegmentationDataset] | None = None) -> str:
    """Returns why a run cannot resume with the data as they are now, "" if it can.

    `datasets` are those of the domains by name; they are opened if it is None.
    """
    before = _read(config.output / NAME)["files"]
    now = _stat_lists(config, datasets) if before else {}
    return _refusal(config, {name: compare(before[name], now[name]) for name in now if name in before})


def evaluation_version(config: Config) -> str | None:
    """Returns what identifies the evaluation data of a run; None if its folder has no record of them."""
    version: str | None = _read(config.output / NAME)["evaluation"]
    return version


def list_files(
    config: Config, datasets: Mapping[str, SegmentationDataset] | None = None
) -> dict[str, list[str]]:
    """Returns the files that a run reads: images and labels of each domain that it uses, and weights."""
    lists = {}
    datasets = datasets or {name: open_dataset(config, domain) for name, domain in domains(config).items()}
    for name, dataset in datasets.items():
        if name != "evaluation":
            images, labels = list_paths(dataset)
            lists[f"{name} images"] = images
            if name != "target":  # labels of the target are not read, unless it is evaluated on them
                lists[f"{name} labels"] = labels
    evaluation = datasets["evaluation" if "evaluation" in datasets else "target"]
    lists |= zip(EVALUATION, list_paths(evaluation), strict=True)
    return lists | {"weights": list(dict.fromkeys(_weights(config)))}


def list_paths(dataset: SegmentationDataset) -> tuple[list[str], list[str]]:
    """Returns the paths of a data set's images and of its labels."""
    pairs = [files_of(dataset, index) for index in range(len(dataset))]
    images, labels = ([path.as_posix() for path in paths if path] for paths in zip(*pairs, strict=True))
    return images, labels


def _weights(config: Config) -> Iterator[str]:
    """Yields the files of weights from which the networks start."""
    for stage in config.stages:
        settings = config.settings_of(stage)
        start = getattr(settings, "start", getattr(settings, "student", ""))
        for path in (getattr(config.init_from, stage), start, config.model.weights):
            if path and Path(path).is_file():
                yield Path(path).as_posix()


def compare(before: FileList, now: FileList) -> Difference:
    """Compares files with those of a record."""
    same_content, unknown, changed = list[str](), list[str](), _find_swapped(before, now)
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


def add_checksums(now: FileList, before: FileList) -> FileList:
    """Adds checksums to files: of `FEW` evenly spaced ones, of more in small data sets.

    Of the others that share size and time, the ends alone are read. Checksums of files that are the same as
    before are not computed again.
    """
    files, total = dict(now), sum(file.size for file in now.values())
    share = min(max(CHECKED_BYTES / max(total, 1), FEW / max(len(now), 1)), 1)
    for index, (path, file) in enumerate(now.items()):
        old = before.get(path)
        if old is not None and old[:2] == file[:2]:
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


def _stat_lists(
    config: Config, datasets: Mapping[str, SegmentationDataset] | None = None
) -> dict[str, FileList]:
    return {name: stat_files(paths) for name, paths in list_files(config, datasets).items()}


def stat_files(paths: Collection[str]) -> FileList:
    """Returns size and time of files, without checksums."""

    def stat(path: str) -> File:
        try:
            status = os.stat(path)  # faster than by a Path
        except OSError:  # such as a broken link: reading it names it
            return File(-1, 0)
        return File(status.st_size, status.st_mtime_ns)

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


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    """Reads a record; an empty one if there is none."""
    try:
        record = json.loads(path.read_bytes())
        files = {
            name: {
                path: File(int(size), int(time), *map(str, sums)) for path, (size, time, *sums) in f.items()
            }
            for name, f in record["files"].items()
        }
        return {"evaluation": str(record["evaluation"]), "files": files}
    except FileNotFoundError:
        return {"evaluation": None, "files": {}}
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it to record the data as they are now"
        ) from error


def _refusal(config: Config, differences: Mapping[str, Difference]) -> str:
    """Returns the message about changed data on which something was trained, "" if there are none."""
    evaluated = {"last": (), "score": EVALUATION[:1], "best": EVALUATION}[config.select_checkpoint]
    changed = {
        name: str(difference)
        for name, difference in differences.items()
        if str(difference) and (name not in EVALUATION or name in evaluated)
    }
    results = _results(config, of_files="weights" in changed)
    if not (changed and results):
        return ""
    output = config.output
    lines = [
        f"the data of {output} changed since it was trained:",
        *(f"  {name}: {difference}" for name, difference in changed.items()),
        f"Computed from them: {', '.join(results)}.",
        f"To train on the data as they are now, choose another folder with --output, or delete {output}.",
        f"To keep what was computed, delete {output / NAME}: unfinished stages use the data as they are now.",
    ]
    source = output / "source_only" / "model.pt"
    if changed.keys() == {"target images"} and source.exists() and not config.init_from.source_only:
        lines.append(f"In another --output, --init-from.source-only {source} reuses the source model.")
    return "\n".join(lines)


def _results(config: Config, of_files: bool) -> list[str]:
    """Returns the folders in which results of training data exist; `of_files` includes models from files."""
    stages = config.stages if of_files else trained_stages(config)
    found = [
        stage
        for stage in stages
        if any(any((config.output / stage).glob(name)) for name in ("model.pt", "checkpoint.pt*", "labels/*"))
    ]
    labeled = (config.output / "pseudo_labels" / "soft").exists() and "self_label" in trained_stages(config)
    return found + ["pseudo_labels"] * labeled
