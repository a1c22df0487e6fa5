"""What every multi-head attention must satisfy, each as a function of ``make``.

``make(embed_dim, num_heads, **options)`` builds a float64 module with the interface of
``mha.MultiHeadAttention``. test_multihead.py runs these on the package's module,
test_mutations.py on faulty ones, each of which must fail at least one.
"""

import copy
import math

import torch
from support import B, D, E, H, S, T, close, mask_cases, randn, to_numpy

from mha import KVCache, reference
from mha.positions import Rotary

ALL = {}


def holds(function):
    """Enter a property in the list."""
    ALL[function.__name__] = function
    return function


def built(make, *args, **options):
    """A float64 module in eval mode, with biases that are not zero."""
    torch.manual_seed(0)
    module = make(*args, **options).double().eval()
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=100 + index) * 0.6)
    return module


def inputs(requires_grad=False):
    """x (B, T, E) for queries and y (B, S, E) for keys and values."""
    return (
        randn(B, T, E, seed=1, requires_grad=requires_grad),
        randn(B, S, E, seed=2, requires_grad=requires_grad),
    )


def operands(length, size, requires_grad=False):
    """Three different inputs: queries (B, length, E), keys and values (B, size, E)."""
    return [
        randn(B, n, E, seed=i, requires_grad=requires_grad)
        for i, n in enumerate((length, size, size))
    ]


@holds
def has_the_right_shape(make):
    """Output (B, T, E) and weights (B, H, T, S): the test that most people stop at."""
    output, weights = built(make, E, H)(*inputs(), return_weights=True)
    assert output.shape == (B, T, E) and weights.shape == (B, H, T, S)


@holds
def equals_the_oracle(make):
    """Output and weights, for every mask, on unequal sizes and on a square."""
    module = built(make, E, H)
    parameters = reference.Parameters.from_module(module)
    for length in (T, S):
        inputs = operands(length, S)
        arrays = [x.numpy() for x in inputs]
        for name, masks in mask_cases(length=length).items():
            output, weights = module(*inputs, **masks, return_weights=True)
            expected, expected_weights = reference.multi_head_attention(
                *arrays, parameters, H, return_weights=True, **to_numpy(masks)
            )
            close(output, torch.from_numpy(expected), 1e-11, name)
            close(weights, torch.from_numpy(expected_weights), 1e-11, name)


@holds
def gradients_equal_the_oracle(make):
    """Gradients of the three inputs and of all eight parameters, for every mask."""
    for length in (T, S):
        for name, masks in mask_cases(length=length).items():
            module = built(make, E, H)
            inputs = operands(length, S, requires_grad=True)
            grad = randn(B, length, E, seed=4)
            module(*inputs, **masks).backward(grad)
            *expected, expected_parameters = reference.multi_head_attention_backward(
                grad.numpy(),
                *(x.detach().numpy() for x in inputs),
                reference.Parameters.from_module(module),
                H,
                **to_numpy(masks),
            )
            assert all(p.grad is not None for p in module.parameters())
            linears = module.q_proj, module.k_proj, module.v_proj, module.out_proj
            got = [x.grad for x in inputs]
            got += [linear.weight.grad.T for linear in linears]
            got += [linear.bias.grad for linear in linears]
            for mine, theirs in zip(got, [*expected, *expected_parameters], strict=True):
                close(mine, torch.from_numpy(theirs), 1e-10, name)


@holds
def the_scale_multiplies_the_scores(make):
    """Halve it and double the queries, and nothing changes; halve it alone, and all does."""
    x, y = inputs()
    whole, half = (built(make, E, H, scale=scale) for scale in (0.6, 0.3))
    assert (whole(x, y) - half(x, y)).abs().max() > 1e-3
    with torch.no_grad():
        half.q_proj.weight *= 2.0
        half.q_proj.bias *= 2.0
    close(half(x, y), whole(x, y), 1e-11)


@holds
def the_past_ignores_the_future(make):
    """Causal self-attention: change position i, and nothing before i moves, but i does."""
    module = built(make, E, H, is_causal=True)
    x = randn(B, S, E)
    before = module(x)
    for i in range(S):
        changed = x.clone()
        changed[:, i] += 3.0
        moved = (module(changed) - before).abs().amax((0, 2)) > 1e-9
        assert not moved[:i].any(), f"position {i} reached the past"
        assert moved[i:].all(), f"position {i} did not reach itself and all that follows"


