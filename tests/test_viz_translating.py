"""Tables of sentences, and the field in which one can type one's own."""

import subprocess
import sys

import pytest
from bs4 import BeautifulSoup

from mha import viz

LANGUAGES = {"English": "en", "Spanish": "es"}
CAPTION = "What the model says"


class Turner:
    """Stands for a translator: turns texts round, and refuses what begins with a mark."""

    def translate(self, texts):
        if isinstance(texts, str):
            if not texts or texts.startswith("!"):
                raise ValueError(f"<no> {texts}")
            return texts[::-1]
        return [text[::-1] for text in texts]


@pytest.fixture
def field():
    return viz.translate_field(Turner(), ["<b> & c", "def"], caption=CAPTION, languages=LANGUAGES)


def parsed(html):
    return BeautifulSoup(html, "html.parser")


def test_the_page_has_a_table_and_nothing_else(field, shown):
    [page] = shown(field, seen=False)
    assert page == {"text/plain": repr(field), "text/html": field.html}
    table = parsed(page["text/html"]).table
    assert table.caption.text == CAPTION
    heads = table.thead.find_all("th")
    assert [(h.text, h["scope"]) for h in heads] == [("English", "col"), ("Spanish", "col")]
    rows = [[(c.text, c["lang"]) for c in r.find_all("td")] for r in table.tbody.find_all("tr")]
    assert rows == [
        [("<b> & c", "en"), ("c & >b<", "es")],
        [("def", "en"), ("fed", "es")],
    ]
    assert "<script" not in page["text/html"] and "<input" not in page["text/html"]


def test_all_texts_are_escaped():
    table = viz.sentence_table(
        {"<i>": ["<script>"], "b&": ['"']}, caption="<u>", languages={"b&": '"'}
    )
    found = parsed(table.html)
    assert not found.find(["i", "script", "u"])
    assert [cell.text for cell in found.find_all(["caption", "th", "td"])] == [
        "<u>",
        "<i>",
        "b&",
        "<script>",
        '"',
    ]
    assert found.find_all("td")[1]["lang"] == '"'


def test_a_column_without_a_language_has_none():
    table = viz.sentence_table(
        {"a": ["x"], "b": ["y"]}, caption="c", languages={"b": "es", "d": "fr"}
    )
    assert [cell.get("lang") for cell in parsed(table.html).find_all("td")] == [None, "es"]
    assert repr(table) == "c\nx | y" and table._repr_html_() == table.html


def test_those_who_watch_get_the_field_above_the_table(field, shown):
    widget, twin = shown(field, seen=True)
    assert twin["text/html"] == field.html
    text, said = widget.children
    assert type(text).__name__ == "Text" and not text.continuous_update
    assert (text.description, text.value) == ("English", "<b> & c")
    assert (
        said.description == "Spanish" and said.value == '<span lang="es">c &amp; &gt;b&lt;</span>'
    )


def test_typing_translates(field):
    text, said = field.widget().children
    text.value = "<new>"
    assert said.value == '<span lang="es">&gt;wen&lt;</span>'


def test_an_error_is_shown_and_the_next_translation_comes_back(field):
    text, said = field.widget().children
    text.value = ""
    assert said.value == '<p role="alert">ValueError: &lt;no&gt; </p>'
    text.value = "!<"
    assert said.value == '<p role="alert">ValueError: &lt;no&gt; !&lt;</p>'
    text.value = "ab"
    assert parsed(said.value).text == "ba"


def test_two_displays_do_not_share_their_field(field):
    one, other = field.widget(), field.widget()
    one.children[0].value = "something else"
    assert other.children[0].value == "<b> & c"


def test_without_ipywidgets_the_table_says_how_to_get_the_field(field, shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    [twin] = shown(field, seen=True)
    assert twin["text/html"].startswith(field.html)
    assert twin["text/html"].count("<code>pip install ipywidgets</code>") == 1


def test_drawing_the_table_loads_no_widgets():
    code = (
        "import sys\n"
        "from mha import viz\n"
        "viz.sentence_table({'a': ['b']}, caption='c')._repr_html_()\n"
        "print({'ipywidgets', 'IPython', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        ({}, {}, ValueError, r"columns must be at least one, all of one length; got \{\}"),
        ({"a": ["x"], "b": []}, {}, ValueError, r"got \{'a': 1, 'b': 0\}"),
        ({"a": [3]}, {}, TypeError, "column 'a' must hold str; got int"),
        ({"a": ["x"]}, {"caption": " "}, ValueError, "caption must say what the table shows"),
    ],
)
def test_tables_that_do_not_fit_are_refused(columns, options, error, message):
    with pytest.raises(error, match=message):
        viz.sentence_table(columns, **({"caption": "c"} | options))


@pytest.mark.parametrize(
    ("texts", "languages", "message"),
    [
        ([], LANGUAGES, r"texts must be a list of at least one text; got \[\]"),
        ("abc", LANGUAGES, "texts must be a list of at least one text; got 'abc'"),
        (["a"], {"English": "en"}, r"languages must name two columns, from and to; got \{'Engl"),
    ],
)
def test_fields_that_do_not_fit_are_refused(texts, languages, message):
    with pytest.raises(ValueError, match=message):
        viz.translate_field(Turner(), texts, caption=CAPTION, languages=languages)
