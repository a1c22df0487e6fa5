"""What a check found: as text for a terminal, and as HTML for a notebook."""

import re
import textwrap
import unicodedata
from collections import Counter
from dataclasses import dataclass
from html import escape

from mha.viz.theme import COLORS

WIDTH = 100  # columns of the text
NAME_WIDTH = 50  # columns at most for the name of a check
LONG = 400  # characters of a name; what is longer is cut

LABELS = {
    "unwritten": "Your turn",
    "question": "Question",
    "exception": "Error",
    "timeout": "Stopped",
    "memory": "Stopped",
    "exit": "Stopped",
}
RESULTS = {True: ("✓", "passed"), False: ("✗", "failed"), None: ("–", "not tried")}

_SPELLED = """
All maps in one product
A number for "never"
Heads, one after another
Joining the heads, and the map W_O
Minus infinity and NaN
One row, one key at a time
Padding, in one line
Self-attention and cross-attention
Shared keys and values: a smaller cache
Step 3: split the features into heads
Step 4: score, then softmax
Step 6: join the heads
The range: a product that overflows
The probe: change the future
The probe for padding: add more of it
Three questions: query, key, value
Keeping them, by hand
Through the projections and W_O
Two backends, four number formats
Weights: each query shares out one whole
When T is not S
On a GPU
Other libraries, other words
Does True in a mask mean blocked or allowed?
Which keys does a causal query see when T and S differ?
Why do I get NaN after masking?
Why do the rows of my weights not sum to 1?
Why does it work in float32 and fail in float16?
Why does one example change another's output?
Why not simply add the heads?
""".strip()
HEADINGS = {
    re.sub(r"[^a-z0-9]+", "-", line.lower()).strip("-"): line for line in _SPELLED.split("\n")
}
"""Anchor -> heading, where a capital letter at the start of the anchor's words is not enough."""


@dataclass(frozen=True)
class Finding:
    """One mistake or note: what it is, what showed it, and where the book explains it.

    Args:
        slug: its name in the catalogue.
        severity: "mistake" or "note".
        title: what the code does, in one line.
        evidence: what showed it, with numbers; a line that starts with two spaces, and the line
            before it, are set in type of one width.
        explanation: what happens and why it is wrong.
        chapter: "chapters/05-4-masks#how-a-mask-enters", or "".
        hint: one step towards the repair, or "".

    Examples:
        >>> import mha
        >>> report = mha.check.softmax(lambda x, dim=-1: x.exp())
        >>> found = report.findings[0]
        >>> found.slug, found.severity, found.label
        ('softmax-no-normalise', 'mistake', 'Mistake')
        >>> print(found.title)
        The exponentials are not divided by their sum
    """

    slug: str
    severity: str
    title: str
    evidence: str = ""
    explanation: str = ""
    chapter: str = ""
    hint: str = ""

    @property
    def label(self) -> str:
        """The kind of finding in a word."""
        return "Note" if self.severity == "note" else LABELS.get(self.slug, "Mistake")


