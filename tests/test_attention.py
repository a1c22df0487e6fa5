"""The function: numbers against the oracle and against torch, then the guarantees one by one."""

import math
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MASK_NAMES, B, D, H, S, T, close, mask_cases, oracle, randn, to_numpy
from torch._subclasses.fake_tensor import FakeTensorMode

from mha import reference
from mha import scaled_dot_product_attention as attention

BACKENDS = ("reference", "sdpa", "flash")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

every_backend = pytest.mark.parametrize("backend", BACKENDS)
all_but_flash = pytest.mark.parametrize("backend", BACKENDS[:-1])  # which says what it cannot do
every_mask = pytest.mark.parametrize("name", MASK_NAMES)


def operands(dtype=torch.float64, requires_grad=False, value_width=D + 1):
    """Query (B, H, T, D), key (B, H, S, D) and value (B, H, S, value_width)."""
    shapes = (B, H, T, D), (B, H, S, D), (B, H, S, value_width)
    return [
        randn(*shape, seed=i, dtype=dtype, requires_grad=requires_grad)
        for i, shape in enumerate(shapes)
    ]


@every_backend
@every_mask
@pytest.mark.parametrize("value_width", [D, D + 1])  # torch's fused kernel takes only D_v = D
def test_forward_and_backward_equal_the_oracle(backend, name, value_width):
    q, k, v = operands(requires_grad=True, value_width=value_width)
    masks = mask_cases()[name]
    output, weights = attention(q, k, v, **masks, return_weights=True, backend=backend)
    expected, expected_weights = oracle(q, k, v, **masks, return_weights=True)
    close(output, expected)
    close(weights, expected_weights)
    grad = randn(*output.shape, seed=5)
    output.backward(grad)
    arrays = [x.detach().numpy() for x in (q, k, v)]
    gradients = reference.attention_backward(grad.numpy(), *arrays, **to_numpy(masks))
    for x, gradient in zip((q, k, v), gradients, strict=True):
        close(x.grad, torch.from_numpy(gradient))


@every_backend
@every_mask
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_dtypes_stay_close_and_keep_their_dtype(backend, name, dtype):
    q, k, v = operands(dtype, value_width=D)
    masks = mask_cases(dtype=dtype)[name]
    output, weights = attention(q, k, v, **masks, return_weights=True, backend=backend)
    assert output.dtype == weights.dtype == dtype
    expected, expected_weights = oracle(q, k, v, **masks, return_weights=True)
    close(output, expected, TOLERANCE[dtype])
    close(weights, expected_weights, TOLERANCE[dtype])


@every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_float32_mask_keeps_its_digits(backend, dtype):
    q, k, v = operands(dtype, value_width=D)
    mask = 1000.0 + randn(T, S, seed=4, dtype=torch.float32)  # in half, the digits would be gone
    close(
        attention(q, k, v, mask, backend=backend), oracle(q, k, v, attn_mask=mask), TOLERANCE[dtype]
    )


@every_backend
@every_mask
def test_weights_asked_for_change_no_output(backend, name):
    q, k, v = operands(value_width=D)
    masks = mask_cases()[name]
    alone = attention(q, k, v, **masks, backend=backend)
    beside, _ = attention(q, k, v, **masks, return_weights=True, backend=backend)
    assert torch.equal(alone, beside)


@every_backend
@pytest.mark.parametrize("name", ["none", "causal", "bool (T, S)", "float (H, T, S)", "key_mask"])
def test_it_stands_in_for_torch(backend, name):
    q, k, v = operands()
    masks = mask_cases()[name]
    if "key_mask" in masks:
        masks = {"attn_mask": masks["key_mask"][:, None, None]}
    mask, causal = masks.get("attn_mask"), masks.get("is_causal", False)
    expected = F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=0.3)
    close(attention(q, k, v, mask, 0.0, causal, scale=0.3, backend=backend), expected)


