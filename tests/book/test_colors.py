"""The colors of queries, keys and values: which letters get one, and that nothing else changes."""

import colorsys
import re
import sys

import pytest
from bookfiles import ROOT, markdown, notebooks

sys.path.append(str(ROOT / ".ci/sphinx"))

from mha_book import colors, typeset

from mha.viz import theme

FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)


def plain(tex: str) -> str:
    """``tex`` without classes, and without braces around single letters."""
    without = re.sub(r"\\class\{mha-[qkv]\}\{(\w)\}", r"\1", tex)
    return re.sub(r"\{(\w)\}", r"\1", without)


def marked(tex: str, **options) -> str:
    """``tex`` colored, with <q> for a q in its color."""
    return re.sub(r"\\class\{mha-[qkv]\}\{(\w)\}", r"<\1>", colors.colored(tex, **options))


def formulas() -> list[str]:
    """All formulas of all chapters and of the appendix."""
    texts = [markdown(path) for path in notebooks()]
    texts += [path.read_text(encoding="utf8") for path in (ROOT / "chapters").glob("*.md")]
    return sorted({found[1] or found[2] for text in texts for found in FORMULA.finditer(text)})


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        (r"QK^\top V", r"<Q><K>^\top <V>"),
        (r"q_i \cdot k'_j", r"<q>_i \cdot <k>'_j"),
        (r"dQ = c\,dS K", r"d<Q> = c\,dS <K>"),
        (r"{K^{(h)}}^\top", r"{<K>^{(h)}}^\top"),
        (r"W_Q^{(h)} W^{(h)}_K W_K'^\top b_V", r"W_<Q>^{(h)} W^{(h)}_<K> W_<K>'^\top b_<V>"),
        (r"W_{Q} W_{O}", r"W_{<Q>} W_{O}"),
        (r"X_Q, d_V", r"X_Q, d_V"),
        (r"\sqrt{d_k}, E_v, X_q, H_{kv}, b_q, p_V", r"\sqrt{d_k}, E_v, X_q, H_{kv}, b_q, p_V"),
        (r"\quad \Vert q \Vert \sqrt k", r"\quad \Vert <q> \Vert \sqrt {<k>}"),
        (r"\bar v_m \frac Qk", r"\bar {<v>}_m \frac {<Q>}{<k>}"),
        (r"\text{a key k} \mathrm{Var}(q)", r"\text{a key k} \mathrm{Var}(<q>)"),
        (r"\operatorname{KV}_q V \tag{Q}", r"\operatorname{KV}_q <V> \tag{Q}"),
        (r"\begin{vmatrix} v \end{vmatrix}", r"\begin{vmatrix} <v> \end{vmatrix}"),
        (r"\sum_{k=1}^{V} e^{q} a^K", r"\sum_{k=1}^{V} e^{q} a^K"),
        (r"\class{mha-q}{Q} K", r"<Q> <K>"),
    ],
)
def test_queries_keys_and_values_are_colored_and_nothing_else(tex, expected):
    assert marked(tex) == expected


def test_a_lone_k_is_a_key_only_beside_a_query():
    assert marked("k, k_j, k'", bare_k=False) == "k, <k>_j, <k>'"


def test_borrowed_letters_stay_plain():
    assert marked("V p_k + K", letters=frozenset("K")) == "V p_k + <K>"


def test_no_formula_of_the_book_is_changed_but_for_classes():
    all_formulas = formulas()
    assert len(all_formulas) > 500
    for tex in all_formulas:
        assert plain(colors.colored(tex)) == plain(tex)
    assert sum(colors.colored(tex) != tex for tex in all_formulas) > 100


@pytest.fixture(scope="module")
def mathjax():
    if not (ROOT / "node_modules/mathjax").exists():
        pytest.skip("needs MathJax: npm ci")
    typesetter = typeset.Typesetter()
    yield typesetter
    typesetter.close()


def test_color_moves_nothing_in_a_formula(mathjax):
    """What MathJax draws is the same, class aside."""
    changed = [tex for tex in formulas() if colors.colored(tex) != tex]
    for tex in [re.sub(r"\\tag\{.*?\}", "", tex) for tex in changed]:
        drawn = [
            mathjax.ask({"tex": text, "display": True})["html"].partition("<mjx-assistive")[0]
            for text in (tex, colors.colored(tex))
        ]
        assert "mha-" in drawn[1] and re.sub(r" mha-[qkv]", "", drawn[1]) == drawn[0]


def test_letters_that_the_notation_calls_borrowed_are_not_colored():
    text = (ROOT / "chapters/appendix-notation.md").read_text(encoding="utf8")
    table = text.partition("## Letters that a chapter borrows")[2]
    rows = re.findall(r"^\| (.*?) \| \[[\d.]+\]\((.*?)\.ipynb", table, re.MULTILINE)
    assert len(rows) > 8
    for letters, page in rows:
        for letter in re.findall(r"\$([QKVqv])\$", letters):
            assert letter in "".join(colors.BORROWED[page].values())


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_colors_are_legible_and_those_of_the_figures():
    css = (ROOT / "chapters/_static/reading.css").read_text(encoding="utf8")
    found = re.findall(r"--mha-([qkv]): (#\w{6})", css)
    assert len(found) == 6
    grounds = [("#ffffff", "#f3f4f5")] * 3 + [("#121212", "#14181e", "#29313d", "#222832")] * 3
    names = {"q": "query", "k": "key", "v": "value"}
    for (letter, color), on in zip(found, grounds, strict=True):
        assert min(contrast(color, ground) for ground in on) >= 4.5
        hues = [
            colorsys.rgb_to_hls(*(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)))[0]
            for c in (color, theme.COLORS[names[letter]])
        ]
        assert abs(hues[0] - hues[1]) < 0.05
