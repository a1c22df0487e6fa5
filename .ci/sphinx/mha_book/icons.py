"""Icons as small pictures in the page, in place of the theme's script that holds all of them.

The theme marks an icon as ``<i class="fa-solid fa-sun">`` and loads 1.5 MB of script to draw it. Here
each mark becomes the picture of that name from npm's Font Awesome, and the script stays away.
"""

import re
import shutil
from functools import cache
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[3]
PICTURES = ROOT / "node_modules/@fortawesome/fontawesome-free/svgs/solid"
MARK = re.compile(r'<(i|span) class="([^"]*\bfa[sb]?(?:-solid)? [^"]*)"([^>]*)></\1>')
SCRIPT = re.compile(r'<script[^>]*"[^"]*scripts/fontawesome\.js[^>]*></script>')
PRELOAD = re.compile(r"<link[^>]*(?:webfonts/fa-|scripts/fontawesome\.js)[^>]*/?>")
LEFT_OUT = ["scripts/fontawesome.js", "scripts/fontawesome.js.LICENSE.txt", "vendor/fontawesome"]


@cache
def picture(name: str) -> tuple[str, str]:
    """The view box and the path of an icon; an error of reading for an unknown name."""
    svg = (PICTURES / f"{name}.svg").read_text(encoding="utf8")
    return re.search(r'viewBox="([^"]*)"', svg)[1], re.search(r'<path[^>]* d="([^"]*)"', svg)[1]


def drawn(mark: re.Match) -> str:
    """The mark of an icon as a picture that screen readers pass over."""
    classes, rest = " ".join(mark[2].split()), mark[3]
    name = next(
        c for c in classes.split() if c.startswith("fa-") and c not in ("fa-solid", "fa-lg")
    )
    box, path = picture(name.removeprefix("fa-"))
    return (
        f'<svg class="svg-inline--fa {classes}"{rest} viewBox="{box}" aria-hidden="true" '
        f'focusable="false"><path fill="currentColor" d="{path}"/></svg>'
    )


def draw_all(app: Sphinx, error: Exception | None) -> None:
    """In every page: pictures for marks, and no script; then the files that nobody asks for go."""
    if error is not None or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    for page in Path(app.outdir).rglob("*.html"):
        if page.is_relative_to(static):
            continue  # templates of the theme, which no reader opens
        text = page.read_text(encoding="utf8")
        new = PRELOAD.sub("", SCRIPT.sub("", MARK.sub(drawn, text)))
        if new != text:
            page.write_text(new, encoding="utf8")
    for name in LEFT_OUT:
        path = static / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for source_map in static.rglob("*.map"):
        source_map.unlink()


def setup(app: Sphinx) -> None:
    app.connect("build-finished", draw_all)