@every_backend
def test_axes_before_the_heads(backend):
    q, k, v = operands()
    expected = attention(q, k, v, backend=backend)
    close(attention(q[0], k[0], v[0], backend=backend), expected[0])  # (H, T, D)
    close(attention(q[0, 0], k[0, 0], v[0, 0], backend=backend), expected[0, 0])  # (T, D)
    five = [x[None].expand(3, *x.shape) for x in (q, k, v)]
    close(attention(*five, backend=backend), expected.expand(3, *expected.shape))
    close(
        attention(q[:1], k, v, backend=backend),
        attention(q[:1].expand(B, -1, -1, -1), k, v, backend=backend),
    )
    lone = torch.tensor([True, False, True, True, False])
    two = attention(q[0, 0], k[0, 0], v[0, 0], backend=backend, return_weights=True)[1]
    close(two, oracle(q, k, v, return_weights=True)[1][0, 0])
    close(
        attention(q[0, 0], k[0, 0], v[0, 0], key_mask=lone, backend=backend),
        attention(q, k, v, key_mask=lone.expand(B, S), backend=backend)[0, 0],
    )
    close(
        attention(*five, key_mask=lone.expand(3, 1, S), backend=backend)[1],
        attention(q, k, v, key_mask=lone, backend=backend),
    )


@every_backend
@given(
    shape=st.tuples(*(st.integers(0, 4) for _ in range(4))),
    widths=st.tuples(st.integers(1, 5), st.integers(0, 5)),
    offset=st.integers(-3, 6),
    causal=st.booleans(),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_mask(backend, shape, widths, offset, causal, data):
    batch, heads, length, size = shape
    q = randn(batch, heads, length, widths[0])
    k, v = (
        randn(batch, heads, size, widths[0], seed=1),
        randn(batch, heads, size, widths[1], seed=2),
    )
    options = {"is_causal": causal, "q_offset": offset}
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):
        options["key_mask"] = torch.rand(batch, size, generator=generator) < 0.5
    axes = [data.draw(st.sampled_from((1, n))) for n in shape]
    mask = torch.rand(*axes[data.draw(st.integers(0, 3)) :], generator=generator)
    if data.draw(st.booleans()):
        options["attn_mask"] = mask < 0.5
    for x in (q, k, v):
        x.requires_grad_(True)
    output, weights = attention(q, k, v, **options, return_weights=True, backend=backend)
    expected, expected_weights = oracle(q, k, v, **options, return_weights=True)
    close(output, expected)
    close(weights, expected_weights)
    output.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@every_backend
@pytest.mark.parametrize(
    ("offset", "causal"),
    [(2, True), (-1, True), (2, False), *((n, True) for n in (S - 2, S - 1, S + 9, -S - 1))],
)
def test_q_offset_moves_the_diagonal(backend, offset, causal):
    q, k, v = operands()
    expected = oracle(q, k, v, is_causal=causal, q_offset=offset)
    close(attention(q, k, v, is_causal=causal, q_offset=offset, backend=backend), expected)


@every_backend
def test_one_step_of_a_decoder_equals_the_row_of_the_whole(backend):
    q, k, v = randn(B, H, S, D), *operands()[1:]
    whole = attention(q, k, v, is_causal=True, backend=backend)
    for i in range(S):
        step = attention(
            q[:, :, i : i + 1],
            k[:, :, : i + 1],
            v[:, :, : i + 1],
            is_causal=True,
            q_offset=i,
            backend=backend,
        )
        close(step, whole[:, :, i : i + 1])


@every_backend
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("causal", [False, True])
def test_poison_at_an_excluded_key_goes_nowhere(backend, poison, causal):
    key_mask = torch.tensor([[True] * S, [True, False, True, True, False]])
    clean = operands(requires_grad=True, value_width=D)
    output = attention(*clean, is_causal=causal, key_mask=key_mask, backend=backend)
    output.sum().backward()
    dirty = operands(value_width=D)
    for x in dirty[1:]:
        x[1, :, [1, 4]] = poison
    dirty = [x.requires_grad_(True) for x in dirty]
    same, weights = attention(
        *dirty, is_causal=causal, key_mask=key_mask, backend=backend, return_weights=True
    )
    same.sum().backward()
    assert torch.equal(output, same)
    assert weights.isfinite().all()
    for x, y in zip(clean, dirty, strict=True):
        close(x.grad, y.grad)
    assert (dirty[1].grad[1, :, 1] == 0).all()


