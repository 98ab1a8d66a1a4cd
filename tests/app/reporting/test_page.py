import base64
import hashlib
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.outline import Outline
from app.sample_report import build_report, sample_report
from cpsl.app.command_line import parse
from cpsl.app.metrics_text import metrics_table
from cpsl.app.reporting.content import Report
from cpsl.app.reporting.evidence import count_shared
from cpsl.app.reporting.page import write_report
from cpsl.app.selection import SCORE_IN_WORDS
from cpsl.app.titles import STAGE_TITLES
from cpsl.app.words import number

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
NO_NUMBER = re.compile(r"\b(nan|None|inf|NaN|Infinity)\b|tensor\(")


def page_of(report: Report, folder: Path) -> Outline:
    write_report(report, folder / "report.html")
    return Outline((folder / "report.html").read_text(encoding="utf-8"))


@st.composite
def reports(draw: st.DrawFn) -> Report:
    """Reports of runs of any method, with or without labels, scores and records."""
    stages = draw(st.sampled_from([("source_only",), ("source_only", "online"), tuple(STAGE_TITLES)[:5]]))
    classes = tuple(f"class {chr(97 + k)}" for k in range(draw(st.integers(1, 6))))
    images, labeled = draw(st.integers(1, 12)), draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def some(ignored: int = 0) -> torch.Tensor:
        drawn = torch.randint(len(classes) + ignored, (4, 6), generator=generator)
        return torch.where(drawn < len(classes), drawn, 255)

    labels = [some(1) if labeled and draw(st.booleans()) else None for _ in range(images)]
    predictions = {stage: [some() for _ in range(images)] for stage in stages}
    report = build_report(
        classes,
        labels,
        predictions,
        chosen=draw(st.sampled_from(stages)),
        iterations=dict.fromkeys(stages, draw(st.sampled_from([12, 1000]))),
    )
    for values in report.metrics.values():
        for name in ("scores", "collapses", "changed", "confidence", "class_frequency", "peak_memory"):
            if draw(st.booleans()):  # as in runs of earlier versions
                values.pop(name)
    if draw(st.booleans()):
        nothing: dict[str, Any] = {"facts": {}, "data_sets": [], "source_labels": {}, "curves": {}}
        report = replace(report, **nothing)
    return report


@settings(max_examples=25, deadline=None)
@given(report=reports())
def test_any_results_make_a_page_whose_numbers_are_those_of_the_metrics(
    tmp_path_factory: pytest.TempPathFactory, report: Report
) -> None:
    page = page_of(report, tmp_path_factory.getbasetemp())
    assert not NO_NUMBER.search(page.text), NO_NUMBER.search(page.text)
    for name in report.classes:
        assert name in page.texts
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in page.elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids
        assert not (attributes.get("href") or "#").startswith("#") or (attributes.get("href") or "#")[1:] in [
            *ids,
            "",
        ]
    assert "://" not in page.text
    before, after = (report.metrics[stage] for stage in report.ends)
    for stage in report.metrics.values():
        if stage["miou"] is not None:
            assert number(stage["miou"]) in page.texts
    if after["miou"] is not None and len(report.metrics) > 1:
        text = page.text
        for name in report.classes:
            values = before["iou"][name], after["iou"][name]
            old, new = (None if value is None else float(number(value)) for value in values)
            gain = None if old is None or new is None else new - old  # what a reader computes
            shown = " ".join([name, *map(number, values), number(gain, signed=True)])
            assert shown in text, shown
    if min(report.iterations.values()) < 100:
        assert "Too short to judge" in page.texts
        assert "points" not in page.texts


def test_the_report_holds_every_stage_class_and_picture(tmp_path: Path) -> None:
    for labeled in (True, False):
        page = page_of(sample_report(labeled), tmp_path)
        for text in ("Source only", "Self-labeling", "Distillation 2", "road", "sky", "city/one"):
            assert text in page.text
        images = page.all("img")
        # Image, labels, both ends, their difference; three stages, two kinds of pseudo labels, their
        # confidence, assignments, two similarities.
        assert len(images) == 1 + labeled + 2 + 1 + 3 + 2 + 4
        assert all(len(image["alt"] or "") >= 5 for image in images)
        assert ("mean IoU, of 100" in page.texts) == labeled
        assert ("Accuracy unknown" in page.texts) != labeled
        assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


