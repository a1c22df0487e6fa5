"""Builders by hand-written pictures; translations by what the other library makes of them."""

import functools
import itertools
import sys

import pytest
import torch
import torch.nn.functional as F
from beartype import beartype
from jaxtyping import jaxtyped
from support import close, randn

from mha import masks


def picture(mask):
    """A mask as text: x = may attend."""
    return "\n".join("".join("x" if cell else "." for cell in row) for row in mask.tolist())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"T": 3}, "x..\nxx.\nxxx"),
        ({"T": 2, "S": 4}, "x...\nxx.."),
        ({"T": 4, "S": 2}, "x.\nxx\nxx\nxx"),
        ({"T": 2, "S": 4, "q_offset": 2}, "xxx.\nxxxx"),
        ({"T": 3, "q_offset": -1}, "...\nx..\nxx."),
        ({"T": 2, "S": 3, "q_offset": torch.tensor(1)}, "xx.\nxxx"),
        ({"T": 0, "S": 2}, ""),
    ],
)
def test_causal(arguments, expected):
    assert picture(masks.causal(**arguments)) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"T": 3, "left": 1, "right": 0}, "x..\nxx.\n.xx"),
        ({"T": 3, "left": 0, "right": 1}, "xx.\n.xx\n..x"),
        ({"T": 3}, "xxx\nxxx\nxxx"),
        ({"T": 3, "right": 0}, "x..\nxx.\nxxx"),
        ({"T": 2, "S": 5, "left": 1, "right": 1, "q_offset": 2}, ".xxx.\n..xxx"),
        ({"T": 2, "S": 4, "left": 0, "right": 1, "q_offset": -1}, "x...\nxx.."),
        ({"T": 3, "S": 2, "left": 0, "right": 0}, "x.\n.x\n.."),
        ({"T": 2, "S": 3, "left": sys.maxsize, "right": sys.maxsize}, "xxx\nxxx"),
        ({"T": 2, "S": 3, "left": 1, "q_offset": torch.tensor(2)}, ".xx\n..x"),
    ],
)
def test_window(arguments, expected):
    assert picture(masks.window(**arguments)) == expected


def test_padding_from_lengths_and_ids():
    assert picture(masks.padding([2, 0, 3])) == "xx.\n...\nxxx"
    assert picture(masks.padding(torch.tensor([1]), max_len=3)) == "x.."
    assert picture(masks.padding(ids=torch.tensor([[5, 0, 7], [0, 0, 1]]))) == "x.x\n..x"
    assert picture(masks.padding(ids=torch.tensor([[5, 9, 0]]), pad_id=9)) == "x.x"
    assert masks.padding([], max_len=3).shape == (0, 3)


def test_padding_on_the_left():
    assert picture(masks.padding([2, 0, 3], side="left")) == ".xx\n...\nxxx"
    assert picture(masks.padding(torch.tensor([1]), max_len=3, side="left")) == "..x"
    lengths = torch.tensor([0, 2, 5])
    right, left = (masks.padding(lengths, max_len=5, side=side) for side in ("right", "left"))
    assert torch.equal(left, right.flip(-1))


def one_by_one(build, offsets, **sizes):
    """The mask of each offset alone, put together: (*lead, 1, T, S)."""
    each = [build(q_offset=int(offset), **sizes) for offset in offsets.flatten()]
    return torch.stack(each).view(*offsets.shape, 1, *each[0].shape)


BUILDERS = {
    "causal": masks.causal,
    "window": functools.partial(masks.window, left=1, right=2),
    "left": functools.partial(masks.window, left=1),
    "open": masks.window,
}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8])
def test_an_offset_for_each_example(name, dtype):
    build, offsets = BUILDERS[name], torch.tensor([2, 0, -1, -4, 9], dtype=dtype)
    mask = build(T=3, S=4, q_offset=offsets)
    assert mask.dtype == torch.bool and mask.shape == (5, 1, 3, 4)
    assert torch.equal(mask, one_by_one(build, offsets, T=3, S=4))
    grid = offsets[:4].view(2, 2)
    assert torch.equal(build(T=3, S=4, q_offset=grid), one_by_one(build, grid, T=3, S=4))
    assert torch.equal(build(T=3, S=4, q_offset=grid[0, 0]), build(T=3, S=4, q_offset=2))
    assert build(T=3, S=4, q_offset=offsets[:0]).shape == (0, 1, 3, 4)
    assert build(T=0, S=4, q_offset=offsets).shape == (5, 1, 0, 4)