@every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_too_large_for_half_are_kept_in_float32(backend, dtype):
    q = torch.full((1, 1, 2, 64), 60.0, dtype=dtype)
    k = torch.stack([q[0, 0, 0], -q[0, 0, 0], q[0, 0, 0]])[None, None]  # scores of 230 400 / 8
    v = randn(1, 1, 3, 64, dtype=dtype)
    output = attention(q, k, v, backend=backend, scale=1.0)
    assert output.isfinite().all()
    close(output, (v[:, :, :1] + v[:, :, 2:]).double().div(2).expand_as(output), 2e-2)


@every_backend
@pytest.mark.parametrize("name", ["bool, a dead row", "float, a dead row"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_that_sees_nothing(backend, name, dtype):
    q, k, v = operands(dtype, requires_grad=True, value_width=D)
    masks = mask_cases(dtype=dtype)[name]
    output, weights = attention(q, k, v, **masks, backend=backend, return_weights=True)
    assert (output[:, :, 1] == 0).all()
    assert (weights[:, :, 1] == 0).all()
    output.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert (q.grad[:, :, 1] == 0).all()


@every_backend
@pytest.mark.parametrize("name", ["bool, a dead row", "float, a dead row"])
def test_no_step_of_the_backward_pass_is_undefined(backend, name):
    q, k, v = operands(requires_grad=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
        with torch.autograd.detect_anomaly():  # an error at the first NaN, wherever it would end
            attention(q, k, v, **mask_cases()[name], backend=backend).sum().backward()


@pytest.mark.parametrize(
    ("feature", "call"),
    {
        "dropout": lambda q, k, v: attention(q, k, v, dropout_p=0.1, backend="flash"),
        "torch.func transforms such as vmap": torch.func.vmap(partial(attention, backend="flash")),
        "a gradient to attn_mask": lambda q, k, v: attention(
            q, k, v, randn(T, S, requires_grad=True), backend="flash"
        ),
    }.items(),
)
def test_flash_says_what_it_cannot_do(feature, call):
    with pytest.raises(ValueError, match=f"'flash' cannot do {feature}; 'reference' can"):
        call(*operands())


@all_but_flash
def test_a_learned_bias_gets_its_gradient(backend):
    q, k, v = operands(value_width=D)
    bias = randn(H, T, S, seed=8)
    bias[:, 0, 2] = -math.inf
    bias[:, 2] = -math.inf
    bias.requires_grad_(True)
    attention(q, k, v, bias, backend=backend).square().sum().backward()
    again = bias.detach().clone().requires_grad_(True)
    weights = (q @ k.mT / math.sqrt(D) + again)[:, :, :2].softmax(-1)
    (weights @ v).square().sum().backward()
    close(bias.grad, again.grad.masked_fill(again.isneginf(), 0.0))


@every_backend
@every_mask
def test_gradcheck(backend, name):
    masks = mask_cases()[name]
    if name == "float, finfo.min":
        pytest.skip("rounding at -3e38 swallows the steps that gradcheck takes")
    q, k, v = operands(requires_grad=True, value_width=D)

    def run(q, k, v):
        return attention(q, k, v, **masks, backend=backend)

    assert torch.autograd.gradcheck(run, (q, k, v))


@every_backend
@pytest.mark.parametrize("sizes", [(0, 2, 3, 5), (2, 2, 0, 5), (2, 2, 3, 0), (2, 0, 3, 5)])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"dropout_p": 0.5}])
def test_empty_axes(backend, sizes, options):
    batch, heads, length, size = sizes
    q = randn(batch, heads, length, D, requires_grad=True)
    k = randn(batch, heads, size, D, requires_grad=True)
    key_mask = torch.ones(batch, size, dtype=torch.bool)
    if backend == "flash":
        options = {**options, "dropout_p": 0.0}
    output, weights = attention(
        q, k, k, key_mask=key_mask, return_weights=True, backend=backend, **options
    )
    assert output.shape == (batch, heads, length, D)
    assert weights.shape == (batch, heads, length, size)
    assert (output == 0).all()
    output.sum().backward()
    assert (q.grad == 0).all()


