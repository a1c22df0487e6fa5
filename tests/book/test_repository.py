"""The address of the repository: one statement, the same in every place, set or not."""

import shutil
import tomllib

import pytest
import yaml
from bookfiles import HTML, ROOT, code_cells, notebooks, pages, read, script
from bs4 import BeautifulSoup

EXAMPLE = "https://github.com/OWNER/NAME"
COLAB = "https://colab.research.google.com"
FILES = ["pyproject.toml", "CITATION.cff", "_config.yml", "_toc.yml", "README.md"]


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """.ci/repository.py at work on a copy of everything that may name the address."""
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "chapters", tmp_path / "chapters")
    (tmp_path / "tests/book").mkdir(parents=True)
    shutil.copy(ROOT / "tests/book/first_cell.py", tmp_path / "tests/book")
    monkeypatch.syspath_prepend(ROOT / ".ci")
    module = script("repository")
    monkeypatch.setattr(module, "ROOT", tmp_path)

    def rewrite(url):
        monkeypatch.setattr(module.sys, "argv", ["repository.py", url])
        return module.main()

    module.rewrite_to = rewrite
    return module


def contents(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def first_cells(folder) -> set[str]:
    cells = {code_cells(path)[0].source for path in (folder / "chapters").glob("*.ipynb")}
    return cells | {(folder / "tests/book/first_cell.py").read_text().rstrip("\n")}


def buttons(folder) -> tuple:
    """What the configuration of the book makes of the address."""
    config = yaml.safe_load((folder / "_config.yml").read_text())
    options = config["sphinx"]["config"]["html_theme_options"]
    return (
        config["repository"].get("url"),
        config["launch_buttons"].get("colab_url"),
        options["use_repository_button"],
        options["use_issues_button"],
    )


def test_all_places_agree(tool):
    before = contents(tool.ROOT)
    assert tool.rewrite_to(tool.address()) == 0
    assert contents(tool.ROOT) == before


def test_wheel_that_readers_upload_is_that_of_this_version(tool):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    assert tool.WHEEL == f"mha-{project['version']}-py3-none-any.whl[chapters]"


def test_without_an_address_no_place_names_one(tool):
    tool.rewrite_to("")
    assert buttons(tool.ROOT) == (None, None, False, False)
    [cell] = first_cells(tool.ROOT)
    assert "git+" not in cell


def test_every_place_names_the_address(tool):
    tool.rewrite_to("")
    assert tool.rewrite_to(EXAMPLE) == 0
    root = tool.ROOT
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["urls"] == {"Repository": EXAMPLE}
    assert tool.address() == EXAMPLE
    assert project["optional-dependencies"]["viz"]
    assert yaml.safe_load((root / "CITATION.cff").read_text())["repository-code"] == EXAMPLE
    assert buttons(root) == (EXAMPLE, COLAB, True, True)
    [cell] = first_cells(root)
    assert f'"mha[chapters] @ git+{EXAMPLE}"' in cell
    assert f"$ git clone {EXAMPLE}\n$ cd NAME\n$ make book" in (root / "README.md").read_text()
    assert f"  url     = {{{EXAMPLE}}}\n" in (root / "README.md").read_text()
    assert f"({EXAMPLE})" in (root / "chapters/index.md").read_text()


def test_link_to_colab_leads_to_a_chapter_on_the_branch_of_the_book(tool):
    tool.rewrite_to(EXAMPLE)
    branch = yaml.safe_load((tool.ROOT / "_config.yml").read_text())["repository"]["branch"]
    start = f"({COLAB}/github/OWNER/NAME/blob/{branch}/"
    [link] = (tool.ROOT / "README.md").read_text().split(start)[1:]
    assert (ROOT / link.split(")")[0]).is_file()


def test_address_can_be_changed_and_taken_away(tool):
    tool.rewrite_to("")
    before = contents(tool.ROOT)
    tool.rewrite_to(EXAMPLE)
    once = contents(tool.ROOT)
    tool.rewrite_to(EXAMPLE)
    assert contents(tool.ROOT) == once != before
    tool.rewrite_to("https://github.com/SOMEONE/else.where")
    assert not any(b"OWNER/NAME" in text for text in contents(tool.ROOT).values())
    tool.rewrite_to("")
    assert contents(tool.ROOT) == before


def test_only_the_first_code_cell_of_a_chapter_changes(tool):
    tool.rewrite_to("")
    tool.rewrite_to(EXAMPLE)
    for path in notebooks():
        old, new = read(path), read(tool.ROOT / "chapters" / path.name)
        first = next(i for i, cell in enumerate(old.cells) if cell.cell_type == "code")
        assert new.cells[first].id == tool.cell_id(new.cells[first])
        assert new.cells[first].outputs == old.cells[first].outputs
        del old.cells[first], new.cells[first]
        assert new == old


@pytest.mark.parametrize(
    "url",
    [
        "http://github.com/OWNER/NAME",
        "https://github.com/OWNER/NAME/",
        "https://github.com/OWNER/NAME.git",
        "https://github.com/OWNER",
        "https://github.com/OWNER/NAME/tree/main",
        "https://example.com/OWNER/NAME",
        "https://github.com/OWNER/NA ME",
        'https://github.com/OWNER/NAME"',
        "https://github.com/OWNER/NAME\n",
        "git@github.com:OWNER/NAME",
    ],
)
def test_other_forms_are_refused(tool, url, capsys):
    before = contents(tool.ROOT)
    assert tool.rewrite_to(url) == 1
    message = capsys.readouterr().err
    assert repr(url) in message and "expected https://github.com/OWNER/NAME" in message
    assert contents(tool.ROOT) == before


def test_passage_that_was_edited_changes_nothing_anywhere(tool, capsys):
    tool.rewrite_to("")
    readme = tool.ROOT / "README.md"
    readme.write_text(readme.read_text().replace("Colab lacks", "It lacks"))
    before = contents(tool.ROOT)
    assert tool.rewrite_to(EXAMPLE) == 1
    assert "README.md: expected once, found 0 times" in capsys.readouterr().err
    assert contents(tool.ROOT) == before


def run_first_cell(monkeypatch, cell: str, spec: str | None) -> list[list[str]]:
    """The commands that the first cell starts where the package is missing."""
    commands = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("MHA_SPEC", raising=False)
    if spec:
        monkeypatch.setenv("MHA_SPEC", spec)
    exec(cell, {})
    return commands


@pytest.mark.parametrize("url", ["", EXAMPLE])
def test_first_cell_installs_what_mha_spec_names(tool, url, monkeypatch, capsys):
    tool.rewrite_to(url)
    [cell] = first_cells(tool.ROOT)
    spec = "./mha-0.1.0-py3-none-any.whl[chapters]"
    capsys.readouterr()
    [command] = run_first_cell(monkeypatch, cell, spec)
    assert command[1:] == ["-m", "pip", "install", "-q", spec]
    assert capsys.readouterr().out == ""


def test_first_cell_installs_from_the_address(tool, monkeypatch):
    tool.rewrite_to(EXAMPLE)
    [cell] = first_cells(tool.ROOT)
    [command] = run_first_cell(monkeypatch, cell, None)
    assert command[1:] == ["-m", "pip", "install", "-q", f"mha[chapters] @ git+{EXAMPLE}"]


def test_first_cell_without_an_address_says_what_to_install(tool, monkeypatch):
    tool.rewrite_to("")
    [cell] = first_cells(tool.ROOT)
    message = r"mha is missing: install its wheel with \[chapters\], or name it in MHA_SPEC"
    with pytest.raises(ModuleNotFoundError, match=message):
        run_first_cell(monkeypatch, cell, None)


@pytest.mark.book
@pytest.mark.parametrize("page", pages())
def test_page_of_a_notebook_opens_in_colab_once_there_is_an_address(page):
    url, colab, *_ = buttons(ROOT)
    links = BeautifulSoup((HTML / f"{page}.html").read_text(encoding="utf8"), "html.parser")
    found = {a["href"] for a in links.find_all("a", href=True) if a["href"].startswith(COLAB)}
    branch = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["branch"]
    path = f"{url}/blob/{branch}/{page}.ipynb".replace("https://github.com", f"{colab}/github")
    expected = {path} if url and (ROOT / f"{page}.ipynb").exists() else set()
    assert found == expected
