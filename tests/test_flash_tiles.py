"""mha.flash.tiles: what the definition says, tile by tile, with nothing of T x S in memory."""

import math
from dataclasses import replace

import faulty
import flash_properties
import pytest
import torch
from faulty.flash import patched
from faulty.flash_tiles import TILES
from flash_properties import Subject, agree, both, operands
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MASK_NAMES, ORDER_NAMES, close, mask_cases, order_cases, randn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from mha import attention, scaled_dot_product_attention
from mha._rules import Rules
from mha.flash import tiles
from mha.positions import ALiBi

BLOCKS = (2, 3), (4, 2), (3, 16), (16, 4), (16, 16), (1, 1)
SETTINGS = tuple({"block_q": q, "block_k": k} for q, k in BLOCKS)
SUBJECT = Subject(tiles, SETTINGS)


class Watch(TorchDispatchMode):
    """Notes the largest tensor that any operator gives back, and how often each is called."""

    def __init__(self):
        super().__init__()
        self.largest, self.calls = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return result


def long(subject, length=96, size=128):
    """Operands of one head, as wide as a tile is, and a setting of 16 queries and 8 keys."""
    longer = replace(subject, sizes=(length, size), widths=(4, 4))
    return operands(longer, heads=1, kv_heads=1, batch=1), {"block_q": 16, "block_k": 8}


def nothing_of_all_queries_and_keys_is_made(subject):
    """No tensor is larger than an operand, however the masks are given."""
    made, setting = long(subject)
    key_mask = torch.arange(128)[None] % 3 > 0  # (1, S)
    bounds = {"is_causal": True, "window": (50, None), "q_offset": 20}
    apart = {"is_causal": True, "q_offset": torch.tensor([3])}
    for options in ({}, bounds, apart, {"key_mask": key_mask, "attn_mask": ALiBi(1)}):
        with Watch() as watch:
            both(subject, *made, {**options, "softcap": 5.0}, setting)
        assert watch.largest <= 128 * 4, f"a tensor of {watch.largest} was made"


def keys_and_values_are_not_copied_whole(subject):
    """Not even to blank padding. The largest tensor is a view of the key mask."""
    made, setting = long(subject, 16, 512)
    key_mask = torch.arange(512)[None] % 3 > 0  # (1, S)
    with Watch() as watch:
        subject.run.forward(*made[:3], Rules(key_mask=key_mask), 0.5, None, **setting)
    assert watch.largest <= 512, f"a tensor of {watch.largest} was made"


def tiles_that_nobody_sees_are_not_visited(subject):
    """Forward has two products to a tile. Of 6 x 16 tiles, causal leaves 2 + 4 + ... + 12."""
    made, setting = long(subject)
    cases = (({}, 96), ({"is_causal": True}, 42), ({"window": (7, 0)}, 2 + 5 * 3))
    for options, visited in cases:
        with Watch() as watch:
            subject.run.forward(*made[:3], Rules(**options), 0.5, None, **setting)
        assert watch.calls["bmm"] == visited, f"{options}: {watch.calls['bmm']} tiles"


OWN = (
    nothing_of_all_queries_and_keys_is_made,
    keys_and_values_are_not_copied_whole,
    tiles_that_nobody_sees_are_not_visited,
)
PROPERTIES = {**flash_properties.ALL, **{holds.__name__: holds for holds in OWN}}


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name):
    PROPERTIES[name](SUBJECT)


@pytest.mark.parametrize("name", flash_properties.ALL)
def test_property_in_float32(name):
    PROPERTIES[name](replace(SUBJECT, settings=SETTINGS[:2], dtype=torch.float32, atol=2e-5))


@pytest.mark.parametrize("name", [*MASK_NAMES, *ORDER_NAMES])
def test_default_blocks(name):
    """Of which there are two by three here, the last ones not full."""
    large = replace(SUBJECT, settings=({},), sizes=(150, 290))
    cases = {**mask_cases(2, 4, *large.sizes), **order_cases(2, 4, *large.sizes)}
    agree(large, operands(large), cases[name])


@pytest.mark.parametrize("slug", TILES)
def test_each_mistake_is_caught_by_name(slug, tmp_path):
    about, old, new, caught_by = TILES[slug]
    variant = replace(SUBJECT, run=patched(tiles, old, new, tmp_path))
    assert faulty.verdict(PROPERTIES[caught_by], variant) == "fails"


def test_mistakes_are_many_and_each_property_catches_one():
    assert len(TILES) >= 12
    assert {mistake.caught_by for mistake in TILES.values()} == set(PROPERTIES)
    abouts = [mistake.about for mistake in TILES.values()]
    assert len(set(abouts)) == len(abouts) and all(x.endswith(".") for x in abouts)


def test_a_patch_must_match_once_and_leaves_the_module_alone(tmp_path):
    with pytest.raises(AssertionError, match="not 0 times"):
        patched(tiles, "no such line", "", tmp_path)
    with pytest.raises(AssertionError, match="once, not"):
        patched(tiles, "torch", "", tmp_path)
    variant = patched(tiles, "BLOCK_Q = 128", "BLOCK_Q = 3", tmp_path)
    assert (variant.BLOCK_Q, tiles.BLOCK_Q) == (3, 128)
    query, key, value, _ = operands(SUBJECT)
    with Watch() as watch:
        variant.forward(query, key, value, Rules(), 0.5, None)
    assert watch.calls["bmm"] == 3  # 7 queries, 3 at a time


