"""Figures of the pages agree with recipes, formulas and each other."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import pytest

from cpsl.app.command_line import read_layers
from cpsl.app.config import Config
from cpsl.testing import LOSS_CHECKS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import communication  # noqa: E402

DOCS = ROOT / "docs"
RECIPES = {path.stem for path in (ROOT / "cpsl" / "app" / "recipes").glob("*.toml")}


class Table(NamedTuple):
    """A table of a page, with cells as plain text."""

    page: str
    header: list[str]
    rows: list[list[str]]

    def column(self, title: str) -> list[str]:
        return [row[self.header.index(title)] for row in self.rows]


def tables(page: Path) -> Iterator[Table]:
    """Yields the tables of a page."""
    for block in re.findall(r"^\|.+\n\|[-|: ]+\n(?:\|.*\n?)+", page.read_text(), re.M):
        header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines())
        yield Table(page.name, header, rows)


def table(page: str, title: str) -> Table:
    """Returns the first table of a page with a column of this title."""
    return next(found for found in tables(DOCS / page) if title in found.header)


def integers(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


RECIPE_ROWS = table("recipes.md", "Iterations").rows


@pytest.mark.parametrize("row", RECIPE_ROWS, ids=[row[0].partition(":")[0] for row in RECIPE_ROWS])
def test_recipes_train_what_the_table_says(row: list[str]) -> None:
    name = re.match(r"`(\w+)`", row[0])
    settings = read_layers([name[1]] if name else [])
    first, distill = settings.source_only, settings.distill
    paper = [settings.warmup, settings.self_label, distill, distill]
    stages = paper if settings.method == "paper" else [settings.online]
    iterations = {stage.iterations for stage in stages}
    batches = {stage.batch_size for stage in stages}
    assert len(iterations) == len(batches) == 1
    *_, network, trained = row
    assert network == f"`{settings.model.network}`"
    adaptation = f"{len(stages)} × " * (len(stages) > 1) + f"{iterations.pop():,}, batch {batches.pop()}"
    assert trained in (
        f"{first.iterations:,}, batch {first.batch_size} + {adaptation}",
        f"{first.iterations:,} + {adaptation}" if first.batch_size == stages[0].batch_size else "",
    )


def test_all_recipes_are_listed() -> None:
    assert set(re.findall(r"`(\w+)`", (DOCS / "recipes.md").read_text())) >= RECIPES


def test_recipes_of_one_gpu_are_those_of_the_table() -> None:
    for name, memory, precision, parts, images in table("reproduce.md", "Micro-batches").rows:
        settings = read_layers([name.strip("`")])
        assert name.strip("`") == f"one_gpu_{memory.replace(' GB', 'gb')}"
        assert settings.precision == precision
        assert settings.gradient_accumulation_steps == int(parts)
        assert settings.self_label.batch_size == int(parts) * int(images)


def test_iterations_of_the_paper_are_those_of_the_recipe() -> None:
    settings = read_layers(["gta5_to_cityscapes"])
    stages = (settings.source_only, settings.warmup, settings.self_label, settings.distill)
    found = [integers(cell)[-1] for cell in table("reproduce.md", "Iterations").column("Iterations")]
    assert found == [stage.iterations for stage in stages]


def test_the_recipe_of_the_authors_sets_all_deviations() -> None:
    plain, authors = Config(), read_layers(["authors"])
    cells = table("fidelity.md", "Setting").column("Setting")
    for cell in cells:
        for name, value in re.findall(r"`([\w.]+)(?: = ([^`]+))?`", cell):
            path = name.split(".") if "." in name or hasattr(plain, name) else ("authors", name)
            old, new = plain, authors
            for part in path:
                old, new = getattr(old, part), getattr(new, part)
            assert old != new, name
            assert not value or type(new)(value.strip('"')) == new, name
    switches = {field.name for field in fields(plain.authors)}
    assert switches <= {*re.findall(r"`(\w+)", " ".join(cells))}


def test_the_checks_of_losses_are_those_of_the_table() -> None:
    listed = [cell.strip("`") for cell in table("testing.md", "Requirement").column("Check")]
    assert sorted(listed) == sorted(check.__name__ for check in LOSS_CHECKS)


WITH_MEAN = [
    pytest.param(found, id=f"{page.name}: {found.header[0]}")
    for page in sorted(DOCS.glob("*.md"))
    for found in tables(page)
    if any(row[0] == "**mean**" for row in found.rows)
]


@pytest.mark.parametrize("found", WITH_MEAN)
def test_means_are_those_of_the_rows(found: Table) -> None:
    end = next(index for index, row in enumerate(found.rows) if row[0] == "**mean**")
    for column in range(1, len(found.header)):
        cells = [re.findall(r"\d+\.\d+", row[column]) for row in found.rows[: end + 1]]
        for *values, stated in zip(*cells, strict=True) if cells[end] else ():
            places = len(stated.partition(".")[2])
            exact = mean(map(float, values))
            assert abs(exact - float(stated)) <= 1.01 * 10**-places, (found.header[column], exact, stated)


def test_published_results_are_those_of_the_classes() -> None:
    best = table("reproduce.md", "Published").column("Best evaluation in the authors' logs (iteration)")
    means = table("reproduce.md", "Class").rows[-1][1:]
    assert [cell.split()[0] for cell in best if cell != "–"] == [cell.strip("*") for cell in means]


def measured(shift: str) -> dict[str, str]:
    """Returns the mIoU of each row of the quality benchmark, with its spread and missing seeds."""
    section = (DOCS / "quality.md").read_text().split(f"<!-- begin {shift} -->")[1].split("<!-- end")[0]
    row = r"^\| \**(.*?)\**( \(\d of \d seeds\))? \| (\d+\.\d(?: ± \d+\.\d)?) \|"
    rows = re.findall(row, section, re.M)
    assert rows, f"{shift} is not measured"
    return {title: miou + seeds for title, seeds, miou in rows}


@pytest.mark.parametrize("page", [DOCS / "index.md", ROOT / "README.md"], ids=lambda page: page.name)
def test_results_of_the_streets_are_those_of_the_benchmark(page: Path) -> None:
    stated = re.search(r"\(mIoU\) (\d+\.\d) % before and (\d+\.\d) % after", page.read_text())
    assert stated is not None
    results = json.loads((ROOT / "benchmarks/quality/measured/streets.json").read_text())["results"]
    of_picture = {r["row"]["name"]: [*r["stages"].values()][-1]["miou"] for r in results if r["seed"] == 0}
    assert stated.groups() == tuple(f"{of_picture[name]:.1f}" for name in ("source_only", "ours"))


def test_results_of_the_readme_are_those_of_the_benchmark() -> None:
    results = next(found for found in tables(ROOT / "README.md") if found.header[0] == "Shift")
    overview = {row[0].split("`")[1]: row[1].count(",") + 1 for row in table("quality.md", "Seeds").rows}
    for shift, seeds, *stated in results.rows:
        name = shift.split("`")[1]
        rows = measured(name)
        assert int(seeds) == overview[name]
        dacs = rows.get("DACS-style, starting from our source-only network", "–")
        assert [cell.strip("*") for cell in stated] == [rows["source only"], dacs, rows["our recipe"]]


def test_counted_communication_is_that_of_the_formulas() -> None:
    stages = {"warm-up": "warmup", "self-labeling": "self_label", "distillation": "distill_1"}
    found = table("many_gpus.md", "Messages")
    for title, *cells in found.rows:
        stage, purpose = title.split(": ")
        for ranks, cell in zip((1, 2, 4, 8), cells, strict=False):
            formula = communication.predict(stages[stage], communication.Run(), ranks)
            assert integers(cell) == [formula.get(purpose, 0)], (title, ranks)


def test_communication_at_the_sizes_of_the_paper_is_that_of_the_formulas() -> None:
    _, *computed = communication.paper_table().splitlines()
    rows = table("many_gpus.md", "Bank of a process").rows
    for row, line in zip(rows, computed, strict=True):
        for cell, number in zip(row, line.replace("MB", "").split(), strict=True):
            assert float(cell) == round(float(number), len(cell.partition(".")[2])), (row[0], cell)


def test_loading_times_are_those_of_the_benchmark() -> None:
    medians = {row[0]: row[1] for row in table("benchmarks.md", "Milliseconds").rows}
    samples = [v for k, v in medians.items() if "training sample" in k]
    total = sum(integers(value)[0] for value in samples)
    assert len(samples) == 2
    assert f"{total} ms" in (DOCS / "many_gpus.md").read_text()


THREE_RESULTS = table("choosing.md", "Evidence without labels").rows


@pytest.mark.parametrize(("run", "evidence", "miou"), THREE_RESULTS, ids=[row[0] for row in THREE_RESULTS])
def test_the_results_that_show_evidence_are_stored(run: str, evidence: str, miou: str) -> None:
    shift, name = re.findall(r"`(\w+)`", run)[-1], "ours" if "cpsl adapt" in run else "dacs_our_source"
    seed = int(found[1]) if (found := re.search(r"seed (\d)", run)) else 0
    stored = json.loads((ROOT / "benchmarks" / "quality" / "measured" / f"{shift}.json").read_text())
    (stages,) = (
        result["stages"]
        for result in stored["results"]
        if (result["row"]["name"], result["seed"]) == (name, seed)
    )
    before, after = stages["source_only"], stages["online"]
    changes = dict(
        re.findall(r"(information|consistency)`?(?: rises| falls)? from ([\d.]+ to [\d.]+)", evidence)
    )
    for title, key in (("information", "information"), ("consistency", "flip_miou")):
        assert changes[title] == f"{before['scores'][key]:.3f} to {after['scores'][key]:.3f}"
    quoted = re.findall(r'"(.+?)"', evidence)
    assert all(any(reason.startswith(text) for reason in after["collapses"]) for text in quoted)
    assert bool(after["collapses"]) == bool(quoted)
    assert miou.startswith(f"{before['miou']:.1f} → {after['miou']:.1f}: ")


def test_the_rank_correlations_are_those_of_the_tables() -> None:
    page = (DOCS / "quality.md").read_text()
    (sentence,) = re.findall(r"In the \[long runs\].+?\.\s", (DOCS / "choosing.md").read_text())
    wanted = list[str]()
    for score in ("information", "flip_miou"):
        row = rf"<!-- begin (\w+) -->(?:(?!<!-- end).)*?\| `{score}` \| \+?([-\d.]+)"
        found = dict(re.findall(row, page, re.DOTALL))
        assert set(found) == set(re.findall(r"`(\w+)`", sentence)) - {"information", "flip_miou"}
        wanted += [found[shift] for shift in re.findall(r"`(\w+)`", sentence) if shift in found]
    assert re.findall(r"-?\d\.\d\d", sentence) == wanted
