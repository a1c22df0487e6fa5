"""The checks of the exercises: one function or class each, compared with right code and with what
each likely mistake would have given.

Every check returns a Report and takes ``seconds``, after which the learner's code is cut off.
"""

import inspect
import math

import torch
from torch import Tensor

from mha.check import binding, caches, encodings, tiles
from mha.check.binding import documented_polarity
from mha.check.catalogue import finding
from mha.check.guard import Stopped
from mha.check.report import Report
from mha.check.trial import (
    Question,
    Role,
    Trial,
    Wrong,
    draw,
    examine,
    first_difference,
    misshapen,
    near,
    number,
    show,
    versus,
)

SIZES = {"B": 3, "T": 5, "S": 7, "H": 4, "D": 6, "E": 24}
SMALL = [(1, 2, 2, 1), (1, 2, 2, 2), (1, 3, 2, 2), (2, 2, 2, 1), (2, 2, 2, 2), (2, 3, 2, 2)]
POLARITIES = ("attend", "block")


def split_heads(fn, *, seconds: float = 10.0) -> Report:
    """Check fn(x, num_heads): (B, T, E) -> (B, H, T, D).

    Args:
        fn: the learner's function; its arguments may be spelled in any usual way.
        seconds: after which the learner's code is cut off.
    Returns: a Report.

    Examples:
        >>> import mha
        >>> def split(x, num_heads):
        ...     batch, length, width = x.shape
        ...     return x.reshape(batch, num_heads, length, width // num_heads)
        >>> report = mha.check.split_heads(split)
        >>> report.ok, [found.slug for found in report.findings]
        (False, ['split-no-transpose'])
        >>> mha.check.split_heads(mha.heads.split_heads).ok
        True
    """
    roles = [
        Role("x", "input inputs tensor t q query xs", must=True),
        Role("heads", "numheads nheads h nhead numhead headcount"),
        Role("width", "headdim d dk dhead headsize dh headwidth depth"),
        Role("batch", "b batchsize bs n"),
        Role("length", "t seqlen l length seqlength"),
    ]
    return examine(fn, _split_heads, roles, seconds, SIZES)


def merge_heads(fn, *, seconds: float = 10.0) -> Report:
    """Check fn(x): (B, H, T, D) -> (B, T, E).

    Args:
        fn: the learner's function, which may take sizes too.
        seconds: after which the learner's code is cut off.
    Returns: a Report.

    Examples:
        >>> import mha
        >>> def merge(x):
        ...     batch, heads, length, width = x.shape
        ...     return x.reshape(batch, length, heads * width)
        >>> report = mha.check.merge_heads(merge)
        >>> report.ok, [found.slug for found in report.findings]
        (False, ['merge-no-transpose'])
        >>> mha.check.merge_heads(mha.heads.merge_heads).ok
        True
    """
    roles = [
        Role("x", "input inputs tensor heads xs out output", must=True),
        Role("count", "numheads nheads h nhead numhead headcount"),
        Role("width", "headdim d dk dhead headsize dh headwidth depth"),
        Role("model", "e embeddim dmodel nembd hiddensize"),
        Role("batch", "b batchsize bs n"),
        Role("length", "t seqlen l length seqlength"),
    ]
    return examine(fn, _merge_heads, roles, seconds, SIZES)


def softmax(fn, *, seconds: float = 10.0) -> Report:
    """Check fn(x, dim=-1): weights along an axis that sum to 1.

    Args:
        fn: the learner's function, of tensors or of NumPy arrays.
        seconds: after which the learner's code is cut off.
    Returns: a Report.

    Examples:
        >>> import mha
        >>> def softmax(x, dim=-1):
        ...     return x.exp() / x.exp().sum(dim, keepdim=True)
        >>> report = mha.check.softmax(softmax)
        >>> report.ok, [found.slug for found in report.findings]
        (False, ['softmax-overflow'])
        >>> print(report.findings[0].hint)
        Which number, subtracted from a whole row, leaves nothing above 0?
    """
    roles = [
        Role("x", "input inputs tensor scores logits z a", must=True),
        Role("dim", "axis d"),
    ]
    return examine(fn, _softmax, roles, seconds, {"T": 3, "S": 5})


