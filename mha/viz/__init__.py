"""Figures of attention that follow the page: light or dark, wide or narrow."""

from mha.viz.controls import live
from mha.viz.explorer import AttentionExplorer
from mha.viz.images import image_attention
from mha.viz.masks import mask
from mha.viz.plots import curves, show, subplots
from mha.viz.shapes import shape_strip, split_strip
from mha.viz.svg import Figure
from mha.viz.theme import COLORS, HEAD_COLORS, INK, style
from mha.viz.translating import sentence_table, translate_field
from mha.viz.weights import head_grid, heatmap

__all__ = [
    "AttentionExplorer",
    "COLORS",
    "HEAD_COLORS",
    "INK",
    "Figure",
    "curves",
    "head_grid",
    "heatmap",
    "image_attention",
    "live",
    "mask",
    "sentence_table",
    "shape_strip",
    "show",
    "split_strip",
    "style",
    "subplots",
    "translate_field",
]
