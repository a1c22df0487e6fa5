"""What a learner's module does with masks, and what each mistake would do."""

from dataclasses import replace

import torch
from torch import Tensor

from mha.check import search, showing, symptoms, training
from mha.check.binding import ATTENTION_FORMS, PADDING_FORMS, Malformed, MaskForm
from mha.check.catalogue import finding
from mha.check.guard import Stopped
from mha.check.lab import random_mask
from mha.check.simulate import Probe

UNDERFLOW = {
    "title": "A row whose allowed scores are all low becomes NaN",
    "hint": "Close the blocked scores first. Which number, subtracted from the row that is left, "
    "makes its largest 0?",
}
NAN_EVIDENCE = "with a mask in which every query sees a key, {} of {} numbers are NaN"


def by_argument(exam) -> None:
    """Masks of pairs."""
    if "mask" in exam.arguments.names:
        examine(exam, "mask", ATTENTION_FORMS)


def padding(exam) -> None:
    """Masks of keys, or lengths."""
    names = exam.arguments.names
    if "key_mask" in names or "lengths" in names:
        forms = ("lengths",) if "lengths" in names and "key_mask" not in names else PADDING_FORMS
        examine(exam, "key_mask", forms)


def examine(exam, meaning: str, shapes: tuple[str, ...]) -> None:
    """Find the form in which the module takes this mask, and name what it does with it."""
    trials, failure = [], None
    for shape in shapes:
        for dtype in ("bool", "float", "int"):
            form = MaskForm(shape, dtype)
            try:
                trials.append((form, *observe(exam, form, meaning)))
                break
            except Stopped as stopped:
                failure = failure or stopped
                if stopped.kind != "exception":
                    raise
            except Malformed as malformed:
                failure = failure or malformed
    if not trials:
        return report_refusal(exam, meaning, failure)
    if exam.match is None:
        return by_effect(exam, meaning, trials[0])
    best = None
    for fitting in (False, True):
        for trial in trials[:2] if fitting else trials:
            for polarity in polarities(exam, meaning):
                matches = explain(exam, as_meant(trial[1], polarity), trial[2], fitting=fitting)
                if not matches:
                    continue
                count = len(new_slugs(exam, matches[0]))
                if best is None or count < best[0]:
                    best = count, trial, polarity, matches
            if best is not None and (best[0] == 0 or fitting):
                break
        if best is not None:
            break
    if best is None:
        return by_effect(exam, meaning, trials[0])
    _, (form, probe, output), polarity, matches = best
    form = MaskForm(form.shape, form.dtype, polarity)
    settle(exam, meaning, form, as_meant(probe, polarity), output, matches)


def polarities(exam, meaning: str) -> tuple[str, ...]:
    """What True may mean, the likelier first."""
    said, _ = expected(exam, meaning)
    return ("block", "attend") if said == "block" else ("attend", "block")


def expected(exam, meaning: str) -> tuple[str | None, bool]:
    """What True should mean, and whether the other meaning is a mistake."""
    declared = exam.declared.get("mask")
    name = exam.arguments.spelled(meaning)
    by_name = polarity_by_name(exam, meaning, name)
    declared = None if declared == "additive" else declared
    if declared or by_name:
        return declared or by_name, True
    said = None if exam.says == "additive" else exam.says
    return said, meaning == "mask" and said != "block"


def as_meant(probe: Probe, polarity: str) -> Probe:
    """The probe whose mask is True where the learner's mask, read so, lets a key be seen."""
    if polarity == "attend":
        return probe
    key_mask = None if probe.key_mask is None else ~probe.key_mask
    return replace(probe, mask=~probe.mask, key_mask=key_mask)


def observe(exam, form: MaskForm, meaning: str, **changed):
    """A probe with a random mask, and what the module returns for it."""
    n = dict(exam.lab.sizes)
    misread = exam.match is not None and exam.match.recipe.inputs != "right"
    if exam.kind == "self" or exam.unequal_failed or meaning == "key_mask" or misread:
        n["S"] = n["T"]
    mask = random_mask(n, form.uniform, **changed)
    plain = exam.lab.probe(exam.kind, 5, exam.dtype, **{"S": n["S"]})
    key_mask = None
    if form.uniform in ("queries", "prefix") or meaning == "key_mask":
        mask = mask[:, :, :1].expand_as(mask) if meaning == "key_mask" else mask
        key_mask = mask[:, 0, 0]
    probe = replace(plain, mask=mask, key_mask=key_mask)
    output = hand_over(exam, form, meaning, probe)
    if output.shape != exam.usual_shape(plain):
        raise Malformed("wrong-shape", f"with a mask the output has shape {tuple(output.shape)}")
    return probe.after(Tensor.double), output.double()


