"""The chapters as they are written: what the scripts that list something from them share."""

from functools import cache
from pathlib import Path

import nbformat
import yaml
from markdown_it import MarkdownIt
from myst_parser.mdit_to_docutils.base import default_slugify

ROOT = Path(__file__).resolve().parent.parent


def contents(root: Path = ROOT) -> tuple[str, list[tuple[str, list[str]]]]:
    """The first page, and each part of `_toc.yml`: its caption and its pages."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf8"))
    parts = [(part["caption"], [p["file"] for p in part["chapters"]]) for part in toc["parts"]]
    return toc["root"], parts


def chapters() -> list[Path]:
    """The chapters that are notebooks, in the order of `_toc.yml`."""
    names = [name for _, pages in contents()[1] for name in pages]
    return [path for name in names if (path := ROOT / f"{name}.ipynb").exists()]


@cache
def cells(path: Path) -> list[nbformat.NotebookNode]:
    """The cells of one chapter."""
    return nbformat.read(path, as_version=4).cells


@cache
def markdown(path: Path) -> str:
    """The prose of one chapter."""
    return "\n\n".join(cell.source for cell in cells(path) if cell.cell_type == "markdown")


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


@cache
def title(path: Path) -> str:
    """The title of one chapter, with its number."""
    return headings(markdown(path))[0][0]


def number(path: Path) -> str:
    """The number of one chapter, or its title where it has none."""
    name = title(path)
    return name.split()[0] if name[0].isdigit() else name
