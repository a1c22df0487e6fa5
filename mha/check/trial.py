"""The trial of one exercise: how the learner's function is called, and how numbers are compared."""

import contextlib
import inspect
import itertools
import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mha.check import binding, causes
from mha.check.binding import Question
from mha.check.catalogue import finding
from mha.check.guard import Guard, Stopped
from mha.check.report import Check, Finding, Report
from mha.check.unwritten import or_your_turn

CLOSE = 1e-4  # of the largest number, for inputs in float32


PLAINER = {  # where the catalogue speaks of weights and of attention
    "unknown": "Your numbers differ from the right ones, and from what each mistake that is known "
    "for this exercise would give. The evidence shows the smallest example that was found.",
    "wrong-shape": "The sizes in the check are all different, so a number in the shape names its "
    "axis.",
}


def misshapen(evidence: str, title: str = "The result has another shape than it should") -> Finding:
    """The finding for a wrong shape."""
    return finding("wrong-shape", evidence, title=title, explanation=PLAINER["wrong-shape"])


class Wrong(Exception):
    """A finding that ends a step."""

    def __init__(self, found: Finding):
        self.found = found
        super().__init__(found.title)


@dataclass(frozen=True)
class Role:
    """What a parameter means: its usual spellings, without case and underscores."""

    name: str
    spellings: str = ""
    must: bool = False

    def fits(self, name: str) -> bool:
        return binding.plain(name) in [binding.plain(self.name), *self.spellings.split()]


