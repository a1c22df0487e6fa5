"""The colors of the figures, and how they stay legible on a light and on a dark page."""

from mha._extras import require

COLORS = {
    "query": "#1a68e0",
    "key": "#bf5600",
    "value": "#0e8243",
    "weights": "#7645e0",
    "negative": "#d0274f",
    "neutral": "#6f7781",
}
"""Name -> hex; each has a contrast of at least 4.5 on white and 3 on #121212."""

HEAD_COLORS = (
    "#1a68e0",
    "#bf5600",
    "#0e8243",
    "#c03aa0",
    "#007f8c",
    "#7a7400",
    "#7645e0",
    "#955f30",
)
"""One color for each of up to eight heads; a figure writes the head's number beside it."""

INK = "#000000"
"""What is drawn in black in matplotlib becomes the text color of the page."""

# The background of the page, for numbers on a strong cell: the book's, Jupyter's, or not the ink.
PAPER = (
    "var(--pst-color-background,var(--jp-layout-color0,"
    "oklch(from currentcolor clamp(0,(.6 - l)*1000,1) 0 0)))"
)

# Below half of the scale numbers are written in ink, above in paper. The jump keeps both legible:
# a contrast of 4.5 in every cell, with ink and paper of the book and of JupyterLab, light and dark.
LOW_TONE, HIGH_TONE = 0.52, 0.88


def resolve(color: str) -> str:
    """The hex color of a name in ``COLORS``, or of '#rrggbb'. Errors: ValueError for another."""
    if color in COLORS:
        return COLORS[color]
    if color.startswith("#") and len(color) == 7:
        return color
    raise ValueError(f"color must be one of {', '.join(COLORS)} or '#rrggbb'; got {color!r}")


def tone(level: float, stepped: bool = False) -> float:
    """The opacity for ``level`` in [0, 1]; ``stepped`` leaves out what no ink is legible on."""
    if stepped:
        level = level / 0.5 * LOW_TONE if level < 0.5 else 1 - (1 - level) / 0.5 * (1 - HIGH_TONE)
    return round(level, 2)


def mixed(color: str) -> str:
    """The style of a filled cell: the hue mixed with ink, so darker on light, lighter on dark."""
    return f"stroke:color-mix(in srgb,currentColor 45%,{color})"


def style():
    """A context manager: inside it, matplotlib draws in the style of the book.

    Errors: ImportError where matplotlib is missing (the extra ``viz`` brings it).

    Examples:
        >>> import matplotlib
        >>> import mha
        >>> with mha.viz.style():
        ...     print(matplotlib.rcParams["axes.spines.top"], matplotlib.rcParams["lines.linewidth"])
        False 2.0
        >>> matplotlib.rcParams["axes.spines.top"]  # as it was
        True
    """
    matplotlib = require("matplotlib", "viz")
    colors = [COLORS[name] for name in ("query", "key", "value", "weights", "negative", "neutral")]
    dashes = ["-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (9, 3)), (0, (2, 2))]
    rc = {
        "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same layout on every machine
        "font.size": 12,
        "axes.titlesize": 13,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 12,
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "legend.fontsize": 11,
        "legend.frameon": False,
        "legend.handlelength": 3.2,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": matplotlib.cycler(color=colors) + matplotlib.cycler(linestyle=dashes),
        "grid.color": COLORS["neutral"],
        "grid.alpha": 0.3,
        "grid.linewidth": 0.6,
        "lines.linewidth": 2,
        "lines.markersize": 5,
        "hatch.linewidth": 0.8,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "figure.dpi": 72,
        "svg.fonttype": "none",
        "svg.hashsalt": "mha",
    }
    return matplotlib.rc_context(rc)
