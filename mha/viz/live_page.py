"""What live figures have in common: a still picture, and a script that brings it to life."""

import hashlib
import json
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from mha._extras import watched
from mha.viz.controls import MISSING

BOX = (  # as in mha.viz.svg: no pale box in the dark mode of Jupyter Book
    "<style>.text_html:has(>.mha-{kind}){{background:none!important;"
    "color:inherit!important;padding:0!important}}</style>"
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --pst-color-background: #fff; --pst-color-text-base: #1f2328 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --pst-color-background: #14181e; --pst-color-text-base: #ced6dd }}
}}
body {{ max-width: 56rem; margin: 1.5rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif;
  background: var(--pst-color-background); color: var(--pst-color-text-base) }}
h1 {{ font-size: 1.4rem }}
.mha-title {{ display: none }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{figure}
</main>
</body>
</html>
"""


class LivePage:
    """A figure that lives on a page without a kernel, and in a running notebook is a widget.

    A subclass names its ``kind``, which is its class on the page, the attribute ``mark`` by which
    its script finds it, and the files ``scripts`` and ``styles``, paths below mha/viz. The scripts
    together define ``mount(element, state)``. It has an ``alt``, a ``title``, and three methods:
    ``page_state``, ``inside`` and ``_wake``.
    """

    kind: str
    mark: str
    scripts: tuple[str, ...]
    styles: tuple[str, ...]
    alt: str
    title: str

    def page_state(self) -> dict[str, Any]:
        """What ``mount`` is given, as JSON can hold it."""
        raise NotImplementedError

    def inside(self) -> str:
        """HTML of what stands there where no script runs."""
        raise NotImplementedError

    def _wake(self):
        """The anywidget of this figure. Errors: ImportError where anywidget is missing."""
        raise NotImplementedError

    def widget(self):
        """What a running notebook shows. Errors: ImportError where anywidget is missing."""
        return self._wake()

    @property
    def html(self) -> str:
        """The figure for a page: the still picture, and the script that brings it to life."""
        text = json.dumps(self.page_state(), ensure_ascii=False, separators=(",", ":"))
        text = text.replace("<", "\\u003c")  # whatever a token holds, it must not end the script
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        return (
            f"{BOX.format(kind=self.kind)}<style>{joined(self.styles)}</style>"
            f'<div class="mha-{self.kind}" data-{self.mark}="{name}">{self.inside()}</div>'
            f'<script type="module">{joined(self.scripts)}'
            f'for (const el of document.querySelectorAll(\'[data-{self.mark}="{name}"]'
            f":not([data-live])')) mount(el, {text});\n</script>"
        )

    def save(self, path: Path | str) -> None:
        """Write a page of its own, which needs nothing else: no network, no kernel."""
        title = escape(self.title or self.alt)
        Path(path).write_text(PAGE.format(title=title, figure=self.html), encoding="utf-8")

    def _repr_mimebundle_(self, **_: object):
        """The page's form for all; for whoever watches a notebook run, also the widget."""
        data = {"text/plain": repr(self), "text/html": self.html}
        if not watched():
            return data
        try:
            bundle, metadata = self._wake()._repr_mimebundle_()
        except ImportError:
            missing = MISSING.replace("ipywidgets", "anywidget")
            return data | {"text/html": data["text/html"] + missing}
        mime = "application/vnd.jupyter.widget-view+json"
        return data | {mime: bundle[mime] | {"model_id": self.widget().model_id}}, metadata


def joined(names: tuple[str, ...]) -> str:
    """Files beside this one, one after another, with an empty line between them."""
    return "\n".join(asset(name) for name in names)


@cache
def asset(name: str) -> str:
    """A file below the folder of this one, as text."""
    return files("mha.viz").joinpath(name).read_text(encoding="utf-8")
