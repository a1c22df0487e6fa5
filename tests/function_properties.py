"""What every scaled dot-product attention must satisfy, each as a function of ``attend``.

``attend`` has the interface of ``mha.scaled_dot_product_attention``, backend aside.
test_mutations.py runs these on the package's function and on faulty ones, each of which must fail
at least one.
"""

import math

import torch
from support import B, D, H, S, T, close, mask_cases, oracle, order_cases, randn, to_numpy

from mha import reference

ALL = {}
WINDOWS = [(0, 0), (1, 0), (0, 1), (2, 1), (None, 1), (1, None), (3, 3), (None, None)]


def holds(function):
    """Enter a property in the list."""
    ALL[function.__name__] = function
    return function


def all_cases(length):
    """Every mask, window and offset; a softcap has a property of its own."""
    order = order_cases(length=length)
    for masks in order.values():
        masks.pop("softcap", None)
    return mask_cases(length=length) | order


def operands(length=T, width=D + 1, requires_grad=False):
    """Queries (B, H, length, D), keys (B, H, S, D) and values (B, H, S, width)."""
    shapes = (B, H, length, D), (B, H, S, D), (B, H, S, width)
    return [randn(*shape, seed=i, requires_grad=requires_grad) for i, shape in enumerate(shapes)]


@holds
def has_the_right_shape(attend):
    """Output (B, H, T, D) and weights (B, H, T, S): the test that most people stop at."""
    output, weights = attend(*operands(width=D), return_weights=True)
    assert output.shape == (B, H, T, D) and weights.shape == (B, H, T, S)


@holds
def equals_the_oracle(attend):
    """Output and weights, for every mask, window and offset, on unequal sizes and on a square."""
    for length in (T, S):
        q, k, v = operands(length)
        for name, masks in all_cases(length).items():
            output, weights = attend(q, k, v, **masks, return_weights=True)
            expected, expected_weights = oracle(q, k, v, **masks, return_weights=True)
            close(output, expected, 1e-11, name)
            close(weights, expected_weights, 1e-11, name)


@holds
def gradients_equal_the_oracle(attend):
    """Gradients of queries, keys and values, for every mask, window and offset."""
    for length in (T, S):
        for name, masks in all_cases(length).items():
            inputs = operands(length, requires_grad=True)
            grad = randn(B, H, length, D + 1, seed=4)
            attend(*inputs, **masks).backward(grad)
            arrays = (x.detach().numpy() for x in inputs)
            expected = reference.attention_backward(grad.numpy(), *arrays, **to_numpy(masks))
            for x, theirs in zip(inputs, expected, strict=True):
                assert x.grad is not None, name
                close(x.grad, torch.from_numpy(theirs), 1e-10, name)


@holds
def the_scale_multiplies_the_scores(attend):
    """It is 1/sqrt(D) by default; halve it and double the queries, and nothing changes."""
    q, k, v = operands()
    close(attend(q, k, v), attend(q, k, v, scale=1 / math.sqrt(D)), 1e-11)
    close(attend(2 * q, k, v, scale=0.3), attend(q, k, v, scale=0.6), 1e-11)
    assert (attend(q, k, v, scale=0.3) - attend(q, k, v, scale=0.6)).abs().max() > 1e-3


@holds
def the_past_ignores_the_future(attend):
    """Causal: change key j, and just the queries i with j <= i + q_offset move."""
    q, k, v = operands()
    for q_offset in (0, 2):
        before = attend(q, k, v, is_causal=True, q_offset=q_offset)
        for j in range(S):
            other_k, other_v = k.clone(), v.clone()
            other_k[..., j, :] += 3.0
            other_v[..., j, :] += 3.0
            after = attend(q, other_k, other_v, is_causal=True, q_offset=q_offset)
            moved = (after - before).abs().amax((0, 1, 3)) > 1e-9  # (T,)
            assert torch.equal(moved, torch.arange(T) + q_offset >= j), (q_offset, j)


