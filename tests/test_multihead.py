"""The module: all properties, parity with torch's own module, and what it refuses."""

import copy
import io
import itertools
import shutil

import properties
import pytest
import torch
from support import MASK_NAMES, B, D, E, H, S, T, close, mask_cases, randn, to_numpy

from mha import KVCache, MultiHeadAttention, masks, reference
from mha import scaled_dot_product_attention as attention
from mha.heads import merge_heads, split_heads
from mha.positions import ALiBi, Rotary

BACKENDS = ("reference", "sdpa", "flash", "auto")


WITH_DROPOUT = {  # which flash refuses
    "rows_of_weights_sum_to_one",
    "dropout_acts_in_training_only_and_is_unbiased",
    "weights_asked_for_change_no_output",
}


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        (name, backend)
        for name, backend in itertools.product(properties.ALL, BACKENDS)
        if not (backend == "flash" and name in WITH_DROPOUT)
    ],
)
def test_property(name, backend):
    def make(*args, **options):
        return MultiHeadAttention(*args, **options, backend=backend)

    properties.ALL[name](make)


def twins(kdim=None, vdim=None, bias=True):
    """Ours and torch's module with the same weights, in float64."""
    ours = MultiHeadAttention(E, H, kdim=kdim, vdim=vdim, bias=bias, dtype=torch.float64)
    theirs = torch.nn.MultiheadAttention(
        E, H, kdim=kdim, vdim=vdim, bias=bias, batch_first=True, dtype=torch.float64
    )
    linears = ours.q_proj, ours.k_proj, ours.v_proj
    with torch.no_grad():
        for index, parameter in enumerate(ours.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=index))
        if theirs.in_proj_weight is not None:
            theirs.in_proj_weight.copy_(torch.cat([linear.weight for linear in linears]))
        else:
            for letter, linear in zip("qkv", linears, strict=True):
                getattr(theirs, f"{letter}_proj_weight").copy_(linear.weight)
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([linear.bias for linear in linears]))
            theirs.out_proj.bias.copy_(ours.out_proj.bias)
        theirs.out_proj.weight.copy_(ours.out_proj.weight)
    return ours, theirs