@every_backend
def test_strided_and_expanded_operands(backend):
    q, k, v = operands(value_width=D)
    expected = attention(q, k, v, backend=backend)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert not strided[0].is_contiguous()
    close(attention(*strided, backend=backend), expected)
    every_second = [torch.stack([x, x], -1).flatten(-2)[..., ::2] for x in (q, k, v)]
    assert every_second[0].stride(-1) == 2
    close(attention(*every_second, backend=backend), expected)
    shared = k[:, :1].expand(B, H, S, D)
    close(attention(q, shared, shared, backend=backend), oracle(q, shared, shared))


@all_but_flash
def test_dropout_is_unbiased_and_weights_are_before_it(backend):
    q, k, v = operands(value_width=D)
    kept, weights = attention(q, k, v, dropout_p=0.4, backend=backend, return_weights=True)
    close(weights, oracle(q, k, v, return_weights=True)[1])
    assert not torch.allclose(kept, oracle(q, k, v))
    many = [x.expand(4000, *x.shape[1:]) for x in (q[:1], k[:1], v[:1])]
    mean = attention(*many, dropout_p=0.4, backend=backend).mean(0)
    close(mean, oracle(q, k, v)[0], 0.06)
    assert (attention(q, k, v, dropout_p=1.0, backend=backend) == 0).all()


@all_but_flash
def test_dropout_drops_weights_one_by_one_and_scales_the_rest(backend):
    size, p = 4000, 0.3
    q, k = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, size, 4)  # all weights 1 / S
    v = torch.eye(size)[None, None]  # so that the output is the weights after dropout
    dropped = attention(q, k, v, dropout_p=p, backend=backend) * size
    assert abs((dropped == 0).float().mean() - p) < 0.03
    close(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 1 / (1 - p)), 1e-4)


@every_backend
@pytest.mark.parametrize("scale", [0.0, -0.7, 2])
def test_scale(backend, scale):
    q, k, v = operands()
    expected = oracle(q, k, v, scale=scale, is_causal=True)
    close(attention(q, k, v, scale=scale, is_causal=True, backend=backend), expected)


@every_backend
def test_a_mask_of_one_number(backend):
    q, k, v = operands()
    close(attention(q, k, v, torch.tensor(True), backend=backend), oracle(q, k, v))
    assert (attention(q, k, v, torch.tensor(False), backend=backend) == 0).all()


class Fused:
    """Watches torch's own function: what it is called with."""

    def __init__(self, monkeypatch):
        self.calls, self.original = [], F.scaled_dot_product_attention
        monkeypatch.setattr(F, "scaled_dot_product_attention", self)

    def __call__(self, query, key, value, mask, dropout_p, is_causal, *, scale):
        self.calls.append((mask, is_causal))
        return self.original(query, key, value, mask, dropout_p, is_causal, scale=scale)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_which_path_is_taken(backend, monkeypatch):
    fused, (q, k, v) = Fused(monkeypatch), operands()
    attention(q, k, v, is_causal=True, backend=backend)
    attention(q[:, :, :1], k, v, is_causal=True, q_offset=S - 1, backend=backend)
    assert fused.calls == ([] if backend == "reference" else [(None, True), (None, False)])


def test_no_kernel_gets_a_row_that_sees_nothing(monkeypatch):
    fused, (q, k, v) = Fused(monkeypatch), operands()
    with torch.no_grad():
        for masks in mask_cases().values():
            attention(q, k, v, **masks, backend="sdpa")
    given = [mask for mask, _ in fused.calls if mask is not None]
    assert len(given) > 10
    for mask in given:
        seen = mask if mask.dtype == torch.bool else mask > -math.inf
        assert seen.any(-1).all()


@every_backend
@every_mask
def test_with_and_without_gradients_the_same(backend, name):
    q, k, v = operands(value_width=D)
    masks = mask_cases()[name]
    with torch.no_grad():
        close(attention(q, k, v, **masks, backend=backend), oracle(q, k, v, **masks))


