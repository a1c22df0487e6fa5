"""Terms of the glossary, linked at their first use in each chapter, each with a card.

A term is linked once a page, in sentences only: not in headings, code, links, captions, heads of
tables, folded text, quiz, exercises or references. It is not linked where it is explained, in the
section that its entry points to. The link leads to the entry; ``reading.js`` shows the card, which
lies hidden at the end of the page, on hover and on focus.
"""

import re
from dataclasses import dataclass
from html import escape

from docutils import nodes
from sphinx import addnodes

from ._doctree import ancestors, chapter_number, inside, join_texts, sections, stem

PAGE = "appendix-glossary"

# Words that are terms only in certain company: what must stand in the same sentence.
ATTENTION = r"quer|\bkeys?\b|\bvalues?\b|attention|softmax|\bscores?\b|\bweights?\b|\bheads?\b"
ONLY_BESIDE = {
    "alignment": r"quer|\bkeys?\b|mask|corner|offset",
    "batch": r"example|sentence|axis|train|shape|`B`|first",
    "bias": r"linear|map|projection|W_|b_|score|parameter|vector",
    "decoder": r"encoder|token|mask|write|cross|cache|GPT|model|causal",
    "head": ATTENTION.replace(r"|\bheads?\b", "") + r"|heads|one head|each head|every head",
    "hook": r"PyTorch|module",
    "kernel": r"GPU|fused|Triton|Flash|CUDA|program|backend",
    "key": r"quer|\bvalues?\b|attention|score|softmax|\bweights?\b|mask|cache",
    "patch": r"image|picture|pixel|token|photo|vision|digit",
    "rank": r"matri|dimension|direction|independent",
    "reference": r"translation|BLEU|chrF",
    "ridge": r"intensity|roof|FLOP|byte",
    "rounding": r"float|format|bit|number|error|digit|precision|to rounding",
    "scale": r"score|sqrt|root|factor|dot product|divi",
    "score": ATTENTION.replace(r"|\bscores?\b", "") + r"|dot product",
    "spill": r"register|compiler|memory",
    "tile": r"quer|\bkeys?\b|block|memory|kernel|Flash|score",
    "value": r"quer|\bkeys?\b|attention|\bweights\b|\bheads?\b",
    "weight": r"quer|\bkeys?\b|\bvalues?\b|attention|softmax|\brow\b|\bscores?\b",
    "window": r"quer|\bkeys?\b|mask|attention|neighbor|token|local",
}
# Phrases that hold a term in another sense.
NEVER = re.compile(
    r"(?:would|will|to|not|can) scale|(?:transformer|attention) scores|library transformers"
    r"|tensor cores|state of the art|head of (?:this|the) \w+|key word|keyword|large scale|at scale|scale up"
    r"|(?:absolute|random|true|fill) values?|trained weights|weights of (?:a|the|its|our) \w+"
    r"|attention to|pay\w* attention|by heart|loss of|weight decay|token by token|training scores|scores? above|(?:little|no|without) loss|same weights|ten scores|(?:carry|copy) weights",
    re.IGNORECASE,
)
SKIPPED_SECTIONS = {"quiz", "exercises", "references"}
NO_PROSE = (nodes.title, nodes.reference, nodes.literal, nodes.literal_block, nodes.raw)
NO_PROSE += (nodes.math, nodes.math_block, nodes.comment, nodes.thead, nodes.block_quote)
SENTENCE_END = re.compile(r"[.?!]\s")


@dataclass
class Entry:
    """One entry of the glossary."""

    term: str
    chinese: str
    name: str  # the id on the page
    homes: list[tuple[str, str]]  # page and heading where it is explained; "" for a whole page


class cards(nodes.comment):
    """The cards of one page. A comment to everyone else, so that the search does not read them."""


class term_link(nodes.reference):
    """A link to an entry, with the id of its card."""