@holds
def a_step_equals_the_whole(attend):
    """The last queries alone, told their position, get what they get among all."""
    q, k, v = operands(length=S)
    for masks in ({"is_causal": True}, {"window": (1, 0)}, {"window": (2, 1)}):
        whole = attend(q, k, v, **masks)
        for start in range(S):
            part = attend(q[:, :, start:], k, v, **masks, q_offset=start)
            close(part, whole[:, :, start:], 1e-11, (masks, start))


@holds
def a_window_sees_what_it_says(attend):
    """Change key j, and just the queries i with -left <= j - (i + q_offset) <= right move."""
    q, k, v = operands()
    for window in WINDOWS:
        for masks in ({}, {"q_offset": 2}, {"q_offset": -1}, {"is_causal": True}):
            before = attend(q, k, v, window=window, **masks)
            left, right = (math.inf if side is None else side for side in window)
            right = min(right, 0) if "is_causal" in masks else right
            for j in range(S):
                other = v.clone()
                other[..., j, :] += 3.0
                after = attend(q, k, other, window=window, **masks)
                moved = (after - before).abs().amax((0, 1, 3)) > 1e-9  # (T,)
                distance = j - torch.arange(T) - masks.get("q_offset", 0)
                inside = (-left <= distance) & (distance <= right)
                assert torch.equal(moved, inside), (window, masks, j)


@holds
def each_example_has_its_own_offset(attend):
    """With an offset for each, an example gets what it gets alone with its own."""
    q, k, v = operands()
    offsets = torch.tensor([2, -1])
    for masks in ({"is_causal": True}, {"window": (1, 0)}, {"window": (0, 2)}):
        for order in (offsets, offsets.flip(0)):
            whole = attend(q, k, v, **masks, q_offset=order)
            for b in range(B):
                own = (x[b : b + 1] for x in (q, k, v))
                alone = attend(*own, **masks, q_offset=order[b].item())
                close(whole[b : b + 1], alone, 1e-11, (masks, b))


@holds
def grouped_heads_read_key_heads_in_order(attend):
    """Six query heads on three key heads: neighbours share one, and its gradient is their sum."""
    shapes = (B, 6, T, D), (B, 3, S, D), (B, 3, S, D + 1)
    few = [randn(*shape, seed=i, requires_grad=True) for i, shape in enumerate(shapes)]
    for masks in ({}, {"is_causal": True, "q_offset": 1}, {"window": (1, 1)}):
        many = [few[0], *(x[:, [0, 0, 1, 1, 2, 2]] for x in few[1:])]  # (B, 6, S, width)
        grouped = attend(*few, **masks, enable_gqa=True, return_weights=True)
        spread = attend(*many, **masks, return_weights=True)
        for mine, theirs in zip(grouped, spread, strict=True):
            close(mine, theirs, 1e-11, masks)
        grad = randn(B, 6, T, D + 1, seed=4)
        for mine, theirs in zip(
            torch.autograd.grad(grouped[0], few, grad),
            torch.autograd.grad(spread[0], few, grad),
            strict=True,
        ):
            close(mine, theirs, 1e-11, masks)


@holds
def the_softcap_bends_the_scores(attend):
    """c tanh(s / c), after the scale and before the mask; a backend without it says so."""
    inputs, scale, c = operands(requires_grad=True), 0.8, 0.9
    try:
        attend(*inputs, softcap=c)
    except ValueError as refusal:
        assert "softcap" in str(refusal)
        return
    q, k, v = (x.detach().numpy() for x in inputs)
    for name, masks in all_cases(T).items():
        masks = {**masks, "scale": scale, "softcap": c}
        output, weights = attend(*inputs, **masks, return_weights=True)
        expected, expected_weights = oracle(*inputs, **masks, return_weights=True)
        close(output, expected, 1e-11, name)
        close(weights, expected_weights, 1e-11, name)
        grad = randn(B, H, T, D + 1, seed=4)
        expected = reference.attention_backward(grad.numpy(), q, k, v, **to_numpy(masks))
        got = torch.autograd.grad(output, inputs, grad)
        for mine, theirs in zip(got, expected, strict=True):
            close(mine, torch.from_numpy(theirs), 1e-10, name)


