import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

import mha
from mha import cost, masks

aten = torch.ops.aten
CPU_FLASH = aten._scaled_dot_product_flash_attention_for_cpu
SIZES = {"B": 2, "H": 6, "T": 3, "S": 5, "D": 4}
BOUNDS = (None, 0, 1, 3, 9)


def operands(B, H, T, S, D, H_kv, dtype):
    """(B * H_kv, G * T, D) queries, and (B * H_kv, S, D) keys and values."""
    q = torch.randn(B * H_kv, H // H_kv * T, D, dtype=dtype)
    k, v = torch.randn(2, B * H_kv, S, D, dtype=dtype)
    return q, k, v


@pytest.mark.parametrize("H_kv", [6, 3, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_naive_attention_as_it_runs(H_kv, dtype):
    q, k, v = operands(**SIZES, H_kv=H_kv, dtype=dtype)
    parts = cost.naive(**SIZES, H_kv=H_kv, itemsize=dtype.itemsize)
    with FlopCounterMode(display=False) as counter:
        torch.bmm(torch.bmm(q, k.mT).softmax(-1), v)
    with cost.ByteCounter() as moved:
        torch.bmm(torch.bmm(q, k.mT).softmax(-1), v)
    assert moved.bytes["bmm"] == [parts["scores"].bytes, parts["weighted sum"].bytes]
    assert moved.bytes["_softmax"] == [parts["softmax"].bytes]
    assert sum(map(len, moved.bytes.values())) == 3  # no operation but the three
    assert counter.get_total_flops() == parts["scores"].flops + parts["weighted sum"].flops
    assert parts["softmax"].flops == cost.SOFTMAX_FLOPS * q.shape[0] * q.shape[1] * k.shape[1]


@pytest.mark.parametrize("H_kv", [6, 3, 1])
def test_fused_attention_as_it_runs(H_kv):
    q, k, v = (x[:, None] for x in operands(**SIZES, H_kv=H_kv, dtype=torch.float32))
    formula = {CPU_FLASH: lambda q, k, v, *rest, **kw: flop_counter.sdpa_flop_count(q, k, v)}
    with FlopCounterMode(display=False, custom_mapping=formula) as counter:
        F.scaled_dot_product_attention(q, k, v)
    with cost.ByteCounter() as moved:
        F.scaled_dot_product_attention(q, k, v)
    whole = cost.fused(**SIZES, H_kv=H_kv)
    rows = q.shape[0] * q.shape[2]
    assert counter.get_total_flops() == whole.flops - cost.SOFTMAX_FLOPS * rows * k.shape[2]
    log_sums = 4 * rows  # besides the output the kernel writes one number for each row
    assert moved.bytes == {CPU_FLASH.__name__: [whole.bytes + log_sums]}
    assert whole.flops == cost.total(cost.naive(**SIZES, H_kv=H_kv)).flops


@pytest.mark.parametrize("H_kv", [6, 2, 1])
@pytest.mark.parametrize("D", [None, 3])
def test_projections_of_the_module(H_kv, D):
    module = mha.MultiHeadAttention(24, 6, head_dim=D, num_kv_heads=H_kv, backend="reference")
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(2, 3, 24), torch.randn(2, 5, 24))
    table = counter.get_flop_counts()
    parts = cost.projections(B=2, T=3, S=5, E=24, H=6, H_kv=H_kv, D=D)
    for name, part in parts.items():
        assert part.flops == sum(table[f"MultiHeadAttention.{name}"].values())
        weight = getattr(module, name).weight
        n = 2 * (3 if name in ("q_proj", "out_proj") else 5)
        assert part.bytes == 4 * (weight.numel() + n * sum(weight.shape))


def test_sizes_left_out_are_those_of_plain_self_attention():
    given = cost.projections(B=1, T=7, S=7, E=12, H=3, H_kv=3, D=4, itemsize=4)
    assert cost.projections(T=7, E=12, H=3) == given
    assert cost.naive(H=3, T=7, S=7, D=4) == cost.naive(H=3, T=7, S=7, D=4, H_kv=3, B=1)
    assert cost.pairs(7) == 49


@pytest.mark.parametrize("T, S", [(0, 3), (3, 0), (1, 1), (4, 4), (3, 7), (7, 3)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_pairs_and_keys_are_those_of_the_mask(T, S, is_causal):
    for left, right, q_offset in itertools.product(BOUNDS, BOUNDS, (-2, 0, 1, 4, 20)):
        allowed = masks.window(T, S, left=left, right=right, q_offset=q_offset)
        if is_causal:
            allowed = allowed & masks.causal(T, S, q_offset=q_offset)
        rules = {"is_causal": is_causal, "window": (left, right), "q_offset": q_offset}
        assert cost.pairs(T, S, **rules) == allowed.sum()
        whole = cost.fused(H=2, T=T, S=S, D=4, H_kv=1, **rules)
        assert whole.flops == 2 * allowed.sum() * (4 * 4 + cost.SOFTMAX_FLOPS)
        keys = allowed.any(0).sum() if T else 0
        assert whole.bytes == 4 * 2 * 4 * (2 * T + keys)


def test_fused_products_per_byte_are_a_harmonic_mean():
    B, H, H_kv, T, S, D = 3, 8, 2, 5, 70, 16
    whole = cost.fused(B=B, H=H, H_kv=H_kv, T=T, S=S, D=D, itemsize=2)
    products = whole.flops - cost.SOFTMAX_FLOPS * B * H * T * S
    sharing = H // H_kv * T  # queries that read the same key
    assert products / whole.bytes == pytest.approx(2 / (1 / S + 1 / sharing) / 2)


def test_flash_attention_by_hand():
    """B=1, H=2, T=3, S=5, D=4: a product is 2 * 3 * 5 * 4 = 120 FLOPs a head."""
    sizes = {"H": 2, "T": 3, "S": 5, "D": 4, "itemsize": 2}
    assert cost.flash(**sizes).flops == 2 * 240  # two products, two heads
    assert cost.flash(**sizes).bytes == 2 * (24 + 40 + 40 + 24)  # q, k, v and output
    back = cost.flash(**sizes, backward=True)
    assert back.flops == 2 * 600  # five products
    assert back.bytes == 2 * (24 + 40 + 40 + 24 + 24 + 24 + 40 + 40)
    assert cost.flash(**sizes, share=0.5, backward=True) == cost.Cost(600, back.bytes)
    assert cost.flash(**sizes, share=0.5) == cost.Cost(240, 256)
    twice = cost.flash(**sizes, B=2)
    assert (twice.flops, twice.bytes) == (960, 512)
    assert cost.flash(**sizes, H_kv=1) == cost.Cost(480, 2 * (24 + 20 + 20 + 24))
    assert cost.flash(**sizes).intensity == 480 / 256


def test_flash_attention_of_the_usual_comparison():
    """16k tokens of one text, 16 heads of 128, bfloat16: 2.199 TFLOP and 256 MiB, 8192 a byte."""
    whole = cost.flash(H=16, T=16384, S=16384, D=128, itemsize=2)
    assert (whole.flops, whole.bytes) == (2_199_023_255_552, 268_435_456)
    assert whole.intensity == 8192 == 16384 / 2  # T S / (T + S) a byte of two
    assert cost.flash(H=16, T=16384, S=16384, D=128, itemsize=2, backward=True).intensity == 10240


def test_a_decoding_step_reads_the_cache_once():
    """A query for each of 32 heads on 8 key heads: 4 query heads share a key, 2 bytes a number."""
    step = cost.flash(H=32, H_kv=8, T=1, S=1024, D=128, itemsize=2)
    assert step.bytes == 2 * 2 * 128 * (32 + 8 * 1024)
    assert step.flops == 4 * 32 * 1024 * 128
    assert step.intensity == pytest.approx(4, rel=0.004)


def test_flash_and_fused_differ_by_the_softmax():
    sizes = {"B": 2, "H": 6, "H_kv": 3, "T": 7, "S": 7, "D": 4}
    plain, rated = cost.fused(**sizes), cost.flash(**sizes)
    assert plain.flops - rated.flops == cost.SOFTMAX_FLOPS * 2 * 6 * 49
    assert plain.bytes == rated.bytes
    share = cost.pairs(7, is_causal=True) / 49
    causal = cost.fused(**sizes, is_causal=True).flops - cost.SOFTMAX_FLOPS * 2 * 6 * 28
    assert cost.flash(**sizes, share=share).flops == causal


def test_byte_counter_counts_what_moves():
    x = torch.ones(3, 4)
    with cost.ByteCounter() as moved:
        y = x.T.reshape(3, 4)  # not contiguous: a copy
        y.view(4, 3)[1:].expand(2, 3, 3)
        torch.cat([x, y])
        torch.add(x, y, out=torch.empty(3, 4))
        y.mul_(2)
        y.copy_(x)
        y.zero_()
        x.double()
    assert moved.bytes["cat"] == [2 * (48 + 48)]
    assert moved.bytes["add"] == [3 * 48]
    assert moved.bytes["mul_"] == [2 * 48]
    assert moved.bytes["copy_"] == [48 + 48]  # what was there is not read
    assert moved.bytes["zero_"] == [48]
    assert moved.bytes["_to_copy"] == [48 + 96]
    assert moved.total == 96 + 192 + 144 + 96 + 96 + 48 + 144  # nothing for the views


def test_machine():
    machine = cost.Machine(flops_per_second=100.0, bytes_per_second=20.0)
    assert machine.ridge == 5
    assert (machine.rate(2), machine.rate(5), machine.rate(50)) == (40, 100, 100)
    moving, computing = cost.Cost(100, 60), cost.Cost(400, 20)
    assert machine.seconds(moving) == 3
    assert machine.seconds(computing) == 4
    assert machine.seconds(moving, computing) == 7
    assert machine.seconds(moving + computing) == 5  # as one operation they would overlap
    assert moving.flops / machine.rate(moving.intensity) == machine.seconds(moving)
    assert cost.total({"a": moving, "b": computing}) == cost.Cost(500, 80)
    assert math.isnan(cost.Cost().intensity)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: cost.product(2, -1, 3), "k must be an int of at least 0, got -1"),
        (lambda: cost.naive(H=6, T=3, S=5, D=4, H_kv=4), "H=6, H_kv=4"),
        (lambda: cost.naive(H=6, T=3, S=5, D=4, H_kv=0), "H=6, H_kv=0"),
        (lambda: cost.fused(H=6, T=3, S=5, D=4, H_kv=5), "H=6, H_kv=5"),
        (lambda: cost.fused(H=6, T=3, S=5, D=4, B=-1), "B must be"),
        (lambda: cost.fused(H=6, T=3, S=-5, D=4), "S must be"),
        (lambda: cost.flash(H=6, T=3, S=5, D=4, H_kv=4), "H=6, H_kv=4"),
        (lambda: cost.flash(H=6, T=3, S=5, D=-4), "D must be"),
        (lambda: cost.flash(H=6, T=3, S=5, D=4, share=1.5), "share must be .* got 1.5"),
        (lambda: cost.projections(T=3, E=10, H=4), "E=10 and H=4"),
        (lambda: cost.projections(T=3, E=12, H=4, H_kv=3), "H=4, H_kv=3"),
        (lambda: cost.pairs(3, window=(-1, 0)), r"window\[0\] must be .* got -1"),
    ],
)
def test_wrong_sizes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_sizes_are_ints():
    with pytest.raises(TypeError, match="k must be an int of at least 0, got float"):
        cost.product(2, 1.5, 3)
    with pytest.raises(TypeError, match="T must be .* got Tensor"):
        cost.fused(H=1, T=torch.ones(2), S=5, D=4)
