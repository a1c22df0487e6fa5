"""How long a chapter takes, and a place for the tick of a reader who has read it.

Each chapter states "Reading time: about 15 minutes". Here these minutes go into the contents at the
side, and into a list of all chapters on the first page, with the sum of each part. Beside them, and
at the end of each chapter, stand empty elements that ``reading.js`` fills, if the browser can keep
what a reader has ticked. They have their size already, so that nothing moves.
"""

import re
from html import escape

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx import addnodes

from ._doctree import chapter_number

MINUTES = re.compile(r"Reading time: about (\d+) minutes")
BEFORE = "how-to-run"  # the section of the first page above which the list stands


class progress(nodes.comment):
    """The place for the button at the end of a chapter; a comment to the search."""


class contents(nodes.comment):
    """The list of all chapters on the first page; a comment to the search."""


def _minutes(env) -> dict[str, int]:
    """Page -> minutes, for the chapters."""
    if not hasattr(env, "mha_minutes"):
        env.mha_minutes = {}
    return env.mha_minutes


def read(app, doctree: nodes.document) -> None:
    """Remember the minutes of one chapter, and put the place for its button at the end."""
    docname = app.env.docname
    found = MINUTES.search(doctree.astext())
    if found and chapter_number(doctree):
        _minutes(app.env)[docname] = int(found[1])
        doctree += progress("", "", page=docname)


def purge(app, env, docname: str) -> None:
    _minutes(env).pop(docname, None)


def merge(app, env, docnames, other) -> None:
    _minutes(env).update({k: v for k, v in _minutes(other).items() if k in docnames})


def remember(app, env, docnames) -> None:
    app.mha_minutes_before = dict(_minutes(env))


def rewrite(app, env) -> list[str]:
    """All pages, if minutes have changed: they stand at the side of every page."""
    return list(env.found_docs) if _minutes(env) != app.mha_minutes_before else []


def resolve(app, doctree: nodes.document, docname: str) -> None:
    """Put the list of all chapters on the first page."""
    if app.builder.format != "html" or docname != app.config.root_doc:
        return
    for section in doctree.findall(nodes.section):
        if BEFORE in section["ids"]:
            section.parent.insert(section.parent.index(section), contents("", ""))
            return


def _tick(page: str) -> str:
    return f'<span class="mha-tick" data-page="{escape(page)}"></span>'


def _parts(app) -> list[tuple[str, list[str]]]:
    """Each part of the table of contents that has chapters: its caption, and their pages."""
    tree = app.env.get_doctree(app.config.root_doc)
    parts = [
        (toc["caption"], [page for _, page in toc["entries"] if page in _minutes(app.env)])
        for toc in tree.findall(addnodes.toctree)
    ]
    return [(caption, pages) for caption, pages in parts if pages]


def visit_contents(self, node: contents) -> None:
    app, env = self.builder.app, self.builder.env
    minutes, home = _minutes(env), self.builder.current_docname
    rows = []
    for caption, pages in _parts(app):
        total = sum(minutes[page] for page in pages)
        rows.append(f"<li><p>{escape(caption)} <span>{total} minutes</span></p><ul>")
        for page in pages:
            uri, title = self.builder.get_relative_uri(home, page), env.titles[page].astext()
            rows.append(
                f'<li><a href="{uri}">{escape(title)}</a> '
                f"<span>{minutes[page]} min</span>{_tick(page)}</li>"
            )
        rows.append("</ul></li>")
    self.body.append(
        '<div class="mha-contents"><p class="mha-count"></p><ul>' + "".join(rows) + "</ul></div>"
    )
    raise nodes.SkipNode


def visit_progress(self, node: progress) -> None:
    self.body.append(f'<div class="mha-progress" data-page="{escape(node["page"])}"></div>')
    raise nodes.SkipNode


def add_minutes(app, pagename: str, _template, context: dict, _doctree) -> None:
    """Add minutes and the place for a tick to the contents at the side."""
    made = context.get("generate_toctree_html")
    if made is None:
        return
    uris = {app.builder.get_relative_uri(pagename, page): page for page in _minutes(app.env)}

    def with_minutes(*args, **kwargs):
        soup = made(*args, **kwargs)
        for link in soup.find_all("a", href=True) if hasattr(soup, "find_all") else ():
            page = pagename if link["href"] == "#" else uris.get(link["href"])
            if page in _minutes(app.env) and not link.find(class_="mha-minutes"):
                mark = (
                    f'<span class="mha-minutes">{_minutes(app.env)[page]} min{_tick(page)}</span>'
                )
                link.append(" ")
                link.append(_fragment(mark))
        return soup

    context["generate_toctree_html"] = with_minutes


def _fragment(markup: str):
    return BeautifulSoup(markup, "html.parser")


def setup(app) -> dict:
    app.add_node(progress, html=(visit_progress, None))
    app.add_node(contents, html=(visit_contents, None))
    app.connect("doctree-read", read, priority=900)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("env-before-read-docs", remember)
    app.connect("env-updated", rewrite)
    app.connect("doctree-resolved", resolve)
    app.connect("html-page-context", add_minutes, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
