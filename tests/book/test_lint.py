"""The checks of `make lint` that are the book's own: words, files, and notebooks as they are."""

import nbformat
import pytest
from bookfiles import ROOT, notebooks, script

WRONG = "te" + "h"  # or the checks would find it in this file


@pytest.fixture
def lint(tmp_path, monkeypatch):
    """.ci/lint.py at work on an empty folder, with the settings of this checkout."""
    for name in (".gitignore", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    module = script("lint")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


@pytest.fixture
def tool():
    """.ci/notebooks.py."""
    return script("notebooks")


@pytest.fixture
def chapter(tmp_path):
    """A copy of a committed chapter."""
    path = tmp_path / "chapter.ipynb"
    path.write_bytes(notebooks()[0].read_bytes())
    return path


def edit(path, change) -> None:
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.py", "x = 1 \n", "line 1 ends with a blank"),
        ("a.md", "one\r\n", "line 1 ends with a blank"),
        ("a.md", "<" * 7 + " HEAD\n", "line 1 is left from a merge"),
        ("a.md", "one", "does not end with one newline"),
        ("a.md", "one\n\n", "does not end with one newline"),
        ("a.yml", "a: [1\n", "cannot be read"),
        ("a.toml", "a = \n", "cannot be read"),
        ("a.json", "{,}\n", "cannot be read"),
        ("a.bin", "\0" * (4 * 2**20 + 1), "larger than 4 MB"),
    ],
)
def test_a_fault_of_form_is_found(lint, name, text, fault, capsys):
    (lint.ROOT / name).write_text(text, newline="")
    assert lint.main() == 1
    assert f"{name}: {fault}" in capsys.readouterr().out


def test_files_that_git_ignores_are_not_read(lint, capsys):
    for name in ("_build", ".venv", "node_modules", "deep/__pycache__", "mha.egg-info", ".git"):
        (lint.ROOT / name).mkdir(parents=True)
        (lint.ROOT / name / "a.md").write_text(f"{WRONG}")
    (lint.ROOT / "empty").write_text("")
    (lint.ROOT / "picture.png").write_bytes(b"\x89PNG \xff\x00 \n")
    assert lint.main() == 0
    assert capsys.readouterr().out.startswith("4 files: ")


@pytest.mark.parametrize("name", ["a.md", "a.py", ".hidden/a.yml"])
def test_a_misspelled_word_is_found_with_its_line(lint, name, capsys):
    (lint.ROOT / name).parent.mkdir(exist_ok=True)
    (lint.ROOT / name).write_text(f"# one\n# {WRONG} two\n")
    assert lint.main() == 1
    assert f"{name}:2: {WRONG} ==> the" in capsys.readouterr().out


def test_words_in_the_cells_of_a_notebook_are_read_and_its_outputs_are_not(lint, capsys):
    output = nbformat.v4.new_output("stream", text=WRONG)
    cells = [
        nbformat.v4.new_markdown_cell(f"Right.\n\n{WRONG.title()} words."),
        nbformat.v4.new_code_cell("print(1)", outputs=[output]),
        nbformat.v4.new_code_cell(f"x = 1  # {WRONG} number"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), lint.ROOT / "a.ipynb")
    assert lint.main() == 1
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"a.ipynb/cell 1:3: {WRONG.title()} ==> The",
        f"a.ipynb/cell 3:1: {WRONG} ==> the",
    ]


def test_a_checker_of_words_that_fails_is_no_success(lint, monkeypatch):
    monkeypatch.setattr(lint.sys, "executable", "/bin/false")
    assert lint.main() == 1


def test_a_committed_chapter_is_left_as_it_is(tool, chapter):
    before = chapter.read_bytes()
    assert tool.left_to_do(chapter) == ""
    tool.tidy_file(chapter)
    assert chapter.read_bytes() == before


def test_metadata_of_an_editor_is_found_and_dropped_without_a_run(tool, chapter):
    before = chapter.read_bytes()

    def change(notebook):
        notebook.metadata.kernelspec.display_name = "my machine"
        notebook.cells[1].metadata.execution = {"started": "today"}

    edit(chapter, change)
    assert "run: make format" in tool.left_to_do(chapter)
    tool.tidy_file(chapter)
    assert chapter.read_bytes() == before


def test_new_prose_leaves_nothing_to_do(tool, chapter):
    edit(chapter, lambda notebook: notebook.cells[0].update(source="# 1 Other words"))
    assert tool.left_to_do(chapter) == ""


def test_code_that_was_edited_has_to_run_and_no_tidying_hides_it(tool, chapter):
    edit(chapter, lambda notebook: notebook.cells[1].update(source="x = 1\ny = 2"))
    for _ in range(2):
        assert "edited since it ran, at `x = 1`; run: make notebook" in tool.left_to_do(chapter)
        tool.tidy_file(chapter)


def test_code_that_was_run_out_of_order_has_to_run(tool, chapter):
    edit(chapter, lambda notebook: notebook.cells[1].update(execution_count=7))
    assert "not run from top to bottom" in tool.left_to_do(chapter)


def test_the_check_names_each_file_and_fails(tool, chapter, monkeypatch, capsys):
    monkeypatch.setattr(tool.sys, "argv", ["notebooks.py", "--check", str(chapter)])
    assert tool.main() == 0
    edit(chapter, lambda notebook: notebook.metadata.update(author="me"))
    assert tool.main() == 1
    assert f"{chapter} holds metadata" in capsys.readouterr().out
