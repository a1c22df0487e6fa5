"""Weights to and from torch.nn: the same numbers both ways, no shared memory, and clear refusals."""

import copy

import pytest
import torch
from support import MASK_NAMES, B, E, H, S, T, close, mask_cases, randn
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import mha
from mha import interop, masks

KDIM, VDIM = 6, 10
WIDTHS = {"packed": {}, "separate": {"kdim": KDIM, "vdim": VDIM}, "only vdim": {"vdim": VDIM}}
each_width = pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)


def make_torch(widths=(), **options):
    """torch's module with no zero left in it: it starts with zero biases."""
    options = {"batch_first": True, "dtype": torch.float64, **dict(widths), **options}
    module = nn.MultiheadAttention(E, H, **options)
    return randomize(module)


def make_ours(widths=(), **options):
    options = {"dtype": torch.float64, **dict(widths), **options}
    return randomize(mha.MultiHeadAttention(E, H, **options))


def randomize(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def inputs(widths, dtype=torch.float64):
    """Query (B, T, E), key (B, S, kdim) and value (B, S, vdim)."""
    sizes = ((T, E), (S, widths.get("kdim", E)), (S, widths.get("vdim", E)))
    return [randn(B, *size, seed=i, dtype=dtype) for i, size in enumerate(sizes)]


def their_masks(attn_mask=None, key_mask=None, is_causal=False):
    """Any of our masks in the words of torch's module."""
    if attn_mask is not None and attn_mask.ndim < 2:
        attn_mask = attn_mask.expand(T, S)
    mask = masks.combine(attn_mask, masks.causal(T, S) if is_causal else None)
    if mask is None or mask.dtype == torch.bool:
        return masks.to_torch(mask, key_mask, num_heads=H)
    mask = mask.double().expand(B, H, T, S).reshape(B * H, T, S)
    padding = None if key_mask is None else masks.to_additive(key_mask, torch.float64)
    return {"attn_mask": mask, "key_padding_mask": padding}


def gradients(output, *tensors):
    """Of a fixed function of the output, by each of the tensors."""
    loss = (output * randn(*output.shape, seed=9)).sum()
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("name", MASK_NAMES)
@pytest.mark.parametrize("way", ["from_torch", "to_torch"])
@each_width
def test_same_numbers_and_gradients_with_every_mask(widths, way, name):
    if way == "from_torch":
        theirs = make_torch(widths)
        ours = interop.from_torch(theirs)
    else:
        ours = make_ours(widths)
        theirs = interop.to_torch(ours)
    ours_in = [x.requires_grad_() for x in inputs(widths)]
    theirs_in = [x.detach().clone().requires_grad_() for x in ours_in]
    ours_out = ours(*ours_in, **mask_cases()[name])
    # Without weights and in training, torch too gives zeros for a query that sees nothing. Its
    # fused kernel has wrong gradients for a row of finfo.min, so take the plain one.
    with sdpa_kernel(SDPBackend.MATH):
        theirs_out, _ = theirs(*theirs_in, **their_masks(**mask_cases()[name]), need_weights=False)
    close(ours_out, theirs_out)
    for mine, other in zip(
        gradients(ours_out, *ours_in),
        gradients(theirs_out, *theirs_in),
        strict=True,
    ):
        close(mine, other, atol=1e-11)


@each_width
def test_weights_of_each_head_agree(widths):
    theirs = make_torch(widths)
    key_mask = masks.padding([S - 2, S])
    tensors = inputs(widths)
    out, weights = theirs(*tensors, **masks.to_torch(key_mask=key_mask), average_attn_weights=False)
    ours_out, ours_weights = interop.from_torch(theirs)(
        *tensors, key_mask=key_mask, return_weights=True
    )
    close(ours_out, out)
    close(ours_weights, weights)


@each_width
def test_parameter_gradients_agree(widths):
    theirs = make_torch(widths)
    ours = interop.from_torch(theirs)
    for out in (ours(*inputs(widths)), theirs(*inputs(widths))[0]):
        (out * randn(*out.shape, seed=9)).sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())
    for mine, other, rows in interop.torch_nn._pairs(ours, theirs):
        close(mine.grad, other.grad[rows], atol=1e-11)


