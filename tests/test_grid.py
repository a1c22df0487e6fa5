"""Every backend against the definition, on a grid of sizes, heads, masks, offsets and dtypes.

The cases are few, yet any two choices of any two factors meet in at least one of them. Some more
have nothing but what most calls have, for which there are short ways.
"""

import functools
import itertools
import random
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from support import close, oracle, randn, to_numpy

import mha
from mha import _sdpa, reference
from mha.flash import tiles
from mha.positions import ALiBi

FACTORS = {
    "sizes": [(3, 5), (7, 7), (1, 1), (1, 11), (5, 1), (13, 8), (8, 17), (2, 31), (11, 23)],
    "widths": [(4, 4), (1, 1), (3, 3), (8, 8), (5, 2), (4, 7), (16, 16)],  # (D, D_v)
    "heads": [(2, 2), (1, 1), (3, 1), (4, 2), (6, 3)],  # (H, H_kv)
    "lead": [(2,), (1,), (), (2, 3)],  # the axes before the heads
    "attn_mask": ["none", "bool", "bool, one a head", "keys", "float", "float, dead rows", "ALiBi"],
    "key_mask": ["none", "ragged", "nobody", "one for all"],
    "is_causal": [False, True],
    "window": [None, (0, 0), (2, 1), (1, None), (None, 2), (4, 0)],
    "q_offset": ["0", "3", "-2", "S - T", "each", "each, a step"],
    "softcap": [None, 0.8],
    "scale": [None, 0.3],
    "layout": ["plain", "heads last", "one key for all", "every other"],
    "dtype": [torch.float64, torch.float32, torch.bfloat16, torch.float16],
}
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.bfloat16: 0.01,
    torch.float16: 1.5e-3,
}
"""Largest error allowed, as a share of the largest number in the right result (or of 1)."""

ROUNDED = {**TOLERANCES, torch.bfloat16: 2**-9 + 2e-5, torch.float16: 2**-12 + 2e-5}
"""The same for weights, which half types round once, from float32: half a unit in the last place."""

BACKENDS = (
    *("reference", "sdpa", "sdpa in small chunks", "flash", "flash in small tiles", "auto"),
    "flex",
)


class Case(NamedTuple):
    """A value of each factor."""

    sizes: tuple
    widths: tuple
    heads: tuple
    lead: tuple
    attn_mask: str
    key_mask: str
    is_causal: bool
    window: tuple | None
    q_offset: str
    softcap: float | None
    scale: float | None
    layout: str
    dtype: torch.dtype

    def pairs(self):
        """Each two factors, with their values."""
        return set(itertools.combinations(enumerate(self), 2))


def covering():
    """Cases in which all pairs occur: of fifty at random, always take the one with most new pairs."""
    draw = random.Random(0)
    values = list(FACTORS.values())
    factors = itertools.combinations(enumerate(values), 2)
    left = {((i, x), (j, y)) for (i, xs), (j, ys) in factors for x in xs for y in ys}
    cases = []
    while left:
        wanted = dict(min(left, key=repr))  # else the last pairs would hardly ever be drawn
        drawn = [
            Case(*(wanted.get(i, draw.choice(xs)) for i, xs in enumerate(values)))
            for _ in range(50)
        ]
        cases.append(max(drawn, key=lambda case: len(case.pairs() & left)))
        left -= cases[-1].pairs()
    return cases


def common():
    """Causal or not, padded or not, a window or none, and nothing else."""
    rest = "0", None, None, "plain", torch.float64  # from q_offset on
    return [
        Case(sizes, (8, 8), heads, (2,), "none", key_mask, is_causal, window, *rest)
        for sizes in ((7, 7), (13, 8), (1, 11))
        for heads in ((2, 2), (4, 2))
        for key_mask in ("none", "nobody")
        for is_causal in (False, True)
        for window in (None, (2, None))
    ]