def huge_negative_row():
    mask = torch.zeros(T, S)
    mask[1] = torch.finfo(torch.float32).min
    return mask


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_a_huge_negative_row_keeps_its_gradients_under_vmap_and_export():
    q, k, v = operands(requires_grad=True, value_width=D)
    mask = huge_negative_row()
    attention(q, k, v, mask, backend="reference").sin().sum().backward()
    expected = [x.grad.clone() for x in (q, k, v)]

    class Masked(torch.nn.Module):
        def forward(self, q, k, v):
            return attention(q, k, v, mask, backend="sdpa")

    def vmapped(q, k, v):
        return torch.func.vmap(Masked().forward)(q, k, v)

    exported = torch.export.export(Masked(), tuple(x.detach() for x in (q, k, v))).module()
    for run in (Masked(), vmapped, exported):
        got = torch.autograd.grad(run(q, k, v).sin().sum(), (q, k, v))
        for mine, theirs in zip(got, expected, strict=True):
            close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reference_rounds_half_types_once(dtype):
    q, k, v = operands(dtype, value_width=D)
    wide = attention(q.float(), k.float(), v.float(), backend="reference", return_weights=True)
    half = attention(q, k, v, backend="reference", return_weights=True)
    for mine, theirs in zip(half, wide, strict=True):
        assert torch.equal(mine, theirs.to(dtype))


