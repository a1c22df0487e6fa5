"""What attention gives when it is right, and when chosen mistakes are made: the checker's hypotheses.

A recipe names one option for each stage of the computation; ``OPTIONS`` lists them, each with the
slug of the mistake it is, or None if it is right. ``Simulator`` computes any recipe in PyTorch, with
the learner's own weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Map(NamedTuple):
    """A linear map: weight (out, in) and bias (out,) or None."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor, with_bias: bool = True) -> Tensor:
        y = x @ self.weight.T
        return y + self.bias if with_bias and self.bias is not None else y


@dataclass(frozen=True)
class Around:
    """What a module does besides attention: norms and a residual connection.

    ``before`` normalises the inputs, ``heads`` are the norms of each head's queries and keys,
    ``residual`` adds the query, ``after`` normalises the output.
    """

    before: Callable | None = None
    heads: tuple[Callable, Callable] | None = None
    residual: bool = False
    after: Callable | None = None

    def finish(self, output: Tensor, query: Tensor) -> Tensor:
        """The output, with the query added and normalised if that is done."""
        output = output + query if self.residual else output
        return self.after(output) if self.after else output

    @property
    def says(self) -> str:
        """In words."""
        parts = ["it normalises its inputs"] * bool(self.before)
        parts += ["it normalises queries and keys"] * bool(self.heads)
        parts += ["it adds the query (a residual connection)"] * self.residual
        parts += ["it normalises its output"] * bool(self.after)
        return ", ".join(parts)


@dataclass(frozen=True, eq=False)
class Maps:
    """The four maps, with rows and columns ordered head by head.

    ``q`` is (H*D, E), ``k`` and ``v`` (H_kv*D, E), ``o`` (E, H*D) or None. ``fixed`` holds the roles
    whose meaning their names fix; ``reading`` says in words where the maps were found.
    """

    q: Map
    k: Map
    v: Map
    o: Map | None
    num_heads: int
    head_dim: int
    fixed: frozenset[str] = frozenset()
    reading: str = ""
    names: dict = field(default_factory=dict)  # role -> names of its parameters
    around: "Around | None" = None


