"""Each plain specimen has the mistake that it is named for, and no other.

Every module is compared, with its own weights, with ``formula``: a right one, and one changed in
one place. What it computes must be the changed one, must differ from the right one, and must equal
the right one where its mistake is harmless (one head, say, or no mask).
"""

import collections
import inspect

import pytest
import specimens
import torch
from specimens import plain
from torch import nn

import mha

PLAIN = [s for s in specimens.SPECIMENS if s.subject.__module__ == plain.__name__]
B, T, S, H, D = 2, 5, 7, 3, 4
NEG = float("-inf")

SLUGS = """scale-model-dim scale-missing scale-multiplied scale-linear split-no-transpose
merge-no-transpose split-and-merge-wrong split-dim-major merge-dim-major batch-mixed heads-summed
heads-ignored softmax-queries softmax-heads scores-transposed mask-inverted mask-ignored
mask-after-softmax mask-multiplied mask-added-bool mask-fill-small mask-nan mask-half-overflow
pad-query-axis dead-row-nan dead-row-uniform causal-upper causal-strict causal-leak-one
causal-top-left kv-swapped qk-shared kv-shared qkv-shared cross-self cross-reversed
head-weights-shared out-proj-missing bias-missing gqa-tiled dropout-in-eval dropout-on-scores
dropout-unscaled weights-after-dropout not-differentiable dtype-leak device-buffer""".split()

NAMES = {
    "q": "W_q q_proj wq query linear_q to_q fc_q Wq q_linear W_query queries q_lin w_q query_layer "
    "to_queries query_proj lin_q",
    "k": "W_k k_proj wk key linear_k to_k fc_k Wk k_linear W_key keys k_lin w_k key_layer "
    "to_keys key_proj lin_k",
    "v": "W_v v_proj wv value linear_v to_v fc_v Wv v_linear W_value values v_lin w_v value_layer "
    "to_values value_proj lin_v",
    "o": "W_o out_proj wo out linear_out to_out fc_o Wo W_out fc_out out_lin proj dense w_concat "
    "output_layer linear_o w_o o_proj output lin_o",
}
SAME_LENGTH = (plain.CrossKeysFromQuery, plain.KeyPaddingOnQueries)  # no T that is not S
HEAD_COUNTS = {"num_heads", "heads", "n_heads", "h", "nhead", "n_head", "num_attention_heads"}
MASKS = ("mask", "attention_mask", "pad_mask", "key_padding_mask")


# What a module is


def ids(given):
    return [s.subject.__name__ for s in given]


def layers(module) -> dict[str, nn.Linear]:
    """The four linear layers by their letters, under whatever names; W_O may be missing."""
    holder = module.heads[0] if isinstance(module, plain.HeadsTimesList) else module
    found = {}
    for letter, names in NAMES.items():
        owner = module if letter == "o" else holder
        for name in names.split():
            if isinstance(getattr(owner, name, None), nn.Linear):
                found[letter] = getattr(owner, name)
    return found


def weights(module) -> dict[str, tuple]:
    return {letter: (x.weight, x.bias) for letter, x in layers(module).items()}


def build(subject, *, heads=H, width=None, dropout=0.0, dtype=torch.float64):
    """A seeded module; four heads that share two key heads if it groups them."""
    grouped = any("kv_heads" in name for name in inspect.signature(subject).parameters)
    heads, key_heads = (4, (2,)) if grouped else (heads, ())
    torch.manual_seed(1)
    width = heads * D if width is None else width
    return subject(width, heads, *key_heads, dropout=dropout).to(dtype)


def parameters(module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)


def count_heads(module) -> int:
    if isinstance(module, plain.HeadsTimesList):
        return len(module.heads)
    counts = (getattr(module, name, None) for name in HEAD_COUNTS)
    return next(x for x in counts if isinstance(x, int))


def is_self(module) -> bool:
    return parameters(module)[0] in ("x", "hidden_states") and "memory" not in parameters(module)


def mask_name(module) -> str | None:
    return next((name for name in parameters(module) if name in MASKS), None)


