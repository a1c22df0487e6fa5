"""Formulas and icons: what the build writes into the pages in place of scripts."""

import re
import sys

import pytest
from bookfiles import ROOT, markdown, notebooks
from bs4 import BeautifulSoup
from sphinx.testing.util import SphinxTestApp

sys.path.insert(0, str(ROOT / ".ci/sphinx"))
from mha_book import icons, typeset

CONF = """
import sys
sys.path.insert(0, {path!r})
extensions = ["myst_parser", "typeset_only"]
myst_enable_extensions = ["amsmath", "dollarmath"]
source_suffix = {{}}  # Sphinx would write into its own default, which the next build shares
html_math_renderer = "typeset"
html_sidebars = {{"**": ["localtoc.html"]}}
"""
SHIM = "def setup(app):\n    from mha_book import typeset\n    typeset.setup(app)\n"


@pytest.fixture
def built(tmp_path):
    """A function that builds one page of MyST and returns it, with the build's warnings."""

    def build(text: str) -> tuple[BeautifulSoup, str]:
        (tmp_path / "src").mkdir()
        (tmp_path / "src/conf.py").write_text(CONF.format(path=str(tmp_path)))
        (tmp_path / "typeset_only.py").write_text(SHIM)
        (tmp_path / "src/index.md").write_text(text, encoding="utf8")
        app = SphinxTestApp("html", srcdir=tmp_path / "src", builddir=tmp_path / "out")
        app.build()
        html = (app.outdir / "index.html").read_text(encoding="utf8")
        warnings = app.warning.getvalue()
        app.cleanup()
        return BeautifulSoup(html, "html.parser"), warnings

    yield build
    sys.modules.pop("typeset_only", None)


@pytest.fixture(scope="module")
def typesetter():
    one = typeset.Typesetter()
    yield one
    one.close()


def test_a_page_with_formulas_needs_a_style_sheet_and_no_script(built, tmp_path):
    page, warnings = built("# A\n\nOf $Q$ and\n\n$$\nS = QK^\\top \\tag{4.2.1}\n$$\n")
    assert not warnings
    assert "mathjax" not in "".join(str(script) for script in page.find_all("script")).lower()
    assert page.find("link", href=re.compile(r"_static/mathjax/mathjax\.css"))
    inline, display = page.select("mjx-container")
    assert inline.select_one("math mi").text == "Q"
    assert [token.text for token in display.select("math mi")] == ["S", "Q", "K", "⊤"]
    assert display.select_one("mjx-math")["aria-hidden"] == "true"
    assert page.select_one("div.math .eqno").text == "(4.2.1)"
    assert "4.2.1" not in display.text
    static = tmp_path / "out/html/_static/mathjax"
    named = set(re.findall(r'url\("?([^")]+)"?\)', (static / "mathjax.css").read_text()))
    assert len(named) > 10 and all((static / name).is_file() for name in named)


def test_a_page_without_formulas_has_no_style_sheet_for_them(built):
    page, _ = built("# A\n\nNothing to count.\n")
    assert not page.find("link", href=re.compile("mathjax"))


@pytest.mark.parametrize("tex", [r"\nosuchname", r"\frac{1}", r"\begin{aligned} a"])
def test_a_mistake_in_a_formula_is_a_warning(built, tex):
    _, warnings = built(f"# A\n\n$$\n{tex}\n$$\n")
    assert "index.md:" in warnings and "MathJax: " in warnings


def test_a_formula_of_several_lines_keeps_its_number(built):
    lines = "\\begin{aligned}\na &= 1 \\\\\nb &= 2\n\\end{aligned} \\tag{1.2}"
    page, warnings = built(f"# A\n\n$$\n{lines}\n$$\n")
    assert not warnings
    assert page.select_one(".eqno").text == "(1.2)"
    assert len(page.select("math mtable mtable mtr, math mtable mtr")) >= 2


def test_two_numbers_for_one_formula_are_a_warning(built):
    _, warnings = built("# A\n\n$$\na \\tag{1} \\tag{2}\n$$\n")
    assert "a formula has one number" in warnings


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_mathjax_takes_every_formula_of_the_chapter(path, typesetter):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", markdown(path), flags=re.DOTALL)
    formulas = re.findall(r"\$\$(.+?)\$\$|(?<!\$)\$([^$\n]+)\$", text, flags=re.DOTALL)
    for display, inline in formulas:
        tex = typeset.TAG.sub("", display or inline).strip()
        answer = typesetter.ask({"tex": tex, "display": bool(display)})
        assert "error" not in answer, (answer["error"], tex)
        assert "NaNem" not in answer["html"], tex


def test_marks_of_icons_become_pictures():
    mark = '<i class="theme-switch fa-solid fa-sun   fa-lg" data-mode="light" title="Light"></i>'
    picture = BeautifulSoup(icons.MARK.sub(icons.drawn, mark), "html.parser").svg
    assert picture["class"] == ["svg-inline--fa", "theme-switch", "fa-solid", "fa-sun", "fa-lg"]
    assert picture["data-mode"] == "light" and picture["aria-hidden"] == "true"
    assert picture["viewbox"].count(" ") == 3 and len(picture.path["d"]) > 100


def test_what_is_no_icon_stays():
    for text in ('<i class="fabric">x</i>', '<span class="fa"></span>', "<i>fa-sun</i>"):
        assert icons.MARK.sub(icons.drawn, text) == text


def test_an_unknown_icon_is_an_error():
    with pytest.raises(FileNotFoundError, match="no-such-icon"):
        icons.MARK.sub(icons.drawn, '<i class="fas fa-no-such-icon"></i>')


def test_formulas_are_not_searched(built, tmp_path):
    built("# Alpha\n\nPlain $\\frac{Q}{\\sum}$ words.\n\n$$\n\\sqrt{D}\n$$\n")
    index = (tmp_path / "out/html/searchindex.js").read_text()
    assert '"plain"' in index and not re.search(r'"(frac|sum|sqrt)"', index)


def test_a_formula_in_a_title_is_typeset_in_the_contents_too(built):
    page, warnings = built("# A\n\n## The root $\\sqrt{D}$\n\nText.\n\n## Next\n\nText.\n")
    assert not warnings
    assert len(page.select("mjx-container")) == 2  # the heading, and the list at the side
