"""Print the built book as one PDF, _build/pdf/multi-head-attention.pdf; `make pdf` runs this.

Nothing is executed or typeset again: .ci/paper.py makes each page of _build/html ready, here they
are put one after another, and a browser prints that. It prints twice: the first time tells on
which page each chapter begins, which the contents of the second time say. What paper looks like
stands in .ci/pdf.css. When the pages are those of the last time, there is nothing to do.
"""

import hashlib
import html
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import browser
import paper
import pikepdf
import sources
import yaml
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
HTML = Path(os.environ.get("MHA_BOOK_HTML", ROOT / "_build" / "html")).resolve()  # as in tests
FOLDER = HTML.parent / "pdf"
PDF = FOLDER / "multi-head-attention.pdf"
STYLE = Path(__file__).with_suffix(".css")
ABOUT = "About this book"  # heads the first page, whose own title is on the cover
MATHJAX = "mathjax/mathjax.css"
NO_CHINESE = (
    "No Chinese font is here, so the Chinese words are boxes: apt-get install fonts-noto-cjk"
)
DRAWN = """() => ["中", "文"].map((character) => {
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  pen.font = "40px sans-serif";
  pen.fillText(character, 10, 50);
  return canvas.toDataURL();
})"""


def settings() -> tuple[dict, list[tuple[str, list[str]]]]:
    """What _config.yml says, and each part of _toc.yml: its caption and its pages."""
    root = HTML.parents[1]
    first, parts = sources.contents(root)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf8"))
    return config, [("", [first]), *parts]


def made_ready(names: list[str], glyphs: dict[frozenset[str], str]) -> list[paper.Page]:
    """The pages for paper, in the order of the book."""
    plain = paper.plain_marks((HTML / "_static/pygments.css").read_text(encoding="utf8"))
    seen: set[str] = set()
    pages = []
    for name in names:
        page = paper.Page(HTML / f"{name}.html")
        page.collect_answers()
        page.unfold()
        page.drop_repeated(seen)
        page.simplify_code(plain)
        page.describe_pictures(glyphs)
        page.rename()
        pages.append(page)
    return pages


def cover(config: dict, title: str) -> str:
    """The title page."""
    title, _, subtitle = title.partition(", ")
    return (
        f'<header class="cover" id="cover"><h1>{html.escape(title)}, '
        f"<small>{html.escape(subtitle)}</small></h1>"
        f"<p>{html.escape(config['author'])}, {config['copyright']}</p></header>\n"
    )


def contents(
    parts: list[tuple[str, list[str]]], pages: list[paper.Page], at: dict[str, int]
) -> str:
    """The table of contents; ``at``: on which page of paper each page of the book begins."""
    titles = {page.name: page.title for page in pages}
    rows = ['<nav class="book-contents" id="contents"><h1>Contents</h1>']
    for caption, names in parts:
        rows.append(f"<p>{html.escape(caption)}</p><ul>" if caption else "<ul>")
        for name in (name.rpartition("/")[2] for name in names):
            rows.append(
                f'<li><a href="#{name}"><span>{html.escape(titles[name])}</span>'
                f"<span>{at.get(name, '')}</span></a></li>"
            )
        rows.append("</ul>")
    return "\n".join(rows) + "</nav>\n"


def heads(pages: list[paper.Page]) -> str:
    """The rules that print the title of each page of the book at the head of its pages of paper."""
    rules = []
    for page in pages:
        title = page.title.replace("\\", r"\\").replace('"', r"\"")
        rules.append(f'article[id="{page.name}"] {{ page: p{page.name} }}')
        rules.append(f'@page p{page.name} {{ @top-right {{ content: "{title}" }} }}')
    return "\n".join(rules)


def check_links(document: str) -> None:
    """Errors: ValueError, naming them, for ids that are there twice and links that lead nowhere."""
    ids = Counter(re.findall(r'<[a-zA-Z][^>]*?\sid="([^"]*)"', document))
    twice = [name for name, count in ids.items() if count > 1]
    lost = sorted(set(re.findall(r'<a [^>]*?href="#([^"]*)"', document)) - set(ids))
    if twice or lost:
        raise ValueError(f"ids that are there twice: {twice}; links that lead nowhere: {lost}")


