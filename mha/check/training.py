"""What shows only in training and in other number formats: dropout, gradients, dtypes, devices."""

import warnings

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mha.check import maps as reading
from mha.check import search
from mha.check.binding import Malformed
from mha.check.catalogue import finding
from mha.check.guard import Stopped
from mha.check.lab import numbers, random_mask
from mha.check.simulate import Probe

COPIES = 600  # of one example, so that one call draws many masks
RATE = 0.5


# --- gradients


def gradients(exam) -> None:
    """Every parameter gets the gradient that the same computation gives."""
    if not isinstance(exam.module, nn.Module):
        return
    probe = exam.lab.probe(exam.kind, 3, exam.dtype, **exam.safe_lengths())
    inputs = probe.after(leaf)
    parameters = dict(exam.module.named_parameters())
    name = "every parameter gets its gradient"
    try:
        with torch.enable_grad():
            output, _ = exam.adapter(exam.module)(exam.masked(inputs))
            pull = torch.randn(output.shape, generator=numbers(9), dtype=torch.float64)
            pull = pull.to(output.dtype)
            exam.guard.call((output * pull).sum().backward)
    except Stopped as stopped:
        exam.line(name, False, "", "not-differentiable")
        exam.add(broken_graph(stopped))
        return
    got = {n: p.grad for n, p in parameters.items()}
    exam.module.zero_grad(set_to_none=True)
    silent = [n for n, grad in got.items() if grad is None]
    bad = [n for n, g in got.items() if g is not None and not torch.isfinite(g).all()]
    wrong = wrong_gradients(exam, probe, pull, got)
    explained = exam.explained_silence()
    unused = exam.unused
    stems = {name.rpartition(".")[0] for name in unused}
    silent = [n for n in silent if n not in explained and n not in unused]
    silent = [n for n in silent if n.rpartition(".")[0] not in stems - {""}]
    exam.line(name, not (silent or bad or wrong), ", ".join(silent or bad or wrong))
    if bad and torch.isfinite(output).all():
        exam.add(finding("mask-nan", f"the output is finite, the gradient of {bad[0]} is not"))
    elif silent or wrong:
        exam.add(finding("not-differentiable", silence(silent, wrong)))


def silence(silent: list[str], wrong: list[str]) -> str:
    """In words."""
    said = []
    if silent:
        said.append(f"after backward() no gradient at: {', '.join(silent)}")
    if wrong:
        said.append(f"forward agrees, the gradient does not at: {', '.join(wrong)}")
    return "; ".join(said)


def broken_graph(stopped: Stopped):
    """Backward ended in an error: a graph that was cut, or something else."""
    message = str(stopped.error)
    cut = ("numpy()", "inplace", "in-place", "does not require grad", "detach", "leaf Variable")
    if any(word in message for word in cut):
        return finding("not-differentiable", f"{place(stopped)}{message.splitlines()[0]}")
    return stopped.finding()


def place(stopped: Stopped) -> str:
    """The learner's own line, if the error came from one."""
    return f"line {stopped.lineno}: {stopped.line}\n" if stopped.line else ""


def leaf(x: Tensor) -> Tensor:
    """The same numbers, of which a gradient is wanted."""
    return x.detach().clone().requires_grad_()


def expected_gradients(exam, probe: Probe, pull: Tensor) -> dict[str, Tensor | None]:
    """Parameter -> the gradient that the recipe gives it, which explains the output; None if none."""
    parameters = {k: p for k, p in exam.module.named_parameters() if p.requires_grad}
    if not parameters:
        return {}
    with torch.enable_grad():
        maps = exam.read_again(exam.module, exam.lab.sizes)
        output, _ = search.Simulator(exam.doubled(probe), maps)(exam.match.recipe)
        if output.shape != pull.shape:
            return {}
        total = (output * pull.double()).sum()
        wanted = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, wanted, strict=True))


