"""Tests of the built site in Chromium, outside the default suite: `make browser`."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.check_report import DESKTOP, PHONE, Page, chromium

ROOT = Path(__file__).parents[1]
WIDE = (1920, 1080)
LONGEST = 11_000
"""Pixels of a page of the reference in a window of 1280."""

CUT_OFF = """
    return [...document.querySelectorAll("article pre, article pre code")]
        .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60));
"""
MISSING = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src);"
WIDER = "const r = document.documentElement; return Math.max(0, r.scrollWidth - r.clientWidth);"
WIDE_TABLES = """
    return [...document.querySelectorAll("article .md-typeset__scrollwrap")]
        .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.trim().slice(0, 60));
"""
HIGH_ROWS = """
    return [...document.querySelectorAll("article > .md-typeset__scrollwrap tr:has(:nth-child(4))")]
        .filter(e => e.offsetHeight > 240).map(e => e.textContent.trim().slice(0, 60));
"""
HEIGHT = "return document.querySelector('article').scrollHeight;"
NEIGHBORS = "return document.querySelectorAll('.md-footer__link').length;"
GROUND = """
    await new Promise(done => setTimeout(done, 500));  // colors fade
    return getComputedStyle(document.body).backgroundColor;
"""
SEARCH = """
    const wait = ms => new Promise(done => setTimeout(done, ms));
    const input = document.querySelector(".md-search__input");
    input.focus();
    input.value = "sinkhorn";
    input.dispatchEvent(new Event("keyup", {bubbles: true}));
    input.dispatchEvent(new Event("input", {bubbles: true}));
    for (let i = 0; i < 100 && !document.querySelector(".md-search-result__link"); i++) await wait(100);
    return [...document.querySelectorAll(".md-search-result__link")].map(e => e.href);
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


def pages(site: Path) -> list[Path]:
    return [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]


@pytest.mark.parametrize("size", [PHONE, DESKTOP, WIDE], ids=["phone", "desktop", "wide"])
def test_nothing_is_cut_off_missing_or_loaded_from_elsewhere(page: Page, site: Path, size) -> None:
    found = {}
    for path in pages(site):
        page.open(path, size)
        problems = [*page.ask(CUT_OFF), *page.ask(MISSING), *page.complaints()]
        problems += [f"{wider} pixels too wide"] if (wider := page.ask(WIDER)) else []
        if problems:
            found[path.name] = problems
    assert found == {}


def test_pages_of_the_reference_are_of_readable_length(page: Page, site: Path) -> None:
    heights = {}
    for path in sorted((site / "api").glob("*.html")):
        page.open(path, DESKTOP)
        heights[path.name] = page.ask(HEIGHT)
        assert page.ask("return document.querySelectorAll('article blockquote').length") == 0, path
    assert {name: height for name, height in heights.items() if height > LONGEST} == {}


@pytest.mark.parametrize(
    ("size", "problem"), [(PHONE, HIGH_ROWS), (DESKTOP, WIDE_TABLES), (WIDE, WIDE_TABLES)]
)
def test_tables_fit_their_column_and_scroll_on_a_phone(page: Page, site: Path, size, problem: str) -> None:
    found = {}
    for path in pages(site):
        page.open(path, size)
        if tables := page.ask(problem):
            found[path.name] = tables
    assert found == {}


def test_pages_follow_the_color_scheme_of_the_system_until_a_reader_chooses(page: Page, site: Path) -> None:
    grounds = []
    for scheme in ("light", "dark", "light"):
        page.open(site / "index.html", DESKTOP, scheme)
        grounds.append(page.ask(GROUND))
    assert grounds[0] == grounds[2] != grounds[1]
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.ask(GROUND) == grounds[1]  # without loading the page again
    page.ask("document.querySelector('label.md-header__button[for=__palette_1]').click()")
    assert page.ask(GROUND) == grounds[0]


def test_pages_lead_to_their_neighbors(page: Page, site: Path) -> None:
    page.open(site / "reproduce.html", DESKTOP)
    assert page.ask(NEIGHBORS) == 2


def test_the_search_finds_a_function(page: Page, site: Path) -> None:
    page.open(site / "index.html", DESKTOP)
    assert any("assignments.html" in link for link in page.ask(SEARCH))
