"""The figures: what they draw, how they refuse, and that they read the same on every page."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from mha import viz
from mha.viz import theme

ALT = "what the figure shows here"
WEIGHTS = torch.tensor(
    [[0.7, 0.2, 0.1, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1, 0.6], [0.25, 0.5, 0.25, 0, 0]]
)
QUERIES, KEYS = ["un", "coche", "rojo"], ["i", "bought", "a", "red", "car"]

ALL = {
    "heatmap": lambda: viz.heatmap(WEIGHTS, QUERIES, KEYS, alt=ALT, title="weights"),
    "scores": lambda: viz.heatmap(WEIGHTS.log().numpy() + 1, annotate=False, alt=ALT),
    "head_grid": lambda: viz.head_grid(torch.stack([WEIGHTS, 1 - WEIGHTS]), QUERIES, KEYS, alt=ALT),
    "mask": lambda: viz.mask(torch.tensor([[True, False], [False, False], [True, True]])),
    "shape_strip": lambda: viz.shape_strip(
        [("x", "B T E", (2, 3, 8)), ("split_heads", "(B, H, T, D)", (2, 2, 3, 4))]
    ),
    "split_strip": lambda: viz.split_strip(),
    "image": lambda: viz.image_attention(
        np.arange(64).reshape(8, 8), np.linspace(0, 0.2, 32).reshape(2, 16), 2, query=3, alt=ALT
    ),
    "curves": lambda: viz.curves(
        {"scaled": ([2, 4, 8], [0.9, 0.8, 0.7]), "unscaled": ([2, 4, 8], [0.9, 0.5, 0.1])},
        xlabel="D",
        ylabel="entropy (nats)",
        logx=True,
        bands={"scaled": ([0.8, 0.7, 0.6], [1.0, 0.9, 0.8])},
        hlines={"uniform": 1.0},
        alt=ALT,
    ),
}


class Page(HTMLParser):
    """What a browser makes of a figure: its tags, attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(html)
        assert not self.open, f"unclosed {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("text", "tspan"):
            self.texts.append(data)

    def ids(self):
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


def texts(figure):
    return Page(figure.html).texts


def hatched(figure):
    """The (row, column) of each hatched cell: the second of its three stripes is its diagonal."""
    grid = figure.panels[0]
    (d,) = [a["d"] for _, a in Page(figure.html).tags if a.get("class") == "mha-hatch"] or [""]
    stripes = np.array(re.findall(r"M([\d.]+) ([\d.]+)l", d), float).reshape(-1, 3, 2)[:, 1]
    return {
        (round((y - grid.top) / grid.cell) - 1, round((x - grid.left) / grid.cell))
        for x, y in stripes
    }