def wrong_gradients(exam, probe: Probe, pull: Tensor, got: dict) -> list[str]:
    """Parameters whose gradient is not that of the recipe that explains the output."""
    if exam.match is None or exam.match.recipe.mask != "right":
        return []
    wanted = {k: w for k, w in expected_gradients(exam, probe, pull).items() if w is not None}
    size = max([float(w.abs().max()) for w in wanted.values()], default=1.0)
    return [
        k
        for k, w in wanted.items()
        if got[k] is not None and float((w - got[k]).abs().max()) > 1e3 * exam.tolerance * size
    ]


def registered(exam) -> None:
    """Weights are Parameters, so that an optimizer sees them."""
    if not isinstance(exam.module, nn.Module):
        return
    registered = {p.data_ptr() for p in exam.module.parameters()}
    loose = [
        unit.name
        for unit in reading.units(exam.module, exam.loose)
        if unit.weight.data_ptr() not in registered
        and not is_view(unit.weight, registered)
        and unit.weight.grad_fn is None
    ]
    loose = [name for name in loose if name not in dict(exam.module.named_buffers())]
    loose += reading.hidden_modules(exam.module)
    if loose or not registered:
        exam.line("its weights are parameters", False, ", ".join(loose))
        text = (
            f"plain tensors, which module.parameters() does not list: {', '.join(loose) or 'all'}"
        )
        exam.add(finding("weights-not-parameters", text))


def is_view(tensor: Tensor, registered: set[int]) -> bool:
    """Whether it is a view of a parameter."""
    return tensor._is_view() and tensor._base.data_ptr() in registered


# --- weights that are returned


def weights(exam) -> None:
    """Returned weights are those that made the output."""
    if exam.match is None:
        return
    probe = exam.lab.probe(exam.kind, 3, exam.dtype, **exam.safe_lengths())
    _, got = exam.call(probe)
    if got is None:
        return
    _, wanted = search.Simulator(exam.doubled(probe), exam.match.maps)(exam.match.recipe)
    got = got.double()
    if got.ndim == wanted.ndim - 1:
        wanted = wanted.mean(1) if got.shape[0] == wanted.shape[0] else wanted.flatten(0, 1)
    good = got.shape == wanted.shape and float((got - wanted).abs().max()) < 100 * exam.tolerance
    exam.line("the weights it returns are those it used", good)
    if not good:
        sums = got.sum(-1)
        text = f"rows of the returned weights sum to {float(sums.min()):.3f} ... {float(sums.max()):.3f}"
        if got.shape == wanted.shape:
            text += f"; largest difference from those used {float((got - wanted).abs().max()):.2g}"
        exam.add(finding("weights-wrong", text))


# --- dropout


def dropout(exam) -> None:
    """In training the mean over many draws is the output in eval mode."""
    if exam.named("dropout-in-eval"):
        return
    try:
        module = exam.make_with_dropout(RATE)
    except (Stopped, TypeError):
        return
    if module is None:
        return
    name = "dropout keeps the mean"
    one = exam.lab.probe(exam.kind, 11, exam.dtype, **exam.safe_lengths())
    parts = one.query, one.key, one.value
    many = Probe(*(x[:1].repeat(COPIES, *[1] * (x.ndim - 1)) for x in parts))
    if one.query is one.key:
        many = Probe(many.query, many.query, many.query)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        quiet = exam.call(many, module)[0].double()
        module.train()
        drawn, drawn_weights = exam.call(many, module)
    drawn = drawn.double()
    if float((drawn - drawn[:1]).abs().max()) == 0:
        if not torch.equal(drawn, exam.call(many, module)[0].double()):
            exam.line(name, None, "all examples of a batch share one draw")
            return
        exam.line("dropout acts in training", False, "all draws are alike", "dropout-ignored")
        exam.add(
            finding("dropout-ignored", "dropout=0.5, module.train(): all draws are alike", "note")
        )
        return
    error = (drawn - quiet).mean(0)
    sure = (drawn - quiet).std(0) / COPIES**0.5
    z = float((error.abs() / sure.clamp_min(1e-9)).max())
    if not torch.isfinite(drawn).all():
        exam.line(name, False, "NaN or inf while training")
        exam.add(finding("not-finite", "NaN or inf in training mode with dropout=0.5"))
        return
    if exam.match is None or (exam.around and exam.around.after):
        exam.line(name, None, "the numbers are not explained, or a norm comes after")
        return
    exam.line(name, z < 7, "off by more than 7 standard errors" if z >= 7 else "")
    if z >= 7:
        exam.add(name_the_bias(exam, module, drawn, quiet))
    elif drawn_weights is not None:
        after_dropout(exam, drawn_weights)