class Trial:
    """One function under examination; findings, lines and readings gather here."""

    def __init__(self, fn, guard: Guard, roles: list[Role]):
        self.fn, self.guard = fn, guard
        self.findings, self.checks, self.reading = [], [], []
        self.arrays = False  # it takes NumPy arrays
        self.places, self.by_place, self.guessed = {}, [], set()
        self._bind(roles)

    def _bind(self, roles: list[Role]) -> None:
        """Which parameter has which role: by name, then required ones by place."""
        if not callable(self.fn):
            raise Question("it cannot be called: pass the function itself")
        function = self.fn.forward if isinstance(self.fn, nn.Module) else self.fn
        with contextlib.suppress(TypeError, ValueError):
            parameters = list(binding.signature(function).parameters.values())
            self._bind_names(roles, parameters)
            return
        self.by_place = [role.name for role in roles if role.must]

    def _bind_names(self, roles: list[Role], parameters: list) -> None:
        plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        left = []
        for parameter in plain:
            fitting = [r for r in roles if r.fits(parameter.name) and r.name not in self.places]
            if fitting:
                self.places[fitting[0].name] = parameter
            else:
                left.append(parameter)
        for role in roles:  # what must be given takes the next place
            if role.must and role.name not in self.places and left:
                self.places[role.name] = left.pop(0)
                self.guessed.add(role.name)
        for parameter in [p for p in left if p.default is p.empty]:
            free = [role for role in roles if role.name not in self.places]
            if not free:
                raise Question(f"it asks for `{parameter.name}`: give it a default")
            self.places[free[0].name] = parameter
            self.guessed.add(free[0].name)
        missing = [role.name for role in roles if role.must and role.name not in self.places]
        if missing and len(plain) < len(parameters):  # *args
            self.by_place = [role.name for role in roles if role.must]
        elif missing:
            raise Question(f"it has no parameter for {', '.join(missing)}")

    def has(self, role: str) -> bool:
        """Whether it takes an argument of this meaning."""
        return role in self.places

    def optional(self, role: str) -> bool:
        """Whether an argument of this meaning may be left out."""
        return role not in self.places or self.places[role].default is not inspect.Parameter.empty

    def raw(self, **given):
        """What it returns for the arguments that it takes. Errors: Stopped."""
        if self.arrays:
            given = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in given.items()}
        if self.by_place:
            return self.guard.call(self.fn, *(given[name] for name in self.by_place))
        for role, parameter in self.places.items():
            if role not in given and parameter.default is parameter.empty:
                raise Question(f"it asks for `{parameter.name}`: give it a default")
        args, kwargs = [], {}
        for role, parameter in self.places.items():
            if role in given and parameter.kind is parameter.POSITIONAL_ONLY:
                args.append(given[role])
            elif role in given:
                kwargs[parameter.name] = given[role]
        return self.guard.call(self.fn, *args, **kwargs)

    def __call__(self, **given) -> Tensor:
        """The same as a tensor. Errors: Stopped, Wrong."""
        result = self.raw(**given)
        if isinstance(result, np.ndarray) and not self.arrays:
            if any(isinstance(value, Tensor) for value in given.values()):
                self.arrays = True
                self.reading.append("it returns NumPy arrays")
        return as_tensor(result)

    def copies(self, **given) -> Tensor:
        """The same with inputs of its own, which it may change."""
        return self(**{k: v.clone() if isinstance(v, Tensor) else v for k, v in given.items()})

    def tensors_or_arrays(self, **given) -> Tensor:
        """A first call: with tensors, and if that fails, with NumPy arrays."""
        try:
            return self.copies(**given)
        except Stopped as stopped:
            if stopped.kind != "exception" or self.arrays:
                raise
            self.arrays = True
            try:
                result = self.copies(**given)
            except (Stopped, Wrong):
                self.arrays = False
                raise stopped from None
            self.reading.append("it takes NumPy arrays")
            return result

    # --- what was found

    def lengths(self, yours: Tensor, right: Tensor) -> str:
        """Both shapes, with the names of their axes."""
        mine, wanted = (causes.shape(x, self.guard.sizes) for x in (yours, right))
        return f"the result should be {wanted} and is {mine}"

    @property
    def mistaken(self) -> bool:
        """Whether a mistake was found so far."""
        return any(found.severity == "mistake" for found in self.findings)

    def line(self, name: str, passed: bool | None, detail: str = "", *slugs: str) -> bool:
        """A line of the table; returns ``passed``."""
        self.checks.append(Check(name, passed, detail, slugs))
        return bool(passed)

    def add(self, slug: str, evidence: str = "", severity: str = "mistake", **replaced) -> None:
        """A finding, once for each slug."""
        if all(found.slug != slug for found in self.findings):
            if slug in PLAINER:
                replaced = {"explanation": PLAINER[slug]} | replaced
            self.findings.append(finding(slug, evidence, severity, **replaced))

    def attempt(self, step, *args) -> None:
        """A step whose failure is a finding and leaves the others their turn."""
        try:
            step(self, *args)
        except Wrong as wrong:
            self._keep(wrong.found)
        except Stopped as stopped:
            if stopped.kind != "exception":
                raise
            self._keep(stopped.finding())

    def _keep(self, found: Finding) -> None:
        if all(found.slug != known.slug for known in self.findings):
            self.findings.append(found)

    def compare(self, name: str, yours: Tensor, right: Tensor, candidates, evidence) -> bool:
        """A line, and if the numbers are wrong a finding.

        Args:
            yours, right: two tensors.
            candidates: pairs (slugs, tensor) of what mistakes would have given, likely ones first.
                slugs: one slug, or two joined by "+".
            evidence: text, or a function without arguments that makes it.
        Returns: whether the numbers are right.
        """
        if near(yours, right):
            return self.line(name, True)
        said = evidence if isinstance(evidence, str) else evidence()
        slugs = explained(yours, right, candidates)
        if len(slugs) == 1:
            self.line(name, False, slugs[0].replace("+", " and "), *slugs[0].split("+"))
            for slug in slugs[0].split("+"):
                self.add(slug, f"right code with this mistake gives your numbers\n{said}")
            return False
        self.line(name, False, "", *slugs)
        if slugs:
            names = "; ".join(slug.replace("+", " and ") for slug in slugs)
            self.add("ambiguous", f"each of these gives your numbers: {names}\n{said}")
        elif yours.shape != right.shape:
            self._keep(misshapen(f"{self.lengths(yours, right)}\n{said}"))
        elif not torch.isfinite(yours.double()).all() and torch.isfinite(right.double()).all():
            self.add("not-finite", said, title="The result holds NaN or infinity")
        else:
            self.add("unknown", said)
        return False


def as_tensor(result) -> Tensor:
    """A result as a tensor, the first of a tuple. Errors: Wrong."""
    if isinstance(result, tuple) and result:
        result = result[0]
    if result is None:
        raise Wrong(finding("returns-nothing", "the result is None"))
    if isinstance(result, (list, np.ndarray, float, int, np.generic)):
        with contextlib.suppress(ValueError, TypeError, RuntimeError):
            result = torch.as_tensor(np.asarray(result))
    if not isinstance(result, Tensor):
        text = f"the result should be a tensor and is of type {type(result).__name__}"
        raise Wrong(misshapen(text, "The result is not a tensor"))
    return result.detach() if result.requires_grad else result


