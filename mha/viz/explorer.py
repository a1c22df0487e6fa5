"""The attention explorer: weights that a reader looks through, head by head and token by token."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from mha.viz.explorer_view import View
from mha.viz.live_page import LivePage
from mha.viz.svg import check_alt
from mha.viz.theme import HEAD_COLORS
from mha.viz.weights import heatmap

Array = torch.Tensor | np.ndarray
TRAITS = ("layer", "head", "query", "key", "step", "view", "example")


def _trait(name: str, doc: str) -> property:
    return property(lambda self: self._get(name), lambda self, v: self._set(name, v), doc=doc)


class AttentionExplorer(LivePage):
    """Attention weights to look through: by layer, head, token, example and decoding step.

    In a running notebook it is a widget, on a page the same script without a kernel, and where no
    script runs a still heat map of the head it starts with.

    Args:
        weights: (L, H, T, S), (H, T, S) or (T, S) numbers from 0 to 1, from any model.
        query_tokens, key_tokens: T and S tokens. None: the keys are the queries, if T = S; the
            patches of an image; else 0, 1, ...
        alt: what the figure shows, at least four words.
        allowed: bool, broadcasts to (L, H, T, S); True = may attend, the rest is hatched.
        image: (h, w) grey or (h, w, 3) colored numbers, at most 128 x 128, the lowest drawn black
            and the highest white. The last rows * columns keys are its patches, row by row; keys
            before them, such as a class token, stand in the list only.
        patches: (rows, columns), how the image is cut.
        layer_names: L names; None = layer 0, layer 1, ...
        title: stands above. rows, columns: what queries and keys are called.
        languages: codes such as ("es", "en") of the queries and keys, where it is not the page's.
        steps: whether a slider moves through decoding: at step t only queries 0 to t have been
            written, and as many keys where the keys are the queries.
        layer, head, query, key, step, view: where it starts. A query or key is an index, None = all
            of them; step None = the last; view is "lines" or "heat".
    Attributes: layer, head, query, key, step, view, example (which of the texts of ``over``) can
        be set, and in a running notebook observed: ``explorer.observe(function, "head")``.
    Errors: ValueError or TypeError, naming the argument, for what does not fit.

    Examples:
        >>> import torch
        >>> from mha import viz
        >>> weights = torch.tensor([[[1.0, 0.0], [0.25, 0.75]]])  # (H, T, S)
        >>> explorer = viz.AttentionExplorer(weights, ["cat", "slept"], alt="one head over two words")
        >>> explorer.query = 1
        >>> explorer
        AttentionExplorer(1 layers, 1 heads, 2 queries, 2 keys)
    """

    def __init__(
        self,
        weights: Float[Array, "*L T S"],
        query_tokens: Sequence[object] | None = None,
        key_tokens: Sequence[object] | None = None,
        *,
        alt: str,
        allowed: Bool[Array, "..."] | None = None,
        image: Float[Array, "h w *channels"] | None = None,
        patches: tuple[int, int] | None = None,
        layer_names: Sequence[object] | None = None,
        title: str | None = None,
        rows: str = "queries",
        columns: str = "keys",
        languages: tuple[str | None, str | None] = (None, None),
        steps: bool = False,
        layer: int = 0,
        head: int = 0,
        query: int | None = None,
        key: int | None = None,
        step: int | None = None,
        view: str = "lines",
    ):
        options = {"allowed": allowed, "image": image, "patches": patches}
        first = View(weights, query_tokens, key_tokens, **options)
        L, H, T, _ = first.weights.shape
        names = [f"layer {n}" for n in range(L)] if layer_names is None else layer_names
        names = [str(name) for name in names]
        if len(names) != L:
            raise ValueError(f"layer_names must be {L} names; got {len(names)}")
        self.alt, self.views, self._attend, self._live = check_alt(alt), [first], None, None
        self._data: dict[str, Any] = {
            "alt": self.alt,
            "title": title or "",
            "layers": names,
            "heads": H,
            "rows": rows,
            "columns": columns,
            "languages": list(languages),
            "steps": steps,
            "label": "",
            "colors": [_rgb(HEAD_COLORS[h % len(HEAD_COLORS)]) for h in range(H)],
            "views": [first.packed()],
        }
        self._state: dict[str, Any] = {"example": 0}
        start = {"layer": layer, "head": head, "query": query, "key": key, "view": view}
        start["step"] = T - 1 if step is None else step
        for name, value in start.items():
            self._state[name] = self.check(name, value)

    @classmethod
    def over(
        cls,
        attend: Callable[[str], Mapping[str, Any]],
        texts: Sequence[str],
        *,
        alt: str,
        label: str = "text",
        **options: Any,
    ) -> "AttentionExplorer":
        """An explorer with a menu of texts; in a running notebook also a field for one's own.

        Args:
            attend: gives the arguments of one text: ``weights``, ``query_tokens``, and where
                needed ``key_tokens``, ``allowed``, ``image``, ``patches``. All texts have L layers
                and H heads.
            texts: what the menu offers, at least one.
            label: what a text is called. alt, options: as for `AttentionExplorer`.
        Errors: ValueError for no text, or views of other layers and heads than the first; what
            ``attend`` raises for the texts.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"texts must be a list of at least one text; got {texts!r}")
        explorer = cls(**attend(texts[0]), alt=alt, **options)
        explorer._attend, explorer._data["label"] = attend, label
        explorer._data["views"][0]["name"] = str(texts[0])
        for text in texts[1:]:
            explorer.views.append(explorer._viewed(text))
            explorer._data["views"].append(explorer.views[-1].packed(str(text)))
        return explorer

    kind, mark = "explorer", "mha"
    scripts, styles = ("base.js", "explorer.js"), ("base.css", "explorer.css")

    layer = _trait("layer", "Index of the layer shown.")
    head = _trait("head", "Index of the head shown.")
    query = _trait("query", "Index of the query whose row is shown, or None.")
    key = _trait("key", "Index of the key whose column is shown, or None; a query goes before it.")
    step = _trait("step", "The last query that has been written, where there are steps.")
    view = _trait("view", '"lines" (over an image, the picture) or "heat".')
    example = _trait("example", "Index of the text shown.")

    def check(self, name: str, value: Any) -> Any:
        """``value`` as the trait ``name`` can take it. Errors: ValueError, TypeError if it cannot."""
        if name == "view":
            if value not in ("lines", "heat"):
                raise ValueError(f"view must be 'lines' or 'heat'; got {value!r}")
            return value
        if value is None and name in ("query", "key"):
            return None
        L, H, T, S = self.views[self._get("example")].weights.shape
        counts = {"layer": L, "head": H, "query": T, "key": S, "step": T}
        count = counts.get(name, len(self.views))
        try:
            index = operator.index(value)
        except TypeError as error:
            raise TypeError(f"{name} must be an integer; got {value!r}") from error
        if not 0 <= index < count:
            raise ValueError(f"{name} must be from 0 to {count - 1}; got {index}")
        return index

    def show(self, text: str) -> None:
        """Show a text of the reader's own, as one more example after those of the menu.

        Errors: ValueError where the explorer was not made by ``over``; what ``attend`` raises.
        """
        if self._attend is None:
            raise ValueError("show needs an explorer made by AttentionExplorer.over")
        view = self._viewed(text)
        packed = view.packed(str(text))
        names = [one["name"] for one in self._data["views"]]
        if packed["name"] in names:
            self.example = names.index(packed["name"])
            return
        self.views.append(view)
        self._data = self._data | {"views": [*self._data["views"], packed]}
        if self._live is not None:
            self._live.data = self._data
        self.example = len(self.views) - 1

    def _viewed(self, text: str) -> View:
        view = View(**self._attend(text))
        first, other = self.views[0].weights.shape[:2], view.weights.shape[:2]
        if first != other:
            raise ValueError(f"attend must give {first} layers and heads; got {other}: {text!r}")
        return view

    def _get(self, name: str) -> Any:
        return self._state[name] if self._live is None else getattr(self._live, name)

    def _set(self, name: str, value: Any) -> None:
        changes = {name: self.check(name, value)}
        if name == "example":
            last = len(self.views[changes[name]].query_tokens) - 1
            changes |= {"query": None, "key": None, "step": last}
        if self._live is None:
            self._state |= changes
        else:
            self._live.put(changes)

    def widget(self):
        """The live explorer, an anywidget; with texts also a field for one's own, in a ``VBox``.

        All displays show one state, that of this object.

        Errors: ImportError where anywidget is missing.
        """
        self._wake()
        if self._attend is None:
            return self._live
        from mha.viz.explorer_live import with_field

        return with_field(self._live, self)

    def observe(self, handler: Callable[[Any], None], names: str | Sequence[str]) -> None:
        """Call ``handler`` with each change of the traits, as traitlets does: ``change["new"]``.

        Errors: ImportError where anywidget is missing.
        """
        self._wake().observe(handler, names=names)

    def _wake(self):
        if self._live is None:
            from mha.viz.explorer_live import LiveExplorer

            self._live = LiveExplorer(self, self._data, self._state)
        return self._live

    def still(self):
        """The heat map of the head shown, as a `Figure`: (T, S) cells."""
        view = self.views[self._get("example")]
        layer, head = self._get("layer"), self._get("head")
        place = f"{self._data['layers'][layer]}, head {head}"
        title = self._data["title"]
        return heatmap(
            view.weights[layer, head].round(3),
            view.query_tokens,
            view.key_tokens,
            alt=self.alt,
            title=f"{title}: {place}" if title else place,
            allowed=~view.blocked[layer, head],
            annotate=False,
            rows=self._data["rows"],
            columns=self._data["columns"],
        )

    def inside(self) -> str:
        return self.still().html

    def page_state(self) -> dict[str, Any]:
        return {name: self._get(name) for name in TRAITS} | {"data": self._data}

    @property
    def title(self) -> str:
        return self._data["title"] or "Attention explorer"

    def __repr__(self) -> str:
        L, H, T, S = self.views[0].weights.shape
        return f"AttentionExplorer({L} layers, {H} heads, {T} queries, {S} keys)"


def _rgb(color: str) -> str:
    return "rgb(" + " ".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5)) + ")"