@pytest.mark.parametrize("name", BUILDERS)
def test_offsets_under_vmap_compile_and_export(name):
    build, offsets = BUILDERS[name], torch.tensor([2, 0, -1])

    class Build(torch.nn.Module):
        def forward(self, x, y, q_offset):
            return build(x.shape[0], y.shape[0], q_offset=q_offset)

    eager = Build()
    vmapped = torch.func.vmap(lambda one: build(3, 4, q_offset=one))(offsets)
    assert torch.equal(vmapped, build(3, 4, q_offset=offsets)[:, 0].expand(3, 3, 4))
    torch._dynamo.reset()
    compiled = torch.compile(eager, backend="aot_eager", fullgraph=True, dynamic=True)
    rows = {0: torch.export.Dim("T", min=2)}, {0: torch.export.Dim("S", min=2)}
    x, y = torch.ones(3), torch.ones(4)
    shapes = (*rows, {0: torch.export.Dim("B", min=2)})
    exported = torch.export.export(eager, (x, y, offsets), dynamic_shapes=shapes).module()
    for run in (compiled, exported):
        for length, size, count in ((3, 4, 3), (5, 2, 2), (2, 7, 3)):
            given = torch.ones(length), torch.ones(size), offsets[:count]
            assert torch.equal(run(*given), eager(*given))
    assert torch.equal(compiled(x, y, offsets[0]), build(3, 4, q_offset=2))
    assert torch.equal(compiled(x, y, 1), build(3, 4, q_offset=1))


def test_a_mask_stands_where_its_offsets_do_or_where_told():
    offsets = torch.ones(2, dtype=torch.int64, device="meta")
    for build in BUILDERS.values():
        assert build(3, 4, q_offset=offsets).device.type == "meta"
        assert build(3, 4, q_offset=torch.tensor([1]), device="meta").device.type == "meta"
        assert build(3, 4, q_offset=torch.tensor([1])).device.type == "cpu"


def test_offsets_are_true_to_their_hints():
    for name in ("causal", "window"):
        checked = jaxtyped(typechecker=beartype)(getattr(masks, name))
        assert checked(3, 4, q_offset=torch.tensor([1, 2])).shape == (2, 1, 3, 4)
        assert checked(3, q_offset=torch.tensor(1)).shape == (3, 3)


