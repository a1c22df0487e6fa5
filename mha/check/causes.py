"""From an error to its likely cause, in words.

The checks give every axis a length of its own, so a number in a message names its axis.
"""

import builtins
import difflib
import itertools
import math
import re
import sys

import torch
from torch import Tensor, nn

MEANING = {
    "B": "batch",
    "H": "heads",
    "H_kv": "key heads",
    "T": "queries",
    "S": "keys",
    "D": "width of a head",
    "E": "width of the model",
}
IMPORTS = {
    "torch": "import torch",
    "nn": "from torch import nn",
    "F": "import torch.nn.functional as F",
    "math": "import math",
    "np": "import numpy as np",
    "numpy": "import numpy",
    "einops": "import einops",
    "rearrange": "from einops import rearrange",
    "copy": "import copy",
    "mha": "import mha",
    "heads": "from mha import heads",
    "masks": "from mha import masks",
}
SHOWN = 4  # tensors of a line whose shapes are told


def text(error: BaseException) -> str:
    """The message of an error, "" where it has none."""
    try:
        return str(error)
    except Exception:
        return ""


def likely(
    error: BaseException, sizes: dict[str, int] | None = None, frame=None, line: str = ""
) -> str:
    """The likely cause of an error in a sentence or two, or "".

    Args:
        error: what the learner's code raised.
        sizes: name of an axis -> its length.
        frame: the learner's deepest frame, or None. line: its line of source.
    """
    scene = Scene(error, dict(sizes or {}), frame, line)
    message = " ".join(text(error).split())
    for pattern, explain in RULES:
        match = re.search(pattern, message)
        if match:
            said = explain(scene, *match.groups())
            if said:
                return " ".join(said.split())
    for kind, said in KINDS.items():
        if isinstance(error, kind):
            return said
    return ""


class Scene:
    """Where an error happened, and how long each axis is."""

    def __init__(self, error, sizes, frame, line):
        self.error, self.sizes, self.frame, self.line = error, sizes, frame, line

    def axis(self, number) -> str:
        """5 -> "5 (T, queries)", 15 -> "15 (B·T)", 8 -> "8"."""
        said = axes(int(number), self.sizes)
        if not said:
            return str(number)
        return f"{number} ({said}, {MEANING[said]})" if said in MEANING else f"{number} ({said})"

    def names(self) -> list[str]:
        """The names that are known where it happened."""
        if self.frame is None:
            return []
        return [*self.frame.f_locals, *self.frame.f_globals]

    def nothing(self) -> list[str]:
        """Names on the line that are None."""
        found = [name for name, value in mentioned(self.frame, self.line) if value is None]
        return [f"`{name}`" for name in found]


# --- axes


def axes(number: int, sizes: dict[str, int]) -> str:
    """The axis of this length, "B·T" for a product, "T or S" for two; "" if there is none."""
    if number <= 1:
        return ""
    for count in (1, 2, 3):
        found = [
            "·".join(names)
            for names in itertools.combinations(sizes, count)
            if math.prod(sizes[name] for name in names) == number
            and not {"H", "D"} < set(names)  # that is E
            and not (count > 1 and any(sizes[name] == 1 for name in names))
        ]
        if found:
            return " or ".join(found[:2]) if len(found) < 3 else ""
    return ""


def shape(tensor: Tensor, sizes: dict[str, int]) -> str:
    """(3, 5, 24) -> "(3, 5, 24) = (B, T, E)"."""
    plain = f"({', '.join(map(str, tensor.shape))}{',' if tensor.ndim == 1 else ''})"
    names = [axes(length, sizes) if length != 1 else "1" for length in tensor.shape]
    if not names or not all(names) or any(" or " in name for name in names):
        return plain
    if all(name == "1" for name in names):
        return plain
    return f"{plain} = ({', '.join(names)}{',' if tensor.ndim == 1 else ''})"


