r"""Numbered figures and equations, and links from every sentence that mentions one.

In the sources, below a cell that shows a figure, a paragraph begins with ``**Figure 4.2.1.**``; a
formula that is referred to ends with ``\tag{4.2.1}``; and sentences say "Figure 4.2.1" or "equation
(4.2.1)", in any chapter. That reads well in Colab. Here captions and formulas get an id, and
mentions a link. Wrong numbers, and mentions of what is not there, are warnings.
"""

import copy
import re

from docutils import nodes
from sphinx.util import logging

from ._doctree import chapter_number, inside, join_texts

logger = logging.getLogger(__name__)

CAPTION = re.compile(r"Figure (\d+(?:\.\d+)+)\.$")
TAG = re.compile(r"\\tag\{(\d+(?:\.\d+)+)\}\s*$")
NUMBER = r"(?:\(\d+(?:\.\d+)+\)|\d+(?:\.\d+)+)"
MENTION = re.compile(rf"\b(?:Figure|[Ee]quation)s? {NUMBER}(?:(?:,|,? and|,? or| to) {NUMBER})*")
NO_PROSE = (nodes.title, nodes.reference, nodes.literal, nodes.literal_block, nodes.raw)
NO_PROSE += (nodes.math, nodes.math_block, nodes.comment)


def _head(paragraph: nodes.Element) -> nodes.Node | None:
    """The first child with any text: MyST leaves empty ones."""
    return next((child for child in paragraph.children if child.astext()), None)


def _captions(doctree: nodes.document) -> list[tuple[str, nodes.Element]]:
    """The paragraphs that begin with a figure's number in bold, each with that number."""
    found = []
    for paragraph in doctree.findall(nodes.paragraph):
        head = _head(paragraph)
        number = CAPTION.match(head.astext()) if isinstance(head, nodes.strong) else None
        found += [(number[1], paragraph)] if number else []
    return found


def _equations(doctree: nodes.document) -> list[tuple[str, nodes.Element]]:
    blocks = [(TAG.search(block.astext()), block) for block in doctree.findall(nodes.math_block)]
    return [(tag[1], block) for tag, block in blocks if tag]


def _check(kind: str, chapter: str, numbered: list[tuple[str, nodes.Element]]) -> None:
    """Warn where the numbers of one page are not its chapter's, counted from 1."""
    seen = set()
    for place, (number, node) in enumerate(numbered, start=1):
        expected = f"{chapter}.{place}"
        if number in seen:
            logger.warning("%s %s is there twice", kind, number, location=node)
        elif number != expected:
            logger.warning("%s %s should be %s", kind, number, expected, location=node)
        seen.add(number)


def read(app, doctree: nodes.document) -> None:
    """Give the captions and numbered formulas of one page their ids, and remember them."""
    found = {}
    for kind, numbered in (("figure", _captions(doctree)), ("equation", _equations(doctree))):
        _check(kind, chapter_number(doctree), numbered)
        for number, node in numbered:
            name = f"{kind}-{number.replace('.', '-')}"
            if name not in found:
                node["ids"].append(name)
            found[name] = app.env.docname
            if kind == "figure":
                node["classes"].append("mha-caption")
    _numbers(app.env)[app.env.docname] = sorted(found)


def _numbers(env) -> dict[str, list[str]]:
    """Page -> the ids of its figures and formulas."""
    if not hasattr(env, "mha_numbers"):
        env.mha_numbers = {}
    return env.mha_numbers


def purge(app, env, docname: str) -> None:
    _numbers(env).pop(docname, None)


def merge(app, env, docnames, other) -> None:
    _numbers(env).update({name: _numbers(other)[name] for name in docnames})


def remember(app, env, docnames) -> None:
    app.mha_numbers_before = copy.deepcopy(_numbers(env))


def rewrite(app, env) -> list[str]:
    """All pages, if a number has come, gone or moved: any of them may mention it."""
    return list(env.found_docs) if _numbers(env) != app.mha_numbers_before else []


def _linked(mention: str, link) -> list[nodes.Node]:
    """The nodes of "Figures 1.1 and 1.2": the first link takes the word before it along."""
    kind = "figure" if mention.startswith("Figure") else "equation"
    parts, end = [], 0
    for found in re.finditer(NUMBER, mention):
        start = end if not parts else found.start()
        parts += [nodes.Text(mention[end:start])] if start > end else []
        number = found[0].strip("()").replace(".", "-")
        parts.append(link(f"{kind}-{number}", mention[start : found.end()]))
        end = found.end()
    return parts


def resolve(app, doctree: nodes.document, docname: str) -> None:
    """Link the mentions of one page, and tie its captions to the figures above them."""
    if app.builder.format != "html":
        return
    homes = {name: page for page, names in _numbers(app.env).items() for name in names}

    def link(name: str, text: str) -> nodes.Node:
        if name not in homes:
            logger.warning("%s is mentioned, but nothing has this number", text, location=here)
            return nodes.Text(text)
        page = "" if homes[name] == docname else app.builder.get_relative_uri(docname, homes[name])
        return nodes.reference("", text, internal=True, refuri=f"{page}#{name}")

    join_texts(doctree)
    captions = [caption for _, caption in _captions(doctree)]
    heads = [_head(caption) for caption in captions]
    for here in list(doctree.findall(nodes.Text)):
        if here.parent not in heads and not inside(here, NO_PROSE):
            _link_mentions(here, link)
    for caption in captions:
        _describe_figure(caption)


def _link_mentions(text: nodes.Text, link) -> None:
    source, parts, end = text.astext().replace("\n", " "), [], 0
    for found in MENTION.finditer(source):
        parts += [nodes.Text(source[end : found.start()]), *_linked(found[0], link)]
        end = found.end()
    if parts:
        text.parent.replace(text, [*parts, nodes.Text(source[end:])])


def _describe_figure(caption: nodes.Element) -> None:
    """Let the last figure above ``caption`` name its caption as its description."""
    above = caption.parent[: caption.parent.index(caption)]
    cell = above[-1] if above and isinstance(above[-1], nodes.container) else None
    raws = [raw for raw in cell.findall(nodes.raw) if 'role="img"' in raw.astext()] if cell else []
    for raw in raws[-1:]:
        head, tail = raw.astext().rsplit('role="img"', 1)
        described = f'{head}role="img" aria-describedby="{caption["ids"][0]}"{tail}'
        raw.children = [nodes.Text(described)]


def setup(app) -> dict:
    app.connect("doctree-read", read)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("env-before-read-docs", remember)
    app.connect("env-updated", rewrite)
    app.connect("doctree-resolved", resolve, priority=300)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
