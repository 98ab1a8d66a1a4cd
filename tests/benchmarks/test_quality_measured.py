"""The results kept in the repository: complete, of the present settings, and those of the page."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from cpsl.app.command_line import read_layers
from cpsl.app.settings import to_toml
from quality import __main__ as program
from quality.measured import FOLDER, PAGE, Record, begin, read_file, settings_of, with_tables, write_file
from quality.results import Result
from quality.rows import OURS, SOURCE_ONLY, Row, rows
from quality.shifts import FIELDS_2

FILES = sorted(FOLDER.glob("*.json"))
CONFIG = read_layers(["cpu"])
ROWS = [SOURCE_ONLY, OURS, Row("dacs", "DACS-style", {"online.clustering": False, "views.width": 64})]
VALUES = st.none() | st.floats(0, 100).map(lambda value: round(value, 4))
METRICS = st.fixed_dictionaries(
    {
        "miou": st.floats(0, 100).map(lambda value: round(value, 4)),
        "iou": st.dictionaries(st.sampled_from(["soil", "plant"]), VALUES, min_size=1),
        "seconds": st.integers(1, 999).map(float),
        "scores": st.dictionaries(st.sampled_from(["flip_miou", "entropy"]), VALUES),
        "collapses": st.lists(st.text(max_size=5), max_size=2),
    }
)


@st.composite
def results(draw: st.DrawFn) -> Result:
    row = draw(st.sampled_from(ROWS))
    stages = ("source_only", "online") if row.adapts else ("source_only",)
    metrics = {stage: draw(METRICS) for stage in stages}
    return Result(row, draw(st.integers(0, 2)), metrics, draw(st.integers(1, 99)) / 4)


@given(st.lists(results(), max_size=8), st.lists(results(), max_size=8))
def test_new_results_replace_those_of_the_same_run(first: list[Result], second: list[Result]) -> None:
    record = Record(("plant",), {}, ()).added(first, ROWS).added(second, ROWS)
    last = {(result.row.name, result.seed): result for result in [*first, *second]}
    assert {(result.row.name, result.seed): result for result in record.results} == last
    places = [([row.name for row in ROWS].index(r.row.name), r.seed) for r in record.results]
    assert places == sorted(set(places))
    assert record == record.added(second, ROWS)


@given(found=st.lists(results(), max_size=8))
def test_a_record_is_read_as_it_was_written(found: list[Result], tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("measured") / "fields2.json"
    record = Record(("plant",), settings_of(CONFIG), ()).added(found, ROWS)
    write_file(path, record)
    assert read_file(path) == record
    assert begin(FIELDS_2, CONFIG, ROWS, path).results == record.results


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fields2.json"
    of_row = [Result(row, 0, {"source_only": {"miou": 1.0}}, 1.0) for row in ROWS]
    write_file(path, Record(("plant",), settings_of(CONFIG), ()).added(of_row, ROWS))
    other = replace(CONFIG, online=replace(CONFIG.online, iterations=7), seed=9, workers=3)
    with pytest.raises(ValueError, match=r"fields2\.json.*: online\.iterations$"):
        begin(FIELDS_2, other, ROWS, path)
    with pytest.raises(ValueError, match=r": row dacs$"):
        begin(FIELDS_2, CONFIG, [*ROWS[:2], replace(ROWS[2], settings={})], path)
    content = json.loads(path.read_text())
    del content["settings"]["online.temperature"]  # as if it were new
    path.write_text(json.dumps(content))
    assert len(begin(FIELDS_2, replace(CONFIG, seed=9, workers=3), ROWS, path).results) == len(ROWS)
    assert not begin(FIELDS_2, other, ROWS).results


def test_stored_rows_are_those_of_any_machine_and_any_choice_of_rows(tmp_path: Path, monkeypatch) -> None:
    """The oracle names folders, and a baseline starts from a network that other rows do not need."""
    monkeypatch.setattr(program, "FOLDER", tmp_path / "measured")

    def prepare(machine: str, *chosen: str) -> program.Task:
        folder = tmp_path / machine
        for domain in ("source", "target", "evaluation"):
            (folder / domain / "labels").mkdir(parents=True, exist_ok=True)
        data = folder / "runs" / "data" / "fields2"
        data.mkdir(parents=True, exist_ok=True)
        lines = ['base = "cpu"', 'classes = ["soil", "plant"]']
        lines += [f'{d}.images = "{(folder / d / "images").as_posix()}"' for d in ("source", "target")]
        (data / "settings.toml").write_text("\n".join(lines))
        words = ["--shifts", "fields2", "--store", "--output", str(folder / "runs"), "--rows", *chosen]
        return program.prepare(program.parse_arguments(words))["fields2"]

    first = prepare("first", "oracle", "dacs")
    assert len({run.row.name for run in first.runs}) == 3  # and the source-only network of dacs
    found = [Result(run.row, run.seed, {"source_only": {"miou": 1.0}}, 1.0) for run in first.runs]
    write_file(tmp_path / "measured" / "fields2.json", first.record.added(found, first.rows))
    assert str(tmp_path) not in (tmp_path / "measured" / "fields2.json").read_text()
    second = prepare("second", "ours")
    assert len(second.record.results) == len(found)
    again = second.record.added([Result(OURS, 0, {"source_only": {"miou": 2.0}}, 1.0)], second.rows)
    assert len(again.results) == len(found) + 1


def test_the_program_stores_results_and_writes_the_page(tmp_path: Path, monkeypatch, capsys) -> None:
    page, output = tmp_path / "quality.md", tmp_path / "runs"
    page.write_text(PAGE.read_text())
    monkeypatch.setattr(program, "FOLDER", tmp_path / "measured")
    monkeypatch.setattr(program, "PAGE", page)
    data = output / "data" / "fields2"
    data.mkdir(parents=True)
    (data / "settings.toml").write_text('base = "cpu"\nclasses = ["soil", "plant"]\n')
    words = ["--shifts", "fields2", "--rows", "source_only", "--output", str(output), "--report", "--store"]

    def finish(seed: int, miou: float) -> None:
        folder = output / "fields2" / "source_only" / f"seed_{seed}" / "source_only"
        folder.mkdir(parents=True)
        iou = {"soil": miou + 10, "plant": miou - 10}
        metrics = {"miou": miou, "iou": iou, "seconds": 60.0, "scores": {}, "confusion": [[1]]}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        config = read_layers([str(output / "fields2" / "source_only" / f"seed_{seed}.toml")])
        (folder.parent / "config.toml").write_text(to_toml(config))

    program.main([*words, "--list"])
    finish(0, 40.0)
    program.main(words)
    assert "| source only | 40.0 | – | – | 30.0 |" in page.read_text()
    # The runs of another machine: those of the first are not there.
    (output / "fields2" / "source_only" / "seed_0" / "source_only" / "metrics.json").unlink()
    finish(1, 44.0)
    program.main(words)
    assert "| source only | 42.0 ± 2.0 | – | – | 32.0 ± 2.0 |" in page.read_text()
    assert "confusion" not in (tmp_path / "measured" / "fields2.json").read_text()
    program.main(words[:-1])
    assert "| source only | 44.0 |" in capsys.readouterr().out
    assert "42.0 ± 2.0" in page.read_text()
    with pytest.raises(SystemExit):
        program.main([*words, "--steps", "0.5"])


def test_the_page_has_the_tables_of_the_results() -> None:
    page = PAGE.read_text()
    assert FILES
    assert with_tables(page, FOLDER) == page, "python benchmarks/quality --report --store"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_results_are_those_of_the_present_recipe(path: Path) -> None:
    record, recipe = read_file(path), settings_of(CONFIG)
    training = ("method", "precision", "model.", "source_only.", "online.", "views.color", "views.source")
    for name, value in recipe.items():
        if name.startswith(training):
            assert record.settings[name] == value, name
    assert {"source_only", "ours"} <= {result.row.name for result in record.results}
    present = {row.name for row in rows(CONFIG)} | {row.source.name for row in rows(CONFIG)}
    assert {result.row.name for result in record.results} <= present | {"oracle"}
