"""A description for search engines in the head of each page: its first sentences of prose."""

import html
import re

from docutils import nodes

from ._doctree import inside

LONG = 160  # characters: what search engines show of it
NO_WORDS = (nodes.math, nodes.raw, nodes.footnote_reference, nodes.system_message)
NO_PROSE = (nodes.block_quote, nodes.list_item, nodes.table, nodes.container, nodes.definition)
GAP = "\0"  # stands for what has no words, such as a formula


def prose(paragraph: nodes.paragraph) -> str:
    """The words of a paragraph, or "" if all of it is set apart, as a subtitle is."""
    parts = [part for part in paragraph.children if part.astext().strip()]
    if len(parts) == 1 and isinstance(parts[0], (nodes.emphasis, nodes.math)):
        return ""
    words = []
    for node in paragraph.findall(lambda n: isinstance(n, (nodes.Text, *NO_WORDS))):
        if isinstance(node, NO_WORDS):
            words.append(GAP)
        elif not inside(node, NO_WORDS):
            words.append(node.astext())
    return " ".join("".join(words).split())


def description(doctree: nodes.document) -> str:
    """The first sentences of the page that have no formula, up to 160 characters in all."""
    text = ""
    for paragraph in doctree.findall(nodes.paragraph):
        if type(paragraph) is not nodes.paragraph or inside(paragraph, NO_PROSE):
            continue  # Sphinx's own kinds of paragraph stand in lists of pages
        for sentence in re.split(r"(?<=[.!?]) ", prose(paragraph)):
            if not sentence or GAP in sentence:
                continue
            if len(f"{text} {sentence}") > LONG:
                return text or sentence[:LONG].rpartition(" ")[0] + " …"
            text = f"{text} {sentence}".strip()
    return text


def describe(app, pagename, templatename, context, doctree) -> None:
    """Add the description; a page that Sphinx makes itself, such as the search, has the book's name."""
    text = (description(doctree) if doctree is not None else "") or app.config.html_title
    tag = f'<meta name="description" content="{html.escape(text)}" />'
    context["metatags"] = f"{context.get('metatags', '')}\n{tag}"


def setup(app) -> None:
    app.connect("html-page-context", describe)
