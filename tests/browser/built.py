"""Where the built pages are, and what every test does with one."""

import gzip
import os
from functools import cache
from pathlib import Path

from book.bookfiles import HTML, ROOT

BUILT = Path(os.environ.get("MHA_BOOK_HTML", HTML))  # another folder, to try tests on other pages
DOOR = "index.html"  # it only sends the reader on
FILES = sorted(path.relative_to(BUILT).as_posix() for path in BUILT.rglob("*.html"))
PAGES = [name for name in FILES if not name.startswith("_static/") and name != DOOR]
CODE = ["_modules/index.html", "_modules/mha/masks.html"]
"""Two pages of source code, which speak for the others: all are made by one template."""
EACH_KIND = [name for name in PAGES if name in CODE or not name.startswith("_modules/")]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 812}
COLORS = ["color-contrast", "link-in-text-block"]  # the rules of axe that see the theme

UNFOLD = """() => {
  for (const details of document.querySelectorAll("details"))
    Object.assign(details, { hidden: false, open: true });
  return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""
AXE = """async (rules) => {
  const only = rules ? { runOnly: { type: "rule", values: rules } } : {};
  const { violations } = await axe.run(document, { resultTypes: ["violations"], ...only });
  return violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html}`));
}"""


@cache
def axe() -> str:
    """The script of axe-core, from npm."""
    return (ROOT / "node_modules/axe-core/axe.min.js").read_text(encoding="utf8")


def unfold(tab):
    """Open all that is folded, as a reader could."""
    tab.evaluate(UNFOLD)


def dress(tab, theme: str):
    """Put on a theme, as the switch in the header does."""
    tab.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)


def findings(tab, rules: list[str] | None = None) -> list[str]:
    """What axe finds on the page as it now is, as `rule: element`, at most twenty."""
    if not tab.evaluate("'axe' in window"):
        tab.evaluate(axe())
    return tab.evaluate(AXE, rules)[:20]


def in_both_themes(tab) -> dict[str, list[str]]:
    """Theme -> what axe finds; the dark theme changes colors only."""
    found = {}
    for theme, rules in (("light", None), ("dark", COLORS)):
        dress(tab, theme)
        found[theme] = findings(tab, rules)
    return found


def weight(names: set[str]) -> int:
    """Bytes that travel for those of these files that exist, text compressed by gzip."""
    return sum(_compressed(name) for name in names if (BUILT / name).is_file())


@cache
def _compressed(name: str) -> int:
    content = (BUILT / name).read_bytes()
    packed = name.endswith((".woff", ".woff2", ".png", ".jpg", ".webp"))
    return len(content) if packed else len(gzip.compress(content, 6))
