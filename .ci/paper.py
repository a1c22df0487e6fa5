"""Make a built page of the book ready for paper: what .ci/pdf.py does to each of them.

- Each id gets the name of its page in front, and each link between pages becomes one inside.
- What is folded is unfolded, and the answers of a quiz come after its last question.
- Scripts go, so that a live figure is the still picture it holds.
- A figure is one picture with a description to who listens, and so is a formula. The structure of
  a PDF lacks what is hidden from screen readers, and what a style sheet writes: here it is neither.
"""

import re
from pathlib import Path
from urllib.parse import urlsplit

from bs4 import BeautifulSoup, Tag

FOR_SCREENS = "script, a.headerlink, .mha-cards, .mha-progress, .mha-contents, .mha-tick"
FOR_SCREENS += ", .toctree-wrapper"  # empty, since the contents stand at the side
FOR_SCREENS += ", a:has(> .viewcode-link)"  # the sources of the package are not printed
REFERRING = ("aria-describedby", "aria-labelledby", "aria-controls", "for")
SHOW_CODE = "Show code cell"  # so begins the name of a fold that only hides code
RULE = re.compile(r'(?m)^(mjx-c(?:\.[\w-]+)+)::before \{([^}]*?)content: "((?:\\.|[^"\\])*)";')
PLAIN = re.compile(r'"light"\] \.highlight \.(\w+) \{ color: (#\w+) \}')
BASE = re.compile(r'"light"\] \.highlight \{[^}]*[; ]color: (#\w+)')
WIDE = frozenset("=+−-⋅×≤≥≈→∈<>≠:")  # operators with a space on both sides
BETWEEN = {"msub": "_", "munder": "_", "msup": "^", "mover": "^", "mfrac": "/"}


class Page:
    """One page of the book, as the HTML of an article."""

    def __init__(self, path: Path):
        whole = BeautifulSoup(path.read_text(encoding="utf8"), "lxml")
        self.name, self.folder = path.stem, path.parent
        self.styles = [link["href"] for link in whole.head.find_all("link", rel="stylesheet")]
        self.article: Tag = whole.find("article", class_="bd-article")
        for unwanted in self.article.select(FOR_SCREENS):
            unwanted.decompose()
        self.title = self.article.h1.get_text().strip()

    def html(self) -> str:
        """The article."""
        return f'<article class="bd-article" id="{self.name}">{self.article.decode_contents()}</article>'

    def collect_answers(self) -> None:
        """Move the answers of the quiz below its last question, named after its question."""
        answers = self.article.select("details.quiz")
        for place, answer in enumerate(answers, start=1):
            answer.summary.string = f"Answers to question {place}"
            if answer is not answers[-1]:
                answers[-1].insert_before(answer)

    def unfold(self) -> None:
        """Show what is folded, under the name of its fold."""
        for fold in self.article.find_all("details"):
            summary = fold.find("summary", recursive=False)
            name = (summary.find(class_="collapsed") or summary).get_text().strip()
            if name.startswith(SHOW_CODE):
                summary.decompose()
            else:
                summary.name, summary.string, summary["class"] = "p", name, "unfolded-name"
            fold.name, fold["class"] = "div", "unfolded"

    def drop_repeated(self, seen: set[str]) -> None:
        """Drop the hidden cells that print nothing and stood on a page before; keep ``seen``."""
        for cell in self.article.select(".cell.tag_hide-input"):
            if not cell.select_one(".cell_output"):
                text = cell.get_text()
                if text in seen:
                    cell.decompose()
                seen.add(text)

    def simplify_code(self, plain: set[str]) -> None:
        """Take the marks off code that have no color of their own: a third of all elements."""
        for span in self.article.select(".highlight pre span"):
            if not span.get("class") or span["class"][0] in plain:
                span.unwrap()

    def describe_pictures(self, glyphs: dict[frozenset[str], str]) -> None:
        """Let figures and formulas be pictures with a description, and not hidden."""
        for hidden in self.article.select('[role="img"] [aria-hidden="true"]'):
            del hidden["aria-hidden"]
        for formula in self.article.find_all("mjx-container"):
            math = formula.find("mjx-assistive-mml").extract().math
            formula["role"], formula["aria-label"] = "img", " ".join(spoken(math).split())
            del formula.find("mjx-math")["aria-hidden"]
            for glyph in formula.find_all("mjx-c"):
                if character := glyphs.get(frozenset(glyph.get("class", []))):
                    glyph.append(Tag(name="mjx-g"))
                    glyph.contents[-1].string = character

    def rename(self) -> None:
        """Make ids unique in the whole book, and let links and references follow them."""
        for element in self.article.find_all(True):
            for key, value in list(element.attrs.items()):
                if key == "id":
                    element[key] = self._inside(value)
                elif key in REFERRING:
                    element[key] = " ".join(map(self._inside, value.split()))
                elif key in ("href", "xlink:href"):
                    element[key] = self._link(value)
                elif key == "src" and not value.startswith("data:"):
                    element[key] = (self.folder / value).resolve().as_uri()
                elif "url(#" in value:
                    element[key] = value.replace("url(#", f"url(#{self.name}--")

    def _inside(self, name: str) -> str:
        return f"{self.name}--{name}"

    def _link(self, target: str) -> str:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            return target
        page = Path(parts.path).name.removesuffix(".html") if parts.path else self.name
        return f"#{page}--{parts.fragment}" if parts.fragment else f"#{page}"


def spoken(node: Tag) -> str:
    """A formula in MathML as a line of text, such as "softmax((QK^⊤)/(√(d_k)))V"."""
    parts = [spoken(child) for child in node.find_all(True, recursive=False)]
    if not parts:
        text = node.get_text().replace(
            "\u2061", ""
        )  # what stands between a function and its argument
        return f" {text} " if text in WIDE and node.name == "mo" else text
    if node.name in BETWEEN:
        return BETWEEN[node.name].join(map(_one, parts))
    if node.name in ("msubsup", "munderover"):
        return f"{_one(parts[0])}_{_one(parts[1])}^{_one(parts[2])}"
    if node.name == "msqrt":
        return f"√({''.join(parts)})"
    return {"mtable": "; ", "mtr": ", "}.get(node.name, "").join(parts)


def _one(part: str) -> str:
    """A part of a formula that stays together."""
    return part if len(part) == 1 or part.isalnum() else f"({part.strip()})"


def glyphs_and_style(css: str) -> tuple[dict[frozenset[str], str], str]:
    """The characters that MathJax's style sheet writes, by class, and the style sheet without them.

    In ``mjx-c.mjx-c28::before { content: "(" }`` the character becomes the text of an element
    ``mjx-g`` instead, so that the PDF knows to which formula it belongs.
    """
    glyphs = {}

    def taken(rule: re.Match) -> str:
        glyphs[frozenset(rule[1].split(".")[1:])] = unescaped(rule[3])
        return f"{rule[1]}>mjx-g {{{rule[2]}"

    css = RULE.sub(taken, css)
    return glyphs, re.sub(r"(?m)^mjx-c::before \{", "mjx-c::before, mjx-c>mjx-g {", css)


def unescaped(text: str) -> str:
    """The text that a string of CSS stands for."""
    return re.sub(
        r"\\(?:([0-9A-Fa-f]{1,6})\s?|(.))", lambda m: chr(int(m[1], 16)) if m[1] else m[2], text
    )


def plain_marks(pygments: str) -> set[str]:
    """The classes of code that pygments.css gives the color of all code, on a light page."""
    base = BASE.search(pygments)[1]
    return {name for name, color in PLAIN.findall(pygments) if color == base}
