"""The checks of grouped-query attention and of attention in tiles."""

import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mha.check.binding import documented_polarity
from mha.check.guard import Stopped
from mha.check.report import Report
from mha.check.trial import (
    Role,
    Trial,
    Wrong,
    draw,
    examine,
    first_difference,
    near,
    pairs,
    positions_first,
    show,
    versus,
)

GROUPED = {"B": 3, "T": 5, "S": 7, "H": 8, "H_kv": 2, "D": 6}
TILES = {"B": 2, "H": 3, "T": 11, "S": 13, "D": 5}
BLOCK = 4  # rows and columns of a tile, where it can be chosen
BLOCKS = (16, 32, 64, 128, 256, 512, 1024)  # usual sizes, where it cannot
INPUTS = [
    Role("q", "query queries", must=True),
    Role("k", "key keys", must=True),
    Role("v", "value values", must=True),
]
SCALES = ["scale-missing", "scale-linear", "scale-multiplied", "scale-model-dim"]


def factor(slug: str | None, D: int, E: int) -> float:
    """What scores are multiplied by."""
    return {
        "scale-missing": 1.0,
        "scale-linear": 1 / D,
        "scale-multiplied": math.sqrt(D),
        "scale-model-dim": 1 / math.sqrt(E),
    }.get(slug, 1 / math.sqrt(D))


# --- grouped queries


GROUPED_OPTIONS = {
    "groups": ["gqa-tiled", "gqa-keys-tiled", "gqa-values-tiled", "gqa-first-head", "gqa-averaged",
               "gqa-reversed"],
    "inputs": ["kv-swapped"],
    "scale": SCALES,
    "softmax": ["softmax-queries", "softmax-heads", "softmax-missing"],
    "mask": ["mask-inverted", "mask-ignored", "mask-after-softmax", "mask-multiplied",
             "mask-added-bool"],
}  # fmt: skip
SAME = {"gqa-keys-tiled": "gqa-tiled", "gqa-values-tiled": "gqa-tiled"}


def grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, chosen: dict) -> Tensor:
    """(B, H, T, D) with the mistakes that are chosen, a slug for each stage."""
    if "inputs" in chosen:
        k, v = v, k
    H, D = q.shape[1], q.shape[-1]
    count = H // k.shape[1]

    def spread(x: Tensor, tiled: tuple[str, ...]) -> Tensor:
        slug = chosen.get("groups")
        if slug in tiled:
            return x.repeat(1, count, 1, 1)
        if slug == "gqa-first-head":
            return x[:, :1].expand(-1, H, -1, -1)
        if slug == "gqa-averaged":
            return x.mean(1, keepdim=True).expand(-1, H, -1, -1)
        if slug == "gqa-reversed":
            return x.flip(1).repeat_interleave(count, 1)
        return x.repeat_interleave(count, 1)

    k = spread(k, ("gqa-tiled", "gqa-keys-tiled"))
    v = spread(v, ("gqa-tiled", "gqa-values-tiled"))
    scores = q @ k.mT * factor(chosen.get("scale"), D, H * D)
    how = chosen.get("mask")
    if mask is not None:
        if how is None:
            scores = scores.masked_fill(~mask, -torch.inf)
        elif how == "mask-inverted":
            scores = scores.masked_fill(mask, -torch.inf)
        elif how == "mask-multiplied":
            scores = scores * mask
        elif how == "mask-added-bool":
            scores = scores + mask
    axis = {"softmax-queries": -2, "softmax-heads": 1}.get(chosen.get("softmax"), -1)
    weights = scores if chosen.get("softmax") == "softmax-missing" else scores.softmax(axis)
    if mask is not None and how == "mask-after-softmax":
        weights = weights * mask
    return weights @ v


def check_grouped(fn, mask: str | None, seconds: float) -> Report:
    """The report on fn(q, k, v, mask=None)."""
    roles = [
        *INPUTS,
        Role("mask", "attnmask attentionmask m bias attnbias attentionbias"),
        Role("causal", "iscausal"),
        Role(
            "kv_heads", "numkvheads nkvheads hkv kvheads numgroups groups ngroups numkeyvalueheads"
        ),
        Role("heads", "numheads nheads h nhead numqheads"),
        Role("count", "nrep group groupsize repeats queriespergroup numqueriespergroup"),
    ]
    return examine(fn, lambda trial: _grouped(trial, mask), roles, seconds, GROUPED)


