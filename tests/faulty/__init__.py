"""Attention with one mistake each, after mistakes that people really make.

``Function`` and ``Module`` are right, and written so that each step can be replaced. Each mistake
replaces one step by a wrong one; its docstring says what is wrong, ``caught_by`` which property
names it. ``FUNCTIONS`` and ``MODULES`` map slugs to mistakes. A mistake of the function stands in
both, for a module that calls it has it too, save for those in ``HIDDEN``. Some have no effect unless
the module is built with their ``options``, and some have none ``in_training``.
"""

from faulty import decoding, masks, modules, order, weights  # noqa: F401  (each enters its mistakes)
from faulty.plain import FUNCTIONS, MODULES, Function, Module, verdict

__all__ = ["FUNCTIONS", "HIDDEN", "MODULES", "Function", "Module", "verdict"]

HIDDEN = {
    "poison-let-in": "the module blanks padded keys before its maps",
    "scale-value-width": "the heads of the module have values as wide as their keys",
    "value-width-assumed": "the heads of the module have values as wide as their keys",
}
"""Mistakes of the function that no caller of the module can see, and why."""

for name, function in FUNCTIONS.items():
    if name not in HIDDEN:
        body = {"attend": function(), "caught_by": (), "__doc__": function.__doc__}
        body |= {"options": function.options, "in_training": function.in_training}
        MODULES[name] = type(function.__name__, (Module,), body)
