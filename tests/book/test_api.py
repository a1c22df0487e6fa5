"""The reference: pages made from docstrings, which leave out nothing that the package offers."""

import inspect
import os
import re
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from bookfiles import HTML, ROOT, pages
from bs4 import BeautifulSoup
from sphinx.util.inventory import InventoryFile

sys.path.append(str(ROOT / ".ci/sphinx"))

from mha_book import _public, docstrings, inventories, references

BUILT = Path(os.environ.get("MHA_BOOK_HTML", HTML))  # another folder, to try tests on other pages
PAGES = [page for page in pages() if page.startswith("chapters/api-")]
DIRECTIVE = re.compile(r"^\.\. (?:(py:module|py:currentmodule)|auto\w+):: (\S+)", re.MULTILINE)
NAMES, MEMBERS = _public.names(), _public.members()
DESCRIBED = [name for name, thing in MEMBERS.items() if inspect.getdoc(thing)]

each_page = pytest.mark.parametrize("page", PAGES)


def listed(page: str) -> list[str]:
    """The names that the source of one page describes, in full."""
    found, module = [], ""
    for is_module, name in DIRECTIVE.findall((ROOT / f"{page}.md").read_text(encoding="utf8")):
        if is_module:
            module = name
        else:
            found.append(name if name.startswith("mha.") else f"{module}.{name}")
    return found


@cache
def soup(name: str) -> BeautifulSoup:
    return BeautifulSoup((BUILT / name).read_text(encoding="utf8"), "html.parser")


@cache
def entries() -> dict[str, tuple[str, object]]:
    """Full name -> the page that describes it, and the head of its entry there."""
    heads = [(f"{page}.html", head) for page in PAGES for head in soup(f"{page}.html").select("dt")]
    return {head["id"]: (page, head) for page, head in heads if "sig" in head.get("class", [])}


def linked() -> set[str]:
    """The addresses of other hosts to which the articles of the reference lead."""
    links = [a["href"] for page in PAGES for a in soup(f"{page}.html").select("article a[href]")]
    return {link for link in links if link.startswith("http")}


def addresses() -> dict[str, str]:
    """The full address of each line of the inventories -> the address of its project."""
    return {
        address + place: address
        for address, lines in inventories.read().values()
        for _, _, place in lines
    }


def test_every_public_name_stands_on_one_page():
    found = [name for page in PAGES for name in listed(page)]
    assert sorted(set(NAMES) - set(found)) == []
    assert sorted(name for name in set(found) if found.count(name) > 1) == []


def test_what_stands_there_besides_belongs_to_the_package():
    for name in {name for page in PAGES for name in listed(page)} - set(NAMES):
        module, _, last = name.rpartition(".")
        assert hasattr(sys.modules.get(module) or __import__(module, fromlist=[last]), last), name


@each_page
def test_a_page_begins_with_a_way_to_its_chapter(page):
    text = (ROOT / f"{page}.md").read_text(encoding="utf8")
    intro = text.partition("```{eval-rst}")[0]
    assert re.match(r"# mha(\.\w+)?\n\n[A-Z]", intro)
    assert re.search(r"\]\((?:\d\d-|appendix-checker)[\w-]+\.ipynb\)", intro)


@pytest.mark.book
def test_every_name_and_method_has_its_entry():
    with open(BUILT / "objects.inv", "rb") as stream:
        inventory = InventoryFile.load(stream, "", lambda _, place: place)
    known = {name for kind, there in inventory.items() if kind.startswith("py:") for name in there}
    assert sorted({*NAMES, *DESCRIBED} - known) == []
    assert sorted({*NAMES, *DESCRIBED} - set(entries())) == []


def has_lines(name: str) -> bool:
    """Whether there is a ``def`` or a ``class`` of this name: a property may be made by a call."""
    thing = NAMES.get(name) or MEMBERS[name]
    thing = getattr(thing, "fget", None) or getattr(thing, "__func__", thing)
    return callable(thing) and thing.__name__ == name.rpartition(".")[2]


@pytest.mark.book
@pytest.mark.parametrize("name", [*filter(has_lines, [*NAMES, *DESCRIBED])])
def test_an_entry_leads_to_its_source(name):
    page, head = entries()[name]
    link = head.select_one("a:has(.viewcode-link)")
    assert link, "no link to the source"
    file, _, anchor = link["href"].partition("#")
    source = (Path(page).parent / file).as_posix().replace("chapters/../", "")
    block = soup(source).find(id=anchor)
    assert block, link["href"]
    assert re.search(rf"\b(?:def|class) {name.rpartition('.')[2]}\b", block.get_text())
    back = block.select_one("a.viewcode-back")["href"]
    assert unquote(back).endswith(f"{Path(page).name}#{name}")


@pytest.mark.parametrize("name", [name for name in NAMES if not callable(NAMES[name])])
def test_a_constant_says_what_it_is(name):
    said = docstrings.said_of_constant(name, NAMES[name])
    assert said and said[0] not in inspect.getdoc(type(NAMES[name]))
    lines = ["what autodoc takes for its text"]
    docstrings.convert(None, "data", name, NAMES[name], None, lines)
    assert lines and "autodoc" not in lines[0]


