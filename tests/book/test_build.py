"""The scripts behind `make book` and `make notebooks`, on a small tree of their own."""

import copy
import types

import nbformat
import pytest
from bookfiles import ROOT, notebooks, read, script

FILES = {
    "mha/core.py": "x = 1",
    "requirements.txt": "torch",
    "pyproject.toml": "[project]",
    "benchmarks/results/times.txt": "1 ms",
    "_config.yml": "title: x",
    "_toc.yml": "root: chapters/index",
    "chapters/index.md": "# Title",
    "chapters/_static/book.css": "",
    "package-lock.json": "{}",
    ".ci/book.py": "",
    ".ci/inventories/python.txt": "https://docs.python.org/3/",
    ".ci/sphinx/extension.py": "",
}


@pytest.fixture
def build(tmp_path, monkeypatch):
    """.ci/book.py at work on a copy of FILES, with a Jupyter Book that only notes its calls."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    module = script("book")
    module.calls, module.pages_kept, module.status = [], [], 0
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "BUILD", tmp_path / "_build")

    def run(command, **_):
        module.calls.append((tmp_path / "_build/.jupyter_cache/chapter").exists())
        module.pages_kept.append((tmp_path / "_build/html/index.html").exists())
        for made in ("html/index.html", ".jupyter_cache/chapter"):
            (tmp_path / "_build" / made).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "_build" / made).touch()
        return types.SimpleNamespace(returncode=module.status)

    monkeypatch.setattr(module.subprocess, "run", run)
    return module


def test_second_build_does_nothing_and_says_where_the_page_is(build, capsys):
    assert build.main() == 0
    assert build.main() == 0
    assert build.calls == [False]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("The book is at file://") and last.endswith("/_build/html/index.html")


def test_changed_prose_keeps_the_executed_chapters_and_the_other_pages(build):
    build.main()
    (build.ROOT / "chapters/index.md").write_text("changed")
    build.main()
    assert build.calls == build.pages_kept == [False, True]


@pytest.mark.parametrize(
    "name", [n for n in FILES if n.startswith((".", "_", "pack", "chapters/_"))]
)
def test_changed_frame_keeps_the_executed_chapters_but_no_page(build, name):
    build.main()
    (build.ROOT / name).write_text("changed")
    build.main()
    assert build.calls == [False, True]
    assert build.pages_kept == [False, False]


@pytest.mark.parametrize(
    "name", ["mha/core.py", "requirements.txt", "pyproject.toml", "benchmarks/results/times.txt"]
)
def test_changed_code_or_pins_execute_everything_again(build, name):
    build.main()
    (build.ROOT / name).write_text("changed")
    build.main()
    assert build.calls == [False, False]


def test_renamed_and_new_modules_count_but_not_what_tools_leave_behind(build):
    build.main()
    for left_by_tools in ("mha/__pycache__/core.pyc", "chapters/.ipynb_checkpoints/index.md"):
        (build.ROOT / left_by_tools).parent.mkdir()
        (build.ROOT / left_by_tools).touch()
    build.main()
    assert build.calls == [False]
    (build.ROOT / "mha/core.py").rename(build.ROOT / "mha/heart.py")
    build.main()
    assert build.calls == [False, False]


def test_failed_build_is_repeated_until_it_passes(build):
    build.status = 1
    assert build.main() == 1
    assert build.main() == 1
    build.status = 0
    assert build.main() == 0
    assert build.calls == [False, True, True]
    assert build.pages_kept == [False, False, False]


def test_change_that_is_taken_back_after_a_failure_is_built_again(build):
    build.main()
    page = build.ROOT / "chapters/index.md"
    page.write_text("broken")
    build.status = 1
    assert build.main() == 1
    page.write_text(FILES["chapters/index.md"])
    build.status = 0
    assert build.main() == 0
    assert build.pages_kept == [False, True, False]


def test_cell_ids_follow_the_source():
    tool = script("notebooks")
    first, second = read(notebooks()[0]), read(notebooks()[0])
    second.cells.insert(1, copy.deepcopy(second.cells[0]))
    tool.stable_ids(first)
    tool.stable_ids(second)
    names = [cell.id for cell in second.cells]
    assert len(set(names)) == len(names)
    assert names[:1] + names[2:] == [cell.id for cell in first.cells]


def test_solutions_are_folded_in_the_book_and_in_colab():
    cells = [nbformat.v4.new_code_cell("1"), nbformat.v4.new_code_cell("2")]
    cells[1].metadata["tags"] = ["nbval-ignore-output", "solution"]
    notebook = nbformat.v4.new_notebook(cells=cells)
    for _ in range(2):  # tidying twice changes nothing more
        script("notebooks").tidy(notebook)
        assert notebook.cells[0].metadata == {"tags": ["hide-input"]}
        assert notebook.cells[1].metadata == {
            "tags": ["solution", "hide-cell", "nbval-ignore-output"],
            "cellView": "form",
            "mystnb": {"code_prompt_show": "Solution", "code_prompt_hide": "Solution"},
        }


@pytest.fixture
def small_notebook(tmp_path):
    first_cell = (ROOT / "tests/book/first_cell.py").read_text(encoding="utf8")
    in_two_parts = "import time\n\nprint('a', flush=True)\ntime.sleep(0.5)\nprint('b')"
    sources = [first_cell, in_two_parts, "6 * 7"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nbformat.write(notebook, tmp_path / "small.ipynb")
    return tmp_path / "small.ipynb"


@pytest.mark.slow
def test_executing_in_place_is_deterministic(small_notebook):
    tool = script("notebooks")
    tool.execute(small_notebook)
    once = small_notebook.read_bytes()
    tool.execute(small_notebook)
    assert small_notebook.read_bytes() == once
    cells = read(small_notebook).cells
    assert [cell.execution_count for cell in cells] == [1, 2, 3]
    assert cells[0].outputs == [] and cells[0].metadata.tags == ["hide-input"]
    assert cells[1].outputs[0].text == "a\nb\n"
    assert cells[2].outputs[0].data["text/plain"] == "42"


@pytest.mark.slow
def test_failing_notebook_is_left_alone(small_notebook, monkeypatch, capsys):
    broken = small_notebook.read_text().replace("6 * 7", "6 / 0")
    small_notebook.write_text(broken)
    tool = script("notebooks")
    monkeypatch.setattr(tool.sys, "argv", ["notebooks.py", str(small_notebook)])
    assert tool.main() == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert small_notebook.read_text() == broken
