"""One page of the built book as a page of the EPUB: XHTML that needs no script.

What the page has for a mouse, a wide screen or a script becomes what every reader shows: formulas
are MathML, live figures their still pictures, cards of the glossary footnotes.
"""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urldefrag, urlsplit

from bs4 import SoupStrainer
from lxml import etree, html
from lxml.html import soupparser

XHTML, SVG = "http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"
MATHML, XML = "http://www.w3.org/1998/Math/MathML", "http://www.w3.org/XML/1998/namespace"
OPS, XLINK = "http://www.idpf.org/2007/ops", "http://www.w3.org/1999/xlink"
SPACES = {"svg": SVG, "math": MATHML}
EPUB_TYPE = f"{{{OPS}}}type"

# HTML knows no capitals, SVG does.
CAPITALS = """clipPath clipPathUnits foreignObject gradientTransform gradientUnits linearGradient
markerHeight markerUnits markerWidth patternContentUnits patternTransform patternUnits
preserveAspectRatio radialGradient refX refY textLength textPath viewBox"""
CAPITALS = {name.lower(): name for name in CAPITALS.split()}

UNUSED = ("headerlink", "mha-progress", "mha-tick", "mha-count", "toctree-wrapper")
KEPT_IN_CODE = re.compile(r"(k|ow$|c)")  # keywords and comments; other code is plain text
CHTML = re.compile("<mjx-math.*?</mjx-math>", re.DOTALL)  # what MathJax draws beside its MathML
STILL = "A still picture. In a browser, this figure answers to the mouse and the keyboard."
HAN = re.compile(r"[\u3000-\u9fff\uff00-\uffef]*[\u4e00-\u9fff][\u3000-\u9fff\uff00-\uffef]*")


@dataclass
class Page:
    """A page of the EPUB: its place, its title, its text, and the files beside it that it shows."""

    name: str  # as in _toc.yml
    title: str
    text: bytes
    properties: str  # what the package must say of it
    files: set[str]  # paths below the folder of the built pages


def convert(folder: Path, name: str, pages: set[str], kind: str) -> Page:
    """The page ``name`` of the book that is built in ``folder``; ``kind`` is its epub:type."""
    source = CHTML.sub("", (folder / f"{name}.html").read_text(encoding="utf8"))
    only = SoupStrainer("article")  # Python's parser leaves the nesting as it is written
    article = soupparser.fromstring(source, features="html.parser", parse_only=only)
    article = article if article.tag == "article" else article.find(".//article")
    styles = take_styles(article)
    make_still(article)
    for element in [e for unused in UNUSED for e in article.find_class(unused)]:
        element.drop_tree()
    for change in (formulas, summaries, footnotes, signatures, code):
        change(article)
    files = resolve(article, name, pages)
    body = article.find("section")
    body.set("role", f"doc-{kind}")
    title = " ".join(body.findtext("h1") and body.find("h1").text_content().split())
    text = document(title, body, styles, kind, "../" * name.count("/"))
    used = [tag for tag in ("mathml", "svg") if b"<" + tag.replace("ml", "").encode() in text]
    return Page(name, title, text, " ".join(used), files)


def having(root: html.HtmlElement, tag: str, name: str) -> list[html.HtmlElement]:
    """The elements ``tag`` of the class ``name``."""
    return [element for element in root.find_class(name) if element.tag == tag]


def take_styles(article: html.HtmlElement) -> list[str]:
    """Take the styles of outputs out of the text; those of live figures and of themes go."""
    found: list[str] = []
    for style in list(article.iter("style")):
        if next(style.iterancestors("svg"), None) is not None:
            continue
        live = style.getparent().find("script") is not None
        if not live and ":has(" not in style.text and style.text not in found:
            found.append(style.text)
        style.drop_tree()
    return found


def make_still(article: html.HtmlElement) -> None:
    """Take away the scripts. The figure above a script is no longer live: it says so."""
    for script in list(article.iter("script")):
        figure = script.getprevious()
        if figure is not None:
            note = html.fragment_fromstring(f'<p class="still">{STILL}</p>')
            figure.addnext(note)
        script.drop_tree()


def formulas(article: html.HtmlElement) -> None:
    """Leave of each formula its MathML, as browsers understand it without MathJax."""
    for box in list(article.iter("mjx-container")):
        math = box.find(".//math")
        math.tail = box.tail
        box.getparent().replace(box, math)
        for token in math.iter():
            spoken(token)
        if math.get("display"):
            apart(math)
    for box in having(article, "span", "math") + having(article, "div", "formula"):
        box.drop_tag()


def spoken(token: html.HtmlElement) -> None:
    """One element of MathML without MathJax's own attributes, and with letters of Unicode."""
    for name in [n for n in token.attrib if n.startswith("data-")]:
        del token.attrib[name]
    for side in ("lspace", "rspace"):
        if token.get(side) == "thickmathspace":
            token.set(side, "0.278em")
    variant = token.get("mathvariant", "normal")
    if token.tag == "mi" and variant != "normal":
        token.text = "".join(letter(one, variant) for one in token.text)
        del token.attrib["mathvariant"]


def apart(math: html.HtmlElement) -> None:
    """Make formulas of their own of what a wide space parts, so that small screens break there."""
    place = math
    for child in list(math):
        if child.tag == "mstyle" and child.xpath("count(*)=1 and mspace[@width='2em']"):
            follower = math.makeelement("math", display="block")
            follower.tail, place.tail = place.tail, None
            place.addnext(follower)
            place = follower
            math.remove(child)
        elif place is not math:
            place.append(child)


