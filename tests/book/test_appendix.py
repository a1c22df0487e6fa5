"""The appendix: its pages say what the chapters say, and every link leads to a heading."""

import importlib
import inspect
import json
import re
import sys
from email.message import Message
from fnmatch import fnmatch
from functools import cache
from operator import attrgetter
from pathlib import Path

import nbformat
import pytest
import torch
from bookfiles import HTML, ROOT, code_cells, markdown, notebooks, tags
from exercises import exercises
from pybtex.database import parse_file

import mha
from mha import masks, models, reference

sys.path.append(str(ROOT / ".ci"))
import appendix
import chapter_map
import licenses
import sources

sys.path.remove(str(ROOT / ".ci"))  # or .ci/book.py would stand before the folder tests/book

CHAPTERS = [path for path in notebooks() if path.stem[0].isdigit()]
PAGES = ["map", "notation", "glossary", "figures", "licenses"]
PAGES = [*(f"appendix-{name}" for name in PAGES), "bibliography"]


def page(name: str) -> str:
    return (ROOT / f"chapters/{name}.md").read_text(encoding="utf8")


@cache
def anchors(path: Path) -> set[str]:
    return {anchor for _, anchor in sources.headings(markdown(path))}


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
    found = [anchor for _, anchor in sources.headings(text)]
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
        assert number == sources.title(ROOT / "chapters" / file).split()[0]


def test_list_of_figures_is_current():
    assert page("appendix-figures") == appendix.figures_page(), "run: python .ci/appendix.py"


def test_list_of_figures_misses_none():
    for path in notebooks():
        body = markdown(path).partition("## Exercises")[0]
        captions = re.findall(r"^\*\*Figure ([\d.]+)\.\*\*", body, flags=re.MULTILINE)
        listed = page("appendix-figures").partition(f"\n## {sources.title(path)}\n")[2]
        listed = listed.partition("\n## ")[0]
        assert re.findall(r"^  - Figure ([\d.]+)\. ", listed, flags=re.MULTILINE) == captions
    assert page("appendix-figures").count("\n  - ") > 60


def cells(*given: tuple[str, str]):
    """A notebook of such cells; what a code cell holds is the description of its figure."""
    book = nbformat.v4.new_notebook()
    for kind, text in given:
        if kind == "text":
            book.cells.append(nbformat.v4.new_markdown_cell(text))
        else:
            markup = f'<div role="img" aria-label="{text}"><svg></svg></div>'
            output = nbformat.v4.new_output("display_data", {"text/html": markup})
            book.cells.append(nbformat.v4.new_code_cell("figure", outputs=[output]))
    return book


def test_a_figure_is_listed_by_its_caption(tmp_path):
    told = [("text", "# 1 One\n\n## A"), ("code", "Seen on the first picture, by all.")]
    told += [("text", "**Figure 1.1.** Its caption, with $T = 3$ and all of that. More.\n\n## B")]
    told += [("code", "A picture of things that has no number."), ("code", "Yet another picture.")]
    told += [("text", "## Exercises"), ("code", "A picture that belongs to an exercise.")]
    path = tmp_path / "one.ipynb"
    nbformat.write(cells(*told), path)
    assert appendix.figures(path) == [
        ("A", "a", "Figure 1.1. Its caption, with $T = 3$ and all of that."),
        ("B", "b", "A picture of things that has no number."),
        ("B", "b", "Yet another picture."),
    ]


def test_numbered_formulas_are_listed_by_section(tmp_path):
    path = tmp_path / "one.ipynb"
    text = "# 1 One\n\n## A\n\n$$\na \\tag{1.1}\n$$\n\n$$\nb \\tag{1.2}\n$$\n\n## B\n\n$$\nc \\tag{1.3}\n$$"
    nbformat.write(cells(("text", text)), path)
    assert appendix.equations(path) == [("A", "a", ["1.1", "1.2"]), ("B", "b", ["1.3"])]
    tagged = sum(markdown(p).count(r"\tag{") for p in notebooks())
    assert page("appendix-figures").count("equation (") >= tagged > 0


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
    assert appendix.plain("a_b*") == r"a\_b\*"
    assert appendix.short("The map $a, b. C$ of it is long enough here. Yes.").endswith("here.")
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


def test_map_is_current():
    assert page("appendix-map") == chapter_map.page(), "run: python .ci/appendix.py"


