"""Which backend takes a call and how: explain, refusals, flags, chunks; then tracing and copies."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support import B, D, H, S, T, close, randn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from mha import _sdpa, explain
from mha import attention as attention_module
from mha import scaled_dot_product_attention as attention
from mha.flash import _op
from mha.positions import ALiBi

HOLES = torch.tensor([[True, False, True, True, True], [False, False, True, True, False]])
OFFSETS = torch.tensor([2, -1])
FEATURES = {
    "gqa": {"enable_gqa": True},
    "softcap": {"softcap": 1.5},
    "window": {"window": (1, 0)},
    "window, one side": {"window": (None, 1), "q_offset": 1},
    "offsets": {"is_causal": True, "q_offset": OFFSETS},
    "offset": {"is_causal": True, "q_offset": 1, "enable_gqa": True},
    "alibi": {"attn_mask": ALiBi(2 * H), "is_causal": True},
    "all": {
        "attn_mask": ALiBi(2 * H),
        "is_causal": True,
        "window": (2, 1),
        "q_offset": OFFSETS,
        "key_mask": HOLES,
        "softcap": 2.0,
        "enable_gqa": True,
    },
}

every_feature = pytest.mark.parametrize("name", FEATURES)


def operands(groups=1, dtype=torch.float64, requires_grad=False):
    """Query (B, 2*H, T, D), key and value (B, 2*H / groups, S, D)."""
    heads = 2 * H // groups
    shapes = (B, 2 * H, T, D), (B, heads, S, D), (B, heads, S, D)
    return [
        randn(*shape, seed=i, dtype=dtype, requires_grad=requires_grad)
        for i, shape in enumerate(shapes)
    ]


def case(name, **more):
    options = FEATURES[name]
    return operands(groups=2 if "enable_gqa" in options else 1, **more), options


class Fused:
    """Watches torch's own function: the shapes and options that it is called with."""

    def __init__(self, monkeypatch):
        self.calls, self.original = [], F.scaled_dot_product_attention
        monkeypatch.setattr(F, "scaled_dot_product_attention", self)

    def __call__(self, query, key, value, mask, dropout_p, is_causal, **options):
        shapes = tuple(query.shape), tuple(key.shape), None if mask is None else tuple(mask.shape)
        self.calls.append((*shapes, is_causal))
        return self.original(query, key, value, mask, dropout_p, is_causal, **options)


@pytest.fixture
def fused(monkeypatch):
    return Fused(monkeypatch)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(_sdpa, "MIN_ROWS", 2)
    monkeypatch.setattr(_sdpa, "CHUNK_ENTRIES", {"cpu": 10})


