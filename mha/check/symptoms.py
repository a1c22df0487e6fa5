"""Properties that attention has whatever its weights: what breaks when it is wrong.

Each leaves a line in the report; none needs to know how the module reads its parameters.
"""

import re

import torch
from torch import Tensor, nn

from mha.check import maps, training
from mha.check.binding import Malformed, documented_source
from mha.check.catalogue import finding
from mha.check.guard import Stopped
from mha.check.simulate import Probe

SMALL = 1e-6
PARITY = "its numbers are those of multi-head attention with your weights"
ORDER = "keys have no order, and outputs follow their queries"
ZEROS = "a query that may see nothing gives zeros"
ALONE = "an example does not depend on its batch neighbors"
ONE = "each query shares out exactly 1 among the keys"
STEADY = "in eval mode, two calls give the same"
SHAPE = "the output has the right shape"
ESSENTIAL = {ALONE, ONE, STEADY, SHAPE}  # what holds beside positions, caps and windows as well


def moved(exam, before: Tensor, probe: Probe) -> Tensor:
    """By how much each output (B, T) differs after the inputs became ``probe``."""
    after = exam.call(probe)[0]
    if after.shape != before.shape:
        return torch.full(before.shape[:-1], torch.inf)
    return (after - before).abs().nan_to_num(0.0).amax(-1)


def main_probe(exam) -> Probe:
    """Unequal lengths where they work."""
    return exam.lab.probe(exam.kind, 1, exam.dtype, **exam.safe_lengths())


def shape(exam) -> None:
    probe = main_probe(exam)
    output, _ = exam.call(probe)
    wanted = exam.right_shape(probe)
    good = output.shape == wanted
    exam.line(SHAPE, good, str(tuple(output.shape)))
    if not good and exam.match is None:
        text = f"the output should be {tuple(wanted)} and is {tuple(output.shape)}"
        exam.add(finding("wrong-shape", text))
    if not torch.isfinite(output).all():
        exam.line("the output is finite", False, f"{int((~torch.isfinite(output)).sum())} are not")
        if exam.match is None:
            exam.add(finding("not-finite", "NaN or inf for inputs that are not large, unmasked."))


def unequal_lengths(exam) -> None:
    if exam.kind == "self":
        return
    failed = exam.unequal_failed
    exam.line("keys may be more than queries (T != S)", failed is None)
    explained = exam.match is not None and exam.match.slugs
    if isinstance(failed, Stopped) and not explained:
        exam.add(failed.finding())
    elif isinstance(failed, Malformed) and not explained:
        exam.add(finding(failed.slug, failed.what))


def parity(exam) -> None:
    if not exam.readings:
        exam.line(PARITY, None, "the four maps were not found")
        return
    good = exam.match is not None and len(exam.matches) == 1 and not exam.match.slugs
    detail = ""
    if good:
        detail = "to the last digits" if exam.match.error < 1e-9 else f"to {exam.match.error:.0e}"
    if exam.match is not None and not good:
        detail = "but those of a mistake: " + ", ".join(exam.match.slugs)
    exam.line(PARITY, good or bool(exam.match and not exam.mistakes()), detail)


def batch_mixes(exam) -> bool:
    """Whether an example changes when only its neighbors do."""
    probe = exam.lab.probe("self", dtype=exam.dtype)
    output, _ = exam.call(probe)
    if output.shape[0] != probe.query.shape[0]:
        return True

    def first_only(x: Tensor) -> Tensor:
        return torch.cat([x[:1].flip(-1) * 1.5, x[1:]])

    return bool((moved(exam, output, probe.after(first_only))[1:] > SMALL).any())


def unused_parameters(exam) -> list[str]:
    """Parameters of which the output is independent, but for what names say is a bias of the keys."""
    if not isinstance(exam.module, nn.Module):
        return []
    probe = exam.lab.probe("self", dtype=exam.dtype)
    before, _ = exam.call(probe)
    unused = []
    for name, parameter in exam.module.named_parameters():
        kept = parameter.detach().clone()
        ramp = torch.linspace(-1, 1, kept.numel(), dtype=kept.dtype).view(kept.shape)
        parameter.data.add_(ramp)  # by data: views of the parameter stay valid
        after, _ = exam.call(probe)
        parameter.data.copy_(kept)
        same = after.shape == before.shape and float((after - before).abs().max()) < SMALL
        if same and not (kept.ndim < 2 and maps.role_of(name)[0] == "k"):
            unused.append(name)
    return unused


