"""Where the book's sources and pages are: what the tests of the book share."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
HTML = ROOT / "_build" / "html"


def pages() -> list[str]:
    """The pages that `_toc.yml` names, in order, as paths without a suffix."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf8"))
    return [toc["root"]] + [entry["file"] for part in toc["parts"] for entry in part["chapters"]]


def notebooks() -> list[Path]:
    """The chapters that are notebooks, in the order of `_toc.yml`."""
    candidates = [ROOT / f"{page}.ipynb" for page in pages()]
    return [path for path in candidates if path.exists()]


def read(path: Path) -> nbformat.NotebookNode:
    """One notebook, as format 4."""
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    """The code cells of one notebook."""
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> set[str]:
    """The tags of one cell."""
    return set(cell.metadata.get("tags", []))


def markdown(path: Path) -> str:
    """The prose of one notebook."""
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def described(text: str | None) -> bool:
    """Whether `text` can stand for a picture: four words or more, and not the name of a file."""
    return bool(text) and len(text.split()) >= 4 and not re.search(r"\.(png|svg|jpe?g)\b", text)


def script(name: str) -> ModuleType:
    """A script of the build as a module: `script("book")` is .ci/book.py."""
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
