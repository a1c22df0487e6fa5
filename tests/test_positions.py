"""mha.positions: numbers worked out by hand, the properties the paper names, and the refusals."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from support import close, randn

from mha.positions import ALiBi, Rotary, sinusoidal


def test_hand_computed_numbers():
    # dim 4, base 100: the pairs turn by 1 and by 1/10 radian a position.
    expected = [
        [0.0, 1.0, 0.0, 1.0],
        [0.8414709848, 0.5403023059, 0.0998334166, 0.9950041653],
        [0.9092974268, -0.4161468365, 0.1986693308, 0.9800665778],
    ]
    got = sinusoidal(3, 4, base=100.0, dtype=torch.float64)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_default_base_is_the_papers():
    got = sinusoidal(8, 6, dtype=torch.float64)
    assert got[7, 4].item() == pytest.approx(math.sin(7 / 10000 ** (4 / 6)), abs=1e-12)
    assert got[7, 5].item() == pytest.approx(math.cos(7 / 10000 ** (4 / 6)), abs=1e-12)


def test_a_shift_is_the_same_rotation_everywhere():
    encoding = sinusoidal(50, 8, dtype=torch.float64)
    dots = encoding @ encoding.T  # (50, 50): depends on the distance only
    torch.testing.assert_close(dots[:40, :40], dots[10:, 10:])
    torch.testing.assert_close(dots.diagonal(), torch.full((50,), 4.0, dtype=torch.float64))


def test_far_positions_are_rounded_once():
    exact = sinusoidal(100_000, 2, dtype=torch.float64)
    assert exact[99_999, 0].item() == pytest.approx(math.sin(99_999), abs=1e-9)
    assert (sinusoidal(100_000, 2).double() - exact).abs().max() < 1e-7
    half = sinusoidal(100_000, 2, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and (half.double() - exact).abs().max() < 4e-3


def test_no_positions():
    assert sinusoidal(0, 4).shape == (0, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"length": 3, "dim": 5}, ValueError, "dim must be even.*got 5"),
        ({"length": 3, "dim": 0}, ValueError, "dim must be even.*got 0"),
        ({"length": -1, "dim": 4}, ValueError, "length must not be negative, got -1"),
        ({"length": 3, "dim": 4, "base": 0.0}, ValueError, "above 0 and finite, got 0.0"),
        ({"length": 3, "dim": 4, "base": math.inf}, ValueError, "above 0 and finite, got inf"),
        (
            {"length": 3, "dim": 4, "dtype": torch.int64},
            TypeError,
            "floating type, got torch.int64",
        ),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        sinusoidal(**arguments)


def by_complex_numbers(x, positions, width, base=10000.0, interleaved=False):
    """The oracle: a pair of features is a complex number, a turn is a product. x is (..., T, D)."""
    x, n = x.double().numpy(), width // 2
    first = np.arange(0, width, 2) if interleaved else np.arange(n)
    second = first + (1 if interleaved else n)
    turn = np.exp(1j * positions.numpy()[..., None] * base ** (-np.arange(n) / n))  # (T, n)
    z = (x[..., first] + 1j * x[..., second]) * turn
    out = x.copy()
    out[..., first], out[..., second] = z.real, z.imag
    return torch.from_numpy(out)


STYLES = [
    pytest.param(Rotary(), 8, id="half-split"),
    pytest.param(Rotary(interleaved=True), 8, id="interleaved"),
    pytest.param(Rotary(4, base=500.0), 7, id="partial half-split"),
    pytest.param(Rotary(6, interleaved=True), 8, id="partial interleaved"),
]


@pytest.mark.parametrize(("rotary", "width"), STYLES)
@pytest.mark.parametrize("shape", [(2, 3, 5), (5,), (3, 5), (2, 2, 3, 5)], ids=str)
def test_rotary_is_a_product_of_complex_numbers(rotary, width, shape):
    x, positions = randn(*shape, width), torch.tensor([0, 1, 7, -3, 40])
    options = {"base": rotary.base, "interleaved": rotary.interleaved}
    expected = by_complex_numbers(x, positions, rotary.dim or width, **options)
    close(rotary(x, positions), expected)
    close(rotary(x, positions.int()), expected)


@pytest.mark.parametrize(("rotary", "width"), STYLES)
def test_rotary_with_positions_of_each_example(rotary, width):
    x, positions = randn(2, 3, 5, width), torch.tensor([[0, 1, 2, 3, 4], [9, 8, 2, 0, -1]])
    expected = torch.stack([rotary(x[b], positions[b]) for b in range(2)])
    close(rotary(x, positions), expected)
    close(rotary(x[:, 0], positions), expected[:, 0])
    close(rotary(x, positions[:1]), rotary(x, positions[0]))
    close(torch.func.vmap(rotary)(x, positions), expected)


def test_rotary_by_hand():
    # D 4, base 100: the pairs turn by 1 and by 1/10 radian a position.
    x, two = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64), torch.tensor([2])
    c, s, c_slow, s_slow = math.cos(2), math.sin(2), math.cos(0.2), math.sin(0.2)
    half = [[1 * c - 3 * s, 2 * c_slow - 4 * s_slow, 3 * c + 1 * s, 4 * c_slow + 2 * s_slow]]
    close(Rotary(base=100.0)(x, two), torch.tensor(half, dtype=torch.float64))
    pairs = [[1 * c - 2 * s, 2 * c + 1 * s, 3 * c_slow - 4 * s_slow, 4 * c_slow + 3 * s_slow]]
    close(Rotary(base=100.0, interleaved=True)(x, two), torch.tensor(pairs, dtype=torch.float64))


def test_rotary_as_llama_writes_it():
    # x * cos + rotate_half(x) * sin, both tables holding the angles twice, one after the other
    x, positions = randn(2, 3, 5, 8), torch.tensor([3, 4, 5, 6, 7])
    frequency = 1.0 / 10000 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    angle = torch.outer(positions.double(), frequency).repeat(1, 2)
    rotated_half = torch.cat((-x[..., 4:], x[..., :4]), dim=-1)
    close(Rotary()(x, positions), x * angle.cos() + rotated_half * angle.sin())


def test_rotary_as_gpt_j_writes_it():
    # x * cos + rotate_every_two(x) * sin, each angle twice in a row, on the first rotary_dim only
    x, positions = randn(2, 3, 5, 10), torch.tensor([3, 4, 5, 6, 7])
    frequency = 1.0 / 10000 ** (torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    angle = torch.outer(positions.double(), frequency).repeat_interleave(2, dim=-1)
    head, rest = x[..., :6], x[..., 6:]
    every_two = torch.stack((-head[..., 1::2], head[..., ::2]), dim=-1).flatten(-2)
    expected = torch.cat((head * angle.cos() + every_two * angle.sin(), rest), dim=-1)
    close(Rotary(6, interleaved=True)(x, positions), expected)


@pytest.mark.parametrize(("rotary", "width"), STYLES)
def test_rotary_scores_know_the_distance_only(rotary, width):
    query, key = randn(1, width), randn(1, width, seed=1)
    turned_q = rotary(query.expand(60, -1), torch.arange(60))
    turned_k = rotary(key.expand(60, -1), torch.arange(60))
    scores = turned_q @ turned_k.T  # (60, 60)
    close(scores[:-7, :-7], scores[7:, 7:])
    assert (scores[0, 1:] - scores[0, :-1]).abs().min() > 1e-6  # and the distance does matter
    assert (scores[0, 1:] - scores[1:, 0]).abs().min() > 1e-6  # its sign too


@pytest.mark.parametrize(("rotary", "width"), STYLES)
def test_rotary_keeps_the_norm_and_turns_back(rotary, width):
    x, positions = randn(2, 3, 5, width), torch.tensor([0, 5, 1000, -2, 123_456])
    turned = rotary(x, positions)
    close(turned.norm(dim=-1), x.norm(dim=-1))
    close(rotary(turned, -positions), x)
    close(turned[:, :, 0], x[:, :, 0])  # position 0 turns nothing
    assert (turned - x).abs()[:, :, 1:].amax(-1).min() > 0.1


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
@pytest.mark.parametrize("start", [0, 4000, 131_072, 10_000_000])
def test_rotary_is_precise_far_away(dtype, atol, start):
    x, positions = randn(2, 3, 5, 8, dtype=dtype), start + torch.arange(5)
    got = Rotary()(x, positions)
    assert got.dtype == dtype
    close(got, by_complex_numbers(x, positions, 8), atol=atol)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rotary", "width"), STYLES)
def test_rotary_rounds_half_types_once(dtype, rotary, width):
    x, positions = randn(2, 3, 5, width, dtype=dtype), 131_072 + torch.arange(5)
    got = rotary(x, positions)
    assert got.dtype == dtype
    options = {"base": rotary.base, "interleaved": rotary.interleaved}
    exact = by_complex_numbers(x, positions, rotary.dim or width, **options)
    spacing = torch.finfo(dtype).eps * exact.abs()
    assert ((got.double() - exact).abs() <= 0.51 * spacing + 1e-6).all()


@pytest.mark.parametrize(("rotary", "width"), STYLES)
def test_rotary_gradients(rotary, width):
    x, positions = randn(2, 3, 5, width, requires_grad=True), torch.arange(5)
    assert torch.autograd.gradcheck(lambda x: rotary(x, positions), x)


@pytest.mark.parametrize(("rotary", "width"), STYLES)
def test_rotary_compiles_exports_and_copies(rotary, width):
    x, positions = randn(2, 3, 5, width, dtype=torch.float32), torch.arange(5)
    compiled = torch.compile(rotary.__call__, fullgraph=True, backend="aot_eager")
    close(compiled(x, positions), rotary(x, positions), atol=1e-6)
    close(compiled(x, positions.repeat(2, 1)), rotary(x, positions), atol=1e-6)

    class Module(torch.nn.Module):
        def forward(self, x, positions):
            return rotary(x, positions)

    length = {0: torch.export.Dim("T", min=2, max=1024)}
    exported = torch.export.export(
        Module(), (x, positions), dynamic_shapes={"x": {2: length[0]}, "positions": length}
    ).module()
    longer, far = randn(2, 3, 9, width, dtype=torch.float32), torch.arange(9) + 100
    close(exported(longer, far), rotary(longer, far), atol=1e-6)
    assert copy.deepcopy(rotary) == rotary == pickle.loads(pickle.dumps(rotary))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_positions_under_autocast(dtype):
    x, positions = randn(2, 3, 5, 8, dtype=dtype), torch.arange(5)
    bias = ALiBi(3).bias(5, q_offset=9, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Rotary()(x, positions), Rotary()(x, positions).to(dtype))
        assert torch.equal(ALiBi(3).bias(5, q_offset=9, dtype=dtype), bias)
        got = Rotary()(x, positions)
    assert got.dtype == dtype and torch.equal(got, Rotary()(x, positions))


@pytest.mark.parametrize("shape", [(2, 3, 0, 8), (0, 3, 5, 8), (2, 0, 5, 8)], ids=str)
def test_rotary_of_nothing(shape):
    positions = torch.arange(shape[2])
    assert Rotary()(torch.ones(shape), positions).shape == shape
    assert Rotary(4)(torch.ones(shape), positions.expand(shape[0], -1)).shape == shape


def test_rotary_stays_on_the_device():
    got = Rotary()(torch.ones(2, 3, 5, 8, device="meta"), torch.arange(5, device="meta"))
    assert got.device.type == "meta" and got.shape == (2, 3, 5, 8)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_positions_on_a_gpu(dtype):
    x, positions = randn(2, 3, 5, 8, dtype=dtype), 131_072 + torch.arange(5)
    for rotary in (Rotary(), Rotary(6, interleaved=True)):
        got = rotary(x.cuda(), positions.cuda())
        assert got.is_cuda
        close(got.cpu(), rotary(x, positions), atol=4 * torch.finfo(dtype).eps)
    offset = torch.tensor([0, 70_000])
    got = ALiBi(6).bias(3, 5, q_offset=offset.cuda(), dtype=dtype)
    assert got.is_cuda and torch.equal(got.cpu(), ALiBi(6).bias(3, 5, q_offset=offset, dtype=dtype))
    with torch.cuda.graph(torch.cuda.CUDAGraph()):  # forbids copies from the host
        ALiBi(6, device="cuda").bias(3, 5, q_offset=2)


X, P = torch.ones(2, 3, 5, 8), torch.arange(5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Rotary(3), ValueError, "dim must be even and positive.*got 3"),
        (lambda: Rotary(0), ValueError, "dim must be even and positive.*got 0"),
        (lambda: Rotary(-2), ValueError, "dim must be even and positive.*got -2"),
        (lambda: Rotary(4.0), TypeError, "dim must be an int, got 4.0"),
        (lambda: Rotary(True), TypeError, "dim must be an int, got True"),
        (lambda: Rotary(base=0.0), ValueError, "base must be above 0 and finite, got 0.0"),
        (lambda: Rotary(base=math.inf), ValueError, "base must be above 0 and finite, got inf"),
        (lambda: Rotary(base="1"), TypeError, "base must be a number, got '1'"),
        (lambda: Rotary(base=True), TypeError, "base must be a number, got True"),
        (lambda: Rotary(interleaved=1), TypeError, "interleaved must be True or False, got 1"),
        (lambda: Rotary().width(7), ValueError, "D must be even.*got 7"),
        (lambda: Rotary(10).width(8), ValueError, "at most the head width D=8, got 10"),
        (lambda: Rotary()(X[..., :7], P), ValueError, "D must be even.*got 7"),
        (lambda: Rotary(10)(X, P), ValueError, "at most the head width D=8, got 10"),
        (lambda: Rotary()(X, P[:4]), ValueError, r"positions \(4,\) for x \(2, 3, 5, 8\)"),
        (lambda: Rotary()(X, P.repeat(3, 1)), ValueError, r"positions \(3, 5\) for x \(2, 3"),
        (lambda: Rotary()(X[:1], P.repeat(3, 1)), ValueError, r"positions \(3, 5\) for x \(1, 3"),
        (lambda: Rotary()(X[0, 0], P.repeat(5, 1)), ValueError, r"\(5, 5\) for x \(5, 8\)"),
        (lambda: Rotary()(X, P[0]), ValueError, r"positions \(\) for x"),
        (lambda: Rotary()(X, P.expand(2, 3, 5)), ValueError, r"positions \(2, 3, 5\) for x"),
        (lambda: Rotary()(X[0, 0, 0], P), ValueError, r"for x \(8,\)"),
        (lambda: Rotary()(X.int(), P), TypeError, "x must be a floating-point.*got torch.int32"),
        (lambda: Rotary()([1.0], P), TypeError, "x must be a floating-point tensor, got list"),
        (lambda: Rotary()(X, P.float()), TypeError, "must be integers, got torch.float32"),
        (lambda: Rotary()(X, P > 1), TypeError, "positions must be integers, got torch.bool"),
        (lambda: Rotary()(X, range(5)), TypeError, "a tensor of integers, got range"),
        (lambda: Rotary()(X, P.to("meta")), ValueError, "must be on cpu like x, got meta"),
    ],
)
def test_rotary_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_alibi_slopes():
    # Press et al.: a geometric sequence; between powers of two, filled up from the next one
    close(ALiBi(1).slopes, torch.tensor([2**-8.0]))
    close(
        ALiBi(8).slopes,
        torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]),
    )
    close(ALiBi(16).slopes[:3], torch.tensor([2**-0.5, 2**-1.0, 2**-1.5]), atol=1e-7)
    close(ALiBi(3).slopes, torch.tensor([2**-4.0, 2**-8.0, 2**-2.0]))
    close(ALiBi(6).slopes, torch.tensor([2**-2.0, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]))
    twelve = [2.0**-h for h in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    close(ALiBi(12).slopes, torch.tensor(twelve), atol=1e-7)
    assert ALiBi(8).slopes.dtype == torch.float32


def test_alibi_bias_by_hand():
    bias = ALiBi(2).bias(2, 3, q_offset=1)  # slopes 1/16 and 1/256
    expected = torch.tensor([[1.0, 0.0, 1.0], [2.0, 1.0, 0.0]])
    close(bias, torch.stack((-expected / 16, -expected / 256)), atol=0)
    assert bias.dtype == torch.float32 and not (bias == 0).logical_and(bias.signbit()).any()
    close(ALiBi(2).bias(3), ALiBi(2).bias(3, 3), atol=0)
    own = ALiBi(2, slopes=[0.5, -3.0]).bias(1, 3, q_offset=-1)
    close(own, torch.tensor([[[-0.5, -1.0, -1.5]], [[3.0, 6.0, 9.0]]]), atol=0)


def test_alibi_chunks_are_slices_of_the_whole():
    alibi = ALiBi(3)
    whole = alibi.bias(7, 9, q_offset=2)
    assert torch.equal(alibi.bias(3, 9, q_offset=2 + 4), whole[:, 4:])
    assert torch.equal(alibi.bias(3, 5, q_offset=2 + 4 - 3), whole[:, 4:, 3:8])


def test_alibi_with_an_offset_for_each_example():
    alibi, offset = ALiBi(3), torch.tensor([4, 0, -2])
    expected = torch.stack([alibi.bias(2, 5, q_offset=int(o)) for o in offset])
    assert expected.shape == (3, 3, 2, 5)
    assert torch.equal(alibi.bias(2, 5, q_offset=offset), expected)
    assert torch.equal(alibi.bias(2, 5, q_offset=offset[0].int()), expected[0])
    by_vmap = torch.func.vmap(lambda o: alibi.bias(2, 5, q_offset=o))(offset)
    assert torch.equal(by_vmap, expected)
    compiled = torch.compile(
        lambda o: alibi.bias(2, 5, q_offset=o), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(offset), expected)


def test_alibi_compiles_with_sizes_that_change():
    def biased(scores):
        return scores + ALiBi(3).bias(*scores.shape[-2:], q_offset=scores.shape[-1] - 1)

    compiled = torch.compile(biased, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (5, 6, 9):
        scores = torch.zeros(3, 2, size)
        assert torch.equal(compiled(scores), biased(scores))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_alibi_rounds_once(dtype):
    alibi, distance = ALiBi(12), torch.arange(70_000, -1, -1).double()
    exact = -alibi.slopes[8].double() * distance  # slope 2 ** -0.5: no product is exact in float32
    got = alibi.bias(1, 70_001, q_offset=70_000, dtype=dtype)[8, 0]
    expected = exact if dtype == torch.float64 else exact.float().to(dtype)
    assert got.dtype == dtype and torch.equal(got, expected)
    default = alibi.bias(1, 70_001, q_offset=70_000)
    assert default.dtype == torch.float32


def test_alibi_of_nothing_and_elsewhere():
    assert ALiBi(3).bias(0, 4).shape == (3, 0, 4)
    assert ALiBi(3).bias(4, 0).shape == (3, 4, 0)
    assert ALiBi(3).bias(2, 4, q_offset=torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 2, 4)
    assert ALiBi(3).bias(2, device="meta").device.type == "meta"
    assert ALiBi(3, device="meta").bias(2).device.type == "meta"
    assert ALiBi(3).bias(2, q_offset=torch.zeros(2, dtype=int, device="meta")).is_meta
    alibi = ALiBi(3)
    for twin in (copy.deepcopy(alibi), pickle.loads(pickle.dumps(alibi))):
        assert torch.equal(twin.bias(2, 4), alibi.bias(2, 4))
    assert repr(alibi) == "ALiBi(num_heads=3)"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ALiBi(0), ValueError, "num_heads must be at least 1, got 0"),
        (lambda: ALiBi(2.0), TypeError, "num_heads must be an int, got 2.0"),
        (lambda: ALiBi(2, slopes=[0.5]), ValueError, r"num_heads=2 numbers, got shape \(1,\)"),
        (lambda: ALiBi(1, slopes=0.5), ValueError, r"num_heads=1 numbers, got shape \(\)"),
        (lambda: ALiBi(2, slopes=[0.5, math.nan]), ValueError, "must be finite, got"),
        (lambda: ALiBi(5, slopes=P.float().requires_grad_()), ValueError, "requires grad"),
        (lambda: ALiBi(2).bias(-1), ValueError, "T must be 0 or more, got -1"),
        (lambda: ALiBi(2).bias(2, -3), ValueError, "S must be 0 or more, got -3"),
        (lambda: ALiBi(2).bias(2.0), TypeError, "T must be an int, got 2.0"),
        (lambda: ALiBi(2).bias(2, True), TypeError, "S must be an int, got True"),
        (lambda: ALiBi(2).bias(2, q_offset=0.5), TypeError, "tensor of ints, got 0.5"),
        (lambda: ALiBi(2).bias(2, q_offset=P.float()), TypeError, "tensor of ints, got"),
        (lambda: ALiBi(2).bias(2, q_offset=P, device="meta"), ValueError, "on meta, got cpu"),
        (lambda: ALiBi(2).bias(2, dtype=torch.int64), TypeError, "floating type, got torch.int64"),
    ],
)
def test_alibi_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