def test_padding_reads_no_value_while_compiling():
    compiled = torch.compile(masks.padding, backend="aot_eager", fullgraph=True)
    assert picture(compiled(torch.tensor([1, 2]), max_len=3)) == "x..\nxx."
    assert picture(compiled(torch.tensor([1, 2]), max_len=3, side="left")) == "..x\n.xx"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: masks.causal(-1), ValueError, "T must be 0 or more, got -1"),
        (lambda: masks.window(2, -3), ValueError, "S must be 0 or more, got -3"),
        (lambda: masks.window(2, left=-1), ValueError, "left must be None or 0 or more, got -1"),
        (lambda: masks.causal(2.0), TypeError, "T must be an int, got 2.0"),
        (lambda: masks.causal(True), TypeError, "T must be an int, got True"),
        (lambda: masks.window(2, left=1.0), TypeError, "left must be None or an int, got 1.0"),
        (lambda: masks.window(2, right=True), TypeError, "right must be None or an int, got True"),
        (lambda: masks.window(2, right=-2), ValueError, "right must be None or 0 or more, got -2"),
        (
            lambda: masks.causal(2, q_offset=0.5),
            TypeError,
            "q_offset must be an int or a tensor of ints, got 0.5",
        ),
        (lambda: masks.causal(2, q_offset=False), TypeError, "tensor of ints, got False"),
        (lambda: masks.causal(2, q_offset=[1, 2]), TypeError, "tensor of ints, got \\[1, 2\\]"),
        (lambda: masks.window(2, q_offset=torch.ones(2)), TypeError, "ints, got torch.float32"),
        (lambda: masks.window(2, q_offset=torch.ones(2).bool()), TypeError, "got torch.bool"),
        (lambda: masks.causal(2, q_offset=torch.ones(2) * 1j), TypeError, "got torch.complex64"),
        (lambda: masks.padding([1], side="up"), ValueError, "'right' or 'left', got 'up'"),
        (lambda: masks.padding([4], max_len=3, side="left"), ValueError, "between 0 and 3"),
        (
            lambda: masks.to_keras(torch.ones(2, 2, 4).bool(), torch.ones(2, 3).bool()),
            ValueError,
            "got shapes \\(2, 1, 2, 4\\), \\(2, 1, 1, 3\\)",
        ),
        (lambda: masks.padding([], max_len=-1), ValueError, "max_len must be 0 or more, got -1"),
        (
            lambda: masks.to_additive(torch.ones(2).bool(), torch.int64),
            TypeError,
            "dtype must be a floating-point dtype, got torch.int64",
        ),
        (lambda: masks.to_keras(torch.ones(1, 1, 1, 1, 1).bool()), ValueError, "2 to 4 axes"),
        (lambda: masks.from_transformers([[1, 0]]), TypeError, "must be a tensor, got list"),
        (
            lambda: masks.from_torch(torch.ones(3, 2, 2).bool(), num_heads=0),
            ValueError,
            "num_heads must divide .*got 0",
        ),
        (lambda: masks.padding(), ValueError, "either lengths or ids"),
        (lambda: masks.padding([1], ids=torch.ones(1, 1).long()), ValueError, "either lengths"),
        (lambda: masks.padding([1.5]), TypeError, "lengths must be integers, got torch.float32"),
        (lambda: masks.padding([4], max_len=3), ValueError, "between 0 and 3, got \\[4\\]"),
        (lambda: masks.padding([-1], max_len=3), ValueError, "between 0 and 3, got \\[-1\\]"),
        (lambda: masks.padding(torch.ones(1, 1).long()), ValueError, "shape \\(B,\\)"),
        (lambda: masks.combine(torch.ones(2, 2).long()), TypeError, "say mask.bool"),
        (
            lambda: masks.combine(torch.ones(2, 2).bool(), torch.ones(3, 3).bool()),
            ValueError,
            "got shapes \\(2, 2\\), \\(3, 3\\)",
        ),
        (lambda: masks.to_additive(torch.ones(2)), TypeError, "mask must be a bool tensor"),
        (lambda: masks.from_additive(torch.ones(2).bool()), TypeError, "floating"),
        (lambda: masks.from_additive(torch.ones(2)), ValueError, "got 1; .* mask.bool"),
        (lambda: masks.from_additive(torch.tensor([-0.5])), ValueError, "got -0.5"),
        (lambda: masks.to_torch(torch.ones(2, 3, 3).bool()), ValueError, "num_heads is needed"),
        (lambda: masks.to_torch(torch.ones(3).bool()), ValueError, "2 to 4 axes"),
        (
            lambda: masks.to_torch(torch.ones(1, 3, 2, 2).bool(), num_heads=2),
            ValueError,
            "H=2",
        ),
        (lambda: masks.from_torch(torch.ones(3, 2, 2).bool()), ValueError, "num_heads must divide"),
        (lambda: masks.from_torch(torch.ones(2, 2).long()), TypeError, "attn_mask must be bool"),
        (lambda: masks.from_keras(torch.ones(2, 2).bool()), ValueError, "\\(B, T, S\\)"),
        (lambda: masks.from_transformers(torch.ones(2)), ValueError, "2 or 4 axes"),
        (lambda: masks.from_transformers(torch.full((1, 2), 2)), ValueError, "0 and 1 only"),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_combine_is_and_for_bools_and_sum_for_floats():
    causal, keys = masks.causal(3), torch.tensor([[True, False, True]])[:, None, None]
    both = masks.combine(causal, None, keys)
    assert both.shape == (1, 1, 3, 3)
    assert picture(both[0, 0]) == "x..\nx..\nx.x"
    bias = randn(3, 3)
    added = masks.combine(bias, causal, bias)
    assert torch.equal(added, torch.where(causal, 2 * bias, float("-inf")))
    assert masks.combine(None, None) is None


