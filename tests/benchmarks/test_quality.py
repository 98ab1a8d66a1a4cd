"""The quality benchmark: rows are valid settings, shared networks fit, tables and statistics are right."""

import doctest
import json
import math
import sys
from collections import Counter
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from app.tiny import write_settings
from cpsl.app.command_line import read_layers
from cpsl.app.config import Config
from cpsl.app.settings import to_toml
from cpsl.data import write_streets
from quality import results, rows, runs, source_only, tables
from quality.results import Result, largest_loss, read_result, score_worth, spearman, spread
from quality.rows import OURS, SOURCE_ONLY, VARIATIONS, Row
from quality.runs import execute, plan
from quality.shifts import CAMVID, folder_settings, shifts
from quality.tables import class_table, insert, overview, quality_table, score_table

ROOT = Path(__file__).parents[2]
NUMBERS = st.lists(st.integers(-5, 5), min_size=2, max_size=12)


@pytest.fixture
def shift(tmp_path: Path) -> Path:
    """Returns settings as those of `fields2`, of a target with labels, without data."""
    lines = ['base = "cpu"', 'classes = ["soil", "plant"]']
    for domain in ("source", "target", "evaluation"):
        (tmp_path / domain / "labels").mkdir(parents=True)
        lines.append(f"{domain}.images = {json.dumps(str(tmp_path / domain / 'images'))}")
    path = tmp_path / "settings.toml"
    path.write_text("\n".join(lines))
    return path


def every_row(shift: Path) -> list[Row]:
    return rows.rows(read_layers([str(shift)]))


def metrics(miou: float, information: float = 0.5, **others: object) -> dict[str, object]:
    scores = {"flip_miou": information, "information": information, "entropy": -information}
    iou = {"soil": miou + 10, "plant": miou - 10, "stone": None}
    return {"miou": miou, "iou": iou, "seconds": 60.0, "scores": scores, **others}


def result(row: Row, seed: int, *stages: dict[str, object]) -> Result:
    names = ("source_only", "online") if row.adapts else ("source_only",)
    return Result(row, seed, dict(zip(names, stages, strict=True)), 2.0)


@pytest.mark.parametrize("module", [results, rows, runs, tables])
def test_examples_of_the_docstrings(module) -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed


def test_every_row_is_a_valid_run_of_its_own(shift: Path, tmp_path: Path) -> None:
    # Reading the settings raises an error if a key or a value is wrong.
    planned = plan(shift, tmp_path / "runs", every_row(shift), [0, 1])
    assert max(Counter(run.folder for run in planned).values()) == 1
    free = {"output": Path(), "seed": 0}
    of_first_seed = [replace(run.config, **free) for run in planned if run.seed == 0]
    assert not [config for i, config in enumerate(of_first_seed) if config in of_first_seed[:i]]
    assert {run.config.seed for run in planned} == {0, 1}


def test_a_row_shares_the_source_side_settings_of_the_network_it_starts_from(
    shift: Path, tmp_path: Path
) -> None:
    planned = plan(shift, tmp_path / "runs", every_row(shift), [0])
    position = {run.folder: index for index, run in enumerate(planned)}
    adapting = [run for run in planned if run.row.adapts]
    assert adapting
    for run in adapting:
        assert run.source is not None
        assert position[run.source.folder] < position[run.folder]
        assert run.config.init_from.source_only == run.source.folder / "source_only" / "model.pt"
        for table in rows.SOURCE_SIDE:
            assert getattr(run.config, table) == getattr(run.source.config, table)


def test_rows_take_each_part_of_the_recipe_away_or_add_it(shift: Path) -> None:
    found, recipe = {row.name: row for row in every_row(shift)}, read_layers([str(shift)])
    for key, values in VARIATIONS.items():
        _, name = key.split(".")
        titles = [
            row.title for row in found.values() if row.adapts and f"our recipe, `{name} = " in row.title
        ]
        assert len(titles) == sum(value != attrgetter(key)(recipe) for value in values)
    assert not found["ours"].settings
    assert found["paper"].settings["method"] == "paper"


