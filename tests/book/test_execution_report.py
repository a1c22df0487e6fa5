"""What the build writes into the pages: how the chapters were executed, and what a page is about."""

import platform
import re
import sys

import nbformat
import pytest
from bookfiles import HTML, ROOT, pages
from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

sys.path.append(str(ROOT / ".ci/sphinx"))

from mha_book import meta, report

ABOUT = {
    "kernelspec": {"name": "python3", "display_name": "Python 3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
INDEX = """# Home & hearth

*A subtitle.*

> A note, which is no prose.

Here $x$ is a formula. A sentence says *what* the "page" is for. It is short.

```{toctree}
two
one
```

```{execution-report}
```
"""


def build(folder, mode: str, **texts: str) -> BeautifulSoup:
    """The first page of a small book whose chapters are executed in this mode of MyST-NB."""
    source = folder / "source"
    source.mkdir(exist_ok=True)
    for name, text in {"index": INDEX, **texts}.items():
        (source / f"{name}.md").write_text(text, encoding="utf8")
    for name in ("one", "two"):
        book = nbformat.v4.new_notebook(metadata=ABOUT)
        cells = [nbformat.v4.new_markdown_cell(f"# {name}"), nbformat.v4.new_code_cell("1 + 1")]
        book.cells = cells
        nbformat.write(book, source / f"{name}.ipynb")
    settings = {
        "extensions": ["myst_nb", "mha_book.report", "mha_book.meta"],
        "source_suffix": {},  # Sphinx would write into its own default, which all builds share
        "myst_enable_extensions": ["dollarmath"],
        "nb_execution_mode": mode,
        "nb_execution_cache_path": str(folder / "cache"),
        "project": "A book",
    }
    with docutils_namespace(), (folder / "warnings").open("w") as stream:
        app = Sphinx(
            *(source, None, folder / "out", folder / "trees", "html"),
            *(settings, None, stream),
            freshenv=True,
        )
        app.build(force_all=True)
    assert not (folder / "warnings").read_text()
    return BeautifulSoup((folder / "out/index.html").read_text(encoding="utf8"), "html.parser")


def rows(page: BeautifulSoup) -> list[list[str]]:
    return [[cell.get_text() for cell in row.find_all("td")] for row in page.select("tbody tr")]


@pytest.mark.slow
def test_report_tells_what_ran_now_from_what_was_kept(tmp_path):
    first = build(tmp_path, "cache")
    assert [row[0] for row in rows(first)] == ["two", "one"]  # in the order of the book
    for _, seconds, when in rows(first):
        assert 0 < float(seconds) < 120
        assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", when)
    assert "2 of them ran when these pages were made; 0 were kept" in first.get_text()
    second = build(tmp_path, "cache")
    assert rows(second) == [[*row[:2], f"{row[2]}, kept"] for row in rows(first)]
    assert "0 of them ran when these pages were made; 2 were kept" in second.get_text()
    assert second.select_one("tbody a")["href"] == "two.html"


def test_report_says_when_nothing_was_executed(tmp_path):
    page = build(tmp_path, "off")
    assert "were not executed when these pages were made" in page.get_text()
    assert not page.find("table")


def test_report_names_versions_and_the_machine_but_no_place():
    told = dict(report.facts())
    assert f"Python {platform.python_version()}" in told["Versions"]
    for package in ("torch", "numpy", "jupyter-book", "Sphinx"):
        assert re.search(rf"\b{package} \d", told["Versions"])
    assert re.match(r"mha \d", told["Package"])
    assert re.search(r", \d+ cores, \d+ GiB of memory$", told["Machine"])
    text = " ".join(told.values())
    assert not re.search(r"(^|\s)/\w", text)
    assert not re.search(rf"\b{re.escape(platform.node())}\b", text)


def test_commit_is_that_of_the_checkout_or_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert report.commit() == ""

    def run(*words):
        report.subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)

    run("init", "-q")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    run(*who, "commit", "-q", "--allow-empty", "-m", "one")
    assert re.fullmatch(r"[0-9a-f]{7,}", report.commit())
    (tmp_path / "new").touch()
    assert report.commit().endswith(", with changes")


def test_a_page_is_described_by_its_first_prose(tmp_path):
    one = "# One\n\n" + "Long words go on and on. " * 12
    head = build(tmp_path, "off", **{"three": f"---\norphan: true\n---\n\n{one}"})
    described = head.find("meta", attrs={"name": "description"})["content"]
    assert described.startswith("A sentence says what the “page” is for. It is short. The ")
    three = BeautifulSoup((tmp_path / "out/three.html").read_text(), "html.parser")
    described = three.find("meta", attrs={"name": "description"})["content"]
    assert described.endswith("on.") and 120 < len(described) <= meta.LONG
    search = BeautifulSoup((tmp_path / "out/search.html").read_text(), "html.parser")
    assert search.find("meta", attrs={"name": "description"})["content"].startswith("A book")


@pytest.mark.book
@pytest.mark.parametrize("page", [*pages(), "search"])
def test_every_page_is_described_once(page):
    markup = BeautifulSoup((HTML / f"{page}.html").read_text(encoding="utf8"), "html.parser")
    (found,) = markup.find_all("meta", attrs={"name": "description"})
    assert 20 < len(found["content"]) <= meta.LONG + 2


@pytest.mark.book
def test_every_chapter_stands_in_the_report():
    page = HTML / "chapters/appendix-execution.html"
    markup = BeautifulSoup(page.read_text(encoding="utf8"), "html.parser")
    linked = [row.a["href"] for row in markup.select("article tbody tr")]
    chapters = [name for name in pages() if (ROOT / f"{name}.ipynb").exists()]
    assert linked == [f"{name.rpartition('/')[2]}.html" for name in chapters]
    assert all(float(row.find_all("td")[1].text) > 0 for row in markup.select("article tbody tr"))