def hand_over(exam, form: MaskForm, meaning: str, probe: Probe) -> Tensor:
    """The output when the mask of the probe goes to one argument, in one form."""
    old = exam.mask_form, exam.key_form
    try:
        if meaning == "mask":
            exam.mask_form, exam.key_form = form, None
            probe = replace(probe, key_mask=None)
        else:
            exam.key_form = form
        return exam.call(probe)[0]
    finally:
        exam.mask_form, exam.key_form = old


def explain(
    exam, probe: Probe, output, stages=("mask",), base=None, fitting=True
) -> list[search.Match]:
    """The fewest mistakes of masks that give this output, with the maps and mistakes known."""
    base = exam.match.recipe if base is None else base
    seen = [search.Observation(probe, output)]
    options = search.options(stages)
    if probe.key_mask is None or probe.sizes[0] != probe.sizes[1]:
        options["mask"] = [o for o in options.get("mask", []) if o != "query-axis"]
    if "mask" in options:
        options["mask"] = [
            o for o in options["mask"] if not o.startswith("filled") and o != "inverted"
        ]
        if probe.mask.shape[0] < 2:
            options["mask"] = [o for o in options["mask"] if o not in ("tiled", "interleaved")]
    if "dead" not in options:
        options["dead"] = ["nan", "uniform", "unmasked"]
    matches = []
    for variant in exam.variants(base):
        finder = search.Search(
            seen, [exam.match.maps], options, [variant], tolerance=10 * exam.tolerance, budget=1_000
        )
        found = finder.run(1, scales=False)
        if any(new_slugs(exam, match) == ("mask-multiplied",) for match in found):
            found = sorted([*found, *finder.fit_fill(search.NEAR_ZERO)], key=lambda m: m.error)
            found = [m for m in found if m.error <= 100 * max(found[0].error, 1e-15)]
        if not found and fitting:
            found = finder.fit_fill() or finder.run(2, scales=False)
        matches += [m for m in found if m.recipe.scale == base.scale]
    return sorted(matches, key=lambda m: (len(new_slugs(exam, m)), m.recipe.mask != "right"))


def new_slugs(exam, match: search.Match) -> tuple[str, ...]:
    """What the mask adds to the mistakes found without it."""
    rows = match.recipe.mask == "query-axis" or match.recipe.softmax != "right"
    return tuple(
        slug
        for slug in match.slugs
        if slug not in exam.match.slugs and not (rows and slug.startswith("dead-row"))
    )


def settle(exam, meaning: str, form: MaskForm, probe: Probe, output, matches) -> None:
    """Name what is wrong with the mask, if anything is."""
    name = exam.arguments.spelled(meaning)
    match = matches[0]
    found = new_slugs(exam, match)
    said, strict = expected(exam, meaning)
    adds = exam.says == "additive" or "bias" in name
    if exam.declared.get("mask") == "additive" or "mask-added-bool" in found and adds:
        return additive(exam, meaning, form)
    if strict and form.polarity != (said or "attend") and "mask-added-bool" not in found:
        found = ("mask-inverted", *(slug for slug in found if slug != "mask-inverted"))
    setattr(exam, "mask_form" if meaning == "mask" else "key_form", form)
    exam.reading.append(f"{name}: {form.says()}")
    for slug in found:
        severity = "note" if slug.startswith("dead-row") else "mistake"
        text = showing.mask_evidence(exam, slug, match, probe, output, form)
        exam.add(finding(slug, text, severity))
    exam.line(f"{name}: what it blocks is not seen, what it allows is", not found, "", *found)
    base = match.recipe | {"mask": "right", "fill": None, "dead": exam.match.recipe.dead}
    exam.match = next((m for m in exam.matches if m.recipe == base), exam.match)
    over_keys = match.recipe.softmax == "right"
    if not found and form.shape != "lengths" and over_keys:
        fill(exam, meaning, form)
    if not set(found) - {"mask-inverted"} and over_keys:
        dead_rows(exam, meaning, form)


def polarity_by_name(exam, meaning: str, name: str) -> str | None:
    """What a name says: torch's key_padding_mask blocks, and attn_mask does beside it."""
    plain = name.lower().replace("_", "")
    if any(word in plain for word in ("block", "ignore", "hidden", "forbid")):
        return "block"
    if any(word in plain for word in ("visible", "allowed", "valid", "keep")):
        return "attend"
    names = {n.lower() for n in exam.arguments.names.values()}
    if plain.endswith("keypaddingmask") or any(n.endswith("key_padding_mask") for n in names):
        return "block"
    return None