def letter(one: str, variant: str) -> str:
    """A letter of Unicode in a style, such as 𝔼 for E in double-struck."""
    size = "CAPITAL" if one.isupper() else "SMALL"
    name = f"{variant.upper()} {size} {one.upper()}"
    try:
        return unicodedata.lookup(f"MATHEMATICAL {name}")
    except KeyError:  # a few have had a place of their own for longer
        return unicodedata.lookup(name)


def summaries(article: html.HtmlElement) -> None:
    """What MyST-NB folds has two titles, for closed and open. One stays, as words."""
    for summary in article.iter("summary"):
        titles = having(summary, "p", "collapsed")
        if titles:
            words = titles[0].text_content().strip()
            for child in list(summary):
                summary.remove(child)
            summary.text = words
            summary.attrib.pop("aria-label", None)


def footnotes(article: html.HtmlElement) -> None:
    """Make footnotes of the glossary's cards. Many readers show them above the text."""
    entries = {}
    for link in having(article, "a", "mha-term"):
        card = link.attrib.pop("aria-describedby")
        entries[card] = link.get("href")
        link.set("href", f"#{card}")
        link.set(EPUB_TYPE, "noteref")
        link.set("role", "doc-noteref")
    for card in having(article, "div", "mha-card"):
        card.tag = "aside"
        del card.attrib["hidden"]
        card.set(EPUB_TYPE, "footnote")
        card.set("role", "doc-footnote")
        term = having(card, "p", "mha-card-term")[0].find("b")
        term.tag = "a"
        term.set("href", entries[card.get("id")])
    for box in having(article, "div", "mha-cards"):
        heading = html.fragment_fromstring("<h2>Words of this chapter</h2>")
        box.insert(0, heading)
        article.find("section").append(box)


def signatures(article: html.HtmlElement) -> None:
    """Sphinx lists the parameters of a function as definitions of nothing; XHTML wants lines."""
    for parameters in article.iterfind(".//dt/dl"):
        for element in (parameters, *parameters.iterchildren("dd")):
            element.tag = "div"
            element.set("class", "parameters" if element is parameters else "parameter")


def code(article: html.HtmlElement) -> None:
    """Code keeps the marks of keywords and comments only, so that small devices stay fast."""
    for block in having(article, "div", "highlight"):
        for span in list(block.iter("span")):
            if not KEPT_IN_CODE.match(span.get("class", "")):
                span.drop_tag()
    for scrolling in article.iter("pre"):
        scrolling.attrib.pop("tabindex", None)  # lines break instead
    for words in having(article, "span", "pre"):
        words.drop_tag()


def resolve(article: html.HtmlElement, name: str, pages: set[str]) -> set[str]:
    """Let links lead to pages of the EPUB, where they can; gives the pictures that it must carry."""
    for link in list(article.iter("a")):
        target, fragment = urldefrag(link.get("href", ""))
        if not target or urlsplit(target).scheme:
            continue
        page = normpath(join(dirname(name), unquote(target))).removesuffix(".html")
        if page in pages:
            anchor = f"#{fragment}" if fragment else ""
            link.set("href", target.removesuffix(".html") + ".xhtml" + anchor)
        elif link.find_class("viewcode-link") or link.find_class("viewcode-back"):
            link.drop_tree()
        else:
            link.drop_tag()
    return {normpath(join(dirname(name), unquote(i.get("src")))) for i in article.iter("img")}


def document(title: str, body: html.HtmlElement, styles: list[str], kind: str, up: str) -> bytes:
    """The whole file around ``body``; ``up`` leads from it to the folder with the style sheet."""
    root = etree.Element(f"{{{XHTML}}}html", nsmap={None: XHTML, "epub": OPS})
    root.set("lang", "en")
    root.set(f"{{{XML}}}lang", "en")
    head = etree.SubElement(root, f"{{{XHTML}}}head")
    etree.SubElement(head, f"{{{XHTML}}}title").text = title
    etree.SubElement(
        head, f"{{{XHTML}}}link", rel="stylesheet", type="text/css", href=f"{up}epub.css"
    )
    for style in styles:
        etree.SubElement(head, f"{{{XHTML}}}style").text = style
    around = etree.SubElement(root, f"{{{XHTML}}}body")
    namespaced(body, around, XHTML).set(EPUB_TYPE, kind)
    return etree.tostring(root, encoding="utf-8", xml_declaration=True, doctype="<!DOCTYPE html>")


def namespaced(old: html.HtmlElement, parent: etree._Element, space: str) -> etree._Element:
    """Append ``old`` to ``parent``, with all that is in it, each element in its namespace."""
    inner = SPACES.get(old.tag, space)
    name = CAPITALS.get(old.tag, old.tag) if inner == SVG else old.tag
    new = etree.SubElement(parent, f"{{{inner}}}{name}", nsmap={None: inner})
    for key, value in old.attrib.items():
        if key == "lang":
            new.set(f"{{{XML}}}lang", value)
        if inner == SVG and key in ("href", "xlink:href"):
            key = f"{{{XLINK}}}href"  # readers of some years ago know no other
        if key != "xmlns" and not key.startswith(("data-", "xmlns:")):
            new.set(CAPITALS.get(key, key) if inner == SVG else key, value)
    new.text, new.tail = old.text, old.tail
    for child in old:
        namespaced(child, new, inner)
    return new