@pytest.mark.parametrize("labeled", [True, False])
def test_the_report_is_accessible(tmp_path: Path, labeled: bool) -> None:
    page = page_of(sample_report(labeled), tmp_path)
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert all(head["scope"] in ("col", "row") for head in page.all("th"))
    assert len(page.all("table")) == len(page.all("caption"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    scrolling = [a for a in page.all("div") if a.get("class") == "scroll"] + page.all("pre")
    assert scrolling
    assert all(attributes["tabindex"] == "0" for attributes in scrolling)
    assert all(a.get("aria-label") for a in page.all("input", "dialog") if a.get("type") != "checkbox")


def test_the_report_loads_nothing_and_runs_its_own_script_only(tmp_path: Path) -> None:
    page = page_of(sample_report(), tmp_path)
    html = (tmp_path / "report.html").read_text()
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert re.match("data:|#", attributes.get(name) or "#")
        assert not any(name.startswith("on") for name in attributes)
    for text in ("://", "url(", "@import"):
        assert text not in html
    assert not page.all("iframe", "object", "embed", "base")
    (script,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in (policy or "")
    assert f"script-src 'sha256-{checksum}'" in (policy or "")


def test_names_are_escaped(tmp_path: Path) -> None:
    page = page_of(
        sample_report(
            classes=(HOSTILE, "sky"),
            name=HOSTILE,
            title=HOSTILE,
            facts={"Command": [HOSTILE], "Seed": [HOSTILE]},
            settings={HOSTILE: (HOSTILE, False)},
        ),
        tmp_path,
    )
    html = (tmp_path / "report.html").read_text()
    assert HOSTILE not in html
    assert len(page.all("script")) == 1
    assert all("onerror" not in attributes for _, attributes in page.elements)


def test_a_run_of_one_stage_has_no_comparison(tmp_path: Path) -> None:
    label = torch.tensor([[0, 1]]).repeat(8, 4)
    page = page_of(build_report(("road", "sky"), [label], {"warmup": [label]}, names=["one"]), tmp_path)
    assert [image["alt"] for image in page.all("img")] == [
        "Target image one",
        "Labels, one: road, sky",
        "Warm-up, one: road, sky",
    ]
    assert "100.0" in page.texts
    assert "before" not in page.texts


def test_collapses_and_the_reason_of_the_choice_are_reported(tmp_path: Path) -> None:
    text = page_of(sample_report(labeled=False), tmp_path).text
    assert "“Self-labeling” collapsed: sky is lost." in text
    assert f"“Distillation 2”, chosen without target labels: its {SCORE_IN_WORDS}" in text


def test_corrected_and_regressed_pixels_are_counted(tmp_path: Path) -> None:
    truth = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 255, 255, 255]])
    predictions = {"warmup": [torch.zeros_like(truth)], "self_label": [torch.ones_like(truth)]}
    page = page_of(build_report(("road", "sky"), [truth], predictions), tmp_path)
    assert "69.2 % corrected (blue), 30.8 % regressed (orange)" in page.text


def test_predictions_may_have_another_size_than_the_image(tmp_path: Path) -> None:
    uneven = sample_report()
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    uneven.pictures[0] = replace(uneven.pictures[0], image=image)
    assert "corrected (blue)" in page_of(uneven, tmp_path).text


@pytest.mark.parametrize("labeled", [True, False])
def test_words_of_statistics_are_among_the_terms(tmp_path: Path, labeled: bool) -> None:
    curves = {"distill_2": {"confident": [(20, 0.5)], "marginal_error": [(20, 0.1)]}}
    text, _, terms = page_of(sample_report(labeled, curves=curves), tmp_path).text.rpartition(" Terms ")
    assert "nats" not in text
    for word in ("bootstrap", "mutual information", "entropy", "density", "confident", "cluster"):
        if word != "bootstrap" or labeled:
            assert word in terms.lower()


