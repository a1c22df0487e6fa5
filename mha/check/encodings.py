"""The check of a positional encoding: sine and cosine of positions at many speeds."""

import inspect
import itertools
import math

import torch
from torch import Tensor, nn

from mha.check.report import Report
from mha.check.trial import (
    Question,
    Role,
    Trial,
    Wrong,
    as_tensor,
    examine,
    first_difference,
    misshapen,
    near,
    number,
)

SIZES = {"T": 9, "E": 12}
ROLES = [
    Role("length", "maxlen t seqlen n numpositions maxlength positions maxseqlen npositions "
         "maxposition l seqlength contextlength blocksize numtokens", must=True),
    Role("width", "dmodel dim d embeddim e hiddensize numhiddens nembd embsize depth channels "
         "dimension embeddingdim modeldim", must=True),
    Role("base", "theta"),
]  # fmt: skip
LAYOUTS = {"right": "", "pe-halves": "note", "pe-cos-first": "note", "pe-halves-cos-first": "note"}
OPTIONS = {
    "waves": ["pe-sin-only", "pe-cos-only"],
    "exponent": ["pe-exponent-half", "pe-exponent-double", "pe-own-frequency", "pe-growing",
                 "pe-exponent-missing", "pe-last-pair", "pe-exponent-double-own"],
    "start": ["pe-from-one"],
    "unit": ["pe-degrees"],
    "size": ["pe-scaled"],
}  # fmt: skip
SLUGS = {
    "pe-exponent-half": "pe-exponent",
    "pe-exponent-double": "pe-exponent",
    "pe-exponent-missing": "pe-exponent",
    "pe-exponent-double-own": "pe-exponent",  # 2 * i / E and 2 * (i + 1) / E, with i in twos
    "pe-cos-only": "pe-sin-only",
}


def check(fn, seconds: float) -> Report:
    """The report on a function fn(length, width), or on a module that adds them to its input."""
    if isinstance(fn, nn.Module):
        return examine(fn, _ask, [], seconds, SIZES)
    if isinstance(fn, type) and issubclass(fn, nn.Module):
        return examine(Added(fn), _check, ROLES, seconds, SIZES, subject=fn)
    return examine(fn, _check, ROLES, seconds, SIZES)


def _ask(trial: Trial) -> None:
    raise Question("pass the class, not an instance, so that other widths can be tried")


class Added:
    """A module of encodings as a function: what it adds to zeros."""

    def __init__(self, module):
        self.module = module
        self.__name__ = getattr(module, "__name__", type(module).__name__)

    def __call__(self, length: int, width: int):
        """(length, width)"""
        module = self.module(**self._arguments(length, width)).eval()
        zeros = torch.zeros(1, length, width)
        try:
            result = module(zeros)
        except (RuntimeError, TypeError):
            result = module(torch.arange(length))  # an embedding of positions
        result = result[0] if isinstance(result, tuple) else result
        if result.ndim == 3 and length > 1 and bool((result == result[:, :1]).all()):
            result = module(zeros.transpose(0, 1))  # (T, B, E), sequence first
        return result

    def _arguments(self, length: int, width: int) -> dict:
        given = {}
        for name, parameter in inspect.signature(self.module).parameters.items():
            for role, value in zip(ROLES, (length, width), strict=False):
                if role.fits(name):
                    given[name] = value
            if name in ("dropout", "p", "dropout_p", "drop"):
                given[name] = 0.0
            elif name not in given and parameter.default is parameter.empty:
                raise TypeError(f"the constructor asks for {name!r}: give it a default")
        return given


def encode(T: int, E: int, chosen: dict, layout: str = "right", base: float = 10000.0) -> Tensor:
    """(T, E) with the mistakes that are chosen, a slug for each stage."""
    exponent = chosen.get("exponent", "right")
    pair = torch.arange(0, E, 2, dtype=torch.float64)
    power = {
        "pe-exponent-half": pair / (2 * E),
        "pe-exponent-double": 2 * pair / E,
        "pe-exponent-double-own": 2 * pair / E,
        "pe-exponent-missing": pair * 0,
        "pe-last-pair": pair / max(E - 2, 1),
        "pe-growing": -pair / E,
    }.get(exponent, pair / E)
    start = 1 if chosen.get("start") == "pe-from-one" else 0
    position = torch.arange(start, T + start, dtype=torch.float64)[:, None]
    unit = math.pi / 180 if chosen.get("unit") == "pe-degrees" else 1.0
    sines = position * base**-power * unit
    cosines = sines
    if exponent == "pe-own-frequency":
        cosines = position * base ** (-(pair + 1) / E) * unit
    elif exponent == "pe-exponent-double-own":
        cosines = position * base ** (-2 * (pair + 1) / E) * unit
    waves = chosen.get("waves")
    a = sines.cos() if waves == "pe-cos-only" else sines.sin()
    b = cosines.sin() if waves == "pe-sin-only" else cosines.cos()
    if "cos-first" in layout:
        a, b = b, a
    if "halves" in layout:
        return torch.cat((a, b), -1)
    return torch.stack((a, b), -1).flatten(-2)


def _candidates(T: int, E: int):
    """(slugs, layout, numbers) with no mistake, one, two; the usual layout first."""
    for count in range(3):
        for stages in itertools.combinations([s for s in OPTIONS if s != "size"], count):
            for slugs in itertools.product(*(OPTIONS[stage] for stage in stages)):
                chosen = dict(zip(stages, slugs, strict=True))
                for layout in LAYOUTS:
                    yield list(slugs), layout, encode(T, E, chosen, layout)


