r"""The docstrings of the package as reStructuredText, for the pages of its reference.

A docstring here is plain text, to be read in an editor: a star is a star, ``|j - i|`` a distance,
and a section may begin right behind its name, as in ``Returns: (B, S) bool.`` Napoleon wants markup
in the text and sections on lines of their own, and would lose much of it. So these are the rules:

- ``Args:``, ``Returns:``, ``Errors:`` and their like become fields. Each argument becomes an entry,
  also where several stand on one line.
- A name in backticks, one or two, is a link if it names something of the package, of PyTorch or of
  NumPy, but not if it is an argument of the same function. All else in backticks is code.
- Lines from ``>>>`` to an empty line are an example. An indented paragraph outside a section is code.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from textwrap import dedent, indent

from sphinx.pycode import ModuleAnalyzer

from . import _public, inventories, references

KINDS = "Args|Attributes|Errors|Examples?|Memory|Raises|Returns|Source|Yields"
LABELS = {"Args": "Arguments", "Example": "Examples", "Raises": "Errors"}
HEAD = re.compile(rf"((?:{KINDS})(?:, [a-z]+)*):(?:\s+(\S.*))?$")
BEHIND = re.compile(rf"(?<=[.)]) (?=(?:{KINDS}): )")  # a section behind another, on one line
NAMES = r"\w+(?:, \w+)*"
ENTRY = re.compile(rf"({NAMES}|[Tt]he rest): (.*)$")
NEXT_ENTRY = re.compile(rf"(?<=\.) ({NAMES}): ")
CODE = re.compile(r"``(.+?)``|`([^`]+)`", re.DOTALL)
NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*(?=(?:\(\))?$)")
SPECIAL = re.compile(r"([\\*|`]|_(?!\w))")
LIST_LIKE = re.compile(r"\(?[\w#]+[.)](?:\s|$)|[-+•:.=>]")  # what would begin a list or the like
WHOLE = ("mha.", "torch.", "numpy.")  # a name that begins like this must lead somewhere
SHORT = {"F": "torch.nn.functional", "nn": "torch.nn"}  # as the package imports them


@dataclass
class Section:
    """A part of a docstring: its label, "" for text outside sections, and its lines."""

    label: str = ""
    lines: list[str] = field(default_factory=list)

    def holds(self, line: str) -> bool:
        """Whether a line that is not indented still belongs here."""
        if not self.label or not line.strip() or line[:1].isspace():
            return True
        if self.label == "Examples" and line.startswith((">>>", "...")):
            return True
        return bool(self.lines[-1:]) and self.lines[-1].strip() and not self.is_indented()

    def is_indented(self) -> bool:
        return any(line[:1].isspace() for line in self.lines)

    def text(self) -> str:
        """The lines, the first and the rest each without the indentation that they share."""
        return f"{self.lines[0]}\n" + dedent("\n".join(self.lines[1:])) if self.lines else ""


def sections(lines: list[str]) -> list[Section]:
    """The parts of a docstring, in their order."""
    found = [Section()]
    for line in lines:
        for part in [line] if line[:1].isspace() else BEHIND.split(line):
            if head := HEAD.match(part):
                name, comma, others = head[1].partition(",")
                label = LABELS.get(name, name) + comma + others
                found.append(Section(label, [head[2] or ""]))
            elif found[-1].holds(part):
                found[-1].lines.append(part)
            else:
                found.append(Section("", [part]))
    return [section for section in found if any(line.strip() for line in section.lines)]


@dataclass
class Scope:
    """Where a docstring stands: what its names may mean."""

    name: str  # of what it describes, such as "mha.KVCache.append"
    arguments: frozenset[str] = frozenset()

    def meanings(self, name: str) -> Iterator[str]:
        """What ``name`` may be in full, beginning with what is nearest."""
        place = self.name
        while place:  # the class and the module around it, then the package
            yield f"{place}.{name}"
            place = place.rpartition(".")[0]
        yield name
        first, dot, rest = name.partition(".")
        yield SHORT.get(first, "") + dot + rest
        yield references.offered().get(first, "") + dot + rest

    def target(self, text: str) -> str | None:
        """What a text in backticks names, in full, or None if it is just code."""
        named = NAME.match(text)
        if not named or text in self.arguments:
            return None
        for full in self.meanings(named[0]):
            is_word = "." not in named[0] and full in _public.modules()  # ``data``, not mha.data
            if full in _known() and not is_word:
                return full if full != self.name else None
        return named[0] if named[0].startswith(WHOLE) else None


@cache
def _known() -> set[str]:
    """All that a name in backticks may lead to."""
    ours = {*_public.names(), *_public.members(), *_public.modules()}
    return ours | inventories.names()


def inline(text: str, scope: Scope) -> str:
    """A paragraph as one line, its names linked, with nothing in it that reads as other markup."""
    text, parts, end = " ".join(text.split()), [], 0
    for found in CODE.finditer(text):
        code = (found[1] or found[2]).strip()
        target = scope.target(code)
        before = r"\ " if text[: found.start()][-1:].isalnum() else ""
        after = r"\ " if text[found.end() :][:1].isalnum() else ""
        marked = f":py:obj:`{code} <{target}>`" if target else f"``{code}``"
        parts += [_plain(text[end : found.start()]), before, marked, after]
        end = found.end()
    line = "".join([*parts, _plain(text[end:])])
    return rf"\ {line}" if LIST_LIKE.match(text) else line


def _plain(text: str) -> str:
    return SPECIAL.sub(r"\\\1", text)


def prose(text: str, scope: Scope) -> str:
    """Paragraphs, examples and code."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.lstrip().startswith(">>>"):
            blocks.append(dedent(block))
        elif all(line[:1].isspace() for line in block.splitlines()):
            blocks.append("::\n\n" + indent(dedent(block), "    "))
        elif ">>>" in block:  # an example right below the sentence about it
            sentence, example = re.split(r"\n(?=>>>)", block, maxsplit=1)
            blocks += [inline(sentence, scope), example]
        else:
            blocks.append(inline(block, scope))
    return "\n\n".join(blocks)


