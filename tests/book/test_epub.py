"""The EPUB: accepted by epubcheck, complete, and without what only a browser understands."""

import os
import re
import shutil
import subprocess
import unicodedata
import zipfile
from functools import cache
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from bookfiles import HTML, ROOT, described, pages, script
from lxml import etree, html

BUILT = Path(os.environ.get("MHA_BOOK_HTML", HTML))  # another folder, to try tests on other pages
X = "{http://www.w3.org/1999/xhtml}"
SPACES = {
    "x": "http://www.w3.org/1999/xhtml",
    "m": "http://www.w3.org/1998/Math/MathML",
    "s": "http://www.w3.org/2000/svg",
    "opf": "http://www.idpf.org/2007/opf",
    "epub": "http://www.idpf.org/2007/ops",
    "dc": "http://purl.org/dc/elements/1.1/",
}
LANG = "{http://www.w3.org/XML/1998/namespace}lang"
WITH_SCRIPT = {"script", "iframe", "object", "embed", "canvas", "button", "input", "select", "form"}

each_page = pytest.mark.parametrize("page", pages())


@pytest.fixture(scope="module")
def maker():
    """.ci/epub.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / ".ci")
        yield script("epub")


@pytest.fixture(scope="module")
def book(maker, tmp_path_factory) -> Path:
    """An EPUB of the built pages, which must be those of this checkout."""
    if BUILT == HTML:
        build, stamp = script("book"), HTML.parent / "good.sha256"
        assert stamp.exists(), "no good build: run make book"
        assert stamp.read_text() == build.digest(build.PAGES_REST_ON), "stale pages: run make book"
    target = tmp_path_factory.mktemp("epub") / "book.epub"
    maker.write(target, BUILT)
    return target


@cache
def member(book: Path, name: str) -> etree._Element:
    """One file of the EPUB, which must be well-formed XML."""
    with zipfile.ZipFile(book) as file:
        return etree.fromstring(file.read(f"EPUB/{name}"))


@cache
def source(page: str) -> html.HtmlElement:
    """The text of a built page."""
    parser = html.HTMLParser(encoding="utf8", huge_tree=True)
    return html.parse(BUILT / f"{page}.html", parser).find(".//article")


def find(tree: etree._Element, path: str) -> list:
    return tree.xpath(path, namespaces=SPACES)


def epubcheck() -> list[str]:
    """The command; Debian's is a Java archive that not every kernel starts by itself."""
    found = shutil.which("epubcheck")
    if found is None:
        pytest.skip("needs epubcheck: apt-get install epubcheck")
    return ["java", "-jar", found] if zipfile.is_zipfile(found) else [found]


