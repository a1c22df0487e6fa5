"""The chapters as they are committed: the rules of CONTRIBUTING.md, checked without running them."""

import re

import pytest
from bookfiles import ROOT, code_cells, described, markdown, notebooks, pages, read, script, tags
from bs4 import BeautifulSoup
from pybtex.database import parse_file

CHAPTERS = [path for path in notebooks() if path.stem[0].isdigit()]
APPENDICES = [path for path in notebooks() if path not in CHAPTERS]
each_notebook = pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
each_appendix = pytest.mark.parametrize("path", APPENDICES, ids=lambda path: path.stem)

FIRST_CELL = (ROOT / "tests/book/first_cell.py").read_text(encoding="utf8").rstrip("\n")
ALLOWED_DIRECTIVES: set[str] = set()  # Colab shows MyST directives and roles as raw text
LONG_CELLS = {"exercise", "solution", "specimen"}
MACHINE = re.compile(
    r"/(home|root|Users|tmp|private|usr|opt)/|site-packages|\.venv|ipykernel_|[A-Z]:\\|0x[0-9a-f]{6}"
)


def texts(output) -> list[str]:
    """Everything in one output that a reader sees as text or markup."""
    if output.output_type == "stream":
        return [output.text]
    if output.output_type == "error":
        return [output.evalue, *output.traceback]
    return [body for kind, body in output.data.items() if kind.startswith("text/") or "svg" in kind]


def test_every_page_has_a_source():
    missing = [
        p for p in pages() if not any((ROOT / f"{p}{s}").exists() for s in (".md", ".ipynb"))
    ]
    assert not missing


def test_every_notebook_is_in_the_toc():
    assert sorted((ROOT / "chapters").glob("*.ipynb")) == sorted(notebooks())


@each_notebook
def test_first_code_cell_is_the_same_everywhere(path):
    assert code_cells(path)[0].source == FIRST_CELL


@each_notebook
def test_no_formula_lost_its_backslash(path):
    eaten = re.search(r"[\x00-\x09\x0b-\x1f]", markdown(path))  # "\b" of \bar, "\t" of \tfrac
    assert not eaten, markdown(path)[max(0, eaten.start() - 60) : eaten.end() + 60]
    opened, closed = (
        len(re.findall(rf"\\{side}(?![a-z])", markdown(path))) for side in ("left", "right")
    )
    assert opened == closed  # the "\r" of \right turns into a new line


@each_notebook
def test_freshly_executed_in_order(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1)), "run: make notebook NB=chapters/" + path.name


@each_notebook
def test_file_is_what_make_notebooks_writes(path):
    notebook, tidied = read(path), read(path)
    script("notebooks").tidy(tidied)
    for cell, expected in zip(notebook.cells, tidied.cells, strict=True):
        if cell.cell_type == "code":  # its id is a hash of the source that was last executed
            assert cell.id == expected.id, f"edited since it ran: {cell.source}"
        expected.id = cell.id
    assert tidied == notebook, "run: make notebook NB=chapters/" + path.name


@each_notebook
def test_cells_are_short(path):
    for cell in code_cells(path):
        limit = 40 if tags(cell) & LONG_CELLS else 20
        assert len(cell.source.splitlines()) <= limit, cell.source


@each_notebook
def test_outputs_name_no_machine_and_no_failure(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            if output.output_type == "error":
                assert "raises-exception" in tags(cell), output.evalue
            assert output.get("name") != "stderr", output
            for text in texts(output):
                assert not MACHINE.search(text), f"{MACHINE.search(text)} in {text[:200]}"
                assert "Traceback (most recent call last)" not in text


@each_notebook
def test_pictures_are_described(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            data = output.get("data", {})
            if any(kind.startswith("image/") for kind in data) and "text/html" not in data:
                alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
                assert described(alt), f"metadata mystnb.image.alt of {cell.source}"
            markup = BeautifulSoup(data.get("text/html", ""), "html.parser")
            for svg in markup.find_all("svg"):
                figure = svg if svg.get("role") == "img" else svg.find_parent(attrs={"role": "img"})
                assert figure is not None and described(figure.get("aria-label")), cell.source
            for image in markup.find_all("img"):
                assert described(image.get("alt")), cell.source
    for alt in re.findall(r"!\[([^\]]*)\]\(", markdown(path)):
        assert described(alt), alt


@each_notebook
def test_prose_reads_well_in_colab_too(path):
    text = markdown(path)
    directives = re.findall(r"^\s*(?:`{3,}|:{3,})\{([\w:-]+)\}", text, flags=re.MULTILINE)
    roles = re.findall(r"\{([\w:-]+)\}`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert set(directives) | set(roles) <= ALLOWED_DIRECTIVES


@each_chapter
def test_opens_with_number_and_chinese_title(path):
    title, section = read(path).cells[0].source.splitlines()[:3:2]
    number = ".".join(part.lstrip("0") for part in path.stem.split("-")[:2] if part.isdigit())
    assert title.startswith(f"# {number} ")
    within, beyond = r"Section \d(\.\d)? of the article(, [a-z ]+)?", "Beyond the article"
    place = within if int(number.split(".")[0]) < 10 else beyond
    assert re.fullmatch(rf"\*{place} · .*[\u4e00-\u9fff].*\*", section)


@each_appendix
def test_appendix_opens_with_chinese_title(path):
    title, subtitle = read(path).cells[0].source.splitlines()[:3:2]
    assert re.fullmatch(r"# [A-Z].*", title)
    assert re.fullmatch(r"\*Appendix · .*[\u4e00-\u9fff].*\*", subtitle)


@each_notebook
def test_has_the_fixed_endings(path):
    headings = re.findall(r"^## (.+)$", markdown(path), flags=re.MULTILINE)
    endings = (
        ["Summary", "Quiz", "Exercises", "References"]
        if path in CHAPTERS
        else ["Summary", "References"]
    )
    assert headings[-len(endings) :] == endings


@each_notebook
def test_display_math_has_lines_of_its_own(path):
    inside = False
    lines = markdown(path).splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line.strip() == "$$":
            assert inside or not before.strip(), f"a blank line must come before $$: {before}"
            inside = not inside
        else:
            assert "$$" not in line, line


def cited_titles(path) -> set[str]:
    """The titles in the References of one chapter: a link, italics or quotes in each item."""
    items = re.findall(r"^- (.+)$", markdown(path).split("## References")[1], flags=re.MULTILINE)
    assert items
    found = [re.search(r'\[(.+?)\]\(|\*(.+?)\*|"(.+?)[",.]*"', item) for item in items]
    assert all(found), "each item names its work as a link, in italics or in quotes"
    return {next(filter(None, match.groups())).casefold() for match in found}


def test_bibliography_holds_the_works_that_chapters_cite():
    entries = parse_file(ROOT / "chapters/references.bib").entries.values()
    listed = {re.sub(r"[{}]", "", entry.fields["title"]).casefold() for entry in entries}
    cited = set.union(*map(cited_titles, notebooks()))
    assert not {title for title in cited if not any(full.startswith(title) for full in listed)}
    assert not {full for full in listed if not any(full.startswith(title) for title in cited)}


@each_notebook
def test_relative_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", markdown(path)):
        if not re.match(r"[a-z]+:|#", target):
            assert (path.parent / target.split("#")[0]).exists(), target
