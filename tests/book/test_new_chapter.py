"""`make new-chapter`: what it makes passes every check of a chapter at once, and builds."""

import inspect
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import test_chapter_ends
import test_notebooks
import test_reading_time
import yaml
from bookfiles import ROOT, code_cells, markdown, notebooks, script

NAME, TITLE = "96-1-title", "A title: $x$, with “signs”"
PENCIL = "✎"
STUBS = {  # a book around the new chapter, with the pages that it links to
    "index.md": "# A book\n\n## How to run\n\nText.\n",
    "appendix-notation.md": "# Notation\n",
    "appendix-glossary.md": "# Glossary\n\nhead · 头\n: One of several. [4.2](04-2-scores.ipynb)\n",
    "04-2-scores.ipynb": nbformat.writes(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 4.2 Scores")])
    ),
}


def checks_of_a_chapter():
    """The tests that are asked of each chapter by its path, apart from those of built pages."""
    for module in (test_notebooks, test_chapter_ends, test_reading_time):
        for name, test in vars(module).items():
            if name.startswith("test_") and list(inspect.signature(test).parameters) == ["path"]:
                marks = {mark.name: mark for mark in getattr(test, "pytestmark", [])}
                of_chapters = marks["parametrize"].args[1] != test_notebooks.APPENDICES
                if of_chapters and "book" not in marks:
                    yield pytest.param(test, id=name)


CHECKS = list(checks_of_a_chapter())


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    """.ci/new_chapter.py at work on a copy of the chapters, with its main function as `make`."""
    root = tmp_path_factory.mktemp("book")
    shutil.copytree(ROOT / "chapters", root / "chapters")
    shutil.copy(ROOT / "_toc.yml", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / ".ci")
        module = script("new_chapter")
        patch.setattr(module, "ROOT", root)

        def make(*arguments):
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(module.sys, "argv", ["new_chapter.py", *arguments])
                return module.main()

        module.make = make
        yield module


@pytest.fixture(scope="module")
def chapter(maker):
    """A new chapter, just made, and run by its maker."""
    assert maker.make(NAME, TITLE) == 0
    return maker.ROOT / f"chapters/{NAME}.ipynb"


@pytest.fixture
def unrun(maker, monkeypatch):
    """The maker where nothing is run, and what it writes is taken away after the test."""
    monkeypatch.setattr(maker, "execute", lambda path: None)
    toc = (maker.ROOT / "_toc.yml").read_text(encoding="utf8")
    before = set((maker.ROOT / "chapters").iterdir())
    yield maker
    (maker.ROOT / "_toc.yml").write_text(toc, encoding="utf8")
    for path in set((maker.ROOT / "chapters").iterdir()) - before:
        path.unlink()


def parts(maker) -> dict[str, list[str]]:
    """The captions of `_toc.yml` with the pages below them."""
    toc = yaml.safe_load((maker.ROOT / "_toc.yml").read_text(encoding="utf8"))
    return {one["caption"]: [e["file"] for e in one["chapters"]] for one in toc["parts"]}


def test_there_are_checks():
    assert len(CHECKS) > 15


@pytest.mark.parametrize("check", CHECKS)
def test_a_new_chapter_passes_what_is_asked_of_chapters(chapter, check, monkeypatch):
    monkeypatch.setattr(test_notebooks, "CHAPTERS", [*test_notebooks.CHAPTERS, chapter])
    check(chapter)


def test_number_and_title_are_filled_in_and_nothing_is_left(chapter):
    text = markdown(chapter)
    assert text.startswith(f"# 96.1 {TITLE}\n\n*Beyond the article · ")
    assert not re.search(r"\b(NUMBER|TITLE|PLACE)\b", text)
    assert "**Figure 96.1.1.**" in text and r"\tag{96.1.1}" in text and "(96.1.1)" in text


def test_it_shows_the_forms_that_a_chapter_needs(chapter):
    text = markdown(chapter)
    for form in ("**What you will learn.**", "Reading time: about ", "You need: [", "Predict "):
        assert form in text, form
    assert {one.kind for one in test_chapter_ends.exercises(chapter)} < set(test_chapter_ends.KINDS)
    assert 'role="img"' in str([cell.outputs for cell in code_cells(chapter)])