@dataclass(frozen=True, eq=False)
class Probe:
    """Inputs of one call: (B, T, E), (B, S, E), (B, S, E), or with four axes for a function.

    ``mask`` is bool, True = may attend, and broadcasts to (B, H, T, S).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    key_mask: Tensor | None = None  # bool (B, S): kept apart for the mistakes of its axis
    causal: bool = False

    @property
    def sizes(self) -> tuple[int, int]:
        """(T, S)"""
        return self.query.shape[-2], self.key.shape[-2]

    def after(self, change: Callable) -> "Probe":
        """With the inputs changed; what was one tensor stays one, and masks stay."""
        new = {id(x): change(x) for x in (self.query, self.key, self.value)}
        query, key, value = (new[id(x)] for x in (self.query, self.key, self.value))
        return replace(self, query=query, key=key, value=value)


@dataclass(frozen=True)
class Recipe:
    """One option for each stage, in the order of the computation."""

    inputs: str = "right"
    maps: str = "right"
    use: str = "right"
    bias: str = "right"
    split: str = "right"
    heads: str = "right"
    scores: str = "right"
    scale: str | float = "right"
    rule: str = "right"
    mask: str = "right"
    fill: float | None = None
    softmax: str = "right"
    dead: str = "zero"
    merge: str = "right"
    out: str = "right"

    @property
    def deviations(self) -> dict:
        """Stage -> option, where it is not the default."""
        default = Recipe()
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != getattr(default, f.name)
        }

    def __or__(self, changes: dict) -> "Recipe":
        return replace(self, **changes)


OPTIONS: dict[str, dict[str, str | None]] = {
    "inputs": {
        "kv-from-query": "cross-self",
        "k-from-query": "cross-self",
        "v-from-query": "cross-self",
        "q-from-key": "cross-reversed",
        "exchanged": "cross-reversed",
        "kv-swapped": "kv-swapped",
        "v-from-key": "input-ignored",
        "k-from-value": "input-ignored",
    },
    "maps": {
        "qqv": "qk-shared",
        "kkv": "qk-shared",
        "qkk": "kv-shared",
        "qvv": "kv-shared",
        "qkq": "qv-shared",
        "vkv": "qv-shared",
        "qqq": "qkv-shared",
        "kkk": "qkv-shared",
        "vvv": "qkv-shared",
        "qvk": "kv-swapped",
        "kqv": "qk-swapped",
    },
    "use": {"kv-swapped": "kv-swapped"},
    "bias": {letters: "bias-missing" for letters in ("q", "v", "o", "qv", "qo", "vo", "qvo")},
    "split": {
        "no-transpose": "split-no-transpose",
        "dim-major": "split-dim-major",
        "positions": "split-no-transpose",
        "time-batch": "batch-mixed",
        "heads-batch": "batch-mixed",
        "sequence-first": "batch-mixed",
        **{f"no-transpose {some}": "split-no-transpose" for some in ("q", "k", "v", "qk", "kv")},
        **{f"dim-major {some}": "split-dim-major" for some in ("q", "k", "v", "qk", "kv")},
        **{f"heads-batch {some}": "batch-mixed" for some in ("q", "k", "v", "qk", "kv")},
    },
    "heads": {
        "ignored": "heads-ignored",
        "ignored-scaled": "heads-ignored",
        "first": "head-weights-shared",
        "tiled": "gqa-tiled",
    },
    "scores": {"transposed": "scores-transposed"},
    "scale": {
        "model-dim": "scale-model-dim",
        "missing": "scale-missing",
        "multiplied": "scale-multiplied",
        "linear": "scale-linear",
    },
    "rule": {
        "causal": None,
        "bottom-right": None,
        "upper": "causal-upper",
        "upper-strict": "causal-upper",
        "strict": "causal-strict",
        "leak-one": "causal-leak-one",
    },
    "mask": {
        "inverted": "mask-inverted",
        "ignored": "mask-ignored",
        "after": "mask-after-softmax",
        "multiplied": "mask-multiplied",
        "added": "mask-added-bool",
        "added-unscaled": "mask-added-bool",
        "filled": "mask-fill-small",
        "filled-added": "mask-fill-small",
        "tiled": "batch-mixed",
        "interleaved": "batch-mixed",
        "query-axis": "pad-query-axis",
        "nan": "mask-nan",
    },
    "softmax": {
        "queries": "softmax-queries",
        "heads": "softmax-heads",
        "batch": "softmax-heads",
        "folded": "softmax-heads",
        "joint": "softmax-joint",
        "none": "softmax-missing",
    },
    "dead": {"nan": "dead-row-nan", "uniform": "dead-row-uniform", "unmasked": "dead-row-uniform"},
    "merge": {
        "no-transpose": "merge-no-transpose",
        "wrong-axes": "merge-no-transpose",
        "dim-major": "merge-dim-major",
        "sum": "heads-summed",
        "mean": "heads-summed",
        "batch-heads": "batch-mixed",
        "heads-batch": "batch-mixed",
        "time-batch": "batch-mixed",
    },
    "out": {"missing": "out-proj-missing"},
}


def slug_of(stage: str, option) -> str | None:
    """The mistake that an option is; None where it is right."""
    if stage == "scale" and isinstance(option, float):
        return "scale-other"
    return OPTIONS.get(stage, {}).get(option)


def slugs(recipe: Recipe) -> tuple[str, ...]:
    """The mistakes of a recipe, in the order of the computation."""
    found = [slug_of(stage, option) for stage, option in recipe.deviations.items()]
    found = list(dict.fromkeys(slug for slug in found if slug is not None))
    if {"split-no-transpose", "merge-no-transpose"} <= set(found):
        found[found.index("split-no-transpose")] = "split-and-merge-wrong"
        found.remove("merge-no-transpose")
    return tuple(found)


def interleaved(recipe: Recipe) -> bool:
    """Whether heads are interleaved at the split and at the merge alike: another layout, no mistake."""
    return recipe.split == "dim-major" and recipe.merge == "dim-major"


FRONT = ("inputs", "maps", "bias", "split", "heads", "use")
MIDDLE = (*FRONT, "scores", "scale", "rule", "mask", "fill", "softmax", "dead")


class Simulator:
    """All recipes for one probe and one reading of the maps; what recipes share is computed once."""

    def __init__(self, probe: Probe, maps: Maps | None = None):
        self.probe, self.maps = probe, maps
        self._front, self._middle = {}, {}

    def __call__(self, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Output (B, T, E) and weights (B, H, T, S); without maps, of the function alone.

        Errors: RuntimeError where the shapes do not allow the recipe.
        """
        mixed, weights, length = self._mix(recipe)
        if self.maps is None:
            return mixed, weights
        joined = _merge(mixed, recipe.merge, length)  # (B, T, H*D)
        if self.maps.o is not None and recipe.out != "missing":
            joined = self.maps.o(joined, "o" not in _dropped(recipe))
        around = self.maps.around
        return around.finish(joined, self.probe.query) if around else joined, weights

    def _mix(self, recipe: Recipe):
        key = tuple(getattr(recipe, name) for name in MIDDLE)
        if key not in self._middle:
            q, k, v = self.heads(recipe)
            width = self.maps.q.weight.shape[1] if self.maps else q.shape[-1]
            weights = _weights(q, k, self.probe, recipe, width, self.maps)
            length = q.shape[1 if recipe.split == "positions" else -2]
            self._middle[key] = weights @ v, weights, length
        return self._middle[key]

    def heads(self, recipe: Recipe):
        """Queries (B, H, T, D), keys and values (B, H, S, D)."""
        key = tuple(getattr(recipe, name) for name in FRONT)
        if key not in self._front:
            q, k, v = _inputs(self.probe, recipe.inputs)
            if self.maps is not None:
                if self.maps.around and self.maps.around.before:
                    q, k, v = (self.maps.around.before(x) for x in (q, k, v))
                q, k, v = _project(q, k, v, self.maps, recipe)
            if recipe.use == "kv-swapped":
                k, v = v, k
            repeats = 1
            if q.ndim > 3 and recipe.split != "positions":
                repeats = q.shape[-3] // k.shape[-3]
            if repeats > 1:
                k, v = (_share(x, repeats, recipe.heads == "tiled") for x in (k, v))
            self._front[key] = q, k, v
        return self._front[key]


