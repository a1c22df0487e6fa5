"""The ladder: each rung takes the weights of the one before and gives the same numbers."""

import pytest
import torch
from support import MASK_NAMES, B, D, E, H, S, T, close, mask_cases, oracle, randn

from mha import MultiHeadAttention, reference
from mha.heads import BatchedHeads, LoopedHeads, SingleHeadAttention, merge_heads, split_heads


def filled(module):
    """float64, with numbers everywhere, biases included."""
    module = module.double()
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=index))
    return module


def test_split_and_merge_by_hand():
    x = torch.arange(2 * 3 * 8.0).view(2, 3, 8)  # feature f of token t of example b: 24 b + 8 t + f
    split = split_heads(x, 2)
    assert split.shape == (2, 2, 3, 4)
    for b, h, t, d in ((0, 0, 0, 0), (1, 0, 2, 3), (0, 1, 1, 2), (1, 1, 2, 0)):
        assert split[b, h, t, d] == 24 * b + 8 * t + 4 * h + d
    assert torch.equal(merge_heads(split), x)
    assert split.data_ptr() == x.data_ptr()  # a view


def test_split_equals_the_reference():
    x = randn(2, 3, 12)
    split = split_heads(x, 3)
    assert (split.numpy() == reference.split_heads(x.numpy(), 3)).all()
    assert (merge_heads(split).numpy() == reference.merge_heads(split.numpy())).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: split_heads(torch.ones(2, 3), 1),
            r"x must have shape \(B, T, H\*D\), got \(2, 3\)",
        ),
        (lambda: split_heads(torch.ones(2, 3, 8), 3), "divide the width 8 of x, got 3"),
        (lambda: split_heads(torch.ones(2, 3, 8), 0), "got 0"),
        (lambda: merge_heads(torch.ones(2, 3, 8)), r"\(B, H, T, D\), got \(2, 3, 8\)"),
        (lambda: LoopedHeads(8, 3), "got embed_dim=8 and num_heads=3"),
        (lambda: BatchedHeads(8, 0), "num_heads must be at least 1, got 0"),
        (lambda: LoopedHeads(8, 2, head_dim=0), "head_dim must be at least 1, got 0"),
        (lambda: LoopedHeads.from_heads([SingleHeadAttention(8, 4)]), "E=8, got 1 of width D=4"),
        (lambda: LoopedHeads.from_heads([]), r"one or more, .*got \[\]"),
        (
            lambda: LoopedHeads.from_heads([SingleHeadAttention(8, 4), SingleHeadAttention(8, 3)]),
            r"alike .*got \[\(8, 3, False\), \(8, 4, False\)\]",
        ),
        *(
            (lambda c=c: c(8, 2)(torch.ones(4, 3, 8), None, torch.ones(4, 3, 8)), "without key")
            for c in (SingleHeadAttention, LoopedHeads, BatchedHeads)
        ),
        *(
            (
                lambda c=c, n=n: c(8, 2)(
                    torch.ones(4, 3, 8), attn_mask=torch.ones(*n, 3, 3).bool()
                ),
                "cannot broadcast from",
            )
            for c in (LoopedHeads, BatchedHeads)
            for n in ((4, 3), (4,))
        ),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("rung", [SingleHeadAttention, LoopedHeads, BatchedHeads])
def test_a_mask_that_is_no_tensor_is_refused(rung):
    with pytest.raises(TypeError, match="attn_mask must be a tensor, got list"):
        rung(8, 2)(torch.ones(2, 3, 8), attn_mask=[[True]])


def gradients(module, x, y, masks):
    """Output, weights, and the gradients of both inputs."""
    x, y = (z.clone().requires_grad_(True) for z in (x, y))
    output, weights = module(x, y, **masks, return_weights=True)
    output.backward(randn(*output.shape, seed=9))
    return output, weights, x.grad, y.grad


def same(one, other, x, y, masks):
    """Forward and backward of two rungs agree."""
    for mine, theirs in zip(
        gradients(one, x, y, masks), gradients(other, x, y, masks), strict=True
    ):
        close(mine, theirs, 1e-11)
    close(one(x, y, **masks), other(x, y, **masks), 1e-11)


@pytest.mark.parametrize("name", [n for n in MASK_NAMES if "H, T, S" not in n])
def test_one_head_equals_the_reference(name):
    head = filled(SingleHeadAttention(E, D))
    x, y = randn(B, T, E, seed=50), randn(B, S, E, seed=51)
    masks = mask_cases(heads=1)[name]
    q, k, v = head.q_proj(x), head.k_proj(y), head.v_proj(y)
    options = dict(masks)
    if options.get("attn_mask") is not None and options["attn_mask"].ndim == 4:
        masks = {**masks, "attn_mask": options["attn_mask"][:, 0]}
    expected = oracle(q[:, None], k[:, None], v[:, None], **options)[:, 0]
    close(head(x, y, **masks), expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_from_one_head_to_a_loop(heads, bias):
    singles = [filled(SingleHeadAttention(E, E // heads, bias=bias)) for _ in range(heads)]
    looped = LoopedHeads.from_heads(singles)
    x, y = randn(B, T, E, seed=50), randn(B, S, E, seed=51)
    expected = torch.cat([single(x, y, is_causal=True) for single in singles], dim=-1)
    close(looped(x, y, is_causal=True), expected)
    with torch.no_grad():
        singles[0].q_proj.weight.zero_()
    close(looped(x, y, is_causal=True), expected)  # a copy: the heads go their own way


@pytest.mark.parametrize("name", MASK_NAMES)
@pytest.mark.parametrize("bias", [True, False])
def test_loop_product_and_module_give_the_same_numbers(name, bias):
    looped = filled(LoopedHeads(E, H, bias=bias))
    batched = BatchedHeads.from_looped(looped)
    module = MultiHeadAttention(E, H, bias=bias, dtype=torch.float64)
    module.load_state_dict(batched.state_dict())
    x, y = randn(B, T, E, seed=50), randn(B, S, E, seed=51)
    masks = mask_cases()[name]
    same(looped, batched, x, y, masks)
    for backend in ("reference", "sdpa"):
        module.backend = backend
        same(batched, module, x, y, masks)


def test_heads_of_another_width():
    looped = filled(LoopedHeads(E, 3, head_dim=5))
    batched = BatchedHeads.from_looped(looped)
    module = MultiHeadAttention(E, 3, head_dim=5, dtype=torch.float64)
    module.load_state_dict(batched.state_dict())
    x, y = randn(B, T, E, seed=50), randn(B, S, E, seed=51)
    same(looped, batched, x, y, {})
    same(batched, module, x, y, {})


def test_self_attention_is_the_default():
    looped = filled(LoopedHeads(E, H))
    batched, x = BatchedHeads.from_looped(looped), randn(B, T, E)
    for module in (looped, batched, looped.heads[0]):
        close(module(x), module(x, x, x))
    assert looped.heads[0](x).shape == (B, T, D)