class Book:
    """The whole book as one page of HTML."""

    def __init__(self):
        self.config, self.parts = settings()
        css = (HTML / "_static" / MATHJAX).read_text(encoding="utf8")
        glyphs, self.mathjax = paper.glyphs_and_style(css)
        self.pages = made_ready([name for _, names in self.parts for name in names], glyphs)
        self.title, self.pages[0].title = self.pages[0].title, ABOUT
        self.pages[0].article.h1.string = ABOUT
        found = [h for page in self.pages for h in page.article.find_all(re.compile("^h[1-6]$"))]
        self.headings = [self.title, *(heading.get_text() for heading in found)]
        self.body = "\n".join(page.html() for page in self.pages)

    def html(self, at: dict[str, int]) -> str:
        """The document; ``at``: where each page of the book begins, {} before it was printed."""
        sheets = dict.fromkeys(sheet for page in self.pages for sheet in page.styles)
        links = "".join(
            f'<link rel="stylesheet" href="{HTML.as_uri()}/chapters/{sheet}">'
            for sheet in sheets
            if MATHJAX not in sheet
        )
        fonts = f'url("{HTML.as_uri()}/_static/mathjax/fonts'
        mathjax = self.mathjax.replace('url("fonts', fonts)
        style = f"{mathjax}\n{STYLE.read_text(encoding='utf8')}\n{heads(self.pages)}"
        front = cover(self.config, self.title) + contents(self.parts, self.pages, at)
        return (
            '<!DOCTYPE html>\n<html lang="en" data-theme="light"><head><meta charset="utf-8">'
            f"<title>{html.escape(self.title)}</title>{links}<style>{style}</style></head>"
            f'<body class="bd-content">{front}{self.body}</body></html>'
        )


def printed(chromium, document: str, pdf: Path, final: bool) -> None:
    """Print a document; only the final print has structure and outline."""
    source = pdf.with_suffix(".html")
    source.write_text(document, encoding="utf8")
    tab = chromium.new_page()
    tab.goto(source.as_uri(), timeout=0)
    tab.evaluate("() => document.fonts.ready.then(() => true)")
    tab.pdf(path=pdf, prefer_css_page_size=True, print_background=True, tagged=final, outline=final)
    tab.close()


def beginnings(pdf: Path) -> dict[str, int]:
    """The number of the page, from 1, on which each destination of a PDF lies."""
    with pikepdf.open(pdf) as opened:
        numbers = {page.objgen: number for number, page in enumerate(opened.pages, start=1)}
        places = opened.Root.Dests.items()
        return {name.removeprefix("/"): numbers[place[0].objgen] for name, place in places}


def entries(outline: pikepdf.Object) -> Iterator[pikepdf.Object]:
    """The entries of an outline, with those below each."""
    entry = outline.get("/First")
    while entry is not None:
        yield entry
        yield from entries(entry)
        entry = entry.get("/Next")


def finished(printed: Path, book: Book) -> None:
    """Write the PDF: half as large as the browser's, since its structure is compressed too.

    The browser joins two words of a bookmark where the heading breaks its line: they are parted.
    """
    whole = {"".join(text.split()): " ".join(text.split()) for text in book.headings}
    with pikepdf.open(printed) as pdf:
        for entry in entries(pdf.Root.Outlines):
            joined = "".join(str(entry.Title).split())
            entry.Title = whole.get(joined, str(entry.Title))
        pdf.docinfo["/Author"] = book.config["author"]
        pdf.Root.ViewerPreferences = pikepdf.Dictionary(DisplayDocTitle=True)
        pdf.save(PDF, object_stream_mode=pikepdf.ObjectStreamMode.generate)


def has_chinese(chromium) -> bool:
    """Whether two Chinese characters look different: without a font both are the same box."""
    tab = chromium.new_page()
    first, second = tab.evaluate(DRAWN)
    tab.close()
    return first != second


def digest() -> str:
    """Hash of all that the PDF is made from."""
    made_of = [HTML.parents[1] / name for name in ("_config.yml", "_toc.yml")]
    made_of += [ROOT / ".ci" / name for name in ("pdf.py", "paper.py", "pdf.css")]
    pages = [*HTML.glob("chapters/*.html"), *HTML.glob("_static/**/*.css")]
    total = hashlib.sha256()
    for path in [*made_of, *sorted(pages)]:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def make(executable: str) -> None:
    """Print twice, with the contents filled in between, and finish what came out."""
    book = Book()
    check_links(book.html({}))
    with sync_playwright() as playwright, TemporaryDirectory() as folder:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        if not has_chinese(chromium):
            print(NO_CHINESE, file=sys.stderr)
        first, second = Path(folder, "first.pdf"), Path(folder, "second.pdf")
        printed(chromium, book.html({}), first, final=False)
        printed(chromium, book.html(beginnings(first)), second, final=True)
        chromium.close()
        finished(second, book)


def main() -> int:
    executable = browser.find()
    if executable is None:
        print(f"make pdf {browser.ADVICE}", file=sys.stderr)
        return 1
    if not (HTML / "chapters").exists():
        print(f"There are no pages in {HTML}: run make book", file=sys.stderr)
        return 1
    began, now, stamp = time.time(), digest(), FOLDER / "good.sha256"
    if not (PDF.exists() and stamp.exists() and stamp.read_text() == now):
        FOLDER.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        make(executable)
        stamp.write_text(now)
        print(f"Printed in {time.time() - began:.0f} s: {PDF.stat().st_size / 1e6:.1f} MB")
    print(f"The PDF is at {PDF.as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