def test_equal_rows_are_one_with_both_titles(shift: Path) -> None:
    shift.write_text(
        shift.read_text()
        + "\nviews.rare_class_temperature = 0.01\nonline.masked_weight = 0.0\nonline.clustering = false"
        + "\nonline.balanced = false\nonline.target_statistics = 0.0"
    )
    found = {row.name: row for row in every_row(shift)}
    assert found["daformer"].title.endswith("; our recipe, `limited = false`")
    assert "ours_limited_false" not in found


def test_the_oracle_trains_on_the_labels_of_the_target(shift: Path, tmp_path: Path) -> None:
    (run,) = [r for r in plan(shift, tmp_path / "runs", every_row(shift), [0]) if r.row.name == "oracle"]
    assert run.config.source.images == run.config.target.images
    assert run.config.source.labels == tmp_path / "target" / "labels"
    assert run.config.init_from.source_only is None
    (tmp_path / "target" / "labels").rmdir()
    assert "oracle" not in [row.name for row in every_row(shift)]


def test_the_factor_of_the_steps_changes_every_stage(shift: Path, tmp_path: Path) -> None:
    paper = [row for row in every_row(shift) if row.name == "paper"]
    whole, half = (plan(shift, tmp_path / str(f), paper, [0], f)[-1].config for f in (1, 0.5))
    for stage in ("source_only", "warmup", "self_label", "distill_1", "online"):
        assert half.settings_of(stage).iterations == whole.settings_of(stage).iterations // 2


def test_results_of_other_settings_are_detected(shift: Path, tmp_path: Path) -> None:
    (run,) = plan(shift, tmp_path / "runs", [SOURCE_ONLY], [0])
    assert not run.finished
    assert not run.outdated
    (run.folder / "source_only").mkdir(parents=True)
    (run.folder / "source_only" / "metrics.json").write_text(json.dumps(metrics(40)))
    (run.folder / "config.toml").write_text(to_toml(replace(run.config, workers=7)))
    assert run.finished
    assert not run.outdated  # the number of workers changes no result
    assert read_result(run).miou == 40
    (run.folder / "config.toml").write_text(to_toml(replace(run.config, seed=3)))
    assert run.outdated


def test_runs_are_executed_after_their_source_and_skipped_without_it(
    shift: Path, tmp_path: Path, monkeypatch
) -> None:
    log = tmp_path / "log"
    script = (
        "import sys, pathlib; folder = pathlib.Path(sys.argv[1]); out = folder / sys.argv[2];"
        f"open({str(log)!r}, 'a').write(folder.parent.name + ' ');"
        "sys.exit(3) if 'jitter' in str(folder) else None;"
        "out.parent.mkdir(parents=True); out.write_text('{}')"
    )

    def command(run: runs.Run) -> list[str]:
        file = "metrics.json" if run.row.adapts else "source_only/metrics.json"
        return [sys.executable, "-c", script, str(run.folder), file]

    monkeypatch.setattr(runs.Run, "command", property(command))
    broken = Row("broken", "", {"views.source_jitter": 0.9})
    planned = plan(shift, tmp_path / "runs", [OURS, broken], [0])
    problems = {run.row.name: problem for run, problem in execute(planned, jobs=2)}
    assert log.read_text().split() in (
        ["source_only", "ours", "source_source_jitter_0.9"],
        ["source_only", "source_source_jitter_0.9", "ours"],
        ["source_source_jitter_0.9", "source_only", "ours"],
    )
    assert not problems["source_only"]
    assert not problems["ours"]
    assert "source_source_jitter_0.9" in problems["source_source_jitter_0.9"]  # the file of its output
    assert "source-only" in problems["broken"]
    log.unlink()
    assert [problem for _, problem in execute(planned[:2], jobs=1)] == ["", ""]
    assert not log.exists()