@pytest.mark.parametrize("bias", [True, False])
@each_width
def test_round_trip_of_torch_gives_the_same_state(widths, bias):
    module = make_torch(widths, bias=bias, dropout=0.25)
    back = interop.to_torch(interop.from_torch(module))
    assert module.state_dict().keys() == back.state_dict().keys()
    for name, parameter in module.state_dict().items():
        assert torch.equal(parameter, back.state_dict()[name]), name
    assert back.dropout == 0.25
    assert (back.kdim, back.vdim) == (module.kdim, module.vdim)


@pytest.mark.parametrize("bias", [True, False])
@each_width
def test_round_trip_of_ours_gives_the_same_state(widths, bias):
    module = make_ours(widths, bias=bias, dropout=0.25)
    back = interop.from_torch(interop.to_torch(module))
    assert module.state_dict().keys() == back.state_dict().keys()
    for name, parameter in module.state_dict().items():
        assert torch.equal(parameter, back.state_dict()[name]), name
    assert back.dropout == 0.25


def test_each_projection_lands_in_its_place():
    module = make_torch({"kdim": KDIM, "vdim": VDIM})
    ours = interop.from_torch(module)
    assert torch.equal(ours.k_proj.weight, module.k_proj_weight)
    assert torch.equal(ours.v_proj.bias, module.in_proj_bias[2 * E :])
    packed = interop.to_torch(mha.MultiHeadAttention(E, H))
    assert packed.in_proj_weight.shape == (3 * E, E)
    assert packed.q_proj_weight is None


@pytest.mark.parametrize("batch_first", [True, False])
def test_batch_first_as_asked(batch_first):
    ours = make_ours()
    theirs = interop.to_torch(ours, batch_first=batch_first)
    tensors = inputs({})
    expected = ours(*tensors)
    if not batch_first:
        tensors, expected = [x.transpose(0, 1) for x in tensors], expected.transpose(0, 1)
    close(theirs(*tensors)[0], expected)
    close(interop.from_torch(theirs)(*inputs({})), ours(*inputs({})))


def test_batch_first_by_default():
    assert interop.to_torch(make_ours()).batch_first is True


def test_batch_first_must_be_a_bool():
    with pytest.raises(TypeError, match="batch_first must be True or False, got 1"):
        interop.to_torch(make_ours(), batch_first=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    ours = interop.from_torch(make_torch(dtype=dtype))
    theirs = interop.to_torch(ours)
    for module in (ours, theirs):
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}


def test_device_is_kept():
    ours = interop.from_torch(nn.MultiheadAttention(E, H, device="meta"))
    theirs = interop.to_torch(ours)
    for module in (ours, theirs):
        assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


@pytest.mark.parametrize("training", [True, False])
def test_training_flag_is_kept(training):
    ours = interop.from_torch(make_torch(dropout=0.5).train(training))
    assert ours.training is ours.out_proj.training is training
    theirs = interop.to_torch(ours)
    assert theirs.training is theirs.out_proj.training is training


@each_width
def test_frozen_parameters_stay_frozen(widths):
    module = make_torch(widths)
    module.in_proj_bias.requires_grad_(False)
    module.out_proj.weight.requires_grad_(False)
    ours = interop.from_torch(module)
    frozen = {name for name, parameter in ours.named_parameters() if not parameter.requires_grad}
    assert frozen == {"q_proj.bias", "k_proj.bias", "v_proj.bias", "out_proj.weight"}
    back = interop.to_torch(ours)
    assert [p.requires_grad for p in back.parameters()] == [
        p.requires_grad for p in module.parameters()
    ]


