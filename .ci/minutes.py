"""How long a chapter takes to read: its sections and stretches, or all chapters.

    python .ci/minutes.py [chapters/04-2-scores.ipynb ...]

Words at 200 a minute, lines of code at 20, up to the quiz; outputs and exercises are left out. A
stretch ends at a line that offers a break. The tests ask that no stretch is above 15 minutes, and
that the chapter states the sum.
"""

import re
import sys
from pathlib import Path

import nbformat

WORDS, LINES = 200, 20  # a minute
BREAK = "> **A good place for a break.**"
ROOT = Path(__file__).resolve().parent.parent


def pieces(path: Path):
    """(text, minutes) for each heading, break and paragraph or cell of code before the quiz."""
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if line.strip()]
            if number > 1:  # the first cell is the same everywhere
                yield "", len(lines) / LINES
            continue
        for paragraph in cell.source.split("\n\n"):
            if paragraph.startswith("## Quiz"):
                return
            yield paragraph, len(re.findall(r"[\w'-]+", paragraph)) / WORDS


def stretches(path: Path) -> list[float]:
    """The minutes between breaks."""
    found = [0.0]
    for text, minutes in pieces(path):
        if text.startswith(BREAK):
            found.append(0.0)
        found[-1] += minutes
    return found


def total(path: Path) -> int:
    """The minutes of a chapter, as it states them."""
    return round(sum(stretches(path)))


def main() -> None:
    asked = [Path(name) for name in sys.argv[1:]]
    for path in asked or sorted((ROOT / "chapters").glob("[0-9]*.ipynb")):
        parts = " + ".join(f"{minutes:.1f}" for minutes in stretches(path))
        print(f"{path.stem}: {total(path)} minutes = {parts}")
        if asked:
            heading, sums = "", {}
            for text, minutes in pieces(path):
                if text.startswith(("#", BREAK)):
                    heading = text.splitlines()[0]
                sums[heading] = sums.get(heading, 0) + minutes
            print("\n".join(f"  {minutes:5.1f}  {text}" for text, minutes in sums.items()))


if __name__ == "__main__":
    main()