@given(NUMBERS, st.randoms())
def test_rank_correlation_ignores_monotonic_changes_and_the_order(values: list[int], random) -> None:
    others = [random.randint(-5, 5) for _ in values]
    correlation = spearman(values, others)
    if math.isnan(correlation):
        assert len(set(values)) == 1 or len(set(others)) == 1
        return
    assert -1 - 1e-12 <= correlation <= 1 + 1e-12
    assert spearman([v**3 for v in values], others) == pytest.approx(correlation)
    assert spearman([-v for v in values], others) == pytest.approx(-correlation)
    assert spearman(values, values) == pytest.approx(1)
    pairs = random.sample([*zip(values, others, strict=True)], len(values))
    assert spearman(*zip(*pairs, strict=True)) == pytest.approx(correlation)


def test_rank_correlation_of_known_values() -> None:
    assert spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.8207826816681233)  # scipy's


def test_what_a_score_is_worth() -> None:
    bad, good = metrics(40, 0.2), metrics(50, 0.9)
    results = [
        result(SOURCE_ONLY, 0, bad),
        result(OURS, 0, bad, good),
        result(Row("dacs", "DACS", {}), 0, bad, metrics(30, 0.1)),
        result(Row("oracle", "oracle", {}, adapts=False), 0, metrics(90, 0.0)),
    ]
    worth = score_worth(results, "information")
    assert worth is not None
    # The shared source-only network counts once, the oracle not at all. The first run keeps its last stage,
    # the second gains 10 points by its first.
    assert worth == (1.0, 0.0, 5.0, 0.0, 3)
    assert score_worth(results, "entropy") == worth  # lower is better
    assert score_worth(results, "density") is None
    collapsed = metrics(20, 1.0, collapses=["plant is lost"])
    with_collapse = score_worth([*results, result(Row("bad", "bad", {}), 0, bad, collapsed)], "information")
    assert with_collapse is not None
    assert with_collapse.loss == 0
    assert with_collapse.gain == pytest.approx((0 + 10 + 20) / 3)


def test_the_table_of_known_results() -> None:
    dacs = Row("dacs", "DACS-style", {})
    found = [
        result(SOURCE_ONLY, 0, metrics(40)),
        result(SOURCE_ONLY, 1, metrics(44)),
        result(OURS, 0, metrics(40, 0.1), metrics(50, 0.2)),
        result(OURS, 1, metrics(44, 0.2), metrics(52, 0.1)),
        result(dacs, 1, metrics(44, 0.2), metrics(43, 0.1)),
    ]
    lines = quality_table(found, ["plant", "stone"]).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells == [
        ["source only", "42.0 ± 2.0", "–", "-9.0 ± 1.0", "32.0 ± 2.0", "–", "–", "–", "2.0"],
        [
            *("**our recipe**", "51.0 ± 1.0", "+9.0 ± 1.0", "–", "41.0 ± 1.0", "+9.0 ± 1.0"),
            *("none", "47.0 ± 3.0", "2.0"),  # of seed 1 the source-only network is chosen
        ],
        ["DACS-style (1 of 2 seeds)", "43.0", "-1.0", "-9.0", "33.0", "-1.0", "soil -1.0", "44.0", "2.0"],
    ]
    assert class_table(found, ["plant", "stone"]).splitlines() == [
        "| Class | source only | DACS-style | **our recipe** |",
        "|---|---|---|---|",
        "| soil | 52.0 ± 2.0 | 53.0 | 61.0 ± 1.0 |",
        "| plant (rare) | 32.0 ± 2.0 | 33.0 | 41.0 ± 1.0 |",
        "| stone (rare) | – | – | – |",
    ]
    assert overview({"fields2": found, "fog": found[:1]}).splitlines()[2:] == [
        "| [`fields2`](#fields2) | 0, 1 | 42.0 ± 2.0 | 43.0 (1 of 2 seeds) | 51.0 ± 1.0 |",
        "| [`fog`](#fog) | 0 | 40.0 | – | – |",
    ]
    assert score_table(found).count("\n| `") == 3
    assert "|" not in score_table(found[:4])
    assert largest_loss(found[2:4], []) is None
    assert spread([1.0, 5.0, 3.0]) == (3.0, 2.0, 3)


