"""The examination of a learner's attention function, fn(query, key, value, mask=None)."""

import copy
import itertools

import torch
from torch import Tensor, nn

from mha.check import binding, masking, search, symptoms, training
from mha.check.binding import Adapter, Malformed
from mha.check.catalogue import finding
from mha.check.guard import Stopped
from mha.check.lab import SIZES, Question, numbers
from mha.check.modules import Examination
from mha.check.simulate import Probe, Recipe

STAGES = ("inputs", "scores", "scale", "rule", "softmax")


FOR_MODULES = (symptoms.head_count, symptoms.effects, symptoms.odd_sizes)


class FunctionLab:
    """Inputs (B, H, T, D), (B, H, S, D), (B, H, S, D_v) for a function."""

    is_class = False

    def __init__(self):
        self.sizes = dict(SIZES)
        self.value_width = 5

    def probe(self, kind="qkv", seed: int = 1, dtype=torch.float64, **changed) -> Probe:
        """Three inputs; "self": the same length, of three different tensors."""
        n = self.sizes | changed
        S = n["T"] if kind == "self" and "S" not in changed else n["S"]
        source = numbers(seed)

        def draw(length: int, width: int) -> Tensor:
            shape = n["B"], n["H"], length, width
            return 1.3 * torch.randn(shape, generator=source, dtype=torch.float64)

        width = self.value_width or n["D"]
        return Probe(
            *(x.to(dtype) for x in (draw(n["T"], n["D"]), draw(S, n["D"]), draw(S, width)))
        )