def test_map_has_every_chapter_exercise_and_module():
    by_chapter, by_module = page("appendix-map").split("## By module")
    parts = re.split(r"^### ", by_chapter, flags=re.MULTILINE)[1:]
    assert len(parts) == len(notebooks())
    for path, part in zip(notebooks(), parts, strict=True):
        assert part.startswith(f"[{sources.title(path)}]({path.name})")
        assert part.count("[Exercise ") == len(exercises(path))
        for exercise in exercises(path):
            marks = f"{exercise.dots} {exercise.kind}, {exercise.minutes} minute"
            assert re.search(rf"Exercise {exercise.number}: .*\), {marks}", part)
    for file in (ROOT / "mha").glob("[a-z]*.py"):
        assert f"\n`mha.{file.stem}`\n: " in by_module
    assert "](10-3-cache.ipynb)" in re.search(r"`mha.cache`\n: (.|\n)+?\n\n`", by_module)[0]


def test_map_names_files_that_exist():
    found = re.findall(r"`(tests/[^`]*)`", page("appendix-map"))
    assert len(set(found)) > 30
    for name in set(found):
        assert (ROOT / name).exists(), name
    assert "tests/test_masks.py" in found and "tests/check/" in found


def test_names_are_led_back_to_the_module_that_defines_them():
    assert chapter_map.resolve("mha.viz.COLORS") == ("mha.viz.theme", "COLORS")
    code = """
import torch
import mha
import mha.cost
from mha import masks as rules, viz
from mha.models import GPT
mha.scaled_dot_product_attention(torch.ones(1), mask=rules.causal(3))
mha.flash.rows.attention_by_rows
viz.COLORS["query"], model.masks.padding
"""
    assert {use for use in chapter_map.uses(code) if use[0] in chapter_map.modules()} == {
        ("mha.attention", "scaled_dot_product_attention"),
        ("mha.cost", ""),
        ("mha.flash", ""),
        ("mha.flash.rows", ""),
        ("mha.flash.rows", "attention_by_rows"),
        ("mha.masks", "causal"),
        ("mha.masks", ""),
        ("mha.models.gpt", "GPT"),
        ("mha.viz", ""),
    }


def test_names_that_chapters_use_are_where_the_map_says():
    for path in CHAPTERS:
        for module, names in chapter_map.chapter_uses(path).items():
            if module not in chapter_map.TOGETHER:
                defined = importlib.import_module(module)
                assert all(hasattr(defined, name) for name in names), (path.stem, module, names)


def test_licenses_are_current():
    assert page("appendix-licenses") == licenses.page(), "run: python .ci/appendix.py"


def test_licenses_have_the_versions_that_are_pinned():
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.txt").read_text(), re.M))
    wanted = json.loads((ROOT / "package.json").read_text())["dependencies"]
    for part in licenses.PARTS:
        pin = wanted[part.name] if part.npm else pins[part.name]
        assert f"\n{part.name} {pin}\n: {part.license}. " in page("appendix-licenses")


def test_a_package_without_a_license_is_refused(monkeypatch):
    monkeypatch.setattr(licenses.metadata, "metadata", lambda _: Message())
    with pytest.raises(ValueError, match="some-package: got no license"):
        licenses.license_of("some-package")


def test_licenses_name_the_sources_of_what_chapters_show():
    shown = {module for *_, module in licenses.DATA}
    fetched = {
        f"mha.data.{path.stem}"
        for path in (ROOT / "mha/data").glob("[a-z]*.py")
        if re.search(r"_fetch\.Archive\(|load_digits|require\(\"babel", path.read_text())
    }
    assert fetched <= shown, "data from outside that the page of licenses does not name"
    assert not re.search(r"; in \.$", page("appendix-licenses"), flags=re.MULTILINE)


@pytest.mark.book
def test_every_file_of_the_pages_has_a_license():
    patterns = [pattern for part in licenses.PARTS for pattern in part.files]
    patterns += licenses.own_files()
    static = HTML / "_static"
    files = [p.relative_to(static).as_posix() for p in static.rglob("*") if p.is_file()]
    assert len(files) > 30
    assert not [name for name in files if not any(fnmatch(name, p) for p in patterns)]
    assert not [p for p in patterns if not any(fnmatch(name, p) for name in files)]