def test_the_page_has_a_place_for_the_tables_of_every_shift(tmp_path: Path) -> None:
    for name in ("day/images", "day/labels", "dusk/images", "dusk_val/images", "dusk_val/labels"):
        (tmp_path / name).mkdir(parents=True)
    page = (ROOT / "docs" / "quality.md").read_text()
    for name in shifts(tmp_path):
        once = insert(page, name, "| new |")
        assert insert(once, name, "| new |") == once
        assert f"| `{name}` |" in page
    with pytest.raises(ValueError, match="begin nothing"):
        insert(page, "nothing", "")
    (tmp_path / "dusk" / "images").rmdir()
    with pytest.raises(FileNotFoundError, match="dusk/images"):
        shifts(tmp_path)


def test_made_shifts_divide_the_drives(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for folder in ("day", "dusk", "dusk_val"):
        for kind in ("images", "labels")[: 1 if folder == "dusk" else 2]:
            (tmp_path / folder / kind).mkdir(parents=True)
    for index in range(20):
        name = f"{('Seq05VD', '0016E5', '0006R0', '0006R0')[index % 4]}_{index:03}"
        image, label = random.integers(0, 256, (60, 80, 3), np.uint8), np.full((60, 80), index % 11, np.uint8)
        Image.fromarray(image).save(tmp_path / "day" / "images" / f"{name}.png")
        Image.fromarray(label).save(tmp_path / "day" / "labels" / f"{name}.png")
    folder = tmp_path / "camera"
    path = shifts(tmp_path)["camera"].prepare(folder)
    names = {
        domain: {file.stem for file in (folder / domain / "images").iterdir()}
        for domain in ("source", "target", "evaluation")
    }
    assert {name[:6] for name in names["source"]} == {"Seq05V", "0016E5"}
    assert len(names["target"]) == 4
    assert len(names["evaluation"]) == 6
    assert not names["target"] & names["evaluation"]
    stored = Image.open(next((folder / "target" / "labels").iterdir()))
    assert stored.size == (320, 240)
    config: Config = read_layers([str(path)])
    assert config.classes == CAMVID
    assert folder_settings(folder, CAMVID)["target"] == {"images": str(config.target.images)}


def test_a_source_only_run_is_evaluated_again_on_changed_data(tmp_path: Path) -> None:
    for layout, split in (("gta5", "train"), ("cityscapes", "train"), ("cityscapes", "val")):
        write_streets(tmp_path / layout, layout=layout, style="game", count=4, size=(64, 128), split=split)
    domains = "".join(
        f'[{name}]\ndataset = "{layout}"\nroot = "{(tmp_path / layout).as_posix()}"\nsplit = "{split}"\n'
        for name, layout, split in (
            ("source", "gta5", "train"),
            ("target", "cityscapes", "train"),
            ("evaluation", "cityscapes", "val"),
        )
    )
    config = write_settings(tmp_path, domains)
    words = ["--config", str(config), "--output", str(tmp_path / "run")]
    metrics_file = tmp_path / "run" / "source_only" / "metrics.json"
    source_only.main(words)
    first = json.loads(metrics_file.read_text())
    source_only.main(words)
    assert json.loads(metrics_file.read_text()) == first
    for label in (tmp_path / "cityscapes" / "gtFine" / "val").rglob("*labelIds.png"):
        Image.fromarray(np.full((64, 128), 7, np.uint8)).save(label)
    source_only.main(words)
    again = json.loads(metrics_file.read_text())
    assert again["seconds"] == first["seconds"]
    assert again["iou"] != first["iou"]
