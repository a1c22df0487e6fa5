r"""One color each for queries, keys and values, in formulas and in sentences.

The sources stay plain, so that Colab shows them right. Here the letters Q, K, V and q, k, v are
wrapped, in formulas as ``\class{mha-q}{Q}``, elsewhere in an element with the same class; the
colors stand in ``reading.css``, and are those of the figures (``mha.viz.theme``).

Colored is what is made of queries, keys or values: ``Q``, ``q_i``, ``dV``, and the mark of a map or
a bias that makes them, ``W_Q``, ``b^K``. Sizes and inputs stay plain: ``d_k``, ``E_v``, ``X_q``.
A ``k`` without an index is mostly a counter; it is a key only where a ``q`` stands in the same
paragraph.
"""

import re

from docutils import nodes

from ._doctree import inside, sections, stem

CLASSES = dict(zip("QKVqkv", ["mha-q", "mha-k", "mha-v"] * 2, strict=True))
ALL = frozenset(CLASSES)

# Where a letter means something else, in a whole chapter (None) or below a heading.
BORROWED = {
    "01-background": {None: "kv"},  # width of a convolution; a learned vector
    "05-1-data": {None: "Vk"},  # size of a vocabulary; a distance
    "06-2-digits": {None: "K"},  # classes
    "06-3-subwords": {None: "Vk"},
    "06-4-sentences": {None: "V"},
    "11-2-bert": {None: "V"},
    "12-3-gpu": {"exercises": "K"},  # steps between two waits
    "13-2-trains": {None: "Vk"},
    "api-cost": {None: "k"},  # a size
    "api-data": {None: "Vk"},
    "api-models": {None: "KVk"},
    "appendix-notation": {"letters-that-a-chapter-borrows": "QKVqkv"},
    "bibliography": {None: "QKVqkv"},
}

TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|\s+|.", re.DOTALL)

# Control words whose arguments are no formula, and the number of those arguments.
OPAQUE = {
    **dict.fromkeys(("begin", "end", "label", "tag", "tag*", "ref", "eqref", "color"), 1),
    **dict.fromkeys(("text", "textrm", "textbf", "textit", "texttt", "mbox"), 1),
    **dict.fromkeys(("mathrm", "mathbb", "mathtt", "mathsf", "operatorname", "operatorname*"), 1),
    **dict.fromkeys(("hspace", "hspace*", "rule"), 1),
    **dict.fromkeys(("class", "cssId", "href", "style"), 2),
}
# Control words that may take single letters as arguments, which then need braces around a wrapper.
TAKES = {
    **dict.fromkeys(("bar", "hat", "tilde", "vec", "dot", "overline", "underline", "widehat"), 1),
    **dict.fromkeys(("sqrt", "mathbf", "boldsymbol", "mathcal", "widetilde"), 1),
    **dict.fromkeys(("frac", "tfrac", "dfrac", "binom"), 2),
}


class _Group:
    """What is known inside one pair of braces."""

    def __init__(self, script: bool = False, owner: str = ""):
        self.script = script  # inside a subscript or superscript
        self.owner = owner  # of which letter
        self.base = ""  # the last letter, which a script now would belong to
        self.raised = False  # "_" or "^" has just come
        self.wanted = 0  # arguments that the last control word still takes


def _group_end(tokens: list[str], start: int) -> int:
    """The index behind the group that opens at or after ``start``; ``start`` if none does."""
    at = start
    while at < len(tokens) and tokens[at].isspace():
        at += 1
    if at == len(tokens) or tokens[at] != "{":
        return start
    depth = 0
    for index in range(at, len(tokens)):
        depth += {"{": 1, "}": -1}.get(tokens[index], 0)
        if depth == 0:
            return index + 1
    return len(tokens)


def _is_bare(tokens: list[str], index: int) -> bool:
    """Whether the letter at ``index`` has neither index nor prime."""
    following = "".join(tokens[index + 1 :]).lstrip()
    return not following.startswith(("_", "'"))


def _wrapped(letter: str, letters: frozenset[str], group: _Group) -> str:
    """``letter`` with its class if it has one here, in braces where it is a bare argument."""
    if group.script or group.raised:
        owner = group.base if group.raised else group.owner
        right = letter in "QKV" and owner in ("W", "b")
    else:
        right = letter in letters
    if not right:
        return letter
    wrapper = rf"\class{{{CLASSES[letter]}}}{{{letter}}}"
    return f"{{{wrapper}}}" if group.wanted and not group.raised else wrapper


def _letter(tokens: list[str], index: int, letters: frozenset[str], bare_k: bool, group: _Group):
    """What stands for the letter at ``index``; ``group`` learns of it."""
    letter = tokens[index]
    counter = letter == "k" and not bare_k and _is_bare(tokens, index)
    written = letter if counter else _wrapped(letter, letters, group)
    if group.raised:
        group.raised = False
    else:
        group.base = letter
        group.wanted = max(0, group.wanted - 1)
    return written


