"""Live figures that each teach one idea, computed in the reader's browser."""

from mha.viz.lessons.alignment import Alignment
from mha.viz.lessons.heads import Heads
from mha.viz.lessons.masks import Masks
from mha.viz.lessons.online import OnlineSoftmax
from mha.viz.lessons.softmax import Softmax
from mha.viz.lessons.square_root import SquareRoot

__all__ = ["Alignment", "Heads", "Masks", "OnlineSoftmax", "Softmax", "SquareRoot"]