def test_one_frozen_map_crosses_where_torch_stores_it_apart():
    ours = make_ours({"kdim": KDIM})
    ours.k_proj.weight.requires_grad_(False)
    theirs = interop.to_torch(ours)
    assert not theirs.k_proj_weight.requires_grad
    assert theirs.q_proj_weight.requires_grad


@each_width
def test_no_memory_is_shared(widths):
    module = make_torch(widths)
    ours = interop.from_torch(module)
    theirs = interop.to_torch(ours)
    before = [copy.deepcopy(m.state_dict()) for m in (module, theirs)]
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.fill_(7.0)
    for m, old in zip((module, theirs), before, strict=True):
        assert all(torch.equal(x, old[name]) for name, x in m.state_dict().items())
    everything = [p for m in (module, ours, theirs) for p in m.parameters()]
    assert len({p.untyped_storage().data_ptr() for p in everything}) == len(everything)


def test_no_random_number_is_drawn():
    module = make_torch()
    before = torch.get_rng_state()
    interop.to_torch(interop.from_torch(module))
    assert torch.equal(before, torch.get_rng_state())


def test_a_bias_on_the_output_alone_comes_from_torch():
    module = make_torch()
    module.in_proj_bias = None
    ours = interop.from_torch(module)
    assert ours.q_proj.bias is None
    close(ours(*inputs({})), module(*inputs({}))[0])


class Sub(nn.MultiheadAttention):
    """A subclass that changes nothing."""


class Other(nn.MultiheadAttention):
    """A subclass that computes something else."""

    def forward(self, *args, **options):
        return args[0], None


class OtherOurs(mha.MultiHeadAttention):
    """The same on our side."""

    def forward(self, query):
        return query