def name_the_bias(exam, module, drawn: Tensor, quiet: Tensor):
    """Dropout whose mean is off: not rescaled, or before the softmax."""
    bias = 0.0
    if exam.match is not None and exam.match.maps is not None and exam.match.maps.o is not None:
        bias = exam.match.maps.o.bias
        bias = 0.0 if bias is None else bias
    kept = float(
        ((drawn.mean(0) - bias) * (quiet[0] - bias)).sum() / (quiet[0] - bias).pow(2).sum()
    )
    text = (
        f"over {COPIES} draws the mean is {kept:.2f} times the output in eval mode: "
        "off by more than 7 standard errors"
    )
    rest = drawn.mean(0) - bias - kept * (quiet[0] - bias)
    sure = float((rest.abs() / (drawn.std(0) / COPIES**0.5).clamp_min(1e-9)).max())
    if abs(kept - (1 - RATE)) < 0.05 and sure < 7:
        return finding("dropout-unscaled", text + f"; 1 - p is {1 - RATE}")
    if exam.kind != "qkv" or rows_stay_whole(exam, module):
        return finding("dropout-on-scores", text + "; yet each draw's weights still sum to 1")
    return finding("unknown", text)


def rows_stay_whole(exam, module) -> bool:
    """With one vector for all values, every draw gives that vector if its weights sum to 1."""
    one = exam.lab.probe("qkv", 11, exam.dtype, **exam.safe_lengths())
    value = one.value[..., :1, :].expand_as(one.value).contiguous()
    drawn = exam.call(Probe(one.query, one.key, value), module)[0]
    return float((drawn - drawn[..., :1, :]).abs().max()) < 1e-4 * float(drawn.abs().max())


def after_dropout(exam, drawn: Tensor) -> None:
    """Whether returned weights were dropped."""
    sums = drawn.double().sum(-1)
    whole = float((sums - 1).abs().max()) < 1e-4
    exam.line("returned weights sum to 1 in training", whole, "", "weights-after-dropout")
    if not whole:
        text = f"training with dropout=0.5: rows sum to {float(sums.min()):.2f} ... {float(sums.max()):.2f}"
        exam.add(finding("weights-after-dropout", text, "note"))


# --- number formats


def formats(exam) -> None:
    """Float64 and half types come out as they went in, and stay finite, masked too."""
    if exam.float64_failed is not None:
        leak(exam, "float64", exam.float64_failed)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        said = str(dtype).removeprefix("torch.")
        try:
            module = exam.in_dtype(dtype)
            probe = exam.lab.probe(exam.kind, 3, dtype, **exam.safe_lengths())
            output, _ = exam.call(probe, module)
        except Stopped as stopped:
            if dtype == torch.float64:
                continue
            if is_dtype_error(stopped) and exam.float64_failed is None:
                leak(exam, said, stopped)
            continue
        except Malformed:
            return
        if output.dtype != dtype:
            exam.line("the output has the dtype of the input", False, f"{said} in", "dtype-leak")
            text = f"{said} in, {str(output.dtype).removeprefix('torch.')} out"
            exam.add(finding("dtype-leak", text))
            return
        if dtype == torch.float16:
            half_mask(exam, module, dtype)
    exam.line("the output has the dtype of the input", exam.float64_failed is None)


def is_dtype_error(stopped: Stopped) -> bool:
    """Two dtypes met."""
    message = str(stopped.error).lower()
    return "dtype" in message or "scalar type" in message


def leak(exam, said: str, stopped: Stopped) -> None:
    """Two dtypes met inside the learner's code."""
    if not is_dtype_error(stopped) or exam.named("weights-not-parameters"):
        return
    text = f"{said} in: {place(stopped)}{str(stopped.error).splitlines()[0]}"
    exam.add(finding("dtype-leak", text))