def mentioned(frame, line: str) -> list[tuple[str, object]]:
    """(name, value) for the local names and parts of self on a line; runs no code."""
    if frame is None:
        return []
    line = re.sub(r"#.*", "", line)
    values = frame.f_locals
    after = line.split("=", 1)[1] if re.match(r"\s*[\w, .]+=[^=]", line) else line
    found = {}
    for name in re.findall(r"(?<![\w.\"'])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)?", after):
        first, _, rest = name.partition(".")
        if rest and first == "self" and isinstance(values.get("self"), nn.Module):
            module = values["self"]
            for part in (vars(module), module._parameters, module._buffers, module._modules):
                if rest in part:
                    found.setdefault(name, part[rest])
        elif first in values and not isinstance(values[first], type(math)):
            found.setdefault(first, values[first])
    return list(found.items())


def shapes(frame, line: str, sizes: dict[str, int]) -> list[str]:
    """ "scores: (3, 4, 5, 7) = (B, H, T, S)" for the tensors on a line."""
    said = []
    for name, value in mentioned(frame, line):
        if isinstance(value, Tensor):
            said.append(f"{name}: {shape(value, sizes)}, {str(value.dtype).removeprefix('torch.')}")
        elif isinstance(value, nn.Linear):
            said.append(f"{name}: Linear from {value.in_features} to {value.out_features}")
        elif isinstance(value, tuple) and value and all(isinstance(x, Tensor) for x in value):
            said.append(f"{name}: a tuple of {len(value)} tensors")
    return said[:SHOWN]


# --- names and attributes


def _close(name: str, known) -> str:
    found = difflib.get_close_matches(name, [n for n in known if n != name], 1, 0.7)
    return found[0] if found else ""


def _undefined(scene, name):
    if name in IMPORTS:
        return f"`{name}` was never imported. Put `{IMPORTS[name]}` at the top."
    owner = scene.frame.f_locals.get("self") if scene.frame is not None else None
    if owner is not None and name in _attributes(owner):
        return f"There is no variable `{name}`, but `self.{name}` exists. Did you mean that?"
    if name == "self":
        return "A method gets `self` only as its first parameter: `def forward(self, ...)`."
    close = _close(name, [*scene.names(), *dir(builtins)])
    if close:
        return f"There is no variable `{name}`. Did you mean `{close}`?"
    return f"There is no variable `{name}` at this point. Is it spelled as where it was set?"


def _unbound(scene, name):
    return f"""`{name}` is set only on another path, for example inside an `if` that was not taken.
    Give it a value on every path."""


def _attributes(owner) -> list[str]:
    names = list(getattr(owner, "__dict__", {}))
    if isinstance(owner, nn.Module):
        names += [*owner._parameters, *owner._buffers, *owner._modules]
    return [*names, *(n for n in dir(type(owner)) if not n.startswith("_"))]


def _owner(error):
    """The object whose attribute is missing, or None."""
    if getattr(error, "obj", None) is not None:
        return error.obj
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None and trace.tb_frame.f_code.co_name == "__getattr__":
        return trace.tb_frame.f_locals.get("self")
    return None


def _no_attribute(scene, kind, name):
    if kind in ("tuple", "list"):
        return _a_tuple(scene)
    if kind == "NoneType":
        return _none(scene)
    owner = _owner(scene.error)
    close = _close(name, _attributes(owner)) if owner is not None else ""
    if kind == "Tensor":
        meant = f" Did you mean `.{close}`?" if close else ""
        return f"A tensor has no `.{name}`.{meant}"
    if close:
        return f"There is no `{name}` in `{kind}`. Did you mean `{close}`?"
    if isinstance(owner, nn.Module) and not callable(getattr(type(owner), name, None)):
        return f"`self.{name}` was never set. Set it in `__init__`, under this very name."
    return f"`{kind}` has no attribute `{name}`."


def _no_function(scene, module, name):
    close = _close(name, dir(sys.modules[module])) if module in sys.modules else ""
    return f"`{module}` has no `{name}`." + (f" Did you mean `{module}.{close}`?" if close else "")