def _heads(B: int, T: int, S: int, H: int, H_kv: int, D: int, seed: int = 3) -> dict:
    """Inputs, and what may be asked for beside them."""
    return {
        "q": draw(B, H, T, D, seed=seed, spread=1.3),
        "k": draw(B, H_kv, S, D, seed=seed + 1, spread=1.3),
        "v": draw(B, H_kv, S, D, seed=seed + 2),
        "kv_heads": H_kv,
        "heads": H,
        "count": H // H_kv,
        "causal": False,
    }


def _qkv(given: dict) -> list[Tensor]:
    return [given[name].double() for name in "qkv"]


def _grouped_candidates(given: dict, mask: Tensor | None):
    options = dict(GROUPED_OPTIONS)
    if mask is None:
        del options["mask"]
    for chosen, slugs in pairs(options):
        named = "+".join(SAME.get(slug, slug) for slug in slugs.split("+"))
        yield named, grouped(*_qkv(given), mask, chosen)
    q, k, v = _qkv(given)
    if q.shape[1] != k.shape[1]:
        folded = q.unflatten(1, (k.shape[1], -1)).mean(2)
        yield "gqa-queries-averaged", grouped(folded, k, v, mask, {})


def _grouped(trial: Trial, mask: str | None) -> None:
    n = GROUPED
    given = _heads(**n)
    yours = trial.tensors_or_arrays(**given)
    right = grouped(*_qkv(given), None, {})
    name = "query head h reads key head h // (H / H_kv)"

    def example() -> str:
        for sizes in [(1, 1, 1, 4, 2, 1), (1, 1, 2, 4, 2, 1), (1, 2, 2, 4, 2, 2)]:
            small = _heads(*sizes)
            try:
                mine = trial.copies(**small)
            except (Stopped, Wrong):
                continue
            wanted = grouped(*_qkv(small), None, {})
            if not near(mine, wanted):
                B, T, S, H, H_kv, D = sizes
                said = f"B={B}, T={T}, S={S}, H={H}, H_kv={H_kv}, D={D}"
                if S == 1:
                    said += f", values of the key heads {show(small['v'].flatten())}"
                    mine, wanted = mine.flatten(), wanted.flatten()
                return versus(said, mine, wanted)
        return first_difference(yours, right, "example head query feature")

    if not trial.compare(name, yours, right, _grouped_candidates(given, None), example):
        return
    for H, H_kv, said in [
        (4, 4, "H_kv = H, plain heads"),
        (6, 1, "H_kv = 1, one key head for all"),
    ]:
        trial.attempt(_grouped_case, said, _heads(2, 3, 4, H, H_kv, 5))
    if trial.has("mask"):
        trial.attempt(_grouped_mask, mask, given)


def _grouped_case(trial: Trial, name: str, given: dict) -> None:
    yours, right = trial.copies(**given), grouped(*_qkv(given), None, {})
    text = first_difference(yours, right, "example head query feature")
    trial.compare(name, yours, right, _grouped_candidates(given, None), text)


def _grouped_mask(trial: Trial, told: str | None, given: dict) -> None:
    T, S, B = GROUPED["T"], GROUPED["S"], GROUPED["B"]
    seen = torch.rand(T, S, generator=torch.Generator().manual_seed(5)) < 0.6
    seen[torch.arange(T), torch.arange(T) % S] = True
    seen[torch.arange(T), (torch.arange(T) + 1) % S] = False
    kind = told or documented_polarity(trial.fn) or "attend"
    if not told and "bias" in trial.places["mask"].name:
        kind = "additive"
    sent = ~seen if kind == "block" else seen
    if kind == "additive":
        sent = torch.zeros(T, S).masked_fill(~seen, -torch.inf)
    trial.reading.append(
        "mask: added to the scores"
        if kind == "additive"
        else f"mask: True = {'blocked' if kind == 'block' else 'may attend'}"
    )
    first = None
    for form in (sent, sent.expand(B, 1, T, S), sent.expand(B, T, S)):
        try:
            yours = trial.copies(**given, mask=form.clone())
            break
        except Stopped as stopped:
            if stopped.kind != "exception":
                raise
            first = first or stopped
    else:
        raise first
    right = grouped(*_qkv(given), seen, {})
    text = first_difference(yours, right, "example head query feature")
    trial.compare("the mask", yours, right, _grouped_candidates(given, seen), text)


# --- tiles


FLASH_OPTIONS = {
    "carry": ["flash-no-rescale", "flash-no-rescale-sum", "flash-no-rescale-output",
              "flash-tile-max", "flash-tile-max-2", "flash-rescale-reversed",
              "flash-tile-softmax", "flash-tile-mean", "flash-tile-overwrites"],
    "finish": ["flash-not-normalised", "flash-normalised-each-tile"],
    "tail": ["flash-last-tile-dropped", "flash-last-queries-dropped"],
    "scale": SCALES,
    "inputs": ["kv-swapped"],
    "length": ["flash-one-length"],
}  # fmt: skip
SAME_FLASH = {
    "flash-tile-max-2": "flash-tile-max",
    "flash-tile-mean": "flash-tile-softmax",
    "flash-last-queries-dropped": "flash-last-tile-dropped",
}


