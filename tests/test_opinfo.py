"""PyTorch's own samples for ``scaled_dot_product_attention``, with our function in torch's place.

They are the samples by which PyTorch tests its function ("OpInfos"): three and four axes, T != S,
axes that broadcast, causal or not, with dropout and without, a float mask that requires grad. There
is nothing to make allowances for: the guarantees that go beyond torch's concern arguments and rows
(those that see nothing) that these samples do not have.
"""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

import mha

DUMP = """
import sys, torch
from torch.testing._internal.common_methods_invocations import op_db

[op] = [op for op in op_db if op.name == "nn.functional.scaled_dot_product_attention"]
torch.save({
    str(dtype): [
        {"args": [sample.input, *sample.args], "kwargs": dict(sample.kwargs)}
        for sample in op.sample_inputs("cpu", dtype, requires_grad=True)
    ]
    for dtype in (torch.float64, torch.float32)
}, sys.argv[1])
"""
TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-5}
"""Largest error allowed, as a share of the largest number in the right result (or of 1). The
samples lie between -9 and 9: scores reach hundreds, and gradients are small differences."""

BACKENDS = ("reference", "sdpa", "auto")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """The samples by dtype. Their module changes settings of all of torch: a process of its own."""
    path = tmp_path_factory.mktemp("opinfo") / "samples.pt"
    subprocess.run([sys.executable, "-c", DUMP, str(path)], check=True)
    return torch.load(path)


def run(function, sample):
    """Output, and the gradients of all that requires one, from one seed."""
    options = {"attn_mask": None, **sample["kwargs"]}
    tensors = [*sample["args"], options["attn_mask"]]
    tensors = [x.detach().requires_grad_(x.requires_grad) for x in tensors if x is not None]
    if options["attn_mask"] is not None:
        options["attn_mask"] = tensors[3]
    torch.manual_seed(0)
    output = function(*tensors[:3], **options)
    upstream = torch.linspace(-1.0, 1.0, output.numel(), dtype=output.dtype).view_as(output)
    return [output, *torch.autograd.grad(output, tensors, upstream)]


def named(samples):
    """Samples, each with words for what it is."""
    for number, sample in enumerate(samples):
        shapes = [tuple(x.shape) for x in sample["args"]]
        options = {k: x for k, x in sample["kwargs"].items() if k != "attn_mask"}
        mask = ", attn_mask" if "attn_mask" in sample["kwargs"] else ""
        yield f"sample {number}: {shapes}{mask}, {options}", sample


def test_there_are_samples_of_every_kind(samples):
    assert set(samples) == {str(dtype) for dtype in TOLERANCES}
    for some in samples.values():
        assert len(some) >= 24
        assert {len(x.shape) for sample in some for x in sample["args"]} == {3, 4}
        for name, kinds in (("is_causal", {True, False}), ("dropout_p", {0.0, 0.5})):
            assert {sample["kwargs"][name] for sample in some} == kinds
        assert any("attn_mask" in sample["kwargs"] for sample in some)
        assert all(x.requires_grad for sample in some for x in sample["args"])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_backward_equal_torch_from_the_same_seed(samples, backend, dtype):
    function = partial(mha.scaled_dot_product_attention, backend=backend)
    for name, sample in named(samples[str(dtype)]):
        mine, theirs = run(function, sample), run(F.scaled_dot_product_attention, sample)
        for part, ours, expected in zip(("output", *"qkvm"), mine, theirs, strict=False):
            assert ours.shape == expected.shape and ours.dtype == expected.dtype, (name, part)
            error = ((ours - expected).abs().max() / expected.abs().max().clamp(min=1.0)).item()
            assert error <= TOLERANCES[dtype], f"{name}: {part} is off by {error:.2g}"
        assert len(mine) == len(theirs) >= 4, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_finite_differences(samples, backend):
    checked = 0
    for name, sample in named(samples[str(torch.float64)]):
        if sample["kwargs"]["dropout_p"] > 0:
            continue  # another draw at each call

        def function(*tensors, options=sample["kwargs"]):
            mask = {"attn_mask": tensors[3]} if len(tensors) > 3 else {}
            return mha.scaled_dot_product_attention(
                *tensors[:3], **{**options, **mask}, backend=backend
            )

        mask = sample["kwargs"].get("attn_mask")
        tensors = [*sample["args"], *([] if mask is None else [mask])]
        assert gradcheck(function, tensors, fast_mode=True), name
        checked += 1
    assert checked >= 12
