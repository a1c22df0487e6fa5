"""The oracle itself: hand-computed numbers, finite differences, autograd."""

import math

import numpy as np
import pytest
import torch
from support import (
    MASK_NAMES,
    ORDER_NAMES,
    B,
    D,
    E,
    H,
    S,
    T,
    close,
    mask_cases,
    order_cases,
    randn,
    to_numpy,
)

from mha import MultiHeadAttention, reference


def test_softmax_by_hand():
    logs = [[0.0, math.log(2.0), math.log(5.0)], [1.0, 1.0, -math.inf]]
    weights = reference.softmax(np.array(logs))
    np.testing.assert_allclose(weights, [[1 / 8, 2 / 8, 5 / 8], [0.5, 0.5, 0.0]], atol=1e-15)


def test_softmax_of_large_scores_does_not_overflow():
    weights = reference.softmax(np.array([1e4, 1e4 - math.log(3.0)]))
    np.testing.assert_allclose(weights, [0.75, 0.25], atol=1e-12)


def test_softmax_of_a_dead_row_is_zero_and_empty_stays_empty():
    assert (reference.softmax(np.full((2, 3), -np.inf)) == 0).all()
    assert reference.softmax(np.zeros((2, 0))).shape == (2, 0)


def test_softmax_along_another_axis():
    weights = reference.softmax(randn(3, 4).numpy(), axis=0)
    np.testing.assert_allclose(weights.sum(axis=0), 1.0)


def test_softmax_hides_no_nan():
    assert np.isnan(reference.softmax(np.array([np.nan, 1.0]))).all()
    with np.errstate(invalid="ignore"):
        assert np.isnan(reference.softmax(np.array([np.inf, 1.0]))).any()


def test_an_integer_mask_is_refused():
    with pytest.raises(TypeError, match="bool or floating, got int64"):
        reference.bias((2, 3), np.ones((2, 3), dtype=int))


def test_attention_by_hand():
    # One query, two keys: scores log 3 and 0 at D = 4, so weights 3/4 and 1/4.
    query = np.array([[[2.0, 0.0, 0.0, 0.0]]])  # (H=1, T=1, D=4)
    key = np.array([[[math.log(3.0), 5.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0]]])  # (1, S=2, 4)
    value = np.array([[[4.0, 0.0], [0.0, 8.0]]])  # (1, 2, D_v=2)
    output, weights = reference.attention(query, key, value, return_weights=True)
    np.testing.assert_allclose(weights, [[[0.75, 0.25]]])
    np.testing.assert_allclose(output, [[[3.0, 2.0]]])


def test_causal_offset_by_hand():
    added = reference.bias((2, 4), is_causal=True, q_offset=1)
    seen = [[True, True, False, False], [True, True, True, False]]
    assert (np.isneginf(added) == ~np.array(seen)).all()


def test_offset_of_each_example_by_hand():
    added = reference.bias((3, 1, 1, 3), is_causal=True, q_offset=np.array([0, 2, -1]))
    seen = [[True, False, False], [True, True, True], [False, False, False]]
    assert added.shape == (3, 1, 1, 3)
    assert (np.isneginf(added[:, 0, 0]) == ~np.array(seen)).all()


@pytest.mark.parametrize(
    ("window", "seen"),
    [
        ((1, 0), ["x...", "xx..", ".xx."]),
        ((0, 2), ["xxx.", ".xxx", "..xx"]),
        ((None, 1), ["xx..", "xxx.", "xxxx"]),
        ((0, None), ["xxxx", ".xxx", "..xx"]),
        ((None, None), ["xxxx", "xxxx", "xxxx"]),
    ],
)
def test_window_by_hand(window, seen):
    seen = np.array([[key == "x" for key in row] for row in seen])
    assert (np.isneginf(reference.bias((3, 4), window=window)) == ~seen).all()
    shifted = reference.bias((2, 4), window=window, q_offset=1)
    assert (np.isneginf(shifted) == ~seen[1:]).all()


def test_cap_by_hand():
    scores = np.array([0.0, math.atanh(0.5), 4.0 * math.atanh(-0.5), 1e4])
    np.testing.assert_allclose(reference.cap(scores, 4.0)[2:], [-2.0, 4.0], atol=1e-15)
    np.testing.assert_allclose(reference.cap(scores, 1.0)[:2], [0.0, 0.5], atol=1e-15)
    np.testing.assert_array_equal(reference.cap(scores, None), scores)


def test_softcap_comes_after_the_scale_and_before_the_mask():
    # Scores 2 * atanh(1/2), halved by the scale, capped at c = 1 give 1/2; the bias is not capped.
    query, key = np.array([[[2.0 * math.atanh(0.5)]]]), np.array([[[1.0], [0.0]]])
    mask = np.array([[2.5, 0.0]])
    options = {"scale": 0.5, "softcap": 1.0, "return_weights": True}
    _, weights = reference.attention(query, key, key, mask, **options)
    np.testing.assert_allclose(np.log(weights[0, 0, 0] / weights[0, 0, 1]), 3.0)


