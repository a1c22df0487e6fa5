"""The PDF of the whole book, and how .ci/paper.py makes a page ready for it."""

import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pikepdf
import pytest
from bookfiles import HTML, ROOT, pages, script
from bs4 import BeautifulSoup
from pypdf import PdfReader

BUILT = Path(os.environ.get("MHA_BOOK_HTML", HTML))
FRONT = ["Contents", "About this book"]  # bookmarks between the title and the first chapter
whole_book = [pytest.mark.book, pytest.mark.slow]

PAGE = """<html><head><link rel="stylesheet" href="../_static/book.css"></head><body>
<nav id="bar"></nav><article class="bd-article"><section id="top">
<h1>4.2 Scores<a class="headerlink" href="#top">#</a></h1>
<p id="part">See <a href="#part">here</a>, <a href="05-1-data.html">there</a>,
<a href="05-1-data.html#words">its words</a>, <a href="https://example.org/a.html">outside</a>.</p>
<div role="img" aria-label="A red square." aria-describedby="part"><svg aria-hidden="true">
<defs><clipPath id="cut"></clipPath></defs><use href="#cut" clip-path="url(#cut)"/></svg></div>
<p><mjx-container><mjx-math aria-hidden="true"><mjx-mi><mjx-c class="mjx-c1D451 TEX-I"></mjx-c>
</mjx-mi></mjx-math><mjx-assistive-mml><math><mi>d</mi></math></mjx-assistive-mml></mjx-container></p>
<div class="cell tag_hide-input"><details class="admonition hide"><summary>
<p class="collapsed">Show code cell source</p><p class="expanded">Hide code cell source</p></summary>
<div class="highlight"><pre><span class="k">import</span> <span class="n">mha</span></pre></div>
</details></div>
<p><strong>Question 1.</strong> Why?</p><details class="quiz"><summary>Answers</summary>One.</details>
<p><strong>Question 2.</strong> How?</p><details class="quiz"><summary>Answers</summary>Two.</details>
<details><summary>Hint</summary>Look.</details><script>draw()</script>
</section></article></body></html>"""


@pytest.fixture
def page(tmp_path):
    """PAGE as the chapter 04-2-scores, not yet made ready."""
    (tmp_path / "04-2-scores.html").write_text(PAGE, encoding="utf8")
    return script("paper").Page(tmp_path / "04-2-scores.html")


@pytest.fixture
def pdf_script(monkeypatch):
    """.ci/pdf.py as a module."""
    monkeypatch.syspath_prepend(ROOT / ".ci")
    return script("pdf")


def test_a_page_keeps_its_title_and_leaves_what_is_for_screens(page):
    assert page.title == "4.2 Scores"
    assert page.styles == ["../_static/book.css"]
    assert "script" not in page.html() and "headerlink" not in page.html()


def test_ids_and_links_carry_the_name_of_the_page(page):
    page.rename()
    links = [link["href"] for link in page.article.find_all("a")]
    outside = "https://example.org/a.html"
    assert links == ["#04-2-scores--part", "#05-1-data", "#05-1-data--words", outside]
    ids = [element["id"] for element in page.article.find_all(id=True)]
    assert ids == ["04-2-scores--top", "04-2-scores--part", "04-2-scores--cut"]
    assert page.article.find(role="img")["aria-describedby"] == "04-2-scores--part"
    use = page.article.find("use")
    assert (use["href"], use["clip-path"]) == ("#04-2-scores--cut", "url(#04-2-scores--cut)")
    assert page.html().startswith('<article class="bd-article" id="04-2-scores">')


def test_folds_are_open_under_their_names_and_answers_follow_the_questions(page):
    page.collect_answers()
    page.unfold()
    assert not page.article.find_all(["details", "summary"])
    text = " ".join(page.article.get_text().split())
    answers = "Answers to question 1One. Answers to question 2Two."
    assert answers.replace(" ", "") in text.replace(" ", "")
    assert text.index("How?") < text.index("One.") < text.index("Hint") < text.index("Look.")
    assert "code cell" not in text and "import mha" in text


