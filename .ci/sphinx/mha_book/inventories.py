"""References to the pages of Python, NumPy, PyTorch and jaxtyping, without asking them.

``.ci/inventories`` holds a text file for each: the address of its pages in the first line, then a
line for each name that our pages refer to, with its kind and its place below that address. Here
they become what Sphinx's own extension for such links reads. A name that stands in no file is a
warning, so it is added there by hand.
"""

import zlib
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "inventories"
HEAD = "# Sphinx inventory version 2\n# Project: {}\n# Version: \n"
HEAD += "# The remainder of this file is compressed using zlib.\n"


@cache
def read() -> dict[str, tuple[str, list[tuple[str, str, str]]]]:
    """Project -> the address of its pages, and its names, each with kind and place."""
    found = {}
    for path in sorted(FOLDER.glob("*.txt")):
        address, *lines = path.read_text(encoding="utf8").splitlines()
        found[path.stem] = address, [tuple(line.split(" ", 2)) for line in lines]
    return found


def names() -> set[str]:
    """All names that the inventories hold."""
    return {name for _, entries in read().values() for name, _, _ in entries}


def packed(project: str, entries: list[tuple[str, str, str]]) -> bytes:
    """An inventory in Sphinx's form."""
    lines = [f"{name} {kind} 1 {place} -\n" for name, kind, place in entries]
    return HEAD.format(project).encode() + zlib.compress("".join(lines).encode())


def write(app, config) -> None:
    """Put the inventories beside Sphinx's other notes, and tell its extension of them."""
    folder = Path(app.doctreedir) / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    for project, (address, entries) in read().items():
        path = folder / f"{project}.inv"
        path.write_bytes(packed(project, entries))
        config.intersphinx_mapping[project] = address, str(path)


def setup(app) -> None:
    app.setup_extension("sphinx.ext.intersphinx")
    app.connect("config-inited", write)  # before the extension reads its configuration