@holds
def a_window_sees_what_it_says(make):
    """Change key j, and just the queries i with -left <= j - i <= right move."""
    x, y = inputs()
    for window in ((0, 0), (1, 0), (0, 1), (2, 1), (None, 1), (1, None)):
        for is_causal in (False, True):
            module = built(make, E, H, window=window, is_causal=is_causal)
            before = module(x, y)
            left, right = (math.inf if side is None else side for side in window)
            right = min(right, 0) if is_causal else right
            for j in range(S):
                changed = y.clone()
                changed[:, j] += 3.0
                moved = (module(x, changed) - before).abs().amax((0, 2)) > 1e-9  # (T,)
                distance = j - torch.arange(T)
                inside = (-left <= distance) & (distance <= right)
                assert torch.equal(moved, inside), (window, is_causal, j)


@holds
def grouped_heads_read_key_heads_in_order(make):
    """Four query heads on two key heads: as four key heads, of which neighbours are alike."""
    few, many = (built(make, E, 4, num_kv_heads=heads) for heads in (2, 4))
    rows = torch.tensor([0, 1, 0, 1, 2, 3, 2, 3])  # of the two heads of width 2, each twice
    state = {name: x.clone() for name, x in few.state_dict().items()}
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
        state[name] = state[name][rows]
    many.load_state_dict(state)
    x, y = inputs()
    for masks in ({}, {"is_causal": True}):
        grouped, spread = (module(x, y, **masks, return_weights=True) for module in (few, many))
        for mine, theirs in zip(grouped, spread, strict=True):
            close(mine, theirs, 1e-11, masks)


@holds
def the_softcap_bends_the_scores(make):
    """c tanh(s / c), after the scale and before the mask; a backend without it says so."""
    try:
        module = built(make, E, H, softcap=0.9)
        module(*inputs())
    except ValueError as refusal:
        assert "softcap" in str(refusal)
        return
    parameters, triple = reference.Parameters.from_module(module), operands(T, S)
    arrays = [x.numpy() for x in triple]
    for name, masks in mask_cases().items():
        output, weights = module(*triple, **masks, return_weights=True)
        expected, expected_weights = reference.multi_head_attention(
            *arrays, parameters, H, softcap=0.9, return_weights=True, **to_numpy(masks)
        )
        close(output, torch.from_numpy(expected), 1e-11, name)
        close(weights, torch.from_numpy(expected_weights), 1e-11, name)


def turned(x, positions, width, interleaved):
    """The first ``width`` features of x (B, H, T, D) as complex numbers, times exp(i angle)."""
    part, rest = x[..., :width], x[..., width:]
    pairs = part.unflatten(-1, (-1, 2)) if interleaved else part.unflatten(-1, (2, -1)).mT
    angle = positions[..., None] * 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    angle = angle if angle.ndim == 2 else angle[:, None]  # (T, n) or (B, 1, T, n)
    numbers = torch.view_as_complex(pairs.contiguous()) * torch.polar(
        torch.ones(()).double(), angle
    )
    pairs = torch.view_as_real(numbers)  # (B, H, T, n, 2)
    return torch.cat([(pairs if interleaved else pairs.mT).flatten(-2), rest], dim=-1)


def by_hand(module, x, change):
    """Output of self-attention where ``change(x, name)`` makes of queries and keys what they are."""
    q, k, v = (
        linear(x).unflatten(-1, (-1, D)).transpose(1, 2)
        for linear in (module.q_proj, module.k_proj, module.v_proj)
    )
    arrays = (y.detach().numpy() for y in (change(q, "q"), change(k, "k"), v))
    joined = torch.from_numpy(reference.attention(*arrays, is_causal=module.is_causal))
    return module.out_proj(joined.transpose(1, 2).flatten(2))


@holds
def a_rotation_is_a_product_of_complex_numbers(make):
    """Pairs of features times exp(i p w), by hand: halves or neighbours, all or the first two."""
    x = randn(B, S, E)
    for rope in (Rotary(), Rotary(interleaved=True), Rotary(2), Rotary(2, interleaved=True)):
        for positions in (torch.arange(S), torch.tensor([[0, 3, 1, 7, 5], [9, 2, 4, 4, 0]])):
            module = built(make, E, H, rope=rope, is_causal=True)
            how = positions, rope.dim or D, rope.interleaved
            expected = by_hand(module, x, lambda y, _, how=how: turned(y, *how))
            close(module(x, positions=positions), expected, 1e-10, how)
            if positions.ndim == 1:
                close(module(x), expected, 1e-10, how)