def _pattern(term: str) -> str:
    """What ``term`` looks like in a sentence: plural too, capital first letter too."""
    body = re.escape(term).replace(r"\ ", r"\s+")
    if term[1:].islower() and term[0].islower():
        body = f"[{term[0]}{term[0].upper()}]{body[1:]}"
    if re.search(r"[^aeiou]y$", term):
        return rf"{body[:-1]}(?:y|ies)"
    return body + ("(?:es)?" if re.search(r"(?:s|x|ch|sh)$", term) else "s?")


def read(app, doctree: nodes.document) -> None:
    """Give the entries of the glossary their ids, and remember them."""
    if stem(app.env.docname) != PAGE:
        return
    entries = []
    for item in doctree.findall(nodes.definition_list_item):
        term, _, chinese = item[0].astext().partition(" · ")
        name = f"term-{nodes.make_id(term)}"
        item[0]["ids"].append(name)
        entries.append(Entry(term, chinese, name, _homes(item)))
    app.env.mha_glossary = (app.env.docname, entries)


def _homes(item: nodes.Element) -> list[tuple[str, str]]:
    """Page and heading of each link in one entry, which MyST has not resolved yet."""
    links = item[-1].findall(addnodes.pending_xref)
    return [(stem(link["reftarget"]), link.get("reftargetid") or "") for link in links]


def _is_link(node: nodes.Node) -> bool:
    return node.__class__.__name__ in ("pending_xref", "reference", "download_reference")


def purge(app, env, docname: str) -> None:
    if getattr(env, "mha_glossary", ("", []))[0] == docname:
        del env.mha_glossary


def merge(app, env, docnames, other) -> None:
    if hasattr(other, "mha_glossary") and other.mha_glossary[0] in docnames:
        env.mha_glossary = other.mha_glossary


def remember(app, env, docnames) -> None:
    app.mha_glossary_read = any(stem(name) == PAGE for name in docnames)


def rewrite(app, env) -> list[str]:
    """All pages, if the glossary was read again: their cards hold its text."""
    return list(env.found_docs) if app.mha_glossary_read else []


def _prose(doctree: nodes.document) -> list[nodes.Text]:
    """The texts in which a term may be linked, in the order of the page."""
    found, folded = [], 0
    for node in doctree.findall():
        if isinstance(node, nodes.raw):
            folded += node.astext().count("<details") - node.astext().count("</details")
        elif isinstance(node, nodes.Text) and not folded and _may_link(node):
            found.append(node)
    return found


def _may_link(text: nodes.Text) -> bool:
    around = list(ancestors(text))
    classes = {name for node in around for name in node.get("classes", [])}
    return (
        any(isinstance(node, nodes.paragraph) for node in around)
        and not inside(text, NO_PROSE)
        and not classes & {"mha-caption", "cell"}
        and not sections(text) & SKIPPED_SECTIONS
        and not re.search(r"[\u4e00-\u9fff]", text.astext())  # the article's title of a section
    )


def _sentence(text: nodes.Text, at: int) -> str:
    """The sentence around the place ``at`` of ``text``, across formulas, code and emphasis."""
    block = text
    while not isinstance(block, nodes.paragraph):
        block = block.parent
    before = ""
    for other in block.findall(nodes.Text):
        if other is text:
            break
        before += other.astext()
    whole, at = block.astext(), len(before) + at
    ends = [found.end() for found in SENTENCE_END.finditer(whole)]
    start = max((end for end in ends if end <= at), default=0)
    return whole[start : min((end for end in ends if end > at), default=len(whole))]