def test_the_cell_that_prepares_a_chapter_is_printed_once(page, tmp_path):
    seen, again = set(), script("paper").Page(tmp_path / "04-2-scores.html")
    page.drop_repeated(seen)
    again.drop_repeated(seen)
    assert "import" in page.article.get_text() and "import" not in again.article.get_text()


def test_code_keeps_the_marks_that_have_a_color_of_their_own(page):
    css = """html[data-theme="light"] .highlight { background: #fff; color: #080808 }
    html[data-theme="light"] .highlight .n { color: #080808 } /* Name */
    html[data-theme="light"] .highlight .k { color: #7928a1 } /* Keyword */
    html[data-theme="dark"] .highlight .k { color: #080808 } /* Keyword */"""
    page.simplify_code(script("paper").plain_marks(css))
    assert page.article.pre.decode_contents() == '<span class="k">import</span> mha'


def test_figures_and_formulas_are_described_and_not_hidden(page):
    page.describe_pictures({frozenset({"mjx-c1D451", "TEX-I"}): "d"})
    formula = page.article.find("mjx-container")
    assert (formula["role"], formula["aria-label"]) == ("img", "d")
    assert formula.get_text().strip() == "d" and not formula.find("math")
    assert not page.article.select('[aria-hidden="true"]')


@pytest.mark.parametrize(
    ("mathml", "said"),
    [
        ("<msub><mi>d</mi><mi>k</mi></msub>", "d_k"),
        ("<mi>x</mi><mo>=</mo><mn>3</mn>", "x = 3"),
        ("<msup><mi>e</mi><mrow><mi>x</mi><mo>−</mo><mi>m</mi></mrow></msup>", "e^(x − m)"),
        ("<mfrac><mn>1</mn><msqrt><mi>D</mi></msqrt></mfrac>", "1/(√(D))"),
        ("<munderover><mo>∑</mo><mi>i</mi><mi>n</mi></munderover><mi>i</mi>", "∑_i^ni"),
        ("<mtable><mtr><mtd>a</mtd><mtd>b</mtd></mtr><mtr><mtd>c</mtd></mtr></mtable>", "a, b; c"),
    ],
)
def test_a_formula_in_words(mathml, said):
    node = BeautifulSoup(f"<math>{mathml}</math>", "lxml").math
    assert script("paper").spoken(node) == said


def test_characters_move_from_the_style_sheet_into_the_formula():
    css = """mjx-c::before {
  display: block;
}
mjx-stretchy-v > mjx-ext > mjx-c::before {
  width: initial;
}
mjx-c.mjx-c5C.TEX-I::before {
  padding: 0.75em 0.5em 0.25em 0;
  content: "\\\\";
}
mjx-c.mjx-c221A::before {
  content: "\\221A";
}"""
    glyphs, style = script("paper").glyphs_and_style(css)
    assert glyphs == {frozenset({"mjx-c5C", "TEX-I"}): "\\", frozenset({"mjx-c221A"}): "√"}
    assert "content" not in style and "mjx-c.mjx-c5C.TEX-I>mjx-g {" in style
    assert "mjx-c::before, mjx-c>mjx-g {\n  display" in style
    assert "mjx-ext > mjx-c::before {" in style


def test_a_link_that_leads_nowhere_and_an_id_that_is_there_twice_end_the_build(pdf_script):
    pdf_script.check_links('<p id="a"><a href="#a">a</a> &lt;x id="a"&gt;</p>')
    with pytest.raises(ValueError, match=r"lead nowhere: \['b'\]"):
        pdf_script.check_links('<p id="a"><a class="x" href="#b">b</a></p>')
    with pytest.raises(ValueError, match=r"twice: \['a'\]"):
        pdf_script.check_links('<p id="a"></p><p id="a"></p>')