@pytest.mark.book
def test_links_to_other_projects_are_those_of_the_inventories():
    known = addresses()
    assert sorted(linked() - set(known)) == []
    assert sorted(set(known) - linked()) == [], "lines of .ci/inventories that nothing uses"


@pytest.mark.book
def test_shapes_read_as_in_the_source():
    _, head = entries()["mha.models.drawn"]
    text = " ".join(head.get_text().split())
    assert text.startswith('mha.models.drawn( logits: Float[Tensor, "')
    assert "jaxtyping" not in text and "'" not in text


@pytest.mark.book
@each_page
def test_nothing_of_a_docstring_is_left_as_markup(page):
    article = BeautifulSoup(str(soup(f"{page}.html").select_one("article")), "html.parser")
    for tag in article.select("pre, code, dt.sig"):
        tag.decompose()
    text = article.get_text()
    assert not re.search(r"(?m)`|>>>|^\s*(?:Args|Returns|Errors|Source|Examples): ?\S", text)
    assert not article.select(".mha-term, .system-message, .problematic")


@pytest.mark.book
def test_examples_are_colored_and_can_be_copied():
    example = soup("chapters/api-masks.html").find(id="mha.masks.causal").parent
    assert example.select("dd .highlight pre .gp")
    script = (BUILT / "_static/copybutton.js").read_text(encoding="utf8")
    assert r">>> |\\.\\.\\. " in script


DOCSTRING = """One line, |j - i| and *all* of D_v.

A second paragraph, with ``code``, `causal`
and ``torch.no_grad()``.

Args:
    mask: bool (T, S); see ``causal``.
        It may be ``mask``. left: the first. right: the last.
    left, device: two at once.
Returns: (B, S) bool. Errors: ValueError, if so;
    TypeError else.

Examples:
    Before it, a word.
    >>> 1 + 1
    2

    >>> 2 + 2
    4
"""
REST = r"""One line, \|j - i\| and \*all\* of D_v.

A second paragraph, with ``code``, :py:obj:`causal <mha.masks.causal>` and :py:obj:`torch.no_grad() <torch.no_grad>`.

:Arguments:
    **mask**
        bool (T, S); see :py:obj:`causal <mha.masks.causal>`. It may be ``mask``.

    **left**
        the first.

    **right**
        the last.

    **left**, **device**
        two at once.

:Returns:
    (B, S) bool.

:Errors:
    ValueError, if so; TypeError else.

:Examples:
    Before it, a word.

    >>> 1 + 1
    2

    >>> 2 + 2
    4"""


def test_a_docstring_becomes_markup():
    arguments = frozenset(("mask", "left", "right", "device"))
    scope = docstrings.Scope("mha.masks.window", arguments)
    assert "\n".join(docstrings.rest(DOCSTRING.splitlines(), scope)) == REST


@pytest.mark.parametrize(
    ("where", "text", "target"),
    [
        ("mha.masks.window", "causal", "mha.masks.causal"),
        ("mha.masks.causal", "causal", None),  # itself
        ("mha.masks.causal", "data", None),  # a word, not mha.data
        ("mha.masks.causal", "mha.data", "mha.data"),
        ("mha.reference.attention", "bias", "mha.reference.bias"),
        ("mha.KVCache.append", "reset", "mha.KVCache.reset"),
        ("mha.training.accuracy", "Translator.translate", "mha.models.Translator.translate"),
        ("mha.check.diagnosis", "check.attention", "mha.check.attention"),
        ("mha.heads.LoopedHeads", "nn.Linear", "torch.nn.Linear"),
        ("mha.heads.LoopedHeads", "causal(1, 2)", None),
        ("mha.heads.LoopedHeads", "torch.nothing", "torch.nothing"),  # so that it is a warning
    ],
)
def test_what_a_name_in_backticks_means(where, text, target):
    assert docstrings.Scope(where).target(text) == target


def test_an_argument_is_no_link_where_something_else_has_its_name():
    assert docstrings.Scope("mha.reference.cap").target("bias") == "mha.reference.bias"
    scope = docstrings.Scope("mha.reference.cap", frozenset(["bias"]))
    assert scope.target("bias") is None


@pytest.mark.parametrize("line", ["B.", "1. one", "(a) b", "- minus", "..."])
def test_a_line_that_looks_like_a_list_is_none(line):
    [written] = docstrings.rest([line], docstrings.Scope("mha.x"))
    assert written == rf"\ {line}"


def test_an_argument_that_is_described_before_another_is_none():
    """Text that looks like an entry is one only if the function has that argument."""
    lines = ["Args:", "    mask: as here. note: not an argument."]
    written = docstrings.rest(lines, docstrings.Scope("mha.x", frozenset(["mask"])))
    assert written[-1].strip() == "as here. note: not an argument."


def test_an_inventory_is_what_sphinx_reads(tmp_path):
    path = tmp_path / "torch.inv"
    path.write_bytes(inventories.packed("torch", [("torch.Tensor", "py:class", "t.html#x")]))
    with path.open("rb") as stream:
        found = InventoryFile.load(stream, "https://host/", lambda base, place: base + place)
    assert found["py:class"]["torch.Tensor"][2] == "https://host/t.html#x"


def test_a_class_is_found_by_the_module_that_defines_it():
    assert references.offered()["mha.check.report.Finding"] == "mha.check.Finding"
    assert references.offered()["Finding"] == "mha.check.Finding"