class Linker:
    """Links the terms of one page, each once."""

    def __init__(self, entries: list[Entry], page: str, uri: str):
        self.page, self.uri = page, uri
        self.entries = sorted(entries, key=lambda entry: -len(entry.term))  # the longest wins
        self.done = {entry.term for entry in entries if (page, "") in entry.homes}
        self.used: list[Entry] = []
        either = "|".join(f"({_pattern(entry.term)})" for entry in self.entries)
        self.pattern = re.compile(rf"(?<![\w-])(?:{either})(?![\w-])")

    def link(self, text: nodes.Text) -> None:
        """Replace ``text`` by itself with links in it."""
        source, around, parts, end = text.astext(), sections(text), [], 0
        for found in self.pattern.finditer(source):
            entry = self.entries[found.lastindex - 1]
            if entry.term in self.done or not self._is_meant(entry, found, text):
                continue
            self.done.add(entry.term)
            if any(page == self.page and heading in around for page, heading in entry.homes):
                continue  # it is explained right here
            parts += [nodes.Text(source[end : found.start()]), self._link(entry, found[0])]
            end = found.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(source[end:])])

    def _is_meant(self, entry: Entry, found: re.Match, text: nodes.Text) -> bool:
        others = NEVER.finditer(found.string)
        if any(other.start() <= found.start() < other.end() for other in others):
            return False
        company = ONLY_BESIDE.get(entry.term)
        sentence = _sentence(text, found.start())
        return not company or bool(re.search(company, sentence, re.IGNORECASE))

    def _link(self, entry: Entry, text: str) -> term_link:
        self.used.append(entry)
        uri = f"{self.uri}#{entry.name}"
        return term_link("", text, internal=True, refuri=uri, card=f"card-{entry.name}")


def _definitions(app, home: str) -> dict[str, nodes.paragraph]:
    """Id -> definition, without the links behind it; made once a build."""
    if not hasattr(app, "mha_definitions"):
        app.mha_definitions = {}
        for item in app.env.get_doctree(home).findall(nodes.definition_list_item):
            paragraph = next(item[-1].findall(nodes.paragraph))
            while _is_link(paragraph[-1]) or not re.search(r"[\w.]", paragraph[-1].astext()):
                paragraph.pop()
            app.mha_definitions[item[0]["ids"][-1]] = paragraph
    return app.mha_definitions


def _card(entry: Entry, definition: nodes.paragraph) -> list[nodes.Node]:
    start = (
        f'<div class="mha-card" id="card-{entry.name}" role="tooltip" hidden>'
        f'<p class="mha-card-term"><b>{escape(entry.term)}</b> <span lang="zh">{escape(entry.chinese)}</span></p>'
    )
    return [
        nodes.raw("", start, format="html"), definition, nodes.raw("", "</div>", format="html"),
    ]  # fmt: skip


def resolve(app, doctree: nodes.document, docname: str) -> None:
    """Link the terms of one chapter, and put their cards at its end."""
    known = app.builder.format == "html" and hasattr(app.env, "mha_glossary")
    if not known or not chapter_number(doctree):
        return
    home, entries = app.env.mha_glossary
    page = stem(docname)
    linker = Linker(entries, page, app.builder.get_relative_uri(docname, home))
    join_texts(doctree)
    for text in _prose(doctree):
        linker.link(text)
    definitions = _definitions(app, home)
    found = cards("", "", classes=["mha-cards"])
    for entry in linker.used:
        found += _card(entry, definitions[entry.name].deepcopy())
    doctree += found


def visit_term_link(self, node: term_link) -> None:
    attributes = {"href": node["refuri"], "aria-describedby": node["card"]}
    self.body.append(self.starttag(node, "a", "", CLASS="mha-term", **attributes))


def depart_term_link(self, node: term_link) -> None:
    self.body.append("</a>")


def visit_cards(self, node: cards) -> None:
    self.body.append('<div class="mha-cards">')


def depart_cards(self, node: cards) -> None:
    self.body.append("</div>")


def setup(app) -> dict:
    app.add_node(term_link, html=(visit_term_link, depart_term_link))
    app.add_node(cards, html=(visit_cards, depart_cards))
    app.connect("doctree-read", read)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("env-before-read-docs", remember)
    app.connect("env-updated", rewrite)
    app.connect("doctree-resolved", resolve, priority=310)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