@holds
def only_distances_count_for_a_rotation(make):
    """Move all positions by one number, and nothing changes; stretch them, and all does."""
    module, x = built(make, E, H, rope=Rotary()), randn(B, S, E)
    expected = module(x)
    for shift in (-3, 11):
        close(module(x, positions=torch.arange(S) + shift), expected, 1e-10, shift)
    stretched = module(x, positions=2 * torch.arange(S))
    assert ((stretched - expected).abs().amax((0, 2)) > 1e-6).all()


@holds
def a_token_takes_its_position_along(make):
    """Permute the tokens of each example with their positions, and the outputs follow."""
    module, x = built(make, E, H, rope=Rotary()), randn(B, S, E)
    expected = module(x)
    order = torch.tensor([[3, 0, 4, 1, 2], [1, 0, 2, 4, 3]])  # (B, S), and positions too
    one = order[0]
    close(module(x[:, one], positions=one), expected[:, one], 1e-10)
    each = torch.arange(B)[:, None]
    close(module(x[each, order], positions=order), expected[each, order], 1e-10)
    assert (module(x[:, one]) - expected[:, one]).abs().max() > 1e-3


@holds
def heads_are_normed_one_by_one_before_they_turn(make):
    """By hand: each head's query and key to length one (or mean 0, spread 1), then weights."""
    x = randn(B, S, E)
    for kind in ("rms", "layer"):
        for rope in (None, Rotary()):
            module = built(make, E, H, qk_norm=kind, rope=rope)
            state = module.state_dict()

            def change(y, name, kind=kind, rope=rope, state=state):
                y = y - y.mean(-1, keepdim=True) if kind == "layer" else y
                y = y / y.square().mean(-1, keepdim=True).sqrt() * state[f"{name}_norm.weight"]
                y = y + state.get(f"{name}_norm.bias", 0.0)
                return y if rope is None else turned(y, torch.arange(S), D, False)

            close(module(x), by_hand(module, x, change), 1e-4, (kind, rope))


def gone_on(module, x, sizes, room, key_mask=None):
    """Outputs of a module that gets x in pieces of these sizes, with a cache; a mask for the first."""
    cache, outputs = KVCache.for_module(module, x.shape[0], room), []
    with torch.no_grad():
        for piece in x.split(sizes, dim=1):
            outputs.append(module(piece, key_mask=key_mask, cache=cache))
            key_mask = None
    return torch.cat(outputs, dim=1)


@holds
def a_cache_changes_nothing(make):
    """Token by token or in pieces, with a cache: what one causal pass over all tokens gives."""
    x = randn(B, S, E)
    engine = {"num_kv_heads": 1, "qk_norm": "rms", "rope": Rotary(interleaved=True)}
    for options in ({}, {"rope": Rotary()}, {"window": (2, 0)}, {"window": (1, 0), **engine}):
        module = built(make, E, H, is_causal=True, **options)
        with torch.no_grad():
            expected = module(x)
        for sizes in ((1, 1, 1, 1, 1), (3, 2), (2, 1, 2)):
            room = 4 if options.get("window") == (2, 0) and sizes != (3, 2) else S
            close(gone_on(module, x, sizes, room), expected, 1e-10, (options, sizes))


@holds
def padded_prompts_go_on_as_if_alone(make):
    """Prompts of two lengths in one batch, padded left or right: each goes on as if alone."""
    x, short = randn(B, S + 2, E), 3
    for options in ({}, {"rope": Rotary()}, {"window": (2, 0)}):
        module = built(make, E, H, is_causal=True, **options)
        with torch.no_grad():
            alone = module(x[:1])[0, S:], module(x[1:, : short + 2])[0, short:]
        for side in ("left", "right"):
            keys, prompt = torch.arange(S), x[:, :S].clone()
            key_mask = torch.stack(
                [keys >= 0, keys < short if side == "right" else keys >= S - short]
            )
            prompt[1, key_mask[1]] = x[1, :short]
            new = torch.stack([x[0, S:], x[1, short : short + 2]])
            tokens = torch.cat([prompt, new], dim=1)
            output = gone_on(module, tokens, (S, 1, 1), S + 2, key_mask)[:, S:]
            close(output, torch.stack(alone), 1e-10, (options, side))


@holds
def padding_changes_nothing(make):
    """What stands at padded keys, and how many there are, is without effect."""
    module = built(make, E, H)
    x, y = inputs()
    expected = module(x, y)
    padded = torch.cat([y, 50.0 * randn(B, 2, E, seed=5)], dim=1)
    key_mask = (torch.arange(S + 2) < S).expand(B, -1)
    close(module(x, padded, key_mask=key_mask), expected, 1e-11)


