"""The examination of a learner's multi-head attention, step by step.

Each step calls the learner's module, compares, and leaves findings and lines for the report. A
step that the module cannot take becomes a finding or a line that says so.
"""

import os
from dataclasses import replace

import torch
from torch import Tensor, nn

from mha.check import asked, binding, caching, maps, masking, search, showing, symptoms, training
from mha.check.binding import Adapter, Malformed
from mha.check.catalogue import finding
from mha.check.guard import Stopped
from mha.check.lab import Lab, Question, random_mask
from mha.check.report import Check, Finding
from mha.check.simulate import Maps, Probe, Recipe, interleaved

BASE = ("inputs", "maps", "use", "bias", "split", "heads", "scores", "scale", "rule", "softmax")
BASE += ("merge", "out")
ENDINGS = ("exception", "timeout", "memory", "exit", "question", "wrong-shape", "not-finite")
ENDINGS += ("returns-nothing", "batch-mixed", "ambiguous", "dropout-in-eval", "dtype-leak")
LAYOUT = ("split-dim-major", "merge-dim-major")


def mistakes_of(match: search.Match) -> tuple[str, ...]:
    """What tells two matches apart: their mistakes, without what a rule does to its dead rows."""
    return tuple(slug for slug in match.slugs if not slug.startswith("dead-row"))


