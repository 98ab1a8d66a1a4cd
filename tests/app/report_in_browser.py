"""Tests of the report in Chromium, outside the default suite: `make browser`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.check_report import DESKTOP, PHONE, Page, chromium, problems
from app.sample_report import sample_report
from cpsl.app.reporting.page import write_report
from cpsl.data import CITYSCAPES_19


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("labeled", [True, False])
def test_a_report_is_readable_on_phone_and_desktop(page: Page, tmp_path: Path, labeled: bool) -> None:
    long = "a/folder/of/a/folder/with_a_name_that_has_no_place_to_break_on_a_phone_000000_000019"
    report = sample_report(labeled, CITYSCAPES_19.names, name=long)
    write_report(report, tmp_path / "report.html")
    assert problems(page, tmp_path / "report.html") == []


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        ("<p style='width:2000px'>wide</p>", "wider than the screen"),
        ("<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw=' alt=''>", "without a text"),
        ("<img src='data:image/png;base64,AAAA' alt='broken'>", "not loaded"),
        ("<div style='overflow-x:auto'><p style='width:2000px'>x</p></div>", "by the keyboard"),
        ("<p style='color:#777;background:#888'>pale</p>", "hard to read"),
        ("<img src='http://127.0.0.1:9/x.png' alt='from outside'>", "asks for http"),
        ("<script>console.error('no')</script>", "console"),
    ],
)
def test_problems_are_found(page: Page, tmp_path: Path, harm: str, complaint: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(f"<!doctype html><html><body><main>{harm}</main></body></html>")
    found = problems(page, path)
    assert any(complaint in each for each in found), found


def test_a_report_is_printed_on_white(page: Page, tmp_path: Path) -> None:
    write_report(sample_report(), tmp_path / "report.html")
    page.open(tmp_path / "report.html", DESKTOP, "dark")
    page.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    page.send("Emulation.setEmulatedMedia", media="print")
    ground = "return getComputedStyle(document.body).backgroundColor"
    assert page.ask(ground) == "rgb(255, 255, 255)"
    page.send("Emulation.setEmulatedMedia", media="")


def test_an_enlarged_picture_says_which_image_it_is(page: Page, tmp_path: Path) -> None:
    write_report(sample_report(), tmp_path / "report.html")
    page.open(tmp_path / "report.html", DESKTOP)
    said = "return document.querySelector('dialog .bar-below').innerText"
    row = "document.querySelectorAll('.photo-row')[0]"
    heading = page.ask(f"return {row}.querySelector('h3').innerText")
    captions = page.ask(f"return [...{row}.querySelectorAll('figcaption')].map(e => e.innerText)")
    page.ask(f"{row}.querySelector('figure button').click()")
    for caption in captions[:2]:
        assert heading in page.ask(said)
        assert caption in page.ask(said)
        page.ask("document.querySelector('dialog .next').click()")


@pytest.mark.parametrize("labeled", [True, False])
def test_no_picture_stands_beside_an_empty_half_on_a_phone(page: Page, tmp_path: Path, labeled: bool) -> None:
    write_report(sample_report(labeled), tmp_path / "report.html")
    page.open(tmp_path / "report.html", PHONE)
    widths = page.ask("return [...document.querySelectorAll('.five figure')].map(f => f.clientWidth)")
    assert len(widths) == 4 + labeled
    assert (max(widths[:4]) < max(widths)) == labeled