def additive(exam, meaning: str, form: MaskForm) -> None:
    """A mask of 0 and -inf that is added to the scores."""
    form = MaskForm(form.shape, "additive")
    probe, output = observe(exam, form, meaning)
    matches = explain(exam, probe, output)
    good = bool(matches) and not new_slugs(exam, matches[0])
    name = exam.arguments.spelled(meaning)
    if good:
        setattr(exam, "mask_form" if meaning == "mask" else "key_form", form)
        exam.reading.append(f"{name}: {form.says()}")
        dead_rows(exam, meaning, form)
    elif matches:
        for slug in new_slugs(exam, matches[0]):
            text = showing.mask_evidence(exam, slug, matches[0], probe, output, form)
            exam.add(finding(slug, text))
    exam.line(f"{name}: what it blocks is not seen, what it allows is", good)


def by_effect(exam, meaning: str, trial) -> None:
    """Without a match of numbers: does the mask do anything, and does what it blocks still act?"""
    form, probe, output = trial
    name = exam.arguments.spelled(meaning)
    setattr(exam, "mask_form" if meaning == "mask" else "key_form", form)
    if torch.isnan(output).any():
        text = NAN_EVIDENCE.format(int(torch.isnan(output).sum()), output.numel())
        exam.add(finding("mask-nan", text))
        exam.line(f"{name}: the output is finite", False, "", "mask-nan")
        return
    plain = replace(probe, mask=None, key_mask=None).after(lambda x: x.to(exam.dtype))
    without = exam.call(plain)[0].double()
    if float((without - output).abs().max()) < 1e-9:
        exam.add(finding("mask-ignored", "with the mask and without it, all outputs are equal"))
        exam.line(f"{name}: it has an effect", False, "", "mask-ignored")
        return
    exam.unexplained_mask = name
    exam.line(f"{name}: what it blocks is not seen, what it allows is", None, "not explained")


def report_refusal(exam, meaning: str, failure) -> None:
    """No form of mask was taken."""
    name = exam.arguments.spelled(meaning)
    exam.line(f"{name}: it is taken", False)
    if isinstance(failure, Stopped):
        exam.add(failure.finding())
    else:
        exam.add(finding(failure.slug, failure.what))


def fill(exam, meaning: str, form: MaskForm) -> None:
    """Whether blocked scores are low enough when all allowed ones are very low."""
    for size in (20.0, 60.0, 200.0, 2e3, 2e4):
        try:
            probe, output = low_scores(exam, meaning, form, size)
        except (Stopped, Malformed):
            return
        expected, _ = search.Simulator(probe, exam.match.maps)(exam.match.recipe)
        if search.distance(output, expected) > 1e-2:
            severity = "note" if size > 5e3 else "mistake"
            if output.isnan().any():
                text = f"with allowed scores near -{size:g}, outputs are NaN"
                exam.add(finding("softmax-overflow", text, severity, **UNDERFLOW))
                exam.line("blocked keys stay blocked when scores are large", False, f"at {size:g}")
                return
            text = f"with allowed scores near -{size:g}, a blocked key still gets weight"
            exam.add(finding("mask-fill-small", text, severity))
            exam.line("blocked keys stay blocked when scores are large", False, f"at {size:g}")
            return
    exam.line("blocked keys stay blocked when scores are large", True, "up to 20,000")


def low_scores(exam, meaning: str, form: MaskForm, size: float):
    """Inputs so large that the one allowed key of each query has a score near -size, or lower."""
    probe, _ = observe(exam, form, meaning)
    simulator = search.Simulator(probe, exam.match.maps)
    base = exam.match.recipe | {"mask": "ignored", "rule": "right"}
    q, k, _ = simulator.heads(base)
    times = 3 * size / float((q @ k.transpose(-2, -1)).mean(1).abs().max())
    if exam.kind == "self":  # the keys grow with the queries
        probe = probe.after(lambda x: x * times**0.5)
    else:
        probe = replace(probe, query=probe.query * times)
    q, k, _ = search.Simulator(probe, exam.match.maps).heads(base)
    scores = (q @ k.transpose(-2, -1)).mean(1)  # (B, T, S)
    if exam.always_causal():
        scores = scores.masked_fill(torch.ones(probe.sizes, dtype=torch.bool).triu(1), torch.inf)
    if form.uniform:  # one key for all queries, and for all examples if it must be
        scores = scores.mean(1 if form.uniform == "queries" else (0, 1), keepdim=True)
        scores = scores.expand(probe.query.shape[0], *probe.sizes)
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    mask.scatter_(-1, scores.argmin(-1, keepdim=True), True)
    key_mask = None if probe.key_mask is None else mask[:, 0]
    probe = replace(probe, mask=mask[:, None], key_mask=key_mask)
    output = hand_over(exam, form, meaning, probe.after(lambda x: x.to(exam.dtype)))
    return probe, output.double()