class Examination:
    """One module under examination.

    Args: subject: a class or an instance. guard: an entered ``Guard``. declared: what the learner
    says: "mask" ("attend", "block" or "additive"), "weights" (role -> name).
    """

    def __init__(self, subject, guard, declared: dict):
        self.subject, self.guard, self.declared = subject, guard, declared
        self.findings: list[Finding] = []
        self.checks: list[Check] = []
        self.reading: list[str] = []
        self.match: search.Match | None = None
        self.matches: list[search.Match] = []
        self.tolerance = 1e-6
        self.always_mask = self.built_in = self.unsteady = False
        self.unexplained_mask = self.unequal_failed = self.float64_failed = None
        self.readings: list[Maps] = []
        self.unused: list[str] = []

    takes = "(B, T, E)"

    # --- the steps

    def run(self) -> None:
        """All steps, as far as they can be taken."""
        try:
            self.prepare()
            self.first_call()
            self.compare()
        except Question as question:
            self.add(finding("question", str(question)))
            return
        except Stopped as stopped:
            self.add(stopped.finding())
            return
        except Malformed as malformed:
            self.add(finding(malformed.slug, f"Called with {self.takes}, {malformed.what}"))
            return
        except Exception as error:
            self.own_fault("reading it", error)
            text = f"the checker could not read it ({type(error).__name__}): pass an instance"
            self.add(finding("question", text))
            return
        for step in self.steps():
            try:
                step(self)
            except Stopped as stopped:
                self.add(stopped.finding())
                if stopped.kind in ("timeout", "memory"):
                    break
            except Malformed as malformed:
                self.add(finding(malformed.slug, malformed.what))
            except Exception as error:
                self.own_fault(step.__name__.replace("_", " "), error)
        symptoms.inputs_kept(self)
        asked.lacking(self, self.declared.get("asked", ()))
        self.explain_rest()

    def own_fault(self, doing: str, error: Exception) -> None:
        """The checker itself failed: said, and never blamed on the learner."""
        if os.environ.get("MHA_CHECK_RAISE"):  # set in the checker's own tests
            raise error
        self.line(f"the checker failed at {doing}", None, f"{type(error).__name__}: {error}")

    def steps(self):
        """What is examined after the comparison."""
        return *symptoms.STEPS, *masking.STEPS, caching.cached, *training.STEPS

    def add(self, found: Finding) -> None:
        """Keep a finding, once for each slug."""
        if all(found.slug != other.slug for other in self.findings):
            self.findings.append(found)

    def line(self, name: str, passed: bool | None, detail: str = "", *blamed: str) -> None:
        """Keep a line of the table."""
        self.checks.append(Check(name, passed, detail, blamed))

    def adapter(self, module: nn.Module) -> Adapter:
        """The module behind the way of calling it that was found."""
        return Adapter(
            module,
            self.arguments,
            self.guard,
            self.batch_first,
            self.axes,
            self.mask_form,
            self.key_form,
            self.lab.sizes["H"],
        )

    def prepare(self) -> None:
        """Make a module, and read its signature."""
        self.dtype = torch.float64
        self.lab = Lab(self.subject, self.guard)
        self.module = self.make()
        self.lab.believe(self.module)
        if not isinstance(self.module, nn.Module) and not callable(self.module):
            raise Question("its objects cannot be called: does the class inherit from nn.Module?")
        self.loose = maps.loose_tensors(self.module)
        forward = self.module.forward if isinstance(self.module, nn.Module) else self.module
        if getattr(forward, "__name__", "") == "_forward_unimplemented":
            raise Malformed("exception", "the class has no method named forward")
        self.arguments = binding.read_arguments(forward)
        if self.arguments.unknown:
            raise Question(
                f"forward asks for {', '.join(self.arguments.unknown)}: give such arguments a "
                "default, or a usual name such as mask, key_padding_mask, is_causal"
            )
        self.batch_first, self.axes = True, 3
        self.mask_form = self.key_form = None
        self.says = binding.documented_polarity(self.subject)
        self.kind = self.arguments.kind

    def make(self, **changed) -> nn.Module:
        """A module of the learner's with known weights."""
        try:
            return self.lab.make(self.dtype, **changed)
        except Stopped as stopped:
            message = str(stopped.error)
            unasked = (
                isinstance(stopped.error, AttributeError) and "the settings have no" in message
            )
            if (
                unasked
                or isinstance(stopped.error, TypeError)
                and "constructor asks for" in message
            ):
                raise Question(f"{message}: pass an instance, or give them defaults") from stopped
            raise

    def first_call(self) -> None:
        """Find a way of calling it, in float64 if it can, and which axis is the batch."""
        probe = self.lab.probe("self")
        module = self.module
        if isinstance(module, nn.Module) and getattr(module, "batch_first", True) is False:
            self.batch_first = False
        try:
            self.try_forms(probe)
        except Stopped as stopped:
            if stopped.kind != "exception":
                raise
            self.dtype, self.tolerance = torch.float32, 1e-4
            self.module = self.make()
            self.try_forms(self.lab.probe("self", dtype=torch.float32))
            self.float64_failed = stopped
        if not hasattr(module, "batch_first"):
            self.find_batch_axis()

    def try_forms(self, probe: Probe) -> None:
        """With masks of True where None is not taken; with one example at a time if need be."""
        try:
            self.adapter(self.module)(probe)
            return
        except Stopped as stopped:
            first = stopped
        if "mask" in self.arguments.required:
            self.always_mask = True
            for shape in ("B1TS", "BTS", "TS"):
                self.mask_form = binding.MaskForm(shape)
                try:
                    self.adapter(self.module)(self.masked(probe))
                    return
                except Stopped:
                    continue
        self.mask_form, self.always_mask = None, False
        raise first

    def find_batch_axis(self) -> None:
        """Sequence first, if a token changes what stands in its own column alone."""
        probe = self.lab.probe("self", dtype=self.dtype)
        output, _ = self.call(probe)
        if output.shape != probe.query.shape:
            return
        x = probe.query.clone()
        x[0, 0] += 1.0
        changed = (self.call(Probe(x, x, x))[0] - output).abs().amax(-1) > 1e-9  # (B, T)
        if changed[1:, 0].any() and not changed[:, 1:].any():
            self.batch_first = False

    def call(self, probe: Probe, module=None):
        """What the module returns for a probe, under no_grad."""
        probe = probe if probe.mask is not None else self.masked(probe)
        with torch.no_grad():
            return self.adapter(self.module if module is None else module)(probe)

    # --- what the steps ask for

    def named(self, slug: str) -> bool:
        """Whether there is such a finding."""
        return any(found.slug == slug for found in self.findings)

    def mistakes(self) -> list[Finding]:
        """Findings that are not notes."""
        return [found for found in self.findings if found.severity == "mistake"]

    def safe_lengths(self) -> dict:
        """T = S where other lengths do not work."""
        return {"S": self.lab.sizes["T"]} if self.unequal_failed else {}

    def usual_shape(self, probe: Probe) -> torch.Size:
        """Of the output, as it is without a mask."""
        return self.call(probe)[0].shape

    def right_shape(self, probe: Probe) -> torch.Size:
        """Of the output of right code."""
        return probe.query.shape

    def doubled(self, probe: Probe) -> Probe:
        """In float64, with the triangle where the match was found with one."""
        return self.triangular(probe.after(Tensor.double))

    def triangular(self, probe: Probe) -> Probe:
        """With a causal mask, if the match is of a module that has its own."""
        if not self.built_in:
            return probe
        return replace(probe, mask=torch.ones(probe.sizes, dtype=torch.bool).tril()[None, None])

    def masked(self, probe: Probe) -> Probe:
        """With a mask of True, where one must be given."""
        if not self.always_mask:
            return probe
        full = torch.ones(probe.query.shape[0], 1, *probe.sizes, dtype=torch.bool)
        return replace(probe, mask=full)

    def right_recipe(self) -> Recipe:
        """What the module should compute: causal if it is, or says it is."""
        if self.match is None:
            return Recipe(rule="causal" if self.claims_causal() else "right")
        causal = self.match.recipe.rule != "right" or self.built_in
        same = (
            {"split": "dim-major", "merge": "dim-major"} if interleaved(self.match.recipe) else {}
        )
        return Recipe(rule="causal" if causal else "right", **same)

    def always_causal(self) -> bool:
        """Whether it is causal without being asked."""
        return self.match is not None and (self.match.recipe.rule == "causal" or self.built_in)

    def variants(self, base: Recipe) -> list[Recipe]:
        """Recipes that gave the same numbers without a mask; with one they may differ."""
        if base != self.match.recipe:
            return [base]
        same = [m.recipe for m in self.matches if m.maps is self.match.maps]
        return [base, *(recipe for recipe in same if recipe != base)][:4]

    def parameters_of(self, role: str) -> list[str]:
        """Names of the parameters that were read as one role."""
        names = self.match.maps.names.get(role, []) if self.match else []
        names = [names] if isinstance(names, str) else names
        everything = dict(self.module.named_parameters())
        return [n for n in everything for name in names if n == name or n.startswith(f"{name}.")]

    def explained_silence(self) -> set[str]:
        """Parameters that a mistake already named leaves without effect."""
        if self.match is None or self.match.maps is None:
            return set()
        recipe, everything = self.match.recipe, dict(self.module.named_parameters())
        silent = set()
        for role in set("qkv") - set("qkv" if recipe.maps == "right" else recipe.maps):
            silent |= set(self.parameters_of(role))
        if recipe.out == "missing":
            silent |= set(self.parameters_of("o"))
        if recipe.bias != "right":
            silent |= {name for name, p in everything.items() if p.ndim == 1}
        return silent | (set(everything) if recipe.heads == "first" else set())

    def in_dtype(self, dtype) -> nn.Module:
        """A module with the same weights in another format."""
        module = self.lab.make(torch.float32)
        return module.to(dtype) if isinstance(module, nn.Module) else module

    def make_with_dropout(self, rate: float):
        """A module in eval mode that drops weights in training; None if it cannot."""
        if self.lab.is_class:
            if "dropout" not in binding.read_constructor(self.subject) and (
                "config" not in binding.read_constructor(self.subject)
            ):
                return None
            return self.make(dropout=rate)
        module = self.make()
        names = binding.SETTINGS["dropout"].split()
        found = [
            (part, name)
            for part in module.modules()
            for name, value in vars(part).items()
            if binding.plain(name) in names and isinstance(value, float)
        ]
        for part, name in found:
            setattr(part, name, rate)
        return module if found else None

    def masked_probe(self) -> Probe:
        """A probe that uses what the module can do: a mask, or its causal rule."""
        n = dict(self.lab.sizes)
        n["S"] = n["T"] if self.kind == "self" or self.unequal_failed else n["S"]
        plain = self.lab.probe(self.kind, 5, self.dtype, S=n["S"])
        parts = plain.query, plain.key, plain.value
        if self.mask_form is not None:
            return Probe(*parts, random_mask(n, self.mask_form.uniform))
        if self.key_form is not None:
            mask = random_mask(n, self.key_form.uniform)
            mask = mask[:, :, :1].expand_as(mask)
            return Probe(*parts, mask, mask[:, 0, 0])
        return Probe(*parts, causal="causal" in self.arguments.names)

    # --- the comparison with what each mistake gives

    def compare(self) -> None:
        """Search for the fewest mistakes that explain the outputs."""
        observations = self.observe()
        self.unused = symptoms.unused_parameters(self)
        self.readings = self.read_maps(self.module, self.lab.sizes)
        if not self.readings:
            return
        if not all(torch.isfinite(one.output).all() for one in observations):
            return
        self.matches = self.explain(observations)
        if self.matches:
            self.match = self.matches[0]
            self.report_match(observations)

    def observe(self) -> list[search.Observation]:
        """Outputs for inputs of unequal length, as far as the signature allows, and equal ones."""
        seen = []
        if self.kind != "self":
            probe = self.lab.probe(self.kind, seed=3, dtype=self.dtype)
            try:
                output, weights = self.call(probe)
                seen.append(search.Observation(probe, output.double(), weights))
            except (Stopped, Malformed) as failed:
                self.unequal_failed = failed
                probe = self.lab.probe(self.kind, seed=3, dtype=self.dtype, S=self.lab.sizes["T"])
                output, weights = self.call(probe)
                seen.append(search.Observation(probe, output.double(), weights))
        probe = self.lab.probe("self", dtype=self.dtype)
        output, weights = self.call(probe)
        seen.append(search.Observation(probe, output.double(), weights))
        for one in seen:
            one.probe = self.doubled(one.probe)
        return seen

    def read_maps(self, module, sizes: dict) -> list[Maps]:
        """Ways to read a module's parameters as the four maps, in an order that is always the same."""
        if not isinstance(module, nn.Module):
            return []
        declared = self.declared.get("weights")
        if declared:
            found = maps.declared(module, declared, sizes["E"], sizes["H"])
        else:
            found = maps.candidates(module, sizes["E"], sizes["H"], sizes["D"], self.loose)
        return [maps.to_double(one) for one in found]

    def read_again(self, module, sizes: dict) -> Maps | None:
        """The reading that explains the output, of another module or with its graph."""
        found = self.read_maps(module, sizes)
        place = self.readings.index(self.match.maps) if self.match else 0
        return replace(found[place], around=self.around) if place < len(found) else None

    @property
    def around(self):
        """The norms and the residual beside attention, if there are any."""
        return self.match.maps.around if self.match and self.match.maps else None

    def explain(self, observations) -> list[search.Match]:
        """The search, without mistakes that cannot be here."""
        without = list(self.impossible())
        stages = list(BASE)
        if self.kind == "self":
            stages.remove("inputs")
            without.append("qk-swapped")  # the same as transposed scores
        options = search.options(tuple(stages), tuple(without))
        fixed = self.readings[0].fixed if self.readings else frozenset()
        if not fixed >= {"q", "k", "v"}:
            options.pop("maps", None)
        bases = [Recipe(rule=rule) for rule in ("right", "causal")]
        bases += [base | {"split": "dim-major", "merge": "dim-major"} for base in bases]

        def find(readings, depth: int, budget: int) -> list[search.Match]:
            finder = search.Search(
                observations,
                readings,
                options,
                bases,
                tolerance=self.tolerance,
                budget=budget,
                required=self.required(options),
            )
            return finder.run(depth, scales=depth > 1)

        found = find(self.readings, 1, 5_000) or self.explain_around(find)
        if not found and self.claims_causal():
            found = self.explain_built_in(observations, options, without)
        return found or find(self.readings, 3, 9_000)

    def explain_around(self, find) -> list[search.Match]:
        """Right, or with one mistake, beside norms and a residual connection."""
        n, plain = self.lab.sizes, self.readings
        if not isinstance(self.module, nn.Module):
            return []
        for around in maps.surroundings(self.module, n["E"], n["D"]):
            readings = [replace(one, around=around) for one in plain[:6]]
            found = find(readings, 1, 1_500)
            if found:
                self.readings = readings
                return found
        return []

    def explain_built_in(self, observations, options, without) -> list[search.Match]:
        """For a module with a causal mask of its own, the mistakes of masks as well."""
        self.built_in = True  # so that the triangle is in all probes
        seen = [replace(one, probe=self.triangular(one.probe)) for one in observations]
        without = [*without, "mask-fill-small"] + ["mask-ignored"] * (not self.claims_causal(True))
        options = options | search.options(("mask",), tuple(without))
        bases = [Recipe(), Recipe(split="dim-major", merge="dim-major")]
        finder = search.Search(
            seen, self.readings[:4], options, bases, tolerance=self.tolerance, budget=4_000
        )
        found = finder.run(1, scales=False) or finder.fit_fill() or finder.run(2, scales=False)
        self.built_in = bool(found)
        return found

    def claims_causal(self, strictly: bool = False) -> bool:
        """Whether it is causal by its name, a triangular table that it holds, or its words."""
        return symptoms.claims_causal(self.subject, self.module, strictly)

    def impossible(self):
        """Slugs that cheap probes rule out."""
        if not symptoms.batch_mixes(self):
            yield "batch-mixed"
        roles = self.readings[0].names.keys() if self.readings else ()
        if not self.unused and {"q", "k", "v"} <= set(roles):
            yield from ("qk-shared", "kv-shared", "qv-shared", "qkv-shared")
            yield "out-proj-missing"
        if not any("b" in name.rpartition(".")[2] for name in self.unused):
            yield "bias-missing"
        if symptoms.keeps_order(self):
            yield from ("split-no-transpose", "merge-no-transpose")
        if symptoms.shares_out(self):
            yield from ("softmax-queries", "softmax-heads", "softmax-joint", "softmax-missing")

    def required(self, options: dict) -> list[set]:
        """Sets of options, one of which must be there to explain a parameter without effect."""
        names = self.readings[0].names if self.readings else {}
        groups = []
        for role in "qkv":
            named = [n for n in self.unused for m in names.get(role, ()) if n == f"{m}.weight"]
            if named and len(names[role]) == 1:
                groups.append({("maps", o) for o in options.get("maps", ()) if role not in o})
        if any(n == f"{m}.weight" for n in self.unused for m in names.get("o", ())):
            groups.append({("out", "missing")})
        return [group for group in groups if group]

    def report_match(self, observations) -> None:
        """Findings for the mistakes of the best match, or for what cannot be told apart."""
        names = {mistakes_of(match) for match in self.matches}
        if len(names) > 1:
            self.add(showing.ambiguous(self.matches))
            return
        recipe, chosen = self.match.recipe, self.match.maps
        fixed = chosen is not None and chosen.fixed >= {"q", "k", "v"}
        if interleaved(recipe):
            evidence = "Head h owns the features h, h + H, h + 2H, at the split and at the merge."
            self.add(finding("split-dim-major", evidence, "note"))
        found = [slug for slug in self.match.slugs if not (interleaved(recipe) and slug in LAYOUT)]
        for slug in found:
            is_note = slug in LAYOUT and not fixed or slug.startswith("dead-row")
            severity = "note" if is_note else "mistake"
            self.add(finding(slug, showing.evidence(self, slug, observations), severity))
        if self.forgets_its_mask():
            text = "it holds a causal mask, or says so by its name, and every query sees every key"
            self.add(finding("mask-ignored", text))
        shared = maps.shared(chosen) if chosen is not None else None
        if shared and shared[0] not in found:
            self.add(finding(*shared))
        if chosen is not None and chosen.o is None and "out-proj-missing" not in found:
            self.add(
                finding("out-proj-missing", "No matrix follows the merge: the joined heads go out.")
            )
        self.reading += showing.how_read(self)

    def forgets_its_mask(self) -> bool:
        """Whether it should be causal without being asked, and is not."""
        if self.built_in or self.match.recipe.rule != "right":
            return False
        asked = {"mask", "causal", "cache"} & self.arguments.names.keys()
        return not asked and self.claims_causal(True)

    def explain_rest(self) -> None:
        """If lines failed, or numbers differ, and nothing named explains it: say what failed."""
        ends = (*ENDINGS, "weights-not-parameters" if self.match is None else "mask-nan")
        explained = any(f.slug in ends for f in self.findings)
        if not explained and (self.match is None or self.unexplained_mask):
            self.add(showing.unknown(self))
        order = {slug: i for i, slug in enumerate(showing.order())}
        last = len(order)
        self.findings.sort(key=lambda f: (f.severity != "mistake", order.get(f.slug, last)))
