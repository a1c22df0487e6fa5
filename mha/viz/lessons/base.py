"""What all lessons are: a state, a still picture, the same lesson in words, and a script."""

from html import escape
from typing import Any

from mha._extras import require
from mha.viz.live_page import LivePage, joined
from mha.viz.svg import Figure, check_alt


class Lesson(LivePage):
    """A live figure that teaches one idea; its numbers are computed where it is read.

    On a page its script works without a kernel; in a running notebook it is a widget. Where no
    script runs, and on paper, a still picture stands in its place. The same lesson in words is
    folded below.

    Args:
        state: what the script starts with, as JSON holds it.
        still: the picture. alt: what the figure shows, at least four words.
        title: stands above. words: the lesson again, a paragraph each.
    Errors: TypeError or ValueError for an ``alt`` that says too little.
    """

    kind = mark = "lesson"
    styles = ("base.css", "lessons/lesson.css")
    script: str  # the lesson's own, beside this file

    def __init__(
        self, state: dict[str, Any], still: Figure, *, alt: str, title: str, words: list[str]
    ):
        self.alt, self.title, self.words, self._still = check_alt(alt), title, words, still
        self.state, self._live = state, None

    @property
    def scripts(self) -> tuple[str, ...]:
        return ("base.js", "lessons/lesson.js", f"lessons/{self.script}")

    def still(self) -> Figure:
        """The picture that stands where no script runs."""
        return self._still

    def inside(self) -> str:
        told = "".join(f"<p>{escape(text)}</p>" for text in self.words)
        return (
            f"{self._still.html}"
            f'<details class="mha-words"><summary>In words</summary>{told}</details>'
        )

    def page_state(self) -> dict[str, Any]:
        return {"alt": self.alt, "title": self.title} | self.state

    def _wake(self):
        if self._live is None:
            anywidget = require("anywidget", "viz")
            traitlets = require("traitlets", "viz")
            script = joined(self.scripts) + "export default { render };\n"
            state = traitlets.Dict().tag(sync=True)
            parts = {"_esm": script, "_css": joined(self.styles), "state": state}
            widget = type("LiveLesson", (anywidget.AnyWidget,), parts)
            self._live = widget(state=self.page_state() | {"words": self.words})
        return self._live

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.alt!r})"
