"""Evidence in numbers: what the learner's code gave, and what right code gives."""

from dataclasses import replace

import torch
from torch import nn

from mha.check import maps as reading
from mha.check import search, symptoms
from mha.check.binding import Malformed, source_of
from mha.check.catalogue import finding
from mha.check.guard import Stopped
from mha.check.simulate import OPTIONS, Recipe, factor, slug_of

LADDER = [  # B, T, S, H, D: from the smallest
    (1, 1, 1, 1, 2),
    (1, 2, 2, 1, 2),
    (1, 1, 2, 1, 2),
    (1, 1, 1, 2, 2),
    (1, 2, 2, 2, 2),
    (1, 1, 2, 2, 2),
    (1, 2, 3, 2, 2),
    (1, 3, 3, 2, 2),
    (2, 2, 2, 2, 2),
    (2, 2, 3, 2, 2),
    (2, 3, 3, 4, 2),
]
NOT_COMPARED = {
    "title": "Your numbers were not compared",
    "explanation": "Your code does more than the attention that the check can compute. What can be "
    "tested without its numbers was tested; a mistake in the rest would go unseen.",
    "hint": "Test that part alone, on numbers that you can work out by hand.",
}
FIRST = ["exception", "timeout", "memory", "exit", "question", "wrong-shape", "not-finite"]
LAST = ["dropout-in-eval", "dropout-unscaled", "not-differentiable", "weights-not-parameters"]
LAST += ["dtype-leak", "mask-half-overflow", "weights-wrong", "device-buffer"]


def order() -> list[str]:
    """Slugs in the order of the computation: the first cause first."""
    middle = [slug for options in OPTIONS.values() for slug in options.values() if slug]
    middle.insert(0, "split-and-merge-wrong")
    return list(dict.fromkeys([*FIRST, *middle, *LAST]))


def closeness(error: float) -> str:
    """How near two outputs are, in words that do not depend on the last digit."""
    return " to the last digits" if error < 1e-9 else f" to {error:.0e}"


def row(x: torch.Tensor) -> str:
    """A few numbers."""
    shown = [f"{float(v) + 0.0:.3f}" for v in x.flatten()[:4]]
    return "[" + " ".join(shown) + (" ...]" if x.numel() > 4 else "]")


def versus(yours: torch.Tensor, right: torch.Tensor) -> str:
    """The first row (b, t) that differs, of two outputs (B, T, E)."""
    if yours.shape != right.shape:
        return f"yours has shape {tuple(yours.shape)}, right is {tuple(right.shape)}"
    gap = (yours.double() - right).abs().nan_to_num(nan=torch.inf).amax(-1)
    where = (gap > 1e-3 * float(right.abs().max())).nonzero()
    at = tuple(where[0].tolist()) if len(where) else (0,) * gap.ndim
    place = "query " + str(at[-1])
    if at[:-1] and gap.shape[0] > 1:
        place = f"example {at[0]}, {place}"
    return f"{place}: yours {row(yours[at])}\n{' ' * len(place)}  right {row(right[at])}"


def smallest(exam) -> str:
    """The smallest inputs for which the module differs from the right one, and both numbers."""
    if not exam.lab.is_class or exam.around:  # the norms beside it are of another width here
        return ""
    for B, T, S, H, D in LADDER:
        S = T if exam.kind == "self" or exam.unequal_failed else S
        sizes = {"B": B, "T": T, "S": S, "H": H, "D": D, "E": H * D}
        try:
            module = exam.make(**sizes)
            probe = exam.lab.probe(exam.kind, 3, exam.dtype, **sizes)
            output, _ = exam.call(probe, module)
        except (Stopped, Malformed):
            continue
        found = exam.read_again(module, sizes)
        if found is None:
            continue
        try:
            with torch.no_grad():
                right, _ = search.Simulator(exam.doubled(probe), found)(exam.right_recipe())
        except RuntimeError:
            continue
        if search.distance(output.double(), right) > 1e-3:
            lengths = f"T=S={T}" if T == S else f"T={T}, S={S}"
            shown = versus(output, right).replace("\n", "\n  ")
            return f"the smallest example that differs, B={B}, {lengths}, H={H}, D={D}:\n  {shown}"
    return ""


def evidence(exam, slug: str, observations) -> str:
    """For a mistake found by comparing numbers."""
    seen, match = observations[0], exam.match
    try:
        right, _ = search.Simulator(seen.probe, match.maps)(exam.right_recipe())
        away = search.distance(seen.output, right)
    except RuntimeError:  # W_O has not the width of all heads
        away = float("inf")
    lines = []
    if slug.startswith("scale"):
        D, E = (
            match.maps.head_dim if match.maps else seen.probe.query.shape[-1],
            exam.lab.sizes["E"],
        )
        option = match.recipe.scale
        lines.append(
            f"your scores are multiplied by {factor(option, D, E):.4g}, right is {D**-0.5:.4g} (D={D}, E={E})"
        )
    if len(match.slugs) == 1:
        without = f"without it, it is {away:.2g} away"
        if away > 1e6:
            without = "right code would need other shapes"
        lines.append(
            f"with this one mistake, right code gives your output{closeness(match.error)}; {without}"
        )
    else:
        lines.append(moved_by(exam, slug, seen.probe))
    example = smallest(exam) if slug == match.slugs[0] else ""
    return "\n".join([*lines, example] if example else lines)


