"""The attention explorer: what it takes, what it packs, and how it lives with a kernel and without."""

import base64
import json
import re
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from mha import masks, viz
from mha.viz import explorer_view
from mha.viz.live_page import joined

VIEW = "application/vnd.jupyter.widget-view+json"
ALT = "weights of a small example"
SCRIPT = joined(viz.AttentionExplorer.scripts)
STYLE = joined(viz.AttentionExplorer.styles)
L, H, T, S = 2, 3, 4, 5
QUERIES, KEYS = list("abcd"), list("vwxyz")


def weights(*shape, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(shape[-1], 0.5), shape[:-1])


def explorer(**options):
    given = {"weights": weights(L, H, T, S), "query_tokens": QUERIES, "key_tokens": KEYS}
    return viz.AttentionExplorer(**(given | {"alt": ALT} | options))


def attend(text):
    """Equal weights over the words of a text."""
    words = text.split()
    if not words:
        raise ValueError("<no> words")
    return {
        "weights": np.full((1, 2, len(words), len(words)), 1 / len(words)),
        "query_tokens": words,
    }


def state(figure) -> dict:
    """What the page hands to the script."""
    return json.loads(re.search(r" mount\(el, (.*)\);\n</script>$", figure.html)[1])


def packed(figure) -> np.ndarray:
    """The weights of the page, (L, H, T, S)."""
    one = state(figure)["data"]
    view = one["views"][0]
    shape = (len(one["layers"]), one["heads"], len(view["q"]), len(view["k"]))
    return np.array(view["w"]).reshape(shape)


@pytest.mark.parametrize("shape", [(L, H, T, S), (H, T, S), (T, S)])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_page_holds_the_weights_rounded_to_thousandths(shape, kind):
    given = weights(*shape)
    found = packed(explorer(weights=kind(given)))
    assert found.shape == (1,) * (4 - len(shape)) + shape
    assert (found.reshape(shape) / 1000 == given.round(3)).all()


def test_masked_cells_are_marked_and_their_weights_dropped():
    allowed = masks.causal(T, S)
    found = packed(explorer(allowed=allowed))
    assert ((found == -1) == ~allowed.numpy()).all()
    per_head = np.ones((1, H, 1, S), dtype=bool)
    per_head[:, 1, :, 2] = False
    found = packed(explorer(allowed=per_head))
    assert (found[:, 1, :, 2] == -1).all() and (found == -1).sum() == L * T


def test_entropy_is_that_of_the_exact_rows():
    given = weights(L, H, T, S)
    exact = -(given * np.log2(given)).sum(-1)
    view = state(explorer(weights=given))["data"]["views"][0]
    assert np.abs(np.array(view["e"]).reshape(L, H, T) / 100 - exact).max() <= 0.005 + 1e-9
    assert explorer_view.entropy(np.full((2, 8), 1 / 8)).tolist() == [3.0, 3.0]
    assert explorer_view.entropy(np.array([0.0, 0.2, 0.2])) == 1.0  # a row is divided by its sum
    assert explorer_view.entropy(np.array([0.0, 1.0])) == 0.0