def inputs(module, width, size=1.5, batch=B, length=T, alike=False, dtype=torch.float64):
    """query, key, value as the module wants them: all the same, memory twice, or three."""
    generator = torch.Generator().manual_seed(3)

    def draw(length):
        return size * torch.randn(batch, length, width, generator=generator, dtype=dtype)

    x = draw(length)
    if is_self(module) or alike:
        return x, x, x
    keys = length if isinstance(module, SAME_LENGTH) or is_causal(module) else S
    memory, value = draw(keys), draw(keys)
    return (x, memory, memory) if "memory" in parameters(module) else (x, memory, value)


def call(module, given, mask=None):
    """The output and the rest; ``mask`` by the module's own name for it."""
    query, key, value = given
    if is_self(module):
        args = (query,)
    elif "memory" in parameters(module):
        args = (query, key)
    else:
        args = (query, key, value)
    kwargs = {"is_causal": True} if "is_causal" in parameters(module) else {}
    if mask_name(module) is not None:
        kwargs[mask_name(module)] = mask
    result = module(*args, **kwargs)
    return result if isinstance(result, tuple) else (result, None)


def some_mask(module, given, live=True):
    """A mask of the module's own kind, and the same as (B, 1, T, S), True = may attend."""
    query, key = given[:2]
    batch, length, size = query.shape[0], query.shape[1], key.shape[1]
    generator = torch.Generator().manual_seed(5)
    name = mask_name(module)
    if name is None:
        return None, None
    if name in ("pad_mask", "key_padding_mask"):
        real = torch.arange(size) < torch.tensor([[size - 2], [size]])[:batch]
        return real if name == "pad_mask" else ~real, real[:, None, None, :]
    mask = torch.rand(batch, 1, length, size, generator=generator) < 0.6
    if isinstance(module, plain.HeadsTimesList):
        mask = mask[:1].repeat(batch, 1, 1, 1)
    mask[..., 0] = True
    if not live:
        mask[..., 1, :] = False
    plain_mask = mask[0, 0] if isinstance(module, plain.HeadsTimesList) else mask
    return plain_mask, mask


# The formula, right, and every way to get it wrong


def linear(x, layer, bias=True):
    weight, offset = layer
    y = torch.einsum("...i,oi->...o", x, weight)
    return y + offset if bias and offset is not None else y


def split(x, heads):
    return torch.stack(x.chunk(heads, dim=-1), dim=1)


def merge(x):
    return torch.cat(list(x.unbind(1)), dim=-1)


def flat_split(x, heads):
    return x.reshape(x.shape[0], heads, x.shape[1], -1)


def flat_merge(x):
    return x.reshape(x.shape[0], x.shape[2], -1)


def strided_split(x, heads):
    return torch.stack([x[..., h::heads] for h in range(heads)], dim=1)


def strided_merge(x):
    return torch.stack(list(x.unbind(1)), dim=-1).flatten(-2)


def fill(scores, mask, low=NEG):
    return scores.masked_fill(~mask, low)


