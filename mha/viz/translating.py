"""Sentences beside their translations: a table on every page, a text field where a notebook runs."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from mha._extras import require
from mha.viz.controls import Live
from mha.viz.svg import BOX

if TYPE_CHECKING:
    from mha.models.translator import Translator

CELL = "text-align:left;vertical-align:top;padding:.3em .9em .3em 0;"
LINE = "border-bottom:1px solid color-mix(in srgb,currentColor 25%,transparent);"


class SentenceTable:
    """A table of texts as plain HTML, which says in what language they are."""

    def __init__(self, columns: dict[str, list[str]], caption: str, languages: Mapping[str, str]):
        self.columns, self.caption, self.languages = columns, caption, languages

    @property
    def html(self) -> str:
        """The table as HTML, the same to the letter each time."""
        head = "".join(
            f'<th scope="col" style="{CELL}{LINE}">{escape(name)}</th>' for name in self.columns
        )
        marks = [
            f' lang="{escape(self.languages[name])}"' if name in self.languages else ""
            for name in self.columns
        ]
        body = "".join(
            "<tr>"
            + "".join(
                f'<td{mark} style="{CELL}{LINE}">{escape(text)}</td>'
                for mark, text in zip(marks, row, strict=True)
            )
            + "</tr>"
            for row in zip(*self.columns.values(), strict=True)
        )
        return (
            f'{BOX}<div class="mha-figure" style="overflow-x:auto;margin:.5em 0">'
            '<table style="border-collapse:collapse;line-height:1.4">'
            f'<caption style="{CELL}caption-side:top;font-weight:bold">{escape(self.caption)}'
            f"</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        lines = [self.caption]
        for row in zip(*self.columns.values(), strict=True):
            lines.append(" | ".join(row))
        return "\n".join(lines)


class TranslateField(SentenceTable):
    """A table of translated texts; in a running notebook also a field for texts of one's own."""

    def __init__(self, translator, columns, caption, languages):
        super().__init__(columns, caption, languages)
        self.translator = translator

    def widget(self):
        """A new text field with the translation below it, as an ipywidgets ``VBox``.

        The text is translated when the field is left, and at the Enter key.

        Errors: ImportError where ipywidgets is missing.
        """
        widgets = require("ipywidgets", "viz")
        source, target = self.columns
        field = widgets.Text(
            self.columns[source][0],
            description=source,
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "95%"},
        )
        said = widgets.HTML(description=target, style={"description_width": "initial"})

        def translate(_=None):
            said.value = self._said(field.value)

        field.observe(translate, names="value")
        translate()
        return widgets.VBox([field, said])

    def _said(self, text: str) -> str:
        try:
            language = self.languages[list(self.columns)[1]]
            said = escape(self.translator.translate(text))
            return f'<span lang="{escape(language)}">{said}</span>'
        except Exception as error:  # whatever it is, the reader must see it: nobody else would
            return f'<p role="alert">{type(error).__name__}: {escape(str(error))}</p>'

    _ipython_display_ = Live._ipython_display_  # the widget for whoever watches, the table for all


def sentence_table(
    columns: Mapping[str, Sequence[str]],
    *,
    caption: str,
    languages: Mapping[str, str] | None = None,
) -> SentenceTable:
    """Texts side by side, as a table that a screen reader can read aloud.

    Args:
        columns: heading -> texts, as many in each column.
        caption: what the table shows.
        languages: heading -> code of the language of that column, such as "es", for those whose
            language is not the page's; headings that are not there do not matter.
    Returns: the table to display.
    Errors: ValueError for no column, columns of different lengths, or an empty caption; TypeError
        for what is not a str.

    Examples:
        >>> import mha
        >>> table = mha.viz.sentence_table(
        ...     {"English": ["Go.", "Hi."], "Spanish": ["Ve.", "Hola."]},
        ...     caption="Two short sentences", languages={"Spanish": "es"},
        ... )
        >>> table
        Two short sentences
        Go. | Ve.
        Hi. | Hola.
        >>> table.html.count('<td lang="es"')
        2
    """
    columns = {name: list(texts) for name, texts in columns.items()}
    languages = dict(languages or {})
    _check(columns, caption)
    return SentenceTable(columns, caption, languages)


def translate_field(
    translator: "Translator",
    texts: Sequence[str],
    *,
    caption: str,
    languages: Mapping[str, str],
) -> TranslateField:
    """Some texts and their translations; where someone runs the notebook, also a text field.

    Args:
        translator: a `Translator` of texts, or anything whose ``translate`` does the same.
        texts: what is translated in the table, at least one. The field starts with the first.
        caption: what the table shows.
        languages: heading -> code of the language, for the two columns: ``{"English": "en",
            "Spanish": "es"}``.
    Returns: the table to display. In a running notebook with ipywidgets the field stands above it,
        and an error of ``translate`` in the translation's place.
    Errors: ValueError for no texts, other than two languages, or an empty caption; what
        ``translate`` raises for the texts.

    Examples:
        >>> import mha
        >>> translator = mha.models.Translator.from_checkpoint("en-es")
        >>> languages = {"English": "en", "Spanish": "es"}
        >>> texts = ["I bought a red car."]
        >>> mha.viz.translate_field(translator, texts, caption="By the model", languages=languages)
        By the model
        I bought a red car. | Compré un coche rojo.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts must be a list of at least one text; got {texts!r}")
    if len(languages) != 2:
        raise ValueError(f"languages must name two columns, from and to; got {dict(languages)}")
    source, target = languages
    columns = {source: list(texts), target: translator.translate(list(texts))}
    _check(columns, caption)
    return TranslateField(translator, columns, caption, dict(languages))


def _check(columns: dict[str, list[str]], caption: str) -> None:
    if not caption.strip():
        raise ValueError(f"caption must say what the table shows; got {caption!r}")
    lengths = {name: len(texts) for name, texts in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"columns must be at least one, all of one length; got {lengths}")
    for name, texts in columns.items():
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"column {name!r} must hold str; got {type(text).__name__}")
