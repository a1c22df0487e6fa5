"""The public names of the package: what its reference pages must hold, and what tests ask of them.

A submodule is public if ``mha.__all__`` names it, and so is ``mha.cache``, whose class
``mha.__all__`` names. Its public names are those of its ``__all__``, or where it has none, what it
defines under a name without an underscore in front.
"""

import ast
import importlib
import inspect
from functools import cache
from pathlib import Path
from types import ModuleType

PACKAGE = "mha"


@cache
def modules() -> list[str]:
    """The package and its public submodules, by their full names."""
    package = importlib.import_module(PACKAGE)
    inside = [name for name in package.__all__ if inspect.ismodule(getattr(package, name))]
    return [PACKAGE, *(f"{PACKAGE}.{name}" for name in sorted({*inside, "cache"}))]


@cache
def names() -> dict[str, object]:
    """Full public name -> the function, class or constant. A class that two modules name stands
    under the shorter name.
    """
    found = {}
    for module in map(importlib.import_module, modules()):
        for name in _listed(module):
            thing = getattr(module, name)
            known = inspect.isclass(thing) and any(thing is other for other in found.values())
            if not inspect.ismodule(thing) and not known:
                found[f"{module.__name__}.{name}"] = thing
    return found


@cache
def members() -> dict[str, object]:
    """Full name -> each public method and property that a public class defines itself."""
    return {
        f"{owner}.{name}": member
        for owner, thing in names().items()
        if inspect.isclass(thing)
        for name, member in vars(thing).items()
        if not name.startswith("_") and _is_described(member)
    }


def _is_described(member: object) -> bool:
    """Whether this is a method or a property, and not the value of a field."""
    kinds = (classmethod, staticmethod, property)
    return isinstance(member, kinds) or inspect.isfunction(member)


def _listed(module: ModuleType) -> list[str]:
    """The public names of one module."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf8"))
    defined = []
    for part in tree.body:
        if isinstance(part, (ast.FunctionDef, ast.ClassDef)):
            defined.append(part.name)
        elif isinstance(part, ast.Assign):
            defined += [target.id for target in part.targets if isinstance(target, ast.Name)]
    return [name for name in defined if not name.startswith("_")]