def test_without_a_browser_it_says_what_to_install(pdf_script, monkeypatch, capsys):
    monkeypatch.setattr(pdf_script.browser, "find", lambda: None)
    assert pdf_script.main() == 1
    assert "apt-get install chromium" in capsys.readouterr().err


def test_without_pages_it_says_how_to_make_them(pdf_script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(pdf_script.browser, "find", lambda: "/usr/bin/true")
    monkeypatch.setattr(pdf_script, "HTML", tmp_path)
    assert pdf_script.main() == 1
    assert "run make book" in capsys.readouterr().err


# The PDF itself


@pytest.fixture(scope="module")
def pdf() -> Path:
    """The PDF of the built pages, printed now unless it is there already."""
    browser = script("browser")
    if browser.find() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(browser.ADVICE)
    command = [sys.executable, ROOT / ".ci/pdf.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr
    return BUILT.parent / "pdf" / "multi-head-attention.pdf"


@pytest.fixture(scope="module")
def reader(pdf) -> PdfReader:
    return PdfReader(pdf)


@pytest.fixture(scope="module")
def chinese_font() -> None:
    """Without such a font the Chinese words of titles are boxes, which hold no text."""
    if not (shutil.which("fc-list") and subprocess.check_output(["fc-list", ":lang=zh"])):
        pytest.skip("needs a Chinese font: apt-get install fonts-noto-cjk")


@pytest.fixture(scope="module")
def built() -> dict[str, BeautifulSoup]:
    """Name of each page -> its article, as it was built, without what is for screens."""
    found = {}
    for name in pages():
        whole = BeautifulSoup((BUILT / f"{name}.html").read_text(encoding="utf8"), "lxml")
        article = whole.find("article", class_="bd-article")
        for unwanted in article.select(script("paper").FOR_SCREENS):
            unwanted.decompose()
        found[name.rpartition("/")[2]] = article
    return found


def squeezed(text: str) -> str:
    """Text as two programs agree on it: no spaces, no quotes of two kinds, one form of a sign."""
    return "".join(unicodedata.normalize("NFKC", text).replace("’", "'").split())


def without_chinese(text: str) -> str:
    """`squeezed`, without the signs that a machine may have no font for."""
    return re.sub(r"[\u3400-\u9fff·]", "", squeezed(text))


def titles(built: dict[str, BeautifulSoup]) -> dict[str, str]:
    """Name of each page -> its title; the first one's stands on the cover."""
    found = {name: article.h1.get_text().strip() for name, article in built.items()}
    return {**found, next(iter(found)): FRONT[-1]}


def beginnings(reader: PdfReader) -> dict[str, int]:
    """Destination -> index of the page of paper on which it lies."""
    places = reader.named_destinations
    return {
        name.lstrip("/"): reader.get_destination_page_number(place)
        for name, place in places.items()
    }


class TestWholeBook:
    """What is in the PDF that `make pdf` prints."""

    pytestmark = whole_book

    def test_it_is_tagged_and_says_what_it_is(self, reader, built):
        root = reader.trailer["/Root"]
        assert root["/MarkInfo"]["/Marked"].value is True
        assert root["/StructTreeRoot"]["/K"]
        assert root["/Lang"] == "en"
        assert root["/ViewerPreferences"]["/DisplayDocTitle"].value is True
        assert reader.metadata.title == next(iter(built.values())).h1.get_text().strip()
        assert reader.metadata.author

    def test_a_bookmark_leads_to_each_chapter(self, reader, built, chinese_font):
        marks = [mark for mark in reader.outline if not isinstance(mark, list)]
        wanted = titles(built)
        assert [squeezed(mark.title) for mark in marks[1:]] == [
            squeezed(title) for title in [FRONT[0], *wanted.values()]
        ]
        assert [len(mark.title.split()) for mark in marks[2:]] == [
            len(title.split()) for title in wanted.values()
        ]
        at = beginnings(reader)
        opened = [reader.get_destination_page_number(mark) for mark in marks[2:]]
        assert opened == [at[name] for name in wanted]

    def test_each_chapter_begins_on_a_page_of_its_own_with_its_title(self, reader, built):
        at = beginnings(reader)
        places = [at[name] for name in built]
        assert places == sorted(set(places))
        for name, title in titles(built).items():
            text = without_chinese(reader.pages[at[name]].extract_text())
            # once in the running head, once as the heading
            assert text.count(without_chinese(title)) >= 2, title

    def test_pages_are_numbered(self, reader):
        wrong = []
        for index in [*range(1, 8), *range(8, len(reader.pages), 37)]:
            lines = reader.pages[index].extract_text().splitlines()
            wrong += [] if str(index + 1) in lines[:2] else [(index + 1, lines[:2])]
        assert not wrong
        assert "1" not in reader.pages[0].extract_text().splitlines()

    def test_the_contents_name_the_page_of_each_chapter(self, reader, built, chinese_font):
        at = beginnings(reader)
        first = at[next(iter(built))]
        text = "".join(reader.pages[n].extract_text() + "\n" for n in range(1, first))
        text = without_chinese(text)
        missing = [
            title
            for name, title in titles(built).items()
            if without_chinese(title) + str(at[name] + 1) not in text
        ]
        assert not missing

    def test_no_page_is_empty(self, reader, built):
        heads = {squeezed(title) for title in titles(built).values()}
        drawn = [len(page.get_contents().get_data()) for page in reader.pages]
        for index in sorted(range(len(drawn)), key=drawn.__getitem__)[:25]:
            lines = [squeezed(line) for line in reader.pages[index].extract_text().splitlines()]
            assert set(lines) - heads - {str(index + 1), ""}, f"page {index + 1} is empty"

    def test_links_lead_into_the_pdf_or_to_other_hosts(self, pdf, built):
        inside, outside = set(), set()
        with pikepdf.open(pdf) as opened:
            there = {name.removeprefix("/") for name in opened.Root.Dests.keys()}
            for note in (note for page in opened.pages for note in page.get("/Annots", [])):
                if "/Dest" in note:
                    inside.add(str(note.Dest).removeprefix("/"))
                else:
                    outside.add(str(note.A.URI))
        assert not inside - there
        hrefs = [(n, a["href"]) for n, page in built.items() for a in page.select("a[href]")]
        hosts = {href for _, href in hrefs if urlsplit(href).scheme}
        assert {uri.rstrip("/") for uri in outside} == {href.rstrip("/") for href in hosts}
        assert {urlsplit(uri).scheme for uri in outside} <= {"http", "https", "mailto"}
        asked = {
            "--".join(filter(None, [Path(parts.path).stem or name, parts.fragment]))
            for name, parts in ((name, urlsplit(href)) for name, href in hrefs)
            if not parts.scheme
        }
        assert inside == asked | set(built)

    def test_every_figure_and_formula_has_its_description(self, pdf, built):
        with pikepdf.open(pdf) as opened:
            elements = (one for one in opened.objects if isinstance(one, pikepdf.Dictionary))
            found = Counter(
                squeezed(str(one.get("/Alt", "")))
                for one in elements
                if one.get("/S") == "/Figure" and one.get("/K") is not None
            )
        pictures = [one for page in built.values() for one in page.select('[role="img"]')]
        wanted = Counter(squeezed(one["aria-label"]) for one in pictures)
        live = [one for page in built.values() for one in page.select(".mha-explorer [role=img]")]
        formulas = sum(len(page.find_all("mjx-container")) for page in built.values())
        assert live and wanted <= found and "" not in found
        assert sum(found.values()) == len(pictures) + formulas

    def test_chinese_is_printed(self, reader, built, chinese_font):
        at = beginnings(reader)
        text = reader.pages[at["appendix-glossary"]].extract_text()
        assert "术语表" in unicodedata.normalize("NFKC", text)