def _before_init(scene, what):
    return """`super().__init__()` must be the first line of your `__init__`: before it, a module
    has no place to keep its parts."""


def _not_a_parameter(scene, kind, name):
    return f"""`{name}` holds a Parameter and is given something else here. Change its numbers in
    place under `torch.no_grad()`, or wrap the new tensor in `nn.Parameter(...)`."""


def _no_forward(scene, name):
    return f"""`{name}` has no `forward`. Is it spelled so, and indented as far as
    `__init__`?"""


def _none(scene, *_):
    names = scene.nothing()
    if len(names) == 1 and names[0].strip("`").startswith(("mask", "attn", "key_p", "pad")):
        return f"""{names[0]} is None here: no mask was given. Use it only
        `if {names[0].strip("`")} is not None`."""
    if names:
        return f"""{" and ".join(names)} is None here. An argument that was not given is None, and
        so is the result of a function without `return`."""
    return """A value on this line is None. The usual reason is a function or `forward` that has no
    `return`; in-place calls of a list, such as `append`, give None too."""


def _a_tuple(scene, *_):
    names = [
        f"`{name}`"
        for name, value in mentioned(scene.frame, scene.line)
        if isinstance(value, (tuple, list))
    ]
    said = f"{names[0]} is a tuple or list" if names else "A tuple or list is used as if it were"
    said += ", not a tensor." if names else " a tensor."
    return said + " If the function that made it returns (output, weights), take the first of them."


def _values_and_places(scene, name):
    made = name if name in ("max", "min") else ""
    meant = f", or call `a{name}`, which gives them alone" if made else ""
    return f"""`{name}` along one axis returns two things, the values and their places. Take
    `.values`{meant}."""


def _not_callable(scene, kind):
    if kind == "Tensor" or kind == "Parameter":
        return """A tensor is called like a function. Is a `*` or `@` missing before the
        parenthesis, or was a layer overwritten by its result?"""
    if kind == "NoneType":
        return "What is called here is None. Was the layer set in `__init__`?"
    return f"Something of type {kind} is called like a function. Is an operator missing?"


# --- arguments


def _missing(scene, function, names):
    if function in ("softmax", "log_softmax"):
        return "Softmax needs its axis: the one of the keys, `dim=-1`."
    said = f"{function}() needs {names}, which the call does not give."
    if scene.frame is not None:  # the learner's own call
        return said
    return said + " If callers may leave it out, give it a default, such as `mask=None`."


def _too_many(scene, function, most, given):
    if function in ("transpose",):
        return "`transpose` takes two axes. For more of them use `permute`, with all the axes."
    if function.split(".")[-1] == "forward":
        return f"""{function}() was given more arguments than it takes; `self` counts as one.
        Is `self` missing among its parameters, or `mask=None`?"""
    return f"{function}() was given more arguments than it takes; `self` counts as one."


def _numpys_words(function):
    own = f"a{function}" if function in ("max", "min") else function
    return f"""A NumPy function was given a tensor: `axis` and `keepdims` are its words. Stay with
    torch: `x.{own}(dim, keepdim=True)`."""


def _unexpected(scene, function, name):
    if name in ("axis", "keepdims") and scene.frame is not None and "np." in scene.line:
        return _numpys_words(function)
    return f"{function}() has no parameter `{name}`. Is it spelled differently there?"


def _wants_tensor(scene, function, name, kind):
    if kind == "NoneType":
        return _none(scene)
    if kind in ("tuple", "list"):
        return _a_tuple(scene)
    if kind in ("int", "float"):
        return (
            f"""`torch.{function}` takes tensors, and was given a plain number. Use
        `math.{function}` for a number, or `** 0.5` for a root."""
            if function
            in (
                "sqrt",
                "exp",
                "log",
                "rsqrt",
                "sin",
                "cos",
            )
            else f"`{function}` takes a tensor here, and was given a plain number."
        )
    if kind == "ndarray":
        return "A NumPy array met torch: use `torch.from_numpy`, or stay with tensors all the way."
    return f"`{function}` takes a tensor here, and was given {kind}."


