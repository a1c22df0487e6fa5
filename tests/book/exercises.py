"""What stands at the end of a chapter: its quiz questions and its exercises, read from the cells."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from bookfiles import read, tags
from nbformat import NotebookNode

KINDS = ("write it", "mend it", "predict it", "derive it")
DOTS = ("●○○", "●●○", "●●●")
MARKS = re.compile(rf"\*({'|'.join(DOTS)}) ({'|'.join(KINDS)}), (\d+) minutes?(, core)?\*")


@dataclass
class Exercise:
    """One exercise: what its heading and its line of marks say, and the cells that follow."""

    path: Path
    number: int
    title: str
    dots: str
    kind: str
    minutes: int
    core: bool
    cells: list[NotebookNode] = field(default_factory=list)  # after the statement

    def tagged(self, tag: str) -> list[NotebookNode]:
        """Its code cells with a tag."""
        return [c for c in self.cells if c.cell_type == "code" and tag in tags(c)]

    @property
    def order(self) -> list[str]:
        """What follows the statement: "specimen", "exercise", "hint", "solution", "text"."""
        found = []
        for cell in self.cells:
            if cell.cell_type == "code":
                found.append(next(iter(tags(cell) & {"specimen", "exercise", "solution"}), "code"))
            else:
                found.append("hint" if "<summary>Hint</summary>" in cell.source else "text")
        return found


@dataclass
class Question:
    """One question of a quiz: the choices, and an explanation for each."""

    text: str
    choices: list[str]
    explanations: list[str]

    @property
    def right(self) -> list[int]:
        """Places of the explanations that say Right."""
        return [i for i, said in enumerate(self.explanations) if said.startswith("**Right.**")]


def section(path: Path, name: str) -> list[NotebookNode]:
    """The cells of one section of a chapter, with its heading."""
    cells, inside = [], False
    for cell in read(path).cells:
        heading = (
            re.search(r"^## (.+)$", cell.source, re.M) if cell.cell_type == "markdown" else None
        )
        inside = heading[1] == name if heading else inside
        cells += [cell] * inside
    return cells


def exercises(path: Path) -> list[Exercise]:
    """The exercises of a chapter, in order."""
    found = []
    for cell in section(path, "Exercises"):
        heading = re.search(r"^### Exercise (\d+): (.+)$", cell.source, re.M)
        if cell.cell_type == "markdown" and heading:
            marks = MARKS.search(cell.source)
            assert marks, f"a line such as *●○○ write it, 5 minutes* is missing: {heading[0]}"
            dots, kind, minutes, core = marks.groups()
            number, title = int(heading[1]), heading[2]
            found.append(Exercise(path, number, title, dots, kind, int(minutes), bool(core)))
        elif found:
            found[-1].cells.append(cell)
    return found


def _items(text: str) -> list[str]:
    """The items of a numbered list, each on one line."""
    items = re.split(r"^\d+\. ", text.strip(), flags=re.M)
    assert not items[0].strip(), f"a numbered list is expected: {items[0]}"
    return [" ".join(item.split()) for item in items[1:]]


def quiz(path: Path) -> list[Question]:
    """The quiz of a chapter."""
    text = "\n\n".join(c.source for c in section(path, "Quiz") if c.cell_type == "markdown")
    parts = re.split(r"^\*\*Question \d+\.\*\* ", text, flags=re.M)[1:]
    found = []
    for part in parts:
        shape = r'(.+?)\n\n(1\. .+?)\n\n<details class="quiz">\n<summary>Answers</summary>\n\n(.+?)\n\n</details>\s*'
        match = re.fullmatch(shape, part, flags=re.S)
        assert match, f"not in the form of a question: {part[:300]}"
        found.append(Question(match[1], _items(match[2]), _items(match[3])))
    return found
