"""What the local extension adds for readers: colors, numbers, terms, minutes."""

import json
import re
import sys

import pytest
from bookfiles import ROOT, markdown, notebooks
from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

sys.path.append(str(ROOT / ".ci/sphinx"))

from mha_book import glossary, numbering, reading


class Built:
    """A small book: its pages, what the build warned of, and what the search found to index."""

    def __init__(self, folder, parts: tuple[str, ...], pages: dict[str, str]):
        source, warnings = folder / "source", folder / "warnings"
        source.mkdir(exist_ok=True)
        for name, text in pages.items():
            file = source / f"{name}.md"
            if not file.exists() or file.read_text(encoding="utf8") != text:  # as an editor does
                file.write_text(text, encoding="utf8")
        settings = {
            "extensions": ["myst_parser", *(f"mha_book.{part}" for part in parts)],
            "source_suffix": {},  # Sphinx would write into its own default, which all builds share
            "myst_enable_extensions": ["dollarmath", "deflist"],
            "myst_heading_anchors": 3,
            "suppress_warnings": ["myst.xref_missing"],
        }
        with docutils_namespace(), warnings.open("w") as stream:
            out, trees = folder / "out", folder / "trees"
            app = Sphinx(source, None, out, trees, "html", settings, status=None, warning=stream)
            app.build()
        said = re.sub(r"\x1b\[[\d;]*m", "", warnings.read_text()).splitlines()
        self.warnings = "\n".join(line for line in said if "in any toctree" not in line)
        self.out = out

    def page(self, name: str) -> BeautifulSoup:
        markup = (self.out / f"{name}.html").read_text(encoding="utf8")
        return BeautifulSoup(markup, "html.parser").select_one('div[role="main"]')

    def indexed(self) -> set[str]:
        script = (self.out / "searchindex.js").read_text(encoding="utf8")
        return set(json.loads(script[len("Search.setIndex(") : -1])["terms"])


@pytest.fixture
def build(tmp_path):
    """``build(("colors",), index="# 1 One")`` builds these pages with these modules."""
    return lambda parts, **pages: Built(tmp_path, parts, {"index": "# Home", **pages})


# Colors in sentences; test_colors.py has the formulas


def test_letters_in_sentences_and_code(build):
    text = """# 4.2 Scores

Rows of Q, K and V; the entries of q and k. By A. Q. Jiang, MQA-K, `q`, `K`, `key`. A k alone is K's.

A k that counts, `k`.

## References

Programs V: Q.
"""
    page = build(("colors",), chapter=text).page("chapter")
    first, second, third = page.select("p")
    assert [tag.get_text() for tag in first.select("span.mha-q, span.mha-k, span.mha-v")] == list(
        "QKVqkkK"
    )
    assert [tag.get_text() for tag in first.select("code.mha-q, code.mha-k")] == ["q", "K"]
    assert not second.select("[class*=mha-]") and not third.select("[class*=mha-]")


def test_formulas_of_a_page_know_their_paragraph_and_chapter(build):
    text = "# 2 Words\n\nSee $q$ and $k$ in $V$.\n\nFrom $k = 1$ to $V$.\n"
    built = build(("colors",), **{"05-1-data": text, "02-concepts": text})
    here = [tag.get_text() for tag in built.page("02-concepts").select("span.math")]
    assert [tex.count("class") for tex in here] == [1, 1, 1, 0, 1]
    borrowed = [tag.get_text() for tag in built.page("05-1-data").select("span.math")]
    assert [tex.count("class") for tex in borrowed] == [1, 0, 0, 0, 0]


# Numbers

NUMBERED = """# 4.2 Scores

Look at Figure
4.2.1, and at equations (4.2.1) and (4.2.2).

**Figure 4.2.1.** A table, as Figure 3.1 has it.

$$
x = y \\tag{4.2.1}
$$

$$
y = z \\tag{4.2.2}
$$
"""