@pytest.mark.parametrize("widths", [(None, None), (3, 7)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", [n for n in MASK_NAMES if "dead" not in n and "without" not in n])
def test_parity_with_torch(name, widths, bias):
    given = mask_cases()[name]
    attn_mask, key_mask = given.get("attn_mask"), given.get("key_mask")
    if given.get("is_causal"):
        causal = masks.causal(T, S)
        attn_mask = masks.combine(attn_mask, causal)
    dead = torch.from_numpy(
        reference.bias((B, H, T, S), **to_numpy({"attn_mask": attn_mask, "key_mask": key_mask}))
        if attn_mask is not None
        else reference.bias((B, H, T, S), **to_numpy({"key_mask": key_mask}))
    )
    alive = ~dead.isneginf().all(-1).expand(B, H, T).any(1)  # (B, T): torch gives NaN elsewhere
    translated = {}
    if attn_mask is not None and attn_mask.is_floating_point():
        translated["attn_mask"] = attn_mask.double().expand(B, H, T, S).reshape(B * H, T, S)
        if key_mask is not None:
            translated["key_padding_mask"] = masks.to_additive(key_mask, torch.float64)
    else:
        attn_mask = None if attn_mask is None else attn_mask.expand(B, H, T, S)
        translated = masks.to_torch(attn_mask, key_mask, num_heads=H)
    ours, theirs = twins(*widths, bias=bias)
    x = randn(B, T, E, seed=30, requires_grad=True)
    y = randn(B, S, widths[0] or E, seed=31, requires_grad=True)
    z = randn(B, S, widths[1] or E, seed=32, requires_grad=True)
    mine, my_weights = ours(x, y, z, **given, return_weights=True)
    other, their_weights = theirs(x, y, z, **translated, average_attn_weights=False)
    assert alive.any()
    close(mine[alive], other[alive])
    by_query = my_weights.transpose(1, 2)[alive], their_weights.transpose(1, 2)[alive]
    close(*by_query)
    if not alive.all():
        return  # torch's gradients are NaN as well then
    grad = randn(B, T, E, seed=33)
    got = torch.autograd.grad(mine, (x, y, z, ours.out_proj.weight), grad)
    expected = torch.autograd.grad(other, (x, y, z, theirs.out_proj.weight), grad)
    for a, b in zip(got, expected, strict=True):
        close(a, b, 1e-11)


def test_torch_gives_nan_where_ours_gives_the_bias():
    ours, theirs = twins()
    x, y = randn(B, T, E), randn(B, S, E, seed=1)
    nobody = torch.zeros(B, S, dtype=torch.bool)
    assert theirs(x, y, y, **masks.to_torch(key_mask=nobody))[0].isnan().all()
    assert torch.equal(ours(x, y, key_mask=nobody), ours.out_proj.bias.expand(B, T, E))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("training", [True, False])
def test_train_and_eval_agree_dropout_aside(training, dropout):
    module = MultiHeadAttention(E, H, dropout=dropout, dtype=torch.float64)
    x = randn(B, T, E)
    expected = reference.multi_head_attention(
        *[x.numpy()] * 3, reference.Parameters.from_module(module), H
    )
    output = module.train(training)(x)
    if not (training and dropout):
        close(output, torch.from_numpy(expected))
    with torch.no_grad():
        if not (training and dropout):
            close(module(x), output)


def test_dropout_acts_in_training_without_gradients_too():
    module = MultiHeadAttention(E, H, dropout=0.5).train()
    x = torch.ones(B, T, E)
    with torch.no_grad():
        assert not torch.equal(module(x), module(x))


def test_sizes_of_its_own():
    module = MultiHeadAttention(6, 3, head_dim=5, kdim=4, vdim=7, out_bias=False)
    assert module.q_proj.weight.shape == (15, 6)
    assert module.k_proj.weight.shape == (15, 4)
    assert module.v_proj.weight.shape == (15, 7)
    assert module.out_proj.weight.shape == (6, 15)
    assert module.q_proj.bias is not None
    assert module.out_proj.bias is None
    only = MultiHeadAttention(6, 3, bias=False, out_bias=True)
    assert [only.q_proj.bias is None, only.out_proj.bias is None] == [True, False]
    assert module(torch.ones(2, 3, 6), torch.ones(2, 5, 4), torch.ones(2, 5, 7)).shape == (2, 3, 6)
    bare = MultiHeadAttention(8, 2, bias=False)
    assert [name for name, _ in bare.named_parameters()] == [
        f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    ]


def test_scale_and_causal_settings():
    x = randn(B, S, E)
    module = MultiHeadAttention(E, H, scale=0.1, is_causal=True, dtype=torch.float64)
    p = reference.Parameters.from_module(module)
    expected = reference.multi_head_attention(*[x.numpy()] * 3, p, H, is_causal=True, scale=0.1)
    close(module(x), torch.from_numpy(expected))
    close(
        module(x, is_causal=False),
        torch.from_numpy(reference.multi_head_attention(*[x.numpy()] * 3, p, H, scale=0.1)),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_whole_graph(backend):
    module = MultiHeadAttention(E, H, backend=backend, dtype=torch.float64)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x, y = randn(B, T, E, requires_grad=True), randn(B, S, E, seed=1)
    given = mask_cases()["bool, causal and key_mask"]
    output, weights = compiled(x, y, **given, return_weights=True)
    expected, expected_weights = module(x, y, **given, return_weights=True)
    close(output, expected)
    close(weights, expected_weights)
    (got,) = torch.autograd.grad(output.square().sum(), x)
    (want,) = torch.autograd.grad(expected.square().sum(), x)
    close(got, want, 1e-11)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compile_with_inductor():
    options = {"num_kv_heads": 1, "rope": Rotary(), "qk_norm": "rms", "window": (1, 0)}
    module = MultiHeadAttention(E, H, **options, is_causal=True, dtype=torch.float64)
    key_mask = mask_cases()["key_mask, holes"]["key_mask"]
    results = []
    for each in (module, torch.compile(copy.deepcopy(module), fullgraph=True)):
        x = randn(B, S, E, requires_grad=True)
        output = each(x, key_mask=key_mask)
        output.backward(randn(B, S, E, seed=1))
        results.append([output, x.grad, *(p.grad for p in each.parameters())])
    for mine, theirs in zip(*results, strict=True):
        close(mine, theirs, 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_export(backend):
    module = MultiHeadAttention(E, H, backend=backend, dtype=torch.float64).eval()
    x, y = randn(B, T, E), randn(B, S, E, seed=1)
    key_mask = mask_cases()["key_mask"]["key_mask"]
    program = torch.export.export(module, (x, y), {"key_mask": key_mask})
    close(program.module()(x, y, key_mask=key_mask), module(x, y, key_mask=key_mask))


def test_export_of_any_batch_and_length():
    module = MultiHeadAttention(E, H, is_causal=True).eval()
    real = torch.ones(2, 6, dtype=torch.bool)
    any_size = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", max=512)}
    shapes = {"query": any_size, "key_mask": any_size}
    program = torch.export.export(
        module, (randn(2, 6, E, dtype=torch.float32),), {"key_mask": real}, dynamic_shapes=shapes
    ).module()
    x = randn(5, 9, E, dtype=torch.float32)
    holes = torch.arange(9) < torch.arange(5, 10)[:, None]
    close(program(x, key_mask=holes), module(x, key_mask=holes), 1e-6)


@pytest.mark.parametrize("backend", ("reference", "sdpa", "auto"))
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_vmap_over_weights(backend):
    modules = [MultiHeadAttention(E, H, backend=backend, dtype=torch.float64) for _ in range(3)]
    parameters, _ = torch.func.stack_module_state(modules)
    x = randn(B, T, E)
    outputs = torch.func.vmap(lambda p: torch.func.functional_call(modules[0], p, (x,)))(parameters)
    close(outputs, torch.stack([module(x) for module in modules]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend):
    module = MultiHeadAttention(E, H, backend=backend)
    x = randn(B, T, E, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, weights = module(x, is_causal=True, return_weights=True)
    assert output.dtype == weights.dtype == torch.bfloat16
    close(output, module(x, is_causal=True), 3e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(x.bfloat16(), is_causal=True), output)  # a layer gave bfloat16
        with pytest.raises(ValueError, match="query must be torch.float32 .*got torch.float64"):
            module(x.double())


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_on_the_meta_device(backend):
    module = MultiHeadAttention(E, H, backend=backend, device="meta")
    x, y = torch.empty(B, T, E, device="meta"), torch.empty(B, S, E, device="meta")
    output, weights = module(x, y, is_causal=True, return_weights=True)
    assert output.shape == (B, T, E)
    assert weights.shape == (B, H, T, S)


def test_state_dict_round_trip():
    module, other = MultiHeadAttention(E, H), MultiHeadAttention(E, H)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = randn(B, T, E, dtype=torch.float32)
    assert torch.equal(module(x), other(x))


def test_the_four_layers_are_called_as_modules():
    module, seen = MultiHeadAttention(E, H), []
    for name, layer in module.named_children():
        layer.register_forward_hook(lambda *_, name=name: seen.append(name))
    module(torch.ones(B, T, E))
    assert seen == ["q_proj", "k_proj", "v_proj", "out_proj"]


def test_a_layer_can_be_replaced():
    class LowRank(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear, self.down = linear, torch.nn.Linear(E, 1, bias=False)
            self.up = torch.nn.Linear(1, E, bias=False)

        def forward(self, x):
            return self.linear(x) + self.up(self.down(x))

    module = MultiHeadAttention(E, H)
    merged = copy.deepcopy(module)
    module.q_proj = LowRank(module.q_proj)
    with torch.no_grad():
        merged.q_proj.weight += module.q_proj.up.weight @ module.q_proj.down.weight
    x = randn(B, T, E, dtype=torch.float32)
    close(module(x), merged(x), 1e-5)


def test_initial_weights():
    torch.manual_seed(0)
    module = MultiHeadAttention(64, 4, kdim=32)
    for linear in module.children():
        bound = (6 / sum(linear.weight.shape)) ** 0.5  # Glorot and Bengio 2010, equation 16
        assert linear.weight.abs().max() <= bound
        assert linear.weight.abs().max() > 0.98 * bound
        assert (linear.bias == 0).all()


X, Y = torch.zeros(B, T, E), torch.zeros(B, S, E)
REFUSALS = {
    "heads": (lambda: MultiHeadAttention(8, 3), ValueError, "embed_dim=8 and num_heads=3"),
    "heads float": (lambda: MultiHeadAttention(8, 2.0), TypeError, "num_heads .*int, got 2.0"),
    "head_dim": (lambda: MultiHeadAttention(8, 2, head_dim=2.5), TypeError, "head_dim .*got 2.5"),
    "kdim 0": (lambda: MultiHeadAttention(8, 2, kdim=0), ValueError, "kdim .*at least 1, got 0"),
    "vdim -1": (lambda: MultiHeadAttention(8, 2, vdim=-1), ValueError, "vdim .*got -1"),
    "int weights": (
        lambda: MultiHeadAttention(8, 2, dtype=torch.int64),
        TypeError,
        "got torch.int64",
    ),
    "causal": (lambda: MultiHeadAttention(8, 2, is_causal="yes"), TypeError, "is_causal .*'yes'"),
    "width": (lambda: MultiHeadAttention(0, 1), ValueError, "embed_dim must be at least 1, got 0"),
    "dropout": (lambda: MultiHeadAttention(8, 2, dropout=2.0), ValueError, "dropout .*got 2.0"),
    "scale": (lambda: MultiHeadAttention(8, 2, scale="1"), TypeError, "scale .*got str"),
    "backend": (lambda: MultiHeadAttention(8, 2, backend="x"), ValueError, "auto, reference, sdpa"),
    "axes": (lambda: MultiHeadAttention(8, 2)(X[0]), ValueError, r"query .*got \(3, 8\)"),
    "E": (
        lambda: MultiHeadAttention(8, 2)(X[..., :6]),
        ValueError,
        r"query must have shape \(B, T, embed_dim=8\), got \(2, 3, 6\)",
    ),
    "kdim": (
        lambda: MultiHeadAttention(8, 2, kdim=6)(X, Y),
        ValueError,
        r"key must have shape \(B, S, kdim=6\), got \(2, 5, 8\)",
    ),
    "vdim": (
        lambda: MultiHeadAttention(8, 2, vdim=6)(X, Y),
        ValueError,
        r"value must have shape \(B, S, vdim=6\), got \(2, 5, 8\)",
    ),
    "B": (
        lambda: MultiHeadAttention(8, 2)(X, Y[:1]),
        ValueError,
        "same batch size B, got query B=2, key B=1, value B=1",
    ),
    "S": (
        lambda: MultiHeadAttention(8, 2)(X, Y, Y[:, :4]),
        ValueError,
        "same length S, got key S=5, value S=4",
    ),
    "value alone": (
        lambda: MultiHeadAttention(8, 2)(X, None, Y),
        ValueError,
        "value was given without key",
    ),
    "dtype": (
        lambda: MultiHeadAttention(8, 2)(X.double()),
        ValueError,
        "query must be torch.float32 like the module's weights, got torch.float64",
    ),
    "device": (
        lambda: MultiHeadAttention(8, 2)(X.to("meta")),
        ValueError,
        "query must be on cpu like the module's weights, got meta",
    ),
    "integers": (
        lambda: MultiHeadAttention(8, 2)(X.long()),
        TypeError,
        "query must be a floating-point tensor, got torch.int64",
    ),
    "mask": (
        lambda: MultiHeadAttention(8, 2)(X, Y, attn_mask=torch.ones(3, T, S).bool()),
        ValueError,
        r"from \(3, 3, 5\) to \(2, 2, 3, 5\); a mask \(B, T, S\) needs a head axis",
    ),
    "int mask": (
        lambda: MultiHeadAttention(8, 2)(X, Y, key_mask=torch.ones(B, S).long()),
        TypeError,
        r"key_mask must be bool .*say key_mask.bool\(\)",
    ),
    "key_mask": (
        lambda: MultiHeadAttention(8, 2)(X, Y, key_mask=torch.ones(B, T).bool()),
        ValueError,
        r"S=5 keys .*got shape \(2, 3\)",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, error, words = REFUSALS[name]
    with pytest.raises(error, match=words):
        call()


def test_repr_says_what_it_is():
    words = repr(MultiHeadAttention(E, H, dropout=0.1, is_causal=True))
    assert f"embed_dim={E}, num_heads={H}, head_dim={D}" in words
    assert "dropout=0.1, is_causal=True" in words


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_on_the_gpu(backend, dtype):
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2}.get(dtype, 1.5e-1)
    for given in mask_cases(dtype=dtype).values():
        module = properties.built(MultiHeadAttention, E, H, backend=backend)
        inputs = properties.operands(T, S)
        expected, expected_weights = module(*inputs, **given, return_weights=True)
        module = module.to("cuda", dtype)
        moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
        x, y, z = (i.to("cuda", dtype).requires_grad_(True) for i in inputs)
        output, weights = module(x, y, z, **moved, return_weights=True)
        close(output.cpu(), expected, tolerance)
        close(weights.cpu(), expected_weights, tolerance)
        output.float().sum().backward()
        assert all(i.grad.isfinite().all() for i in (x, y, z))


def test_key_heads_of_their_own_and_norms_of_their_own():
    module = MultiHeadAttention(E, 4, num_kv_heads=2, head_dim=3, qk_norm="layer", bias=False)
    assert module.k_proj.weight.shape == module.v_proj.weight.shape == (6, E)
    assert module.q_norm.weight.shape == (3,) and module.k_norm is not module.q_norm
    output, weights = module(torch.randn(B, T, E), torch.randn(B, S, E), return_weights=True)
    assert output.shape == (B, T, E) and weights.shape == (B, 4, T, S)
    assert MultiHeadAttention(E, 4).q_norm is None
    with torch.no_grad():
        module.q_norm.weight.zero_()
        module.reset_parameters()
    assert (module.q_norm.weight == 1).all()


def test_positions_move_the_queries_alone_in_cross_attention():
    module = MultiHeadAttention(E, H, rope=Rotary(), dtype=torch.float64)
    x, y = randn(B, T, E), randn(B, S, E, seed=1)
    there = torch.tensor([[3, 4, 5], [0, 2, 9]])
    q = module.rope(split_heads(module.q_proj(x), H), there)
    k = module.rope(split_heads(module.k_proj(y), H), torch.arange(S))
    v = split_heads(module.v_proj(y), H)
    expected = module.out_proj(merge_heads(attention(q, k, v, backend="reference")))
    close(module(x, y, positions=there), expected)
    assert not torch.allclose(module(x, y), expected)


def test_positions_move_queries_and_keys_in_self_attention():
    module = MultiHeadAttention(E, H, rope=Rotary(), dtype=torch.float64)
    x = randn(B, S, E)
    shifted = torch.arange(S) + torch.tensor([[7], [1000]])  # (B, S): only distances count
    close(module(x, positions=shifted), module(x), 1e-10)
    close(module(x, x, positions=shifted), module(x), 1e-10)
    assert not torch.allclose(module(x, positions=2 * torch.arange(S)), module(x))


@pytest.mark.parametrize("qk_norm", ["rms", "layer"])
def test_norms_under_autocast_warn_of_nothing_and_keep_the_dtype(qk_norm):
    module = MultiHeadAttention(E, H, qk_norm=qk_norm)
    x = randn(B, T, E, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(x)  # a warning would be an error here
    assert output.dtype == torch.bfloat16
    close(output, module(x), 5e-2)


def test_alibi_passes_through():
    module = MultiHeadAttention(E, H, dtype=torch.float64, backend="reference")
    x, bias = randn(B, S, E), ALiBi(H)
    close(module(x, attn_mask=bias), module(x, attn_mask=bias.bias(S, dtype=torch.float64)))


def test_it_prints_the_options_that_were_given():
    words = repr(MultiHeadAttention(E, H, num_kv_heads=1, softcap=3.0, window=(2, 0)))
    assert "num_kv_heads=1, softcap=3.0, window=(2, 0)" in words
    assert "softcap" not in repr(MultiHeadAttention(E, H))


ENGINE_REFUSALS = {
    "key heads": ({"num_kv_heads": 3}, ValueError, "must divide num_heads, got num_heads=2"),
    "no key heads": ({"num_kv_heads": 0}, ValueError, "num_kv_heads must be at least 1, got 0"),
    "norm": ({"qk_norm": "l2"}, ValueError, "qk_norm must be None or one of rms, layer, got 'l2'"),
    "rope": ({"rope": True}, TypeError, "rope must be a mha.positions.Rotary, got bool"),
    "rope's width": ({"rope": Rotary(6)}, ValueError, "at most the head width D=4, got 6"),
    "softcap": ({"softcap": -1.0}, ValueError, "softcap must be finite and above 0, got -1.0"),
    "window": ({"window": (1,)}, TypeError, r"a pair \(left, right\), got \(1,\)"),
}


@pytest.mark.parametrize("name", ENGINE_REFUSALS)
def test_refusals_of_the_engine(name):
    options, error, words = ENGINE_REFUSALS[name]
    with pytest.raises(error, match=words):
        MultiHeadAttention(E, H, **options)


def test_self_attention_with_other_widths_is_refused():
    with pytest.raises(ValueError, match=r"key must have shape \(B, S, kdim=3\), got \(2, 3, 8\)"):
        MultiHeadAttention(E, H, kdim=3)(torch.zeros(B, T, E))


def test_refusals_of_positions_and_caches():
    module, x = MultiHeadAttention(E, H), torch.zeros(B, T, E)
    with pytest.raises(ValueError, match="positions are for rope, and this module has none"):
        module(x, positions=torch.arange(T))
    with pytest.raises(TypeError, match="cache must be a mha.KVCache, got dict"):
        module(x, cache={})
    with pytest.raises(ValueError, match="must have the batch size of query, B=2, got 3"):
        module(x, cache=KVCache.for_module(module, B + 1, S))
    with pytest.raises(ValueError, match="requires grad"):
        module(x, cache=KVCache.for_module(module, B, S))


def test_a_backend_that_was_set_later_is_checked():
    module = MultiHeadAttention(8, 2)
    module.backend = "flsh"
    with pytest.raises(ValueError, match="backend must be one of .*flash.*got 'flsh'"):
        module(torch.ones(1, 3, 8))
