"""The backend "flex": numbers over several blocks, which blocks are read, what is refused."""

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from support import MASK_NAMES, ORDER_NAMES, close, mask_cases, oracle, order_cases, randn

import mha
from mha import _flex
from mha._rules import Rules
from mha.positions import ALiBi

B, H, H_KV, T, S, D = 2, 4, 2, 140, 270, 8  # two blocks of queries, three of keys
attention = mha.scaled_dot_product_attention


def operands(dtype=torch.float64, requires_grad=False):
    """Query (B, H, T, D), key (B, H_kv, S, D), value (B, H_kv, S, D + 1)."""
    shapes = (B, H, T, D), (B, H_KV, S, D), (B, H_KV, S, D + 1)
    return [
        randn(*shape, seed=i, dtype=dtype, requires_grad=requires_grad)
        for i, shape in enumerate(shapes)
    ]


def cases():
    """Name -> arguments: every kind of mask, and what only these sizes can show."""
    draw = torch.Generator().manual_seed(3)
    blocks = torch.rand(T, S, generator=draw) < 0.5
    blocks[:, 128:256] = False  # a block that nobody reads
    blocks[130] = False  # a dead row
    huge = torch.randn(H, T, S, generator=draw)
    huge[:, :, :9] -= 1e9
    huge[:, 5] = torch.finfo(torch.float32).min
    huge[:, 6] = -1e9
    huge[:, 7] = float("-inf")
    own = {
        "bool, an empty block": {"attn_mask": blocks},
        "bool, expanded": {"attn_mask": blocks.expand(B, H, T, S)},
        "bool, turned": {"attn_mask": (torch.rand(S, T, generator=draw) < 0.5).T},
        "float, huge": {"attn_mask": huge, "is_causal": True},
        "key_mask (1, S)": {"key_mask": (torch.arange(S) < 131)[None]},
        "key_mask expanded": {"key_mask": (torch.arange(S) > 131).expand(B, S)},
        "window across blocks": {"window": (120, 3), "q_offset": 64},
        "q_offset of no axes": {"is_causal": True, "q_offset": torch.tensor(20)},
        "ALiBi": {"attn_mask": ALiBi(H), "q_offset": torch.tensor([130, 7])},
        "ALiBi, softcap": {"attn_mask": ALiBi(H), "softcap": 0.7, "is_causal": True},
    }
    sizes = {"batch": B, "heads": H, "length": T, "size": S}
    shared = mask_cases(**sizes) | order_cases(**sizes)
    assert set(shared) == {*MASK_NAMES, *ORDER_NAMES}
    return shared | own


CASES = cases()


def exact(options):
    """The arguments as the definition knows them."""
    if not isinstance(options.get("attn_mask"), ALiBi):
        return options
    offset = options.get("q_offset", 0)
    return options | {"attn_mask": options["attn_mask"].bias(T, S, q_offset=offset)}


def rules_of(softcap=None, **options):
    return Rules(**options)


def attend(query, key, value, softcap=None, **options):
    rules = rules_of(**options)
    return _flex.attend(query, key, value, rules, query.shape[-1] ** -0.5, softcap)


