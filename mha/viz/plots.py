"""Line plots by matplotlib, as inline SVG in the colors of the page."""

import hashlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from mha._extras import require
from mha.viz.grid import as_array
from mha.viz.svg import Figure, Panel, number
from mha.viz.theme import INK, style

MARKERS = ("o", "s", "^", "D", "v", "P")


def subplots(nrows: int = 1, ncols: int = 1, *, width: int = 420, height: int = 280, **options):
    """A matplotlib figure and its axes in the house style, without pyplot.

    Args:
        nrows, ncols: how many axes.
        width, height: of the whole figure, in pixels.
        options: passed on to ``Figure.subplots``, such as ``sharex=True``.
    Returns: (figure, axes), as ``plt.subplots`` does.
    Errors: ImportError where matplotlib is missing.

    Examples:
        >>> import mha
        >>> figure, axes = mha.viz.subplots(1, 2, width=600, height=200, sharey=True)
        >>> axes.shape
        (2,)
        >>> [round(72 * inches) for inches in figure.get_size_inches().tolist()]  # 72 pixels an inch
        [600, 200]
    """
    figures = require("matplotlib.figure", "viz")
    with style():
        figure = figures.Figure(figsize=(width / 72, height / 72), layout="constrained")
        return figure, figure.subplots(nrows, ncols, **options)


def show(figure, *, alt: str) -> Figure:
    """A matplotlib figure as inline SVG: black becomes the page's text color, the rest is clear.

    Args:
        figure: a ``matplotlib.figure.Figure``.
        alt: what it shows, at least four words.
    Returns: the figure to display. The same drawing gives the same text, to the letter.
    Errors: TypeError if ``figure`` has no ``savefig``; ValueError for a short ``alt``.

    Examples:
        >>> import mha
        >>> figure, axes = mha.viz.subplots()
        >>> bars = axes.bar(["one", "two"], [3, 5])
        >>> mha.viz.show(figure, alt="Two bars, 3 and 5 high.")
        Figure('Two bars, 3 and 5 high.')
    """
    if not hasattr(figure, "savefig"):
        raise TypeError(f"figure must be a matplotlib Figure; got {type(figure).__name__}")
    for legend in figure.findobj(require("matplotlib.legend", "viz").Legend):
        legend.set_frame_on(False)
    buffer = io.StringIO()
    with style(), warnings.catch_warnings():
        # DejaVu has no Chinese glyphs; the page's own fonts do.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True)
    return Figure([_panel(buffer.getvalue(), alt)], alt)


def curves(
    series: Mapping[str, Sequence[float] | tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
    title: str | None = None,
    logx: bool = False,
    logy: bool = False,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    ylim: tuple[float, float] | None = None,
    hlines: Mapping[str, float] | None = None,
    width: int = 420,
    height: int = 300,
) -> Figure:
    """Lines that differ in color, dash and marker, with their names below.

    Args:
        series: name -> (x, y), or name -> y over 0, 1, 2, ...; each x and y of one length.
        xlabel, ylabel: what the axes show, with the unit.
        alt: what the figure shows, at least four words.
        title: stands above.
        logx, logy: whether the axes are logarithmic.
        ylim: the ends of the y axis.
        bands: name of a series -> (low, high), drawn as a pale band around it.
        hlines: label -> y, drawn as dotted lines with the label on them.
        width, height: in pixels.
    Returns: the figure.
    Errors: ValueError without a series, for x and y of different lengths, for a band of no series,
        and for a short ``alt``; ImportError where matplotlib is missing.

    Examples:
        >>> import mha
        >>> figure = mha.viz.curves(
        ...     {"train": [2.0, 1.0, 0.5], "test": ([0, 2], [2.1, 0.9])},
        ...     xlabel="step", ylabel="loss, nats", alt="Two losses that fall in three steps.",
        ... )
        >>> ["loss, nats" in figure.html, "train" in figure.html]
        [True, True]
    """
    if not series:
        raise ValueError("series must hold at least one line; got none")
    bands = bands or {}
    if unknown := set(bands) - set(series):
        raise ValueError(f"bands must be named like series; got {sorted(unknown)}")
    lines = {name: _line(name, values) for name, values in series.items()}
    figure, ax = subplots(width=width, height=height)
    with style():
        for i, (name, (x, y)) in enumerate(lines.items()):
            marks = {"marker": MARKERS[i % len(MARKERS)], "markevery": max(1, len(x) // 8)}
            (line,) = ax.plot(x, y, label=name, **marks)
            if name in bands:
                low, high = (as_array(edge, f"band {name!r}", 1) for edge in bands[name])
                ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        for label, y in (hlines or {}).items():
            ax.axhline(y, color=INK, linestyle=":", linewidth=1.2)
            place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            ax.annotate(label, (1, y), xytext=(-2, 3), ha="right", fontsize=11, **place)
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
        if logx:
            _log_x(ax, np.unique(np.concatenate([x for x, _ in lines.values()])))
        if logy:
            ax.set_yscale("log")
        if ylim is not None:
            ax.set_ylim(ylim)
        if len(series) > 1 or bands:
            columns = int(width / (max(map(len, series)) * 7 + 60))
            figure.legend(loc="outside lower center", ncols=max(1, min(len(series), columns)))
    return show(figure, alt=alt)


def _log_x(ax, places) -> None:
    """A logarithmic x axis; few places get a tick each, such as 2, 4, 8, ..."""
    ax.set_xscale("log")
    if len(places) <= 10:
        ax.set_xticks(places, [f"{x:g}" for x in places])
        ax.set_xticks([], minor=True)


def _line(name, values):
    pair = isinstance(values, tuple) and len(values) == 2 and np.ndim(values[0]) == 1
    x, y = values if pair else (np.arange(len(values)), values)
    x, y = as_array(x, f"x of {name!r}", 1), as_array(y, f"y of {name!r}", 1)
    if x.shape != y.shape:
        raise ValueError(f"{name!r} must have as many x as y; got {len(x)} and {len(y)}")
    return x, y


def _panel(svg: str, alt: str) -> Panel:
    """The inside of matplotlib's SVG: no metadata, no style sheet, few decimals, ids of its own."""
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    for unwanted in (r"<metadata>.*?</metadata>", r"<style[^>]*>.*?</style>", r"<!--.*?-->"):
        body = re.sub(unwanted, "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", _clean_tag, body)
    names = dict.fromkeys(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in names else "", body)
    body = re.sub(r"\s*\n\s*", "", body)
    # Matplotlib's ids hash unrounded numbers: count them, with a hash of the picture before.
    mark = re.sub("|".join(map(re.escape, names)) or "$^", "", body)
    mark = hashlib.sha256((alt + mark).encode()).hexdigest()[:8]
    for i, name in enumerate(names):
        body = body.replace(f'#{name}"', f'#v{mark}-{i}"').replace(f"#{name})", f"#v{mark}-{i})")
        body = body.replace(f' id="{name}"', f' id="v{mark}-{i}"')
    panel = Panel(float(width), float(height))
    panel.parts.append(f'<g stroke-linejoin="round" stroke-linecap="butt">{body}</g>')
    return panel


def _clean_tag(tag: re.Match) -> str:
    text = " ".join(tag[0].split())
    text = re.sub(r" transform=\"rotate\(-0 [^\"]*\"|font-family: [^;\"]+(; )?", "", text)
    text = text.replace("#000000", "currentColor").replace("xlink:href", "href")
    return re.sub(r"(?<![#\w.])-?\d+\.\d+", lambda m: number(float(m[0])), text)