def positions_first(subject) -> bool:
    """Whether the learner's own words say that positions come before heads, as in (B, T, H, D)."""
    words = binding.documented_source(subject).lower()
    axes = r"\bb(atch(_?size)?)?\s*,\s*(t|s|l|n|seq\w*|time|length|positions?)\s*,\s*(num_|n_?)?h(eads?)?\b"
    return re.search(axes, words) is not None


def near(yours: Tensor, right: Tensor, close: float = CLOSE) -> bool:
    """Whether two tensors hold the same numbers, but for rounding."""
    if yours.shape != right.shape:
        return False
    yours, right = yours.double(), right.double()
    same = (yours == right) | (yours.isnan() & right.isnan())
    finite = right[torch.isfinite(right)]
    size = max(float(finite.abs().max()) if finite.numel() else 0.0, 1e-30)
    return bool((same | ((yours - right).abs() <= close * size)).all())


def explained(yours: Tensor, right: Tensor, candidates) -> list[str]:
    """The slugs whose numbers these are; single mistakes before pairs."""
    found = []
    for slugs, numbers in candidates:
        if found and slugs.count("+") > found[0].count("+"):
            break
        if near(yours, numbers) and not near(numbers, right) and slugs not in found:
            found.append(slugs)
    return found


def pairs(options: dict[str, list[str]], most: int = 2):
    """Choices that differ from "right" in one place, then in two: ({stage: slug}, slugs)."""
    for count in range(1, most + 1):
        for stages in itertools.combinations(options, count):
            for slugs in itertools.product(*(options[stage] for stage in stages)):
                yield dict(zip(stages, slugs, strict=True)), "+".join(slugs)


def examine(fn, body, roles: list, seconds: float, sizes: dict, subject=None) -> Report:
    """Run ``body(trial)`` in safe surroundings; the report. ``subject``: whose file is theirs."""
    name = getattr(fn, "__name__", type(fn).__name__)
    trial, early = None, []
    with Guard(fn if subject is None else subject, seconds=seconds, sizes=sizes) as guard:
        try:
            trial = Trial(fn, guard, roles)
            body(trial)
        except Stopped as stopped:
            early = [stopped.finding()]
        except Wrong as wrong:
            early = [wrong.found]
        except Question as question:
            early = [finding("question", str(question))]
    findings = [*(trial.findings if trial else ()), *early]
    reading = list(trial.reading) if trial else []
    if guard.unprotected:
        reading.append(guard.unprotected)
    report = Report(name, tuple(findings), tuple(trial.checks if trial else ()), tuple(reading))
    return or_your_turn(report, fn if subject is None else subject)


# --- words


def number(x: float) -> str:
    """1.0 -> "1", 0.12345 -> "0.123"."""
    return f"{x:.0f}" if float(x).is_integer() and abs(x) < 1e6 else f"{x:.4g}"


def show(tensor: Tensor, most: int = 24) -> str:
    """Numbers in nested brackets; the shape alone if they are many."""
    if tensor.numel() > most or tensor.numel() == 0:
        return f"numbers of shape {tuple(tensor.shape)}"
    if tensor.ndim == 0:
        return str(tensor.item()) if tensor.dtype == torch.bool else number(tensor.item() + 0.0)
    return "[" + " ".join(show(part) for part in tensor) + "]"


def versus(given: str, yours: Tensor, right: Tensor) -> str:
    """Three lines: the input, the learner's numbers and the right ones."""
    if yours.shape != right.shape:
        shapes = f"{given}\n  your shape: {tuple(yours.shape)}\n  right: {tuple(right.shape)}"
        if max(yours.numel(), right.numel()) > 12:
            return shapes
    return f"{given}\n  yours: {show(yours)}\n  right: {show(right)}"


def first_difference(yours: Tensor, right: Tensor, axes: str) -> str:
    """Where two tensors of one shape differ first, with both numbers."""
    if yours.shape != right.shape:
        return f"your shape is {tuple(yours.shape)}, right is {tuple(right.shape)}"
    size = max(float(right.double().nan_to_num().abs().max()), 1e-30)
    gap = (yours.double() - right.double()).abs().nan_to_num(nan=torch.inf)
    at = (gap > CLOSE * size).nonzero()
    if not len(at):
        return "no difference"
    place = tuple(at[0].tolist())
    said = ", ".join(f"{axis} {i}" for axis, i in zip(axes.split(), place, strict=False))
    mine, wanted = number(float(yours[place])), number(float(right[place]))
    return f"at {said}: yours {mine}, right {wanted}"


def draw(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Normal numbers in float32, always the same."""
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