@dataclass(frozen=True)
class Check:
    """One line of the table; ``passed`` is None where it could not be tried.

    Args:
        name: what was tried.
        passed: whether the code passed, or None.
        detail: what was seen, or "".
        slugs: names of the findings that it led to.

    Examples:
        >>> import mha
        >>> report = mha.check.softmax(lambda x, dim=-1: x.exp())
        >>> [(check.name, check.passed) for check in report.checks]
        [('weights along the last axis', False)]
    """

    name: str
    passed: bool | None
    detail: str = ""
    slugs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What was found in ``subject``.

    Args:
        subject: the name of what was checked.
        findings: mistakes and notes, the first cause first.
        checks: what was tried, in its order.
        reading: how the code was understood, such as "mask: True = may attend".
        said: the result in one line, where it is another than a count of the findings.

    Examples:
        >>> import mha
        >>> report = mha.check.softmax(lambda x, dim=-1: x.exp())
        >>> report.ok, report.headline, report.tally
        (False, '1 mistake', '1 check: 1 failed')
        >>> [found.slug for found in report.findings]
        ['softmax-no-normalise']
        >>> print(report.text().splitlines()[2])
        ✗ Mistake: The exponentials are not divided by their sum [softmax-no-normalise]
    """

    subject: str
    findings: tuple[Finding, ...] = ()
    checks: tuple[Check, ...] = ()
    reading: tuple[str, ...] = ()
    said: str = ""

    @property
    def ok(self) -> bool:
        """Whether no mistake was found."""
        return all(found.severity != "mistake" for found in self.findings)

    @property
    def headline(self) -> str:
        """The result in one line, without the subject."""
        if self.said:
            return self.said
        counts = Counter(found.label for found in self._ordered())
        parts = [_count(number, label.lower()) for label, number in counts.items()]
        parts = [part.replace("1 stopped", "stopped") for part in parts]
        if self.ok:
            parts.insert(0, "no mistake found")
        return ", ".join(parts)

    @property
    def tally(self) -> str:
        """How many checks passed, failed and could not be tried."""
        counts = Counter(check.passed for check in self.checks)
        parts = [f"{counts[passed]} {RESULTS[passed][1]}" for passed in RESULTS if counts[passed]]
        return f"{_count(len(self.checks), 'check')}: {', '.join(parts)}" if parts else "no checks"

    def text(self, color: bool = False) -> str:
        """The report for a terminal, at most 100 columns wide; ``color``: with ANSI codes."""
        lines = [_styled(f"{_line(self.subject)}: {self.headline}", "1", color)]
        for found in self._ordered():
            lines += ["", *_finding_lines(found, color)]
        if self.reading:
            lines += ["", _styled("How your code was read", "1", color)]
            for said in self.reading:
                lines += _wrapped(_line(said), "  ", "    ")
        if self.checks:
            lines += ["", _styled(_capital(self.tally), "1", color)]
            names = [_shortened(_line(check.name), LONG) for check in self.checks]
            room = min(max(map(_columns, names)), NAME_WIDTH)
            for name, check in zip(names, self.checks, strict=True):
                lines += _check_lines(name, check, room, color)
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The report for a notebook, in the colors of its page."""
        title = f"{_html(self.subject)}: {_html(self.headline)}"
        parts = [f'<p style="margin:0 0 .75em"><strong>{title}</strong></p>']
        parts += [_finding_html(found) for found in self._ordered()]
        if self.reading:
            said = "".join(f"<li>{_html(said)}</li>" for said in self.reading)
            parts.append(
                '<p style="margin:.75em 0 .25em"><strong>How your code was read</strong></p>'
                f'<ul style="margin:0;padding-left:1.5em">{said}</ul>'
            )
        if self.checks:
            parts.append(_table_html(self))
        return (
            '<div class="mha-report" style="color:inherit;background:none;max-width:50em;'
            'line-height:1.5;overflow-wrap:anywhere;text-align:left">' + "".join(parts) + "</div>"
        )

    def _ordered(self) -> list[Finding]:
        """Mistakes before notes."""
        return sorted(self.findings, key=lambda found: found.severity != "mistake")


def place(chapter: str) -> str:
    """In words: "chapters/05-4-masks#how-a-mask-enters" is 'chapter 5.4, "How a mask enters"'."""
    page, _, anchor = chapter.removeprefix("chapters/").partition("#")
    numbers = re.match(r"(\d+)(?:-(\d+))?-", page)
    if numbers:
        where = f"chapter {int(numbers[1])}" + (f".{numbers[2]}" if numbers[2] else "")
    else:
        where = f"the appendix on {page.removeprefix('appendix-')}"
    heading = HEADINGS.get(anchor, _capital(anchor.replace("-", " ")))
    heading = heading.replace('"', "'")
    return f'{where}, "{heading}"' if anchor else where


def link(chapter: str) -> str:
    """The page of the book, seen from another of its pages."""
    page, hashed, anchor = chapter.removeprefix("chapters/").partition("#")
    return f"{page}.html{hashed}{anchor}"


# --- words


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("s" if number != 1 and word != "stopped" else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _visible(text: object) -> str:
    """Text of a learner without control characters, tabs as spaces."""
    text = str(text).expandtabs(4).replace("\r\n", "\n")
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd"
        for c in text
    )


def _line(text: object) -> str:
    """The same on one line."""
    return " ".join(_visible(text).split())


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _pieces(evidence: str) -> list[tuple[bool, list[str]]]:
    """Runs of lines: (whether type of one width is needed, the lines)."""
    lines = [line.rstrip() for line in _visible(evidence).strip("\n").split("\n")]
    runs: list[tuple[bool, list[str]]] = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        fixed = line.startswith("  ") or after.startswith("  ")
        if runs and runs[-1][0] == fixed:
            runs[-1][1].append(line)
        elif line:
            runs.append((fixed, [line]))
    return runs


# --- text


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def _cut(text: str, room: int) -> list[str]:
    """A text in pieces of at most ``room`` columns."""
    pieces, taken = [""], 0
    for c in text:
        taken += _columns(c)
        if taken > room:
            pieces.append("")
            taken = _columns(c)
        pieces[-1] += c
    return pieces


def _column(text: str, room: int) -> list[str]:
    """A text in lines of at most ``room`` columns, broken between words where that is possible."""
    lines = textwrap.wrap(text, room, break_on_hyphens=False)
    return [piece for line in lines for piece in _cut(line, room)]


def _wrapped(text: str, first: str, later: str) -> list[str]:
    """Prose in lines; a text with wide characters is cut where it must be."""
    if _columns(text) == len(text):
        return textwrap.wrap(
            text, WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False
        )
    pieces = _cut(text, WIDTH - len(later))
    return [first + pieces[0], *(later + piece for piece in pieces[1:])]


def _styled(text: str, code: str, color: bool) -> str:
    text = "\n".join(_wrapped(text, "", "    "))
    return f"\033[{code}m{text}\033[0m" if color else text