COVERING, COMMON = covering(), common()
CASES = [*COVERING, *COMMON]
RUNS = {  # torch's flex_attention is slow where it is not compiled: some cases only
    f"{number}-{backend}": (case, backend)
    for number, case in enumerate(CASES)
    for backend in (BACKENDS if number % 5 == 0 else BACKENDS[:-1])
}
EMPTY = [("sizes", (0, 5)), ("sizes", (5, 0)), ("sizes", (0, 0)), ("lead", (0,)), ("lead", (2, 0))]


class Call(NamedTuple):
    """Arguments of a case, and what the definition says of them."""

    operands: list
    options: dict
    upstream: torch.Tensor
    output: torch.Tensor
    weights: torch.Tensor
    gradients: list


def laid_out(x, layout):
    """The same numbers, in another order in memory."""
    if layout == "heads last":
        return x.transpose(-3, -2).contiguous().transpose(-3, -2)
    if layout == "every other":
        return x.repeat_interleave(2, dim=-2)[..., ::2, :]
    return x


def mask_of(case, draw):
    """The attn_mask, and what stands for it in the definition."""
    (length, size), heads = case.sizes, case.heads[0]
    coins = torch.rand(*case.lead, heads, length, size, generator=draw) < 0.7
    numbers = torch.randn(heads, length, size, generator=draw, dtype=torch.float64)
    numbers += 40.0 * torch.arange(length)[:, None]  # nothing, but to those who round it
    dtype = case.dtype if case.dtype == torch.float64 else torch.float32
    if case.attn_mask == "none":
        return None
    if case.attn_mask == "bool":
        return torch.rand(length, size, generator=draw) < 0.7
    if case.attn_mask == "bool, one a head":
        return coins
    if case.attn_mask == "keys":
        return torch.rand(size, generator=draw) < 0.7
    if case.attn_mask == "float, dead rows":
        numbers[:, ::3] = float("-inf")
    return ALiBi(heads) if case.attn_mask == "ALiBi" else numbers.to(dtype)


def key_mask_of(case, draw):
    """Which keys are real: of an example one at least, or none in the last one."""
    size = case.sizes[1]
    if case.key_mask == "none":
        return None
    if case.key_mask == "one for all":
        return torch.arange(size) != size // 2
    real = torch.rand(*case.lead, size, generator=draw) < 0.6
    real[..., :1] = True
    if case.key_mask == "nobody":
        real[-1:] = False
    return real


def offset_of(case):
    """Where the queries stand: one number for all, or a tensor that broadcasts to ``lead``."""
    length, size = case.sizes
    each = torch.arange(case.lead[-1]) if case.lead else torch.tensor(1)
    words = {"0": 0, "3": 3, "-2": -2, "S - T": size - length, "each": 2 * each - 1}
    return words.get(case.q_offset, size - length - each)


@functools.cache
def made(case):
    """Operands with NaN at excluded keys, options, and the right results."""
    draw = torch.Generator().manual_seed(7)
    (length, size), (width, value_width), (heads, kv_heads) = case.sizes, case.widths, case.heads
    few = kv_heads if case.layout != "one key for all" else 1
    shapes = (heads, length, width), (few, size, width), (few, size, value_width)
    q, k, v = (randn(*case.lead, *shape, seed=i) for i, shape in enumerate(shapes))
    if few != kv_heads:  # expanded: all heads at one place in memory
        k, v = (x.expand(*case.lead, kv_heads, *x.shape[-2:]) for x in (k, v))
    operands = [laid_out(x.to(case.dtype), case.layout) for x in (q, k, v)]
    options = {name: getattr(case, name) for name in ("is_causal", "window", "softcap", "scale")}
    options |= {"attn_mask": mask_of(case, draw), "key_mask": key_mask_of(case, draw)}
    options |= {"q_offset": offset_of(case), "enable_gqa": heads != kv_heads}
    if options["key_mask"] is not None:
        excluded = ~options["key_mask"][..., None, :, None]
        operands[1:] = [x.masked_fill(excluded, float("nan")) for x in operands[1:]]
    exact = options
    if case.attn_mask == "ALiBi":
        place = {"q_offset": options["q_offset"], "dtype": torch.float64}
        exact = options | {"attn_mask": options["attn_mask"].bias(length, size, **place)}
    output, weights = oracle(*operands, **exact, return_weights=True)
    upstream = randn(*output.shape, seed=5).to(case.dtype)
    arrays = (x.double().numpy() for x in (upstream, *operands))
    gradients = [
        torch.from_numpy(x) for x in reference.attention_backward(*arrays, **to_numpy(exact))
    ]
    return Call(operands, options, upstream, output, weights, gradients)