def test_mentions_lead_to_captions_and_formulas(build):
    other = "# 3 Steps\n\n**Figure 3.1.** Steps.\n\nSee Figures 3.1, 4.2.1 and `Figure 9.9`. Figure 2.\n"
    built = build(("numbering",), a=NUMBERED, b=other)
    assert built.warnings == ""
    page = built.page("a")
    links = {" ".join(a.get_text().split()): a["href"] for a in page.select("p a.internal")}
    assert links == {
        "Figure 4.2.1": "#figure-4-2-1",
        "equations (4.2.1)": "#equation-4-2-1",
        "(4.2.2)": "#equation-4-2-2",
        "Figure 3.1": "b.html#figure-3-1",
    }
    caption = page.select_one("#figure-4-2-1")
    assert caption.name == "p" and caption["class"] == ["mha-caption"]
    assert "y" in page.select_one("div.math#equation-4-2-1").get_text()
    links = [(a.get_text(), a["href"]) for a in built.page("b").select("p a.internal")]
    assert links == [("Figures 3.1", "#figure-3-1"), ("4.2.1", "a.html#figure-4-2-1")]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("See Figure 4.2.9.", "Figure 4.2.9 is mentioned, but nothing has this number"),
        ("By equation (4.2.9).", "equation (4.2.9) is mentioned"),
        ("**Figure 4.2.1.** A\n\n**Figure 4.2.1.** B", "figure 4.2.1 is there twice"),
        ("**Figure 4.3.1.** A", "figure 4.3.1 should be 4.2.1"),
        ("$$\nx \\tag{4.2.2}\n$$\n\n$$\nx \\tag{4.2.1}\n$$", "equation 4.2.2 should be 4.2.1"),
        ("$$\nx \\tag{4.2.1}\n$$\n\n$$\nx \\tag{4.2.1}\n$$", "equation 4.2.1 is there twice"),
    ],
)
def test_wrong_numbers_are_warnings(build, text, warning):
    assert warning in build(("numbering",), a=f"# 4.2 Scores\n\n{text}\n").warnings


def test_pages_are_written_again_when_a_number_has_moved(build):
    mention = "# 1 One\n\nSee Figure 4.2.1.\n"
    assert build(("numbering",), a=NUMBERED, b=mention, c="# 3 C\n\n**Figure 3.1.** C").page("b").a
    moved = {"a": "# 4.2 Scores", "c": NUMBERED, "b": mention}
    built = build(("numbering",), **moved)
    assert built.page("b").select_one("p a")["href"] == "c.html#figure-4-2-1"


def test_a_caption_describes_the_figure_above_it():
    section = nodes.section()
    figure = '<div class="mha-figure" role="img" aria-label="One two three four"></div>'
    section += nodes.container("", nodes.raw("", figure, format="html"), classes=["cell"])
    section += nodes.paragraph("", "", nodes.strong("", "Figure 1.1."), ids=["figure-1-1"])
    numbering._describe_figure(section[1])
    markup = BeautifulSoup(section[0][0].astext(), "html.parser").div
    assert markup["aria-describedby"] == "figure-1-1" and markup["role"] == "img"


# Terms

GLOSSARY = """# Glossary

causal mask · 因果掩码
: The rule that no query sees the future. [5.4](05-4-masks.md#three-questions), [8](x.md)

mask · 掩码
: Which query may see which key. [5.4](05-4-masks.md)

query head · 查询头
: A head of queries. [3](03.md)

query · 查询
: The row that asks zealously, $-\\infty$. [2](02.md#three)

patch · 图像块
: A small square of an image. [6.2](05-4-masks.md#the-map-w_o)
"""


def terms(page: BeautifulSoup) -> list[str]:
    return [tag.get_text() for tag in page.select("a.mha-term")]


def test_terms_are_linked_once_at_their_first_use(build):
    text = """# 4.2 Masks of a query

*Section · 中文 mask*

**Figure 4.2.1.** A query.

Two `mask`s, unmasked, [a mask](index.md). Queries under causal
masks, causal mask, the masks. A patch of an image, a query, patches, query heads.
"""
    built = build(
        ("numbering", "glossary"),
        **{"appendix-glossary": GLOSSARY, "a": text, "index": "# No\n\nA mask."},
    )
    assert built.warnings == ""
    page = built.page("a")
    assert terms(page) == ["Queries", "causal\nmasks", "masks", "patch", "query heads"]
    link = page.select_one("a.mha-term")
    assert link["href"] == "appendix-glossary.html#term-query"
    assert built.page("appendix-glossary").select_one("dt#term-query")
    card = page.find(id=link["aria-describedby"])
    assert card.has_attr("hidden") and card["role"] == "tooltip"
    assert card.select_one("[lang=zh]").get_text() == "查询"
    definition = card.select("p")[1]
    assert "The row that asks zealously" in definition.get_text() and not definition.find("a")
    assert definition.select_one("span.math")
    assert len(page.select(".mha-card")) == 5
    assert not terms(built.page("index")) and not terms(built.page("appendix-glossary"))