@every_backend
@pytest.mark.parametrize("mask_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast_is_a_cast_of_the_operands(backend, mask_dtype):
    q, k, v = operands(torch.float32, value_width=D)
    mask = randn(T, S, seed=3, dtype=mask_dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = attention(q.half(), k, v, mask, backend=backend, return_weights=True)
    cast = [q.half().bfloat16(), k.bfloat16(), v.bfloat16()]
    mask = mask if mask_dtype == torch.float32 else mask.bfloat16()
    want = attention(*cast, mask, backend=backend, return_weights=True)
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs)


@every_backend
def test_autocast_casts_as_torch_does(backend):
    q, k, v = operands(torch.float32, value_width=D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, weights = attention(q, k, v.bfloat16(), backend=backend, return_weights=True)
        expected = F.scaled_dot_product_attention(q, k, v.bfloat16())
    assert output.dtype == weights.dtype == expected.dtype == torch.bfloat16
    close(output, expected, 2e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        untouched = attention(*operands(), backend=backend)
    assert untouched.dtype == torch.float64
    close(untouched, oracle(*operands()))


@every_backend
@pytest.mark.parametrize("name", ["none", "causal", "float, causal and key_mask"])
def test_compile_whole_graph(backend, name):
    masks = mask_cases()[name]
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    q, k, v = operands(requires_grad=True)
    output, weights = compiled(q, k, v, **masks, backend=backend, return_weights=True)
    expected, expected_weights = oracle(q, k, v, **masks, return_weights=True)
    close(output, expected)
    close(weights, expected_weights)
    output.sum().backward()
    assert q.grad.isfinite().all()


@every_backend
def test_compile_with_dynamic_sizes(backend):
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (3, 4, 6):
        q, k = randn(B, H, size, D), randn(B, H, size + 1, D, seed=1)
        close(compiled(q, k, k, is_causal=True, backend=backend), oracle(q, k, k, is_causal=True))


@all_but_flash
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_vmap_and_per_example_gradients(backend):
    q, k, v = operands(value_width=D)
    key_mask = mask_cases()["key_mask, holes"]["key_mask"]

    def one(q, k, v, key_mask):
        return attention(q, k, v, is_causal=True, key_mask=key_mask, backend=backend)

    expected = oracle(q, k, v, is_causal=True, key_mask=key_mask)
    close(torch.func.vmap(one)(q, k, v, key_mask), expected)
    gradient = torch.func.grad(lambda *x: one(*x).square().sum())
    got = torch.func.vmap(gradient)(q, k, v, key_mask)
    again = q.clone().requires_grad_(True)
    attention(again, k, v, is_causal=True, key_mask=key_mask).square().sum().backward()
    close(got, again.grad)


@every_backend
def test_compile_a_mask_after_sizes_became_dynamic(backend):
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    q, k, v = operands()
    compiled(q, k, v, backend=backend)
    q, k, v = q[:, :, :2], k[:, :, :4], v[:, :, :4]
    options = {"attn_mask": torch.ones(2, 4).tril().bool(), "key_mask": torch.ones(B, 4).bool()}
    close(compiled(q, k, v, **options, backend=backend), oracle(q, k, v, **options))


@every_backend
def test_compile_with_several_scales(backend):
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    q, k, v = operands()
    for scale in (0.1, 0.2, 0.3):
        close(compiled(q, k, v, scale=scale, backend=backend), oracle(q, k, v, scale=scale))


class _Wrapped(torch.nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend

    def forward(self, q, k, v, key_mask):
        return attention(q, k, v, is_causal=True, key_mask=key_mask, backend=self.backend)


@every_backend
def test_export(backend):
    q, k, v = operands()
    key_mask = mask_cases()["key_mask, holes"]["key_mask"]
    length, size = torch.export.Dim("T", min=2), torch.export.Dim("S", min=2)
    shapes = ({2: length}, {2: size}, {2: size}, {1: size})
    program = torch.export.export(_Wrapped(backend), (q, k, v, key_mask), dynamic_shapes=shapes)
    q, k, v, key_mask = q[:, :, :2], k[:, :, 1:], v[:, :, 1:], key_mask[:, 1:]
    expected = oracle(q, k, v, is_causal=True, key_mask=key_mask)
    close(program.module()(q, k, v, key_mask), expected)


@every_backend
def test_export_an_offset_with_any_number_of_keys(backend):
    class Step(torch.nn.Module):
        def forward(self, q, k, v):
            return attention(q, k, v, is_causal=True, q_offset=2, backend=backend)

    q, k, v = operands()
    size = torch.export.Dim("S", min=2)
    program = torch.export.export(Step(), (q, k, v), dynamic_shapes=({}, {2: size}, {2: size}))
    for n in (2, 3, 5):
        expected = oracle(q, k[:, :, :n], v[:, :, :n], is_causal=True, q_offset=2)
        close(program.module()(q, k[:, :, :n], v[:, :, :n]), expected)


def test_auto_takes_torch_and_refuses_nothing():
    q, k, v = operands(value_width=D)
    for masks in mask_cases().values():
        for more in ({}, {"dropout_p": 0.0, "return_weights": True}, {"q_offset": 2}):
            attention(q, k, v, **masks, **more)
    close(attention(q, k, v), attention(q, k, v, backend="sdpa"), 0)


Q, K, V = (torch.zeros(B, H, n, D) for n in (T, S, S))
REFUSALS = {
    "not a tensor": (([[1.0]], K, V), {}, TypeError, "query must be a tensor, got list"),
    "integers": (
        (Q.long(), K, V),
        {},
        TypeError,
        "query must be a floating-point tensor, got .*64",
    ),
    "one axis": ((Q, K, V[0, 0, 0]), {}, ValueError, r"value must have shape .*got \(4,\)"),
    "dtypes": ((Q, K.double(), V), {}, ValueError, "share one dtype, got query torch.float32, key"),
    "devices": ((Q, K.to("meta"), V), {}, ValueError, "share one device, got query cpu, key meta"),
    "D": ((Q, K[..., :3], V), {}, ValueError, r"\(2, 2, 3, 4\) with D=4 .*\(2, 2, 5, 3\) with D=3"),
    "no D": ((Q[..., :0], K[..., :0], V), {}, ValueError, "D >= 1"),
    "S": ((Q, K, V[:, :, :4]), {}, ValueError, "same length S, got .*S=5 .*S=4"),
    "B": ((Q.expand(2, 2, 3, 4), K[:1].expand(3, 2, 5, 4), V), {}, ValueError, r"batch .*\(3, 2\)"),
    "H": ((Q, torch.zeros(B, 3, S, D), torch.zeros(B, 3, S, D)), {}, ValueError, "head axes"),
    "mask type": ((Q, K, V, [[True]]), {}, TypeError, "attn_mask must be a tensor, got list"),
    "mask int": ((Q, K, V, torch.ones(T, S).int()), {}, TypeError, r"torch.int32.*attn_mask.bool"),
    "mask dtype": (
        (Q, K, V, torch.ones(T, S).double()),
        {},
        TypeError,
        "or torch.float32, got .*64",
    ),
    "mask shape": (
        (Q, K, V, torch.ones(S, T).bool()),
        {},
        ValueError,
        r"\(5, 3\) to \(2, 2, 3, 5\)",
    ),
    "mask axes": ((Q, K, V, torch.ones(1, B, H, T, S).bool()), {}, ValueError, "cannot broadcast"),
    "mask (B, T, S)": (
        (Q.expand(2, 2, 3, 4)[:1], K[:1], V[:1], torch.ones(5, T, S).bool()),
        {},
        ValueError,
        r"needs a head axis: attn_mask\[:, None\]",
    ),
    "mask device": ((Q, K, V, torch.ones(T, S, device="meta").bool()), {}, ValueError, "got meta"),
    "key_mask type": ((Q, K, V), {"key_mask": [True]}, TypeError, "key_mask must be a tensor"),
    "key_mask int": ((Q, K, V), {"key_mask": torch.ones(B, S).long()}, TypeError, "key_mask.bool"),
    "key_mask float": ((Q, K, V), {"key_mask": torch.ones(B, S)}, TypeError, "key_mask.bool"),
    "key_mask scalar": ((Q, K, V), {"key_mask": torch.tensor(True)}, ValueError, "S=5 keys"),
    "key_mask S": ((Q, K, V), {"key_mask": torch.ones(B, T).bool()}, ValueError, "S=5 keys"),
    "key_mask one": ((Q, K, V), {"key_mask": torch.ones(B, 1).bool()}, ValueError, "S=5 keys"),
    "key_mask B": (
        (Q, K, V),
        {"key_mask": torch.ones(3, S).bool()},
        ValueError,
        r"key_mask cannot broadcast from \(3, 5\) to \(2, 5\)",
    ),
    "dropout above": ((Q, K, V, None, 1.5), {}, ValueError, r"dropout_p .* \[0, 1\], got 1.5"),
    "dropout below": ((Q, K, V, None, -0.1), {}, ValueError, "got -0.1"),
    "dropout nan": ((Q, K, V, None, math.nan), {}, ValueError, "got nan"),
    "dropout type": ((Q, K, V, None, "0.1"), {}, TypeError, "dropout_p must be a number, got str"),
    "causal type": (
        (Q, K, V, None, 0.0, torch.ones(1)),
        {},
        TypeError,
        "is_causal must be .*got tensor",
    ),
    "scale type": (
        (Q, K, V),
        {"scale": torch.ones(1)},
        TypeError,
        "scale must be None or a number",
    ),
    "scale inf": ((Q, K, V), {"scale": math.inf}, ValueError, "scale must be finite, got inf"),
    "offset type": ((Q, K, V), {"q_offset": 1.0}, TypeError, "q_offset must be an int .*got 1.0"),
    "offset bool": ((Q, K, V), {"q_offset": True}, TypeError, "q_offset must be an int .*got True"),
    "backend": (
        (Q, K, V),
        {"backend": "cudnn"},
        ValueError,
        "backend must be one of auto, reference, sdpa, flash, flex, got 'cudnn'",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    arguments, options, error, words = REFUSALS[name]
    with pytest.raises(error, match=words):
        attention(*arguments, **options)


def test_a_float_mask_of_zeros_and_ones_gets_one_warning():
    mask = torch.ones(T, S)
    mask[0, 1] = 0.0
    with pytest.warns(UserWarning, match=r"say attn_mask.bool\(\)") as caught:
        attention(Q, K, V, mask)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize("mask", [torch.zeros(T, S), torch.full((T, S), 2.0), torch.ones(T, S) / 2])
def test_other_float_masks_get_none(mask):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attention(Q, K, V, mask)


def test_no_value_is_read_while_compiling_or_under_vmap():
    ones = torch.ones(T, S)
    with FakeTensorMode(allow_non_fake_inputs=True):
        attention(Q, K, V, torch.ones(T, S))
    attention(*(x.to("meta") for x in (Q, K, V, ones)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.compile(attention, backend="aot_eager", fullgraph=True)(Q, K, V, ones)
        torch.func.vmap(lambda q: attention(q, K[0], V[0], ones, backend="reference"))(Q)
