"""Make an EPUB of the built pages; `make epub` runs this after `make book`.

Every page of `_toc.yml` is in it, in that order, with the outputs that the pages show. Nothing is
executed, and nothing asks another host. The same pages at the same commit give the same bytes.
"""

import io
import os
import re
import subprocess
import sys
import uuid
import zipfile
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import numpy as np
import yaml
from epub_page import HAN, Page, convert
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sources import contents

from mha import reference

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "_build/html"
TARGET = ROOT / "_build/epub/multi-head-attention.epub"
KINDS = {"appendix-glossary": "glossary", "bibliography": "bibliography"}
MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml", ".gif": "image/gif"}
HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'
CONTAINER = f"""{HEAD}<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles>
<rootfile full-path="EPUB/package.opf" media-type="application/oebps-package+xml"/>
</rootfiles>
</container>
"""
FRAME = f"""{HEAD}<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops" lang="en" xml:lang="en">
<head><title>{{title}}</title><link rel="stylesheet" type="text/css" href="epub.css"/></head>
<body>
{{body}}
</body>
</html>
"""
COVER = "A book cover: its title, and below it four causal heads as triangles of weights."
COVER_COLORS = ("#5b93ee", "#f0883e", "#3fb46c", "#a98bf0")
ACCESS = {
    "accessMode": ["textual", "visual"],
    "accessModeSufficient": ["textual,visual"],
    "accessibilityFeature": [
        *("alternativeText", "displayTransformability", "MathML", "readingOrder"),
        *("structuralNavigation", "tableOfContents"),
    ],
    "accessibilityHazard": ["none"],
    "accessibilitySummary": [
        "Pictures have short descriptions and captions, and formulas are MathML. A description "
        "does not give every number of its picture. No conformance to a standard was evaluated."
    ],
}


def names() -> list[str]:
    """All pages, in order."""
    first, parts = contents()
    return [first] + [page for _, pages in parts for page in pages]


def kind(name: str) -> str:
    """What a page is, in the words of EPUB."""
    stem = name.rsplit("/", 1)[-1]
    if name == contents()[0]:
        return "introduction"
    numbered = re.match(r"\d", stem)
    return KINDS.get(stem, "chapter" if numbered else "appendix")


def when() -> datetime:
    """The date of the book: SOURCE_DATE_EPOCH, else that of the commit, else of the newest page."""
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        return datetime.fromtimestamp(int(epoch), UTC)
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return datetime.fromtimestamp(int(said), UTC)
    except (OSError, ValueError, subprocess.CalledProcessError):
        newest = max(path.stat().st_mtime for path in (ROOT / "chapters").iterdir())
        return datetime.fromtimestamp(int(newest), UTC)


def chinese(text: str) -> str:
    """Text of a heading as XHTML, in which what is Chinese says so."""
    return HAN.sub(r'<span lang="zh" xml:lang="zh">\g<0></span>', escape(text))


def navigation(pages: dict[str, Page]) -> str:
    """The table of contents, and the landmarks."""
    first, parts = contents()

    def item(name: str) -> str:
        return f'<li><a href="{name}.xhtml">{chinese(pages[name].title)}</a></li>'

    rows = [item(first)]
    for caption, members in parts:
        inner = "\n".join(map(item, members))
        rows.append(f"<li><span>{chinese(caption)}</span>\n<ol>\n{inner}\n</ol></li>")
    marks = [("toc", "nav", "Contents"), ("bodymatter", first, "Beginning")]
    marks += [(KINDS[stem], n, pages[n].title) for stem in KINDS for n in pages if n.endswith(stem)]
    landmarks = "\n".join(
        f'<li><a epub:type="{mark}" href="{name}.xhtml">{chinese(title)}</a></li>'
        for mark, name, title in marks
    )
    body = '<nav epub:type="toc" role="doc-toc" id="toc">\n<h1>Contents</h1>\n<ol>\n'
    body += "\n".join(rows) + '\n</ol>\n</nav>\n<nav epub:type="landmarks" hidden="hidden">\n'
    body += f"<h2>Landmarks</h2>\n<ol>\n{landmarks}\n</ol>\n</nav>"
    return FRAME.format(title="Contents", body=body)


