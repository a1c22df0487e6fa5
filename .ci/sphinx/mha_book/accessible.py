"""What the theme leaves undone for readers who listen, mended in the finished pages.

- A name in ``aria-label`` that is not what the control shows gives way to what it shows: who says
  "click Show code cell source" would not be understood otherwise.
- The bar at the side becomes a landmark, and the dialogs that the theme opens get names.
- A signature on several lines is no list of definitions, which would need terms.
- An empty head of a table, in the corner above the row heads, is no head.
- Chinese text says that it is Chinese, so that it is read by a Chinese voice.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

# Where -> what is put there; tests/browser/test_accessible.py fails when a pattern stops matching.
MENDS = {
    re.compile(r'(<summary) aria-label="Toggle hidden content"'): r"\1",
    re.compile(r'(<button class="btn search-button-field [^>]*?) aria-label="Search"'): r"\1",
    re.compile(r'(<div id="pst-primary-sidebar")'): r'\1 role="complementary" aria-label="Book"',
    re.compile(r'(<dialog id="pst-primary-sidebar-modal")'): r'\1 aria-label="Book"',
    re.compile(r'(<dialog id="pst-secondary-sidebar-modal")'): r'\1 aria-label="On this page"',
    re.compile(r'(<dialog id="pst-search-dialog")'): r'\1 aria-label="Search"',
    re.compile(r"<th[^>]*>\s*(?:<p>\s*</p>)?\s*</th>"): "<td></td>",
}
SIGNATURE = re.compile(r'<dt class="sig .*?</dt>', re.S)
LINES = {
    "<dl>": '<span class="sig-lines">',
    "</dl>": "</span>",
    "<dd>": "<span>",
    "</dd>": "</span>",
}
# Tags, and whole elements that hold no prose.
MARKUP = re.compile(r"(<(script|style|title|svg)\b.*?</\2>|<!--.*?-->|<[^>]*>)", re.S)
HAN = r"\u3400-\u9fff\uf900-\ufaff"
CHINESE = re.compile(rf"[{HAN}](?:[{HAN}\u3000-\u303f\uff00-\uffef、，。\s]*[{HAN}])?")


def mended(page: str) -> str:
    """The HTML of one page, mended."""
    for pattern, replacement in MENDS.items():
        page = pattern.sub(replacement, page)
    page = SIGNATURE.sub(
        lambda found: re.sub("</?d[ld]>", lambda tag: LINES[tag[0]], found[0]), page
    )
    parts, end, marked = [], 0, False
    for markup in MARKUP.finditer(page):
        text = page[end : markup.start()]
        parts += [text if marked else spoken(text), markup[0]]
        end, marked = markup.end(), 'lang="zh"' in markup[0]
    return "".join(parts) + spoken(page[end:])


def spoken(text: str) -> str:
    """The text between two tags, with its Chinese parts marked."""
    return CHINESE.sub(r'<span lang="zh">\g<0></span>', text)


def mend_all(app: Sphinx, error: Exception | None) -> None:
    """Mend every page of the book; templates of the theme, which no reader opens, stay."""
    if error is not None or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    for path in Path(app.outdir).rglob("*.html"):
        if not path.is_relative_to(static):
            page = path.read_text(encoding="utf8")
            path.write_text(mended(page), encoding="utf8")


def setup(app: Sphinx) -> None:
    app.connect("build-finished", mend_all)
