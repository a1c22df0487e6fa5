"""The built pages: nothing was lost on the way, and nothing in them leads nowhere."""

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bookfiles import HTML, ROOT, code_cells, described, notebooks, pages, script, tags
from bs4 import BeautifulSoup

pytestmark = pytest.mark.book

each_page = pytest.mark.parametrize("page", pages())
each_notebook = pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf8"), "html.parser")


@cache
def anchors(path: Path) -> set[str]:
    return {tag["id"] for tag in soup(path).find_all(id=True)}


def page_file(page: str) -> Path:
    return HTML / f"{page}.html"


@pytest.fixture(scope="module", autouse=True)
def _pages_of_this_checkout():
    build = script("book")
    stamp = HTML.parent / "good.sha256"
    assert stamp.exists(), "no good build: run make book"
    assert stamp.read_text() == build.digest(build.PAGES_REST_ON), "stale pages: run make book"


@each_page
def test_page_was_built(page):
    assert soup(page_file(page)).select_one("article h1").get_text()


def test_no_page_is_left_from_an_earlier_build():
    built = {path.relative_to(HTML).with_suffix("").as_posix() for path in HTML.rglob("*.html")}
    of_the_theme = {name for name in built if name.startswith("_static/")}
    code = {name for name in built if name.startswith("_modules/mha/")}
    modules = {path.relative_to(ROOT).with_suffix("") for path in (ROOT / "mha").rglob("*.py")}
    modules = {(path.parent if path.name == "__init__" else path).as_posix() for path in modules}
    assert {name.removeprefix("_modules/") for name in code} <= {*modules, "mha/results"}
    by_sphinx = {"index", "genindex", "search", "_modules/index"}
    assert built - of_the_theme - code == {*pages(), *by_sphinx}


def test_front_door_leads_to_the_first_page():
    refresh = soup(HTML / "index.html").find("meta", attrs={"http-equiv": "Refresh"})
    assert refresh["content"] == f"0; url={pages()[0]}.html"


@each_notebook
def test_no_output_was_lost(path):
    cells = soup(page_file(f"chapters/{path.stem}")).select("div.cell")
    shown = [cell for cell in code_cells(path) if "remove-cell" not in tags(cell)]
    assert len(cells) == len(shown)
    for cell, committed in zip(cells, shown, strict=True):
        if not tags(committed) & {"remove-output"}:
            blocks = cell.select(".cell_output > :not(summary)")
            assert len(blocks) == len(committed.outputs), committed.source
            assert all(b.get_text(strip=True) or b.find(["svg", "img"]) for b in blocks)


@each_page
def test_no_link_leads_nowhere(page):
    source = page_file(page)
    for link in soup(source).find_all("a", href=True):
        target = urlsplit(link["href"])
        if target.scheme or target.netloc or link["href"] == "#":
            continue
        path = (source.parent / unquote(target.path)).resolve() if target.path else source
        assert path.is_file(), link
        if target.fragment and path.suffix == ".html":
            assert unquote(target.fragment) in anchors(path), link


@each_page
def test_no_file_that_the_page_needs_is_missing(page):
    source = page_file(page)
    tags = soup(source).find_all(["img", "script", "link", "source", "iframe"])
    for tag in tags:
        target = urlsplit(tag.get("src") or (tag.get("href") if tag.name == "link" else "") or "")
        if target.path and not target.netloc and target.scheme != "data":
            assert (source.parent / unquote(target.path)).resolve().is_file(), tag


@each_page
def test_pictures_are_described(page):
    article = soup(page_file(page)).select_one("article")
    for image in article.find_all("img"):
        assert described(image.get("alt")), image
    for svg in article.find_all("svg"):
        figure = svg if svg.get("role") == "img" else svg.find_parent(attrs={"role": "img"})
        assert figure is not None and described(figure.get("aria-label")), str(svg)[:200]


@each_page
def test_no_markup_is_left_raw(page):
    article = BeautifulSoup(str(soup(page_file(page)).select_one("article")), "html.parser")
    for tag in article.select("pre, code, dt.sig, .math, script, style, svg"):
        tag.decompose()
    raw = re.search(r"\$\$|\$[A-Za-z\\{(]|```|\]\(|\*\*|\{[a-z:]+\}`", article.get_text())
    assert not raw, article.get_text()[max(0, raw.start() - 60) : raw.end() + 60]


@each_page
def test_a_link_says_where_it_leads(page):
    vague = {"here", "this", "more", "link", "click here", "learn more"}
    links = soup(page_file(page)).select("article a[href]")
    assert not [link for link in links if link.get_text(strip=True).lower() in vague]