def test_query_heads_read_the_key_heads_in_order():
    x = np.arange(2.0)[:, None, None]  # (H_kv, S=1, D=1)
    np.testing.assert_array_equal(reference.repeat_heads(x, 6)[:, 0, 0], [0, 0, 0, 1, 1, 1])
    grad = np.arange(6.0)[:, None, None]  # (H, 1, 1)
    np.testing.assert_array_equal(reference.repeat_heads_backward(grad, 2)[:, 0, 0], [3, 12])
    with pytest.raises(ValueError, match="num_heads must be a multiple of 2, got 5"):
        reference.repeat_heads(x, 5)


def _numeric_gradient(f, x, step=1e-6):
    """Central differences of a scalar function, one entry at a time."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (f(up) - f(down)) / (2 * step)
    return gradient


def test_softmax_backward_against_finite_differences():
    scores, grad = randn(3, 5, seed=1).numpy(), randn(3, 5, seed=2).numpy()
    got = reference.softmax_backward(reference.softmax(scores), grad)
    expected = _numeric_gradient(lambda s: (reference.softmax(s) * grad).sum(), scores)
    np.testing.assert_allclose(got, expected, atol=1e-8)


# A row of finfo.min swallows any small step of a score by rounding, so no difference shows there.
SMOOTH = [name for name in MASK_NAMES if name != "float, finfo.min"]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", [*SMOOTH, *ORDER_NAMES])
def test_attention_backward_against_finite_differences(name, groups):
    masks = {**mask_cases(heads=2 * groups), **order_cases(heads=2 * groups)}[name]
    masks = {**to_numpy(masks), "scale": 0.3, "enable_gqa": groups > 1}
    q, k, v = randn(B, 2 * groups, T, D), randn(B, 2, S, D, seed=1), randn(B, 2, S, D + 1, seed=2)
    operands = [x.numpy() for x in (q, k, v)]
    grad = randn(B, 2 * groups, T, D + 1, seed=3).numpy()
    got = reference.attention_backward(grad, *operands, **masks)
    for place, gradient in enumerate(got):

        def loss(x, place=place):
            changed = [*operands[:place], x, *operands[place + 1 :]]
            return (reference.attention(*changed, **masks) * grad).sum()

        expected = _numeric_gradient(loss, operands[place])
        np.testing.assert_allclose(gradient, expected, atol=1e-7)


def _autograd_attention(q, k, v, masks, softcap=None):
    """A second opinion: torch's own softmax and autograd, with dead rows cut out by hand."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    added = torch.from_numpy(reference.bias(tuple(scores.shape), **to_numpy(masks)))
    dead = added.isneginf().all(-1, keepdim=True)
    return (scores + added.masked_fill(dead, 0.0)).softmax(-1) @ v * ~dead


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", [*MASK_NAMES, *ORDER_NAMES])
def test_attention_backward_against_autograd(name, groups):
    masks = {**mask_cases(heads=2 * groups), **order_cases(heads=2 * groups)}[name]
    softcap = masks.pop("softcap", None)
    operands = [
        randn(B, h, n, d, seed=i, requires_grad=True)
        for i, (h, n, d) in enumerate(((2 * groups, T, D), (2, S, D), (2, S, D + 1)))
    ]
    output = _autograd_attention(*operands, masks, softcap)
    grad = randn(*output.shape, seed=9)
    expected = torch.autograd.grad(output, operands, grad)
    arrays = [x.detach().numpy() for x in operands]
    options = {**to_numpy(masks), "softcap": softcap, "enable_gqa": groups > 1}
    close(torch.from_numpy(reference.attention(*arrays, **options)), output)
    got = reference.attention_backward(grad.numpy(), *arrays, **options)
    for mine, theirs in zip(got, expected, strict=True):
        close(torch.from_numpy(mine), theirs)


GROUPED = {"none": 1, "causal and key_mask": 1, "window (2, 0), q_offset (B,)": 1, "all": 1}