def dead_rows(exam, meaning: str, form: MaskForm) -> None:
    """A query that may see nothing: 0 here, a note otherwise; NaN elsewhere is a mistake."""
    if form.shape == "lengths":
        return
    probe, output = observe(exam, form, meaning, dead=True)
    matches = explain(exam, probe, output, stages=("dead",))
    name = symptoms.ZEROS
    if not matches:
        exam.line(name, None, "its row is none of zeros, NaN, the mean")
        return
    dead = matches[0].recipe.dead
    if dead == "zero":
        dead_gradient(exam, meaning, probe)
    slug = {"nan": "dead-row-nan", "uniform": "dead-row-uniform", "unmasked": "dead-row-uniform"}
    if dead == "zero":
        exam.line(name, True)
        return
    what = {"nan": "NaN", "uniform": "the mean of all values", "unmasked": "what no mask gives"}
    exam.line(name, False, f"it gives {what[dead]}", slug[dead])
    exam.add(finding(slug[dead], f"a query with every key blocked gives {what[dead]}", "note"))


def dead_gradient(exam, meaning: str, probe: Probe) -> None:
    """NaN that is cleaned after the softmax comes back in the gradient."""
    inputs = probe.after(lambda x: training.leaf(x.to(exam.dtype)))
    inputs = replace(inputs, key_mask=None if meaning == "mask" else probe.key_mask)
    with torch.enable_grad():
        output, _ = exam.adapter(exam.module)(inputs)
        exam.guard.call(output.sum().backward)
    grads = [inputs.query.grad, inputs.key.grad, inputs.value.grad]
    grads = [grad for grad in grads if grad is not None]
    if hasattr(exam.module, "parameters"):
        grads += [p.grad for p in exam.module.parameters() if p.grad is not None]
        exam.module.zero_grad(set_to_none=True)
    broken = sum(int((~torch.isfinite(g)).sum()) for g in grads)
    name = "a query that may see nothing gives finite gradients"
    exam.line(name, broken == 0, "", *(("mask-nan",) if broken else ()))
    if broken:
        text = f"one query with every key blocked: the output is finite, {broken} gradients are NaN"
        exam.add(finding("mask-nan", text))


def causal(exam) -> None:
    """The rule that is_causal stands for."""
    if "causal" not in exam.arguments.names:
        return
    T = exam.lab.sizes["T"]
    plain = exam.lab.probe(exam.kind, 6, exam.dtype, S=T)
    triangle = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
    try:
        output = exam.call(replace(plain, causal=True))[0].double()
    except Stopped:
        if exam.mask_form is None:
            raise
        both = triangle.expand(len(plain.query), 1, T, T)
        exam.call(replace(plain, mask=both, causal=True))
        return  # a hint beside a mask, as in torch.nn
    if exam.match is None:
        return
    double = plain.after(Tensor.double)
    name = exam.arguments.names["causal"]
    base = exam.match.recipe
    seen = search.Observation(double, output)
    options = search.options(("dead",))
    bases = [base | {"rule": r} for r in search.OPTIONS["rule"]]
    finder = search.Search(
        [seen], [exam.match.maps], options, bases, tolerance=10 * exam.tolerance, budget=1_000
    )
    found = [m for m in finder.run(1, scales=False) if m.recipe.scale == base.scale]
    if not found:
        found = explain(exam, replace(double, mask=triangle), output)
    if not found:
        exam.unexplained_mask = name
        exam.line(f"{name}: query i sees the keys up to i", None, "not explained")
        return
    new = new_slugs(exam, found[0])
    exam.line(f"{name}: query i sees the keys up to i", not new, "", *new)
    for slug in new:
        severity = "note" if slug.startswith("dead-row") else "mistake"
        text = showing.rule_evidence(found[0].recipe)
        exam.add(finding(slug, text, severity))


def alignment(exam) -> None:
    """Which corner a causal mask starts from when there are more keys than queries."""
    if exam.match is None or exam.kind == "self" or exam.unequal_failed:
        return
    if {"cache", "offset"} & exam.arguments.names.keys():
        return
    by_argument = "causal" in exam.arguments.names
    if not by_argument and exam.match.recipe.rule != "causal":
        return
    plain = exam.lab.probe(exam.kind, 7, exam.dtype)
    try:
        output = exam.call(replace(plain, causal=by_argument))[0]
    except (Stopped, Malformed):
        return
    double = plain.after(Tensor.double)
    expected, _ = search.Simulator(double, exam.match.maps)(exam.match.recipe | {"rule": "causal"})
    if search.distance(output.double(), expected) < 10 * exam.tolerance:
        T, S = double.sizes
        text = f"T={T}, S={S}: query 0 sees key 0 alone, and the last sees {T} of {S} keys"
        exam.add(finding("causal-top-left", text, "note"))


STEPS = by_argument, padding, causal, alignment