def causal_mask(fn, *, mask: str = "attend", seconds: float = 10.0) -> Report:
    """Check fn(T, S=None): bool (T, S), True where key j <= query i.

    Args:
        fn: the learner's function; it may take T alone.
        mask: what True is to mean, "attend" or "block".
        seconds: after which the learner's code is cut off.
    Returns: a Report.
    Errors: ValueError for a ``mask`` that is neither.

    Examples:
        >>> import torch
        >>> import mha
        >>> def causal(T):
        ...     return torch.ones(T, T).triu(1).bool()
        >>> report = mha.check.causal_mask(causal)
        >>> report.ok, [found.slug for found in report.findings]
        (False, ['mask-inverted'])
        >>> mha.check.causal_mask(causal, mask="block").ok
        True
    """
    _check_polarity(mask)
    roles = [
        Role("T", "size n length seqlen l sz tgtlen targetlength numqueries nqueries qlen "
             "querylength numtokens tokens contextlength seqlength", must=True),
        Role("S", "srclen numkeys nkeys klen keylength sourcelength kvlen memorylength"),
        Role("offset", "qoffset past pastlen pastlength start startpos diagonal shift"),
    ]  # fmt: skip
    return examine(fn, lambda trial: _causal(trial, mask), roles, seconds, {"T": 4, "S": 6})


def padding_mask(fn, *, mask: str = "attend", seconds: float = 10.0) -> Report:
    """Check fn(lengths, max_len=None) or fn(ids, pad_id=0): bool (B, S), (B, 1, 1, S) and the like.

    Args:
        fn: the learner's function.
        mask: what True is to mean, "attend" (a real token) or "block".
        seconds: after which the learner's code is cut off.
    Returns: a Report.
    Errors: ValueError for a ``mask`` that is neither.

    Examples:
        >>> import torch
        >>> import mha
        >>> def padding(lengths, max_len):
        ...     return torch.arange(max_len) <= lengths[:, None]
        >>> report = mha.check.padding_mask(padding)
        >>> report.ok, [found.slug for found in report.findings]
        (False, ['padding-off-by-one'])
        >>> mha.check.padding_mask(mha.masks.padding).ok
        True
    """
    _check_polarity(mask)
    roles = [
        Role("lengths", "lens len validlens validlen seqlens seqlengths length validlengths "
             "sequencelengths lengthtensor"),
        Role("ids", "tokens x seq input inputids inputs tokenids batch src sequence sequences "
             "ids y"),
        Role("pad", "padid padidx padtoken paddingidx padtokenid paddingid padindex padvalue"),
        Role("keys", "s srclen numkeys nkeys klen"),
        Role("most", "maxlen maxlength t n total size seqlen maxseqlen width"),
    ]  # fmt: skip
    return examine(fn, lambda trial: _padding(trial, mask), roles, seconds, {"B": 4, "S": 6})


def positional_encoding(fn, *, seconds: float = 10.0) -> Report:
    """Check fn(length, width): (T, E), sine in the even features and cosine in the odd ones.

    Args:
        fn: the learner's function, or a class of a module that adds them to its input.
        seconds: after which the learner's code is cut off.
    Returns: a Report.

    Examples:
        >>> import mha
        >>> def encode(length, width):
        ...     return mha.positions.sinusoidal(length + 1, width)[1:]
        >>> report = mha.check.positional_encoding(encode)
        >>> report.ok, [found.slug for found in report.findings]
        (False, ['pe-from-one'])
        >>> mha.check.positional_encoding(mha.positions.sinusoidal).ok
        True
    """
    return encodings.check(fn, seconds)


def kv_cache(cls, *, seconds: float = 10.0) -> Report:
    """Check a class whose append(k, v) takes (B, H, T, D) and returns all keys and all values.

    Args:
        cls: the learner's class, or an instance that is empty.
        seconds: after which the learner's code is cut off.
    Returns: a Report.

    Examples:
        >>> import mha
        >>> class Forgetful:
        ...     def append(self, k, v):
        ...         self.k, self.v = k, v
        ...         return self.k, self.v
        >>> report = mha.check.kv_cache(Forgetful)
        >>> report.ok, [found.slug for found in report.findings]
        (False, ['cache-overwrites'])
    """
    return caches.check(cls, seconds)


def grouped_query_attention(fn, *, mask: str | None = None, seconds: float = 10.0) -> Report:
    """Check fn(q, k, v, mask=None): q (B, H, T, D); k and v (B, H_kv, S, D); H a multiple of H_kv.

    Args:
        fn: the learner's function.
        mask: what True means in its masks, "attend" or "block"; by default what its comments and
            docstring say, else "attend".
        seconds: after which the learner's code is cut off.
    Returns: a Report.
    Errors: ValueError for a ``mask`` that is neither.

    Examples:
        >>> import mha
        >>> def grouped(q, k, v, mask=None):
        ...     groups = q.shape[1] // k.shape[1]
        ...     k, v = k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1)  # (B, H, S, D)
        ...     return mha.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        >>> report = mha.check.grouped_query_attention(grouped)
        >>> report.ok, [found.slug for found in report.findings]
        (False, ['gqa-tiled'])
    """
    _check_polarity(mask or "attend")
    return tiles.check_grouped(fn, mask, seconds)


