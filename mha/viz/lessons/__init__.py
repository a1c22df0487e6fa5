"""Live figures that each teach one idea, computed in the reader's browser."""

from mha.viz.lessons.softmax import Softmax

__all__ = ["Softmax"]