def test_additive_round_trip_and_the_rows_it_kills():
    mask = masks.padding([0, 2])
    for fill in (float("-inf"), torch.finfo(torch.float16).min, -1e4):
        additive = masks.to_additive(mask, torch.float16, fill=fill)
        assert additive.dtype == torch.float16
        assert additive.max() == 0
        assert torch.equal(masks.from_additive(additive), mask)


def _ours(q, k, v, attn_mask=None, key_mask=None):
    """Attention by the bool definition, plainly: True = may attend."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    for mask in (attn_mask, None if key_mask is None else key_mask[:, None, None]):
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


def _masks_alive():
    generator = torch.Generator().manual_seed(3)
    key_mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    for shape in ((3, 5), (2, 1, 3, 5), (2, 2, 3, 5)):
        attn_mask = torch.rand(*shape, generator=generator) < 0.5
        attn_mask[..., 0] = True  # nobody is left without a key
        yield attn_mask, key_mask


@pytest.mark.parametrize("which", range(3))
def test_to_torch_means_the_same_to_nn_multihead_attention(which):
    attn_mask, key_mask = list(_masks_alive())[which]
    torch_module = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    x, y = randn(2, 3, 8), randn(2, 5, 8, seed=1)
    translated = masks.to_torch(attn_mask, key_mask, num_heads=2)
    _, weights = torch_module(x, y, y, average_attn_weights=False, **translated)
    allowed = attn_mask & key_mask[:, None, None]
    assert torch.equal(weights > 0, allowed.expand(2, 2, 3, 5))
    back = masks.from_torch(**translated, num_heads=2)
    assert torch.equal(back["key_mask"], key_mask)
    assert torch.equal(back["attn_mask"].expand(2, 2, 3, 5), attn_mask.expand(2, 2, 3, 5))


def test_from_torch_keeps_float_masks_and_reads_additive_padding():
    bias = randn(4, 3, 5)
    padding = torch.tensor([[0.0, float("-inf")]])
    back = masks.from_torch(bias, padding, num_heads=2)
    assert torch.equal(back["attn_mask"], bias.view(2, 2, 3, 5))
    assert back["key_mask"].tolist() == [[True, False]]
    assert masks.from_torch() == {"attn_mask": None, "key_mask": None}


@pytest.mark.parametrize("which", range(3))
def test_the_other_conventions_agree_with_the_definition(which):
    attn_mask, key_mask = list(_masks_alive())[which]
    q, k, v = randn(2, 2, 3, 4), randn(2, 2, 5, 4, seed=1), randn(2, 2, 5, 4, seed=2)
    expected = _ours(q, k, v, attn_mask, key_mask)
    keras = masks.to_keras(attn_mask, key_mask)
    assert keras.shape == ((2, 2, 3, 5) if which == 2 else (2, 3, 5))
    close(_ours(q, k, v, **masks.from_keras(keras)), expected)
    additive = masks.to_transformers(attn_mask, key_mask, dtype=torch.float64)
    close(F.scaled_dot_product_attention(q, k, v, additive), expected)
    close(_ours(q, k, v, **masks.from_transformers(additive)), expected)
    four = attn_mask.expand(2, 2, 3, 5)
    assert torch.equal(masks.from_transformers(four)["attn_mask"], four)


def test_transformers_key_mask_is_ones_and_zeros():
    key_mask = masks.padding([1, 2])
    ones = masks.to_transformers(key_mask=key_mask)
    assert ones.tolist() == [[1, 0], [1, 1]]
    assert torch.equal(masks.from_transformers(ones)["key_mask"], key_mask)
    assert masks.to_transformers() is None


def test_keras_takes_three_axes_as_batch():
    mask = torch.rand(2, 3, 5) < 0.5
    assert torch.equal(masks.to_keras(mask), mask)
    key_mask = masks.padding([1, 2])
    assert torch.equal(masks.to_keras(key_mask=key_mask), key_mask[:, None])
    assert masks.to_keras() is None


def test_window_of_w_tokens_sees_w_tokens():
    for width, offset in itertools.product((1, 2, 4), (0, 3)):
        allowed = masks.window(5, 9, left=width - 1, right=0, q_offset=offset)
        assert allowed.sum(-1).tolist() == [min(i + offset + 1, width) for i in range(5)]