@pytest.mark.parametrize("name", CASES)
def test_it_equals_the_definition(name):
    options = CASES[name]
    output = attend(*operands(torch.float32), **options)
    expected = oracle(*operands(torch.float32), **exact(options), enable_gqa=True)
    close(output, expected, 2e-6, name)
    assert (output[expected == 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["none", "float, huge", "all"])
def test_half_types_are_rounded_once(name, dtype):
    """As if computed in float32 and rounded: an error of half a unit in the last place."""
    q, k, v = operands(dtype)
    v[:, :, : S // 2] *= 30  # sums that lose digits if they are kept in half precision
    output = attend(q, k, v, **CASES[name])
    assert output.dtype == dtype
    expected = oracle(q, k, v, **exact(CASES[name]), enable_gqa=True)
    unit = torch.finfo(dtype).eps * 0.5
    error = (output.double() - expected).abs()
    assert (error <= unit * expected.abs() + 2e-5).all()


def dense(count, order, blocks):
    """Lists of blocks as a matrix of booleans (..., rows, blocks)."""
    listed = torch.arange(order.shape[-1]) < count[..., None]
    assert order.shape[-1] == blocks
    return torch.zeros_like(listed).scatter(-1, order.long(), listed)


def lists(mask):
    """Blocks read in part and as a whole, by rows of queries and by columns of keys."""
    assert all(x.is_contiguous() for x in mask.as_tuple() if isinstance(x, torch.Tensor))
    sides = (mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)
    turned = (mask.q_num_blocks, mask.q_indices), (mask.full_q_num_blocks, mask.full_q_indices)
    for part, whole in zip(*sides, strict=True):  # the kernels use one's strides for both
        assert part.shape == whole.shape and part.stride() == whole.stride()
    rows = [dense(*side, -(-S // 128)) for side in sides]
    return *rows, *(dense(*side, -(-T // 128)) for side in turned)


SINGLE = [
    name
    for name, options in CASES.items()
    if len(options.keys() - {"q_offset", "softcap"}) == 1 and "(B, 1" not in name
]


@pytest.mark.parametrize("name", CASES)
def test_the_block_mask_reads_what_it_must_and_little_else(name):
    rules = rules_of(**CASES[name]).simplified(T, S)
    if isinstance(rules.attn_mask, ALiBi):
        rules = rules._replace(attn_mask=None)
    offset = torch.as_tensor(rules.q_offset).expand(B)
    mine = _flex._block_mask(rules._replace(q_offset=offset), (T, S), torch.device("cpu"))
    q, k, _ = operands()
    if rules.attn_mask is not None and rules.attn_mask.is_floating_point():
        rules = rules._replace(attn_mask=None)
    seen = rules.mask(q, k)
    if seen is None:
        assert mine is None
        return
    seen = seen.expand(B, H, T, S)
    theirs = torch_flex.create_block_mask(
        lambda b, h, i, j: seen[b, h, i, j], B, H, T, S, device="cpu"
    )
    some, whole, *turned = (x.expand(B, H, *x.shape[-2:]) for x in lists(mine))
    must, may, *_ = lists(theirs)
    assert ((some | whole) >= (must | may)).all(), "a block is missing"
    assert (whole <= may).all(), "a block is read without its mask"
    assert not (some & whole).any(), "a block is read twice"
    assert torch.equal(turned[0].mT, some) and torch.equal(turned[1].mT, whole)
    if name in SINGLE:  # one rule: exactly torch's blocks
        assert torch.equal(some, must) and torch.equal(whole, may)
    places = torch.meshgrid(*map(torch.arange, (B, H, T, S)), indexing="ij")
    assert torch.equal(mine.mask_mod(*places), seen)


@pytest.mark.parametrize("name", ["bool, an empty block", "float, huge", "all", "ALiBi"])
def test_weights_asked_for_change_no_output(name):
    options = CASES[name] | {"enable_gqa": True, "backend": "flex"}
    alone = attention(*operands(), **options)
    beside, weights = attention(*operands(), **options, return_weights=True)
    assert torch.equal(alone, beside)
    _, expected = oracle(*operands(), **exact(CASES[name]), enable_gqa=True, return_weights=True)
    close(weights, expected)


def test_nan_at_excluded_keys_does_not_matter():
    q, k, v = operands()
    options = CASES["key_mask, holes"] | {"enable_gqa": True}
    k[0, :, 1] = v[0, :, 1] = float("nan")
    close(attention(q, k, v, **options, backend="flex"), oracle(q, k, v, **options))


def test_scale():
    options = {"enable_gqa": True, "scale": 0.9}
    close(attention(*operands(), **options, backend="flex"), oracle(*operands(), **options))


def test_axes_before_the_heads():
    q, k, v = (x[None].expand(3, *x.shape) for x in operands())
    options = {"q_offset": torch.tensor([40, 2]), "is_causal": True, "enable_gqa": True}
    mask = torch.rand(3, 1, 1, T, S) < 0.5
    output = attention(q, k, v, mask, **options, backend="flex")
    for x, chosen in zip(output, mask, strict=True):
        close(x, oracle(*operands(), attn_mask=chosen, **options))


def test_tensors_that_require_grad_pass_without_grad_mode():
    inputs = operands(requires_grad=True)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output = attention(*inputs, enable_gqa=True, backend="flex")
        close(output, oracle(*operands(), enable_gqa=True))
        assert not output.requires_grad


def test_torch_does_not_complain_of_the_eager_path(monkeypatch):
    monkeypatch.setattr(torch_flex, "_WARNINGS_SHOWN", set(), raising=False)
    attend(*operands())  # any warning is an error here


def test_another_offset_or_window_edge_needs_no_other_kernel():
    graphs = torch._dynamo.utils.counters["stats"]
    for warm_up in (3, 5):
        attend(*operands(), is_causal=True, q_offset=warm_up)
    before = graphs["unique_graphs"]
    assert before > 0
    for offset in (7, -4, torch.tensor(9), torch.tensor([1, 30])):
        attend(*operands(), is_causal=True, q_offset=offset)
    assert graphs["unique_graphs"] == before


needs_compiler = pytest.mark.skipif(
    not _flex._has_compiler(), reason="needs a C++ compiler, and AVX2"
)
# torch's own, when its compiler is first imported
quiet = pytest.mark.filterwarnings("ignore:.*script_method.* is deprecated:DeprecationWarning")


@pytest.mark.parametrize(
    "compiler",
    ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler, quiet])],
)
@pytest.mark.parametrize("name", ["none", "all", "float, huge", "ALiBi"])
def test_an_outer_compiler_lets_it_be(name, compiler):
    function = torch.compile(attention, backend=compiler)
    options = CASES[name] | {"enable_gqa": True, "backend": "flex"}
    close(function(*operands(), **options), attention(*operands(), **options))


def test_what_is_compiled(monkeypatch):
    def taken(*shape, dtype=torch.float32, size=1 << 12):
        runner = _flex._runner(torch.empty(1, dtype=dtype).expand(*shape, 64), size)
        return "eager" if runner is _flex._eager else runner.func.__name__, runner

    monkeypatch.setattr(_flex, "_has_compiler", lambda: True)
    assert taken(1, 4, 1 << 12)[0] == "_compiled"
    assert taken(1, 4, (1 << 12) - 1)[0] == "eager"
    assert taken(1, 4, 1 << 12, dtype=torch.float64)[0] == "eager"
    limits = []

    def compile_with(dynamic):
        return lambda: limits.extend([dynamic, torch._dynamo.config.recompile_limit])

    monkeypatch.setattr(_flex, "_compile", compile_with)
    taken(1, 4, 1 << 12)[1]()
    assert limits == [False, _flex.RECOMPILE_LIMIT]
    assert torch._dynamo.config.recompile_limit != _flex.RECOMPILE_LIMIT
    monkeypatch.setattr(_flex, "_has_compiler", lambda: False)
    assert taken(1, 4, 1 << 12)[0] == "eager"


def test_a_missing_compiler_is_noticed(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not _flex._has_compiler.__wrapped__()


@pytest.mark.slow
@needs_compiler
@quiet
@pytest.mark.parametrize(
    "name",
    ["all", "float, huge", "bool, expanded", "bool, turned", "ALiBi, softcap", "key_mask expanded"],
)
def test_the_compiled_kernel_equals_the_definition(name, monkeypatch):
    compiled, calls = _flex._compiled, []
    monkeypatch.setattr(_flex, "COMPILE_SCORES", 0)
    monkeypatch.setattr(_flex, "_compiled", lambda *a: calls.append(a[0]) or compiled(*a))
    output = attend(*operands(torch.float32), **CASES[name])
    assert calls == [False]
    expected = oracle(*operands(torch.float32), **exact(CASES[name]), enable_gqa=True)
    close(output, expected, 2e-6, name)
    assert (output[expected == 0] == 0).all()


def grad_of(argument):
    return [x.requires_grad_(i == argument) for i, x in enumerate(operands())]


REFUSALS = {
    "dropout": (lambda: (operands(), {"dropout_p": 0.1}), "dropout"),
    "query requires grad": (lambda: (grad_of(0), {}), "gradients on the CPU"),
    "key requires grad": (lambda: (grad_of(1), {}), "gradients on the CPU"),
    "value requires grad": (lambda: (grad_of(2), {}), "gradients on the CPU"),
    "attn_mask requires grad": (
        lambda: (operands(), {"attn_mask": randn(T, S, requires_grad=True)}),
        "a gradient to attn_mask",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_feature_and_a_backend_that_can(name):
    make, feature = REFUSALS[name]
    inputs, options = make()
    with pytest.raises(ValueError, match=f"'flex' cannot do {feature}; 'reference' can"):
        attention(*inputs, **options, enable_gqa=True, backend="flex")
    attention(*inputs, **options, enable_gqa=True, backend="reference")


def test_transforms_of_functions_are_refused():
    query, key, value = operands()

    def function(x, backend):
        return attention(x, key, value, enable_gqa=True, backend=backend)

    with pytest.raises(ValueError, match=r"'flex' cannot do torch\.func transforms"):
        torch.func.vmap(function, in_dims=(0, None))(query[None], "flex")
    torch.func.vmap(function, in_dims=(0, None))(query[None], "reference")


def test_float64_is_refused_beyond_the_cpu():
    q, k, v = (x.to("meta") for x in operands())
    assert _flex.refusal(q, k, v, Rules(), 0.0) == ("float64 on meta", "reference")
    assert _flex.refusal(q.float(), k.float(), v.float(), Rules(), 0.0) is None