def run(code, **environment):
    """What ``code`` prints in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(__file__).parent,
        env=os.environ | environment,
    ).stdout


# Every figure ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_is_one_image_with_an_alternative_text(name):
    figure = ALL[name]()
    page = Page(figure._repr_html_())
    tag, attributes = page.tags[0]
    assert (tag, attributes["role"], attributes["aria-label"]) == ("div", "img", figure.alt)
    assert len(figure.alt.split()) >= 4
    assert all(a["aria-hidden"] == "true" for tag, a in page.tags if tag == "svg")


@pytest.mark.parametrize("name", ALL)
def test_ink_is_the_colour_of_the_page(name):
    page = Page(ALL[name]().html)
    assert not re.search(r"#000000|black", str(page.tags))
    assert all(a["fill"] == "currentColor" for tag, a in page.tags if tag == "svg")
    for (
        tag,
        attributes,
    ) in page.tags:  # text inherits its ink; on a strong cell it takes the background's
        assert tag != "text" or "fill" not in str(attributes)
        if attributes.get("fill") == "#fff":
            assert theme.PAPER in attributes["style"]


@pytest.mark.parametrize("name", ALL)
def test_the_page_keeps_its_own_style_and_fonts(name):
    html = ALL[name]().html.replace(viz.svg.BOX, "")
    assert "<style" not in html
    assert "DejaVu" not in html
    assert "metadata" not in html  # it holds the date and matplotlib's version
    assert re.findall(r"font-family[=:]\W*(\w+)", html) in ([], ["ui"] * html.count("ui-monospace"))


@pytest.mark.parametrize("name", ALL)
def test_numbers_have_at_most_two_decimals(name):
    html = re.sub(
        r"<style>.*?</style>|style=\"[^\"]*oklch[^\"]*\"|aria-label=\"[^\"]*\"",
        "",
        ALL[name]().html,
    )
    assert re.findall(r"\d\.\d{3,}", html) == []
    assert len(html) < 60_000


@pytest.mark.parametrize("name", ALL)
def test_panels_wrap_and_shrink_by_a_quarter_at_most(name):
    figure = ALL[name]()
    page = Page(figure.html)
    assert "flex-wrap:wrap" in page.tags[0][1]["style"]
    widths = [float(a["width"]) for tag, a in page.tags if tag == "svg"]
    least = [float(s) for s in re.findall(r"min-width:([\d.]+)px", figure.html)]
    np.testing.assert_allclose(least, np.multiply(widths, 0.75), atol=0.01)
    assert max(least) <= 343  # a phone of 375 pixels, less its margins


def test_no_id_stands_twice_on_a_page():
    curves = [
        viz.curves({"a": y, "b": y}, xlabel="x", ylabel="y", alt=ALT).html
        for y in ([1, 2, 3], [3, 2, 4])
    ]
    page = Page("".join(figure().html for figure in ALL.values()) + "".join(curves))
    assert len(page.ids()) >= 9
    assert len(page.ids()) == len(set(page.ids()))
    used = set(re.findall(r"url\(#([^)]+)\)", str(page.tags)))
    used |= {a["href"].removeprefix("#") for _, a in page.tags if "href" in a}
    assert used == set(page.ids())


def test_the_same_figure_is_the_same_to_the_letter_in_another_process():
    code = (
        "import json, sys, test_viz\n"
        "drawn = {n: [draw().html, repr(draw())] for n, draw in test_viz.ALL.items()}\n"
        "print(json.dumps([drawn, 'matplotlib.pyplot' in sys.modules]))"
    )
    drawn, pyplot = json.loads(run(code, PYTHONHASHSEED="7"))
    for name, (html, text) in drawn.items():
        assert html == ALL[name]().html, name
        assert text == repr(ALL[name]()) == f"Figure({ALL[name]().alt!r})"
    assert len(drawn) == len(ALL)
    assert not pyplot, "a notebook would show each figure twice"


@pytest.mark.parametrize("name", ALL)
def test_save_writes_one_picture_that_holds_every_panel(name, tmp_path):
    figure = ALL[name]()
    figure.save(tmp_path / "figure.svg")
    root = ElementTree.parse(tmp_path / "figure.svg").getroot()
    assert root.get("aria-label") == figure.alt
    assert [e.text for e in root.iter() if e.tag.endswith("text")] == texts(figure)
    assert all(float(root.get("width")) >= panel.width - 0.01 for panel in figure.panels)
    assert float(root.get("height")) >= max(panel.height for panel in figure.panels) - 0.01


@pytest.mark.parametrize("alt", ["", "a heat map", "one  two\nthree"])
def test_a_short_alternative_text_is_refused(alt):
    with pytest.raises(ValueError, match="at least four words"):
        viz.heatmap(WEIGHTS, alt=alt)
    with pytest.raises(ValueError, match="at least four words"):
        viz.show(viz.subplots()[0], alt=alt)


def test_an_alternative_text_may_be_chinese_but_not_missing():
    assert viz.heatmap(WEIGHTS, alt="注意力权重").alt == "注意力权重"
    with pytest.raises(TypeError, match="alt"):
        viz.heatmap(WEIGHTS, alt=None)


def test_a_token_is_text_never_markup():
    evil = '<img src=x onerror="alert(1)">'
    figure = viz.heatmap(
        [[1.0, 0.0]], None, ["<b>", "&lt;"], title=evil, alt=f"a picture of {evil} & co"
    )
    page = Page(figure.html)
    assert {tag for tag, _ in page.tags} == {"div", "style", "svg", "g", "path", "text"}
    assert page.tags[0][1]["aria-label"] == f"a picture of {evil} & co"
    assert {"<b>", "&lt;"} < set(page.texts)
    assert evil in " ".join(page.texts)
    plot = viz.curves({evil: [1, 2], "b": [2, 1]}, xlabel="x", ylabel="y", alt=ALT)
    assert evil in Page(plot.html).texts


# Colours -----------------------------------------------------------------------------------------


def rgb(color):
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def contrast(a, b):
    def light(c):
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("color", [*viz.COLORS.values(), *viz.HEAD_COLORS])
def test_colours_stand_out_on_white_and_on_black(color):
    assert contrast(rgb(color), rgb("#ffffff")) >= 4.5
    assert contrast(rgb(color), rgb("#121212")) >= 3


# Ink and paper of the book and of JupyterLab, light and dark.
THEMES = [
    ("#222832", "#ffffff"),
    ("#ced6dd", "#14181e"),
    ("#000000", "#ffffff"),
    ("#ffffff", "#111111"),
]


@pytest.mark.parametrize(("ink", "paper"), THEMES)
@pytest.mark.parametrize("name", ["query", "key", "value", "weights", "negative"])
def test_a_number_is_legible_on_its_cell(ink, paper, name):
    share = int(re.search(r"currentColor (\d+)%", theme.mixed(viz.COLORS[name]))[1]) / 100
    full = share * rgb(ink) + (1 - share) * rgb(viz.COLORS[name])
    for level in np.linspace(0, 1, 101):
        opacity = theme.tone(level, stepped=True)
        cell = opacity * full + (1 - opacity) * rgb(paper)
        assert contrast(cell, rgb(paper if level >= 0.5 else ink)) >= 4.5, level


def test_more_weight_is_more_ink():
    for stepped in (False, True):
        tones = [theme.tone(level, stepped) for level in np.linspace(0, 1, 101)]
        assert tones == sorted(tones)
        assert (tones[0], tones[-1]) == (0, 1)


# Heat maps ---------------------------------------------------------------------------------------


def test_a_heat_map_shows_the_numbers_it_was_given():
    page = Page(viz.heatmap(WEIGHTS, QUERIES, KEYS, alt=ALT).html)
    assert {"← queries", "keys →", *QUERIES, *KEYS} <= set(page.texts)
    cells = {}
    for (_, a), text in zip([t for t in page.tags if t[0] == "text"], page.texts, strict=True):
        if re.fullmatch(r"\d\.\d\d", text):
            cells[float(a["y"]), float(a["x"])] = float(text)
    drawn = np.array([cells[place] for place in sorted(cells)]).reshape(3, 5)
    np.testing.assert_allclose(drawn, WEIGHTS, atol=0.005)


def test_a_cell_is_filled_as_strongly_as_its_weight():
    page = Page(viz.heatmap(WEIGHTS, alt=ALT, vmax=1, annotate=False).html)
    drawn = np.zeros((3, 5))
    for _, attributes in page.tags:
        if re.fullmatch(r"(M\d \dh\d)+", attributes.get("d", "")):
            for j, i, run in re.findall(r"M(\d) (\d)h(\d)", attributes["d"]):
                drawn[int(i), int(j) : int(j) + int(run)] = float(attributes["stroke-opacity"])
    np.testing.assert_allclose(drawn, WEIGHTS, atol=0.005)


def test_scores_keep_their_sign_without_colour():
    scores = np.array([[-1.25, 0.5, -0.001]])
    assert {"−1.25", "0.50", "0.00"} <= set(texts(viz.heatmap(scores, alt=ALT)))
    plain = Page(viz.heatmap(scores, alt=ALT, annotate=False).html)
    (signs,) = (a["d"] for _, a in plain.tags if a.get("stroke-opacity") == "0.7")
    assert signs.count("M") == 2  # two negative cells
    assert {"−1.5", "1.5"} <= set(plain.texts)


def test_a_rounding_error_has_no_sign():
    scores = torch.tensor([[0.0, -1.0], [0.5, 0.0]], dtype=torch.float64).repeat(12, 12)
    noisy = scores.where(scores != 0, -1e-16)
    draw = [
        viz.heatmap(table, alt="The same scores, twice over")._repr_html_()
        for table in (scores, noisy)
    ]
    assert draw[0] == draw[1]


def test_blocked_cells_are_hatched_and_hold_no_number():
    allowed = torch.ones(3, 5, dtype=torch.bool).tril()
    figure = viz.heatmap(WEIGHTS, alt=ALT, allowed=allowed)
    above = {(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4)}
    assert hatched(figure) == above
    assert len([t for t in texts(figure) if re.fullmatch(r"\d\.\d\d", t)]) == 6
    assert hatched(viz.heatmap(WEIGHTS, alt=ALT)) == set()
    masked = WEIGHTS.masked_fill(~allowed, float("-inf"))
    assert hatched(viz.heatmap(masked, alt=ALT)) == above
    assert "masked" in texts(viz.heatmap(masked, alt=ALT, annotate=False))
    assert "masked" not in texts(viz.heatmap(WEIGHTS, alt=ALT, annotate=False))


def test_a_small_map_of_wide_numbers_gives_them_room():
    figure = viz.heatmap([[12345.678, -3.0]], alt=ALT)
    assert "12345.68" in texts(figure)
    assert figure.panels[0].cell > 8 * 0.5 * 11


def test_labels_that_are_tokens_are_all_shown_and_numbers_are_thinned():
    keys = [f"t{i}" for i in range(60)]
    assert set(keys) < set(texts(viz.heatmap(np.ones((2, 60)), None, keys, alt=ALT)))
    counted = texts(viz.heatmap(np.ones((2, 60)), alt=ALT))
    assert {"0", "20", "50"} < set(counted)
    assert "1" not in counted[2:5] and "7" not in counted


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" ", "␣"),
        (" the", "␣the"),
        ("a b", "a b"),
        ("\n", "⏎"),
        ("\x00", "␀"),
        ("我爱你", "我爱你"),
        (7, "7"),
        ("Donaudampfschifffahrt", "Donaudampfsch…"),
    ],
)
def test_tokens_are_visible(token, shown):
    assert shown in texts(viz.heatmap([[1.0], [0.5]], [token, "x"], alt=ALT))


def test_chinese_labels_need_no_font_of_ours():
    plot = viz.curves({"英语": [1, 2], "中文": [2, 1]}, xlabel="步", ylabel="损失", alt=ALT)
    assert {"英语", "中文", "步", "损失"} < set(texts(plot))
    wide = viz.heatmap([[1.0]], ["汉字汉字汉字"], alt=ALT).panels[0].left
    narrow = viz.heatmap([[1.0]], ["abcdef"], alt=ALT).panels[0].left
    assert wide - narrow > 20  # a Chinese character is wider than a letter


def test_a_tensor_of_any_kind_is_drawn():
    plain = viz.heatmap(WEIGHTS.tolist(), alt=ALT).html
    for same in (WEIGHTS.requires_grad_(), WEIGHTS.double(), WEIGHTS.detach().numpy()):
        assert viz.heatmap(same, alt=ALT).html == plain
    assert viz.heatmap(WEIGHTS.bfloat16(), alt=ALT)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: viz.heatmap(WEIGHTS[0], alt=ALT), ValueError, r"weights must have 2 axes.*\(5,\)"),
        (
            lambda: viz.heatmap(np.ones((0, 3)), alt=ALT),
            ValueError,
            r"none empty; got shape \(0, 3\)",
        ),
        (lambda: viz.heatmap([["a"]], alt=ALT), TypeError, "weights must hold numbers"),
        (
            lambda: viz.heatmap(WEIGHTS, KEYS, alt=ALT),
            ValueError,
            "query_labels must be 3 labels; got 5",
        ),
        (lambda: viz.heatmap(WEIGHTS, None, QUERIES, alt=ALT), ValueError, "key_labels must be 5"),
        (lambda: viz.heatmap([[float("nan")]], alt=ALT), ValueError, "no nan"),
        (lambda: viz.heatmap([[float("inf")]], alt=ALT), ValueError, "no nan and no \\+inf"),
        (lambda: viz.heatmap(WEIGHTS, alt=ALT, vmax=-1.0), ValueError, "vmin must be below vmax"),
        (
            lambda: viz.heatmap(WEIGHTS, alt=ALT, color="pink"),
            ValueError,
            "color must be one of query",
        ),
        (lambda: viz.heatmap(WEIGHTS, alt=ALT, allowed=WEIGHTS), TypeError, "allowed must be bool"),
        (
            lambda: viz.heatmap(WEIGHTS, alt=ALT, allowed=np.ones((2, 5), bool)),
            ValueError,
            r"allowed of shape \(2, 5\) does not broadcast to \(3, 5\)",
        ),
        (lambda: viz.head_grid(WEIGHTS, alt=ALT), ValueError, "weights must have 3 axes"),
        (
            lambda: viz.head_grid(WEIGHTS[None], alt=ALT, titles=["a", "b"]),
            ValueError,
            "titles must be 1",
        ),
        (lambda: viz.head_grid(WEIGHTS[None], alt=ALT, ncols=0), ValueError, "ncols"),
        (lambda: viz.mask(torch.ones(3, 5)), TypeError, "mask must be bool.*float32"),
        (lambda: viz.mask(torch.ones(1, 1, 3, 5).bool()), ValueError, r"\(T, S\) or \(S,\)"),
        (lambda: viz.mask(torch.ones(3, 5).bool(), KEYS), ValueError, "query_labels must be 3"),
        (lambda: viz.shape_strip([]), ValueError, "at least one step"),
        (lambda: viz.shape_strip([("x", "B T", (2, 3, 8))]), ValueError, "step 'x'"),
        (lambda: viz.shape_strip([("x", "A B C D E", (1, 2, 3, 4, 5))]), ValueError, "one to four"),
        (lambda: viz.split_strip(num_heads=9), ValueError, "num_heads must be from 1 to 8; got 9"),
        (
            lambda: viz.split_strip(num_heads=4, head_dim=5),
            ValueError,
            "head_dim must be from 1 to 4",
        ),
        (
            lambda: viz.image_attention(np.ones((8, 8)), np.ones((1, 9)), 2, alt=ALT),
            ValueError,
            r"\(H, 16\)",
        ),
        (
            lambda: viz.image_attention(np.ones((8, 8)), np.ones((1, 9)), 3, alt=ALT),
            ValueError,
            "divide 8",
        ),
        (
            lambda: viz.image_attention(np.ones((65, 8)), np.ones((1, 1)), 1, alt=ALT),
            ValueError,
            "64 x 64",
        ),
        (
            lambda: viz.image_attention(np.ones((2, 2)), np.ones((1, 1)), 2, alt=ALT, query=1),
            ValueError,
            "query must be a patch from 0 to 0",
        ),
        (
            lambda: viz.image_attention(np.ones((2, 2)), -np.ones((1, 1)), 2, alt=ALT),
            ValueError,
            "not negative",
        ),
        (
            lambda: viz.image_attention(np.ones((2, 2)), np.ones((1, 1)), 2, alt=ALT, titles=[]),
            ValueError,
            "titles must be 1",
        ),
        (
            lambda: viz.image_attention(np.ones((2, 2)), np.ones((1, 1)), 2, alt=ALT, vmax=0),
            ValueError,
            "vmax must be positive; got 0",
        ),
        (lambda: viz.curves({}, xlabel="x", ylabel="y", alt=ALT), ValueError, "at least one line"),
        (
            lambda: viz.curves({"a": ([1], [1, 2])}, xlabel="x", ylabel="y", alt=ALT),
            ValueError,
            "'a'",
        ),
        (
            lambda: viz.curves(
                {"a": [1]}, bands={"b": ([0], [2])}, xlabel="x", ylabel="y", alt=ALT
            ),
            ValueError,
            "bands must be named like series",
        ),
        (
            lambda: viz.show("figure", alt=ALT),
            TypeError,
            "figure must be a matplotlib Figure; got str",
        ),
    ],
)
def test_wrong_input_is_refused_by_name(call, error, match):
    with pytest.raises(error, match=match):
        call()


# Heads, masks, shapes, images, plots --------------------------------------------------------------


def test_heads_share_one_scale_and_say_their_names():
    figure = viz.head_grid(torch.stack([WEIGHTS / 2, WEIGHTS / 4]), QUERIES, KEYS, alt=ALT, ncols=1)
    assert len(figure.panels) == 3  # two heads and the scale
    assert {"head 0", "head 1", "0", "0.4"} <= set(texts(figure))
    strongest = [
        max(re.findall(r'stroke-opacity="([\d.]+)" d="M\d', p.svg())) for p in figure.panels[:2]
    ]
    assert strongest == ["0.88", "0.44"]
    assert f"max-width:{figure.panels[0].width + 16:.2f}px" in figure.html
    assert {"left", "right"} <= set(
        texts(viz.head_grid(torch.stack([WEIGHTS] * 2), alt=ALT, titles=["left", "right"]))
    )


def test_a_mask_is_drawn_cell_by_cell():
    mask = torch.tensor([[True, False, False], [False, False, False]])
    figure = viz.mask(mask, ["a", "b"], ["x", "y", "z"], title="padding")
    assert hatched(figure) == {(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)}
    assert 'd="M0 0h1"' in figure.html
    shown = texts(figure)
    assert shown.count("← sees nothing") == 1
    assert {"padding", "may attend", "may not", "a", "b", "x", "y", "z"} <= set(shown)
    assert figure.alt == (
        "Mask of 2 queries by 3 keys: 1 of 6 pairs may attend. Rows that see nothing: b."
    )
    assert "sees nothing" not in str(texts(viz.mask(mask[:1])))
    reads = viz.mask(mask[:1], meaning=("reads", "does not"))
    assert {"reads", "does not"} <= set(texts(reads))
    assert not {"may attend", "may not"} & set(texts(reads))


def test_a_key_mask_holds_for_all_queries():
    keys = torch.tensor([True, True, False])
    assert hatched(viz.mask(keys)) == {(0, 2)}
    assert hatched(viz.mask(keys, ["a", "b"])) == {(0, 2), (1, 2)}
    assert "← sequences" in texts(viz.mask(keys[None], rows="sequences"))


def test_a_shape_strip_names_every_shape():
    figure = ALL["shape_strip"]()
    assert len(figure.panels) == 2
    assert {"x", "(B, T, E)", "(2, 3, 8)", "split_heads", "(B, H, T, D)", "(2, 2, 3, 4)"} <= set(
        texts(figure)
    )
    assert figure.alt.startswith(
        "The shape, step by step: x gives (B, T, E) = (2, 3, 8); split_heads"
    )
    assert "(+8 more)" in str(texts(viz.shape_strip([("x", "B H T D", (1, 12, 3, 4))])))


def test_the_split_strip_draws_what_the_package_computes():
    batch, length, heads, width = 2, 3, 2, 4
    figure = viz.split_strip(batch, length, heads, width)

    def cells(panel):
        return re.findall(r">([a-f]\d+)</text>", panel.svg())

    x = [f"{token}{feature}" for token in "abc" for feature in range(8)]  # (T, H*D)
    by_head = [
        f"{token}{4 * h + d}" for h in range(2) for token in "abc" for d in range(4)
    ]  # (H, T, D)
    assert [cells(panel) for panel in figure.panels] == [x, x, by_head, x, x]
    colours = re.findall(r'stroke="(#\w+)"', figure.panels[2].svg())
    assert colours == [viz.HEAD_COLORS[0]] * 3 + [viz.HEAD_COLORS[1]] * 3
    assert {"(B, T, H·D)", "(2, 3, 8)", "(2, 2, 3, 4)", "H 0", "H 1"} <= set(texts(figure))


def test_the_split_strip_shows_a_wrong_split(monkeypatch):
    def wrong(x, num_heads):  # a view in place of a transpose: the classic mistake
        return x.view(x.shape[0], num_heads, x.shape[1], -1)

    right = viz.split_strip().html
    monkeypatch.setattr(viz.shapes, "split_heads", wrong)
    assert viz.split_strip().html != right


def test_image_attention_draws_each_patch_where_it_is():
    image = np.zeros((4, 6))
    image[3, 5] = 2.0
    weights = np.array([[0.1, 0.0, 0.6, 0.0, 0.3, 0.0]])  # 2 x 3 patches
    figure = viz.image_attention(image, weights, 2, alt=ALT, query=1)
    picture = figure.panels[0].svg()
    pixel, side = 24, 48
    for patch, weight in enumerate(weights[0]):
        x, y = 1 + patch % 3 * side, 21 + patch // 3 * side + side // 2
        if weight:
            level = round(weight / 0.6, 2)
            assert re.search(rf'd="M{x} {y}h{side}"[^>]*stroke-opacity="{level:g}"', picture)
    (dot,) = re.findall(
        r'<path d="M([\d.]+) ([\d.]+)h([\d.]+)v', picture.split('stroke-width="48"')[-1]
    )[:1]
    assert float(dot[0]) + float(dot[2]) / 2 == pytest.approx(1 + 5.5 * pixel)
    assert float(dot[1]) + float(dot[2]) / 2 == pytest.approx(21 + 3.5 * pixel)
    assert {"head 0", "strongest patch: 0.60", "the patch that asks"} <= set(texts(figure))
    assert f"M{1 + 2 * side + 1} 22h{side - 2}" in picture  # the frame of the strongest patch
    assert "stroke-dasharray" in picture
    assert "stroke-dasharray" not in viz.image_attention(image, weights, 2, alt=ALT).html


def test_curves_differ_by_more_than_colour():
    figure = viz.curves(
        {name: [1, 2, i] for i, name in enumerate("abcd")},
        xlabel="step",
        ylabel="loss (nats)",
        alt=ALT,
    )
    assert {"a", "b", "c", "d", "step", "loss (nats)"} <= set(texts(figure))
    svg = figure.panels[0].svg()
    lines = re.findall(
        r'd="M [^"z]*" clip-path[^>]*style="fill: none;([^"]*stroke-width: 2[^"]*)"', svg
    )
    assert len(lines) == 4
    assert len({re.sub(r"stroke: #\w+", "", line) for line in lines}) == 4


def test_curves_pass_through_their_points():
    figure = viz.curves({"a": ([0, 1, 2], [0.0, 1.0, 3.0])}, xlabel="x", ylabel="y", alt=ALT)
    (points,) = re.findall(r'd="(M [^"z]*)" clip-path[^>]*stroke-width: 2;', figure.panels[0].svg())
    x, y = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", points), float).T
    assert np.diff(x)[0] == pytest.approx(np.diff(x)[1], abs=0.03)
    assert np.diff(y)[1] == pytest.approx(2 * np.diff(y)[0], abs=0.05)
    assert y[0] > y[2]


def test_bands_lines_and_logarithmic_axes_are_drawn():
    shown = texts(ALL["curves"]())
    assert {"2", "4", "8", "uniform", "scaled", "unscaled"} <= set(shown)
    plain = viz.curves({"a": [1, 10, 100]}, xlabel="x", ylabel="y", alt=ALT)
    logged = viz.curves({"a": [1, 10, 100]}, xlabel="x", ylabel="y", alt=ALT, logy=True)
    assert plain.html != logged.html
    assert "1.0" in texts(viz.curves({"a": [0.5]}, xlabel="x", ylabel="y", alt=ALT, ylim=(0, 1)))


def test_a_plot_of_ones_own_follows_the_page():
    figure, axes = viz.subplots(1, 2, width=500, sharey=True)
    axes[0].plot([0, 1], [0, 1], color=viz.INK, label="1.00 #000000")
    axes[0].legend()
    page = Page(viz.show(figure, alt=ALT).html)
    assert "1.00 #000000" in page.texts  # a label is not a coordinate, nor a colour
    assert "#ffffff" not in str(page.tags)
    assert "currentColor" in str(page.tags)
    (svg,) = (a for tag, a in page.tags if tag == "svg")
    assert svg["width"] == "500"


def test_only_plots_need_matplotlib():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import mha\n"
        "from mha import viz\n"
        f"viz.heatmap([[1.0]], alt={ALT!r}); viz.split_strip()\n"
        "try:\n    viz.subplots()\n"
        "except ImportError as error:\n    print(error)\n"
    )
    assert 'pip install "mha[viz]"' in run(code)