def _call(trial: Trial, T: int, E: int) -> Tensor:
    result = as_tensor(trial.raw(length=T, width=E))
    got = tuple(result.shape)
    if got in [(1, T, E), (T, 1, E)]:
        said = f"it has an axis for the batch: {'(1, T, E)' if got[0] == 1 else '(T, 1, E)'}"
        if said not in trial.reading:
            trial.reading.append(said)
        return result.reshape(T, E)
    if got != (T, E):
        text = f"for {T} positions and a width of {E} the shape is {got}, right is {(T, E)}"
        if got in [(E, T), (1, E, T)]:
            text += "; the axes are exchanged, or the arguments"
        raise Wrong(misshapen(text, "The table has another shape than (T, E)"))
    return result.double()


def _check(trial: Trial) -> None:
    T, E = SIZES["T"], SIZES["E"]
    yours, right = _call(trial, T, E), encode(T, E, {})
    name = "sine and cosine, 10,000^(-2i / E) radians a position"
    matches = [
        (slugs, layout)
        for slugs, layout, numbers in _candidates(T, E)
        if _same(yours, numbers, slugs)
    ]
    if matches:
        fewest = min(len(slugs) for slugs, _ in matches)
        matches = [m for m in matches if len(m[0]) == fewest]
    if not matches:
        _other(trial, name, yours, right)
        return
    slugs, layout = matches[0]
    kinds = {tuple(SLUGS.get(slug, slug) for slug in slugs) for slugs, _ in matches}
    said = _example(yours, right)
    if len(kinds) > 1:
        trial.line(name, False)
        names = "; ".join(" and ".join(kind) for kind in sorted(kinds))
        trial.add("ambiguous", f"each of these gives your numbers: {names}\n{said}")
        return
    if slugs == ["pe-last-pair"]:
        trial.line(name, True, "but the last pair is the slowest the base allows")
        trial.add("pe-last-pair", said, "note")
        _note_layout(trial, layout, said)
        return
    trial.line(name, not slugs, " and ".join(kinds.pop()))
    for slug in slugs:
        trial.add(SLUGS.get(slug, slug), f"right code with this mistake gives your numbers\n{said}")
    if not slugs:
        _note_layout(trial, layout, said)
        _more(trial, layout)


def _note_layout(trial: Trial, layout: str, said: str) -> None:
    for part in ("pe-halves", "pe-cos-first"):
        if part.removeprefix("pe-") in layout:
            trial.add(part, said, "note")


def _same(yours: Tensor, numbers: Tensor, slugs: list[str]) -> bool:
    """Whether they agree; angles of thousands of radians are not precise in float32."""
    if "pe-growing" in slugs:
        return near(yours[:3], numbers[:3], 2e-2)
    return near(yours, numbers)


def _example(yours: Tensor, right: Tensor) -> str:
    """Position 1, and where the two differ first."""

    def row(x: Tensor) -> str:
        return "[" + " ".join(f"{v + 0.0:.4f}" for v in x[:6].tolist()) + " ...]"

    place = first_difference(yours, right, "position feature")
    return f"{place}\nposition 1:\n  yours: {row(yours[1])}\n  right: {row(right[1])}"


def _other(trial: Trial, name: str, yours: Tensor, right: Tensor) -> None:
    """Another base, another size, or unknown."""
    E = yours.shape[1]
    said = _example(yours, right)
    if not torch.isfinite(yours).all():
        trial.line(name, False)
        trial.add("not-finite", said, title="The table holds NaN or infinity")
        return
    for layout in LAYOUTS:
        wanted = encode(len(yours), E, {}, layout)
        size = float((yours * wanted).sum() / (wanted * wanted).sum())
        if abs(size) > 1e-3 and near(yours, size * wanted):
            trial.line(name, False, "pe-scaled", "pe-scaled")
            trial.add("pe-scaled", f"all numbers are {number(size)} times the right ones\n{said}")
            return
        base = _base(yours, layout)
        if base and near(yours, encode(len(yours), E, {}, layout, base)):
            trial.line(name, False, "pe-base", "pe-base")
            trial.add("pe-base", f"your base is {number(round(base, 3))}, usual is 10000\n{said}")
            return
    trial.line(name, False)
    trial.add("unknown", said)


def _base(yours: Tensor, layout: str) -> float | None:
    """The base that pair 1 at position 1 tells, if it is one."""
    E = yours.shape[1]
    sine, cosine = (1, 1 + E // 2) if "halves" in layout else (2, 3)
    if "cos-first" in layout:
        sine, cosine = cosine, sine
    angle = math.atan2(float(yours[1, sine]), float(yours[1, cosine]))
    if not 0 < angle < math.pi:
        return None
    base = angle ** (-E / 2)
    nice = float(f"{base:.2g}")
    return nice if abs(base / nice - 1) < 2e-3 else base if base < 1e12 else None


def _more(trial: Trial, layout: str) -> None:
    """Other lengths and widths, and that two calls agree."""
    for T, E in [(1, 4), (40, 6), (3, 2), (200, 32)]:
        yours, right = _call(trial, T, E), encode(T, E, {}, layout)
        if not near(yours, right):
            trial.line("other lengths and widths", False, f"T = {T}, E = {E}")
            if (yours - right).abs().max() < 5e-3:
                trial.add("unknown", f"T = {T}, E = {E}: {first_difference(yours, right, 'position feature')}",
                          title="Far positions are not precise")  # fmt: skip
            else:
                trial.add(
                    "unknown",
                    f"T = {T}, E = {E}: {first_difference(yours, right, 'position feature')}",
                )
            return
    trial.line("other lengths and widths", True)
