"""Each specimen that counts as correct gives the numbers of ``mha``, with the same weights."""

import copy
import inspect
import types

import pytest
import specimens.correct as module
import torch
from specimens import CORRECT
from torch import nn

import mha

B, T, S, H, E = 2, 5, 7, 3, 12
"""Unequal sizes, so that a wrong axis cannot go unseen."""

ATTEND = torch.rand(B, 1, T, S, generator=torch.Generator().manual_seed(1)) < 0.6
ATTEND[..., 0] = True  # no dead rows
SQUARE = torch.rand(B, 1, T, T, generator=torch.Generator().manual_seed(2)) < 0.6
SQUARE |= torch.eye(T, dtype=torch.bool)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def name_of(entry):
    return getattr(entry.subject, "__name__", type(entry.subject).__name__)


def ids(entries):
    names = [name_of(entry) for entry in entries]
    return [f"{name}-{names[:i].count(name)}" for i, name in enumerate(names)]


MODULES = [entry for entry in CORRECT if entry.check == "multi_head_attention"]
FUNCTIONS = [entry for entry in CORRECT if entry.check == "attention"]


# --- how each is made, which weights it has, and how it is called ---------------------------------


def make(subject):
    """An instance in float64, in eval, with biases that are not zero."""
    if not inspect.isclass(subject):
        instance = subject
    elif subject is module.CausalSelfAttention:
        instance = subject(module.GPTConfig(n_head=H, n_embd=E))
    elif subject is module.EncoderSelfAttention:
        instance = subject(types.SimpleNamespace(hidden_size=E, num_attention_heads=H))
    elif subject is module.WithContextLength:
        instance = subject(E, E, 32, 0.0, H)
    elif subject is module.WithContextDim:
        instance = subject(E, heads=H)
    elif subject is module.FourClones:
        instance = subject(H, E)
    else:
        instance = subject(E, H)
    instance = instance.double().eval()
    if subject is module.ValidLengths:
        instance(randn(B, T, E), randn(B, S, E), randn(B, S, E))  # makes the lazy parameters
    with torch.no_grad():
        for i, parameter in enumerate(instance.parameters()):
            parameter.copy_(0.4 * randn(*parameter.shape, seed=10 + i))
    return instance


def linears(instance):
    """Weights (out, in) and biases, in the order of definition."""
    found = [m for m in instance.modules() if isinstance(m, nn.Linear)]
    return [(m.weight, m.bias) for m in found]


def chunked(weight, bias, out, count=3):
    biases = [None] * count if bias is None else bias.chunk(count)
    return [*zip(weight.chunk(count), biases, strict=True), (out.weight, out.bias)]