def _list_of_tensors(scene, function):
    return f"`torch.{function}` takes one list of tensors: `torch.{function}([a, b], dim=...)`."


def _float_size(scene, *_):
    return """A size is a float. `/` always gives a float, even where it comes out even: use `//`
    for `embed_dim // num_heads`."""


def _invalid_combination(scene, function, given):
    kinds = [kind.strip() for kind in given.split(",")]
    if any(kind.startswith(("axis=", "keepdims=")) for kind in kinds):
        return _numpys_words(function)
    if "NoneType" in kinds:
        return _none(scene)
    if function in ("masked_fill", "masked_fill_", "where") and kinds and kinds[0] == "bool":
        return """The mask is a plain True or False, not a tensor. That happens when None is
        compared: `mask == 0` is False for mask=None. Ask `if mask is not None` first."""
    if "float" in kinds and function in ("view", "reshape", "zeros", "ones", "randn", "empty"):
        return _float_size(scene)
    if "tuple" in kinds or "list" in kinds:
        return _a_tuple(scene) if function not in ("view", "reshape") else ""
    return f"`{function}` was given ({given}), which it does not take. Is an argument missing?"


# --- shapes


def _matmul(scene, rows, left, right, columns):
    said = f"""A product needs the last axis of the left to be as long as the next to last of the
    right: here {scene.axis(left)} meets {scene.axis(right)}."""
    n = scene.sizes
    pair = int(left), int(right)
    if pair == (n.get("D"), n.get("E")):
        said += """ The tensor still is, or already is, cut into heads: project before the split,
        and join the heads before the last map."""
    elif pair == (n.get("E"), n.get("D")):
        said += " The map was made for one head's width, and it is given the whole width."
    return said


def _invalid_view(scene, wanted, count):
    lengths = [int(x) for x in re.findall(r"-?\d+", wanted)]
    known = math.prod(x for x in lengths if x != -1)
    count = int(count)
    has = factors(count, scene.sizes)
    said = f"There are {count} numbers" + (f" = {has}" if has else "")
    asked = " × ".join(scene.axis(x) for x in lengths if x != -1)
    if -1 in lengths:
        said += f", and {asked} does not divide them."
    else:
        said += f", and the new shape asks for {asked} = {known}."
    n = scene.sizes
    if n.get("E") in lengths and n.get("H") in lengths and known == count * n["H"]:
        return said + " The last axis should be the width of one head, not of the model."
    if -1 not in lengths and known * n.get("S", 0) == count * n.get("T", 0):
        return said + " T stands where the keys' length S belongs."
    if -1 not in lengths and known * n.get("T", 0) == count * n.get("S", 0):
        return said + " The keys' length S stands where T belongs."
    if n.get("S") in lengths and "S" not in has:
        return said + " Keys may be more or fewer than queries: take each length from its tensor."
    return said


def factors(count: int, sizes: dict[str, int]) -> str:
    """A number of elements as a product of axes that tensors have, "" if none fits."""
    usual = ("B T E", "B S E", "B H T S", "B H T T", "B H S S", "T E", "S E", "B E", "H T S", "E E")
    usual += ("B T T", "B T S", "B T S E", "B H T D E")
    for names in usual:
        names = names.split()
        if all(n in sizes for n in names) and math.prod(sizes[n] for n in names) == count:
            return "·".join(names)
    return ""


def _not_contiguous(scene, *_):
    return """After `transpose` or `permute` the numbers no longer lie in memory in the order that
    `view` needs. Use `.reshape(...)`, or `.contiguous().view(...)`."""