def test_few_queries_meet_many_keys_at_a_time():
    """One query of a decoder takes all keys at once; blocks of the default size take 128."""
    for length, products in ((1, 1), (64, 2), (300, 3 * 4)):
        made = operands(replace(SUBJECT, sizes=(length, 500)))
        with Watch() as watch:
            tiles.forward(*made[:3], Rules(), 0.5, None)
        assert watch.calls["bmm"] == products


@st.composite
def calls(draw):
    """Sizes, blocks and rules of a call, on random operands."""
    batch, groups, kv_heads = draw(st.tuples(*[st.integers(1, 3)] * 3))
    length, size = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    widths = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    offsets = st.integers(-9, 9)
    each = st.lists(offsets, min_size=batch, max_size=batch)
    offset = draw(offsets | offsets.map(torch.tensor) | each.map(torch.tensor))
    rules = {"is_causal": draw(st.booleans()), "q_offset": offset}
    rules["window"] = draw(st.none() | st.tuples(*[st.none() | st.integers(0, 6)] * 2))
    rules["softcap"] = draw(st.none() | st.floats(0.3, 3.0))
    subject = Subject(tiles, sizes=(length, size), widths=widths)
    seed = draw(st.integers(0, 99))
    if draw(st.booleans()):
        rules["key_mask"] = randn(draw(st.sampled_from([1, batch])), size, seed=seed) > -0.5
    shape = batch, groups * kv_heads, length, size
    shape = [draw(st.sampled_from([1, n])) for n in shape]
    kind = draw(st.sampled_from(["none", "bool", "float"]))
    if kind != "none":
        mask = randn(*shape, seed=seed)
        rules["attn_mask"] = mask > -0.7 if kind == "bool" else mask
    setting = {"block_q": draw(st.integers(1, 10)), "block_k": draw(st.integers(1, 10))}
    made = operands(subject, groups * kv_heads, kv_heads, batch)
    return replace(subject, settings=(setting,)), made, rules


@settings(max_examples=150, deadline=None)
@given(calls())
def test_any_call_is_as_defined(call):
    subject, made, options = call
    agree(subject, made, options)


def test_float64_stays_float64():
    query, key, value, grad = operands(SUBJECT)
    saved = tiles.forward(query, key, value, Rules(), 0.5, None)
    assert {x.dtype for x in saved} == {torch.float64}


def test_results_share_no_memory():
    """As torch asks of the results of an operator."""
    query, key, value, grad = operands(SUBJECT)
    saved = tiles.forward(query, key, value, Rules(), 0.5, None)
    grads = tiles.backward(grad, query, key, value, *saved, Rules(), 0.5, None)
    for group in (saved, grads):
        places = {x.untyped_storage().data_ptr() for x in (*group, query, key, value)}
        assert len(places) == 6


def test_a_score_beyond_exp_in_float32():
    """Worked by hand: of scores 1000 and 1001 the second has the weight 1 / (1 + 1/e)."""
    query, key = torch.ones(1, 1, 1, 1), torch.tensor([1000.0, 1001.0])[None, None, :, None]
    value = torch.tensor([0.0, 1.0])[None, None, :, None]
    for block_k in (1, 2):
        output, top, total = tiles.forward(query, key, value, Rules(), 1.0, None, block_k=block_k)
        close(output.flatten(), torch.tensor([1 / (1 + math.exp(-1))]), 1e-6)
        assert (top.item(), round(total.item(), 4)) == (1001.0, 1.3679)


# As an operator


def test_a_backward_pass_inside_autocast_is_not_cast():
    """backward() is often called where autocast is still on: nothing of it may run in half there."""
    inputs = [randn(1, 2, size, 8).requires_grad_() for size in (5, 7, 7)]

    def gradients(enabled):
        output = scaled_dot_product_attention(*inputs, softcap=2.0, backend="flash")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return torch.autograd.grad(output, inputs, torch.ones_like(output))

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_auto_has_forward_mode_derivatives_and_flash_refuses_them(monkeypatch):
    monkeypatch.setattr(attention, "SMALL", 0)  # so that auto would take flash
    q, k, v = (randn(1, 2, 5, 8, dtype=torch.float64) for _ in range(3))
    step = randn(1, 2, 5, 8, dtype=torch.float64)
    _, expected = torch.func.jvp(
        lambda q: scaled_dot_product_attention(q, k, v, softcap=2.0, backend="reference"),
        *((q,), (step,)),
    )
    assert attention.explain(q, k, v, softcap=2.0).backend == "flash"
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, step)
        found = scaled_dot_product_attention(dual, k, v, softcap=2.0)
        close(forward_ad.unpack_dual(found).tangent, expected)
        with pytest.raises(ValueError, match="cannot do forward-mode derivatives; 'reference' can"):
            scaled_dot_product_attention(dual, k, v, backend="flash")


def test_auto_compiles_a_gradient_of_torch_func(monkeypatch):
    monkeypatch.setattr(attention, "SMALL", 0)
    q, k, v = (randn(1, 2, 5, 8) for _ in range(3))
    gradient = torch.func.grad(lambda q: scaled_dot_product_attention(q, k, v, softcap=2.0).sum())
    torch.compiler.reset()
    close(torch.compile(gradient, backend="eager", fullgraph=True)(q), gradient(q))
