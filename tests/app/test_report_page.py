import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from app.sample_report import sample_report
from cpsl.app.report_page import Picture, metrics_table, write_report

VOID = {"meta", "link", "img", "br", "polyline"}
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Outline(HTMLParser):
    """Reads a page and insists that every element is closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes nothing"
        self.open.pop()

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def outline(tmp_path: Path, **changes: bool | tuple[str, ...]) -> Outline:
    write_report(sample_report(**changes), tmp_path / "report.html")
    return Outline((tmp_path / "report.html").read_text())


@pytest.mark.parametrize("labeled", [True, False])
def test_the_report_holds_every_stage_class_and_picture(tmp_path: Path, labeled: bool) -> None:
    path = tmp_path / "report.html"
    write_report(sample_report(labeled), path)
    html = path.read_text()
    for text in ("Source only", "Self-labeling", "Distillation 2", "road", "sky", "city/one"):
        assert text in html
    images = re.findall(r"<img [^>]*>", html)
    # The image, its labels, five predictions, their changes, first and last side by side; two kinds of pseudo
    # labels, their confidence, assignments, two similarities.
    assert len(images) == 1 + labeled + 5 + 2 + 6
    assert all(re.search(r'alt="[^"]{5,}"', image) for image in images)
    assert ("40.0 → 60.0" in html) == labeled
    assert ("No target labels" in html) != labeled
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("labeled", [True, False])
def test_the_report_is_well_formed_and_accessible(tmp_path: Path, labeled: bool) -> None:
    page = outline(tmp_path, labeled=labeled)
    assert all(len(image["alt"] or "") >= 5 for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert all(head["scope"] in ("col", "row") for head in page.all("th"))
    assert len(page.all("table")) == len(page.all("caption")) == 3
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in page.elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids
    assert {link["href"] for link in page.all("a")} <= {f"#{name}" for name in ids}
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_scrolling_parts_are_reached_by_the_keyboard(tmp_path: Path) -> None:
    page = outline(tmp_path)
    scrolling = [a for a in page.all("div") if a.get("class") == "scroll"] + page.all("pre")
    assert len(scrolling) == 4
    assert all(attributes["tabindex"] == "0" for attributes in scrolling)


def test_the_report_loads_nothing_from_outside(tmp_path: Path) -> None:
    page = outline(tmp_path)
    html = (tmp_path / "report.html").read_text()
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert re.match("data:|#", attributes.get(name) or "#")
    assert "://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert not page.all("script", "iframe", "object", "embed", "base")
    policies = [meta for meta in page.all("meta") if "http-equiv" in meta]
    assert "default-src 'none'" in (policies[0]["content"] or "")


def test_names_are_escaped(tmp_path: Path) -> None:
    names = (HOSTILE, "sky")
    page = outline(tmp_path, classes=names, name=HOSTILE)
    html = (tmp_path / "report.html").read_text()
    assert HOSTILE not in html
    assert "&lt;script&gt;" in html
    assert not page.all("script")
    assert all("onerror" not in attributes for _, attributes in page.elements)


def test_a_run_of_one_stage_has_no_comparison(tmp_path: Path) -> None:
    one = sample_report()
    label = one.pictures[0].predictions["warmup"]
    one.pictures[0] = Picture("one", one.pictures[0].image, label, {"warmup": label})
    write_report(one, tmp_path / "report.html")
    page = Outline((tmp_path / "report.html").read_text())
    assert [image["alt"] for image in page.all("img")] == [
        "Target image one",
        "Ground truth of one: road, sky",
        "Warm-up of one: road, sky",
    ]


def test_scores_collapses_and_the_chosen_stage_are_reported(tmp_path: Path) -> None:
    made_up = sample_report(labeled=False)
    write_report(made_up, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    for text in ("“Distillation 2”: its flip_miou", ">0.500<", "Self-labeling:</strong> sky is lost."):
        assert text in html
    for values in made_up.metrics.values():  # as an earlier version wrote them
        del values["scores"], values["collapses"]
    write_report(made_up, tmp_path / "report.html")
    assert "Scores without labels" not in (tmp_path / "report.html").read_text()


def test_corrected_and_regressed_pixels_are_counted(tmp_path: Path) -> None:
    truth = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 255, 255, 255]])
    before, after = torch.zeros_like(truth), torch.ones_like(truth)
    compared = sample_report()
    image = torch.zeros(3, 2, 8, dtype=torch.uint8)
    predictions = {"warmup": before, "self_label": after}
    compared.pictures[0] = Picture("one", image, truth, predictions)
    write_report(compared, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "69.2 % corrected (blue), 30.8 % regressed (orange)" in text


def test_predictions_may_have_another_size(tmp_path: Path) -> None:
    uneven = sample_report()
    picture = uneven.pictures[0]
    half = {stage: label[::2, ::2] for stage, label in picture.predictions.items()}
    uneven.pictures[0] = Picture("one", picture.image, picture.ground_truth, half)
    write_report(uneven, tmp_path / "report.html")
    assert "on the left" in (tmp_path / "report.html").read_text()


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    large = sample_report()
    picture = large.pictures[0]
    image = torch.randint(256, (3, 512, 1024), dtype=torch.uint8)
    label = torch.zeros(512, 1024, dtype=torch.int64)
    large.pictures[0] = Picture(
        picture.name,
        image,
        label,
        {"warmup": label, "self_label": label},
        {},
        torch.rand(512, 1024),
        picture.clusters,
    )
    write_report(large, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 1_500_000


def test_unknown_values_are_dashes() -> None:
    lines = metrics_table(sample_report().metrics, ("road", "sky")).splitlines()
    assert lines[1].split() == ["road", *["–"] * 5]
    assert lines[2].split() == ["sky", "40.0", "45.0", "50.0", "55.0", "60.0"]
    assert len({len(line) for line in lines[1:]}) == 1