def _broadcast(scene, a, b, axis):
    n = scene.sizes
    pair = {int(a), int(b)}
    said = f"""Two tensors meet whose axis {axis} is {scene.axis(a)} in one and {scene.axis(b)} in
    the other; only equal lengths, or a 1, fit."""
    if pair == {n.get("T"), n.get("S")}:
        return said + " Something made for T × T, or T taken for the keys' length, meets T × S."
    if pair == {n.get("B"), n.get("H")}:
        return (
            said
            + """ The batch stands where the heads are: a mask (B, T, S) needs an axis for
        the heads, `mask[:, None]` or `mask.unsqueeze(1)`."""
        )
    if pair == {n.get("H"), n.get("S")} or pair == {n.get("H"), n.get("T")}:
        return said + " Heads meet positions: are the axes in the order (B, H, T, D) on both sides?"
    return said


def _bmm(scene, *_):
    numbers = re.findall(r"\d+", text(scene.error).split("to be:")[-1])
    if len(numbers) != 4:
        return ""
    batch, width, got_batch, got_width = numbers
    if batch != got_batch:
        return f"""The products of a batch come in pairs: {scene.axis(batch)} matrices on the left
        and {scene.axis(got_batch)} on the right."""
    return f"""In the product the left rows have {scene.axis(width)} numbers and the right columns
    {scene.axis(got_width)}. For Q K^T exchange the last two axes of the keys."""


def _bmm_axes(scene, *_):
    return """`bmm` takes exactly three axes. Fold batch and heads into one, or use `@`, which takes
    any number of axes in front."""


def _einsum_size(scene, letter, size, operand, seen):
    return f"""The letter {letter} stands for {scene.axis(size)} in one tensor and for
    {scene.axis(seen)} in another. An axis of its own, such as the keys', needs a letter of its
    own."""


def _einsum_count(scene, letters, axes_, operand):
    return f"""The formula gives {letters} letters to a tensor with {axes_} axes (tensor number
    {int(operand) + 1}, counted from 1). Has it been split into heads yet?"""


def _dimension(scene, low, high, got):
    count = int(high) + 1
    return f"""The tensor has {count} axes, 0 to {high}, and axis {got} is asked for. A tensor that
    was to have an axis for the heads may not have it yet."""


def _permute(scene, have, want):
    return f"`permute` must name every axis once: the tensor has {have}, and {want} are named."


def _cat(scene, axis, expected, got):
    return f"""Joined tensors may differ along the joined axis only ({axis}); along another one has
    {scene.axis(expected)} and one {scene.axis(got)}."""


def _expand(scene, wanted, has):
    return f"""Only an axis of length 1 can be expanded; this one is {scene.axis(has)} and should
    become {scene.axis(wanted)}."""


def _unpack(scene, *numbers):
    if ".shape" in scene.line or ".size()" in scene.line:
        return """The tensor has another number of axes than the line has names. Inputs of attention
        are (B, T, E); after the split into heads (B, H, T, D)."""
    return """The left side has another number of names than the right side has values. A tensor
    that is unpacked falls apart along its first axis."""


def _too_many_indices(scene, axes_):
    return f"The tensor has {axes_} axes only, and more are indexed."


def _out_of_bounds(scene, index, axis, size):
    return f"Axis {axis} has length {scene.axis(size)}: its last index is {int(size) - 1}."


def _past_the_end(scene, kind):
    if ".shape[" in scene.line or ".size()[" in scene.line:
        return """The tensor has fewer axes than the line counts on. Inputs of attention are
        (B, T, E); after the split into heads (B, H, T, D)."""
    return f"The {kind} has fewer members than the line counts on."


def _split_sizes(scene, total):
    return f"""The parts must add up to the whole axis, {scene.axis(total)}. Does one map make
    queries, keys and values, with three times the width?"""


def _layer_norm(scene, *_):
    return "The normalization was made for another width than its input's last axis has."


def _head_count(scene, *_):
    return "The widths of the heads must multiply up to the axis that is split: D = E // H."


# --- number formats and masks


