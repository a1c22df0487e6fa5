"""The appendix: its pages say what the chapters say, and every link leads to a heading."""

import inspect
import re
from functools import cache
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from bookfiles import ROOT, code_cells, markdown, notebooks, script, tags
from pybtex.database import parse_file

import mha
from mha import masks, models, reference

appendix = script("appendix")
CHAPTERS = [path for path in notebooks() if path.stem[0].isdigit()]
PAGES = ["appendix-notation", "appendix-glossary", "appendix-figures", "bibliography"]


def page(name: str) -> str:
    return (ROOT / f"chapters/{name}.md").read_text(encoding="utf8")


@cache
def anchors(path: Path) -> set[str]:
    return {anchor for _, anchor in appendix.headings(markdown(path))}


def rows(text: str) -> list[list[str]]:
    """The rows of all tables of a page, without their heads, as lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads = {i + d for i, row in enumerate(cells) if set(row[0]) == {"-"} for d in (-1, 0)}
    return [row for i, row in enumerate(cells) if i not in heads]


def terms() -> list[tuple[str, str, str]]:
    """English, Chinese and explanation of each entry of the glossary."""
    return re.findall(r"^(.+) · (.+)\n: (.+)$", page("appendix-glossary"), flags=re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_heading(name):
    links = re.findall(r"\]\(([\w-]+\.ipynb)(?:#([^)]+))?\)", page(name))
    assert links
    for file, anchor in links:
        path = ROOT / "chapters" / file
        assert path.exists(), file
        assert not anchor or anchor in anchors(path), (file, anchor)


def test_anchors_are_those_of_the_book():
    text = "# W_O and `q_proj`\n\n## Does it hold? Yes, *always*\n\n## Summary\n\n## Summary\n"
    found = [anchor for _, anchor in appendix.headings(text)]
    assert found == ["w_o-and-q_proj", "does-it-hold-yes-always", "summary", "summary-1"]


def test_notation_has_a_row_for_each_letter_of_the_shapes():
    symbols = [row[0] for row in rows(page("appendix-notation")) if len(row) == 5]
    assert len(symbols) > 30 and len(set(symbols) - {"—"}) == sum(s != "—" for s in symbols)
    for letter in ("B", "H", "H_{kv}", "T", "S", "D", "E", "M", "i", "j"):
        assert any(re.match(rf"\${letter}\$", symbol) for symbol in symbols), letter
    for symbol in ("$Q$", "$K$", "$V$", "$W_Q$", "$W_O$", "$P$", "$O$"):
        assert any(s.startswith(symbol) for s in symbols), symbol


def test_notation_names_code_that_exists():
    module = mha.MultiHeadAttention(8, 2)
    signatures = [mha.scaled_dot_product_attention, mha.MultiHeadAttention, module.forward]
    signatures += [masks.causal, reference.attention_backward, models.without_head]
    names = {name for function in signatures for name in inspect.signature(function).parameters}
    names |= set(dict(module.named_children())) | set(dict(module.q_proj.named_parameters()))
    found = [n for row in rows(page("appendix-notation")) for n in re.findall(r"`(.+?)`", row[1])]
    assert len(found) > 20
    for name in found:
        assert name in names or ("." in name and callable(attrgetter(name)(mha))), name


def test_notation_gives_the_shapes_that_the_code_has():
    B, T, S, E, H, D = 2, 3, 5, 8, 2, 6
    module = mha.MultiHeadAttention(E, H, head_dim=D)
    output, weights = module(torch.ones(B, T, E), torch.ones(B, S, E), return_weights=True)
    sizes = {"B": B, "T": T, "S": S, "E": E, "H": H, "D": D, r"H \cdot D": H * D}
    shapes = {row[0].split(",")[0]: row[2] for row in rows(page("appendix-notation"))}

    def shape(symbol):
        return tuple(sizes[letter] for letter in shapes[symbol].strip("$()").split(", "))

    assert shape("$Y$") == output.shape and shape("$P$") == weights.shape
    assert shape("$W_Q$") == module.q_proj.weight.T.shape
    assert shape("$W_O$") == module.out_proj.weight.T.shape


def test_glossary_is_sorted_and_in_two_languages():
    english = [term for term, _, _ in terms()]
    assert english == sorted(english, key=str.casefold)
    assert len(set(english)) == len(english) >= 50
    assert len(english) == page("appendix-glossary").count("\n: ")
    for term, chinese, explanation in terms():
        assert re.search(r"[\u4e00-\u9fff]", chinese), term
        assert re.search(r"[.!?] (\[[\d.]+\]\([^)]+\)(, )?)+$", explanation), term


def test_glossary_explains_words_that_the_chapters_use():
    prose = " ".join(" ".join(map(markdown, CHAPTERS)).casefold().split())
    unused = [term for term, _, _ in terms() if term.casefold() not in prose]
    assert not unused


def test_glossary_links_say_where_they_lead():
    found = re.findall(r"\[([\d.]+)\]\(([\w-]+\.ipynb)", page("appendix-glossary"))
    assert len(found) >= len(terms())
    for number, file in set(found):
        assert number == appendix.title(ROOT / "chapters" / file).split()[0]


def test_list_of_figures_is_current():
    assert page("appendix-figures") == appendix.figures_page(), "run: python .ci/appendix.py"


def test_list_of_figures_misses_none():
    html = (
        str(output.get("data", {}).get("text/html", ""))
        for path in notebooks()
        for cell in code_cells(path)
        for output in cell.outputs
    )
    shown = sum("mha-figure" in text and "<svg" in text for text in html)  # a table is no figure
    assert page("appendix-figures").count("\n  - ") >= shown > 60


def test_no_description_of_a_figure_holds_a_measured_number():
    for path in notebooks():
        for cell in code_cells(path):
            if "nbval-ignore-output" in tags(cell):
                for description in appendix.descriptions(cell):
                    assert not re.search(r"\d\.\d|\d ?%", description), description


def test_long_descriptions_are_cut_between_clauses():
    long = "A sentence of more than forty characters, so it stands alone."
    assert appendix.short(f"{long} Three.") == long
    assert appendix.short("BERT. Every token sees all. More.") == "BERT. Every token sees all."
    assert appendix.short("Sonntag, 26. Oktober 1969.") == "Sonntag, 26. Oktober 1969."
    assert appendix.short("a_b*") == r"a\_b\*"
    long = "A head (one, two) reads: " + "word " * 40
    assert appendix.short(long) == "A head (one, two) reads …"


def test_bibliography_says_where_each_work_is_cited():
    assert page("bibliography") == appendix.works_page(), "run: python .ci/appendix.py"
    entries = parse_file(ROOT / "chapters/references.bib").entries.values()
    section = page("bibliography").split(appendix.CITED_HEAD)[1]
    assert section.count("\n- ") == len(entries)
    assert all(re.search(r"\): |\*: ", line) for line in section.splitlines() if line)
    assert not re.search(r": $", section, flags=re.MULTILINE), "cited nowhere"


def test_bibliography_entries_are_complete():
    for key, entry in parse_file(ROOT / "chapters/references.bib").entries.items():
        assert entry.persons["author"] and entry.fields["title"], key
        assert entry.fields["url"].startswith("https://"), key
        assert re.fullmatch(r"(19|20)\d\d", entry.fields.get("year", "2000")), key