def run(case, backend, operands, **more):
    """The package's function, by the name of a backend."""
    backend = backend.split()[0]
    return mha.scaled_dot_product_attention(
        *operands, **made(case).options, **more, backend=backend
    )


def near(actual, expected, dtype, name):
    """Within the tolerance of a dtype, relative to the largest number."""
    largest = max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
    close(actual, expected, TOLERANCES[dtype] * largest, name)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of two or three queries; returns a list that gets each chunk's number of queries."""
    monkeypatch.setattr(_sdpa, "CHUNK_ROWS", 3)
    monkeypatch.setattr(_sdpa, "CHUNK_ENTRIES", {"cpu": 60})
    monkeypatch.setattr(_sdpa, "MIN_ROWS", 2)
    chunks, masked = [], _sdpa._chunk
    monkeypatch.setattr(_sdpa, "_chunk", lambda q, *a: chunks.append(q.shape[-2]) or masked(q, *a))
    return chunks


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of two keys, for blocks of three queries."""
    for run in (tiles.forward, tiles.backward):
        monkeypatch.setattr(run.__wrapped__, "__kwdefaults__", {"block_q": 3, "block_k": 2})


def prepared(case, backend, request):
    """The case, as far as the backend can do it: sdpa says that it knows no softcap."""
    if "small" in backend:
        request.getfixturevalue("small_" + backend.split()[-1])
    if backend.startswith("sdpa") and case.softcap is not None:
        with pytest.raises(ValueError, match="softcap; 'flash' can"):
            run(case, backend, made(case).operands)
        return case._replace(softcap=None)
    return case


def test_any_two_choices_meet():
    met = set().union(*(case.pairs() for case in COVERING))
    for (i, xs), (j, ys) in itertools.combinations(enumerate(FACTORS.values()), 2):
        assert all(((i, x), (j, y)) in met for x in xs for y in ys)
    assert list(FACTORS) == list(Case._fields) and 60 <= len(COVERING) <= 150


@pytest.mark.parametrize(("case", "backend"), RUNS.values(), ids=RUNS)
def test_forward(case, backend, request):
    case = prepared(case, backend, request)
    call = made(case)
    with torch.no_grad():  # a float mask leaves the short ways where gradients are on
        output, weights = run(case, backend, call.operands, return_weights=True)
        alone = run(case, backend, call.operands)
    assert output.dtype == weights.dtype == case.dtype
    near(output, call.output, case.dtype, f"output, {case}")
    close(weights, call.weights, ROUNDED[case.dtype], f"weights, {case}")
    dead = (call.weights == 0).all(-1)  # (..., H, T)
    assert (output[dead] == 0).all() and (weights[dead] == 0).all(), case
    assert torch.equal(alone, output), case


@pytest.mark.parametrize("backend", BACKENDS[:-1])
@pytest.mark.parametrize("case", CASES, ids=map(str, range(len(CASES))))
def test_gradients(case, backend, request):
    case = prepared(case, backend, request)
    call = made(case)
    inputs = [x.detach().requires_grad_(True) for x in call.operands]
    output = run(case, backend, inputs)
    near(output, call.output, case.dtype, f"output, {case}")
    gradients = torch.autograd.grad(output, inputs, call.upstream)
    for name, mine, theirs in zip("qkv", gradients, call.gradients, strict=True):
        near(mine, theirs, case.dtype, f"gradient of {name}, {case}")


def test_flex_refuses_gradients_on_the_cpu():
    operands = [randn(1, 1, 3, 4, requires_grad=True) for _ in range(3)]
    with pytest.raises(ValueError, match="gradients on the CPU; 'reference' can"):
        mha.scaled_dot_product_attention(*operands, backend="flex")


@pytest.mark.parametrize("empty", EMPTY, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_axes(backend, empty, request):
    for case in COVERING[::3]:
        case = prepared(case._replace(**dict([empty])), backend, request)
        call = made(case)
        grad = backend != "flex"
        inputs = [x.detach().requires_grad_(grad) for x in call.operands]
        output, weights = run(case, backend, inputs, return_weights=True)
        close(output, call.output, 0, case)
        close(weights, call.weights, 0, case)
        if grad:
            gradients = torch.autograd.grad(output, inputs, call.upstream)
            for mine, theirs in zip(gradients, call.gradients, strict=True):
                close(mine, theirs, 0, case)


def test_the_grid_goes_every_way(small_chunks, monkeypatch):
    ways, way = Counter(), _sdpa._way
    monkeypatch.setattr(_sdpa, "_way", lambda *a: ways.update([way(*a)[0]]) or way(*a))
    cut = 0
    for case in CASES:
        case = case._replace(softcap=None)
        small_chunks.clear()
        with torch.no_grad():
            run(case, "sdpa", made(case).operands)
        cut += len(small_chunks) > 1
        assert max(small_chunks, default=0) <= 4, case  # a band takes 2 * MIN_ROWS or more
    assert cut >= 20
    assert set(ways) == {"flag", "mask", "mask and flag", "chunks"} and min(ways.values()) >= 4


@pytest.mark.parametrize("backend", ("reference", "sdpa", "sdpa in small chunks"))
@pytest.mark.parametrize("name", ("float", "float, dead rows"))
def test_gradient_of_a_float_mask(backend, name, request):
    if "chunks" in backend:
        request.getfixturevalue("small_chunks")
    case = CASES[0]._replace(
        **dict(sizes=(7, 9), heads=(4, 2), lead=(2,), window=(3, 2), dtype=torch.float64),
        **dict(attn_mask=name, q_offset="each", softcap=None, scale=None, layout="plain"),
    )
    call = made(case)
    mask = call.options["attn_mask"].clone().requires_grad_(True)
    options = call.options | {"attn_mask": mask}
    output = mha.scaled_dot_product_attention(*call.operands, **options, backend=backend.split()[0])
    value = call.operands[2].nan_to_num().repeat_interleave(2, dim=1)
    upstream = (call.upstream @ value.mT).numpy()  # of the weights, (B, H, T, S)
    expected = reference.softmax_backward(call.weights.numpy(), upstream).sum(0)  # (H, T, S)
    close(torch.autograd.grad(output, mask, call.upstream)[0], torch.from_numpy(expected))


@pytest.mark.parametrize("length", (1023, 1024, 1025, 2049))
@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True, "q_offset": 5},
        {"window": (20, 3)},
        {"window": (None, 7), "q_offset": torch.tensor([9, -4])},
        {"attn_mask": ALiBi(1), "is_causal": True},
    ],
    ids=["causal, offset", "window", "window, offsets", "ALiBi"],
)
def test_at_the_edges_of_real_chunks(length, options):
    q, k, v = (randn(2, 1, n, 2, seed=n) for n in (length, length + 30, length + 30))
    exact = dict(options)
    if "attn_mask" in options:
        exact["attn_mask"] = options["attn_mask"].bias(length, length + 30, dtype=torch.float64)
    output = mha.scaled_dot_product_attention(q, k, v, **options, backend="sdpa")
    close(output, oracle(q, k, v, **exact), 1e-11)