@holds
def keys_have_no_order_and_queries_keep_theirs(make):
    """Permute the keys: nothing. Permute the queries: the output follows."""
    module = built(make, E, H)
    x, y = inputs()
    expected = module(x, y)
    keys, queries = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 1])
    close(module(x, y[:, keys]), expected, 1e-11)
    close(module(x[:, queries], y), expected[:, queries], 1e-11)


@holds
def each_key_reaches_each_query(make):
    """Without a mask, change one key of the memory, and the outputs of all queries move."""
    module = built(make, E, H)
    x, y = inputs()
    expected = module(x, y)
    for j in range(S):
        changed = y.clone()
        changed[:, j] += 1.0
        assert ((module(x, changed) - expected).abs().amax(-1) > 1e-9).all(), j


@holds
def examples_are_independent(make):
    """Change one example of the batch, and the others stay; each alone gives the same."""
    module = built(make, E, H)
    x, y = inputs()
    expected = module(x, y)
    changed = y.clone()
    changed[0] += 1.0
    close(module(x, changed)[1:], expected[1:], 1e-11)
    close(module(x[1:], y[1:]), expected[1:], 1e-11)


@holds
def a_head_can_be_cut_out(make):
    """With the columns of W_O for head h at zero, head h's own maps have no effect, others do."""
    for h in range(H):
        module = built(make, E, H)
        x, y = inputs()
        with torch.no_grad():
            module.out_proj.weight[:, h * D : (h + 1) * D] = 0.0
            expected = module(x, y)
            for linear in (module.q_proj, module.k_proj, module.v_proj):
                linear.weight[h * D : (h + 1) * D] += 1.0
            close(module(x, y), expected, 1e-11)
            other = (h + 1) % H
            module.v_proj.weight[other * D : (other + 1) * D] += 1.0
            assert (module(x, y) - expected).abs().max() > 1e-3


@holds
def a_query_without_keys_gives_the_output_bias(make):
    """Output exactly out_proj.bias, weights 0, gradients finite; the other rows unharmed."""
    module = built(make, E, H)
    x, y = inputs(requires_grad=True)
    allowed = torch.ones(T, S, dtype=torch.bool)
    allowed[1] = False
    output, weights = module(x, y, attn_mask=allowed, return_weights=True)
    assert torch.equal(output[:, 1], module.out_proj.bias.expand(B, E))
    assert (weights[:, :, 1] == 0).all()
    close(output[:, [0, 2]], module(x, y)[:, [0, 2]], 1e-11)
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in (x, y, *module.parameters()))


@holds
def poison_at_padding_goes_nowhere(make):
    """NaN at an excluded key reaches neither output nor any gradient."""
    module = built(make, E, H)
    x, y = inputs()
    key_mask = torch.tensor([[True] * S, [True, True, False, True, False]])
    expected = module(x, y, key_mask=key_mask)
    poisoned = y.clone()
    poisoned[~key_mask] = float("nan")
    poisoned.requires_grad_(True)
    output = module(x, poisoned, key_mask=key_mask)
    close(output, expected, 1e-11)
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in (poisoned, *module.parameters()))


@holds
def poison_at_padding_goes_nowhere_in_self_attention(make):
    """The same where the padded key is a query too; a finite padded query answers as ever."""
    module = built(make, E, H)
    x = randn(B, S, E, seed=2)
    key_mask = torch.tensor([[True] * S, [True, True, False, True, False]])
    expected = module(x, key_mask=key_mask)
    close(expected, module(x, x.clone(), key_mask=key_mask), 1e-11)
    poisoned = x.clone()
    poisoned[~key_mask] = float("nan")
    poisoned.requires_grad_(True)
    output, weights = module(poisoned, key_mask=key_mask, return_weights=True)
    close(output[key_mask], expected[key_mask], 1e-11)
    assert weights.isfinite().all()
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in (poisoned, *module.parameters()))


@holds
def rows_of_weights_sum_to_one(make):
    """Per query, in eval and in training, whatever the mask; weights lie in [0, 1]."""
    module = built(make, E, H, dropout=0.5)
    x, y = inputs()
    for training in (False, True):
        module.train(training)
        for name, masks in mask_cases().items():
            weights = module(x, y, **masks, return_weights=True)[1]
            assert weights.shape == (B, H, T, S), name
            total = weights.sum(-1)
            fine = torch.isclose(total, torch.ones_like(total)) | (total == 0)
            assert fine.all(), name
            assert (weights >= 0).all(), name


