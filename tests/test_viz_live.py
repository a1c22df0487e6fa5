"""Controls in a running notebook, and their still twin on a page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jupyter_client.manager import start_new_kernel

import mha
from mha import viz
from mha._extras import watched

VIEW = "application/vnd.jupyter.widget-view+json"
CHAPTERS = sorted((Path(__file__).parent.parent / "chapters").glob("*.ipynb"))
ALT = "weights of two settings"
START = {"sentence": "a b c", "causal": False, "scale": 1.0, "shown": "weights"}
CONTROLS = {"sentence": str, "causal": bool, "scale": [0.0, 1.0, 4.0], "shown": ["weights", "mask"]}


def weights(sentence: str, causal: bool, scale: float):
    """Attention weights (T, S) of numbered words, by the package."""
    x = torch.arange(1.0, 1 + len(sentence.split()))[None, :, None] / 4  # (H, T, D)
    options = {"is_causal": causal, "scale": scale, "return_weights": True}
    return mha.scaled_dot_product_attention(x, x, x, **options)[1][0]


def picture(sentence, causal, scale, shown):
    if not sentence:
        raise ValueError("<nothing> to look at")
    table = weights(sentence, causal, scale)
    if shown == "mask":
        return viz.mask(table > 0)
    return viz.heatmap(table, vmax=1, alt=f"weights of {sentence} here")


@pytest.fixture
def figure():
    return viz.live(picture, [START, START | {"causal": True}], alt=ALT, columns=2, **CONTROLS)


@pytest.fixture
def parts(figure):
    """The controls by their labels, and the figure they set."""
    *controls, live = figure.widget().children
    return {control.description: control for control in controls}, live


@pytest.mark.parametrize("seen", [True, False])
def test_still_twin_is_always_there(figure, shown, seen):
    html = shown(figure, seen)[-1]["text/html"]
    twins = [picture(**START).panels[0].svg(), picture(**START | {"causal": True}).panels[0].svg()]
    assert all(svg in html for svg in twins)
    assert html.count("<svg") == 2
    assert f'role="img" aria-label="{ALT}" style="display:flex' in html
    assert f"max-width:{2 * (figure.panels[0].width + 16):g}px" in html
    assert not re.search(r"<(script|input|select|button|link|img)\b|https?://(?!www.w3.org)", html)


def test_a_page_gets_no_widget(figure, shown):
    [twin] = shown(figure, seen=False)
    assert twin == {"text/plain": f"Figure({ALT!r})", "text/html": figure.html}


def test_a_running_notebook_gets_the_widget_above_the_twin(figure, shown):
    widget, twin = shown(figure, seen=True)
    assert type(widget).__name__ == "VBox"
    assert [child.description for child in widget.children[:-1]] == list(CONTROLS)
    assert twin["text/html"] == figure.html


def test_output_is_the_same_to_the_letter(figure, shown):
    again = viz.live(picture, [START, START | {"causal": True}], alt=ALT, columns=2, **CONTROLS)
    assert shown(figure, False) == shown(again, False)


def test_each_kind_of_control_is_labelled_and_starts_at_the_first_setting(parts):
    controls, live = parts
    kinds = {label: type(control).__name__ for label, control in controls.items()}
    assert kinds == {
        "sentence": "Text",
        "causal": "Checkbox",
        "scale": "SelectionSlider",
        "shown": "Dropdown",
    }
    assert {label: control.value for label, control in controls.items()} == START
    assert live.value == picture(**START).html


def test_label_of_a_control_reads_as_words():
    figure = viz.live(
        lambda head_width: picture(**START), [{"head_width": 4}], alt=ALT, head_width=[4]
    )
    assert figure.widget().children[0].description == "head width"


@pytest.mark.parametrize(
    ("label", "value"),
    [("sentence", "a b c d e"), ("causal", True), ("scale", 4.0), ("shown", "mask")],
)
def test_moving_a_control_redraws_with_the_numbers_of_the_package(parts, label, value):
    controls, live = parts
    before = live.value
    controls[label].value = value
    setting = START | {label: value}
    assert live.value == picture(**setting).html != before
    if setting.pop("shown") == "weights":
        written = re.findall(r'<text x="[\d.]+" y="[\d.]+">(\d\.\d\d)</text>', live.value)
        exact = weights(**setting).flatten().tolist()
        assert sorted(written) == sorted(f"{p:.2f}" for p in exact)


def test_an_error_is_shown_and_the_next_figure_comes_back(parts):
    controls, live = parts
    controls["sentence"].value = ""
    assert live.value == '<p role="alert">ValueError: &lt;nothing&gt; to look at</p>'
    controls["sentence"].value = "a b"
    assert live.value == picture(**START | {"sentence": "a b"}).html


def test_two_displays_do_not_share_their_controls(figure):
    one, other = figure.widget(), figure.widget()
    one.children[0].value = "something else"
    assert other.children[0].value == "a b c"


def test_without_ipywidgets_the_twin_says_how_to_get_controls(figure, shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    [twin] = shown(figure, seen=True)
    assert twin["text/html"].startswith(figure.html)
    assert twin["text/html"].count("<code>pip install ipywidgets</code>") == 1
    [page] = shown(figure, seen=False)
    assert page["text/html"] == figure.html
    with pytest.raises(ImportError, match=r'needs ipywidgets: pip install "mha\[viz\]"'):
        figure.widget()


def test_drawing_the_twin_loads_no_widgets():
    code = (
        "import sys\n"
        "from mha import viz\n"
        "draw = lambda n: viz.heatmap([[0.5] * n], alt='one row of weights')\n"
        "figure = viz.live(draw, [{'n': 2}], alt='one row of weights', n=[2, 3])\n"
        "figure._repr_html_(), repr(figure)\n"
        "print({'ipywidgets', 'IPython', 'matplotlib'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("still", "message"),
    [
        ([], "still must hold at least one setting; got none"),
        ([{"n": 2}], r"still must set \['n', 'words'\]; got \['n'\]"),
        ([{"n": 2, "words": "a", "m": 3}], r"got \['m', 'n', 'words'\]"),
        ([{"n": 9, "words": "a"}], r"still must set n to one of \[2, 3\]; got 9"),
        ([{"n": 2, "words": 5}], r"still must set words to one of <class 'str'>; got 5"),
    ],
)
def test_still_settings_that_do_not_fit_the_controls_are_refused(still, message):
    with pytest.raises(ValueError, match=message):
        viz.live(lambda n, words: picture(**START), still, alt=ALT, n=[2, 3], words=str)


def test_alt_must_describe():
    with pytest.raises(ValueError, match="at least four words"):
        viz.live(lambda n: picture(**START), [{"n": 1}], alt="weights", n=[1])


@pytest.mark.parametrize("variable", ["1", "0", "", None])
def test_nobody_watches_where_the_environment_says_so(monkeypatch, variable):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    if variable is not None:
        monkeypatch.setenv("TQDM_DISABLE", variable)
    assert watched() == (variable != "1")


@pytest.mark.slow
def test_a_kernel_knows_whether_someone_watches(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    manager, client = start_new_kernel()
    try:
        seen = {}
        for allow_stdin in (True, False):

            def keep(message, allow_stdin=allow_stdin):
                if message["msg_type"] == "stream":
                    seen[allow_stdin] = message["content"]["text"].strip()

            code = "from mha._extras import watched; print(watched())"
            client.execute_interactive(code, allow_stdin=allow_stdin, output_hook=keep, timeout=120)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert seen == {True: "True", False: "False"}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_no_chapter_holds_a_widget_that_is_dead(path):
    notebook = json.loads(path.read_text(encoding="utf8"))
    assert "widgets" not in notebook["metadata"]
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            assert VIEW not in output.get("data", {}), "".join(cell["source"])


@pytest.mark.parametrize("name", ["05-4-masks", "10-2-alignment", "10-5-numerics"])
def test_chapters_with_controls_have_a_twin(name):
    [path] = [path for path in CHAPTERS if path.stem == name]
    cells = json.loads(path.read_text(encoding="utf8"))["cells"]
    [cell] = [cell for cell in cells if "viz.live(" in "".join(cell["source"])]
    [output] = cell["outputs"]
    assert "".join(output["data"]["text/html"]).count("<svg") in (4, 6)