class Doubled(nn.Linear):
    """A linear map that adds to its weights, as adapters do."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_is_converted_unless_it_computes_something_else():
    module = randomize(Sub(E, H, batch_first=True, dtype=torch.float64))
    close(interop.from_torch(module)(*inputs({})), module(*inputs({}))[0])
    with pytest.raises(TypeError, match=r"got \S+\.Other with a forward of its own"):
        interop.from_torch(Other(E, H))
    with pytest.raises(TypeError, match=r"got \S+\.OtherOurs with a forward of its own"):
        interop.to_torch(OtherOurs(E, H))


def test_from_torch_refuses_another_class():
    with pytest.raises(
        TypeError,
        match=r"module must be of class torch\.nn\.\S+\.MultiheadAttention, got torch.*Linear$",
    ):
        interop.from_torch(nn.Linear(E, E))
    with pytest.raises(TypeError, match=r"got mha\.multihead\.MultiHeadAttention$"):
        interop.from_torch(make_ours())


def test_from_torch_refuses_extra_keys():
    with pytest.raises(ValueError, match="add_bias_kv must be False, got a module with bias_k"):
        interop.from_torch(nn.MultiheadAttention(E, H, add_bias_kv=True))
    with pytest.raises(ValueError, match="add_zero_attn must be False, got True"):
        interop.from_torch(nn.MultiheadAttention(E, H, add_zero_attn=True))


@pytest.mark.parametrize("make, convert", [(make_torch, "from_torch"), (make_ours, "to_torch")])
def test_mixed_dtypes_are_refused(make, convert):
    module = make()
    module.out_proj.float()
    with pytest.raises(ValueError, match="one dtype and device, got torch.float32 on cpu, torch.f"):
        getattr(interop, convert)(module)


def test_to_torch_refuses_another_class():
    with pytest.raises(
        TypeError, match="must be of class mha.multihead.MultiHeadAttention, got torch"
    ):
        interop.to_torch(nn.MultiheadAttention(E, H))


REFUSED = {
    "head_dim": ({"head_dim": 3}, r"head_dim must be .*, got head_dim=3, so H\*D=6"),
    "num_kv_heads": ({"num_kv_heads": 1}, "num_kv_heads must be num_heads=2 for torch.nn, got 1"),
    "rope": ({"rope": mha.positions.Rotary()}, "rope must be None for torch.nn, got Rotary"),
    "qk_norm": ({"qk_norm": "rms"}, "qk_norm must be None for torch.nn, got RMSNorm"),
    "softcap": ({"softcap": 2.0}, "softcap must be None for torch.nn, got 2.0"),
    "window": ({"window": (2, 0)}, r"window must be None for torch.nn, got \(2, 0\)"),
    "scale": ({"scale": 1.0}, r"scale must be None or 1/sqrt\(D\)=0.5 .*, got 1.0; .* by 2 to"),
    "is_causal": ({"is_causal": True}, "is_causal must be False .*, got True"),
    "out_bias=False": ({"out_bias": False}, "got a bias on q_proj, k_proj, v_proj only"),
    "out_bias=True": ({"bias": False, "out_bias": True}, "got a bias on out_proj only"),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
def test_to_torch_refuses_what_torch_cannot_hold(options, message):
    with pytest.raises(ValueError, match=message):
        interop.to_torch(make_ours(**options))


def test_what_the_refusals_advise_works():
    scaled = make_ours(scale=1.0)
    plain = copy.deepcopy(scaled)
    plain.scale = None
    with torch.no_grad():
        plain.q_proj.weight.mul_(2.0)
        plain.q_proj.bias.mul_(2.0)
    close(interop.to_torch(plain)(*inputs({}))[0], scaled(*inputs({})))

    bare = make_ours(out_bias=False)
    filled = copy.deepcopy(bare)
    filled.out_proj.bias = nn.Parameter(torch.zeros(E, dtype=torch.float64))
    close(interop.to_torch(filled)(*inputs({}))[0], bare(*inputs({})))


def test_the_default_scale_may_be_spelled_out():
    ours = make_ours(scale=0.5)
    close(interop.to_torch(ours)(*inputs({}))[0], ours(*inputs({})))


def test_to_torch_refuses_maps_of_which_some_are_frozen():
    for kind in ("weight", "bias"):
        ours = make_ours()
        getattr(ours.k_proj, kind).requires_grad_(False)
        with pytest.raises(ValueError, match=f"requires_grad .* each {kind} .* got k_proj frozen"):
            interop.to_torch(ours)


def test_to_torch_refuses_a_projection_of_another_kind():
    ours = make_ours()
    ours.v_proj = nn.Sequential(ours.v_proj)
    with pytest.raises(
        TypeError, match=r"v_proj must be of class torch\S+\.Linear, got torch.*Sequential"
    ):
        interop.to_torch(ours)


@pytest.mark.parametrize("name", ["q_proj", "out_proj"])
def test_to_torch_refuses_a_projection_with_a_forward_of_its_own(name):
    ours = make_ours()
    setattr(ours, name, Doubled(E, E, dtype=torch.float64))
    with pytest.raises(
        TypeError, match=rf"{name} must compute .*\.Doubled with a forward of its own"
    ):
        interop.to_torch(ours)


@pytest.mark.parametrize("make, convert", [(make_torch, "from_torch"), (make_ours, "to_torch")])
def test_a_forward_set_on_the_module_itself_is_refused(make, convert):
    module = make()
    module.forward = lambda query, *args, **options: query
    with pytest.raises(TypeError, match="module must compute .* with a forward of its own"):
        getattr(interop, convert)(module)


def test_parametrized_and_tied_weights_cross_by_value():
    ours = make_ours()
    nn.utils.parametrizations.weight_norm(ours.q_proj)
    ours.k_proj.weight = ours.v_proj.weight
    theirs = interop.to_torch(ours)
    close(theirs(*inputs({}))[0], ours(*inputs({})))
    assert theirs.in_proj_weight.requires_grad
    nn.utils.parametrizations.weight_norm(theirs, "in_proj_weight")
    close(interop.from_torch(theirs)(*inputs({})), ours(*inputs({})))