def _inputs(probe: Probe, option: str):
    query, key, value = probe.query, probe.key, probe.value
    return {
        "right": (query, key, value),
        "kv-from-query": (query, query, query),
        "k-from-query": (query, query, value),
        "v-from-query": (query, key, query),
        "q-from-key": (key, key, value),
        "exchanged": (key, query, query),
        "kv-swapped": (query, value, key),
        "v-from-key": (query, key, key),
        "k-from-value": (query, value, value),
    }[option]


def _dropped(recipe: Recipe) -> str:
    return "" if recipe.bias == "right" else recipe.bias


def _project(query, key, value, maps: Maps, recipe: Recipe) -> list[Tensor]:
    """(B, H, T, D), twice (B, H_kv, S, D)."""
    roles = "qkv" if recipe.maps == "right" else recipe.maps
    projected = []
    for place, x, role in zip("qkv", (query, key, value), roles, strict=True):
        y = getattr(maps, role)(x, role not in _dropped(recipe))  # (B, L, heads*D)
        projected.append(_split(y, maps, recipe, place))
    if maps.around and maps.around.heads:
        projected[0], projected[1] = (
            norm(x) for norm, x in zip(maps.around.heads, projected[:2], strict=True)
        )
    return projected


def _split(y: Tensor, maps: Maps, recipe: Recipe, place: str) -> Tensor:
    """(B, L, heads*D) -> (B, heads, L, D)"""
    B, L, width = y.shape
    D = maps.head_dim
    if recipe.heads.startswith("ignored"):
        return y[:, None]
    if recipe.heads == "first":
        y = y[..., :D].repeat(1, 1, width // D)
    option, _, some = recipe.split.partition(" ")
    if some and place not in some:
        option = "right"
    heads = width // D
    if option == "no-transpose":
        return y.reshape(B, heads, L, D)
    if option == "dim-major":
        return y.reshape(B, L, D, heads).permute(0, 3, 1, 2)
    if option == "positions":
        return y.reshape(B, L, heads, D)
    if option == "time-batch":
        return y.reshape(L, B, heads, D).permute(1, 2, 0, 3)
    if option == "sequence-first":
        return y.transpose(0, 1).reshape(B, heads, L, D)
    y = y.reshape(B, L, heads, D).transpose(1, 2)
    if option == "heads-batch":
        return y.transpose(0, 1).reshape(B, heads, L, D)
    return y


def _share(x: Tensor, repeats: int, tiled: bool) -> Tensor:
    """Each key head for its group of query heads: (B, H_kv, S, D) -> (B, H, S, D)."""
    if tiled:
        return x.repeat(*[1] * (x.ndim - 3), repeats, 1, 1)
    return x.repeat_interleave(repeats, dim=-3)


def _weights(q, k, probe: Probe, recipe: Recipe, width: int, maps: Maps | None) -> Tensor:
    scores = q @ k.transpose(-2, -1)  # (B, H, T, S)
    if recipe.scores == "transposed":
        scores = scores.transpose(-2, -1)  # (B, H, S, T)
    head_dim = q.shape[-1]
    if recipe.heads == "ignored-scaled":
        head_dim = maps.head_dim
    scale = factor(recipe.scale, head_dim, width)
    scores = scores * scale
    return _normalise(scores, scale, probe, recipe)


def factor(option: str | float, head_dim: int, width: int) -> float:
    """What the scores are multiplied by."""
    if isinstance(option, float):
        return option
    return {
        "right": head_dim**-0.5,
        "model-dim": width**-0.5,
        "missing": 1.0,
        "multiplied": head_dim**0.5,
        "linear": 1 / head_dim,
    }[option]


def allowed(probe: Probe, recipe: Recipe, shape: tuple[int, ...]) -> Tensor | None:
    """Which pairs of (..., H, T, S) a recipe lets see each other: bool, or None for all."""
    rule = _rule(recipe.rule, *shape[-2:])
    mask = probe.mask
    if recipe.mask == "query-axis" and probe.key_mask is not None:
        mask = probe.key_mask[:, None, :, None]
    if mask is not None and recipe.mask == "inverted":
        mask = ~mask
    if mask is not None and recipe.mask in ("tiled", "interleaved"):
        mask = _of_another_example(mask, *shape[:2], recipe.mask)
    if recipe.mask in ("ignored", "after", "multiplied", "nan") or recipe.mask.startswith(
        ("added", "filled")
    ):
        mask = None
    if rule is None or mask is None:
        return mask if rule is None else rule
    return rule & mask


def _of_another_example(mask: Tensor, B: int, H: int, option: str) -> Tensor:
    """Heads folded into the batch in one order, their masks repeated in the other: (B, H, T, S)."""
    mask, n = mask[:, 0], torch.arange(B * H)
    if option == "tiled":  # scores b * H + h, masks h * B + b
        return mask[n % B].reshape(B, H, *mask.shape[-2:])
    return mask[n // H].reshape(H, B, *mask.shape[-2:]).transpose(0, 1)


def _rule(option: str, T: int, S: int) -> Tensor | None:
    if option == "right":
        return None
    ones = torch.ones(T, S, dtype=torch.bool)
    return {
        "causal": lambda: ones.tril(),
        "bottom-right": lambda: ones.tril(S - T),
        "upper": lambda: ones.triu(),
        "upper-strict": lambda: ones.triu(1),
        "strict": lambda: ones.tril(-1),
        "leak-one": lambda: ones.tril(1),
    }[option]()


def _normalise(scores: Tensor, scale: float, probe: Probe, recipe: Recipe) -> Tensor:
    """Masks and softmax: (B, H, T, S)."""
    M = probe.mask
    if M is not None:
        if recipe.mask == "multiplied":
            scores = scores * M
        elif recipe.mask == "added":
            scores = scores + M
        elif recipe.mask == "added-unscaled":
            scores = scores + M * scale
        elif recipe.mask == "filled":
            scores = scores.masked_fill(~M, recipe.fill)
        elif recipe.mask == "filled-added":
            scores = scores + (~M) * recipe.fill
        elif recipe.mask == "nan":
            scores = scores * math.nan
    seen = allowed(probe, recipe, scores.shape)
    if recipe.softmax == "none":
        weights = scores if seen is None else scores.masked_fill(~seen, 0.0)
    else:
        weights = _softmax(scores, seen, recipe)
    return weights * M if M is not None and recipe.mask == "after" else weights


def _softmax(scores: Tensor, seen: Tensor | None, recipe: Recipe) -> Tensor:
    axes = {"right": -1, "queries": -2, "heads": -3, "batch": 0}
    joint = {"folded": (0, 1), "joint": (-2, -1)}.get(recipe.softmax)
    if seen is None:
        return _over(scores, axes.get(recipe.softmax), joint)
    seen = seen.expand_as(scores)
    low = -math.inf if recipe.softmax != "right" and recipe.dead == "nan" else -1e300
    weights = _over(scores.masked_fill(~seen, low), axes.get(recipe.softmax), joint)
    if recipe.softmax != "right":  # heads or queries that are all blocked share out 1 as well
        return weights * seen if recipe.dead == "zero" else weights
    weights = weights * seen
    if recipe.dead == "zero":
        return weights
    dead = ~seen.any(-1, keepdim=True)
    instead = {
        "nan": lambda: torch.full_like(scores, math.nan),
        "uniform": lambda: torch.full_like(scores, 1 / scores.shape[-1]),
        "unmasked": lambda: scores.softmax(-1),
    }[recipe.dead]()
    return torch.where(dead, instead, weights)


def _over(scores: Tensor, axis: int | None, joint) -> Tensor:
    if joint is None:
        return scores.softmax(axis)
    return (
        (scores - scores.amax(joint, keepdim=True))
        .exp()
        .div_((scores - scores.amax(joint, keepdim=True)).exp().sum(joint, keepdim=True))
    )


def _merge(x: Tensor, option: str, length: int) -> Tensor:
    """(B, H, T, D) -> (B, T, H*D)"""
    B, H, _, D = x.shape
    if option in ("sum", "mean"):
        return getattr(x, option)(1)
    if option == "batch-heads":
        x = x.transpose(0, 1).reshape(x.shape)
    elif option == "heads-batch":
        x = x.reshape(H, B, -1, D).transpose(0, 1)
    order = {
        "no-transpose": (0, 1, 2, 3),
        "wrong-axes": (0, 1, 3, 2),
        "dim-major": (0, 2, 3, 1),
        "time-batch": (2, 0, 1, 3),
    }
    return x.permute(order.get(option, (0, 2, 1, 3))).reshape(B, length, -1)