def moved_by(exam, slug: str, probe) -> str:
    """What one mistake among several does: how far mending it alone moves the output."""
    match = exam.match
    others = [other for other in match.slugs if other != slug]
    together = f"with {' and '.join(others)} it gives your output{closeness(match.error)}"
    stages = {k: v for k, v in match.recipe.deviations.items() if slug_of(k, v) == slug}
    default = Recipe()
    mended = match.recipe | {stage: getattr(default, stage) for stage in stages}
    try:
        now, _ = search.Simulator(probe, match.maps)(match.recipe)
        then, _ = search.Simulator(probe, match.maps)(mended)
    except RuntimeError:
        return together
    return f"{together}; mending it alone moves the output by {search.distance(now, then):.2g}"


def mask_evidence(exam, slug: str, match, probe, output, form) -> str:
    """For a mistake with masks: one query, what it may see, and both outputs."""
    base = exam.match.recipe
    if slug == "mask-inverted":  # the probe is as the code reads it; right code reads it otherwise
        probe = replace(probe, mask=~probe.mask)
    right, _ = search.Simulator(probe, match.maps)(base | {"mask": "right"})
    gap = (output - right).abs().nan_to_num(nan=torch.inf).amax(-1)
    lines = []
    if match.recipe.fill is not None:
        lines.append(f"blocked scores become {match.recipe.fill:.3g}, which is not low enough")
    if output.shape == right.shape and gap.ndim == 2:
        b, t = divmod(int(gap.argmax()), gap.shape[1])
        may = probe.mask.expand(-1, 1, gap.shape[1], -1)[b, 0, t].int().tolist()
        lines.append(
            f"example {b}, query {t} may see the keys {[j for j, m in enumerate(may) if m]}"
        )
        lines.append(f"  yours {row(output[b, t])}\n  right {row(right[b, t])}")
    else:
        lines.append(versus(output, right))
    return "\n".join(lines)


def rule_evidence(recipe: Recipe) -> str:
    """Which keys each query sees under a causal rule that is off."""
    sees = {
        "upper": "i to the last",
        "upper-strict": "i + 1 to the last",
        "strict": "0 to i - 1",
        "leak-one": "0 to i + 1",
    }
    if recipe.rule in sees:
        return f"query i sees the keys {sees[recipe.rule]}; right is 0 to i"
    return "the outputs are those of this mistake, to the last digit"


def unknown(exam):
    """Nothing in the catalogue fits: what failed, and the smallest example."""
    failed = [check.name for check in exam.checks if check.passed is False]
    text = "these fail: " + "; ".join(failed) if failed else "all invariants hold"
    if not exam.readings:
        text += "\nthe four maps were not found among its parameters: say weights={'W_q': ...}"
    else:
        example = smallest(exam)
        text += f"\n{example}" if example else ""
    parts = maps_of_positions(exam) or unplaced(exam)
    failing = {check.name for check in exam.checks if check.passed is False}
    if parts and not failing & symptoms.ESSENTIAL:
        text = (
            f"not compared, since it holds {', '.join(parts)}; what could be tested holds\n{text}"
        )
        for i, check in enumerate(exam.checks):
            if check.name in (symptoms.PARITY, symptoms.ORDER):
                exam.checks[i] = replace(check, passed=None, detail="")
        return finding("unknown", text, "note", **NOT_COMPARED)
    return finding("unknown", text)


def unplaced(exam) -> list[str]:
    """Parameters with an effect that no reading of the maps takes in."""
    if not isinstance(exam.module, nn.Module) or not exam.readings:
        return []
    known = {unit.weight.data_ptr() for unit in reading.units(exam.module)}
    known |= {u.bias.data_ptr() for u in reading.units(exam.module) if u.bias is not None}
    found = exam.module.named_parameters()
    return [n for n, p in found if p.data_ptr() not in known and n not in exam.unused]


def maps_of_positions(exam) -> list[str]:
    """Parts that tell positions and their like, which are beyond the comparison."""
    if not isinstance(exam.module, nn.Module):
        return []
    source = "" if type(exam.module).__module__.startswith("mha.") else source_of(exam.module)
    return reading.foreign(exam.module, source)[:3]


def ambiguous(matches):
    """Several mistakes give these very numbers."""
    names = list(dict.fromkeys(" with ".join(match.slugs) or "no mistake" for match in matches))
    text = "each of these gives your output: " + "; ".join(names)
    return finding("ambiguous", text)


def how_read(exam) -> list[str]:
    """In which form the module was taken."""
    said = []
    found = exam.match.maps
    if found is not None and found.names:
        pairs = [
            f"{role.rstrip('?').upper()}: {', '.join(names)}"
            for role, names in found.names.items()
            if isinstance(names, list)
        ]
        said.append("maps: " + "; ".join(pairs))
    if found is not None and found.reading:
        said.append(f"queries, keys and values are packed {found.reading}")
    if not exam.batch_first:
        said.append("inputs are (T, B, E), sequence first")
    if found is not None and found.around:
        said.append(found.around.says)
    if exam.match.recipe.rule == "causal":
        said.append("it is causal by itself")
    return said
