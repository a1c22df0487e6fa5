"""What the book needs of Sphinx beyond Jupyter Book: the pages carry all that they use."""

import importlib
from pathlib import Path

from sphinx.application import Sphinx

PARTS = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def setup(app: Sphinx) -> dict[str, object]:
    """Set up every module of this folder. None keeps data that a parallel build would lose."""
    for part in PARTS:
        importlib.import_module(f"{__name__}.{part}").setup(app)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}