def metadata() -> str:
    """What the package says of the book; the identifier follows from the title."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf8"))
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))
    title, date = config["title"], when()
    tags = [
        f'<dc:identifier id="id">{uuid.uuid5(uuid.UUID(int=0), title).urn}</dc:identifier>',
        f"<dc:title>{escape(title)}</dc:title>",
        f"<dc:creator>{escape(config['author'])}</dc:creator>",
        "<dc:language>en</dc:language>",
        f"<dc:date>{date:%Y-%m-%d}</dc:date>",
        f"<dc:description>{escape(about['abstract'].strip())}</dc:description>",
        *(f"<dc:subject>{escape(word)}</dc:subject>" for word in about["keywords"]),
        f"<dc:rights>{escape(about['license'])} license</dc:rights>",
        f'<meta property="dcterms:modified">{date:%Y-%m-%dT%H:%M:%SZ}</meta>',
        *(
            f'<meta property="schema:{name}">{escape(value)}</meta>'
            for name, values in ACCESS.items()
            for value in values
        ),
    ]
    return "\n".join(tags)


def package(pages: dict[str, Page], files: list[str]) -> str:
    """The list of all that is in the EPUB, and the order of reading."""
    items = [
        '<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>',
        '<item id="cover" href="cover.xhtml" media-type="application/xhtml+xml"/>',
        '<item id="cover-image" href="cover.png" media-type="image/png" properties="cover-image"/>',
        '<item id="css" href="epub.css" media-type="text/css"/>',
    ]
    spine = ['<itemref idref="cover"/>', '<itemref idref="nav"/>']
    for number, page in enumerate(pages.values()):
        special = f' properties="{page.properties}"' if page.properties else ""
        items.append(
            f'<item id="page-{number}" href="{page.name}.xhtml" '
            f'media-type="application/xhtml+xml"{special}/>'
        )
        spine.append(f'<itemref idref="page-{number}"/>')
    for number, name in enumerate(files):
        media = MEDIA[Path(name).suffix]
        items.append(f'<item id="file-{number}" href="{escape(name)}" media-type="{media}"/>')
    return (
        f'{HEAD}<package xmlns="http://www.idpf.org/2007/opf" version="3.0" '
        'unique-identifier="id" xml:lang="en">\n'
        f'<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">\n{metadata()}\n</metadata>\n'
        "<manifest>\n" + "\n".join(items) + "\n</manifest>\n"
        "<spine>\n" + "\n".join(spine) + "\n</spine>\n</package>\n"
    )


def cover() -> bytes:
    """A picture of the title, and of four heads whose weights the package computes for it."""
    rng, tokens, width = np.random.default_rng(7), 10, 4
    query, key = rng.normal(size=(2, 1, 4, tokens, width)) * 1.4  # (B, H, T, D)
    seen = {"is_causal": True, "return_weights": True}
    weights = reference.attention(query, key, key, **seen)[1][0]  # (H, T, S)
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf8"))
    title, _, rest = config["title"].partition(", ")
    figure = Figure(figsize=(6, 9), dpi=200, facecolor="#14181e")
    figure.text(0.09, 0.87, title, color="white", size=31, weight="bold")
    figure.text(0.09, 0.82, rest, color="#ced6dd", size=16)
    figure.text(0.09, 0.06, config["author"], color="#ced6dd", size=14)
    for head, (color, seen) in enumerate(zip(COVER_COLORS, weights, strict=True)):
        left, low = 0.09 + 0.42 * (head % 2), 0.45 - 0.29 * (head // 2)
        axes = figure.add_axes((left, low, 0.4, 0.4 * 6 / 9))
        cells = np.empty((tokens, tokens, 4))
        cells[..., :3] = to_rgb(color)
        cells[..., 3] = np.where(np.tri(tokens) > 0, 0.12 + 0.88 * seen**0.7, 0)
        axes.imshow(cells)
        axes.set_axis_off()
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def write(target: Path, built: Path = BUILT) -> None:
    """Write the EPUB of the pages in ``built``."""
    order = names()
    pages = {name: convert(built, name, set(order), kind(name)) for name in order}
    files = sorted(set().union(*(page.files for page in pages.values())))
    body = (
        f'<section epub:type="cover"><img class="cover" src="cover.png" alt="{COVER}"/></section>'
    )
    inside = {
        "META-INF/container.xml": CONTAINER,
        "EPUB/package.opf": package(pages, files),
        "EPUB/nav.xhtml": navigation(pages),
        "EPUB/cover.xhtml": FRAME.format(title="Cover", body=body),
        "EPUB/cover.png": cover(),
        "EPUB/epub.css": Path(__file__).with_suffix(".css").read_bytes(),
        **{f"EPUB/{page.name}.xhtml": page.text for page in pages.values()},
        **{f"EPUB/{name}": (built / name).read_bytes() for name in files},
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as book:
        stamp = when().timetuple()[:6]
        book.writestr(zipfile.ZipInfo("mimetype", stamp), "application/epub+zip")
        for name, content in inside.items():
            info = zipfile.ZipInfo(name, stamp)
            info.external_attr = 0o644 << 16
            book.writestr(info, content, zipfile.ZIP_DEFLATED)


def main() -> int:
    write(TARGET)
    print(f"The EPUB is at {TARGET.as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