def test_the_initial_weights_stand_beside_the_network(tmp_path: Path) -> None:
    facts = {"Network": ["EfficientNet-Lite0, 3.0 million weights"], "Initial weights": ["random weights"]}
    assert "EfficientNet-Lite0, random weights" in page_of(sample_report(facts=facts), tmp_path).text


def test_settings_that_differ_from_the_defaults_are_marked(tmp_path: Path) -> None:
    rows = [row.get("class") for row in page_of(sample_report(), tmp_path).all("tr")]
    assert rows.count("changed") == 1


def test_without_labels_the_classes_have_one_table_with_their_change(tmp_path: Path) -> None:
    half, quarter = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 1]])
    predictions = {"source_only": [half], "online": [quarter]}
    page = page_of(build_report(("road", "sky"), [None], predictions, names=["one"]), tmp_path)
    assert len([a for a in page.all("h2") if a.get("id") in ("classes", "distribution")]) == 1
    assert "#classes" not in [a.get("href") for a in page.all("a")]
    assert "50 % 50 % 25 % −25.0" in page.text  # source, before, after, change
    assert "Predictions of every stage" not in page.text
    assert "Predictions of every stage" in page_of(sample_report(labeled=False), tmp_path).text
    labeled = page_of(build_report(("road", "sky"), [half], predictions, names=["one"]), tmp_path)
    assert "#classes" in [a.get("href") for a in labeled.all("a")]
    assert "percentage points" not in labeled.text


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    large = sample_report()
    label = torch.zeros(512, 1024, dtype=torch.int64)
    large.pictures[0] = replace(
        large.pictures[0],
        image=torch.randint(256, (3, 512, 1024), dtype=torch.uint8),
        ground_truth=label,
        predictions={"source_only": label, "distill_2": label},
        pseudo_labels={},
        confidence=torch.rand(512, 1024),
    )
    write_report(large, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 1_500_000


def test_unknown_values_are_dashes() -> None:
    report = sample_report()
    for values in report.metrics.values():
        values["iou"] = {"road": None, "sky": 40.0}
    lines = metrics_table(report.metrics, ("road", "sky")).splitlines()
    assert lines[1].split() == ["road", *["–"] * 5]
    assert lines[2].split() == ["sky", *["40.0"] * 5]
    assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize(
    "shared", [{}, {"source": 0}, {"source": 1}, {"source 1": 0, "source 2": 1, "target": 1}]
)
@pytest.mark.parametrize("selected", ["last", "best"])
def test_labels_are_called_unused_only_if_no_source_has_the_images(
    tmp_path: Path, selected: str, shared: dict[str, int]
) -> None:
    write_report(sample_report(selected=selected, shared=shared), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("used for nothing else" in text) == (selected == "last" and shared == {"source": 0})
    assert ("labels selected the weights" in text) == (selected == "best")


def test_shared_images_are_counted_whatever_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        for folder in ("images", "labels", "other"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("L", (8, 8), ord(name) + (folder == "other")).save(tmp_path / folder / f"{name}.png")
    words = ["--source.images", "images", "--source.labels", "labels", "--target.images", "other"]
    evaluation = [
        "--evaluation.images",
        str(tmp_path / "images"),
        "--evaluation.labels",
        str(tmp_path / "labels"),
    ]
    assert count_shared(parse([*words, *evaluation, "--classes", "x"])) == {"source": 2, "target": 1}


def test_without_evaluation_images_the_words_are_those_of_target_images(tmp_path: Path) -> None:
    several = [torch.zeros(8, 8, dtype=torch.int64)] * 9
    made = build_report(("road", "sky"), [None] * 9, {"source_only": several, "online": several})
    assert "Those of 9 evaluation images" in page_of(made, tmp_path).text
    text = page_of(replace(made, data_sets=made.data_sets[:2]), tmp_path).text
    assert "Those of 9 target images" in text
    assert "at most 100 target images" in text
    assert "evaluation image" not in text
    assert "switch between before and after" in text