def flash(q, k, v, block: int, chosen: dict, causal: str | None = None, width: int = 0) -> Tensor:
    """(..., T, D) in tiles of keys with the mistakes that are chosen, a slug for each stage.

    Args: causal: None, "right" or a slug. width: the model's, for ``scale-model-dim``.
    """
    if "inputs" in chosen:
        k, v = v, k
    T, S, D = q.shape[-2], k.shape[-2], q.shape[-1]
    carry, finish = chosen.get("carry"), chosen.get("finish")
    keep = _rule(T, S, block, causal)
    scale = factor(chosen.get("scale"), D, width or D)
    top = torch.full((*q.shape[:-1], 1), -torch.inf, dtype=q.dtype)
    total, output = torch.zeros_like(top), torch.zeros_like(q)
    end = min(S, -(-T // block) * block) if "length" in chosen else S
    tiles = 0
    for start in range(0, end, block):
        stop = min(start + block, S)
        if chosen.get("tail") == "flash-last-tile-dropped" and stop - start < block:
            break
        tiles += 1
        scores = q @ k[..., start:stop, :].mT * scale
        scores = scores.masked_fill(~keep[:, start:stop], -torch.inf)
        values = v[..., start:stop, :]
        here = scores.amax(-1, keepdim=True)
        new = torch.maximum(top, here)
        safe = new.masked_fill(new == -torch.inf, 0.0)
        alpha, weights = (top - safe).exp(), (scores - safe).exp()
        if carry in ("flash-tile-max", "flash-tile-max-2"):
            weights = (scores - here.masked_fill(here == -torch.inf, 0.0)).exp()
        if carry == "flash-tile-max":
            alpha = torch.ones_like(alpha)
        if carry == "flash-rescale-reversed" and start:
            alpha = (new - top).exp()
        for_sum = for_output = alpha
        if carry in ("flash-no-rescale", "flash-no-rescale-sum"):
            for_sum = 1.0
        if carry in ("flash-no-rescale", "flash-no-rescale-output"):
            for_output = 1.0
        if carry == "flash-tile-overwrites":
            for_sum = for_output = 0.0
        if carry in ("flash-tile-softmax", "flash-tile-mean"):
            output = output + scores.softmax(-1).nan_to_num(0.0) @ values
            total = torch.ones_like(total)
        else:
            total = total * for_sum + weights.sum(-1, keepdim=True)
            output = output * for_output + weights @ values
        if finish == "flash-normalised-each-tile":
            output = output / total
        top = new
    if finish is None and carry not in ("flash-tile-softmax", "flash-tile-mean"):
        output = output / total
    if carry == "flash-tile-mean":
        output = output / max(tiles, 1)
    if chosen.get("tail") == "flash-last-queries-dropped":
        output = output.clone()
        output[..., T // block * block :, :] = 0.0
    return output


def _rule(T: int, S: int, block: int, causal: str | None) -> Tensor:
    """Bool (T, S): which keys a query sees."""
    i, j = torch.arange(T)[:, None], torch.arange(S)
    return {
        "right": j <= i,
        "causal-strict": j < i,
        "causal-leak-one": j <= i + 1,
        "causal-upper": j >= i,
        "flash-causal-tiles": j // block <= i // block,
        "flash-causal-skips": j // block < i // block,
    }.get(causal, (i >= 0) & (j >= 0))


def check_flash(fn, seconds: float) -> Report:
    """The report on fn(q, k, v, block_size)."""
    roles = [
        *INPUTS,
        Role("rows", "blockq bq br blockm qblock blocksizeq qblocksize tileq qtile blockrows blocksizem"),
        Role("columns", "blockk bk bc blockn kblock blocksizek kblocksize tilek ktile blockcols kvblock "
             "blocksizekv blocksizen kvblocksize kvchunk"),
        Role("block", "blocksize tile tilesize chunk chunksize bs b size step"),
        Role("causal", "iscausal"),
    ]  # fmt: skip
    return examine(fn, _flash, roles, seconds, TILES | {"block": BLOCK})


class Layout:
    """How many axes the inputs have, and which lengths they may take."""

    def __init__(self, axes: int, known: bool):
        self.axes, self.known = axes, known
        self.swapped = False  # (B, T, H, D) instead of (B, H, T, D)

    def blocks(self) -> tuple[int, ...]:
        return (BLOCK,) if self.known else BLOCKS

    def given(self, T: int, S: int, seed: int = 7, spread: float = 1.3, D: int = 0) -> dict:
        front = {4: (2, 3), 3: (3,), 2: ()}[self.axes]
        D = D or TILES["D"]
        return {
            "q": draw(*front, T, D, seed=seed, spread=spread),
            "k": draw(*front, S, D, seed=seed + 1, spread=spread),
            "v": draw(*front, S, D, seed=seed + 2),
            "rows": BLOCK,
            "columns": BLOCK,
            "block": BLOCK,
            "causal": False,
        }

    def call(self, trial: Trial, given: dict) -> Tensor:
        """The learner's output, (B, H, T, D) again."""
        if not self.swapped:
            return trial.copies(**given)
        turned = {name: given[name].transpose(1, 2).contiguous() for name in "qkv"}
        result = trial.copies(**(given | turned))
        return result.transpose(1, 2) if result.ndim == 4 else result

    @property
    def names(self) -> str:
        return {4: "example head query feature", 3: "head query feature", 2: "query feature"}[
            self.axes
        ]


def _flash(trial: Trial) -> None:
    known = trial.has("block") or trial.has("columns")
    layout, divides = _first_call(trial, known)
    lengths = [(11, 11)] if known else [(11, 11), (300, 300), (1100, 1100)]
    if divides:
        lengths = [(12, 12)] if known else [(1024, 1024)]
    if layout.axes == 4:
        layout.swapped = positions_first(trial.fn) or _turned(trial, layout, lengths[0][0])
    if _always_causal(trial, layout, lengths[0][0]):
        trial.reading.append("it is causal, and is not asked to be")
        trial.line("the numbers of causal attention", True)
        return
    shape = {4: "(B, T, H, D)" if layout.swapped else "(B, H, T, D)", 3: "(H, T, D)", 2: "(T, D)"}[
        layout.axes
    ]
    trial.reading.append(f"it takes {shape}")
    for T, S in lengths:
        name = f"the numbers of attention, T = S = {T}"
        name += f", tiles of {BLOCK}" if known else ""
        if not _compare(trial, layout, name, T, S):
            return
    trial.attempt(_two_lengths, layout, divides)
    if trial.has("causal"):
        trial.attempt(_causal, layout, 12 if divides else 11)
    trial.attempt(_large, layout, divides)
    trial.attempt(_materialises, layout)


def _turned(trial: Trial, layout: Layout, T: int) -> bool:
    """Whether it is right for (B, T, H, D) and not for (B, H, T, D)."""
    given = layout.given(T, T)
    right = flash(*_qkv(given), T, {})
    if near(layout.call(trial, given), right):
        return False
    layout.swapped = True
    try:
        return near(layout.call(trial, given), right)
    except (Stopped, Wrong):
        return False
    finally:
        layout.swapped = False


def _always_causal(trial: Trial, layout: Layout, T: int) -> bool:
    """Whether its numbers are those of causal attention, though nobody asked."""
    given = layout.given(T, T)
    if trial.has("causal"):
        return False
    return near(layout.call(trial, given), flash(*_qkv(given), T, {}, "right"))


def _first_call(trial: Trial, known: bool) -> tuple[Layout, bool]:
    """How it wants to be called, and whether lengths must be whole tiles."""
    first = None
    for T in (11, 12 if known else 1024):
        for axes in (4, 3, 2):
            layout = Layout(axes, known)
            given = layout.given(T, T)
            try:
                result = trial.copies(**given)
            except Stopped as stopped:
                if stopped.kind != "exception":
                    raise
                first = first or stopped
                continue
            if result.shape != given["q"].shape and axes > 2:
                continue
            divides = T != 11
            if divides:
                refused = isinstance(first.error, (AssertionError, ValueError))
                text = f"lengths of 11: {first.message}"
                trial.add("flash-must-divide", text, "note" if refused else "mistake")
            return layout, divides
    if first is None:
        return Layout(4, known), False
    raise first


def _candidates(given: dict, layout: Layout):
    options = dict(FLASH_OPTIONS)
    q, k, v = _qkv(given)
    if q.shape[-2] == k.shape[-2]:
        del options["length"]
    if layout.axes == 2:
        options["scale"] = [slug for slug in SCALES if slug != "scale-model-dim"]
    width = q.shape[-1] * (q.shape[-3] if layout.axes > 2 else 1)
    blocks = [b for b in layout.blocks() if b <= k.shape[-2]] or [BLOCK]
    for chosen, slugs in pairs(options, 2 if layout.known else 1):
        named = "+".join(SAME_FLASH.get(slug, slug) for slug in slugs.split("+"))
        tiled = any(stage not in ("scale", "inputs") for stage in chosen)
        for block in blocks if tiled else blocks[:1]:
            yield named, flash(q, k, v, block, chosen, width=width)


def _compare(trial: Trial, layout: Layout, name: str, T: int, S: int) -> bool:
    given = layout.given(T, S)
    yours = layout.call(trial, given)
    right = flash(*_qkv(given), BLOCK if T < 100 else 256, {})

    def example() -> str:
        if layout.known:
            for block, length in [(1, 1), (1, 2), (2, 2), (2, 3), (2, 4), (4, 6)]:
                small = layout.given(length, length, D=2) | dict.fromkeys(
                    ("rows", "columns", "block"), block
                )
                try:
                    mine = layout.call(trial, small)
                except (Stopped, Wrong):
                    continue
                wanted = flash(*_qkv(small), block, {})
                if not near(mine, wanted):
                    text = first_difference(mine, wanted, layout.names)
                    return f"smallest: T = S = {length}, tiles of {block}, D = 2: {text}"
        return first_difference(yours, right, layout.names)

    return trial.compare(name, yours, right, _candidates(given, layout), example)


def _two_lengths(trial: Trial, layout: Layout, divides: bool) -> None:
    if divides:
        T, S = (8, 16) if layout.known else (1024, 2048)
    else:
        T, S = (6, 13) if layout.known else (40, 1100)
    _compare(trial, layout, f"T is not S: T = {T}, S = {S}", T, S)


def _causal(trial: Trial, layout: Layout, T: int) -> None:
    given = layout.given(T, T) | {"causal": True}
    yours = layout.call(trial, given)
    blocks = layout.blocks()
    right = flash(*_qkv(given), BLOCK, {}, "right")
    slugs = ["causal-strict", "causal-leak-one", "causal-upper", "flash-causal-tiles",
             "flash-causal-skips"]  # fmt: skip
    candidates = [("mask-ignored", flash(*_qkv(given), BLOCK, {})[..., 1:, :])]
    for slug in slugs:
        for block in blocks if slug.startswith("flash") else blocks[:1]:
            other = flash(*_qkv(given), block, {}, slug)
            candidates.append((slug, other[..., 1:, :]))
            if slug in ("causal-strict", "flash-causal-skips"):
                candidates.append((slug, other.nan_to_num(0.0)[..., 1:, :]))
    text = first_difference(yours, right, layout.names)
    if yours.shape == right.shape and near(yours[..., 1:, :], right[..., 1:, :]):
        trial.compare("causal", yours, right, [], text)
    else:
        trial.compare("causal", yours[..., 1:, :], right[..., 1:, :], candidates, text)


def _large(trial: Trial, layout: Layout, divides: bool) -> None:
    """Scores far from 0, of both signs, and all of them far below."""
    name = "large scores do not overflow"
    T = 12 if layout.known else 1024 if divides else 300
    for said, shift in (("of both signs", 0.0), ("all far below 0", 40.0)):
        given = layout.given(T, T, spread=20.0)
        given["q"], given["k"] = given["q"] + shift, given["k"] - shift
        yours = layout.call(trial, given)
        right = flash(*_qkv(given), T, {})
        good = bool(torch.isfinite(yours).all()) and float((yours - right).abs().max()) < 2e-2
        if not good:
            trial.line(name, False, said, "flash-overflow")
            scores = given["q"].double() @ given["k"].double().mT / math.sqrt(TILES["D"])
            text = (
                f"scores from {float(scores.min()):.0f} to {float(scores.max()):.0f}: "
                f"{int((~torch.isfinite(yours)).sum())} of {yours.numel()} numbers are NaN or inf"
            )
            trial.add("flash-overflow", text)
            return
    trial.line(name, True)


class Shapes(TorchDispatchMode):
    """Notes whether a tensor of T x S is made."""

    def __init__(self, T: int, S: int):
        super().__init__()
        self.shape, self.found = (T, S), False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and tuple(result.shape[-2:]) == self.shape:
            self.found = True
        return result


def _materialises(trial: Trial, layout: Layout) -> None:
    """Whether all scores lie in memory at once."""
    if trial.arrays:
        return
    T = 32 if layout.known else 2048
    given = layout.given(T, T)
    with Shapes(T, T) as shapes:
        layout.call(trial, given)
    if not trial.line("no tensor of T × S is made", not shapes.found):
        trial.add("flash-materialises", f"with T = S = {T} a tensor ends in ({T}, {T})", "note")
