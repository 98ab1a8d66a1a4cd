"""Results that are kept in the repository, and the tables of the page, which are made from them.

The runs themselves are too large to keep. `measured/SHIFT.json` holds the settings of a shift, and a line for
each result.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpsl.app.config import Config
from cpsl.app.run import FREE_SETTINGS
from cpsl.app.settings import flatten, to_toml

from .results import Result
from .rows import Row
from .shifts import Shift
from .tables import class_table, insert, overview, quality_table, score_table

FOLDER = Path(__file__).with_name("measured")
"""Folder of the files."""

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"
"""The page with the tables."""

KEPT = ("miou", "iou", "class_frequency", "seconds", "scores", "collapses")
"""What is kept of the metrics of a stage."""

OF_A_RUN = ("images", "labels", "root", "seed", *FREE_SETTINGS)
"""Last parts of the names of settings that differ between machines and runs."""


@dataclass(frozen=True)
class Record:
    """The results of a shift that are kept.

    Attributes:
        rare: The classes whose mean IoU is reported.
        settings: All settings of our recipe on this shift by dotted name, without folders and the seed. The
            settings of a row are these and its own.
        results: The results, in the order of rows and seeds.
    """

    rare: tuple[str, ...]
    settings: Mapping[str, Any]
    results: tuple[Result, ...]

    @property
    def tables(self) -> str:
        """The tables of the rows, of the classes and of the label-free scores in Markdown."""
        results, rare = self.results, self.rare
        tables = (quality_table(results, rare), class_table(results, rare), score_table(results))
        return "\n\n".join(tables)

    def added(self, results: Iterable[Result], rows: Iterable[Row]) -> "Record":
        """Returns a record with these results too, in the order of the rows.

        They replace results of the same row and seed.
        """
        found = {(result.row.name, result.seed): result for result in [*self.results, *results]}
        place = {name: index for index, name in enumerate(dict.fromkeys(row.name for row in rows))}
        keys = sorted(found, key=lambda key: (place[key[0]], key[1]))
        return Record(self.rare, self.settings, tuple(found[key] for key in keys))


def settings_of(config: Config) -> dict[str, Any]:
    """Returns settings by dotted name, without those that differ between machines or runs."""
    return _portable(flatten(tomllib.loads(to_toml(config))))


def _portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name.rpartition(".")[2] not in OF_A_RUN}


def begin(shift: Shift, config: Config, rows: Iterable[Row], path: Path | None = None) -> Record:
    """Returns the record of a shift with the results of a file, or without any.

    Args:
        shift: The shift.
        config: Its present settings.
        rows: Its present rows.
        path: The file, if there is one.

    Raises:
        ValueError: The results of the file are those of other settings. Settings that it lacks are new ones,
            whose defaults change no result.
    """
    now = settings_of(config)
    if path is None or not path.exists():
        return Record(shift.rare, now, ())
    before, present = read_file(path), {row.name: _portable(row.settings) for row in rows}
    changed = [name for name, value in before.settings.items() if now.get(name) != value]
    changed += [
        f"row {row.name}"
        for row in {result.row.name: result.row for result in before.results}.values()
        if present.get(row.name) != row.settings
    ]
    if changed:
        raise ValueError(f"{path} holds results of other settings, delete it: {', '.join(changed)}")
    return Record(shift.rare, now, before.results)


def read_file(path: Path) -> Record:
    """Returns the content of a file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    results = (
        Result(Row(**line["row"]), line["seed"], line["stages"], line["minutes"])
        for line in content["results"]
    )
    return Record(tuple(content["rare"]), content["settings"], tuple(results))


def write_file(path: Path, record: Record) -> None:
    """Writes a record, with a line for each setting and each result."""
    settings = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(record.settings.items())
    )
    results = ",\n".join(json.dumps(_line(result)) for result in record.results)
    rare = json.dumps(record.rare)
    text = f'{{\n"rare": {rare},\n"settings": {{\n{settings}\n}},\n"results": [\n{results}\n]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def with_tables(page: str, folder: Path) -> str:
    """Returns a page with the tables of all files of a folder; shifts have the order of the page.

    Raises:
        ValueError: The page has no place for a table.
    """
    records = {path.stem: read_file(path) for path in folder.glob("*.json")}
    order = sorted(records, key=lambda name: page.find(f"<!-- begin {name} -->"))
    page = insert(page, "overview", overview({name: records[name].results for name in order}))
    for name, record in records.items():
        page = insert(page, name, record.tables)
    return page


def _line(result: Result) -> dict[str, Any]:
    stages = {
        stage: {name: _rounded(metrics[name]) for name in KEPT if name in metrics}
        for stage, metrics in result.stages.items()
    }
    return {
        "row": asdict(result.row) | {"settings": _portable(result.row.settings)},
        "seed": result.seed,
        "minutes": round(result.minutes, 2),
        "stages": stages,
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 6) if isinstance(value, float) else value
