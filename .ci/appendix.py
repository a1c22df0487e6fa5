"""Write what the appendix lists from the chapters; `make notebooks` runs this after them.

    python .ci/appendix.py

- chapters/appendix-figures.md: every figure, by the section it stands in, its number and the first
  sentence of its caption, cut between two clauses where it is long; then the numbered formulas;
- the end of chapters/bibliography.md: the chapters that cite each work;
- chapters/appendix-map.md, by chapter_map.py, and chapters/appendix-licenses.md, by licenses.py.
"""

import html
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import chapter_map
import licenses
import nbformat
from pybtex.database import Entry, parse_file
from sources import ROOT, cells, chapters, headings, markdown, number, title

FIGURES, WORKS = (ROOT / f"chapters/{name}.md" for name in ("appendix-figures", "bibliography"))
SHORT, LONG = 40, 140  # characters
TAG = re.compile(r"\\tag\{([\d.]+)\}")
CAPTION = re.compile(r"^\*\*Figure ([\d.]+)\.\*\* (.+)$", re.MULTILINE)
FIGURES_HEAD = """# List of figures · 插图目录

The figures of the book's main text, by chapter and section, with the first words of their captions. The numbered formulas follow them.
"""
CITED_HEAD = "## Cited where used · 引用处\n"


def descriptions(cell: nbformat.NotebookNode) -> Iterator[str]:
    """What each figure in the outputs of one cell shows: its title, if it has one panel, and alt."""
    for output in cell.outputs:
        data = output.get("data", {})
        markup = "".join(data.get("text/html", ""))
        for figure in re.split(r'(?=<div [^>]*role="img")', markup)[1:]:
            alt = re.search(r'role="img" aria-label="([^"]*)"', figure)[1]
            lines = re.findall(r'font-weight="bold">([^<]+)<', figure)
            title = " ".join(lines) + ". " if lines and figure.count("<svg") == 1 else ""
            yield html.unescape(title + alt)
        if any(kind.startswith("image/") for kind in data) and not markup:
            yield cell.metadata["mystnb"]["image"]["alt"]


def figures(path: Path) -> list[tuple[str, str, str]]:
    """Section, its anchor and the text of each figure of one chapter, in order.

    The text is "Figure 4.2.1. " and the caption that stands below the cell, or the description of
    a figure without a number, unless that belongs to an exercise.
    """
    places, passed = headings(markdown(path)), 0
    found, shown = [], []  # shown: the texts of the cell above, until its caption is looked for
    for cell in cells(path):
        place = places[max(0, passed - 1)]
        found += [(*place, text) for text in shown if cell.cell_type == "code"]
        if cell.cell_type == "code":
            own = any(title == "Exercises" for title, _ in places[:passed])
            shown = [] if own else [short(plain(text)) for text in descriptions(cell)]
        else:
            captions = [f"Figure {n}. {short(said)}" for n, said in CAPTION.findall(cell.source)]
            found += [(*place, text) for text in captions or shown]
            passed, shown = passed + len(headings(cell.source)), []
    return found + [(*places[-1], text) for text in shown]


def plain(text: str) -> str:
    """`text` as markdown in which nothing is markup."""
    return re.sub(r"([\\`*_\[\]<>$])", r"\\\1", text)


def whole(text: str) -> bool:
    """Whether no parenthesis, formula or piece of code is still open at the end of `text`."""
    text = text.replace("\\$", "").replace("\\`", "")
    return text.count("(") == text.count(")") and not text.count("$") % 2 + text.count("`") % 2


def short(text: str) -> str:
    """Title and first sentence, cut between two clauses if long."""
    ends = [
        m.start()
        for m in re.finditer(r"(?<=[^.\d]\.) (?=[A-Z`$])", text)
        if whole(text[: m.start()])
    ]
    ends = ends[1:] if ends and ends[0] < SHORT else ends
    text = text[: ends[0]] if ends else text
    if len(text) > LONG:
        clauses = [m.start() for m in re.finditer(r"[,;:] ", text[:LONG])]
        clauses = [end for end in clauses if whole(text[:end])]
        text = text[: clauses[-1] if clauses else text.rindex(" ", 0, LONG)] + " …"
    return text


def equations(path: Path) -> list[tuple[str, str, list[str]]]:
    """Section, its anchor and the numbers of its numbered formulas, for one chapter."""
    text, places = markdown(path), headings(markdown(path))
    tags = [(len(headings(text[: m.start()])) - 1, m[1]) for m in TAG.finditer(text)]
    by_section = groupby(tags, key=lambda tag: tag[0])
    return [(*places[place], [number for _, number in found]) for place, found in by_section]


def figures_page() -> str:
    """The text of the list of figures."""
    text = FIGURES_HEAD
    for path in chapters():
        if listed := figures(path):
            text += f"\n## {title(path)}\n\n"
            for (section, anchor), shown in groupby(listed, key=lambda figure: figure[:2]):
                text += f"- [{section}]({path.name}#{anchor})\n"
                text += "".join(f"  - {said}\n" for *_, said in shown)
    lines = []
    for path in chapters():
        for section, anchor, numbers in equations(path):
            named = ", ".join(f"equation ({n})" for n in numbers)
            lines.append(f"- {number(path)} [{section}]({path.name}#{anchor}): {named}\n")
    return text + f"\n## Numbered formulas · 编号公式\n\n{''.join(lines)}" if lines else text


def cited_titles(path: Path) -> list[str]:
    """The titles in the References of one chapter, in lower case."""
    items = re.findall(r"^- (.+)$", markdown(path).partition("## References")[2], re.MULTILINE)
    found = [re.search(r'\[(.+?)\]\(|\*(.+?)\*|"(.+?)[",.]*"', item) for item in items]
    return [next(filter(None, match.groups())).casefold() for match in found if match]


def label(entry: Entry) -> str:
    """Who and when, as in a sentence: Jain and Wallace (2019)."""
    names = [
        " ".join(person.prelast_names + person.last_names) for person in entry.persons["author"]
    ]
    names = [name.strip("{}") for name in names]
    several = len(names) > 2 or names[-1] == "others"
    who = f"{names[0]} et al." if several else " and ".join(names)
    return f"{who} ({entry.fields['year']})" if "year" in entry.fields else who


def cited_section() -> str:
    """The list of works with the chapters that cite them, by author."""
    cited = {path: cited_titles(path) for path in chapters()}
    lines = []
    for entry in parse_file(ROOT / "chapters/references.bib").entries.values():
        name = re.sub(r"[{}]", "", entry.fields["title"])
        places = [p for p in cited if any(name.casefold().startswith(t) for t in cited[p])]
        links = ", ".join(f"[{number(p)}]({p.name}#references)" for p in places)
        lines.append(f"- {label(entry)}, *{name}*: {links}\n")
    return f"{CITED_HEAD}\n{''.join(sorted(lines, key=str.casefold))}"


def works_page() -> str:
    """The bibliography as it stands, with its last section written afresh."""
    return WORKS.read_text(encoding="utf8").partition(CITED_HEAD)[0] + cited_section()


if __name__ == "__main__":
    FIGURES.write_text(figures_page(), encoding="utf8")
    WORKS.write_text(works_page(), encoding="utf8")
    chapter_map.PAGE.write_text(chapter_map.page(), encoding="utf8")
    licenses.PAGE.write_text(licenses.page(), encoding="utf8")
