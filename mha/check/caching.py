"""A module that hands its keys and values on from call to call must give what one call gives."""

import torch
from torch import Tensor

from mha.check import search
from mha.check.binding import Malformed
from mha.check.catalogue import finding
from mha.check.guard import Stopped
from mha.check.simulate import Probe

NAME = "with a cache, later tokens get what one call gives"
FIRST = 3  # tokens of the first call


def cached(exam) -> None:
    """Two calls, the second with what the first handed on, against one."""
    names = exam.arguments.names
    if "cache" not in names or exam.match is None:
        return
    x = exam.lab.probe("self", 13, exam.dtype).query
    try:
        whole, _ = exam.call(Probe(x, x, x))
        _, handed_on = step(exam, x[:, :FIRST].contiguous(), None)
        if handed_on is None:
            exam.line(NAME, None, "the first call handed nothing on")
            return
        later, _ = step(exam, x[:, FIRST:].contiguous(), handed_on)
    except (Stopped, Malformed) as failed:
        exam.line(NAME, False)
        found = failed.finding() if isinstance(failed, Stopped) else None
        exam.add(found or finding(failed.slug, failed.what))
        return
    good = search.distance(later.double(), whole[:, FIRST:].double()) < 100 * exam.tolerance
    if good:
        exam.line(NAME, True)
        return
    name_it(exam, x.double(), later.double(), whole[:, FIRST:].double())


def step(exam, x: Tensor, handed_on) -> tuple[Tensor, object]:
    """One call: the output (B, T, E), and whatever else came back, None if nothing did."""
    names = exam.arguments.names
    inputs = {names["query"]: x, names["cache"]: handed_on}
    if exam.kind == "qkv":
        inputs |= {names[role]: x for role in ("key", "value") if role in names}
    if "use_cache" in names:
        inputs[names["use_cache"]] = True
    with torch.no_grad():
        result = exam.guard.call(exam.module, **inputs)
    if isinstance(result, Tensor):
        return result, None
    if not isinstance(result, (tuple, list, dict)):
        raise Malformed("wrong-shape", f"with a cache it returned a {type(result).__name__}")
    parts = list(result.values()) if isinstance(result, dict) else list(result)
    outputs = [part for part in parts if isinstance(part, Tensor) and part.shape == x.shape]
    if not outputs:
        raise Malformed(
            "wrong-shape", "with a cache, no output of the shape of the input came back"
        )
    others = [part for part in parts if part is not outputs[0] and part is not None]
    return outputs[0], others[-1] if others else None


def name_it(exam, x: Tensor, later: Tensor, right: Tensor) -> None:
    """The causal rule counts the new queries from 0, or something else is wrong."""
    probe = Probe(x[:, FIRST:], x, x)
    gap = float((later - right).abs().max())
    for rule in ("causal", "strict", "leak-one"):
        top_left, _ = search.Simulator(probe, exam.match.maps)(exam.match.recipe | {"rule": rule})
        if search.distance(later, top_left) < 100 * exam.tolerance:
            exam.line(NAME, False, f"off by {gap:.2g}", "causal-top-left")
            text = (
                f"{FIRST} tokens, then {len(x[0]) - FIRST} more with the cache: the first of those "
                f"sees key 0 alone, and should see {FIRST + 1} keys"
            )
            exam.add(finding("causal-top-left", text))
            return
    exam.line(NAME, False, f"off by {gap:.2g}")
    text = f"{FIRST} tokens, then the rest with the cache: off by {gap:.2g} from one call"
    exam.add(finding("unknown", text))