@holds
def dropout_acts_in_training_only_and_is_unbiased(make):
    """Eval is deterministic and equals the mean over many dropout masks."""
    module = built(make, E, H, dropout=0.3)
    x, y = inputs()
    expected = module(x, y)
    assert torch.equal(module(x, y), expected)
    module.train()
    assert not torch.allclose(module(x, y), module(x, y))
    many_x, many_y = x[:1].expand(6000, -1, -1), y[:1].expand(6000, -1, -1)
    draws = module(many_x, many_y)
    error = draws.std(0) / 6000**0.5
    assert ((draws.mean(0) - expected[0]).abs() < 5 * error).all()


@holds
def no_mode_changes_the_result(make):
    """Train or eval without dropout, with gradients or without: the same numbers."""
    module = built(make, E, H)
    x, y = inputs()
    for name, masks in mask_cases().items():
        expected = module.eval()(x, y, **masks)
        close(module.train()(x, y, **masks), expected, 1e-11, name)
        with torch.no_grad():
            close(module.eval()(x, y, **masks), expected, 1e-11, name)


@holds
def weights_asked_for_change_no_output(make):
    """For every mask, in eval and, from one seed, in training."""
    module = built(make, E, H, dropout=0.3)
    x, y = inputs()
    for training in (False, True):
        module.train(training)
        for name, masks in mask_cases().items():
            torch.manual_seed(1)
            alone = module(x, y, **masks)
            torch.manual_seed(1)
            assert torch.equal(alone, module(x, y, **masks, return_weights=True)[0]), name


@holds
def the_number_of_heads_matters(make):
    """The same weights, cut into 1, 2 or 4 heads, give three different outputs."""
    x, y = inputs()
    outputs = [built(make, E, heads)(x, y) for heads in (1, 2, 4)]
    for i in range(3):
        assert (outputs[i] - outputs[i - 1]).abs().max() > 1e-3


@holds
def every_parameter_learns(make):
    """A gradient arrives at all eight parameters, b_K's alone is zero (softmax cannot see it)."""
    module = built(make, E, H)
    module(*inputs()).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        if name == "k_proj.bias":
            assert parameter.grad.abs().max() < 1e-10, name
        else:
            assert parameter.grad.abs().max() > 1e-6, name


@holds
def half_precision_stays_close_and_keeps_its_dtype(make):
    """float16 and bfloat16, masks and a dead row included: no overflow, no other dtype."""
    for dtype, tolerance in ((torch.float16, 0.02), (torch.bfloat16, 0.15)):
        module = built(make, E, H)
        x, y = inputs()
        masks = {"key_mask": mask_cases()["key_mask"]["key_mask"], "is_causal": True}
        expected = module(x, y, **masks)
        output, weights = module.to(dtype)(x.to(dtype), y.to(dtype), **masks, return_weights=True)
        assert output.dtype == weights.dtype == dtype
        close(output, expected, tolerance)


@holds
def everything_stays_on_its_device(make):
    """No step falls back to the CPU, whatever the mask; the meta device stands for a GPU."""
    module = make(E, H, device="meta", dtype=torch.float64)
    x, y = (operand.to("meta") for operand in inputs())
    for name, masks in mask_cases().items():
        masks = {k: m.to("meta") if isinstance(m, torch.Tensor) else m for k, m in masks.items()}
        output, weights = module(x, y, **masks, return_weights=True)
        assert output.device.type == weights.device.type == "meta", name


@holds
def large_scores_do_not_break_a_mask(make):
    """Scores of many thousands, and still what is masked is masked."""
    module = built(make, E, H)
    x, y = inputs()
    with torch.no_grad():
        module.q_proj.weight *= 1000.0
    key_mask = mask_cases()["key_mask"]["key_mask"]
    output, weights = module(x, y, key_mask=key_mask, return_weights=True)
    assert output.isfinite().all()
    assert (weights.masked_select(~key_mask[:, None, None]) == 0).all()


@holds
def nothing_is_kept_on_the_module(make):
    """After a forward with gradients, the module can be copied and its state is unchanged."""
    module = built(make, E, H)
    before = set(vars(module))
    module(*inputs(requires_grad=True), return_weights=True)
    assert set(vars(module)) == before
    twin = copy.deepcopy(module)
    close(twin(*inputs()), module(*inputs()), 0)


@holds
def empty_axes_work(make):
    """B = 0, T = 0 and S = 0 give outputs of the right shape; without keys it is the bias."""
    module = built(make, E, H)
    for batch, length, size in ((0, T, S), (B, 0, S), (B, T, 0)):
        x, y = randn(batch, length, E), randn(batch, size, E)
        output, weights = module(x, y, return_weights=True)
        assert output.shape == (batch, length, E)
        assert weights.shape == (batch, H, length, size)
        assert torch.equal(output, module.out_proj.bias.expand(batch, length, E))