def test_cards_are_not_searched(build):
    built = build(("glossary",), **{"appendix-glossary": GLOSSARY, "a": "# 1 A\n\nA query.\n"})
    index = (built.out / "searchindex.js").read_text(encoding="utf8")
    terms_of = json.loads(index[len("Search.setIndex(") : -1])
    pages = terms_of["docnames"]
    assert built.page("a").select(".mha-card") and "zealous" in built.indexed()
    assert terms_of["terms"]["zealous"] == pages.index("appendix-glossary")


@pytest.mark.parametrize("place", ["## Quiz", "## Exercises", "## References", "<details>"])
def test_no_term_is_linked_where_it_would_disturb(build, place):
    text = f"# 1 A\n\n{place}\n\nA query.\n"
    assert not terms(build(("glossary",), **{"appendix-glossary": GLOSSARY, "a": text}).page("a"))


def test_no_term_is_linked_in_the_section_that_explains_it(build):
    explained = "# 5.4 Masks\n\nA mask.\n\n## Three questions\n\nA causal mask, a query, a mask.\n"
    explained += "\n## The map W_O\n\nThe patch of an image.\n"
    built = build(("glossary",), **{"appendix-glossary": GLOSSARY, "05-4-masks": explained})
    assert terms(built.page("05-4-masks")) == ["query"]


def test_a_word_in_another_sense_is_no_term(build):
    text = "# 1 A\n\nA patch of ice. Pictures have patches.\n"
    built = build(("glossary",), **{"appendix-glossary": GLOSSARY, "a": text})
    assert terms(built.page("a")) == ["patches"]


def test_exceptions_are_terms_of_the_glossary():
    text = (ROOT / "chapters/appendix-glossary.md").read_text(encoding="utf8")
    known = set(re.findall(r"^(.+?) · ", text, re.MULTILINE))
    assert glossary.ONLY_BESIDE.keys() <= known


def test_pages_are_written_again_when_the_glossary_has_changed(build):
    chapter = "# 1 A\n\nA query.\n"
    build(("glossary",), **{"appendix-glossary": GLOSSARY, "a": chapter})
    changed = GLOSSARY.replace("zealously", "politely")
    built = build(("glossary",), **{"appendix-glossary": changed, "a": chapter})
    assert "politely" in built.page("a").select_one(".mha-card").get_text()


# Minutes

HOME = """# Home

## How to read

Slowly.

## How to run

```{toctree}
:caption: 1 Part

a
b
c
```
"""
CHAPTER = "# {} Title\n\nReading time: about {} minutes. You need: time.\n"


def test_the_first_page_lists_chapters_with_minutes_and_sums(build):
    pages = {"a": CHAPTER.format(1, 15), "b": CHAPTER.format(2, 20), "c": "# Appendix"}
    built = build(("reading",), index=HOME, **pages)
    contents = built.page("index").select_one(".mha-contents")
    assert contents.find_next("h2").get_text().startswith("How to run")
    assert contents.select_one("li p").get_text() == "1 Part 35 minutes"
    assert [a["href"] for a in contents.select("a")] == ["a.html", "b.html"]
    assert [tick["data-page"] for tick in contents.select(".mha-tick")] == ["a", "b"]
    assert built.page("b").select_one(".mha-progress")["data-page"] == "b"
    assert not built.page("c").select(".mha-progress")
    assert "min" not in built.indexed()


def test_the_contents_at_the_side_carry_minutes():
    class App:
        class builder:
            get_relative_uri = staticmethod(lambda here, page: f"{page}.html")

        class env:
            mha_minutes = {"a": 15, "b": 20}

    links = '<a href="#">A</a><a href="b.html">B</a><a href="c.html">C</a>'
    contents = BeautifulSoup(links, "html.parser")
    context = {"generate_toctree_html": lambda **_: contents}
    reading.add_minutes(App, "a", "page.html", context, None)
    for _ in range(2):  # the theme asks twice
        found = context["generate_toctree_html"](kind="sidebar")
    assert [a.get_text() for a in found.select("a")] == ["A 15 min", "B 20 min", "C"]
    assert [tick["data-page"] for tick in found.select(".mha-tick")] == ["a", "b"]


def test_every_chapter_states_its_minutes():
    for path in notebooks():
        if re.match(r"\d", path.stem):
            assert reading.MINUTES.search(markdown(path)), path.stem