def colored(tex: str, letters: frozenset[str] = ALL, bare_k: bool = True) -> str:
    r"""``tex`` with a class around each of ``letters`` that is a query, a key or a value.

    ``bare_k``: whether a ``k`` without an index is a key. Taking ``\class{mha-.}{X}`` and, after a
    control word, the braces around it away gives ``tex`` back.
    """
    tokens = TOKEN.findall(tex)
    written, groups, index = [], [_Group()], 0
    while index < len(tokens):
        token, group, end = tokens[index], groups[-1], index + 1
        if token in CLASSES:
            written.append(_letter(tokens, index, letters, bare_k, group))
            index = end
            continue
        if token.startswith("\\") and token[1:] in OPAQUE:
            for _ in range(OPAQUE[token[1:]]):
                end = _group_end(tokens, end)
        written.extend(tokens[index:end])
        _pass_over(token, groups)
        index = end
    return "".join(written)


def _pass_over(token: str, groups: list[_Group]) -> None:
    """Let ``groups`` learn of a token that is not one of our letters."""
    group = groups[-1]
    if token.isspace():
        return
    if token == "{":
        script = group.script or group.raised
        groups.append(_Group(script, group.base if group.raised else group.owner))
    elif token == "}" and len(groups) > 1:
        groups.pop()
        return
    if token in ("_", "^"):
        group.raised = True
    elif group.raised:
        group.raised = False  # the base keeps its other script: W^{(h)}_Q
    elif token != "'":
        group.base = token
        group.wanted = TAKES.get(token[1:], 0) if token[:1] == "\\" else max(0, group.wanted - 1)


STANDALONE = re.compile(r"(?<![\w.·-])(?<![A-Z]\. )[QKVqkv](?![\w·-]|\. [A-Z]\.)")
PLACES = (nodes.title, nodes.reference, nodes.literal_block, nodes.raw, nodes.comment)


def _letters_at(node: nodes.Node, borrowed: dict) -> frozenset[str]:
    """The letters that mean query, key or value where ``node`` stands."""
    around = sections(node)
    if "references" in around:
        return frozenset()
    return ALL - {letter for name in (None, *around) for letter in borrowed.get(name, "")}


def _asks(block: nodes.Element) -> bool:
    """Whether a query ``q`` stands in this block, so that a ``k`` beside it is a key."""
    only_q = frozenset("q")
    formulas = [block] if isinstance(block, nodes.math_block) else block.findall(nodes.math)
    if any(colored(formula.astext(), only_q) != formula.astext() for formula in formulas):
        return True
    plain = [text.astext() for text in block.findall(nodes.Text) if _is_prose(text)]
    codes = [code.astext() for code in block.findall(nodes.literal)]
    return "q" in codes or any("q" in STANDALONE.findall(text) for text in plain)


def _is_prose(text: nodes.Text) -> bool:
    return not isinstance(text.parent, (nodes.literal, nodes.math, nodes.math_block))


def _color_prose(text: nodes.Text, letters: frozenset[str]) -> None:
    """Give each of ``letters`` that stands alone in ``text`` an element of its own."""
    source, parts, end = text.astext(), [], 0
    for found in STANDALONE.finditer(source):
        if found[0] in letters:
            parts += [nodes.Text(source[end : found.start()])] if found.start() > end else []
            parts.append(nodes.inline("", found[0], classes=[CLASSES[found[0]]]))
            end = found.end()
    if parts:
        text.parent.replace(text, parts + ([nodes.Text(source[end:])] if source[end:] else []))


def _color_block(block: nodes.Element, letters: frozenset[str]) -> None:
    asks = _asks(block)
    prose = letters if asks else letters - {"k"}
    formulas = [block] if isinstance(block, nodes.math_block) else list(block.findall(nodes.math))
    for formula in formulas:
        text = colored(formula.astext(), letters, asks)
        formula.children = []
        formula += nodes.Text(text)
        formula.rawsource = text
    for text in list(block.findall(nodes.Text)):
        if inside(text, PLACES):
            continue
        if isinstance(text.parent, nodes.literal):
            if text.astext() in prose:
                text.parent["classes"].append(CLASSES[text.astext()])
        elif _is_prose(text):
            _color_prose(text, prose)


def color(app, doctree: nodes.document) -> None:
    """Color one page, when it has been read."""
    if app.builder.format != "html":
        return
    borrowed = BORROWED.get(stem(app.env.docname), {})
    kinds = (nodes.paragraph, nodes.math_block, nodes.term)
    for block in [node for node in doctree.findall() if isinstance(node, kinds)]:
        _color_block(block, _letters_at(block, borrowed))


def setup(app) -> dict:
    app.connect("doctree-read", color, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
