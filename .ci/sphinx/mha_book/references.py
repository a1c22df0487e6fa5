"""Names in signatures, as annotations spell them, led to the entries of the reference.

An annotation names the module that defines a class, such as ``mha.check.report.Finding``, and the
reference the one that offers it, ``mha.check.Finding``. What is annotated by a text, or stands
inside brackets of jaxtyping, has no module at all. PyTorch's own classes come from modules that its
pages do not name.

Shapes and defaults that are texts get the double quotes that they have in the source.
"""

import inspect
import re
from functools import cache

from docutils import nodes
from sphinx import addnodes

from . import _public

SPELLED = {  # what annotations say -> the name in .ci/inventories
    "Tensor": "torch.Tensor",
    "ndarray": "numpy.ndarray",
    "torch._C.Generator": "torch.Generator",
    "torch.nn.modules.activation.MultiheadAttention": "torch.nn.MultiheadAttention",
    "torch.nn.modules.module.Module": "torch.nn.Module",
}


@cache
def offered() -> dict[str, str]:
    """What an annotation may say of a public class -> the name under which it is offered."""
    classes = {name: thing for name, thing in _public.names().items() if inspect.isclass(thing)}
    found = {name.rpartition(".")[2]: name for name in classes}
    for name, thing in classes.items():
        found[f"{thing.__module__}.{thing.__qualname__}"] = name
    return found


def resolve(app, env, node, contnode):
    """Find what a name means that nothing has been found for; other projects come after this."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"]
    if name in SPELLED:
        node["reftarget"] = SPELLED[name]
    elif target := offered().get(name):
        python, home = env.domains["py"], node["refdoc"]
        return python.resolve_xref(env, home, app.builder, "class", target, node, contnode)
    return None


def quote(app, doctree: nodes.document) -> None:
    """Write 'B T' as "B T" in signatures: Sphinx takes the quotes that Python's ``repr`` does."""
    for text in list(doctree.findall(nodes.Text)):
        kinds, said = text.parent.get("classes", []), text.astext()
        is_literal = isinstance(text.parent, addnodes.desc_sig_literal_string)
        if (is_literal or "default_value" in kinds) and re.fullmatch(r"'[^\"']*'", said):
            text.parent.replace(text, nodes.Text(f'"{said[1:-1]}"'))


def setup(app) -> None:
    app.connect("doctree-read", quote)
    app.connect("missing-reference", resolve, priority=400)
