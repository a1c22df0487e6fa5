"""Controls for whoever runs a notebook, and a still twin for whoever reads a page."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from mha._extras import require, watched
from mha.viz.svg import Figure

MISSING = (
    "<p>To try settings of your own: <code>pip install ipywidgets</code>, then run this again.</p>"
)


class Live(Figure):
    """Figures of some settings side by side; in a running notebook also controls for all others."""

    def __init__(self, function, still, controls, alt, columns):
        figures = [function(**setting) for setting in still]
        super().__init__([panel for figure in figures for panel in figure.panels], alt, columns)
        self.function, self.controls, self.start = function, controls, still[0]

    def widget(self):
        """New controls with the figure they set below them, as an ipywidgets ``VBox``.

        Errors: ImportError where ipywidgets is missing.
        """
        widgets = require("ipywidgets", "viz")
        controls = {
            name: _control(widgets, name, options, self.start[name])
            for name, options in self.controls.items()
        }
        picture = widgets.HTML()

        def redraw(_=None):
            picture.value = self._drawn({name: c.value for name, c in controls.items()})

        for control in controls.values():
            control.observe(redraw, names="value")
        redraw()
        return widgets.VBox([*controls.values(), picture])

    def _drawn(self, setting: dict[str, Any]) -> str:
        try:
            return self.function(**setting).html
        except Exception as error:  # whatever it is, the reader must see it: nobody else would
            return f'<p role="alert">{type(error).__name__}: {escape(str(error))}</p>'

    def _ipython_display_(self) -> None:
        """Show the still figures; to whoever watches, the controls above them."""
        display = require("IPython.display", "viz").display
        html = self.html
        if watched():
            try:
                display(self.widget())
            except ImportError:
                html += MISSING
        display({"text/plain": repr(self), "text/html": html}, raw=True)


def live(
    function: Callable[..., Figure],
    still: Sequence[Mapping[str, Any]],
    *,
    alt: str,
    columns: int | None = None,
    **controls: type | Sequence[Any],
) -> Live:
    """Still figures of a few settings; where someone runs the notebook, also controls for the rest.

    Args:
        function: draws the `Figure` of one setting; its arguments are named like the controls.
        still: the settings that are drawn side by side. The controls start at the first.
        alt: what the still figures show together, at least four words.
        columns: at most so many still panels in a row; None = as fit.
        controls: for each argument ``str`` (a text field), ``bool`` (a checkbox), numbers in a
            sequence (a slider over them) or strings in a sequence (a menu).
    Returns: a `Figure` of the still settings; in a running notebook with ipywidgets, the controls
        and the figure they set stand above it. An error of ``function`` stands in its figure's place.
    Errors: ValueError for no setting, one that names other arguments than the controls, or one
        outside of what a control offers; what ``function`` raises for the still settings.

    Examples:
        >>> import mha
        >>> def causal(size):
        ...     return mha.viz.mask(mha.masks.causal(size))
        >>> still = [{"size": 2}, {"size": 4}]
        >>> figure = mha.viz.live(causal, still, alt="Causal masks of two sizes.", size=range(2, 9))
        >>> figure, len(figure.panels)
        (Figure('Causal masks of two sizes.'), 2)
    """
    if not still:
        raise ValueError("still must hold at least one setting; got none")
    for setting in still:
        if set(setting) != set(controls):
            raise ValueError(f"still must set {sorted(controls)}; got {sorted(setting)}")
        for name, options in controls.items():
            value = setting[name]
            fits = type(value) is options if isinstance(options, type) else value in options
            if not fits:
                raise ValueError(f"still must set {name} to one of {options}; got {value!r}")
    return Live(function, list(still), controls, alt, columns)


def _control(widgets, name: str, options: type | Sequence[Any], value: Any):
    """The widget that chooses one argument, labeled with its name."""
    label = {"description": name.replace("_", " "), "style": {"description_width": "initial"}}
    if options is str:
        return widgets.Text(value, **label)
    if options is bool:
        return widgets.Checkbox(value, indent=False, **label)
    words = all(isinstance(option, str) for option in options)
    choose = widgets.Dropdown if words else widgets.SelectionSlider
    return choose(options=list(options), value=value, **label)