def _dtypes(scene, *kinds):
    kinds = {k.replace("c10::", "").lower() for k in kinds if k}
    if kinds & {"long", "int", "long int"}:
        return "Whole numbers meet floats: embed the ids first, or convert with `.float()`."
    if "bool" in kinds:
        return "A bool mask meets floats: use `masked_fill`, or convert it."
    said = "Two number formats meet in one operation. "
    if scene.frame is not None:
        return (
            said
            + """Something was made, or cast, in a fixed format: take it from the input, as
        in `torch.zeros(..., dtype=x.dtype)` or `.to(x.dtype)`."""
        )
    return said + "Convert one of them, as in `.to(x.dtype)`."


def _masked_fill(scene, kind):
    return f"""`masked_fill` takes a bool mask and was given one of type {kind}. Convert it where it
    enters, with `mask.bool()`, or compare, with `mask == 0`."""


def _fill_value(scene, *_):
    return """`masked_fill` fills in one number, and was given a tensor of several. Use
    `torch.where` for a tensor."""


def _bool_minus(scene, *_):
    return "A bool mask is reversed by `~mask`; `1 - mask` and `-mask` do not work on it."


def _not_bool(scene, *_):
    return "`~` reverses bool masks only. Convert first, with `mask.bool()`."


def _half(scene, *_):
    return """The fill is more than float16 can hold: its lowest number is -65,504. Take it from the
    format, `torch.finfo(scores.dtype).min`, or use `float("-inf")`."""


def _ambiguous(scene, *_):
    return """A whole tensor is asked for one yes or no. For an argument that may be missing ask
    `is not None`; for a choice per element use `torch.where`."""


def _numpy(scene, *_):
    return """NumPy cannot follow gradients. Stay with torch all the way: `torch.exp`, `torch.sum`
    and the like. `.detach()` would silence the error and stop learning here."""


def _inplace(scene, *_):
    said = re.search(r"output \d+ of (\w+?)(?:Backward\d*)?,", text(scene.error))
    what = f" of {said[1]}" if said else ""
    return f"""A result{what} was changed in place after it had been kept for the gradient. Use the
    form that makes a new tensor: `x = x * m` for `x *= m`, `masked_fill` for `masked_fill_`."""


def _leaf(scene, *_):
    return """An input or a parameter that asks for gradients is changed in place. Make a new
    tensor; the first values of a parameter are set under `torch.no_grad()`."""


def _no_graph(scene, *_):
    return """No gradient can flow back from the output: `.detach()`, `.data`, NumPy,
    `torch.tensor(...)` or `no_grad` has cut the way."""


def _twice(scene, *_):
    return """Part of the graph is left over from an earlier call: something computed once is kept,
    in `__init__` or on `self`. Compute it anew in each forward."""


def _device(scene, *_):
    return """Two devices meet. Something is made on the CPU at each call: make it with
    `device=x.device`, or keep it with `register_buffer`, which moves with the module."""


def _unhashable(scene, kind):
    return f"A {kind} cannot be a key of a dict or a member of a set. Use a tuple."


def _allocate(scene, number):
    size = int(number)
    unit = next(((u, n) for u, n in (("GB", 1e9), ("MB", 1e6)) if size >= n), ("bytes", 1))
    return f"""A tensor of {size / unit[1]:,.0f} {unit[0]} was asked for. The inputs are small, so
    one of its lengths is not what you think."""


def _scalar(scene, number):
    return f"One number is wanted, and the tensor has {scene.axis(number)} of them."


def _scalar_grad(scene, *_):
    return "`backward()` starts from one number: take the sum or the mean first."


def _attn_mask_dtype(scene, kind):
    return f"The mask is of type {kind}. Convert it where it enters, with `mask.bool()`."


def _embedding(scene, *_):
    return "An embedding takes whole numbers (ids); here it is given floats."