def formula(
    w,
    query,
    key,
    value,
    heads,
    mask=None,
    *,
    scale=lambda d, e: d**-0.5,
    split=split,
    merge=merge,
    masking=fill,
    after=lambda weights, mask: weights,
    axis=-1,
    transposed=False,
    use="qkvo",
    sources="qkv",
    biases="qkvo",
    spread=lambda x, n: x.repeat_interleave(n, dim=1),
):
    """Multi-head attention with the layers ``w``; every option is a place for a mistake."""
    inputs = {"q": query, "k": key, "v": value}
    q, k, v = (
        linear(inputs[source], w[name], letter in biases)
        for letter, name, source in zip("qkv", use, sources, strict=False)
    )
    width = q.shape[-1] // heads
    q, k, v = split(q, heads), split(k, k.shape[-1] // width), split(v, v.shape[-1] // width)
    k, v = (spread(x, q.shape[1] // x.shape[1]) for x in (k, v))
    (
        q,
        k_,
    ) = (k, q) if transposed else (q, k)
    scores = torch.einsum("bhtd,bhsd->bhts", q, k_) * scale(q.shape[-1], query.shape[-1])
    if mask is not None:
        scores = masking(scores, mask)
    weights = after(torch.softmax(scores, dim=axis), mask)
    joined = merge(torch.einsum("bhts,bhsd->bhtd", weights, v))
    return joined if use[3:] == "" else linear(joined, w[use[3]], "o" in biases)


def mix_batch(x):
    """Heads of B examples, laid out head by head and read example by example."""
    b, h, t, d = x.shape
    return merge(x.transpose(0, 1).reshape(b, h, t, d))


def lowest(scores, mask):
    return fill(scores, mask, torch.finfo(scores.dtype).min)


def causal(diagonal=0, upper=False, low=NEG):
    """Masking by ones below (or above) a diagonal, whatever the mask."""

    def masking(scores, mask):
        ones = torch.ones(scores.shape[-2:], dtype=torch.bool)
        return fill(scores, ones.triu(diagonal) if upper else ones.tril(diagonal), low)

    return masking


LOW = torch.finfo(torch.float64).min

WRONG = {  # the option that is the mistake
    "scale-model-dim": {"scale": lambda d, e: e**-0.5},
    "scale-missing": {"scale": lambda d, e: 1.0},
    "scale-multiplied": {"scale": lambda d, e: d**0.5},
    "scale-linear": {"scale": lambda d, e: 1 / d},
    "split-no-transpose": {"split": flat_split},
    "merge-no-transpose": {"merge": flat_merge},
    "split-and-merge-wrong": {"split": flat_split, "merge": flat_merge},
    "split-dim-major": {"split": strided_split},
    "merge-dim-major": {"merge": strided_merge},
    "BatchMixed": {"merge": mix_batch},
    "HeadsSummed": {"merge": lambda x: x.sum(1)},
    "HeadsAveraged": {"merge": lambda x: x.mean(1)},
    "heads-ignored": {"split": lambda x, heads: x[:, None]},
    "softmax-queries": {"axis": -2, "masking": lowest},
    "SoftmaxHeads": {"axis": 1, "masking": lowest},
    "SoftmaxBatch": {"axis": 0, "masking": lowest},
    "scores-transposed": {"transposed": True},
    "MaskInverted": {"masking": lambda scores, mask: fill(scores, ~mask)},
    "MaskInvertedWhere": {"masking": lambda scores, mask: lowest(scores, ~mask)},
    "mask-ignored": {"masking": lambda scores, mask: scores},
    "mask-after-softmax": {
        "masking": lambda scores, mask: scores,
        "after": lambda weights, mask: weights if mask is None else weights * mask,
    },
    "mask-multiplied": {"masking": lambda scores, mask: scores * mask},
    "mask-added-bool": {"masking": lambda scores, mask: scores + mask.to(scores)},
    "MaskFillTinyExponent": {"masking": lambda scores, mask: fill(scores, mask, -1e-9)},
    "MaskFillHundred": {"masking": lambda scores, mask: fill(scores, mask, -100.0)},
    "NoBiasAndSmallFill": {
        "masking": lambda scores, mask: fill(scores, mask, -10.0),
        "biases": "qkv",
    },
    "pad-query-axis": {
        "masking": lambda scores, mask: fill(scores, mask.transpose(-1, -2), LOW),
    },
    "CausalUpper": {"masking": causal(0, upper=True)},
    "CausalUpperFlag": {"masking": causal(0, upper=True)},
    "CausalStrict": {"masking": causal(-1, low=LOW)},
    "CausalStrictInfinite": {"masking": causal(-1)},
    "causal-leak-one": {"masking": causal(1)},
    "kv-swapped": {"use": "qvko", "sources": "qvk"},
    "qk-shared": {"use": "qqvo"},
    "kv-shared": {"use": "qkko"},
    "CrossReadsQuery": {"sources": "qqq"},
    "CrossSelfUnscaled": {"sources": "qqq", "scale": lambda d, e: 1.0},
    "CrossKeysFromQuery": {"sources": "qqv"},
    "cross-reversed": {"sources": "kqq"},
    "out-proj-missing": {"use": "qkv"},
    "BiasMissingInOutput": {"biases": "qkv"},
    "BiasMissingInQueries": {"biases": "kvo"},
    "gqa-tiled": {"spread": lambda x, n: torch.cat([x] * n, dim=1)},
}

HARMLESS = {  # where the mistake changes nothing
    "scale-model-dim": {"heads": 1},
    "scale-missing": {"width": H},
    "scale-multiplied": {"width": H},
    "scale-linear": {"width": H},
    "split-no-transpose": {"heads": 1},
    "merge-no-transpose": {"heads": 1},
    "split-and-merge-wrong": {"heads": 1},
    "split-dim-major": {"heads": 1},
    "merge-dim-major": {"heads": 1},
    "batch-mixed": {"batch": 1},
    "heads-summed": {"heads": 1},
    "heads-ignored": {"heads": 1},
    "scores-transposed": {"tie": "qk"},
    "mask-inverted": {"unmasked": True},
    "mask-ignored": {"unmasked": True},
    "mask-after-softmax": {"unmasked": True},
    "mask-multiplied": {"unmasked": True},
    "mask-added-bool": {"unmasked": True},
    "mask-fill-small": {"unmasked": True},
    "pad-query-axis": {"unmasked": True},
    "causal-upper": {"length": 1},
    "causal-leak-one": {"length": 1},
    "kv-swapped": {"tie": "kv", "alike": True},
    "qk-shared": {"tie": "qk"},
    "kv-shared": {"tie": "kv"},
    "cross-self": {"alike": True},
    "cross-reversed": {"alike": True},
    "head-weights-shared": {"heads": 1},
    "out-proj-missing": {"identity": True},
    "bias-missing": {"no_bias": True},
    "MaskFillTinyExponent": {"unmasked": True},
}
ALWAYS_CAUSAL = [s for s in SLUGS if s.startswith("causal")]

# Nothing of the output in eval shows these, or not by one formula; they have tests of their own.
HIDDEN = {
    *("mask-nan", "mask-half-overflow", "dead-row-nan", "dead-row-uniform", "causal-top-left"),
    *("dropout-in-eval", "dropout-on-scores", "dropout-unscaled", "weights-after-dropout"),
    *("not-differentiable", "dtype-leak", "device-buffer"),
}


def wrong_options(entry) -> dict:
    """The options of the formula that make its mistakes."""
    name = entry.subject.__name__
    if name in WRONG:
        return WRONG[name]
    return {k: x for slug in entry.slugs for k, x in WRONG.get(slug, {}).items()}


def right_options(module) -> dict:
    """Causal modules are right when they are causal, by themselves."""
    slugs = next(s.slugs for s in PLAIN if s.subject is type(module))
    made_causal = set(slugs) & set(ALWAYS_CAUSAL) or isinstance(module, plain.MaskMadeOnTheCPU)
    return {"masking": causal(0)} if made_causal else {}


def is_causal(module) -> bool:
    return bool(right_options(module))


def compare(entry, module, options, size=1.5, masked=True, **situation):
    """The module's output and the formula's, in the same situation."""
    width = layers(module)["q"].in_features
    given = inputs(module, width, size, **situation)
    mine, mask = some_mask(module, given) if masked else (None, None)
    if is_causal(module):
        mask = torch.ones(1, dtype=torch.bool)  # only so that masking is called
    expected = formula(weights(module), *given, count_heads(module), mask, **options)
    return call(module, given, mine)[0], expected


SHAPED = [s for s in PLAIN if "head-weights-shared" not in s.slugs]
VISIBLE = [s for s in SHAPED if not set(s.slugs) & HIDDEN and wrong_options(s)]


def size_for(entry) -> float:
    """How large the inputs must be; a fill of -100 is seen among large scores only."""
    return 30.0 if entry.subject is plain.MaskFillHundred else 1.5


def fits(module) -> bool:
    """Whether W_O takes the heads side by side, so that there is a right one to compare with."""
    found = layers(module)
    return "o" in found and found["o"].in_features == found["q"].out_features


# All of them


def test_every_mistake_has_a_specimen():
    single = {s.slugs[0] for s in PLAIN if len(s.slugs) == 1}
    assert single == set(SLUGS)
    assert sum(len(s.slugs) == 2 for s in PLAIN) >= 8
    assert {slug for s in PLAIN for slug in s.slugs} == set(SLUGS)
    names = collections.Counter(ids(PLAIN))
    assert max(names.values()) == 1


def test_the_formula_is_right():
    torch.manual_seed(2)
    module = mha.MultiHeadAttention(H * D, H).double()
    for layer in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
        nn.init.normal_(layer.bias)
    w = dict(
        zip(
            "qkvo",
            [(x.weight, x.bias) for x in (module.q_proj, module.k_proj, module.v_proj)]
            + [(module.out_proj.weight, module.out_proj.bias)],
            strict=True,
        )
    )
    query, key, value = (torch.randn(B, n, H * D, dtype=torch.float64) for n in (T, S, S))
    mask = torch.rand(B, 1, T, S) < 0.6
    mask[..., 0] = True
    expected = module(query, key, value, attn_mask=mask)
    torch.testing.assert_close(formula(w, query, key, value, H, mask), expected)


@pytest.mark.parametrize("entry", PLAIN, ids=ids(PLAIN))
def test_it_runs_and_has_the_usual_shape(entry):
    module = build(entry.subject, dtype=torch.float32).eval()
    width = layers(module)["q"].in_features
    given = inputs(module, width, dtype=torch.float32)
    mine, _ = some_mask(module, given)
    output, rest = call(module, given, mine)
    length = S if "cross-reversed" in entry.slugs else T
    assert output.shape == (B, length, width)
    assert output.dtype == torch.float32
    assert output.isfinite().all() or set(entry.slugs) & {"mask-nan", "causal-strict"}
    if isinstance(rest, torch.Tensor):
        assert rest.shape == (B, H, T, given[1].shape[1])
    assert {"q", "k", "v"} <= set(layers(module)) and ("o" in layers(module)) == (
        entry.subject is not plain.NoOutputMap
    )


@pytest.mark.parametrize("entry", VISIBLE, ids=ids(VISIBLE))
def test_it_computes_what_its_mistake_makes_of_it(entry):
    """Nothing but the named mistakes, to the last digits."""
    module = build(entry.subject).eval()
    output, expected = compare(entry, module, wrong_options(entry), size=size_for(entry))
    torch.testing.assert_close(output, expected, equal_nan=True)


@pytest.mark.parametrize("entry", VISIBLE, ids=ids(VISIBLE))
def test_it_differs_from_a_right_one(entry):
    module = build(entry.subject).eval()
    if not fits(module):
        assert set(entry.slugs) & {"heads-summed", "out-proj-missing"}
        return
    output, right = compare(entry, module, right_options(module), size=size_for(entry))
    if "cross-reversed" in entry.slugs:
        assert output.shape[1] != right.shape[1]
        return
    assert (output.nan_to_num(99.0) - right).abs().max() > 0.01


@pytest.mark.parametrize("entry", VISIBLE, ids=ids(VISIBLE))
def test_each_mistake_alone_is_seen(entry):
    """Of two mistakes, neither hides the other."""
    if len(entry.slugs) == 1 or entry.subject.__name__ in WRONG:
        return
    module = build(entry.subject).eval()
    for slug in entry.slugs:
        options = {**right_options(module), **WRONG[slug]}
        output, expected = compare(entry, module, options)
        assert output.shape != expected.shape or (output - expected).abs().max() > 1e-3


CURABLE = [s for s in VISIBLE if any(slug in HARMLESS for slug in s.slugs)]


@pytest.mark.parametrize("entry", CURABLE, ids=ids(CURABLE))
def test_it_is_right_where_its_mistake_is_harmless(entry):
    cure = {k: x for slug in entry.slugs for k, x in HARMLESS.get(slug, {}).items()}
    if not set(entry.slugs) <= set(HARMLESS):
        return  # nothing cures the other mistake
    subject, heads = entry.subject, cure.get("heads", H)
    width = heads if "width" in cure else None  # heads of width 1
    module = build(subject, heads=heads, width=width).eval()
    found = layers(module)
    for first, *others in filter(None, [cure.get("tie")]):
        for other in others:
            found[other].load_state_dict(found[first].state_dict())
    with torch.no_grad():
        if cure.get("identity") and "o" in found:
            nn.init.eye_(found["o"].weight)
            if found["o"].bias is not None:
                nn.init.zeros_(found["o"].bias)
        if cure.get("no_bias"):
            for layer in found.values():
                nn.init.zeros_(layer.bias)
    situation = {name: cure[name] for name in ("batch", "length", "alike") if name in cure}
    options = right_options(module)
    if cure.get("identity"):
        options["use"] = "qkv"
    masked = not cure.get("unmasked") and "alike" not in situation
    output, right = compare(entry, module, options, masked=masked, **situation)
    torch.testing.assert_close(output, right)


# Mistakes that hide from the output in eval, or that one formula cannot tell


def of(slug):
    """A mark: the test runs for each specimen with this mistake alone."""
    chosen = [s for s in PLAIN if s.slugs == (slug,)]
    assert chosen
    return pytest.mark.parametrize("entry", chosen, ids=ids(chosen))


HIDING = [s for s in PLAIN if len(s.slugs) == 1 and set(s.slugs) & HIDDEN - {"mask-nan"}]


@pytest.mark.parametrize("entry", HIDING, ids=ids(HIDING))
def test_it_is_right_while_nothing_shows_its_mistake(entry):
    """In eval, without dropout, with a key for every query, in one call, on the CPU."""
    module = build(entry.subject).eval()
    output, right = compare(entry, module, right_options(module))
    close = {"rtol": 1e-4, "atol": 1e-5} if "dtype-leak" in entry.slugs else {}
    torch.testing.assert_close(output.double(), right, **close)


def dead_row(module):
    """Inputs, a mask with nothing for query 1, and the output."""
    given = inputs(module, H * D)
    mine, mask = some_mask(module, given, live=False)
    return given, mask, call(module, given, mine)[0]


def test_zero_times_infinity():
    module = build(plain.MaskZeroTimesInfinity).eval()
    entry = next(s for s in PLAIN if s.subject is plain.MaskZeroTimesInfinity)
    assert compare(entry, module, {})[0].isnan().all()
    output, right = compare(entry, module, {}, masked=False)
    torch.testing.assert_close(output, right)


CLEANED = [s for s in PLAIN if "CleanedLate" in s.subject.__name__]


@pytest.mark.parametrize("entry", CLEANED, ids=ids(CLEANED))
def test_cleaned_forward_and_nan_backward(entry):
    module = build(entry.subject).eval()
    output, right = compare(entry, module, {})
    torch.testing.assert_close(output, right)
    output.sum().backward()
    gradients = [p.grad for p in module.parameters()]
    assert all(x.isfinite().all() for x in gradients)
    _, _, output = dead_row(module)
    torch.testing.assert_close(output[:, 1], layers(module)["o"].bias.expand(B, -1))
    output.sum().backward()
    assert any(x.isnan().any() for x in gradients)


@of("dead-row-nan")
def test_dead_rows_are_nan(entry):
    _, _, output = dead_row(build(entry.subject).eval())
    assert output[:, 1].isnan().all() and output[:, 2:].isfinite().all()


@of("dead-row-uniform")
def test_dead_rows_are_means(entry):
    module = build(entry.subject).eval()
    (query, key, value), mask, output = dead_row(module)
    mean = formula(weights(module), query, key, value, H, torch.zeros_like(mask), masking=lowest)
    torch.testing.assert_close(output[:, 1], mean[:, 1])
    assert output.isfinite().all()


HALF = [s for s in PLAIN if "mask-half-overflow" in s.slugs]


@pytest.mark.parametrize("entry", HALF, ids=ids(HALF))
def test_the_fill_does_not_fit_into_half(entry):
    module = build(entry.subject, dtype=torch.float16).eval()
    given = inputs(module, H * D, dtype=torch.float16)
    mine, _ = some_mask(module, given)
    with pytest.raises(RuntimeError, match="overflow"):
        call(module, given, mine)
    assert call(module, given)[0].isfinite().all()


@of("causal-top-left")
def test_a_cached_step_sees_the_first_key_only(entry):
    module = build(entry.subject).eval()
    x = inputs(module, H * D)[0]
    whole, _ = module(x)
    before, cache = module(x[:, :-1])
    torch.testing.assert_close(before, whole[:, :-1])
    step, cache = module(x[:, -1:], cache)
    assert cache[0].shape[2] == T
    assert (step - whole[:, -1:]).abs().max() > 0.01
    first = torch.arange(T)[None] < 1
    seen = formula(weights(module), x[:, -1:], x, x, H, first)
    torch.testing.assert_close(step, seen)


@pytest.mark.parametrize("entry", PLAIN, ids=ids(PLAIN))
def test_eval_is_random_only_where_that_is_the_mistake(entry):
    module = build(entry.subject, dropout=0.5).eval()
    given = inputs(module, layers(module)["q"].in_features)
    first, second = (call(module, given)[0] for _ in range(2))
    same = torch.equal(first.nan_to_num(9.0), second.nan_to_num(9.0))
    assert same != ("dropout-in-eval" in entry.slugs)


def dropped(entry, **options):
    """Output and formula in training, from the same seed, with nothing masked."""
    module = build(entry.subject, dropout=0.4).train()
    given = inputs(module, H * D)
    torch.manual_seed(8)
    output, rest = call(module, given)
    torch.manual_seed(8)
    everything = torch.ones(1, dtype=torch.bool)
    expected = formula(weights(module), *given, H, everything, **options)
    return output, rest, expected


def drop(x):
    return nn.functional.dropout(x, 0.4)


@pytest.mark.parametrize("name", ["DropoutOnScores", "DroppedScoresAndWideScale"])
def test_scores_are_dropped(name):
    entry = next(s for s in PLAIN if s.subject.__name__ == name)
    scale = WRONG["scale-model-dim"] if len(entry.slugs) == 2 else {}
    output, _, wrong = dropped(entry, masking=lambda scores, mask: drop(scores), **scale)
    torch.testing.assert_close(output, wrong)
    _, _, right = dropped(entry, after=lambda weights, mask: drop(weights), **scale)
    assert (output - right).abs().max() > 0.01


@of("dropout-unscaled")
def test_kept_weights_are_not_scaled(entry):
    def cut(weights, mask):
        return weights * (torch.rand_like(weights) >= 0.4)

    output, _, wrong = dropped(entry, after=cut)
    torch.testing.assert_close(output, wrong)
    _, _, right = dropped(entry, after=lambda weights, mask: cut(weights, mask) / 0.6)
    assert (output - right).abs().max() > 0.01


@of("weights-after-dropout")
def test_the_weights_returned_are_dropped_ones(entry):
    output, returned, right = dropped(entry, after=lambda weights, mask: drop(weights))
    torch.testing.assert_close(output, right)
    assert ((returned.sum(-1) - 1).abs() > 0.01).any()
    module = build(entry.subject, dropout=0.4).eval()
    _, returned = call(module, inputs(module, H * D))
    torch.testing.assert_close(returned.sum(-1), torch.ones(B, H, T, dtype=torch.float64))


# Gradients, half precision, another device: for all of them


NO_GRADIENT = {  # by slug or class: letters of the layers whose weights get none
    "qk-shared": "k",
    "kv-shared": "v",
    "ScoresDetached": "qk",
    "SoftmaxInNumpy": "qk",
    "DetachedBillion": "qkv",
    "OutputNotProjected": "o",
    "ColumnsAndNoOutput": "o",
}


@pytest.mark.parametrize("entry", PLAIN, ids=ids(PLAIN))
def test_gradients_reach_what_they_should(entry):
    module = build(entry.subject).train()
    given = inputs(module, layers(module)["q"].in_features)
    call(module, given)[0].square().sum().backward()
    names = (entry.subject.__name__, *entry.slugs)
    expected = "".join(NO_GRADIENT.get(name, "") for name in names)
    without = "".join(k for k, x in layers(module).items() if x.weight.grad is None)
    assert without == expected
    unused = [k for k, x in layers(module).items() if x.bias is not None and x.bias.grad is None]
    forgotten = set(unused) - set(without)
    assert bool(forgotten) == ("bias-missing" in entry.slugs)


@pytest.mark.parametrize("entry", PLAIN, ids=ids(PLAIN))
def test_half_precision_fails_only_where_that_is_the_mistake(entry):
    if "mask-half-overflow" in entry.slugs:
        return
    module = build(entry.subject, dtype=torch.float16).eval()
    given = inputs(module, layers(module)["q"].in_features, dtype=torch.float16)
    output = call(module, given, some_mask(module, given)[0])[0]
    assert output.dtype == (torch.float32 if "dtype-leak" in entry.slugs else torch.float16)


@pytest.mark.parametrize("entry", PLAIN, ids=ids(PLAIN))
def test_another_device_fails_only_where_that_is_the_mistake(entry):
    """The device ``meta`` refuses tensors of the CPU, as a GPU does."""
    if entry.subject is plain.SoftmaxInNumpy:
        return  # NumPy knows no device but the CPU
    module = build(entry.subject).eval()
    given = inputs(module, layers(module)["q"].in_features)
    mask = some_mask(module, given)[0]
    module, given = module.to("meta"), tuple(x.to("meta") for x in given)
    mask = None if mask is None else mask.to("meta")
    if "device-buffer" in entry.slugs:
        with pytest.raises(RuntimeError, match="device"):
            call(module, given, mask)
    else:
        assert call(module, given, mask)[0].is_meta


@pytest.mark.parametrize("entry", PLAIN, ids=ids(PLAIN))
def test_examples_of_a_batch_are_apart_unless_that_is_the_mistake(entry):
    module = build(entry.subject).eval()
    given = inputs(module, layers(module)["q"].in_features)
    changed = tuple(torch.cat([x[:1], -x[1:]]) for x in given)
    before, after = (call(module, x)[0][0].nan_to_num(9.0) for x in (given, changed))
    mixes = "batch-mixed" in entry.slugs or entry.subject is plain.SoftmaxBatch
    assert torch.allclose(before, after) != mixes


# Heads with the weights of one


SHARED = [s for s in PLAIN if "head-weights-shared" in s.slugs]


@pytest.mark.parametrize("entry", SHARED, ids=ids(SHARED))
def test_all_heads_are_the_first(entry):
    module = build(entry.subject).eval()
    given = inputs(module, H * D)
    mine, mask = some_mask(module, given)
    w = weights(module)
    assert w["q"][0].shape == (D, H * D)
    heads_alike = {
        letter: (weight.repeat(H, 1), None if bias is None else bias.repeat(H))
        for letter, (weight, bias) in w.items()
        if letter != "o"
    } | {"o": w["o"]}
    options = WRONG["scale-multiplied"] if "scale-multiplied" in entry.slugs else {}
    expected = formula(heads_alike, *given, H, mask, **options)
    output = call(module, given, mine)[0]
    torch.testing.assert_close(output, expected)
    others = {k: (torch.cat([x[:D], -x[D:]]), b) for k, (x, b) in heads_alike.items()}
    others["o"] = w["o"]
    right = formula(others, *given, H, mask, **options)
    assert (output - right).abs().max() > 0.01


@of("head-weights-shared")
def test_one_head_may_have_weights_of_its_own(entry):
    module = build(entry.subject, heads=1).eval()
    output, right = compare(entry, module, {})
    torch.testing.assert_close(output, right)


@of("heads-ignored")
def test_the_number_of_heads_changes_nothing(entry):
    torch.manual_seed(1)
    few, many = entry.subject(12, 2).double().eval(), entry.subject(12, 6).double().eval()
    many.load_state_dict(few.state_dict())
    x = inputs(few, 12)
    torch.testing.assert_close(call(few, x)[0], call(many, x)[0])


def test_one_layer_under_three_names():
    module = build(plain.OneMapForAll)
    assert module.W_q is module.W_k is module.W_v
    output, right = compare(next(s for s in PLAIN if s.slugs == ("qkv-shared",)), module, {})
    torch.testing.assert_close(output, right)


def test_sequence_first_by_reshape_alone():
    """The formula, sequence first, on a batch that was reshaped where it had to be transposed."""
    module = build(plain.BatchAndTimeMixed).eval()
    x = inputs(module, H * D)[0]
    folded = x.reshape(T, B, -1).transpose(0, 1)
    wrong = formula(weights(module), folded, folded, folded, H)
    torch.testing.assert_close(module(x), wrong.transpose(0, 1).reshape(x.shape))
    assert (module(x) - formula(weights(module), x, x, x, H)).abs().max() > 0.01
    one = x[:1]
    torch.testing.assert_close(module(one), formula(weights(module), one, one, one, H))


def test_two_mistakes_of_which_one_hides():
    """What is left of the pair without dropout, and in the forward pass."""
    found = {s.subject: s for s in PLAIN}
    late = found[plain.LateMaskAndEndlessDropout]
    output, expected = compare(late, build(late.subject), WRONG["mask-after-softmax"])
    torch.testing.assert_close(output, expected)
    detached = found[plain.DetachedBillion]
    output, expected = compare(detached, build(detached.subject), {})
    torch.testing.assert_close(output, expected)