@holds
def masks_compose_by_and(attend):
    """Masks given apart are one mask, joined by AND."""
    q, k, v = operands(length=S)
    bits = mask_cases(length=S)["bool, causal and key_mask"]
    lower = torch.ones(S, S, dtype=torch.bool).tril()
    joined = bits["attn_mask"] & bits["key_mask"][:, None, None] & lower
    close(attend(q, k, v, **bits), attend(q, k, v, joined), 1e-11)


@holds
def adding_log_two_is_a_second_key(attend):
    """A float mask is log-odds: log 2 counts a key twice, -inf leaves it out."""
    q, k, v = operands()
    twice = torch.tensor([0, 1, 2, 3, 4, 4])
    bias = torch.zeros(T, S, dtype=torch.float64)
    bias[:, 4] = math.log(2)
    close(attend(q, k, v, bias), attend(q, k[:, :, twice], v[:, :, twice]), 1e-11)
    bias[:, 4] = float("-inf")
    close(attend(q, k, v, bias), attend(q, k[:, :, :4], v[:, :, :4]), 1e-11)


@holds
def padding_changes_nothing(attend):
    """What stands at padded keys, and how many there are, is without effect."""
    q, k, v = operands()
    expected = attend(q, k, v)
    k, v = (torch.cat([x, 50.0 * randn(B, H, 2, x.shape[-1], seed=5)], dim=2) for x in (k, v))
    key_mask = (torch.arange(S + 2) < S).expand(B, -1)
    close(attend(q, k, v, key_mask=key_mask), expected, 1e-11)


@holds
def keys_have_no_order_and_queries_keep_theirs(attend):
    """Permute keys and values: nothing. Permute the queries: the output follows."""
    q, k, v = operands()
    expected = attend(q, k, v)
    keys, queries = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 1])
    close(attend(q, k[:, :, keys], v[:, :, keys]), expected, 1e-11)
    close(attend(q[:, :, queries], k, v), expected[:, :, queries], 1e-11)


@holds
def heads_and_examples_are_independent(attend):
    """Each head of each example alone, with its own mask, gives what it gives among all."""
    q, k, v = operands()
    allowed = mask_cases()["bool (B, H, T, S)"]["attn_mask"]
    whole = attend(q, k, v, allowed)
    for b in range(B):
        for h in range(H):
            own = (slice(b, b + 1), slice(h, h + 1))
            close(attend(q[own], k[own], v[own], allowed[own]), whole[own], 1e-11, (b, h))


@holds
def outputs_lie_between_the_values(attend):
    """A weighted mean: never above the largest value allowed, never below the smallest."""
    q, k, v = operands()
    for j in range(1, S + 1):
        output = attend(q, k, v + 10.0, torch.arange(S) < j)
        seen = v[:, :, :j] + 10.0
        low, high = (edge[:, :, None] for edge in (seen.amin(2), seen.amax(2)))
        assert ((output > low - 1e-9) & (output < high + 1e-9)).all(), j


@holds
def a_query_without_keys_gives_zero(attend):
    """Output and weights exactly 0, gradients finite; the other rows unharmed."""
    q, k, v = operands(requires_grad=True)
    allowed = torch.ones(T, S, dtype=torch.bool)
    allowed[1] = False
    output, weights = attend(q, k, v, allowed, return_weights=True)
    assert (output[:, :, 1] == 0).all() and (weights[:, :, 1] == 0).all()
    close(output[:, :, [0, 2]], attend(q, k, v)[:, :, [0, 2]], 1e-11)
    output.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@holds
def poison_at_padding_goes_nowhere(attend):
    """NaN at an excluded key reaches neither output nor gradient."""
    q, k, v = operands()
    key_mask = torch.tensor([[True] * S, [True, True, False, True, False]])
    expected = attend(q, k, v, key_mask=key_mask)
    for x in (k, v):
        x.masked_fill_(~key_mask[:, None, :, None], float("nan"))
    for x in (q, k, v):
        x.requires_grad_(True)
    output = attend(q, k, v, key_mask=key_mask)
    close(output, expected, 1e-11)
    output.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@holds