def test_a_row_that_sees_nothing_has_no_entropy():
    allowed = np.ones((T, S), dtype=bool)
    allowed[2] = False
    view = state(explorer(allowed=allowed))["data"]["views"][0]
    assert {i % T for i, e in enumerate(view["e"]) if e == -1} == {2}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": weights(2, 2, 2, T, S)}, ValueError, "weights must have 4 axes"),
        ({"weights": np.zeros((0, S))}, ValueError, "weights must have 2 axes, none empty"),
        ({"weights": weights(T, S) + 1}, ValueError, "weights must lie between 0 and 1 where"),
        ({"weights": -weights(T, S)}, ValueError, "between 0 and 1"),
        ({"weights": np.full((T, S), np.nan)}, ValueError, "between 0 and 1"),
        ({"weights": [["a"]]}, TypeError, "weights must hold numbers"),
        ({"query_tokens": "abc"}, ValueError, "query_tokens must be 4 tokens; got 3"),
        ({"key_tokens": ["a"]}, ValueError, "key_tokens must be 5 tokens; got 1"),
        ({"key_tokens": None}, ValueError, "key_tokens must be 5 tokens; got None"),
        ({"allowed": np.ones((T, S))}, TypeError, "allowed must be bool"),
        ({"allowed": np.ones((S, T), bool)}, ValueError, "allowed of shape"),
        ({"layer_names": ["one"]}, ValueError, "layer_names must be 2 names; got 1"),
        ({"alt": "weights"}, ValueError, "at least four words"),
        ({"head": 3}, ValueError, "head must be from 0 to 2; got 3"),
        ({"layer": -1}, ValueError, "layer must be from 0 to 1; got -1"),
        ({"query": 4}, ValueError, "query must be from 0 to 3"),
        ({"key": 5}, ValueError, "key must be from 0 to 4"),
        ({"step": 4}, ValueError, "step must be from 0 to 3"),
        ({"head": "one"}, TypeError, "head must be an integer; got 'one'"),
        ({"view": "table"}, ValueError, "view must be 'lines' or 'heat'; got 'table'"),
        ({"patches": (1, 5)}, ValueError, "patches must come with an image"),
        ({"image": np.zeros((4, 4))}, ValueError, "patches must be .rows, columns."),
        ({"image": np.zeros((4, 4)), "patches": (2, 3)}, ValueError, "must divide 4 x 4 pixels"),
        ({"image": np.zeros((4, 4)), "patches": (2, 4)}, ValueError, "at most the 5 keys"),
        ({"image": np.zeros((4, 4, 4)), "patches": (2, 2)}, ValueError, "h, w, 3.; got shape"),
        ({"image": np.zeros((129, 4)), "patches": (1, 1)}, ValueError, "at most 128 x 128"),
        ({"image": np.full((4, 4), np.inf), "patches": (2, 2)}, ValueError, "finite numbers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        explorer(**options)


def test_weights_that_are_hidden_may_be_anything():
    given = weights(T, S)
    given[0, 1:] = np.nan
    allowed = masks.causal(T, S)
    assert (packed(explorer(weights=given, allowed=allowed))[0, 0, 0, 1:] == -1).all()


def test_keys_are_the_queries_where_none_are_given():
    own = state(explorer(weights=weights(T, T), key_tokens=None))["data"]["views"][0]
    assert own["k"] == own["q"] == QUERIES and own["own"]
    assert not state(explorer())["data"]["views"][0]["own"]
    bare = viz.AttentionExplorer(weights(2, 3), alt=ALT)
    assert [state(bare)["data"]["views"][0][name] for name in "qk"] == [["0", "1"], ["0", "1", "2"]]


def test_tokens_show_spaces_and_long_ones_are_cut():
    tokens = [" a", "\n", "x" * 50, "中文"]
    found = state(explorer(query_tokens=tokens))["data"]["views"][0]["q"]
    assert found == ["␣a", "⏎", "x" * 39 + "…", "中文"]


class Tags(HTMLParser):
    """The tags of a page, and the text of its scripts."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.inside = [], [], False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag == "script"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts.append(data)


def test_a_token_cannot_leave_its_place():
    evil = [
        "<img src=x onerror=alert(1)>",
        "</script><script>alert(1)</script>",
        "<!--",
        "]]>&amp;",
    ]
    attacked = explorer(query_tokens=evil, title="</style><b>", layer_names=["<i>", "</div>"])
    tags = Tags(attacked.html)
    assert set(tags.tags) <= {"style", "div", "svg", "g", "path", "text", "script"}
    assert tags.tags.count("script") == 1
    [script] = [text for text in tags.scripts if "mount(el" in text]
    assert "<img" not in script and "</" not in script
    assert state(attacked)["data"]["views"][0]["q"] == [explorer_view.visible(t, 40) for t in evil]


def test_output_is_the_same_to_the_letter_and_names_itself_by_its_content():
    one, other = explorer().html, explorer(head=1).html
    assert one == explorer().html != other
    names = [re.search(r'data-mha="(\w+)"', html)[1] for html in (one, other)]
    assert len(set(names)) == 2
    assert " id=" not in one


def test_a_figure_stays_small_and_so_does_the_script():
    assert len(SCRIPT.encode()) < 15_000
    tokens = [f"token{n}" for n in range(12)]
    figure = viz.AttentionExplorer(weights(2, 8, 12, 12), tokens, alt=ALT)
    rest = figure.html.replace(SCRIPT, "").replace(STYLE, "")
    assert len(rest.encode()) < 20_000


def test_script_and_style_ask_for_nothing_from_outside():
    for text in (SCRIPT, STYLE):
        text = text.replace("http://www.w3.org/", "")
        assert not re.search(
            r"https?:|innerHTML|outerHTML|insertAdjacent|\beval\b|fetch|@import|url\(", text
        )


def test_without_a_script_there_is_the_still_heat_map():
    figure = explorer(head=2, layer=1, title="A study", allowed=masks.causal(T, S))
    still = viz.heatmap(
        weights(L, H, T, S)[1, 2].round(3) * masks.causal(T, S).numpy(), QUERIES, KEYS, alt=ALT,
        title="A study: layer 1, head 2", allowed=masks.causal(T, S), annotate=False,
    )  # fmt: skip
    assert still.html in figure.html


def decoded(uri: str) -> np.ndarray:
    """The pixels of an uncompressed PNG in a data URI, by zlib."""
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    place, parts = 8, {}
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        name, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", data, place + 8 + length)[0] == zlib.crc32(name + body)
        parts[name], place = body, place + 12 + length
    width, height, depth, kind = struct.unpack_from(">IIBB", parts[b"IHDR"])
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, -1)
    assert depth == 8 and (rows[:, 0] == 0).all()
    return rows[:, 1:].reshape((height, width) if kind == 0 else (height, width, 3))


@pytest.mark.parametrize("shape", [(4, 6), (128, 128, 3)])
def test_a_picture_is_embedded_pixel_by_pixel(shape):
    image = np.random.default_rng(0).integers(0, 256, shape)
    image.flat[:2] = 0, 255
    view = state(explorer(weights=weights(4, 5), query_tokens=None, key_tokens=None, image=image,
                          patches=(2, 2)))["data"]["views"][0]  # fmt: skip
    assert (decoded(view["image"]["src"]) == image).all()
    assert view["image"]["lead"] == 1 and view["image"]["grid"] == [2, 2]
    assert view["k"] == ["class", "patch 0", "patch 1", "patch 2", "patch 3"]


def test_an_even_picture_and_a_square_one_have_names():
    figure = viz.AttentionExplorer(weights(4, 4), alt=ALT, image=np.ones((2, 2)), patches=(2, 2))
    view = state(figure)["data"]["views"][0]
    assert view["q"] == view["k"] == [f"patch {n}" for n in range(4)] and view["own"]
    assert (decoded(view["image"]["src"]) == 0).all()


def test_drawing_the_page_loads_no_widgets():
    code = (
        "import sys\n"
        "from mha import viz\n"
        "figure = viz.AttentionExplorer([[0.5, 0.5]], alt='one row of weights')\n"
        "figure.head = 0\n"
        "figure.html, repr(figure), figure.still().html\n"
        "print({'anywidget', 'ipywidgets', 'traitlets', 'IPython', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def bundle(figure, monkeypatch, seen):
    monkeypatch.setattr("mha.viz.live_page.watched", lambda: seen)
    made = figure._repr_mimebundle_()
    return made[0] if isinstance(made, tuple) else made


def test_a_page_gets_no_widget(monkeypatch):
    figure = explorer()
    text = "AttentionExplorer(2 layers, 3 heads, 4 queries, 5 keys)"
    assert bundle(figure, monkeypatch, False) == {"text/plain": text, "text/html": figure.html}


def test_a_running_notebook_gets_the_widget_and_its_twin(monkeypatch):
    figure = explorer()
    made = bundle(figure, monkeypatch, True)
    assert made["text/html"] == figure.html
    assert made[VIEW]["model_id"] == figure.widget().model_id


def test_without_anywidget_the_twin_says_how_to_get_it(monkeypatch):
    figure = explorer()
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "mha.viz.explorer_live", raising=False)
    made = bundle(figure, monkeypatch, True)
    assert VIEW not in made and made["text/html"].startswith(figure.html)
    assert made["text/html"].count("<code>pip install anywidget</code>") == 1
    with pytest.raises(ImportError, match=r'needs anywidget: pip install "mha\[viz\]"'):
        figure.widget()


def test_traits_are_one_state_in_python_and_in_the_view():
    figure = explorer(head=1)
    figure.layer = 1
    live, heard = figure.widget(), []
    assert (live.layer, live.head) == (1, 1)
    assert live is figure.widget()
    figure.observe(lambda change: heard.append(change["new"]), "query")
    live.set_state({"query": 2, "key": None, "view": "heat"})  # as a front-end does
    figure.query = 3
    assert heard == [2, 3]
    assert (figure.query, figure.view, live.query) == (3, "heat", 3)
    assert live.data == json.loads(json.dumps(figure._data))


def test_a_trait_refuses_what_is_not_there_with_a_view_and_without():
    figure = explorer()
    for _ in range(2):
        with pytest.raises(ValueError, match="head must be from 0 to 2; got 9"):
            figure.head = 9
        figure.widget()
    with pytest.raises(ValueError, match="head must be from 0 to 2; got 9"):
        figure.widget().head = 9
    assert figure.head == 0


def test_widget_has_the_same_script():
    live = explorer().widget()
    assert live._esm.startswith(SCRIPT) and live._css == STYLE


def test_page_follows_the_traits():
    figure = explorer()
    figure.head, figure.view = 2, "heat"
    figure.widget().key = 1
    found = state(figure)
    assert (found["head"], found["view"], found["key"]) == (2, "heat", 1)


def test_texts_make_a_menu():
    figure = viz.AttentionExplorer.over(attend, ["a b", "c d e"], alt=ALT, label="line")
    found = state(figure)["data"]
    assert found["label"] == "line"
    assert [(view["name"], view["q"]) for view in found["views"]] == [
        ("a b", ["a", "b"]), ("c d e", ["c", "d", "e"])
    ]  # fmt: skip
    figure.query = 1
    figure.example = 1
    assert (figure.query, figure.step, figure.example) == (None, 2, 1)
    figure.query = 2
    with pytest.raises(ValueError, match="example must be from 0 to 1"):
        figure.example = 2


@pytest.mark.parametrize("texts", ["a b", []])
def test_texts_must_be_a_list(texts):
    with pytest.raises(ValueError, match="texts must be a list of at least one text"):
        viz.AttentionExplorer.over(attend, texts, alt=ALT)


def test_all_texts_have_the_same_heads():
    def grow(text):
        return {"weights": weights(len(text), 1, 2, 2)}

    with pytest.raises(
        ValueError, match=r"attend must give \(1, 1\) layers and heads; got \(2, 1\)"
    ):
        viz.AttentionExplorer.over(grow, ["a", "bc"], alt=ALT)


def test_a_reader_looks_at_a_text_of_their_own():
    figure = viz.AttentionExplorer.over(attend, ["a b", "c d e"], alt=ALT, steps=True)
    field, said, live = figure.widget().children
    assert field.description == "your own text"
    field.value = "one two three four"
    assert (figure.example, figure.step) == (2, 3)
    assert live.data["views"][2]["q"] == ["one", "two", "three", "four"]
    field.value = "a b"  # is in the menu already
    assert figure.example == 0 and len(live.data["views"]) == 3
    assert said.value == ""


def test_an_error_of_attend_is_shown_to_the_reader():
    def only_known(text):
        if "?" in text:
            raise ValueError(f"<{text}> is unknown")
        return attend(text)

    figure = viz.AttentionExplorer.over(only_known, ["a b"], alt=ALT)
    field, said, _ = figure.widget().children
    field.value = "why?"
    assert said.value == '<p role="alert">ValueError: &lt;why?&gt; is unknown</p>'
    assert figure.example == 0
    field.value = "c d"
    assert said.value == "" and figure.example == 1


def test_show_needs_a_function():
    with pytest.raises(ValueError, match="show needs an explorer made by AttentionExplorer.over"):
        explorer().show("a b")


def test_saved_page_stands_alone(tmp_path):
    figure = explorer(title="Cross <attention>")
    figure.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf8")
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert '<meta charset="utf-8">' in page and 'name="viewport"' in page
    assert "<title>Cross &lt;attention&gt;</title>" in page
    assert figure.html in page
    assert not re.search(r'(src|href)="?https?:', page)