@pytest.mark.slow
def test_it_builds_without_a_warning(chapter, tmp_path):
    for name in (".ci", "chapters/_static"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("package.json", "package-lock.json", "chapters/references.bib"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("node_modules", "mha", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, text in STUBS.items():
        (tmp_path / "chapters" / name).write_text(text, encoding="utf8")
    shutil.copy(chapter, tmp_path / "chapters")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf8"))
    config["execute"]["execute_notebooks"] = "off"  # it has its outputs
    (tmp_path / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf8")
    files = [{"file": f"chapters/{stem.rpartition('.')[0]}"} for stem in [*STUBS, chapter.name]]
    toc = {"format": "jb-book", "root": files[0]["file"]}
    toc["parts"] = [{"caption": "All", "chapters": files[1:]}]
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf8")
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    done = subprocess.run(
        [*command, "-n", "-W", "--keep-going", "."], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / f"_build/html/chapters/{NAME}.html").read_text(encoding="utf8")
    assert 'href="#figure-96-1-1"' in page and 'href="#equation-96-1-1"' in page


def test_the_template_was_run_and_leaves_the_first_cell_to_the_chapters():
    path = ROOT / ".ci/template.ipynb"
    comment, *lines = code_cells(path)[0].source.splitlines()
    assert comment.startswith("# ") and lines == ["import torch"]
    assert script("notebooks").left_to_do(path) == ""


def test_no_chapter_is_committed_with_a_pencil():
    assert PENCIL in markdown(ROOT / ".ci/template.ipynb")
    assert not [path.stem for path in notebooks() if PENCIL in path.read_text(encoding="utf8")]


def test_a_chapter_beyond_the_last_part_gets_a_part_before_the_appendix(unrun):
    before = parts(unrun)
    assert unrun.make("97-title", TITLE) == 0
    after, caption = parts(unrun), f"97 Beyond the article, {TITLE} · 中文"
    numbered = [one for one in before if one[0].isdigit()]
    others = [one for one in before if one not in numbered]
    assert list(after) == [*numbered, caption, *others]
    assert after == {**before, caption: ["chapters/97-title"]}


@pytest.mark.parametrize(
    ("name", "neighbor", "shift"),
    [
        ("10-9-last", "10-5-numerics", 1),
        ("11-9-last", "11-2-bert", 1),
        ("07-1-after", "07-tools", -1),
    ],
)
def test_a_chapter_of_a_part_stands_in_order_of_its_number(unrun, name, neighbor, shift):
    assert unrun.make(name, "Title") == 0
    [files] = [files for files in parts(unrun).values() if f"chapters/{name}" in files]
    assert files.index(f"chapters/{name}") == files.index(f"chapters/{neighbor}") + shift


@pytest.mark.parametrize(
    ("name", "place"),
    [("09-1-title", "Section 9.1 of the article"), ("10-9-title", "Beyond the article")],
)
def test_a_chapter_says_where_in_the_article_it_belongs(unrun, name, place):
    assert unrun.make(name, "Title") == 0
    path = unrun.ROOT / f"chapters/{name}.ipynb"
    assert f"\n\n*{place} · " in markdown(path)
    test_notebooks.test_opens_with_number_and_chinese_title(path)


@pytest.mark.parametrize("name", ["", "title", "14", "4-title", "00-title", "14-0-title", "14-A", "14-1-a/b", "14-10-title", "14-1-Title", "14_1_title"])  # fmt: skip
def test_a_malformed_name_is_refused_in_a_sentence(unrun, name, capsys):
    before = parts(unrun), sorted((unrun.ROOT / "chapters").iterdir())
    assert unrun.make(name, "Title") == 1
    assert f"NAME: got {name!r}, expected two digits" in capsys.readouterr().err
    assert (parts(unrun), sorted((unrun.ROOT / "chapters").iterdir())) == before


@pytest.mark.parametrize("title", ["", " ", "one\ntwo", " A title"])
def test_a_title_must_be_a_line_of_text(unrun, title, capsys):
    assert unrun.make("98-title", title) == 1
    assert f"TITLE: got {title!r}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["10-5-numerics", "10-5-other"])
def test_a_number_that_is_taken_is_refused(unrun, name, capsys):
    assert unrun.make(name, "Title") == 1
    assert "chapter 10.5 is there already: chapters/10-5-numerics" in capsys.readouterr().err


def test_a_chapter_that_does_not_run_leaves_nothing_behind(unrun, monkeypatch):
    def fail(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(unrun, "execute", fail)
    before = parts(unrun)
    with pytest.raises(KeyboardInterrupt):
        unrun.make("98-title", "Title")
    assert not (unrun.ROOT / "chapters/98-title.ipynb").exists() and parts(unrun) == before