def rows_of_weights_sum_to_one(attend):
    """With dropout and without, whatever the mask; no weight is negative."""
    for dropout_p in (0.0, 0.5):
        for name, masks in mask_cases().items():
            weights = attend(*operands(), dropout_p=dropout_p, **masks, return_weights=True)[1]
            total = weights.sum(-1)
            assert (torch.isclose(total, torch.ones_like(total)) | (total == 0)).all(), name
            assert (weights >= 0).all(), name


@holds
def dropout_is_unbiased(attend):
    """Two draws differ, and the mean over many is the output without dropout."""
    q, k, v = (x[:1] for x in operands())
    expected = attend(q, k, v)
    draws = attend(*(x.expand(6000, -1, -1, -1) for x in (q, k, v)), dropout_p=0.3)
    assert not torch.allclose(draws[0], draws[1])
    error = draws.std(0) / 6000**0.5
    assert ((draws.mean(0) - expected[0]).abs() < 5 * error).all()


@holds
def weights_asked_for_change_no_output(attend):
    """For every mask, with dropout from one seed and without."""
    q, k, v = operands()
    for dropout_p in (0.0, 0.5):
        for name, masks in mask_cases().items():
            torch.manual_seed(1)
            alone = attend(q, k, v, dropout_p=dropout_p, **masks)
            torch.manual_seed(1)
            beside = attend(q, k, v, dropout_p=dropout_p, **masks, return_weights=True)[0]
            assert torch.equal(alone, beside), name


@holds
def inputs_are_left_alone(attend):
    """No tensor of the caller is written to."""
    for name, masks in mask_cases().items():
        given = [*operands(), *(x for x in masks.values() if isinstance(x, torch.Tensor))]
        copies = [x.clone() for x in given]
        attend(*given[:3], **masks)
        assert all(torch.equal(x, copy) for x, copy in zip(given, copies, strict=True)), name


@holds
def half_precision_stays_close_and_keeps_its_dtype(attend):
    """float16 and bfloat16, masks and a dead row included: no overflow, no other dtype."""
    q, k, v = operands()
    masks = mask_cases()["causal and key_mask"]
    expected = attend(q, k, v, **masks)
    for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.06)):
        halves = (x.to(dtype) for x in (q, k, v))
        output, weights = attend(*halves, **masks, return_weights=True)
        assert output.dtype == weights.dtype == dtype
        close(output, expected, tolerance)


@holds
def everything_stays_on_its_device(attend):
    """No step falls back to the CPU, whatever the mask; the meta device stands for a GPU."""
    for name, masks in mask_cases().items():
        masks = {k: m.to("meta") if isinstance(m, torch.Tensor) else m for k, m in masks.items()}
        output = attend(*(x.to("meta") for x in operands()), **masks)
        assert output.device.type == "meta", name


@holds
def large_scores_do_not_break_a_mask(attend):
    """Scores of many thousands, and still what is masked is masked."""
    q, k, v = operands()
    key_mask = mask_cases()["key_mask"]["key_mask"]
    output, weights = attend(5000.0 * q, k, v, key_mask=key_mask, return_weights=True)
    assert output.isfinite().all()
    assert (weights.masked_select(~key_mask[:, None, None]) == 0).all()


@holds
def empty_axes_work(attend):
    """B = 0, T = 0 and S = 0 give outputs of the right shape; without keys they are zero."""
    for batch, length, size in ((0, T, S), (B, 0, S), (B, T, 0)):
        q, k, v = (randn(batch, H, n, D) for n in (length, size, size))
        output, weights = attend(q, k, v, return_weights=True)
        assert weights.shape == (batch, H, length, size)
        assert torch.equal(output, torch.zeros(batch, H, length, D, dtype=torch.float64))