@pytest.mark.parametrize(
    ("name", "kv_heads"),
    [*((name, H) for name in (*SMOOTH, "softcap", "all")), *GROUPED.items()],
)
def test_multi_head_backward_against_finite_differences(name, kv_heads):
    masks = to_numpy({**mask_cases(), **order_cases()}[name])
    masks |= {} if kv_heads == H else {"num_kv_heads": kv_heads}
    width = kv_heads * D
    shapes = (E, E), (3, width), (7, width), (E, E), (E,), (width,), (width,), (E,)
    drawn = (0.5 * randn(*shape, seed=20 + i).numpy() for i, shape in enumerate(shapes))
    parameters = reference.Parameters(*drawn)
    inputs = [randn(B, T, E).numpy(), randn(B, S, 3).numpy(), randn(B, S, 7).numpy()]
    grad = randn(B, T, E, seed=5).numpy()

    def loss(inputs, parameters):
        return (reference.multi_head_attention(*inputs, parameters, H, **masks) * grad).sum()

    *got, got_parameters = reference.multi_head_attention_backward(
        grad, *inputs, parameters, H, **masks
    )
    for place, gradient in enumerate(got):
        expected = _numeric_gradient(
            lambda x, i=place: loss([*inputs[:i], x, *inputs[i + 1 :]], parameters), inputs[place]
        )
        np.testing.assert_allclose(gradient, expected, atol=1e-7)
    for field, gradient in got_parameters._asdict().items():
        expected = _numeric_gradient(
            lambda x, f=field: loss(inputs, parameters._replace(**{f: x})),
            np.array(getattr(parameters, field)),
        )
        np.testing.assert_allclose(gradient, expected, atol=1e-7, err_msg=field)


def test_multi_head_attention_is_its_heads_side_by_side():
    module = MultiHeadAttention(E, H, dtype=torch.float64)
    p = reference.Parameters.from_module(module)
    x, y = randn(B, T, E).numpy(), randn(B, S, E, seed=1).numpy()
    heads = []
    for h in range(H):
        own = slice(h * D, (h + 1) * D)
        q, k, v = x @ p.w_q[:, own], y @ p.w_k[:, own], y @ p.w_v[:, own]
        heads.append(reference.softmax(q @ k.transpose(0, 2, 1) / math.sqrt(D)) @ v)
    expected = np.concatenate(heads, axis=-1) @ p.w_o
    np.testing.assert_allclose(reference.multi_head_attention(x, y, y, p, H), expected, atol=1e-13)


def test_fewer_key_heads_are_the_same_maps_several_times():
    shapes = (E, 4 * 2), (E, 2 * 2), (E, 2 * 2), (4 * 2, E)
    p = reference.Parameters(*(randn(*shape, seed=i).numpy() for i, shape in enumerate(shapes)))
    x, y = randn(B, T, E).numpy(), randn(B, S, E, seed=1).numpy()
    columns = np.array([0, 1, 0, 1, 2, 3, 2, 3])  # two query heads in turn read one key head
    full = p._replace(w_k=p.w_k[:, columns], w_v=p.w_v[:, columns])
    expected = reference.multi_head_attention(x, y, y, full, 4, is_causal=True)
    grouped = reference.multi_head_attention(x, y, y, p, 4, num_kv_heads=2, is_causal=True)
    np.testing.assert_allclose(grouped, expected, atol=1e-13)


def test_nothing_at_an_excluded_key_reaches_the_result():
    q, k, v = (randn(B, H, n, D).numpy() for n in (T, S, S))
    key_mask = np.array([[True] * 5, [True, True, True, True, False]])
    clean = reference.attention(q, k, v, key_mask=key_mask)
    k[1, :, 4], v[1, :, 4] = np.nan, np.inf
    np.testing.assert_array_equal(reference.attention(q, k, v, key_mask=key_mask), clean)
    grads = reference.attention_backward(np.ones_like(q), q, k, v, key_mask=key_mask)
    assert all(np.isfinite(g).all() for g in grads)


def test_nothing_at_an_excluded_key_reaches_the_result_of_the_module():
    parameters = reference.Parameters(*(randn(E, E, seed=i).numpy() for i in range(4)))
    x, y = randn(B, T, E).numpy(), randn(B, S, E, seed=1).numpy()
    key_mask = np.array([[True] * 5, [True, True, True, True, False]])
    clean = reference.multi_head_attention(x, y, y, parameters, H, key_mask=key_mask)
    y[1, 4] = np.nan
    dirty = reference.multi_head_attention(x, y, y, parameters, H, key_mask=key_mask)
    np.testing.assert_array_equal(dirty, clean)
    *grads, of_parameters = reference.multi_head_attention_backward(
        np.ones_like(x), x, y, y, parameters, H, key_mask=key_mask
    )
    assert all(np.isfinite(g).all() for g in [*grads, *of_parameters])


def test_tensors_are_taken_for_arrays_and_all_is_float64():
    tensors = [randn(2, 3, 4, seed=seed, dtype=torch.float32) for seed in range(4)]
    expected = reference.attention_backward(*(x.double().numpy() for x in tensors))
    for mine, theirs in zip(reference.attention_backward(*tensors), expected, strict=True):
        assert mine.dtype == np.float64 and (mine == theirs).all()
