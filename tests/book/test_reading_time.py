"""No chapter asks for more than fifteen minutes without a break, and each says how long it takes."""

import re

import nbformat
import pytest
from bookfiles import markdown, notebooks, script

MINUTES = script("minutes")
CHAPTERS = [path for path in notebooks() if path.name[0].isdigit()]
each = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


@each
def test_a_chapter_states_its_minutes(path):
    stated = re.findall(r"Reading time: about (\d+) minutes", markdown(path))
    assert stated == [str(MINUTES.total(path))]


@each
def test_no_stretch_is_above_fifteen_minutes(path):
    assert max(MINUTES.stretches(path)) <= 15, "python .ci/minutes.py shows where the time goes"


@each
def test_a_break_stands_between_sections_and_says_where_the_reader_is(path):
    text = markdown(path)
    for found in re.finditer(rf"^{re.escape(MINUTES.BREAK)}(.*)\n+(.*)", text, re.M):
        assert len(found[1].split()) >= 8, found[0]
        assert found[2].startswith(("## ", "### ")), found[0]
    assert text.count("A good place for a break") == text.count(MINUTES.BREAK)


def test_words_and_lines_count_up_to_the_quiz(tmp_path):
    cell = nbformat.v4.new_markdown_cell
    cells = [
        cell("# 1 One\n\n" + "word " * 198),  # 200 words with the heading's
        nbformat.v4.new_code_cell("first = 1\n" * 40),  # the first cell does not count
        nbformat.v4.new_code_cell("x = 1\n\n" * 20),
        cell(f"{MINUTES.BREAK} " + "word " * 392),  # 6 words stand in the break
        cell("## Quiz\n\n" + "word " * 1000),
    ]
    path = tmp_path / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    assert MINUTES.stretches(path) == [2.0, pytest.approx(1.99, abs=0.02)]
    assert MINUTES.total(path) == 4