def entries(text: str, scope: Scope) -> str:
    """A list of names with their explanations; what stands before the first is a paragraph."""
    found = [("", "")]
    for line in text.splitlines():
        entry = ENTRY.match(line)
        if entry and (entry[1].lower() == "the rest" or _are_names(entry[1], scope)):
            found.append((entry[1], entry[2]))
        else:
            found[-1] = found[-1][0], f"{found[-1][1]}\n{line}"
    written = []
    for names, said in found:
        for one, text in _apart(names, said, scope):
            if one:
                term = ", ".join(f"**{name}**" for name in one.split(", "))
                written.append(f"{term}\n    {inline(text, scope)}")
            elif text:
                written.append(inline(text, scope))
    return "\n\n".join(written)


def _are_names(names: str, scope: Scope) -> bool:
    """Whether an entry may begin with these: arguments, or anything where none are known."""
    return not scope.arguments or scope.arguments.issuperset(names.split(", "))


def _apart(names: str, said: str, scope: Scope) -> list[tuple[str, str]]:
    """The entries on one line: "embed_dim: width E. num_heads: heads H." holds two."""
    said = " ".join(said.split())
    found = [other for other in NEXT_ENTRY.finditer(said) if _are_names(other[1], scope)]
    found = found if scope.arguments else []
    heads = [names, *(other[1] for other in found)]
    starts = [0, *(other.end() for other in found)]
    ends = [*(other.start() for other in found), len(said)]
    return [(head, said[i:j]) for head, i, j in zip(heads, starts, ends, strict=True)]


def rest(lines: list[str], scope: Scope) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    written = []
    for section in sections(lines):
        if section.label.startswith("Arguments"):
            body = entries(section.text(), scope)
        elif section.label.startswith("Attributes"):
            body = entries(section.text(), Scope(scope.name))
        else:
            body = prose(section.text(), scope)
        written.append(f":{section.label}:\n{indent(body, '    ')}" if section.label else body)
    return "\n\n".join(written).splitlines()


def _arguments(thing: object) -> frozenset[str]:
    """The names of the arguments that a call takes; none for what is not called."""
    try:
        return frozenset(inspect.signature(thing).parameters) - {"self"}
    except (TypeError, ValueError):
        return frozenset()


def said_of_constant(name: str, thing: object) -> list[str]:
    """The text below a constant, in whatever module of the package defines it.

    Where a package only hands a constant on, autodoc finds no text but that of its type.
    """
    last = name.rpartition(".")[2]
    for module in [name for name in sys.modules if f"{name}.".startswith("mha.")]:
        if getattr(sys.modules[module], last, None) is thing:
            found = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", last))
            if found:
                return list(found)
    return []


def convert(app, what: str, name: str, thing: object, options, lines: list[str]) -> None:
    """What autodoc asks of each docstring: it is changed in place."""
    if what == "data":
        lines[:] = said_of_constant(name, thing)
    called = thing if what in ("class", "function", "method") else None
    lines[:] = rest(lines, Scope(name, _arguments(called)))


def leave_out_fields(app, what: str, name: str, thing: object, skip: bool, options) -> bool | None:
    """The fields of a named tuple stand in its signature; of themselves they say nothing."""
    is_field = inspect.isdatadescriptor(thing) and not isinstance(thing, property)
    return True if is_field else None


def setup(app) -> None:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", convert)
    app.connect("autodoc-skip-member", leave_out_fields)
