"""Write what the appendix lists from the chapters; `make notebooks` runs this after them.

    python .ci/appendix.py

- chapters/appendix-figures.md: every figure, by the section it stands in, its title and the first
  sentence of its description, cut between two clauses where it is long;
- the end of chapters/bibliography.md: the chapters that cite each work.
"""

import html
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import nbformat
import yaml
from markdown_it import MarkdownIt
from myst_parser.mdit_to_docutils.base import default_slugify
from pybtex.database import Entry, parse_file

ROOT = Path(__file__).resolve().parent.parent
FIGURES, WORKS = (ROOT / f"chapters/{name}.md" for name in ("appendix-figures", "bibliography"))
SHORT, LONG = 40, 140  # characters
FIGURES_HEAD = """# List of figures · 插图目录

Every figure of the book, by chapter and section, with its title and the first words of its description.
"""
CITED_HEAD = "## Cited where used · 引用处\n"


def chapters() -> list[Path]:
    """The chapters that are notebooks, in the order of `_toc.yml`."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf8"))
    names = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [path for name in names if (path := ROOT / f"{name}.ipynb").exists()]


def markdown(path: Path) -> str:
    """The prose of one chapter."""
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def headings(text: str) -> list[tuple[str, str]]:
    """The headings of a text and the anchors that the book gives them, in order."""
    tokens = MarkdownIt("commonmark").parse(text)
    found: list[tuple[str, str]] = []
    for before, inline in zip(tokens, tokens[1:], strict=False):
        if before.type == "heading_open":
            parts = [c.content for c in inline.children if c.type in ("text", "code_inline")]
            anchor, count = default_slugify("".join(parts)), 1
            while anchor in {taken for _, taken in found}:
                anchor, count = f"{anchor}-{count}", count + 1
            found.append((inline.content, anchor))
    return found


def title(path: Path) -> str:
    """The title of one chapter, with its number."""
    return headings(markdown(path))[0][0]


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
    """Section, its anchor and the description of each figure of one chapter."""
    found, text = [], ""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            text += cell.source + "\n\n"
        else:
            found += [(*headings(text)[-1], description) for description in descriptions(cell)]
    return found


def short(description: str) -> str:
    """Title and first sentence, cut between two clauses if long; nothing in it is markup."""
    sentences = re.split(r"(?<=[^.\d]\.) (?=[A-Z])", description)
    text = " ".join(sentences[:2]) if len(sentences[0]) < SHORT else sentences[0]
    if len(text) > LONG:
        ends = [match.start() for match in re.finditer(r"[,;:] ", text[:LONG])]
        outside = [end for end in ends if text[:end].count("(") == text[:end].count(")")]
        text = text[: outside[-1] if outside else LONG] + " …"
    return re.sub(r"([\\`*_\[\]<>$])", r"\\\1", text)


def figures_page() -> str:
    """The text of the list of figures."""
    text = FIGURES_HEAD
    for path in chapters():
        if listed := figures(path):
            text += f"\n## {title(path)}\n\n"
            for (section, anchor), shown in groupby(listed, key=lambda figure: figure[:2]):
                text += f"- [{section}]({path.name}#{anchor})\n"
                text += "".join(f"  - {short(description)}\n" for *_, description in shown)
    return text


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
    names = {path: title(path) for path in chapters()}
    numbers = {p: n.split()[0] if n[0].isdigit() else n for p, n in names.items()}
    cited = {path: cited_titles(path) for path in chapters()}
    lines = []
    for entry in parse_file(ROOT / "chapters/references.bib").entries.values():
        name = re.sub(r"[{}]", "", entry.fields["title"])
        places = [p for p in cited if any(name.casefold().startswith(t) for t in cited[p])]
        links = ", ".join(f"[{numbers[p]}]({p.name}#references)" for p in places)
        lines.append(f"- {label(entry)}, *{name}*: {links}\n")
    return f"{CITED_HEAD}\n{''.join(sorted(lines, key=str.casefold))}"


def works_page() -> str:
    """The bibliography as it stands, with its last section written afresh."""
    return WORKS.read_text(encoding="utf8").partition(CITED_HEAD)[0] + cited_section()


if __name__ == "__main__":
    FIGURES.write_text(figures_page(), encoding="utf8")
    WORKS.write_text(works_page(), encoding="utf8")
