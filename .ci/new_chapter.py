"""Begin a chapter from .ci/template.ipynb; `make new-chapter` runs this.

    python .ci/new_chapter.py 14-1-title "A title"

The name gives the number: 14-1-title is chapter 14.1. The chapter is run, so that it has outputs,
and put into `_toc.yml`; where its part is new, that part is made. Then write where a pencil is.
"""

import json
import re
import sys
from pathlib import Path

import nbformat
from notebooks import execute
from sources import contents

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / ".ci/template.ipynb"
FIRST_CELL = ROOT / "tests/book/first_cell.py"
NAME = re.compile(r"([1-9]\d|0[1-9])(-[1-9])?-[a-z][a-z0-9]*(-[a-z0-9]+)*")
BEYOND = 10  # the first number that the article does not have
ENTRY = "      - file: chapters/{}\n"


def number(name: str) -> str:
    """The number of a chapter: 4.2 for 04-2-scores, 3 for 03-algorithm, "" for an appendix."""
    found = re.match(r"(\d+)(?:-(\d))?-", name)
    return ".".join(part.lstrip("0") for part in found.groups() if part) if found else ""


def listed() -> list[tuple[str, list[str]]]:
    """The parts of `_toc.yml`: caption, and names of chapters."""
    return [(part, [Path(page).name for page in pages]) for part, pages in contents(ROOT)[1]]


def check(name: str, title: str) -> None:
    """Raises ValueError, in a sentence, for a name or a title that cannot be used."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"NAME: got {name!r}, expected two digits, a number of its part if there are several "
            "chapters in it, and words, as in NAME=14-1-title or NAME=14-title"
        )
    if not title.strip() or title != title.strip() or not title.isprintable():
        raise ValueError(f'TITLE: got {title!r}, expected one line of text, as in TITLE="A title"')
    there = {path.stem for path in (ROOT / "chapters").glob("*.*")}
    there |= {one for _, names in listed() for one in names}
    for other in sorted(there):
        if other == name or number(other) == number(name):
            raise ValueError(f"NAME: chapter {number(name)} is there already: chapters/{other}")


def write(name: str, title: str) -> Path:
    """Write the notebook of a new chapter, not yet run."""
    notebook = nbformat.read(TEMPLATE, as_version=4)
    major = int(number(name).split(".")[0])
    place = "Beyond the article" if major >= BEYOND else f"Section {number(name)} of the article"
    filled = {"NUMBER": number(name), "TITLE": title, "PLACE": place}
    for cell in notebook.cells:
        pattern = rf"\b({'|'.join(filled)})\b"
        cell.source = re.sub(pattern, lambda found: filled[found[0]], cell.source)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = FIRST_CELL.read_text(encoding="utf8").rstrip("\n")
    path = ROOT / f"chapters/{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def enlist(name: str, title: str) -> str:
    """Put the chapter into `_toc.yml`, among those of its part; the caption of that part."""
    path, entry = ROOT / "_toc.yml", ENTRY.format(name)
    text, major = path.read_text(encoding="utf8"), int(name[:2])
    for caption, names in listed():
        if caption.startswith(f"{major} "):
            before = [one for one in names if one < name]
            near = ENTRY.format(before[-1] if before else names[0])
            path.write_text(
                text.replace(near, near + entry if before else entry + near), encoding="utf8"
            )
            return caption
    caption = (
        f"{major} Beyond the article, {title} · 中文" if major >= BEYOND else f"{major} {title}"
    )
    part = f"  - caption: {json.dumps(caption, ensure_ascii=False)}\n    chapters:\n{entry}"
    parts = re.split(r"(?m)^(?=  - caption: )", text)
    later = [i for i, part in enumerate(parts[1:], 1) if not _comes_before(part, major)]
    parts.insert(later[0] if later else len(parts), part)
    path.write_text("".join(parts), encoding="utf8")
    return caption


def _comes_before(part: str, major: int) -> bool:
    """Whether the text of a part of `_toc.yml` is one with a smaller number."""
    found = re.match(r"  - caption: \"?(\d+) ", part)
    return bool(found) and int(found[1]) < major


def main() -> int:
    name, title = (*sys.argv[1:], "", "")[:2]
    try:
        check(name, title)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    path = write(name, title)
    try:
        execute(path)
    except BaseException:  # or half a chapter would stand in the way of the next try
        path.unlink()
        raise
    print(f"{path.relative_to(ROOT)} is chapter {number(name)}, in the part: {enlist(name, title)}")
    print("Write where a pencil stands (✎), then: make notebook NB=" + str(path.relative_to(ROOT)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