class FunctionExamination(Examination):
    """One function under examination; the steps are those of a module's that need no parameters."""

    takes = "(B, H, T, D)"

    def prepare(self) -> None:
        """Read the signature."""
        self.dtype = torch.float64
        self.lab = FunctionLab()
        self.module = self.make()
        if not callable(self.subject):
            raise Question("it cannot be called: pass the function itself")
        function = self.subject.forward if isinstance(self.subject, nn.Module) else self.subject
        self.arguments = binding.read_arguments(function)
        if self.arguments.unknown:
            raise Question(
                f"it asks for {', '.join(self.arguments.unknown)}: give such arguments a default"
            )
        if self.arguments.kind != "qkv":
            raise Question(
                "it does not take a query, a key and a value: name its first three arguments so"
            )
        self.batch_first, self.axes, self.kind = True, 4, "qkv"
        self.settings: dict = {}
        self.mask_form = self.key_form = None
        self.says = binding.documented_polarity(self.subject)

    def right_shape(self, probe: Probe) -> torch.Size:
        """(B, H, T, D_v)"""
        return torch.Size([*probe.query.shape[:-1], probe.value.shape[-1]])

    def make(self, **changed):
        """The function itself; a copy if it is a module."""
        if isinstance(self.subject, nn.Module):
            return copy.deepcopy(self.subject).eval()
        return self.subject

    def in_dtype(self, dtype):
        """The function itself."""
        return self.subject

    def adapter(self, module, **changed) -> Adapter:
        """The function behind the way of calling it that was found."""
        known = {"axes": self.axes, "heads": self.lab.sizes["H"]}
        known |= {"mask_form": self.mask_form, "key_form": self.key_form, "extra": self.settings}
        return Adapter(module, self.arguments, self.guard, **known | changed)

    def first_call(self) -> None:
        """With four axes, or three, or two; with values of a width of their own if it can."""
        self.first_failed = first = None
        drops = (None, 0.0) if "dropout" in self.arguments.settings.values() else (None,)
        ways = itertools.product(
            (torch.float64, torch.float32), (self.lab.value_width, None), (4, 3, 2), drops
        )
        for self.dtype, self.lab.value_width, self.axes, drop in ways:
            numbers = {"head_dim": self.lab.sizes["D"], "heads": self.lab.sizes["H"]}
            numbers["dropout"] = drop
            self.settings = {n: numbers[m] for n, m in self.arguments.settings.items()}
            try:
                self.try_forms(self.lab.probe("self", dtype=self.dtype))
            except (Stopped, Malformed) as failed:
                if isinstance(failed, Stopped) and failed.kind != "exception":
                    raise
                self.first_failed = first = first or failed
                continue
            if self.dtype == torch.float32:
                self.float64_failed, self.tolerance = first, 1e-4
            return
        raise first

    def observe(self) -> list[search.Observation]:
        """Outputs for unequal and equal lengths."""
        seen = []
        for kind in ("qkv", "self"):
            probe = self.lab.probe(kind, seed=3, dtype=self.dtype)
            try:
                output, weights = self.call(probe)
            except (Stopped, Malformed) as failed:
                if kind == "self":
                    raise
                self.unequal_failed = failed
                continue
            seen.append(search.Observation(self.doubled(probe), output.double(), weights))
        return seen

    def compare(self) -> None:
        """Search among the mistakes that a function can hold."""
        observations = self.observe()
        self.readings = [None]
        without = [] if symptoms.batch_mixes(self) else ["batch-mixed"]
        options = search.options(STAGES, tuple(without))
        options["inputs"] = ["kv-swapped", "v-from-key", "k-from-value"]
        finder = search.Search(
            observations,
            [None],
            options,
            [Recipe(), Recipe(rule="causal")],
            tolerance=self.tolerance,
            budget=9_000,
        )
        self.matches = finder.run()
        if self.matches:
            self.match = self.matches[0]
            self.report_match(observations)

    def gradients(self) -> None:
        """The three inputs get the gradients that the same computation gives."""
        plain = self.lab.probe("qkv", 3, self.dtype, **self.safe_lengths())
        inputs = plain.after(training.leaf)
        name = "the inputs get their gradients"
        try:
            with torch.enable_grad():
                output, _ = self.adapter(self.module)(self.masked(inputs))
                self.guard.call(output.sum().backward)
        except Stopped as stopped:
            self.line(name, False, "", "not-differentiable")
            self.add(training.broken_graph(stopped))
            return
        got = [x.grad for x in (inputs.query, inputs.key, inputs.value)]
        if self.match is None:
            self.line(name, all(g is not None for g in got))
            return
        double = self.doubled(plain).after(training.leaf)
        with torch.enable_grad():
            expected, _ = search.Simulator(double, None)(self.match.recipe)
            expected.sum().backward()
        wrong = [
            part
            for part, g, x in zip(
                ("query", "key", "value"),
                got,
                (double.query, double.key, double.value),
                strict=True,
            )
            if x.grad is not None
            and (g is None or float((g - x.grad).abs().max()) > 1e3 * self.tolerance)
        ]
        self.line(name, not wrong, ", ".join(wrong))
        if wrong:
            text = f"forward agrees, the gradient does not at: {', '.join(wrong)}"
            self.add(finding("not-differentiable", text))

    def make_with_dropout(self, rate: float):
        """The function with its dropout argument set."""
        if isinstance(self.subject, nn.Module):
            return super().make_with_dropout(rate)
        if "dropout" not in self.arguments.names:
            return None
        name = self.arguments.names["dropout"]
        for given in (rate, nn.Dropout(rate)):
            dropping = Dropping(self.subject, name, given)
            dropping.train()
            try:
                self.call(self.lab.probe("self", dtype=self.dtype), dropping)
            except Stopped:
                continue
            dropping.active = False
            return dropping
        return None

    def steps(self):
        """What is examined after the comparison."""
        lines = [s for s in symptoms.STEPS if s not in FOR_MODULES]
        later = training.weights, training.dropout, training.formats
        return *lines, *masking.STEPS, FunctionExamination.gradients, *later


class Dropping:
    """A function with dropout; in eval mode without."""

    def __init__(self, function, name: str, rate):
        self.function, self.name, self.rate = function, name, rate
        self.active = False
        self.__signature__ = binding.signature(function)

    def train(self) -> None:
        """Drop from now on."""
        self.active = True

    def __call__(self, *args, **kwargs):
        given = {self.name: self.rate} if self.active else {}
        return self.function(*args, **kwargs, **given)
