"""Quizzes and exercises: every chapter has them, in one form, and in the book they are folded."""

import re
from collections import Counter

import pytest
from bookfiles import HTML, ROOT, notebooks
from bs4 import BeautifulSoup
from exercises import DOTS, KINDS, Exercise, exercises, quiz, section

CHAPTERS = [path for path in notebooks() if path.stem[0].isdigit()]
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
ORDER = r"((text|specimen) )*exercise hint (solution )+(text )?"


def everything() -> list[Exercise]:
    return [one for path in CHAPTERS for one in exercises(path)]


def shown(cell) -> str:
    """All text in a cell's outputs."""
    return " ".join(str(o.get("text") or o.get("data")) for o in cell.outputs)


@each_chapter
def test_three_to_six_exercises_in_rising_difficulty(path):
    found = exercises(path)
    assert 3 <= len(found) <= 6
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    levels = [DOTS.index(one.dots) for one in found]
    assert levels == sorted(levels) and len(set(levels)) > 1
    assert len({one.kind for one in found}) > 1
    assert all(2 <= one.minutes <= 30 for one in found)


@each_chapter
def test_each_has_a_starter_a_hint_and_a_solution(path):
    for one in exercises(path):
        assert re.fullmatch(ORDER, " ".join(one.order) + " "), (one.title, one.order)
        hint = next(c for c in one.cells if "<summary>Hint</summary>" in c.source)
        if one.kind == "derive it":
            assert "<summary>Derivation</summary>" in hint.source, one.title
        assert hint.source.count("<details>") == hint.source.count("</details>")


@each_chapter
def test_a_starter_runs_and_says_that_it_waits(path):
    for one in exercises(path):
        (starter,) = one.tagged("exercise")
        assert "check." in starter.source, one.title
        assert "your turn" in shown(starter), one.title


@each_chapter
def test_a_solution_is_folded_and_asserts_that_it_passes(path):
    for one in exercises(path):
        solutions = one.tagged("solution")
        for cell in solutions:
            assert cell.source.startswith("# @title Solution"), one.title
            assert cell.metadata.cellView == "form" and "hide-cell" in cell.metadata.tags
        everywhere = "\n".join(cell.source for cell in solutions)
        assert "check." in everywhere and re.search(r"^assert .*\.ok", everywhere, re.M), one.title


@each_chapter
def test_a_mend_it_shows_the_faulty_code_first(path):
    for one in exercises(path):
        if one.kind == "mend it":
            assert one.tagged("specimen") or "def " in one.tagged("exercise")[0].source, one.title


def test_the_book_has_all_four_kinds():
    kinds = Counter(one.kind for one in everything())
    assert sum(kinds.values()) >= 60
    assert set(kinds) == set(KINDS) and min(kinds.values()) >= 10, kinds


def test_no_section_holds_anything_else():
    for path in CHAPTERS:
        first = section(path, "Exercises")[0]
        assert first.source.split("\n### ")[0].startswith("## Exercises"), path.stem
        headings = re.findall(
            r"^### (.+)$", "\n".join(c.source for c in section(path, "Exercises")), re.M
        )
        assert len(headings) == len(exercises(path)), path.stem


@each_chapter
def test_questions_have_four_choices_and_four_explanations(path):
    found = quiz(path)
    assert 2 <= len(found) <= 5
    for question in found:
        assert len(question.choices) == len(set(question.choices)) == 4, question.text
        assert len(question.explanations) == 4 and len(question.right) == 1, question.text
        assert all(len(said.split()) >= 5 for said in question.explanations), question.text
        assert all(said[-1] in ".)`$" for said in question.explanations), question.explanations


def test_the_right_choice_stands_anywhere():
    questions = [question for path in CHAPTERS for question in quiz(path)]
    assert len(questions) >= 40
    places = Counter(question.right[0] for question in questions)
    assert all(places[i] >= len(questions) / 8 for i in range(4)), places
    longest = [q.choices[q.right[0]] == max(q.choices, key=len) for q in questions]
    assert sum(longest) < len(questions) / 2


def test_the_script_says_no_word_of_another_host():
    script = (ROOT / "chapters/_static/quiz.js").read_text(encoding="utf8")
    assert not re.search(r"https?:|fetch|XMLHttp|localStorage|innerHTML", script)


# --- in the book


def page(path) -> BeautifulSoup:
    text = (HTML / f"chapters/{path.stem}.html").read_text(encoding="utf8")
    return BeautifulSoup(text, "html.parser")


@pytest.mark.book
@each_chapter
def test_solutions_are_folded_in_the_book(path):
    solutions = [cell for one in exercises(path) for cell in one.tagged("solution")]
    folded = page(path).select("div.cell.tag_solution > details.hide")
    assert len(folded) == len(solutions)
    assert all("Solution" in one.select_one("summary").get_text() for one in folded)


@pytest.mark.book
@each_chapter
def test_questions_in_the_book_are_as_the_script_wants_them(path):
    soup = page(path)
    assert soup.find("script", src=re.compile(r"quiz\.js"))
    blocks = soup.select("details.quiz")
    assert len(blocks) == len(quiz(path))
    for block, question in zip(blocks, quiz(path), strict=True):
        explanations = block.find_all("ol", recursive=False)
        choices = block.find_previous_sibling()
        assert len(explanations) == 1 and choices.name == "ol"
        assert choices.find_previous_sibling().name == "p"
        assert len(choices.find_all("li", recursive=False)) == len(question.choices)
        items = explanations[0].find_all("li", recursive=False)
        strong = [i for i, li in enumerate(items) if li.strong and li.strong.text == "Right."]
        assert strong == question.right
