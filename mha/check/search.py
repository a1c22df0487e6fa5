"""Which mistakes explain what the learner's code computed: the fewest that do."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mha.check.simulate import OPTIONS, Maps, Probe, Recipe, Simulator, slugs


@dataclass
class Observation:
    """What the learner's code returned for a probe."""

    probe: Probe
    output: Tensor
    weights: Tensor | None = None  # where the code returned them


@dataclass
class Match:
    """A reading and a recipe that give the learner's numbers, and by how much they miss."""

    maps: Maps | None
    recipe: Recipe
    error: float

    @property
    def slugs(self) -> tuple[str, ...]:
        """The mistakes it names."""
        return slugs(self.recipe)


def distance(output: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected number; inf if shapes differ."""
    if output.shape != expected.shape:
        return float("inf")
    gap, size = float((output - expected).abs().max()), float(expected.abs().max())
    if math.isfinite(gap) and math.isfinite(size):
        return gap / max(size, 1e-30)
    broken = ~torch.isfinite(output)
    if not torch.equal(broken, ~torch.isfinite(expected)):
        return float("inf")
    if broken.all():
        return 0.0
    size = expected[~broken].abs().max().clamp_min(1e-30)
    return float((output - expected)[~broken].abs().max() / size)


NEAR_ZERO = [sign * 10.0**-n for n in (4, 5, 6, 7, 8, 9, 10, 12) for sign in (1, -1)]


class Search:
    """Compares observations with recipes, one deviation at a time, then two, then three.

    Args:
        observations: probes with what the learner's code returned, all of which must fit.
        readings: ways to read the maps, the likeliest first; [None] for a function.
        stages: which options may be tried: stage -> options.
        bases: recipes to start from, none of which counts as a mistake.
        tolerance: relative, see ``distance``. budget: how many recipes are tried before giving up,
            a number and not a time, so that a slow machine finds the same.
        required: sets of options (stage, option); of each set a recipe must have one.
    """

    def __init__(self, observations, readings, stages, bases, *, tolerance, budget, required=()):
        self.observations, self.tolerance = observations, tolerance
        self.readings, self.stages, self.bases = readings, stages, bases
        self.required = [frozenset(group) for group in required]
        self.budget = budget
        self.simulators = [
            [Simulator(seen.probe, maps) for seen in observations] for maps in readings
        ]

    def error(self, i: int, recipe: Recipe) -> float:
        """How far reading i and a recipe are from what was observed; inf as soon as one differs."""
        worst = 0.0
        self.budget -= 1
        for simulator, seen in zip(self.simulators[i], self.observations, strict=True):
            try:
                expected, _ = simulator(recipe)
            except (RuntimeError, IndexError, ValueError):
                return float("inf")
            worst = max(worst, distance(seen.output, expected))
            if not worst <= self.tolerance:
                return worst
        return worst

    def run(self, depth: int = 3, scales: bool = True) -> list[Match]:
        """The matches with the fewest deviations, best first; [] if nothing fits.

        Without ``scales``, only the factors in ``OPTIONS`` are tried on the scores.
        """
        for count in range(depth + 1):
            limit = {0: 400, 1: 60, 2: 4, 3: 1}[count]
            found = []
            for i in range(min(limit, len(self.readings))):
                found += self._at_depth(i, count)
                if found and count != 1:  # with one mistake, another reading may have another
                    break
            if not found and scales and count == min(2, depth):
                found = self._fit_scale()
            if found:
                return _best(found)
        return []

    def _at_depth(self, i: int, count: int) -> list[Match]:
        found = []
        for base in self.bases[: 2 if count > 2 else None]:
            for changes in self._changes(count):
                if any(stage in base.deviations for stage in changes):
                    continue
                for recipe in _dead_rows(base | changes):
                    error = self.error(i, recipe)
                    if error <= self.tolerance:
                        found.append(Match(self.readings[i], recipe, error))
                if self.budget <= 0:
                    return found
        return found

    def _changes(self, count: int):
        for stages in itertools.combinations(self.stages, count):
            choices = [self.stages[stage] for stage in stages]
            if count > 2:  # without mistakes in one operand alone
                choices = [[o for o in options if " " not in o] for options in choices]
            for options in itertools.product(*choices):
                changes = dict(zip(stages, options, strict=True))
                if all(not group.isdisjoint(changes.items()) for group in self.required):
                    yield changes

    def _fit_scale(self) -> list[Match]:
        """Another factor on the scores, alone or with one more mistake."""
        found = []
        for i in range(min(2, len(self.readings))):
            for base in self.bases[:2]:
                for changes in [*self._changes(0), *self._changes(1)]:
                    if "scale" in changes or any(stage in base.deviations for stage in changes):
                        continue
                    match = self._fitted(i, base | changes)
                    found += [match] if match else []
                    if self.budget <= 0:
                        return found
                if found:
                    return found
        return found

    def fit_fill(self, grid=range(-36, 7)) -> list[Match]:
        """A number in the place of blocked scores that is not negative enough."""
        found = []
        for mask in ("filled", "filled-added"):
            for base in self.bases:

                def loss(fill: float, mask=mask, base=base) -> float:
                    return self._loss(0, base | {"mask": mask, "fill": float(fill)})

                losses = [loss(fill) for fill in grid]
                best = grid[min(range(len(grid)), key=losses.__getitem__)]
                fills = [best]
                if min(losses) < 0.3 and min(losses) > self.tolerance:
                    fills.append(minimise(loss, best - 1, best + 1))
                for fill in map(float, fills):
                    recipe = base | {"mask": mask, "fill": fill}
                    error = self.error(0, recipe)
                    if error <= self.tolerance:
                        found.append(Match(self.readings[0], recipe, error))
        return _best(found) if found else []

    def _loss(self, i: int, recipe: Recipe) -> float:
        self.budget -= 1
        try:
            expected, _ = self.simulators[i][0](recipe)
        except (RuntimeError, IndexError, ValueError):
            return float("inf")
        return distance(self.observations[0].output, expected)

    def _fitted(self, i: int, recipe: Recipe) -> Match | None:
        def loss(log: float) -> float:
            return self._loss(i, recipe | {"scale": math.exp(log)})

        grid = [-5 + 0.25 * n for n in range(33)]
        losses = [loss(log) for log in grid]
        best = min(range(len(grid)), key=losses.__getitem__)
        if not losses[best] < 0.3:
            return None
        log = minimise(loss, grid[best] - 0.25, grid[best] + 0.25)
        fitted = recipe | {"scale": math.exp(log)}
        error = self.error(i, fitted)
        return Match(self.readings[i], fitted, error) if error <= self.tolerance else None


def minimise(loss, low: float, high: float, steps: int = 60) -> float:
    """Golden-section search."""
    ratio = (5**0.5 - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    fa, fb = loss(a), loss(b)
    for _ in range(steps):
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - ratio * (high - low)
            fa = loss(a)
        else:
            low, a, fa = a, b, fb
            b = low + ratio * (high - low)
            fb = loss(b)
    return (low + high) / 2


def _dead_rows(recipe: Recipe):
    """A recipe in all its ways with queries that see nothing, where its rule makes such queries."""
    yield recipe
    if recipe.rule in ("strict", "upper-strict") and recipe.dead == "zero":
        for dead in ("nan", "uniform", "unmasked"):
            yield recipe | {"dead": dead}


def _best(found: list[Match]) -> list[Match]:
    """Best first, without those that miss a thousand times more."""
    found = sorted(found, key=lambda match: match.error)
    limit = max(found[0].error, 1e-15) * 1e3
    found = [match for match in found if match.error <= limit]
    fewest = min(len(match.recipe.deviations) for match in found)
    return [match for match in found if len(match.recipe.deviations) == fewest]


def options(stages: tuple[str, ...], without: tuple[str, ...] = ()) -> dict[str, list]:
    """Stage -> options that may be tried, without those of some slugs."""
    return {
        stage: [option for option, slug in OPTIONS[stage].items() if slug not in without]
        for stage in stages
    }
