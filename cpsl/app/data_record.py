"""The files that a run was computed from: stored in `data.json` of its folder, compared when it resumes.

docs/faults.md lists what follows from a change.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cpsl.app.config import Config
from cpsl.app.datasets import domains, open_dataset
from cpsl.app.file_lists import Difference, File, FileList, add_checksums, compare, stat_files
from cpsl.app.settings import to_toml
from cpsl.app.stages import trained_stages
from cpsl.app.words import plural
from cpsl.data import SegmentationDataset
from cpsl.data.sample import files_of
from cpsl.training import logger
from cpsl.training.checkpoints import write_text

NAME = "data.json"
"""Name of the record in the folder of a run."""

EVALUATION = ("evaluation images", "evaluation labels")
"""The lists of files on which stages are evaluated."""


def record_data(config: Config) -> None:
    """Compares the data with those of the run in the folder, and writes the record.

    Changed evaluation data, or settings of the evaluation, give a new `evaluation_version`.

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
        count = plural(len(touched), "file")
        logger.info(f"{count} with new times but the same content, such as {touched[0]}")
    version = _digest({name: files[name] for name in EVALUATION}) if evaluated else record["evaluation"]
    write_text(path, json.dumps({"evaluation": version, "files": files}))


def changed_data(config: Config, datasets: Mapping[str, SegmentationDataset] | None = None) -> str:
    """Returns why a run cannot resume with the data as they are now, "" if it can.

    `datasets` are those of the domains by name; they are opened if it is None.
    """
    before = _read(config.output / NAME)["files"]
    now = _stat_lists(config, datasets) if before else {}
    return _refusal(config, {name: compare(before[name], now[name]) for name in now if name in before})


def changed_files(config: Config, name: str, dataset: SegmentationDataset) -> list[str]:
    """Returns the files of a domain that changed or were added since a run recorded them.

    There are none if the run has no record of them, or if the data set was moved to other paths.
    """
    before, found = _read(config.output / NAME)["files"], list[str]()
    for kind, paths in zip(("images", "labels"), list_paths(dataset), strict=True):
        known: FileList = before.get(f"{name} {kind}", {})
        if known.keys() & set(paths):
            difference = compare(known, stat_files(paths))
            found += [*difference.changed, *difference.added]
    return found


def evaluation_version(config: Config) -> str | None:
    """Returns what identifies the evaluation data of a run, its files and how they are read and compared.

    None if the folder of the run has no record of the files.
    """
    files: str | None = _read(config.output / NAME)["evaluation"]
    if files is None:
        return None
    domain = config.evaluation if config.evaluation.given else config.target
    read = replace(domain, root=None, images=None, labels=None)  # `files` has the paths
    return _digest([files, to_toml(read), config.views.evaluation_size])


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


def _stat_lists(
    config: Config, datasets: Mapping[str, SegmentationDataset] | None = None
) -> dict[str, FileList]:
    return {name: stat_files(paths) for name, paths in list_files(config, datasets).items()}


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    """Reads a record; an empty one if there is none."""
    try:
        record = json.loads(path.read_bytes())
        files = {
            name: {path: _file(*known) for path, known in f.items()} for name, f in record["files"].items()
        }
        return {"evaluation": str(record["evaluation"]), "files": files}
    except FileNotFoundError:
        return {"evaluation": None, "files": {}}
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it to record the data as they are now"
        ) from error


def _file(size: object, time: object, checksum: object = "", ends: object = "", status: object = 0) -> File:
    """Returns a recorded file; those of earlier versions have no status time."""
    return File(int(str(size)), int(str(time)), str(checksum), str(ends), int(str(status)))


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