def _finding_lines(found: Finding, color: bool) -> list[str]:
    blamed = found.severity != "note" and found.slug != "unwritten"
    mark, code = ("✗", "1;31") if blamed else ("•", "1;36")
    title = f"{mark} {found.label}: {_line(found.title)} [{found.slug}]"
    lines = [_styled(title, code, color)]
    for fixed, run in _pieces(found.evidence):
        for line in run:
            if fixed:
                lines += ["      " + piece.rstrip() for piece in _cut(line, WIDTH - 6)]
            else:
                lines += _wrapped(line, "      ", "        ")
    if found.explanation:
        lines += _wrapped(_line(found.explanation), "  ", "  ")
    if found.hint:
        lines += _wrapped(f"Hint: {_line(found.hint)}", "  ", "  ")
    if found.chapter:
        lines += _wrapped(f"Read: {place(found.chapter)}", "  ", "  ")
    return lines


def _check_lines(name: str, check: Check, room: int, color: bool) -> list[str]:
    mark, word = RESULTS[check.passed]
    code = {True: "32", False: "31", None: "2"}[check.passed]
    shown = f"\033[{code}m{mark}\033[0m" if color else mark
    start = f"  {shown} {word:9}  "
    indent = " " * (2 + 1 + 1 + 9 + 2)
    names = _column(name, room)
    details = _column(_line(check.detail), WIDTH - len(indent) - room - 2)
    lines = []
    for row in range(max(len(names), len(details), 1)):
        left = names[row] if row < len(names) else ""
        right = details[row] if row < len(details) else ""
        padded = left + " " * (room - _columns(left)) + "  " + right
        lines.append((start if row == 0 else indent) + padded)
    return [line.rstrip() for line in lines]


# --- HTML


def _html(text: object) -> str:
    return escape(_line(text))


def _prose(text: str) -> str:
    """Words of the catalogue, what stands in backticks as code."""
    style = "color:inherit;background:none;border:0;padding:0"
    return re.sub(r"`([^`]+)`", rf'<code style="{style}">\1</code>', _html(text))


def _finding_html(found: Finding) -> str:
    blamed = found.severity != "note" and found.slug != "unwritten"
    color = COLORS["negative" if blamed else "neutral"]
    parts = [
        '<p style="margin:0 0 .25em"><strong>'
        f'{found.label}: {_html(found.title)}</strong> <code style="color:inherit;background:none;'
        f'border:0;padding:0">{_html(found.slug)}</code></p>'
    ]
    for fixed, run in _pieces(found.evidence):
        if fixed:
            parts.append(
                '<pre tabindex="0" role="group" aria-label="Evidence" style="margin:.25em 0;'
                "padding:0;border:0;color:inherit;background:none;font-size:.9em;overflow-x:auto;"
                'white-space:pre;overflow-wrap:normal">' + escape("\n".join(run)) + "</pre>"
            )
        else:
            parts += [f'<p style="margin:.25em 0">{_html(line)}</p>' for line in run if line]
    if found.explanation:
        parts.append(f'<p style="margin:.25em 0">{_prose(found.explanation)}</p>')
    if found.hint:
        parts.append(
            '<details style="border:0;margin:.25em 0;padding:0"><summary>Hint</summary>'
            f'<p style="margin:.25em 0">{_prose(found.hint)}</p></details>'
        )
    if found.chapter:
        parts.append(
            f'<p style="margin:.25em 0">Read: <a href="{escape(link(found.chapter))}">'
            f"{_html(place(found.chapter))}</a></p>"
        )
    return (
        f'<div style="border-left:4px solid {color};padding:0 0 0 .75em;margin:0 0 1em">'
        + "".join(parts)
        + "</div>"
    )


def _table_html(report: Report) -> str:
    cell = (
        "text-align:left;vertical-align:top;white-space:normal;padding:.2em .75em .2em 0;"
        "background:none;color:inherit;border:0;border-top:1px solid "
        "color-mix(in srgb,currentColor 25%,transparent)"
    )
    row = "background:none;color:inherit"
    head = "".join(
        f'<th scope="col" style="{cell}">{name}</th>' for name in ("Result", "Check", "Detail")
    )
    rows = []
    for check in report.checks:
        mark, word = RESULTS[check.passed]
        rows.append(
            f'<tr style="{row}"><td style="{cell};white-space:nowrap">'
            f'<span aria-hidden="true">{mark}</span> {word}</td>'
            f'<th scope="row" style="{cell};font-weight:normal">{_html(check.name)}</th>'
            f'<td style="{cell}">{_html(check.detail)}</td></tr>'
        )
    return (
        f'<details{" open" if report.ok else ""} style="border:0;margin:.75em 0 0;padding:0">'
        f"<summary>{_html(_capital(report.tally))}</summary>"
        f'<table style="border-collapse:collapse;border:0;margin:.25em 0;width:100%;color:inherit;'
        f'background:none;font-size:inherit;table-layout:auto"><thead><tr style="{row}">{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></details>"
    )