def batch(exam) -> None:
    mixed = batch_mixes(exam)
    exam.line(ALONE, not mixed)
    if mixed and exam.match is None and not exam.mistakes() and not exam.unsteady:
        text = "With only example 0 changed, the outputs of examples 1 and 2 changed as well."
        exam.add(finding("batch-mixed", text))


def rows(exam) -> None:
    """If all values are one vector, any average of them is that vector: the queries cannot matter."""
    if exam.kind == "qkv" and not exam.around:
        exam.line(ONE, shares_out(exam))


def shares_out(exam) -> bool:
    """Whether outputs are alike when all values are; False where it cannot be tried."""
    if exam.kind != "qkv":
        return False
    probe = main_probe(exam)
    value = probe.value[..., :1, :].expand_as(probe.value).contiguous()
    output, _ = exam.call(Probe(probe.query, probe.key, value))
    if output.shape != exam.right_shape(probe):
        return False
    spread = float((output - output[..., :1, :]).abs().max())
    return spread < SMALL * max(1.0, float(output.abs().max()))


def order(exam) -> None:
    """Keys have no order, and the outputs follow the order of the queries."""
    causal = exam.match is not None and exam.match.recipe.rule != "right"
    if not causal and not claims_causal(exam.subject, exam.module):
        exam.line(ORDER, keeps_order(exam))


def keeps_order(exam) -> bool:
    """Whether the outputs follow a change in the order of the queries, and ignore that of keys."""
    probe = main_probe(exam)
    output, _ = exam.call(probe)
    T, S = probe.sizes
    turn = torch.arange(T).roll(2)
    keys = torch.arange(S).roll(3) if exam.kind != "self" else turn
    parts = (probe.query, turn), (probe.key, keys), (probe.value, keys)
    after = exam.call(Probe(*(x.index_select(-2, places) for x, places in parts)))[0]
    if not after.shape == output.shape == exam.right_shape(probe):
        return False
    return float((after - output.index_select(-2, turn)).abs().max()) < 1e3 * exam.tolerance


def claims_causal(subject, module, strictly: bool = False) -> bool:
    """By its name or a triangular table it holds; less strictly, also by its comments."""
    cls = subject if isinstance(subject, type) else type(subject)
    if re.search(
        r"causal" if strictly else r"causal|masked|decoder|autoregress", cls.__name__, re.I
    ):
        return True
    if isinstance(module, nn.Module):
        for part in module.modules():
            if any(triangular(x) for x in [*part.buffers(recurse=False), *vars(part).values()]):
                return True
    words = r"causal|future|autoregress"
    return not strictly and bool(re.search(words, documented_source(subject), re.I))


def triangular(table) -> bool:
    """Whether it is a tensor of two values, one on each side of the diagonal or near it."""
    if not isinstance(table, Tensor) or table.ndim < 2 or table.device.type == "meta":
        return False
    corner = table.detach().reshape(-1, *table.shape[-2:])[0]
    if len(corner.unique()) != 2 or corner.shape[0] < 3:
        return False
    return bool(corner[0, -1] != corner[-1, 0])


def past(exam) -> None:
    """For causal modules: what a query sees may not depend on what comes later."""
    if "causal" in exam.arguments.names and "mask" in exam.arguments.required:
        return
    probe = exam.lab.probe("self", dtype=exam.dtype)
    names = exam.arguments.names
    if "causal" in names:
        probe = Probe(probe.query, probe.key, probe.value, causal=True)
    elif not claims_causal(exam.subject, exam.module) or "mask" in names:
        return
    try:
        output, _ = exam.call(probe)
    except Stopped:
        return

    def last_only(x: Tensor) -> Tensor:
        return torch.cat([x[..., :-1, :], x[..., -1:, :] + 1], -2)

    leak = float(moved(exam, output, probe.after(last_only))[..., :-1].max())
    exam.line("the past does not depend on the future", leak < SMALL, f"changed by {leak:.1g}")