def packed_per_head(m):
    weight = m.query_key_value.weight.view(H, 3, E // H, E).transpose(0, 1).reshape(3, E, E)
    bias = m.query_key_value.bias.view(H, 3, E // H).transpose(0, 1).reshape(3, E)
    return [*zip(weight, bias, strict=True), (m.dense.weight, m.dense.bias)]


def interleaved(m):
    """The same maps with the features of a head side by side."""
    order = torch.arange(E).view(E // H, H).T.flatten()  # our feature i is their feature order[i]
    q, k, v, (weight, bias) = linears(m)
    return [*((w[order], b[order]) for w, b in (q, k, v)), (weight[:, order], bias)]


def of_heads(groups, out):
    """groups: for each of q, k, v the Linears of the heads."""
    maps = []
    for group in groups:
        biases = [m.bias for m in group]
        bias = None if biases[0] is None else torch.cat(biases)
        maps.append((torch.cat([m.weight for m in group]), bias))
    return [*maps, out]


def summed(m):
    out = torch.cat([o.weight for o in m.o_maps], dim=1), m.bias
    return of_heads((m.q_maps, m.k_maps, m.v_maps), out)


def head_list(m):
    groups = [[getattr(h, name) for h in m.heads] for name in ("query", "key", "value")]
    return of_heads(groups, (m.proj.weight, m.proj.bias))


def looped(m, out):
    groups = [[getattr(h, name) for h in m.heads] for name in ("q_proj", "k_proj", "v_proj")]
    return of_heads(groups, (out.weight, out.bias))


def packed_keys(m):
    """One Linear for the queries, one for keys and values."""
    q, (weight, bias), out = linears(m)
    return [q, *zip(weight.chunk(2), bias.chunk(2), strict=True), out]


def einsum(m):
    maps = [(w.mT.flatten(0, 1), None) for w in (m.wq, m.wk, m.wv)]  # (H, E, D) -> (H*D, E)
    return [*maps, (m.wo.flatten(0, 1).T, None)]


MAPS = {
    "MultiheadAttention": lambda m: chunked(m.in_proj_weight, m.in_proj_bias, m.out_proj),
    "BatchFirstTorch": lambda m: chunked(m.in_proj_weight, m.in_proj_bias, m.out_proj),
    "TorchAdapter": lambda m: chunked(
        m.inner.in_proj_weight, m.inner.in_proj_bias, m.inner.out_proj
    ),
    "LoopedHeads": lambda m: looped(m, m.out_proj),
    "FromSingleHeads": lambda m: looped(m, m.proj),
    "SummedHeads": summed,
    "Interleaved": interleaved,
    "PackedWeights": lambda m: chunked(m.in_proj_weight, m.in_proj_bias, m.out_proj),
    "PackedPerHead": packed_per_head,
    "EinsumHeads": einsum,
    "ListOfHeads": head_list,
    "OfConv1D": lambda m: [
        *zip(m.c_attn.weight.T.chunk(3), m.c_attn.bias.chunk(3), strict=True),
        (m.c_proj.weight.T, m.c_proj.bias),
    ],
    "BareParameters": lambda m: [
        (getattr(m, f"W_{x}").T, getattr(m, f"b_{x}")) for x in ("Q", "K", "V", "O")
    ],
    "Pointwise": lambda m: [
        (c.weight[..., 0], c.bias) for c in (m.conv_q, m.conv_k, m.conv_v, m.conv_o)
    ],
    "CausalSelfAttention": lambda m: chunked(m.c_attn.weight, m.c_attn.bias, m.c_proj),
    "PatchAttention": lambda m: chunked(m.qkv.weight, m.qkv.bias, m.proj),
    "WithCache": lambda m: chunked(m.qkv.weight, m.qkv.bias, m.proj),
    "QueriesInChunks": packed_keys,
    "MultiQuery": packed_keys,
}

HEADS = ("num_heads", "heads", "h", "n", "H", "n_heads", "n_head", "num_attention_heads")


def heads_of(m):
    """H and H_kv of an instance."""
    if isinstance(m, module.SummedHeads):
        return len(m.q_maps), len(m.k_maps)
    if isinstance(m, module.EinsumHeads):
        return len(m.wq), len(m.wk)
    m = getattr(m, "inner", m)
    count = next(getattr(m, name) for name in HEADS if hasattr(m, name))
    count = len(count) if isinstance(count, nn.ModuleList) else count
    if isinstance(m, module.MultiQuery):
        return count, 1
    return count, getattr(m, "num_kv_heads", getattr(m, "n_kv_heads", count))


def oracle(m):
    """``mha.MultiHeadAttention`` with the weights of ``m``."""
    maps = MAPS.get(type(m).__name__, linears)(m)
    heads, key_heads = heads_of(m)
    (q, _), *_, (out, _) = maps
    right = mha.MultiHeadAttention(
        out.shape[0],
        heads,
        num_kv_heads=key_heads,
        head_dim=q.shape[0] // heads,
        dtype=torch.float64,
    ).eval()
    with torch.no_grad():
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        for name, (weight, bias) in zip(names, maps, strict=True):
            layer = getattr(right, name)
            layer.weight.copy_(weight)
            layer.bias.zero_() if bias is None else layer.bias.copy_(bias)
    return right


def additive(mask):
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, float("-inf"))


ALONE = (  # x in the first place and no key and value beside it
    "OfConv1D CausalSelfAttention EncoderSelfAttention WithContextLength PatchAttention "
    "PackedPerHead GroupsByExpand CausalFlag SelfOnly WithCache TokenMask"
).split()
ALWAYS_CAUSAL = "OfConv1D CausalSelfAttention WithContextLength WithCache".split()
WITHOUT_MASK = "CausalSelfAttention WithContextLength PatchAttention WithCache".split()
MEMORY = "KeysWithoutBias Pointwise QueriesInChunks WithContextDim MultiQuery WithMemory".split()
OTHER_MASK = "ValidLengths TokenMask".split()
BLOCK = (
    "BlockedByDocstring BlockedByName BlockedUnsaid TorchMasks MultiheadAttention BatchFirstTorch"
).split()
MASK_NAME = {
    "attn_mask": "MultiHeadAttention BatchedHeads LoopedHeads FromSingleHeads FusedInside "
    "SequenceFirst TorchMasks AddedMask MultiheadAttention BatchFirstTorch TwoMasks",
    "attention_mask": "OfConv1D EncoderSelfAttention",
    "blocked": "BlockedByName",
}
MASK_NAME = {name: key for key, names in MASK_NAME.items() for name in names.split()}


def call(m, query, memory, mask=None):
    """The output (B, T, E); the mask (B, 1, T, S) is True where attention is allowed."""
    name = type(m).__name__
    options = {}
    if mask is not None:
        if name in BLOCK:
            mask = ~mask
        if name in ("AddedMask", "EncoderSelfAttention"):
            mask = additive(mask)
        if name == "FourClones":
            mask = mask[:, 0]  # (B, T, S)
        if name in ("SequenceFirst", "MultiheadAttention", "BatchFirstTorch"):
            mask = mask.expand(-1, H, -1, -1).flatten(0, 1)  # (B*H, T, S)
        options[MASK_NAME.get(name, "mask")] = mask
    inputs = [query, memory, memory]
    if name in ALONE:
        inputs = [query]
    elif name in MEMORY:
        inputs = [query, memory]
    sequence_first = name == "SequenceFirst" or not getattr(m, "batch_first", True)
    if sequence_first:
        inputs = [x.transpose(0, 1) for x in inputs]
    if name == "KeywordsOnly":
        options |= dict(zip(("queries", "keys", "values"), inputs, strict=True))
        inputs = []
    if name == "ValuesFirst":
        inputs.reverse()
    output = m(*inputs, **options)
    output = output[0] if isinstance(output, tuple) else output
    return output.transpose(0, 1) if sequence_first else output


def close(one, other, tolerance=1e-9):
    return torch.allclose(one, other, rtol=0, atol=tolerance)


def tolerance(m):
    return 1e-5 if isinstance(m, module.GroupsByExpand) else 1e-9  # its softmax is in float32


def width(m):
    return oracle(m).embed_dim


# --- the modules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", MODULES, ids=ids(MODULES))
@pytest.mark.parametrize("masked", [False, True])
def test_module_equals_the_oracle(entry, masked):
    m = make(entry.subject)
    name, right = type(m).__name__, oracle(m)
    if masked and name in (*WITHOUT_MASK, *OTHER_MASK):
        pytest.skip("takes no such mask")
    query = randn(B, T, right.embed_dim, seed=3)
    memory = query if name in ALONE else randn(B, S, right.embed_dim, seed=4)
    mask = None if not masked else SQUARE if name in ALONE else ATTEND
    expected = right(query, memory, attn_mask=mask, is_causal=name in ALWAYS_CAUSAL)
    output = call(m, query, memory, mask)
    assert output.dtype == torch.float64
    assert close(output, expected, tolerance(m))


@pytest.mark.parametrize("entry", MODULES, ids=ids(MODULES))
def test_module_has_gradients(entry):
    """Every parameter gets one, except a bias of the keys, which shifts a whole row of scores."""
    m = make(entry.subject).train()
    query = randn(B, T, width(m), seed=3)
    memory = query if type(m).__name__ in ALONE else randn(B, S, width(m), seed=4)
    m.zero_grad()
    call(m, query, memory).square().sum().backward()
    assert all(p.grad is not None for p in m.parameters())
    still = [(n, p.ndim) for n, p in m.named_parameters() if p.grad.abs().max() < 1e-9]
    assert all(axes == 1 and ("k" in n.lower() or n == "linears.1.bias") for n, axes in still)
    m.eval()


@pytest.mark.parametrize("entry", MODULES, ids=ids(MODULES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_module_keeps_the_dtype(entry, dtype):
    m = make(entry.subject)
    size = width(m)
    query = randn(B, T, size, seed=3)
    memory = query if type(m).__name__ in ALONE else randn(B, S, size, seed=4)
    expected = call(m, query, memory)
    output = call(m.to(dtype), query.to(dtype), memory.to(dtype))
    m.double()
    assert output.dtype == dtype and output.isfinite().all()
    assert close(output.double(), expected, 1e-4 if dtype == torch.float32 else 0.2)


@pytest.mark.parametrize("entry", MODULES, ids=ids(MODULES))
def test_module_drops_without_bias(entry):
    """In training the mean over many masks of dropout is the output; in eval nothing is dropped."""
    m = make(copy.deepcopy(entry.subject))
    alone, size, many = type(m).__name__ in ALONE, width(m), 3000
    query = randn(1, T, size, seed=3)
    memory = query if alone else randn(1, S, size, seed=4)
    expected = call(m, query, memory)
    if not set_dropout(m, 0.5):
        pytest.skip("has no dropout")
    assert torch.equal(call(m, query, memory), expected)
    query, memory = query.expand(many, -1, -1), memory.expand(many, -1, -1)
    with torch.no_grad():
        outputs = call(m.train(), query, query if alone else memory)
    error = (outputs.mean(0) - expected[0]).abs()
    assert outputs.std(0).mean() > 0.1
    assert (error < 6 * outputs.std(0) / many**0.5).all()


def set_dropout(m, p):
    """Set every probability of dropping; whether there is one."""
    found = False
    for part in m.modules():
        for name in ("p", "dropout", "drop"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, p)
                found = True
    return found


DEAD = [
    entry
    for entry in MODULES
    if name_of(entry) not in (*WITHOUT_MASK, *OTHER_MASK, "OfConv1D", "TorchAdapter")
]


@pytest.mark.parametrize("entry", DEAD, ids=ids(DEAD))
def test_module_has_the_notes_that_it_is_given(entry):
    """What comes out where a query may see nothing: NaN, an average, or the bias of W_O."""
    m = make(entry.subject)
    right, alone = oracle(m), type(m).__name__ in ALONE
    query = randn(B, T, right.embed_dim, seed=3)
    memory = query if alone else randn(B, S, right.embed_dim, seed=4)
    mask = (SQUARE if alone else ATTEND).clone()
    mask[0, :, 2] = False
    with torch.no_grad():
        if type(m).__name__ == "EncoderSelfAttention":  # as its docstring says, no -inf
            lowest = torch.zeros(mask.shape, dtype=torch.float64)
            row = m(query, lowest.masked_fill(~mask, torch.finfo(torch.float64).min))[0][0, 2]
        else:
            row = call(m, query, memory, mask)[0, 2]
    found = "dead-row-nan" if row.isnan().all() else None
    if close(row, right.out_proj.bias):
        found = None
    elif found is None:
        found = "dead-row-uniform"
        v = right.v_proj(memory[0]).mean(0).view(right.num_kv_heads, -1)  # (H_kv, D)
        v = v.repeat_interleave(right.num_heads // right.num_kv_heads, 0).flatten()
        assert close(row, right.out_proj(v))
    assert found in entry.notes if found else not {n for n in entry.notes if "dead" in n}


def test_both_masks_of_torch():
    m = make(module.TorchMasks)
    query, memory = randn(B, T, E, seed=3), randn(B, S, E, seed=4)
    real = torch.arange(S) < torch.tensor([[4], [7]])
    expected, weights = oracle(m)(
        query, memory, attn_mask=ATTEND, key_mask=real, return_weights=True
    )
    output, shown = m(
        query, memory, memory, key_padding_mask=~real, attn_mask=~ATTEND, need_weights=True
    )
    assert close(output, expected) and close(shown, weights)


def test_padding_masks():
    query, memory = randn(B, T, E, seed=3), randn(B, S, E, seed=4)
    real = torch.arange(S) < torch.tensor([[4], [7]])
    m = make(module.TwoMasks)
    expected = oracle(m)(query, memory, attn_mask=ATTEND, key_mask=real)
    assert close(m(query, memory, memory, ATTEND, real), expected)
    m = make(module.TokenMask)
    expected = oracle(m)(memory, key_mask=real)
    assert close(m(memory, real.long()), expected) and close(m(memory, real), expected)


def test_valid_lengths():
    m = make(module.ValidLengths)
    query, memory = randn(B, T, E, seed=3), randn(B, S, E, seed=4)
    lengths = torch.tensor([3, 6])
    expected = oracle(m)(query, memory, key_mask=torch.arange(S) < lengths[:, None])
    assert close(m(query, memory, memory, lengths), expected)
    each = torch.tensor([[1, 2, 3, 4, 5], [7, 6, 5, 4, 3]])  # (B, T)
    expected = oracle(m)(query, memory, attn_mask=(torch.arange(S) < each[..., None])[:, None])
    assert close(m(query, memory, memory, each), expected)


def test_causal_by_a_flag():
    x = randn(B, T, E, seed=3)
    for m in (make(module.CausalFlag), make(module.FusedInside)):
        assert close(m(x, is_causal=True), oracle(m)(x, is_causal=True))


def test_weights_are_those_of_the_oracle():
    query, memory = randn(B, T, E, seed=3), randn(B, S, E, seed=4)
    for kind in (module.ReturnsBoth, module.ReturnsMean, module.ReturnsNamed):
        m = make(kind)
        _, expected = oracle(m)(query, memory, attn_mask=ATTEND, return_weights=True)
        if kind is module.ReturnsMean:
            expected = expected.mean(1)
        assert close(m(query, memory, memory, ATTEND)[1], expected)
    m = make(module.ReturnsIfAsked)
    _, expected = oracle(m)(query, memory, return_weights=True)
    assert close(m(query, memory, return_weights=True)[1], expected)
    m = make(module.EncoderSelfAttention)
    _, expected = oracle(m)(query, return_weights=True)
    assert close(m(query, output_attentions=True)[1], expected)


def test_cache_continues_where_it_stopped():
    m = make(module.WithCache)
    x = randn(B, T, E, seed=3)
    whole = m(x)
    past, parts = None, []
    for step in (x[:, :2], x[:, 2:3], x[:, 3:]):
        out, past = m(step, past, use_cache=True)
        parts.append(out)
    assert close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("kind", module.EXTENDED, ids=lambda kind: kind.__name__)
def test_extended_equals_the_oracle(kind):
    """Rotary positions, normed heads, a cap of the scores: and each does make a difference."""
    m = make(kind)
    options = {
        "RotaryInside": {"rope": mha.positions.Rotary()},
        "NormedHeads": {"qk_norm": "rms"},
        "CappedScores": {"softcap": 2.0},
    }[kind.__name__]
    plain = oracle(m)
    right = mha.MultiHeadAttention(E, H, **options, dtype=torch.float64).eval()
    right.load_state_dict(plain.state_dict(), strict=False)
    if kind is module.NormedHeads:
        right.q_norm.load_state_dict(m.norm_q.state_dict())
        right.k_norm.load_state_dict(m.norm_k.state_dict())
    x = randn(B, T, E, seed=3)
    for mask in (None, SQUARE):
        assert close(m(x, mask), right(x, attn_mask=mask))
        assert not close(m(x, mask), plain(x, attn_mask=mask), 1e-3)


# --- the functions --------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", FUNCTIONS, ids=ids(FUNCTIONS))
@pytest.mark.parametrize("masked", [False, True])
def test_function_equals_the_oracle(entry, masked):
    fn, name = entry.subject, name_of(entry)
    if masked and name in ("attention_2d", "attention_in_one_pass"):
        pytest.skip("takes no mask")
    lead = {"attention_3d": (B,), "attention_2d": ()}.get(name, (B, H))
    q, k, v = (randn(*lead, n, 4, seed=i) for i, n in enumerate((T, S, S)))
    mask = None if not masked else ATTEND[:, 0] if name == "attention_3d" else ATTEND
    given = []
    if masked:
        given = [{"attention_blocked": ~mask, "attention_added": additive(mask)}.get(name, mask)]
    output = fn(q, k, v, *given)
    weights = output[1] if isinstance(output, tuple) else None
    output = output[0] if isinstance(output, tuple) else output
    wide = [x if x.ndim == 4 else x.reshape(-1, 1, *x.shape[-2:]) for x in (q, k, v)]
    wide_mask = mask[:, None] if name == "attention_3d" and masked else mask
    expected, shown = mha.scaled_dot_product_attention(*wide, wide_mask, return_weights=True)
    assert close(output, expected.reshape(output.shape))
    assert weights is None or close(weights, shown)


def test_function_that_is_causal():
    q, k, v = (randn(B, H, n, 4, seed=i) for i, n in enumerate((T, S, S)))
    expected = mha.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert close(module.attention_in_one_pass(q, k, v, is_causal=True), expected)


def test_there_are_many():
    assert len(MODULES) >= 25 and len(FUNCTIONS) >= 5
