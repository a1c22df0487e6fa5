"""On CUDA: every backend, dtype and head width against the definition; cache, compiler, memory.

What a test does stands in a function of its device, and runs on the CPU too, on a few small cases.
"""

import numpy as np
import pytest
import torch
from support import close, oracle, randn, to_numpy

import mha
from mha import reference

# torch's own, when its compiler is first imported
pytestmark = pytest.mark.filterwarnings("ignore:.*script_method.* is deprecated:DeprecationWarning")

BACKENDS = ("reference", "sdpa", "flash", "flex", "auto")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (8, 16, 32, 64, 80, 128, 256)
UNEVEN_WIDTHS = ((24, 24), (40, 40), (96, 96), (160, 160), (16, 256), (80, 24), (256, 40))
"""(D, D_v): what tiles of a power of two do not fit, and heads whose values are wider or narrower."""
UNEVEN_SIZES = ((127, 129), (129, 127), (33, 511), (257, 65), (64, 63))
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest error of an output, as a share of the largest number in it; of a gradient, thrice that.

On a GPU float32 products are those of torch's default, torch.set_float32_matmul_precision("highest").
"""

B, H, H_KV, T, S = 2, 4, 2, 150, 200  # more than one block, and no multiple of any


def cases(length=T, size=S):
    """Name -> arguments, on any device."""
    ragged = torch.arange(size)[None] < torch.tensor([[size - 7], [size]])  # (B, S)
    nobody = torch.arange(size)[None] < torch.tensor([[size - 7], [0]])
    bias = randn(H, length, size, seed=5, dtype=torch.float32)
    bias[:, 1] = float("-inf")
    bias[:, 2] = torch.finfo(torch.float32).min
    each = torch.tensor([size - length, -3])
    return {
        "none": {},
        "causal": {"is_causal": True},
        "causal, q_offset": {"is_causal": True, "q_offset": size - length},
        "window": {"window": (20, 3), "q_offset": 5},
        "key_mask": {"key_mask": ragged},
        "key_mask, an example without keys": {"key_mask": nobody, "is_causal": True},
        "bool": {"attn_mask": randn(length, size, seed=4) > 0},
        "float": {"attn_mask": bias, "is_causal": True, "q_offset": 1},
        "ALiBi": {"attn_mask": mha.positions.ALiBi(H), "is_causal": True, "q_offset": each},
        "softcap": {"softcap": 0.8, "window": (None, 4)},
        "all": {"key_mask": ragged, "window": (30, 2), "q_offset": each, "softcap": 1.5},
    }


def moved(options, device):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def operands(dtype, width, key_heads=H_KV, length=T, size=S):
    """Query, key and value on the CPU, rounded to a dtype; width is D, or D and D_v."""
    width, value_width = width if isinstance(width, tuple) else (width, width)
    shapes = (B, H, length, width), (B, key_heads, size, width), (B, key_heads, size, value_width)
    return [randn(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]


def definition(inputs, upstream, options):
    """Output and gradients, in float64."""
    options = options | {"enable_gqa": True}
    if isinstance(options.get("attn_mask"), mha.positions.ALiBi):
        sizes = inputs[0].shape[-2], inputs[1].shape[-2]
        place = {"q_offset": options.get("q_offset", 0), "dtype": torch.float64}
        options["attn_mask"] = options["attn_mask"].bias(*sizes, **place)
    arrays = (x.double().numpy() for x in (upstream, *inputs))
    gradients = reference.attention_backward(*arrays, **to_numpy(options))
    return oracle(*inputs, **options), [torch.from_numpy(np.asarray(x)) for x in gradients]


def near(actual, expected, tolerance, name):
    largest = max(1.0, expected.abs().max().item())
    close(actual.detach().cpu(), expected, tolerance * largest, name)


def equals_the_definition(device, backend, dtype, width, key_heads=H_KV, length=T, size=S):
    """Forward and gradients of all cases; on the CPU flex runs forward only."""
    backward = not (backend == "flex" and device == "cpu")
    for name, options in cases(length, size).items():
        if backend == "sdpa" and "softcap" in options:
            continue
        name = f"{name}, {backend}, {dtype}, D={width}, H_kv={key_heads}, {device}"
        inputs = operands(dtype, width, key_heads, length, size)
        upstream = randn(B, H, length, inputs[2].shape[-1], seed=6).to(dtype)
        expected, gradients = definition(inputs, upstream, options)
        leaves = [x.to(device).requires_grad_(backward) for x in inputs]
        output, weights = mha.scaled_dot_product_attention(
            *leaves, **moved(options, device), enable_gqa=True, return_weights=True, backend=backend
        )
        assert output.dtype == weights.dtype == dtype and output.device.type == device
        near(output, expected, TOLERANCES[dtype], name)
        assert (output.detach().cpu()[expected == 0] == 0).all(), name
        if not backward:
            continue
        got = torch.autograd.grad(output, leaves, upstream.to(device))
        for letter, mine, theirs in zip("qkv", got, gradients, strict=True):
            near(mine, theirs, 3 * TOLERANCES[dtype], f"gradient of {letter}, {name}")


def decodes_with_a_cache(device, dtype, backend):
    """A prompt padded on the right, then tokens one by one: as in one pass without a cache."""
    tolerance = 5 * TOLERANCES[dtype]
    torch.manual_seed(0)
    make = {"num_kv_heads": 2, "is_causal": True, "rope": mha.positions.Rotary(), "window": (9, 0)}
    module = mha.MultiHeadAttention(64, 4, **make, backend=backend).to(device, dtype).eval()
    x = randn(2, 17, 64, seed=1).to(device, dtype)
    lengths = torch.tensor([12, 7], device=device)
    with torch.no_grad():
        cache = mha.KVCache.for_module(module, 2, 17)
        real = torch.arange(12, device=device) < lengths[:, None]
        prompt = module(x[:, :12], key_mask=real, cache=cache)
        steps = [module(x[:, 12 + i : 13 + i], cache=cache) for i in range(5)]
        for row, length in enumerate(lengths.tolist()):
            line = torch.cat([x[row, :length], x[row, 12:]])[None]
            whole = module(line)[0]
            mine = torch.cat([prompt[row, :length], *(step[row] for step in steps)])
            close(mine.cpu(), whole.cpu(), tolerance, f"row {row}, {backend}, {dtype}")


def ignores_padding(device, dtype, backend):
    """NaN and inf at keys that key_mask excludes: as if zeros stood there."""
    backward = not (backend == "flex" and device == "cpu")
    options = moved({name: cases()["all"][name] for name in ("key_mask", "window")}, device)
    padding = ~options["key_mask"][:, None, :, None]  # (B, 1, S, 1)
    results = []
    for filling in (0.0, float("nan"), float("inf")):
        query, *others = (x.to(device) for x in operands(dtype, 32))
        leaves = [query, *(x.masked_fill(padding, filling) for x in others)]
        leaves = [x.requires_grad_(backward) for x in leaves]
        output = mha.scaled_dot_product_attention(
            *leaves, **options, enable_gqa=True, backend=backend
        )
        gradients = torch.autograd.grad(output.sum(), leaves) if backward else ()
        results.append((output.detach(), *gradients))
    for other in results[1:]:
        for mine, theirs in zip(other, results[0], strict=True):
            assert mine.isfinite().all() and torch.equal(mine, theirs), (backend, dtype)


def repeats_to_the_bit(device, dtype, length, size):
    """Flash, twice: the same output and the same gradients, bit by bit, in all cases."""
    for name, options in cases(length, size).items():
        inputs = [x.to(device) for x in operands(dtype, 64, H_KV, length, size)]
        upstream = randn(B, H, length, 64, seed=6).to(device, dtype)
        runs = []
        for _ in range(2):
            leaves = [x.clone().requires_grad_() for x in inputs]
            output = mha.scaled_dot_product_attention(
                *leaves, **moved(options, device), enable_gqa=True, backend="flash"
            )
            runs.append((output, *torch.autograd.grad(output, leaves, upstream)))
        assert all(torch.equal(*pair) for pair in zip(*runs, strict=True)), name


def refuses(device):
    """What flash cannot do is a ValueError that names it, and a backend that can."""
    inputs = [x.to(device) for x in operands(torch.float32, 16)]
    bias = torch.zeros(T, S, device=device, requires_grad=True)
    wrong = {"dropout": {"dropout_p": 0.1}, "a gradient to attn_mask": {"attn_mask": bias}}
    for feature, options in wrong.items():
        with pytest.raises(ValueError, match=f"'flash' cannot do {feature}; 'reference' can"):
            mha.scaled_dot_product_attention(*inputs, **options, enable_gqa=True, backend="flash")
    with torch.no_grad():  # no gradients, nothing to refuse
        mha.scaled_dot_product_attention(*inputs, bias, enable_gqa=True, backend="flash")


def reads_far_apart(device, dtype, size, stride):
    """Keys and values whose rows stand `stride` numbers apart: against the same side by side."""
    far = torch.empty(size, stride, device=device, dtype=dtype)
    far[:, :64] = randn(size, 64, seed=1).to(device, dtype)
    key, value = far[None, None, :, :32], far[None, None, :, 32:64]
    query = randn(1, 2, 100, 32, seed=2).to(device, dtype)
    results = []
    for pair in ((key, value), (key.contiguous(), value.contiguous())):
        leaves = [x.detach().requires_grad_() for x in (query, *pair)]
        options = {"is_causal": True, "q_offset": size - 100, "enable_gqa": True}
        output = mha.scaled_dot_product_attention(*leaves, **options, backend="flash")
        results.append((output, *torch.autograd.grad(output.sum(), leaves)))
    assert key.stride()[2] == stride
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    expected = mha.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), **options
    )
    near(results[0][0], expected.detach().cpu(), TOLERANCES[dtype], "far apart")


def compiles_whole(device, compiler):
    """Function and module with flash, in one graph, forward and backward."""
    leaves = [x.to(device).requires_grad_() for x in operands(torch.float32, 32)]

    def function(query, key, value, key_mask):
        options = {"is_causal": True, "q_offset": S - T, "softcap": 2.0, "enable_gqa": True}
        return mha.scaled_dot_product_attention(
            query, key, value, key_mask=key_mask, **options, backend="flash"
        )

    torch.manual_seed(0)
    make = {"num_kv_heads": 2, "is_causal": True, "window": (9, 0), "backend": "flash"}
    module = mha.MultiHeadAttention(64, 4, **make).to(device)
    x = randn(2, 50, 64, seed=1, dtype=torch.float32).to(device).requires_grad_()
    key_mask = cases()["key_mask"]["key_mask"].to(device)
    for called, given, wanted in (
        (function, (*leaves, key_mask), leaves),
        (module, (x,), [x, *module.parameters()]),
    ):
        whole = torch.compile(called, backend=compiler, fullgraph=True)
        results = []
        for call in (whole, called):
            output = call(*given)
            results.append((output, *torch.autograd.grad(output.square().sum(), wanted)))
        for mine, theirs in zip(*results, strict=True):
            close(mine.detach(), theirs.detach(), 1e-4, f"{compiler}, {device}")


def compiles(device, backend, compiler):
    """The function under torch.compile, forward and (where it has one) backward."""
    backward = not (backend == "flex" and device == "cpu")
    function = torch.compile(mha.scaled_dot_product_attention, backend=compiler)
    for name in ("causal, q_offset", "key_mask", "float", "all"):
        torch._dynamo.reset()  # or it would give up after eight
        options = moved(cases()[name], device)
        if backend == "sdpa" and "softcap" in options:
            continue
        leaves = [x.to(device).requires_grad_(backward) for x in operands(torch.float32, 32)]
        results = []
        for call in (function, mha.scaled_dot_product_attention):
            output = call(*leaves, **options, enable_gqa=True, backend=backend)
            gradients = torch.autograd.grad(output.sum(), leaves) if backward else ()
            results.append((output, *gradients))
        for mine, theirs in zip(*results, strict=True):
            close(mine.detach(), theirs.detach(), 1e-4, f"{name}, {backend}, {device}")


def explains(device):
    """What auto takes, and that it gives what the one named gives."""
    inputs = [x.to(device) for x in operands(torch.float32, 32)]
    for name, options in cases().items():
        options = moved(options, device) | {"enable_gqa": True}
        backend, reason = mha.explain(*inputs, **options)
        assert backend in BACKENDS[:-1] and reason.endswith("."), name
        auto, named = (
            mha.scaled_dot_product_attention(*inputs, **options, backend=x)
            for x in ("auto", backend)
        )
        assert torch.equal(auto, named), name


def peak(call):
    """MiB that a call takes beyond what was there before it."""
    call()  # compile, and let libraries take their buffers
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


@pytest.mark.gpu
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_dtypes_and_widths_on_cuda(backend, dtype, width):
    equals_the_definition("cuda", backend, dtype, width)


@pytest.mark.gpu
@pytest.mark.parametrize("width", UNEVEN_WIDTHS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_flash_with_uneven_widths_on_cuda(dtype, width):
    equals_the_definition("cuda", "flash", dtype, width)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", UNEVEN_SIZES, ids=str)
def test_flash_with_uneven_lengths_on_cuda(sizes, dtype, width):
    equals_the_definition("cuda", "flash", dtype, width, H_KV, *sizes)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_never_read_on_cuda(backend, dtype):
    ignores_padding("cuda", dtype, backend)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_flash_repeats_to_the_bit_on_cuda(dtype):
    repeats_to_the_bit("cuda", dtype, 1500, 1700)


@pytest.mark.gpu
def test_flash_says_what_it_refuses_on_cuda():
    refuses("cuda")
    wide = [x.cuda() for x in operands(torch.float32, 264)]
    with pytest.raises(ValueError, match="'flash' cannot do heads wider than 256"):
        mha.scaled_dot_product_attention(*wide, enable_gqa=True, backend="flash")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_flash_reads_beyond_two_to_the_31_on_cuda(dtype):
    size, stride = 65_536, 33_000  # 2.16e9 numbers, 4 GiB of half type
    needed = 2 * size * stride * dtype.itemsize
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of memory")
    reads_far_apart("cuda", dtype, size, stride)


@pytest.mark.gpu
@pytest.mark.slow
def test_flash_compiles_whole_on_cuda():
    compiles_whole("cuda", "inductor")


@pytest.mark.gpu
@pytest.mark.parametrize("key_heads", [1, 4])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 300), (256, 256), (300, 5)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_and_groups_on_cuda(backend, sizes, key_heads):
    if min(sizes) < 10:  # the cases need a few queries and keys
        small_sizes("cuda", backend, key_heads, *sizes)
    else:
        equals_the_definition("cuda", backend, torch.float32, 32, key_heads, *sizes)


def small_sizes(device, backend, key_heads, length, size):
    """One query or few keys: with and without a causal rule, forward."""
    inputs = operands(torch.float32, 32, key_heads, length, size)
    for offset in (0, size - length, torch.tensor([size - 1, -1])):
        options = {"is_causal": True, "q_offset": offset}
        output = mha.scaled_dot_product_attention(
            *(x.to(device) for x in inputs),
            **moved(options, device),
            enable_gqa=True,
            backend=backend,
        )
        expected = oracle(*inputs, **options, enable_gqa=True)
        near(output, expected, TOLERANCES[torch.float32], f"{backend} {length} {size} {offset}")


@pytest.mark.gpu
def test_float64_on_cuda():
    inputs = [x.cuda() for x in operands(torch.float64, 32)]
    for backend in ("reference", "sdpa", "auto"):
        output = mha.scaled_dot_product_attention(*inputs, enable_gqa=True, backend=backend)
        near(output, oracle(*operands(torch.float64, 32), enable_gqa=True), 1e-12, backend)
    for backend in ("flash", "flex"):
        with pytest.raises(ValueError, match=f"'{backend}' cannot do float64 .*'reference' can"):
            mha.scaled_dot_product_attention(*inputs, enable_gqa=True, backend=backend)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_decoding_with_a_cache_on_cuda(backend, dtype):
    decodes_with_a_cache("cuda", dtype, backend)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_inductor_on_cuda(backend):
    compiles("cuda", backend, "inductor")


@pytest.mark.gpu
def test_explain_on_cuda():
    explains("cuda")


MEMORY = {
    "none": {},
    "causal": {"is_causal": True},
    "causal, q_offset": {"is_causal": True, "q_offset": 100},
    "window": {"window": (256, 0)},
    "ALiBi": {"attn_mask": mha.positions.ALiBi(H), "is_causal": True},
    "softcap": {"softcap": 1.5, "window": (256, 0)},
}


@pytest.mark.gpu
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("backend", ["sdpa", "flash", "flex", "auto"])
@pytest.mark.parametrize("name", MEMORY)
def test_memory_grows_no_faster_than_the_sequence_on_cuda(name, backend, backward):
    if backend == "sdpa" and "softcap" in MEMORY[name]:
        return

    def measured(length):
        inputs = [
            torch.randn(1, H, length, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)
        ]
        inputs = [x.requires_grad_(backward) for x in inputs]

        def call():
            output = mha.scaled_dot_product_attention(*inputs, **MEMORY[name], backend=backend)
            if backward:
                torch.autograd.grad(output.sum(), inputs)

        return peak(call)

    short, long = measured(8192), measured(32768)
    scores = H * 32768**2 * 2 / 2**20  # MiB of them, in bfloat16
    assert long < scores / 8, (short, long)
    if backend in ("flash", "flex"):  # sdpa's chunks of masks have a size of their own
        assert long < 6 * short, (short, long)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bodies_run_on_the_cpu(backend):
    for dtype in DTYPES:
        equals_the_definition("cpu", backend, dtype, 8, H_KV, 12, 20)
    small_sizes("cpu", backend, 1, 1, 7)
    ignores_padding("cpu", torch.float32, backend)
    decodes_with_a_cache("cpu", torch.float32, backend)


def test_the_other_bodies_run_on_the_cpu():
    explains("cpu")
    for backend in BACKENDS:
        compiles("cpu", backend, "aot_eager")


def test_the_bodies_of_flash_run_on_the_cpu():
    for width in ((24, 24), (16, 40), (40, 16)):
        equals_the_definition("cpu", "flash", torch.float32, width, H_KV, 13, 21)
    for sizes in UNEVEN_SIZES[-2:]:
        equals_the_definition("cpu", "flash", torch.float32, 16, H_KV, *sizes)
    repeats_to_the_bit("cpu", torch.float32, 33, 65)
    refuses("cpu")
    reads_far_apart("cpu", torch.float32, 300, 700)
    compiles_whole("cpu", "aot_eager")
