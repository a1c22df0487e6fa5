"""Faulty variants of a whole module, each made by replacing one passage of its source.

A variant is written to a file and imported from there, since triton reads kernels from their file.
"""

import hashlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


class Mistake(NamedTuple):
    """One mistake: what is wrong, the passage it stands in, what stands there instead.

    ``caught_by`` names the property that must fail.
    """

    about: str
    old: str
    new: str
    caught_by: str


def patched(module: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    """The module with ``new`` in the place of ``old``, which must occur exactly once.

    The variant gets a name and a file of its own in ``folder``; ``module`` stays as it is.
    """
    source = inspect.getsource(module)
    found = source.count(old)
    assert found == 1, f"{module.__name__} must hold this text once, not {found} times:\n{old}"
    changed = source.replace(old, new)
    digest = hashlib.sha256(changed.encode()).hexdigest()[:12]
    name = f"{module.__name__.replace('.', '_')}_{digest}"
    path = Path(folder) / f"{name}.py"
    path.write_text(changed, "utf8")
    spec = importlib.util.spec_from_file_location(name, path)
    variant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(variant)
    return variant