def flash_attention(fn, *, seconds: float = 10.0) -> Report:
    """Check fn(q, k, v, block_size): attention in tiles of keys, with (B, H, T, D), or (T, D).

    Args:
        fn: the learner's function.
        seconds: after which the learner's code is cut off.
    Returns: a Report.

    Examples:
        >>> import mha
        >>> def flash(q, k, v, block_size):
        ...     out = 0
        ...     for keys, values in zip(k.split(block_size, -2), v.split(block_size, -2)):
        ...         out = out + mha.scaled_dot_product_attention(q, keys, values)
        ...     return out
        >>> report = mha.check.flash_attention(flash)
        >>> report.ok, [found.slug for found in report.findings]
        (False, ['flash-tile-softmax'])
    """
    return tiles.check_flash(fn, seconds)


def _check_polarity(mask: str) -> None:
    if mask not in POLARITIES:
        raise ValueError(f'mask must be "attend" or "block", got {mask!r}')


# --- splitting and merging


def _coded(*shape: int) -> Tensor:
    """Numbers 0, 1, 2, ..., each once."""
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


def _split(x: Tensor, H: int) -> Tensor:
    B, T, E = x.shape
    return x.reshape(B, T, H, E // H).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    B, H, T, D = x.shape
    return x.transpose(1, 2).reshape(B, T, H * D)


def _split_mistakes(x: Tensor, H: int):
    B, T, E = x.shape
    D = E // H
    yield "split-no-transpose", x.reshape(B, H, T, D)
    yield "split-heads-behind", x.reshape(B, T, H, D)
    yield "split-dim-major", x.reshape(B, T, D, H).permute(0, 3, 1, 2)
    yield "split-sizes-swapped", x.reshape(B, T, D, H).transpose(1, 2)
    yield "split-last-swapped", x.reshape(B, T, H, D).permute(0, 2, 3, 1)
    yield "batch-mixed", x.reshape(T, B, H, D).permute(1, 2, 0, 3)
    yield "batch-mixed", x.reshape(H, B, T, D).transpose(0, 1)
    yield "batch-mixed", x.transpose(0, 1).reshape(B, H, T, D)
    yield "batch-mixed", x.transpose(0, 1).reshape(B, T, H, D).transpose(1, 2)
    yield "batch-mixed", torch.stack(x.chunk(H, -1)).reshape(B, H, T, D)


def _split_arguments(trial: Trial, x: Tensor, H: int) -> dict:
    B, T, E = x.shape
    return {"x": x, "heads": H, "width": E // H, "batch": B, "length": T}


def _sizes(trial: Trial) -> dict[str, int]:
    """The lengths of the axes; for a method, those that its module is made for."""
    owner = vars(trial.fn.__self__) if _is_method(trial.fn) else {}
    settings = {
        meaning: value
        for name, value in owner.items()
        for meaning in ("heads", "width")
        if binding.plain(name) in binding.SETTINGS[meaning].split() and isinstance(value, int)
    }
    if "heads" not in settings or trial.has("heads") or trial.has("count"):
        return SIZES
    H = settings["heads"]
    E = settings.get("width", 6 * H)
    B, T = [x for x in (3, 5, 7, 11, 13) if x not in (H, E, E // H)][:2]
    trial.reading.append(f"its module has {H} heads and a width of {E}")
    return {"B": B, "T": T, "H": H, "D": E // H, "E": E, "fixed": 1}


def _is_method(fn) -> bool:
    return inspect.ismethod(fn) and not isinstance(fn.__self__, type)


def _split_heads(trial: Trial) -> None:
    n = _sizes(trial)
    x = _coded(n["B"], n["T"], n["E"])
    if not (trial.has("heads") or trial.has("width") or "fixed" in n):
        raise Question("it is not told how many heads: name an argument num_heads")
    yours = trial.tensors_or_arrays(**_split_arguments(trial, x, n["H"]))
    right, fold = _split(x, n["H"]), (lambda y: y)
    if yours.shape == (n["B"] * n["H"], n["T"], n["D"]):
        trial.reading.append("batch and heads are folded into one axis, (B H, T, D)")
        fold = lambda y: y.flatten(0, 1)  # noqa: E731
        swapped = right.transpose(0, 1).flatten(0, 1)
        if near(yours, swapped):
            trial.line("each number is where it belongs", True, "heads before the batch")
            trial.reading.append("in that axis the heads come first")
            return

    def example() -> str:
        for B, T, H, D in [] if "fixed" in n else SMALL:
            small = _coded(B, T, H * D)
            mine = trial.copies(**_split_arguments(trial, small, H))
            wanted = fold(_split(small, H))
            if not near(mine, wanted):
                return versus(f"x (B={B}, T={T}, E={H * D}), H={H}: {show(small)}", mine, wanted)
        return first_difference(yours, fold(right), "example head position feature")

    candidates = [(slug, fold(y)) if y.ndim == 4 and y.shape == right.shape else (slug, y)
                  for slug, y in _split_mistakes(x, n["H"])]  # fmt: skip
    name = "each number is where it belongs, (B, H, T, D)"
    if not trial.compare(name, yours, fold(right), candidates, _safely(example)):
        return
    trial.line("merging brings the input back", True)
    if "fixed" not in n:
        trial.attempt(_other_shapes, "split", fold)
    trial.attempt(_keeps, _split_arguments(trial, draw(n["B"], n["T"], n["E"]), n["H"]))


def _other_shapes(trial: Trial, kind: str, fold=lambda y: y) -> None:
    """One head, as many heads as features, one example, one position, a tensor with strides."""
    for B, T, H, D in [(3, 5, 1, 6), (3, 5, 6, 1), (1, 5, 2, 3), (3, 1, 2, 3), (5, 5, 5, 5)]:
        if kind == "split":
            x = _coded(B, T, H * D)
            yours, right = trial.copies(**_split_arguments(trial, x, H)), fold(_split(x, H))
        else:
            x = _coded(B, H, T, D)
            yours, right = trial.copies(**_merge_arguments(fold(x), B, H, T, D)), _merge(x)
        if not near(yours, right):
            trial.line("other sizes", False, f"B={B}, T={T}, H={H}, D={D}")
            trial.add("unknown", versus(f"B={B}, T={T}, H={H}, D={D}", yours, right))
            return
    trial.line("other sizes: one head, one feature a head, one example, one position", True)


def _keeps(trial: Trial, given: dict) -> None:
    """The input stays as it was, and gradients pass."""
    if trial.arrays:
        return
    x = given["x"]
    before = x.clone()
    trial(**given)
    if not trial.line("the input is left as it was", torch.equal(x, before)):
        trial.add("input-changed", "x differs after the call")
        return  # a gradient would stumble over the same line
    leaf = x.clone().requires_grad_()
    try:
        with torch.enable_grad():
            result = trial.raw(**(given | {"x": leaf}))
    except Stopped as stopped:
        if "numpy()" not in stopped.message:
            raise
        if "torch" not in getattr(getattr(trial.fn, "__code__", None), "co_names", ()):
            trial.reading.append("it computes with NumPy, so gradients were not tried")
            return
        result = None
    result = result[0] if isinstance(result, tuple) else result
    reaches = isinstance(result, Tensor) and result.requires_grad
    if not trial.line("gradients pass", reaches):
        trial.add("not-differentiable", "x asks for a gradient, and the result does not")


def _safely(example):
    """An example that is looked for with the learner's code, "" if that fails."""

    def made() -> str:
        try:
            return example()
        except (Stopped, Wrong):
            return ""

    return made


def _merge_arguments(x: Tensor, B: int, H: int, T: int, D: int) -> dict:
    return {"x": x, "count": H, "width": D, "model": H * D, "batch": B, "length": T}


def _merge_mistakes(x: Tensor):
    B, H, T, D = x.shape
    yield "merge-no-transpose", x.reshape(B, T, H * D)
    yield "merge-not-joined", x.transpose(1, 2)
    yield "merge-dim-major", x.permute(0, 2, 3, 1).reshape(B, T, D * H)
    yield "heads-summed", x.sum(1)
    yield "heads-summed", x.mean(1)
    yield "batch-mixed", x.permute(2, 0, 1, 3).reshape(B, T, H * D)
    yield "batch-mixed", x.transpose(0, 1).reshape(B, T, H * D)
    yield "batch-mixed", x.permute(1, 2, 0, 3).reshape(B, T, H * D)
    yield "merge-no-transpose", x.transpose(-1, -2).reshape(B, T, H * D)


def _merge_heads(trial: Trial) -> None:
    n = _sizes(trial)
    B, H, T, D = (n[axis] for axis in "BHTD")
    x, fold = _coded(B, H, T, D), (lambda y: y)
    try:
        yours = trial.tensors_or_arrays(**_merge_arguments(x, B, H, T, D))
    except Stopped:
        if not (trial.has("count") or trial.has("batch")):
            raise
        fold = lambda y: y.flatten(0, 1)  # noqa: E731
        try:
            yours = trial.copies(**_merge_arguments(fold(x), B, H, T, D))
        except Stopped:
            yours = None
        if yours is None:
            fold = lambda y: y  # noqa: E731
            yours = trial.copies(**_merge_arguments(x, B, H, T, D))
        trial.reading.append("it takes batch and heads folded into one axis, (B H, T, D)")
    right = _merge(x)

    def example() -> str:
        for b, t, h, d in [] if "fixed" in n else SMALL:
            small = _coded(b, h, t, d)
            mine, wanted = trial.copies(**_merge_arguments(fold(small), b, h, t, d)), _merge(small)
            if not near(mine, wanted):
                return versus(f"x (B={b}, H={h}, T={t}, D={d}): {show(small)}", mine, wanted)
        return first_difference(yours, right, "example position feature")

    name = "each number is where it belongs, (B, T, E)"
    if not trial.compare(name, yours, right, _merge_mistakes(x), _safely(example)):
        return
    trial.line("splitting brings the input back", True)
    if "fixed" not in n:
        trial.attempt(_other_shapes, "merge", fold)
    trial.attempt(_keeps, _merge_arguments(fold(draw(B, H, T, D)), B, H, T, D))


# --- softmax


def _softmax_mistakes(x: Tensor, dim: int):
    e = x.exp()
    yield "softmax-no-normalise", e
    yield "softmax-no-normalise", (x - x.amax(dim, keepdim=True)).exp()
    yield "softmax-no-normalise", (x - x.max()).exp()
    for other in range(x.ndim):
        if other != dim % x.ndim:
            yield "softmax-wrong-axis", x.softmax(other)
    yield "softmax-joint", x.flatten().softmax(0).reshape(x.shape)
    yield "softmax-linear", x / x.sum(dim, keepdim=True)
    yield "softmax-linear", x.abs() / x.abs().sum(dim, keepdim=True)
    yield "softmax-log", x.log_softmax(dim)
    yield "softmax-negated", (-x).softmax(dim)
    yield "softmax-sigmoid", x.sigmoid()
    yield "softmax-base", (x * math.log(2)).softmax(dim)
    yield "softmax-base", (x * math.log(10)).softmax(dim)
    top = x.amax(dim, keepdim=True)
    yield "softmax-shift-once", e / (x - top).exp().sum(dim, keepdim=True)
    yield "softmax-shift-once", (x - top).exp() / e.sum(dim, keepdim=True)
    if x.ndim == 2 and x.shape[0] == x.shape[1]:
        yield from _without_keepdim(x, dim)


def _without_keepdim(x: Tensor, dim: int):
    """On a square matrix a reduced row broadcasts along the wrong axis, and no shape tells."""
    e, shifted = x.exp(), (x - x.amax(dim)).exp()
    yield "softmax-keepdim", e / e.sum(dim)
    yield "softmax-keepdim", shifted / shifted.sum(dim)
    yield "softmax-keepdim", shifted / shifted.sum(dim, keepdim=True)
    right = (x - x.amax(dim, keepdim=True)).exp()
    yield "softmax-keepdim", right / right.sum(dim)


def _softmax(trial: Trial) -> None:
    def run(x: Tensor, dim: int = -1) -> Tensor:
        return trial.copies(x=x, dim=dim)

    x = draw(3, 5, seed=1)
    name = "weights along the last axis"
    try:
        yours = trial.tensors_or_arrays(x=x, dim=-1)
    except Stopped:
        square = draw(4, 4, seed=1)  # where a forgotten keepdim does not raise
        try:
            slugs = [s for s, y in _without_keepdim(square, -1) if near(run(square), y)]
        except (Stopped, Wrong):
            slugs = []
        if not slugs:
            raise
        trial.line(name, False, "softmax-keepdim", "softmax-keepdim")
        small = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
        trial.add("softmax-keepdim", versus(f"x = {show(small)}", run(small), small.softmax(-1)))
        return
    right = x.softmax(-1)

    def example() -> str:
        for small in (torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0], [2.0, 4.0]])):
            mine = run(small)
            if not near(mine, small.softmax(-1)):
                return versus(f"x = {show(small)}", mine, small.softmax(-1))
        return versus("x of shape (3, 5)", yours, right)

    if trial.compare(name, yours, right, _softmax_mistakes(x, -1), _safely(example)):
        if trial.has("dim"):
            trial.attempt(_softmax_axes)
        trial.attempt(_softmax_large)
        if not trial.arrays:
            trial.attempt(_softmax_formats)
        trial.attempt(_keeps, {"x": draw(3, 5), "dim": -1})


def _softmax_axes(trial: Trial) -> None:
    x = draw(4, 4, 4, seed=2)
    for dim in (0, 1, 2, -2):
        yours, right = trial.copies(x=x, dim=dim), x.softmax(dim)
        if not near(yours, right):
            square = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
            text = versus(f"x = {show(square)}, dim=0",
                          trial.copies(x=square, dim=0), square.softmax(0))  # fmt: skip
            trial.compare("any axis", yours, right, _softmax_mistakes(x, dim), text)
            return
    trial.line("any axis", True)


def _softmax_large(trial: Trial) -> None:
    name = "large scores do not overflow"
    for x in ([[1000.0, 1001.0]], [[-1000.0, -1001.0]], [[0.0, 500.0, -500.0]]):
        x = torch.tensor(x)
        yours = trial.copies(x=x, dim=-1)
        if not near(yours, x.softmax(-1)):
            trial.line(name, False, "", "softmax-overflow")
            trial.add("softmax-overflow", versus(f"x = {show(x)}", yours, x.softmax(-1)))
            return
    x = torch.tensor([[1000.0, 1001.0], [0.0, 1.0]])
    yours = trial.copies(x=x, dim=-1)
    if not near(yours, x.softmax(-1)):
        trial.line(name, False, "rows of very different size", "softmax-global-max")
        trial.add("softmax-global-max", versus(f"x = {show(x)}", yours, x.softmax(-1)))
        return
    trial.line(name, True)
    x = torch.tensor([[0.0, -torch.inf, 1.0]])
    yours = trial.copies(x=x, dim=-1)
    if not trial.line("a score of -inf gets the weight 0", near(yours, x.softmax(-1))):
        trial.add("not-finite", versus(f"x = {show(x)}", yours, x.softmax(-1)))


def _softmax_formats(trial: Trial) -> None:
    for dtype in (torch.float64, torch.float16):
        got = trial.copies(x=draw(3, 5).to(dtype), dim=-1).dtype
        if not trial.line(f"{dtype} stays {dtype}".replace("torch.", ""), got == dtype):
            trial.add("dtype-leak", f"{dtype} in, {got} out".replace("torch.", ""))


# --- masks


def _read_mask(mask: Tensor) -> tuple[Tensor, str]:
    """A mask as bool, and what it was: "bool", "numbers" (0 and 1) or "additive"."""
    if mask.dtype == torch.bool:
        return mask, "bool"
    values = set(mask.double().unique().tolist())
    if values <= {0.0, 1.0} and values:
        return mask.bool(), "numbers"
    if 0.0 in values and all(value <= 0 for value in values):
        return mask == 0, "additive"
    text = f"the values in it are {', '.join(number(v) for v in sorted(values)[:5])}"
    raise Wrong(finding("wrong-dtype", text, title="The mask is neither bool nor 0 and -inf"))


def _told(trial: Trial, mask: str, kind: str) -> bool:
    """Whether True means blocked: as told by the caller or by the learner's own words."""
    says = documented_polarity(trial.fn)
    block = mask == "block" or (says == "block" and kind != "additive")
    if kind == "additive":
        trial.reading.append("mask: 0 = may attend, a large negative number = blocked")
        return False
    trial.reading.append(f"mask: True = {'blocked' if block else 'may attend'}")
    if kind == "numbers":
        trial.add("mask-numbers", "the mask holds 0 and 1, not False and True", "note")
    return block


def _check_fill(trial: Trial, mask: Tensor) -> None:
    low = float(mask.double().min())
    if low > -1e3:
        trial.add("mask-fill-small", f"what is added to a blocked score is {number(low)}")


def _rule(T: int, S: int, shift: int = 0) -> Tensor:
    return torch.ones(T, S, dtype=torch.bool).tril(shift)


def _causal_mistakes(T: int, S: int, shift: int = 0):
    yield "mask-inverted", ~_rule(T, S, shift)
    yield "causal-upper", torch.ones(T, S, dtype=torch.bool).triu(shift)
    yield "causal-strict", _rule(T, S, shift - 1)
    yield "causal-leak-one", _rule(T, S, shift + 1)
    yield "mask-all-true", torch.ones(T, S, dtype=torch.bool)
    yield "mask-all-false", torch.zeros(T, S, dtype=torch.bool)


def _causal(trial: Trial, mask: str) -> None:
    T = 5
    square = {"T": T} if trial.optional("S") else {"T": T, "S": T}
    given = _first_mask(trial, square)
    seen, kind = _read_mask(_squeezed(given, (T, T)))
    block = _told(trial, mask, kind)

    def allowed(**sizes) -> Tensor:
        result = trial.copies(**(sizes | {"T": trial.makes(sizes["T"])}))
        wanted = (sizes["T"], sizes.get("S", sizes["T"]))
        result = _squeezed(result, wanted)
        read = result == 0 if kind == "additive" else _read_mask(result)[0]
        return ~read if block else read

    def example() -> str:
        for t in (2, 3):
            sizes = {"T": t} if trial.optional("S") else {"T": t, "S": t}
            mine = allowed(**sizes)
            if not near(mine, _rule(t, t)):
                return picture(f"T = {t}", mine, _rule(t, t))
        return ""

    seen = ~seen if block else seen
    name = "query i sees the keys 0 to i"
    if not trial.compare(name, seen, _rule(T, T), _causal_mistakes(T, T), _safely(example)):
        return
    if kind == "additive":
        _check_fill(trial, given)
    if seen.shape != given.shape:
        trial.reading.append(f"it has leading axes of length 1: {tuple(given.shape)}")
    for t in (1, 2, 9):
        right = _rule(t, t)
        sizes = {"T": t} if trial.optional("S") else {"T": t, "S": t}
        mine = allowed(**sizes)
        if not near(mine, right):
            trial.compare("other lengths", mine, right, _causal_mistakes(t, t),
                          picture(f"T = {t}", mine, right))  # fmt: skip
            return
    trial.line("other lengths", True)
    if trial.has("S"):
        trial.attempt(_unequal, allowed)
    if trial.has("offset") and not trial.has("S"):
        trial.reading.append(f"`{trial.places['offset'].name}` was left as it is by default")


def _first_mask(trial: Trial, sizes: dict) -> Tensor:
    """The mask for a length; some functions take a tensor of that length instead."""
    trial.makes = lambda T: T
    try:
        return trial.copies(**sizes)
    except Stopped as stopped:
        if stopped.kind != "exception" or not trial.guessed:
            raise
        for front, back in [((1,), ()), ((1,), (8,)), ((1, 1), (8,))]:
            make = lambda T, front=front, back=back: torch.ones(*front, T, *back)  # noqa: E731
            try:
                result = trial.copies(**(sizes | {"T": make(sizes["T"])}))
            except (Stopped, Wrong):
                continue
            trial.makes = make
            shape = "B, T" if not back else "B, T, E" if len(front) == 1 else "B, H, T, D"
            trial.reading.append(f"it takes a tensor ({shape}) and reads its length")
            return result
        raise


def _unequal(trial: Trial, allowed) -> None:
    """T is not S, with and without an offset."""
    ends = False
    for T, S in [(2, 4), (4, 2), (3, 7)]:
        mine = allowed(T=T, S=S)
        if near(mine, _rule(T, S)):
            continue
        if near(mine, _rule(T, S, S - T)):
            ends = True
            continue
        text = picture(f"T = {T}, S = {S}", mine, _rule(T, S))
        candidates = [*_causal_mistakes(T, S), *_causal_mistakes(T, S, S - T)]
        trial.compare("T is not S", mine, _rule(T, S), candidates, text)
        return
    trial.line(
        "T is not S", True, "aligned at the last key" if ends else "aligned at the first key"
    )
    if ends:
        text = picture("T = 2, S = 4", allowed(T=2, S=4), _rule(2, 4))
        trial.add("causal-bottom-right", text, "note")
    elif trial.has("offset"):
        mine, right = allowed(T=2, S=5, offset=3), _rule(2, 5, 3)
        text = picture("T = 2, S = 5, offset 3", mine, right)
        if near(mine, _rule(2, 5)):
            trial.line("the offset shifts the rule", False, "", "causal-top-left")
            trial.add("causal-top-left", text)
        else:
            trial.compare("the offset shifts the rule", mine, right, [], text)


def picture(given: str, yours: Tensor, right: Tensor) -> str:
    """Two masks, a row for each query; 1 = may attend."""
    if yours.shape != right.shape:
        return f"{given}: your shape is {tuple(yours.shape)}, right is {tuple(right.shape)}"
    width = max(7, 2 * right.shape[1] + 1)
    lines = [f"{given}, 1 = may attend:", f"{'  yours':{width}}   right"]
    for mine, wanted in zip(yours.int().tolist(), right.int().tolist(), strict=True):
        row = "  " + " ".join(map(str, mine))
        lines.append(f"{row:{width}}   " + " ".join(map(str, wanted)))
    return "\n".join(lines)


def _squeezed(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask without leading axes of length 1. Errors: Wrong for another shape."""
    got = tuple(mask.shape)
    while mask.ndim > len(shape) and mask.shape[0] == 1:
        mask = mask[0]
    if tuple(mask.shape) != shape:
        text = f"the mask should be {shape} and is {got}"
        raise Wrong(misshapen(text, "The mask has another shape than it should"))
    return mask


def _padding(trial: Trial, mask: str) -> None:
    if "lengths" in trial.guessed and trial.has("pad"):
        trial.places["ids"] = trial.places.pop("lengths")
    elif trial.guessed or not (trial.has("ids") or trial.has("lengths")):
        raise Question("name its first argument lengths, or ids")
    by_ids = trial.has("ids")
    lengths = torch.tensor([2, 6, 1, 4])
    (_padding_ids if by_ids else _padding_lengths)(trial, mask, lengths)


def _padding_mistakes(lengths: Tensor, S: int):
    at = torch.arange(S)
    row = lengths[:, None]
    yield "mask-inverted", at >= row
    yield "padding-off-by-one", at <= row
    yield "padding-off-by-one", at < row - 1
    yield "padding-off-by-one", (at > 0) & (at <= row)
    if lengths.max() < S:
        yield "padding-shared", (at < lengths.max()).expand(len(lengths), S)
    yield "padding-shared", (at < lengths.min()).expand(len(lengths), S)
    yield "padding-shared", (at < lengths[0]).expand(len(lengths), S)
    yield "mask-all-true", torch.ones(len(lengths), S, dtype=torch.bool)
    yield "mask-all-false", torch.zeros(len(lengths), S, dtype=torch.bool)
    yield "padding-left", at >= S - row
    yield "padding-off-by-one+mask-inverted", at > row


def _rows(trial: Trial, result: Tensor, B: int, S: int) -> Tensor:
    """A mask as (B, S), whatever its axes; adds what is to be said of its shape. Errors: Wrong."""
    shape = tuple(result.shape)
    if shape in [(B, S), (B, 1, S), (B, 1, 1, S)]:
        return result.reshape(B, S)
    if shape in [(B, S, 1), (B, 1, S, 1)]:
        text = f"the mask is {shape}: its queries vary, and each row of keys is all alike"
        raise Wrong(finding("pad-query-axis", text))
    if len(shape) in (3, 4) and shape[0] == B and shape[-1] == S:
        whole = result.reshape(B, -1, S)
        rows = whole[:, 0]
        if bool((whole == rows[:, None]).all()):
            return rows
        if whole.shape[1] == S:
            if bool((whole == whole[..., :1]).all()):
                text = f"the mask is {shape}: each row of keys is all alike"
                raise Wrong(finding("pad-query-axis", text))
            flat = whole.diagonal(dim1=1, dim2=2)
            both = flat[:, :, None] & flat[:, None, :] if whole.dtype == torch.bool else None
            if both is not None and bool((whole == both).all()):
                trial.add("pad-both-axes", f"the mask is {shape}; rows of pads are empty", "note")
                return flat
    text = f"for B={B} and S={S} the mask is {shape}; (B, S) or (B, 1, 1, S) is usual"
    raise Wrong(misshapen(text, "The mask has another shape than it should"))


def _judge(trial: Trial, mask: str, result: Tensor, lengths: Tensor, S: int, example) -> bool:
    rows = _rows(trial, result, len(lengths), S)
    seen, kind = _read_mask(rows)
    block = _told(trial, mask, kind)
    seen = ~seen if block else seen
    right = torch.arange(S) < lengths[:, None]
    said = picture(example, seen, right)
    good = trial.compare(
        "True at the real tokens", seen, right, _padding_mistakes(lengths, S), said
    )
    if good and kind == "additive":
        _check_fill(trial, rows)
    return good


def _padding_lengths(trial: Trial, mask: str, lengths: Tensor) -> None:
    told = trial.has("most") or trial.has("keys")
    S = 7 if told else 6
    given = {"lengths": lengths, "most": S, "keys": S}
    result = trial.tensors_or_arrays(**given)
    said = f"lengths = {lengths.tolist()}" + (f", S = {S}" if told else "")
    if not _judge(trial, mask, result, lengths, S, said):
        return
    if told:
        trial.attempt(_longer, lengths)


def _longer(trial: Trial, lengths: Tensor) -> None:
    """More keys than the longest example has."""
    result = trial.copies(lengths=lengths, most=9, keys=9)
    good = result.shape[-1] == 9
    if not trial.line("S may be more than the longest length", good):
        text = f"S = 9, lengths = {lengths.tolist()}: the mask is {tuple(result.shape)}"
        raise Wrong(misshapen(text, "The mask ignores how many keys there are"))


def _padding_ids(trial: Trial, mask: str, lengths: Tensor) -> None:
    S, pad = 7, 0

    def make(pad: int) -> Tensor:
        words = torch.arange(1, len(lengths) * S + 1).reshape(len(lengths), S) + 10
        return torch.where(torch.arange(S) < lengths[:, None], words, pad)

    given = {"ids": make(pad), "most": S, "keys": S}
    given |= {} if trial.optional("pad") and trial.has("pad") else {"pad": pad}
    if trial.has("pad") and trial.optional("pad"):
        default = trial.places["pad"].default
        pad = default if isinstance(default, int) else 0
        given["ids"], given["pad"] = make(pad), pad
    result = trial.tensors_or_arrays(**given)
    if not _judge(
        trial, mask, result, lengths, S, f"ids padded with {pad}, real tokens {lengths.tolist()}"
    ):
        return
    seen = result
    if trial.has("pad"):
        again = trial.copies(**(given | {"ids": make(7), "pad": 7}))
        if not trial.line("any pad id", near(again, seen)):
            trial.add("padding-id-fixed", "with pad_id=7 and ids padded with 7 the mask is another")
    front = given["ids"].flip(-1)
    flipped = trial.copies(**(given | {"ids": front}))
    if tuple(flipped.shape)[-1] == S and flipped.shape == seen.shape:
        good = near(
            _rows(trial, flipped, len(lengths), S), _rows(trial, seen, len(lengths), S).flip(-1)
        )
        if not trial.line("pads may stand in front", good):
            trial.add("unknown", f"ids = {show(front[0])}: the pads are in front and are not found")