def _not_implemented_for(scene, function, kind):
    if "bitwise" in function:
        return "`&`, `|` and `~` are for bool masks. Convert first, with `mask.bool()`."
    if kind == "Bool":
        return "This operation takes numbers; convert the mask with `.float()`."
    if kind in ("Long", "Int"):
        return "This operation takes floats; convert with `.float()`."
    return f"This operation does not exist for numbers of type {kind}."


def _other_mask_shape(scene, *_):
    return """nn.MultiheadAttention takes (T, B, E) unless it is made with batch_first=True: the
    first axis was taken for the length."""


NUMBER = r"(-?\d+)"
RULES = [
    (r"^name '(\w+)' is not defined", _undefined),
    (r"cannot access local variable '(\w+)'", _unbound),
    (r"local variable '(\w+)' referenced before assignment", _unbound),
    (r"cannot access free variable '(\w+)'", _unbound),
    (r"cannot assign (\w+) before Module\.__init__\(\) call", _before_init),
    (r"cannot assign '([\w.]+)' as parameter '(\w+)'", _not_a_parameter),
    (r"Module \[(\w+)\] is missing the required \"forward\"", _no_forward),
    (r"^module '([\w.]+)' has no attribute '(\w+)'", _no_function),
    (r"^'(\w+)' object has no attribute '(\w+)'", _no_attribute),
    (r"'NoneType' object is not callable", lambda scene: _not_callable(scene, "NoneType")),
    (r"'(\w+)' object is not callable", _not_callable),
    (r"'NoneType'|must be \w+, not NoneType", _none),
    (r"'torch\.return_types\.(\w+)'", _values_and_places),
    (r"must be tuple of Tensors, not Tensor", lambda scene: _list_of_tensors(scene, "cat")),
    (r"^(\w+)\(\): argument '(\w+)' .*must be Tensor, not (\w+)", _wants_tensor),
    (r"must be tuple of ints.*float|type float at pos|'float' object cannot be interp", _float_size),
    (r"^(\w+)\(\) received an invalid combination of arguments - got \(([^)]*)\)",
     _invalid_combination),
    (r"^([\w.<>]+)\(\) missing \d+ required positional arguments?: (.+)", _missing),
    (r"^([\w.<>]+)\(\) missing \d+ required keyword-only arguments?: (.+)", _missing),
    (r"^([\w.<>]+)\(\) takes (?:from \d+ to )?(\d+) positional arguments? but (\d+) w", _too_many),
    (r"^([\w.<>]+)\(\) got an unexpected keyword argument '(\w+)'", _unexpected),
    (r"unsupported operand type.*'(?:tuple|list)'|can only concatenate (?:tuple|list)", _a_tuple),
    (r"not enough values to unpack \(expected (\d+), got (\d+)\)", _unpack),
    (r"too many values to unpack \(expected (\d+)", _unpack),
    # shapes
    (rf"shapes cannot be multiplied \({NUMBER}x{NUMBER} and {NUMBER}x{NUMBER}\)", _matmul),
    (rf"shape '\[([-\d, ]+)\]' is invalid for input of size {NUMBER}", _invalid_view),
    (r"view size is not compatible", _not_contiguous),
    (rf"size of tensor a \({NUMBER}\) must match the size of tensor b \({NUMBER}\) at "
     rf"non-singleton dimension {NUMBER}", _broadcast),
    (r"Expected size for first two dimensions of batch2", _bmm),
    (r"batch[12] must be a 3D tensor", _bmm_axes),
    (rf"subscript (\w) has size {NUMBER} for operand {NUMBER} which does not broadcast with "
     rf"previously seen size {NUMBER}", _einsum_size),
    (rf"number of subscripts in the equation \({NUMBER}\) does not match the number of dimensions "
     rf"\({NUMBER}\) for operand {NUMBER}", _einsum_count),
    (r"output subscript (\w) does not appear",
     lambda scene, letter: f"The letter {letter} of the result is in none of the tensors."),
    (rf"Dimension out of range \(expected to be in range of \[{NUMBER}, {NUMBER}\], but got "
     rf"{NUMBER}\)", _dimension),
    (rf"input\.dim\(\) = {NUMBER} is not equal to len\(dims\) = {NUMBER}", _permute),
    (rf"must match except in dimension {NUMBER}. Expected size {NUMBER} but got size {NUMBER}",
     _cat),
    (r"stack expects each tensor to be equal size",
     lambda scene: "Stacked tensors must all have the same shape."),
    (rf"expanded size of the tensor \({NUMBER}\) must match the existing size \({NUMBER}\)",
     _expand),
    (rf"too many indices for tensor of dimension {NUMBER}", _too_many_indices),
    (rf"index {NUMBER} is out of bounds for dimension {NUMBER} with size {NUMBER}", _out_of_bounds),
    (rf"expects split_sizes to sum exactly to {NUMBER}", _split_sizes),
    (r"Given normalized_shape", _layer_norm),
    (r"don't multiply up to the size of dim", _head_count),
    (r"The shape of the 2D attn_mask is .*but should be", _other_mask_shape),
    (r"permute\(\): duplicate dims", lambda scene: "`permute` names an axis twice."),
    (r"^(tuple|list) index out of range", _past_the_end),
    (r"only one dimension can be inferred",
     lambda scene: "-1 may stand for one axis only: its length follows from the others."),
    # number formats
    (r"value cannot be converted to type .*without overflow|cannot be converted to type c10::Half",
     _half),
    (r"masked_fill_? only supports boolean masks, but got mask with dtype ([\w ]+)", _masked_fill),
    (r"masked_fill_? only supports a 0-dimensional value", _fill_value),
    (r"(?:Subtraction|Negation), the `-` operator", _bool_minus),
    (r"~ \(operator\.invert\) is only implemented", _not_bool),
    (r"Boolean value of Tensor with more than one value", _ambiguous),
    (r"truth value of an array with more than one", _ambiguous),
    (r"same dtype, but got:? ([\w:]+) (?:and|!=) ([\w:]+)", _dtypes),
    (r"expected scalar type (\w+) but found (\w+)", _dtypes),
    (r"Expected .*to have the same dtype", _dtypes),
    (r"attn_mask dtype to be bool or float.*attn_mask\.dtype: ([\w ]+) and", _attn_mask_dtype),
    (r"scalar types: Long, Int; but got", _embedding),
    (r"\"(\w+)\" not implemented for '(\w+)'", _not_implemented_for),
    # gradients
    (r"Can't call numpy\(\) on Tensor that requires grad", _numpy),
    (r"modified by an inplace operation", _inplace),
    (r"leaf Variable that requires grad", _leaf),
    (r"does not require grad and does not have a grad_fn", _no_graph),
    (r"backward through the graph a second time", _twice),
    (r"grad can be implicitly created only for scalar", _scalar_grad),
    (rf"Tensor with {NUMBER} elements cannot be converted to Scalar", _scalar),
    # the rest
    (r"on device .*expected device|all tensors to be on the same device|different devices?",
     _device),
    (r"unhashable type: '(\w+)'", _unhashable),
    (r"you tried to allocate (\d+) bytes", _allocate),
    (r"EOF when reading a line",
     lambda scene: "The code waits for `input()`, and during a check nobody answers."),
]  # fmt: skip
KINDS = {
    RecursionError: "A function calls itself without end. In a module, `self(x)` inside `forward` "
    "does that, and so does a property that reads itself.",
    NotImplementedError: "This part is not written yet.",
    ZeroDivisionError: "What is divided by is 0 here: a length or a count, or a number that may be 0.",
    StopIteration: "There is nothing left to take from.",
    MemoryError: "Something grows without end: look for a list or a tensor that is made longer in "
    "a loop.",
    AssertionError: "An `assert` does not hold for these inputs.",
    torch.OutOfMemoryError: "The inputs are small, so a tensor has a length you do not expect.",
}