def head_count(exam) -> None:
    """The same weights with another number of heads must give other numbers."""
    if not exam.lab.takes_heads or not exam.lab.is_class or not isinstance(exam.module, nn.Module):
        return
    name = "the number of heads matters"
    try:
        other = exam.make(H=2, D=exam.lab.sizes["E"] // 2)
        other.load_state_dict(exam.module.state_dict())
        probe = exam.lab.probe("self", dtype=exam.dtype)
        difference = float((exam.call(probe, other)[0] - exam.call(probe)[0]).abs().max())
    except (Stopped, Malformed, RuntimeError, TypeError):
        return  # one matrix for each head: another number of heads has other weights
    said = f"2 heads and {exam.lab.sizes['H']} differ by {difference:.1g}"
    exam.line(name, difference > SMALL, said)
    if difference <= SMALL and exam.match is not None and not exam.match.slugs:
        exam.add(finding("heads-ignored", f"{said}: is the number of heads written as a number?"))


def effects(exam) -> None:
    """Every parameter moves the output, or a mistake that was named says why not."""
    if exam.match is None or not isinstance(exam.module, nn.Module):
        return
    probe = exam.lab.probe("self", dtype=exam.dtype)
    known = training.expected_gradients(exam, probe, torch.ones(probe.query.shape))
    # the softmax takes no notice of a bias of the keys, so right code has none of its effect either
    idle = [name for name in exam.unused if known.get(name) is None]
    exam.line("every parameter has an effect", not idle, ", ".join(idle))
    idle = [name for name in idle if name not in exam.explained_silence()]
    biases = [name for name in idle if dict(exam.module.named_parameters())[name].ndim == 1]
    if biases and not exam.named("bias-missing"):
        text = f"changing it changes nothing: {', '.join(biases)}"
        exam.add(finding("bias-missing", text))
    rest = [name for name in idle if name not in biases]
    if rest and exam.match.slugs == () and not exam.mistakes():
        exam.add(finding("unknown", f"changing it changes nothing: {', '.join(rest)}", "note"))


def odd_sizes(exam) -> None:
    """One example, one query, one key."""
    name = "one example, one token"
    try:
        exam.call(exam.lab.probe("self", dtype=exam.dtype, B=1, T=1))
        exam.line(name, True)
    except Stopped as stopped:
        exam.line(name, False)
        exam.add(stopped.finding())


def repeatable(exam) -> None:
    """Evaluation must not draw lots."""
    module = exam.module
    if exam.lab.is_class:
        try:
            module = exam.make_with_dropout(0.5)
        except (Stopped, TypeError):
            pass
    probe = exam.lab.probe("self", dtype=exam.dtype)
    first, second = exam.call(probe, module)[0], exam.call(probe, module)[0]
    difference = float((first - second).abs().nan_to_num(0.0).max())
    exam.line(STEADY, difference == 0)
    exam.unsteady = difference > 0 and not quiet_without_dropout(exam)
    if exam.unsteady:
        exam.add(
            finding("unknown", "two calls with the same input differ, with no dropout asked for")
        )
    elif difference > 0:
        text = (
            f"dropout=0.5, module.eval(): two calls with the same input differ by {difference:.2g}"
        )
        exam.add(finding("dropout-in-eval", text))


def quiet_without_dropout(exam) -> bool:
    """Whether two calls agree where no dropout was asked for."""
    probe = exam.lab.probe("self", dtype=exam.dtype)
    first, second = exam.call(probe)[0], exam.call(probe)[0]
    return bool(torch.equal(first.nan_to_num(0.0), second.nan_to_num(0.0)))


def inputs_kept(exam) -> None:
    """What is handed over is as it was after the call."""
    changed = ", ".join(sorted(exam.guard.changed))
    if changed:
        exam.line("the inputs are left as they were", False, changed, "input-changed")
        exam.add(finding("input-changed", f"another after the call: {changed}"))


STEPS = (
    repeatable,
    shape,
    unequal_lengths,
    parity,
    batch,
    rows,
    order,
    past,
    head_count,
    effects,
    odd_sizes,
)