BIAS = torch.zeros(T, S)
CHOICES = {
    "flags": ({}, "sdpa", "by its own flags"),
    "causal": ({"is_causal": True}, "sdpa", "by its own flags"),
    "causal, said as a window": ({"window": (None, 0)}, "sdpa", "by its own flags"),
    "a window that binds nobody": ({"window": (S, S)}, "sdpa", "by its own flags"),
    "an offset without causality": ({"q_offset": 3}, "sdpa", "by its own flags"),
    "key_mask": ({"key_mask": HOLES}, "sdpa", "takes the mask, which is small"),
    "key_mask and causal": ({"key_mask": HOLES, "is_causal": True}, "sdpa", "flag, both"),
    "attn_mask": ({"attn_mask": BIAS > 0}, "sdpa", "attn_mask that was given"),
    "float attn_mask": ({"attn_mask": BIAS}, "reference", "rows of huge negative numbers"),
    "softcap": ({"softcap": 3.0}, "reference", "slow for so few scores"),
    "softcap and dropout": ({"softcap": 3.0, "dropout_p": 0.1}, "reference", "No fused kernel"),
    "dropout": ({"dropout_p": 0.1}, "sdpa", "though dropout makes them write all T x S"),
    "window": ({"window": (1, 1)}, "sdpa", "3 at a time"),
    "window and dropout": ({"window": (1, 1), "dropout_p": 0.1}, "sdpa", "3 at a time"),
    "offset": ({"is_causal": True, "q_offset": 1}, "sdpa", "3 at a time"),
    "alibi": ({"attn_mask": ALiBi(2 * H)}, "sdpa", "3 at a time"),
    "offsets": ({"is_causal": True, "q_offset": OFFSETS}, "sdpa", "3 at a time"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_explain(name):
    options, backend, words = CHOICES[name]
    choice = explain(*operands(), **options)
    assert choice.backend == backend and words in choice.reason
    assert choice.reason[-1] == "." and choice.reason[:-1].count(". ") == 0  # one sentence


def test_explain_looks_at_grad_mode_sizes_and_widths():
    q, k, v = operands()
    with torch.no_grad():
        assert explain(q, k, v, BIAS).backend == "sdpa"
    assert explain(q[:, :, :0], k, v) == (
        "reference",
        "An axis is empty, which fused kernels refuse.",
    )
    assert "D_v != D" in explain(q, k, v[..., :3]).reason
    with pytest.raises(ValueError, match="dropout_p"):
        explain(q, k, v, dropout_p=2.0)


def test_a_softcap_takes_flash_where_scores_are_many(monkeypatch):
    q, k, v = torch.zeros(3, 2, 4, 256, 8)
    assert 2 * 4 * 256 * 256 == attention_module.SMALL
    assert explain(q, k, v, softcap=3.0).backend == "flash"
    assert explain(q[:, :, 1:], k, v, softcap=3.0).backend == "reference"
    assert explain(q, k, v, softcap=3.0, dropout_p=0.1).backend == "reference"
    q, k, v = operands(requires_grad=True)
    expected = attention(q, k, v, softcap=3.0, backend="reference")
    monkeypatch.setattr(attention_module, "SMALL", 0)
    output = attention(q, k, v, softcap=3.0)
    assert "flash" in output.grad_fn.name() and "flash" not in expected.grad_fn.name()
    close(output, expected)


def test_auto_does_what_explain_says(fused):
    for options, backend, _ in CHOICES.values():
        fused.calls.clear()
        attention(*operands(), **options)
        assert bool(fused.calls) == (backend == "sdpa")


def test_flags_and_small_masks_reach_torch_without_a_mask_of_t_rows(fused):
    for name in ("flags", "causal", "key_mask", "key_mask and causal"):
        attention(*operands(), **CHOICES[name][0])
    masks = [(mask, flag) for *_, mask, flag in fused.calls]
    assert masks == [
        (None, False),
        (None, True),
        ((B, 1, 1, S), False),
        ((B, 1, 1, S), True),
    ]


def test_no_mask_beside_the_flag_where_torch_would_refuse_it():
    q, k, v = operands()
    options = {"key_mask": HOLES, "is_causal": True}
    expected = attention(q, k, v, **options, backend="reference")
    with sdpa_kernel(SDPBackend.MATH):
        close(attention(q, k, v, **options, backend="sdpa"), expected)


@pytest.mark.parametrize("answer", [RuntimeError, math.nan, 1.0, "gradient"])
def test_a_kernel_that_spoils_dead_rows_is_found_out(answer, monkeypatch):
    def kernel(*args, **options):
        if answer is RuntimeError:
            raise RuntimeError
        output = original(*args, **options)
        if answer == "gradient":
            output.register_hook(lambda grad: grad * math.nan)
            return output
        return output.masked_fill(torch.tensor([[True], [False]]), answer)

    original = F.scaled_dot_product_attention
    assert _sdpa._kernel_spares_dead_rows.__wrapped__()
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    assert not _sdpa._kernel_spares_dead_rows.__wrapped__()


def test_chunks_read_only_the_keys_they_see(fused, small_chunks):
    q, k, v = (randn(1, 1, 8, D, seed=seed) for seed in range(3))
    attention(q, k, v, window=(1, 0))
    shapes = [(query[2], key[2]) for query, key, *_ in fused.calls]
    assert shapes == [(2, 2), (2, 3), (2, 3), (2, 3)]
    fused.calls.clear()
    attention(q, k, v, is_causal=True, q_offset=-1)
    assert [key[2] for _, key, *_ in fused.calls] == [1, 3, 5, 7]


def test_one_query_of_each_group_goes_in_one_piece(fused):
    q, k, v = randn(B, 3 * H, 1, D), *operands(groups=2)[1:]
    generator = torch.Generator().manual_seed(0)
    for shape in (None, (3 * H, 1, S), (B, 1, 1, S)):
        mask = None if shape is None else torch.rand(shape, generator=generator) < 0.6
        got = attention(q, k, v, mask, enable_gqa=True)
        close(got, attention(q, k, v, mask, enable_gqa=True, backend="reference"))
    assert {(query, key) for query, key, *_ in fused.calls} == {((B, H, 3, D), (B, H, S, D))}


def test_a_step_needs_no_mask_where_the_offset_is_known(fused):
    q, k, v = operands()
    attention(q[:, :, :1], k, v, is_causal=True, q_offset=2, window=(1, 0))
    assert [(key[2], mask) for _, key, mask, _ in fused.calls] == [(2, None)]


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@every_feature
def test_chunks_and_recomputation_change_no_gradient(name, backend, small_chunks):
    if backend == "sdpa" and "softcap" in FEATURES[name]:
        pytest.skip("sdpa has no softcap; see test_refusals")
    grad, results = randn(B, 2 * H, T, D, seed=6), []
    for each in ("reference", backend):
        tensors, options = case(name, requires_grad=True)
        output, weights = attention(*tensors, **options, backend=each, return_weights=True)
        output.backward(grad)
        results.append([output, weights, *(x.grad for x in tensors)])
        with torch.no_grad():
            close(attention(*tensors, **options, backend=each), output)
    for mine, theirs in zip(*results, strict=True):
        close(mine, theirs)


def test_with_gradients_chunks_are_computed_again(fused, small_chunks):
    q, k, v = operands(requires_grad=True)
    output = attention(q, k, v, is_causal=True, q_offset=1)
    before = len(fused.calls)
    output.sum().backward()
    assert before == 2 and len(fused.calls) == 4
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (first,) = torch.autograd.grad(
            attention(q, k, v, is_causal=True, q_offset=1).sin().sum(), q, create_graph=True
        )
        first.sum().backward()


def test_chunks_with_dropout_are_not_computed_again(fused, small_chunks):
    q, k, v = operands(requires_grad=True)
    attention(q, k, v, is_causal=True, q_offset=1, dropout_p=1e-15).sum().backward()
    assert len(fused.calls) == 2  # another draw would be another dropout
    again = operands(requires_grad=True)
    attention(*again, is_causal=True, q_offset=1, backend="reference").sum().backward()
    for mine, theirs in zip((q, k, v), again, strict=True):
        close(mine.grad, theirs.grad)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@every_feature
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_compile_export_and_vmap(name, backend):
    tensors, options = case(name)
    expected = attention(*tensors, **options, backend="reference")

    class Wrapped(torch.nn.Module):
        def forward(self, q, k, v):
            return attention(q, k, v, **options, backend=backend)

    compiled = torch.compile(Wrapped(), backend="aot_eager", fullgraph=True)
    close(compiled(*tensors), expected)
    close(torch.export.export(Wrapped(), tuple(tensors)).module()(*tensors), expected)

    def one(q, k, v, more):
        return attention(q, k, v, **{**options, **more}, backend=backend)

    # what belongs to one example is mapped along with it
    own = {n: options[n] for n in ("q_offset", "key_mask") if torch.is_tensor(options.get(n))}
    close(torch.func.vmap(one)(*tensors, own), expected)


@every_feature
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_dtypes(name, dtype):
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    tensors, options = case(name, dtype=dtype)
    output, weights = attention(*tensors, **options, return_weights=True)
    assert output.dtype == weights.dtype == dtype
    wide = [x.double() for x in tensors]
    expected = attention(*wide, **options, return_weights=True, backend="reference")
    for mine, theirs in zip((output, weights), expected, strict=True):
        close(mine, theirs, tolerance)


@every_feature
def test_autocast_is_a_cast_of_the_operands(name):
    tensors, options = case(name, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = attention(*tensors, **options)
    assert torch.equal(got, attention(*(x.bfloat16() for x in tensors), **options))


@every_feature
def test_axes_before_the_heads(name):
    tensors, options = case(name)
    expected = attention(*tensors, **options)
    five = [x[None].expand(3, *x.shape) for x in tensors]
    close(attention(*five, **options), expected.expand(3, *expected.shape))
    options = {n: x[0] if n in ("q_offset", "key_mask") and torch.is_tensor(x) else x
               for n, x in options.items()}  # fmt: skip
    close(attention(*(x[0] for x in tensors), **options), expected[0])


def test_a_mask_or_an_offset_for_each_pair_of_leading_axes():
    q, k, v = (randn(3, B, 2 * H, n, D, seed=n) for n in (T, S, S))
    offset = torch.tensor([[0, 1], [2, 3], [-1, 9]])  # (3, B)
    key_mask = HOLES.expand(3, B, S) & (torch.arange(S) != offset[..., None])
    mask = torch.rand(3, B, 1, T, S, generator=torch.Generator().manual_seed(0)) < 0.8
    whole = attention(q, k, v, mask, is_causal=True, q_offset=offset, key_mask=key_mask)
    for i in range(3):
        part = {"q_offset": offset[i], "key_mask": key_mask[i]}
        close(whole[i], attention(q[i], k[i], v[i], mask[i], is_causal=True, **part))


Q, K, V = operands()
REFUSALS = {
    "softcap": (
        {"softcap": 1.0, "backend": "sdpa"},
        ValueError,
        "'sdpa' cannot do softcap; 'flash' can",
    ),
    "softcap and dropout": (
        {"softcap": 1.0, "dropout_p": 0.5, "backend": "sdpa"},
        ValueError,
        "'sdpa' cannot do softcap; 'reference' can",
    ),
    "softcap type": ({"softcap": "1"}, TypeError, "softcap must be None or a number, got str"),
    "softcap zero": ({"softcap": 0.0}, ValueError, "softcap must be finite and above 0, got 0.0"),
    "window type": (
        {"window": 3},
        TypeError,
        r"window must be None or a pair \(left, right\), got 3",
    ),
    "window floats": ({"window": (1.0, 0)}, TypeError, r"window must hold ints or None, got \(1.0"),
    "window below": ({"window": (-1, 0)}, ValueError, r"0 or more, or None, got \(-1, 0\)"),
    "gqa type": ({"enable_gqa": 1}, TypeError, "enable_gqa must be True or False, got 1"),
    "offset dtype": ({"q_offset": OFFSETS.float()}, TypeError, "tensor of ints, got torch.float32"),
    "offset bool": ({"q_offset": OFFSETS > 0}, TypeError, "tensor of ints, got torch.bool"),
    "offset shape": (
        {"q_offset": torch.zeros(3).long()},
        ValueError,
        r"q_offset cannot broadcast from \(3,\) to \(2,\)",
    ),
    "offset device": ({"q_offset": OFFSETS.to("meta")}, ValueError, "q_offset must be on cpu"),
    "alibi": ({"attn_mask": ALiBi(3)}, ValueError, "each of the H=4 heads, got an ALiBi of 3"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    options, error, words = REFUSALS[name]
    with pytest.raises(error, match=words):
        attention(Q, K, V, **options)


@pytest.mark.parametrize("heads", [(3, 3), (2, 4), (0, 0)])
def test_heads_that_make_no_groups(heads):
    k, v = (torch.zeros(B, n, S, D).double() for n in heads)
    with pytest.raises(ValueError, match="a divisor of the query's, got heads of query 4, key"):
        attention(Q, k, v, enable_gqa=True)
    if heads == (3, 3):
        with pytest.raises(ValueError, match="say enable_gqa=True"):
            attention(Q, k, v)


def test_rules_can_be_copied():
    bias = ALiBi(2 * H)
    close(attention(Q, K, V, copy.deepcopy(bias)), attention(Q, K, V, bias))


@pytest.mark.parametrize("major", [7, 8, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_on_a_gpu(major, dtype, monkeypatch):
    """By generation and dtype, on tensors that only say they are on a GPU."""
    about = SimpleNamespace(major=major, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(_op, "HAS_TRITON", True)
    new = dtype == torch.bfloat16 and major >= 8
    with FakeTensorMode():
        q, k, v = (torch.empty(B, 2, 64, 16, dtype=dtype, device="cuda") for _ in range(3))
        mask = torch.ones(B, 64, dtype=torch.bool, device="cuda")
        bias = torch.empty(2, 64, 64, dtype=dtype, device="cuda")
        expected = {
            "flags": ({"is_causal": True}, "sdpa"),
            "key_mask": ({"key_mask": mask}, "sdpa"),
            "window": ({"window": (9, 0)}, "flash" if new else "sdpa"),
            "both": ({"key_mask": mask, "is_causal": True}, "flash" if new else "sdpa"),
            "dropout": ({"window": (9, 0), "dropout_p": 0.1}, "sdpa"),
            "bias": ({"attn_mask": bias}, "flash" if new else "reference"),
            "softcap": ({"softcap": 3.0}, "flash" if major >= 8 else "reference"),
        }
        for name, (options, backend) in expected.items():
            assert explain(q, k, v, **options).backend == backend, name
        row = torch.empty(B, 2, 1, 16, dtype=dtype, device="cuda")
        step = explain(row, k, v, window=(9, 0), q_offset=40)
        assert step.backend == "sdpa"  # one row, one small mask
        monkeypatch.setattr(_op, "HAS_TRITON", False)
        assert explain(q, k, v, window=(9, 0)).backend == "sdpa"
        assert explain(q, k, v, softcap=3.0).backend == "reference"