@pytest.mark.book
def test_epubcheck_accepts_the_book(book):
    command = [*epubcheck(), "--failonwarnings", str(book)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "No errors or warnings detected" in done.stdout


@pytest.mark.book
def test_every_page_is_in_the_spine_and_in_the_contents_in_order(book):
    package, contents = member(book, "package.opf"), member(book, "nav.xhtml")
    places = {item.get("id"): item.get("href") for item in find(package, "//opf:item")}
    spine = [places[ref.get("idref")] for ref in find(package, "//opf:itemref")]
    wanted = [f"{page}.xhtml" for page in pages()]
    assert spine == ["cover.xhtml", "nav.xhtml", *wanted]
    links = find(contents, "//x:nav[@epub:type='toc']//x:a")
    assert [link.get("href") for link in links] == wanted
    titles = [find(member(book, name), "//x:title")[0].text for name in wanted]
    assert ["".join(link.itertext()) for link in links] == titles


@pytest.mark.book
@each_page
def test_nothing_on_the_page_needs_a_script(book, page):
    for element in member(book, f"{page}.xhtml").iter(etree.Element):
        assert etree.QName(element).localname not in WITH_SCRIPT, etree.tostring(element)[:300]
        active = [name for name in element.attrib if name.startswith("on")]
        assert not active and not element.get("href", "").startswith("javascript:"), element.attrib


@pytest.mark.book
@each_page
def test_live_figures_are_still_pictures_that_say_so(book, page):
    notes = find(member(book, f"{page}.xhtml"), "//x:p[@class='still']")
    assert len(notes) == len(source(page).findall(".//script"))
    for note in notes:
        figures = find(note.getprevious(), "descendant-or-self::*[@role='img']")
        assert figures and all(described(figure.get("aria-label")) for figure in figures)
        assert all(find(figure, ".//s:path | .//s:rect | .//x:img") for figure in figures)


@pytest.mark.book
def test_the_book_has_live_figures():
    assert sum(len(source(page).findall(".//script")) for page in pages()) >= 6


@pytest.mark.book
@each_page
def test_each_formula_is_mathml(book, page):
    tree = member(book, f"{page}.xhtml")
    tokens = "mi mn mo mtext".split()
    wanted = [t for box in source(page).iter("mjx-assistive-mml") for t in box.iter(*tokens)]
    found = [t for t in find(tree, "//m:*") if etree.QName(t).localname in tokens]
    plain = [unicodedata.normalize("NFKC", token.text or "") for token in found]
    assert plain == [unicodedata.normalize("NFKC", token.text or "") for token in wanted]
    assert bool(wanted) == ("mathml" in properties(book, page))
    assert not [e for e in tree.iter(etree.Element) if etree.QName(e).localname[:4] == "mjx-"]


def properties(book: Path, page: str) -> list[str]:
    item = find(member(book, "package.opf"), f"//opf:item[@href='{page}.xhtml']")[0]
    return item.get("properties", "").split()


@pytest.mark.book
@each_page
def test_no_cell_heading_or_picture_is_lost(book, page):
    tree, before = member(book, f"{page}.xhtml"), source(page)
    for name in ("cell", "output", "quiz", "mha-figure", "mha-report", "mha-term", "mha-card"):
        has = f"//*[contains(concat(' ', @class, ' '), ' {name} ')]"
        assert len(find(tree, has)) == len(before.xpath(f".{has}")), name
    assert len(find(tree, "//s:svg[not(ancestor::s:svg)]")) == len(before.findall(".//svg"))
    own = [
        h
        for h in find(tree, "//x:h1 | //x:h2 | //x:h3")
        if h.getparent().get("class") != "mha-cards"
    ]
    assert len(own) == len(before.xpath(".//h1 | .//h2 | .//h3"))
    assert ("svg" in properties(book, page)) == bool(before.findall(".//svg"))
    code = ["".join(pre.itertext()) for pre in find(tree, "//x:pre")]
    assert code == [pre.text_content() for pre in before.iter("pre")]


@pytest.mark.book
@each_page
def test_every_link_inside_the_book_resolves(book, page):
    name = f"{page}.xhtml"
    with zipfile.ZipFile(book) as file:
        files = {entry.removeprefix("EPUB/") for entry in file.namelist()}
    for element in member(book, name).iter(etree.Element):
        for key in ("href", "src"):
            target, fragment = urldefrag(element.get(key, ""))
            if urlsplit(target).scheme:
                assert element.tag == f"{X}a", "only a link may lead out of the book"
                continue
            place = normpath(join(dirname(name), unquote(target))) if target else name
            assert place in files, element.attrib
            if fragment:
                assert find(member(book, place), "//*[@id=$id]".replace("$id", quoted(fragment)))


def quoted(fragment: str) -> str:
    assert '"' not in fragment
    return f'"{unquote(fragment)}"'


@pytest.mark.book
def test_chinese_says_that_it_is(book):
    for name in ["nav.xhtml", *(f"{page}.xhtml" for page in pages())]:
        tree = member(book, name)
        assert tree.get("lang") == tree.get(LANG) == "en"
        for heading in find(tree, "//x:h1 | //x:nav//x:li"):
            for node in heading.iter(f"{X}span", f"{X}a", f"{X}h1"):
                if re.search(r"[\u4e00-\u9fff]", node.text or ""):
                    assert node.get("lang") == node.get(LANG) == "zh", (name, node.text)


@pytest.mark.book
def test_metadata(book):
    package = member(book, "package.opf")
    assert find(package, "string(//dc:identifier)").startswith("urn:uuid:")
    assert find(package, "string(//dc:title)") and find(package, "string(//dc:creator)")
    assert find(package, "string(//dc:language)") == "en"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", find(package, "string(//dc:date)"))
    said = {meta.get("property") for meta in find(package, "//opf:meta")}
    assert {"schema:accessMode", "schema:accessibilityFeature", "dcterms:modified"} <= said


@pytest.mark.book
def test_the_same_pages_give_the_same_bytes(maker, tmp_path, monkeypatch):
    first, parts = maker.contents()
    monkeypatch.setattr(maker, "contents", lambda: (first, parts[:1]))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    for name in "ab":
        maker.write(tmp_path / name, BUILT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000002")
    maker.write(tmp_path / "c", BUILT)
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def made(maker, tmp_path, inside: str) -> etree._Element:
    """What becomes of a page with this text."""
    text = f"<article><section id='s'><h1>A title</h1>{inside}</section></article>"
    (tmp_path / "one.html").write_text(f"<!DOCTYPE html><body>{text}</body>", encoding="utf8")
    return etree.fromstring(maker.convert(tmp_path, "one", {"one", "two"}, "chapter").text)


def test_a_live_figure_becomes_still(maker, tmp_path):
    box = '<style>.live {color: red}</style><div data-live="1"><svg viewBox="0 0 1 1"></svg></div>'
    tree = made(maker, tmp_path, f"<div>{box}<script type=module>if (1 < 2) a();</script></div>")
    assert find(tree, "//s:svg/@viewBox") == ["0 0 1 1"]
    assert "A still picture" in "".join(tree.itertext())
    assert not find(tree, "//x:script | //x:style | //@data-live")


def test_links_lead_to_pages_of_the_book_only(maker, tmp_path):
    links = '<a href="two.html#x">on</a> <a href="search.html">search</a>'
    source = '<a href="_modules/m.html"><span class="viewcode-link">[source]</span></a>'
    tree = made(maker, tmp_path, f"<p>{links} {source}</p>")
    assert find(tree, "//x:a/@href") == ["two.xhtml#x"]
    assert "".join(find(tree, "//x:p")[0].itertext()).split() == ["on", "search"]


def test_letters_and_parts_of_a_formula(maker, tmp_path):
    space = '<mstyle scriptlevel="0"><mspace width="2em"></mspace></mstyle>'
    math = f'<mi mathvariant="double-struck">E</mi>{space}<mi mathvariant="script">L</mi>'
    math = f'<math display="block">{math}</math>'
    box = f"<mjx-container><mjx-math>x</mjx-math><mjx-assistive-mml>{math}</mjx-assistive-mml>"
    formula = f'<div class="math"><div class="formula">{box}</mjx-container></div>'
    tree = made(maker, tmp_path, f'{formula}<span class="eqno">(1)</span></div>')
    assert ["".join(math.itertext()) for math in find(tree, "//m:math")] == ["𝔼", "ℒ"]
    assert find(tree, "//m:math[last()]/following-sibling::*/@class") == ["eqno"]


def test_a_card_becomes_a_footnote(maker, tmp_path):
    term = '<p><a class="mha-term" aria-describedby="card-q" href="two.html#q">query</a></p>'
    card = '<p class="mha-card-term"><b>query</b></p><p>It asks.</p>'
    card = f'<div class="mha-cards"><div class="mha-card" id="card-q" hidden>{card}</div></div>'
    tree = made(maker, tmp_path, term + card)
    assert find(tree, "//x:a[@epub:type='noteref']/@href") == ["#card-q"]
    assert find(tree, "//x:aside[@id='card-q']//x:a/@href") == ["two.xhtml#q"]
    assert not find(tree, "//@hidden")


def test_the_parameters_of_a_function_are_lines(maker, tmp_path):
    signature = "<dt id='f'>f(<dl><dd><em>a</em>,</dd><dd><em>b</em></dd></dl>)</dt><dd>Adds.</dd>"
    tree = made(maker, tmp_path, f"<dl>{signature}</dl>")
    lines = find(tree, "//x:dt/x:div/x:div[@class='parameter']")
    assert ["".join(line.itertext()) for line in lines] == ["a,", "b"]
