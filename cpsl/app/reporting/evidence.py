"""What a report takes from the data sets of a run; stored in `report.json`, since the run may be moved."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

import torch
from torch import Tensor

from cpsl.app.checking.overlap import shared_images
from cpsl.app.class_shares import class_frequencies
from cpsl.app.config import Config
from cpsl.app.data_record import changed_files, evaluation_version
from cpsl.app.datasets import domains, evaluation_dataset, label_space, open_dataset
from cpsl.app.errors import describe_error
from cpsl.app.evaluate import evaluation_label
from cpsl.app.reporting.compare import Comparison, ImageResult, Interval, Labels, compare
from cpsl.app.reporting.content import DataSet
from cpsl.app.reporting.facts import describe_data
from cpsl.app.source_sampling import named_sources
from cpsl.app.words import plural
from cpsl.data import HardLabelStore
from cpsl.data.sample import read_label
from cpsl.training.checkpoints import write_text

NAME = "report.json"
"""Name of the file in the folder of a run."""

T = TypeVar("T")


class UnreadableDataError(Exception):
    """A data set of the run cannot be read, or changed; the message names the file and the reason."""


@dataclass(frozen=True)
class Evidence:
    """Facts and figures from the data sets of a run.

    Attributes:
        comparison: Of the stages before and after adaptation.
        data_sets: One entry per domain.
        source_labels: Class frequencies by source.
        shared: Numbers of evaluation images that the target or a source has as well, by its name.
        unreadable: Why data could not be read, one text per reason.
        changed: Files of the evaluation that are no longer those on which the run was evaluated.
    """

    comparison: Comparison
    data_sets: list[DataSet] = field(default_factory=list)
    source_labels: dict[str, list[float]] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    changed: frozenset[str] = frozenset()


@contextmanager
def reading_data() -> Iterator[None]:
    """Turns errors of the data sets into `UnreadableDataError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UnreadableDataError(describe_error(error)) from error


def gather(config: Config, stages: tuple[str, str]) -> Evidence:
    """Reads the data sets; figures of those that cannot be read, or changed, are those of the last report.

    Raises:
        ValueError: A stored prediction is missing or damaged.
    """
    path = config.output / NAME
    stored, unreadable = _read(path, config, stages), list[str]()
    changed = _changes(config)
    sources, everything = [*named_sources(config)], [*changed]

    def attempt(names: list[str], read: Callable[[], T], otherwise: Callable[[], T]) -> T:
        try:
            for name in names:
                _refuse_changed(config, name, changed.get(name, []))
            return read()
        except UnreadableDataError as error:
            unreadable.append(str(error))
            return otherwise()

    evidence = Evidence(
        attempt(
            ["evaluation"],
            lambda: _compare(config, stages, stored),
            lambda: stored.comparison if stored else _compare_predictions(config, stages),
        ),
        attempt(everything, lambda: _describe(config), lambda: stored.data_sets if stored else []),
        attempt(sources, lambda: _count(config), lambda: stored.source_labels if stored else {}),
        attempt(everything, lambda: count_shared(config), lambda: stored.shared if stored else {}),
        unreadable,
        frozenset(changed.get("evaluation", [])),
    )
    if not unreadable:
        write_text(path, json.dumps(_to_json(evidence, config, stages)))
    return evidence


def _changes(config: Config) -> dict[str, list[str]]:
    """Returns the changed files of each domain; a domain that cannot be read has no entry."""
    used = config.evaluation if config.evaluation.given else config.target
    changes = {}
    for name, domain in (domains(config) | {"evaluation": used}).items():
        with suppress(UnreadableDataError), reading_data():
            changes[name] = changed_files(config, name, open_dataset(config, domain))
    return changes


def _refuse_changed(config: Config, name: str, files: list[str]) -> None:
    if not files:
        return
    text = f"{plural(len(files), 'file')} of the {name} changed since the run, such as {files[0]}"
    if name == "evaluation":
        run = config.output.as_posix()
        command = f"cpsl adapt --config {quote(f'{run}/config.toml')} --output {quote(run)}"
        text += f"; to evaluate again: {command}"
    raise UnreadableDataError(text)


def read_prediction(config: Config, stage: str, name: str) -> Tensor:
    """Reads the stored prediction of a stage, (H, W) class indices; raises ValueError if it is damaged."""
    try:
        return HardLabelStore(config.output / stage / "predictions").read(name)
    except (FileNotFoundError, ValueError) as error:
        metrics = config.output / stage / "metrics.json"
        raise ValueError(f"{error}. Delete {metrics} to evaluate the stage again.") from error


def _compare(config: Config, stages: tuple[str, str], stored: Evidence | None) -> Comparison:
    """Compares the stored predictions of two stages on all evaluation images."""
    with reading_data():
        dataset = evaluation_dataset(config)
    evaluated = [image.name for image in stored.comparison.images] if stored else dataset.names
    if gone := sorted(set(evaluated) - set(dataset.names)):
        raise UnreadableDataError(
            f"{len(gone)} of {len(evaluated)} evaluation images are gone, such as {gone[0]}"
        )

    def read(index: int) -> Labels:
        with reading_data():
            label = evaluation_label(read_label(dataset, index), config)
        before, after = (read_prediction(config, stage, dataset.names[index]) for stage in stages)
        return label, before, after

    return compare(dataset.names, read, len(dataset.label_space))


def _compare_predictions(config: Config, stages: tuple[str, str]) -> Comparison:
    """Compares the stored predictions alone, without labels."""
    folder = config.output / stages[0] / "predictions"
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.png"))]

    def read(index: int) -> Labels:
        before, after = (read_prediction(config, stage, names[index]) for stage in stages)
        return None, before, after

    return compare(names, read, len(label_space(config)))


def _describe(config: Config) -> list[DataSet]:
    with reading_data():
        return describe_data(config)


def _count(config: Config) -> dict[str, list[float]]:
    with reading_data():
        sources = named_sources(config).items()
        return {name: class_frequencies(open_dataset(config, source)) for name, source in sources}


def count_shared(config: Config) -> dict[str, int]:
    """Returns how many evaluation images each source has as well, and the target, if it is not evaluated."""
    others = named_sources(config) | ({"target": config.target} if config.evaluation.given else {})
    with reading_data():
        evaluated = evaluation_dataset(config)
        return {
            name: len(shared_images(evaluated, open_dataset(config, domain)))
            for name, domain in others.items()
        }


def _key(config: Config, stages: tuple[str, str]) -> list[Any]:
    """Returns what must be the same for stored evidence to be that of the run as it is now."""
    return [*stages, evaluation_version(config), label_space(config).names]


def _to_json(evidence: Evidence, config: Config, stages: tuple[str, str]) -> dict[str, Any]:
    comparison = evidence.comparison
    return {
        "key": _key(config, stages),
        "images": comparison.images,
        "confusion": comparison.confusion.tolist(),
        "gain": comparison.gain,
        "class_gains": comparison.class_gains,
        "data_sets": [vars(data) for data in evidence.data_sets],
        "source_labels": evidence.source_labels,
        "shared": evidence.shared,
    }


def _read(path: Path, config: Config, stages: tuple[str, str]) -> Evidence | None:
    """Reads stored evidence; None if there is none, if it is damaged, or of other stages, data or classes."""
    try:
        content = json.loads(path.read_bytes())
        if content["key"] != json.loads(json.dumps(_key(config, stages))):
            return None
        comparison = Comparison(
            [ImageResult(*image) for image in content["images"]],
            torch.tensor(content["confusion"], dtype=torch.int64),
            content["gain"] and Interval(*content["gain"]),
            [bounds and Interval(*bounds) for bounds in content["class_gains"]],
        )
        data_sets = [DataSet(**data) for data in content["data_sets"]]
        return Evidence(comparison, data_sets, content["source_labels"], dict(content["shared"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