def half_mask(exam, module, dtype) -> None:
    """A mask in float16, whose largest number is 65,504."""
    n = dict(exam.lab.sizes)
    n["S"] = n["T"] if exam.kind == "self" or exam.unequal_failed else n["S"]
    name = "masks work in float16"
    form = exam.mask_form or exam.key_form
    plain = exam.lab.probe(exam.kind, 5, dtype, S=n["S"])
    causal = form is None and "causal" in exam.arguments.names
    if form is None and not causal and not exam.always_causal():
        return
    if exam.named("mask-nan"):
        return
    mask = None if form is None else random_mask(n, form.uniform)
    key_mask = None
    if exam.mask_form is None and exam.key_form is not None:
        mask = mask[:, :, :1].expand_as(mask)
        key_mask = mask[:, 0, 0]
    parts = plain.query, plain.key, plain.value
    whole = Probe(*(x.to(exam.dtype) for x in parts), mask, key_mask, causal)
    try:
        full, _ = exam.call(whole)
        output, _ = exam.call(Probe(*parts, mask, key_mask, causal), module)
    except Stopped as stopped:
        exam.line(name, False, "", "mask-half-overflow")
        message = str(stopped.error).splitlines()[0] if str(stopped.error) else ""
        if "overflow" in message or "out of range" in message:
            text = f"{place(stopped)}{message}"
            exam.add(finding("mask-half-overflow", text))
        return
    except Malformed:
        return
    finite = bool(torch.isfinite(output[torch.isfinite(full)]).all())
    exam.line(name, finite, "", *(() if finite else ("mask-half-overflow",)))
    if not finite:
        count = int((~torch.isfinite(output)).sum())
        text = f"float16 with a mask: {count} of {output.numel()} numbers are NaN or inf"
        exam.add(finding("mask-half-overflow", text))


# --- devices


class Factories(TorchFunctionMode):
    """Notes which tensors are made without saying on which device."""

    MAKERS = (
        torch.ones,
        torch.zeros,
        torch.arange,
        torch.full,
        torch.tensor,
        torch.eye,
        torch.empty,
    )
    MAKERS += (torch.linspace, torch.rand, torch.randn, torch.tril_indices, torch.triu_indices)

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in self.MAKERS and kwargs.get("device") is None and result.numel() > 1:
            self.made.append(f"torch.{func.__name__}{tuple(result.shape)}")
        return result


def devices(exam) -> None:
    """On the meta device, what the learner's code leaves on the CPU does not fit."""
    if not isinstance(exam.module, nn.Module):
        return
    if exam.named("not-differentiable") or exam.named("weights-not-parameters"):
        return
    name = "everything is on the module's device"
    probe = exam.masked_probe()
    with Factories() as factories:
        try:
            exam.call(probe)
        except (Stopped, Malformed):
            return
    try:
        exam.call(on_meta(probe), exam.make().to("meta"))
    except Stopped as stopped:
        message = str(stopped.error)
        if "device" in message and ("meta" in message or "same device" in message):
            exam.line(name, False, "", "device-buffer")
            made = f"; made without a device: {', '.join(factories.made)}" if factories.made else ""
            text = f"{place(stopped)}{message.splitlines()[0]}{made}"
            exam.add(finding("device-buffer", text))
            return
    except Malformed:
        return
    if factories.made:
        exam.line(name, False, "made on the CPU at each call", "device-buffer")
        text = f"at each call, without a device: {', '.join(dict.fromkeys(factories.made))}"
        exam.add(finding("device-buffer", text, "note"))
    else:
        exam.line(name, True)


def on_meta(probe: Probe) -> Probe:
    """A probe without numbers."""
    parts = probe.query, probe.key, probe.value, probe.mask, probe.key_mask
    query, key, value, *masks = (None if x is None else x.to("meta") for x in parts)
    if probe.query is probe.key:
        key = value = query
    return Probe(query, key, value, *masks, probe.causal)


STEPS = registered, gradients, weights, dropout, formats, devices
