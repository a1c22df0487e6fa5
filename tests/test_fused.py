"""fuse_qkv_: one product instead of three, the same numbers, and everything that undoes it."""

import copy

import pytest
import torch
from support import B, E, H, S, T, close, mask_cases, randn
from torch import nn
from torch.nn.utils import parametrize, prune

from mha import MultiHeadAttention, _fused
from mha.positions import Rotary


def built(**options):
    """A float64 module whose parameters are all different, and its fused twin."""
    module = MultiHeadAttention(E, H, **options, dtype=torch.float64)
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=index))
    return module, copy.deepcopy(module).fuse_qkv_()


class Products:
    """Counts the calls of the fused product."""

    def __init__(self, monkeypatch):
        self.count, original = 0, _fused._Product.apply

        def apply(*args):
            self.count += 1
            return original(*args)

        monkeypatch.setattr(_fused._Product, "apply", apply)


@pytest.fixture
def products(monkeypatch):
    return Products(monkeypatch)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"num_kv_heads": 1},
        {"head_dim": 6, "is_causal": True},
        {"rope": Rotary(), "qk_norm": "rms"},
    ],
)
def test_output_and_all_gradients_stay(options, products):
    module, fused = built(**options)
    grad, results = randn(B, T, E, seed=9), []
    for each in (module, fused):
        x = randn(B, T, E, seed=8, requires_grad=True)
        output = each(x)
        output.backward(grad)
        results.append([output, x.grad, *(p.grad for p in each.parameters())])
    assert products.count == 1
    for mine, theirs in zip(*results, strict=True):
        close(mine, theirs, 1e-9)


def test_state_dict_keeps_its_names_and_the_product_survives_loading(products):
    module, fused = built()
    assert list(fused.state_dict()) == list(module.state_dict())
    other, _ = built(scale=0.1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 1.0
    fused.load_state_dict(other.state_dict())
    fused.scale = 0.1
    x = randn(B, T, E)
    close(fused(x), other(x), 1e-9)
    assert products.count == 1


def test_an_optimizer_moves_the_product(products):
    module, fused = built()
    for each in (module, fused):
        optimizer = torch.optim.SGD(each.parameters(), lr=1e-3)
        each(randn(B, T, E)).sum().backward()
        optimizer.step()
    close(module(randn(B, T, E, seed=3)), fused(randn(B, T, E, seed=3)), 1e-9)
    assert products.count == 2


def test_only_one_parameter_is_trained():
    _, fused = built()
    for name, parameter in fused.named_parameters():
        parameter.requires_grad_(name in ("q_proj.weight", "k_proj.weight", "v_proj.weight"))
    fused.q_proj.bias.requires_grad_(False)
    fused.k_proj.bias.requires_grad_(True)
    fused(randn(B, T, E)).sum().backward()
    wanted = {name for name, p in fused.named_parameters() if p.requires_grad}
    assert {name for name, p in fused.named_parameters() if p.grad is not None} == wanted


def hooked(fused):
    fused.k_proj.register_forward_hook(lambda *_: None)


def pre_hooked(fused):
    fused.v_proj.register_forward_pre_hook(lambda *_: None)


def backward_hooked(fused):
    fused.q_proj.register_full_backward_hook(lambda *_: None)


def backward_pre_hooked(fused):
    fused.q_proj.register_full_backward_pre_hook(lambda *_: None)


def replaced(fused):
    fused.q_proj = nn.Sequential(fused.q_proj)


def pruned(fused):
    prune.identity(fused.q_proj, "weight")


def parametrized(fused):
    parametrize.register_parametrization(fused.q_proj, "weight", nn.Identity())


def exchanged(fused):
    fused.v_proj.weight = nn.Parameter(fused.v_proj.weight.detach().clone())


def crossed(fused):
    """Same numbers, same memory, another order in it."""
    q, k = fused.q_proj.weight, fused.k_proj.weight
    numbers = q.detach().clone(), k.detach().clone()
    q.data, k.data = k.data, q.data
    with torch.no_grad():
        q.copy_(numbers[0])
        k.copy_(numbers[1])


def moved(fused):
    fused.float().double()


HOOKED = [hooked, pre_hooked, backward_hooked, backward_pre_hooked]
CHANGES = [*HOOKED, replaced, pruned, parametrized, exchanged, crossed, moved]


@pytest.mark.parametrize("change", CHANGES)
def test_what_brings_the_three_products_back(change, products):
    module, fused = built()
    change(fused)
    close(fused(randn(B, T, E)), module(randn(B, T, E)), 1e-5)
    assert products.count == 0


def test_a_hook_fires_and_its_result_counts():
    module, fused = built()
    for each in (module, fused):
        each.k_proj.register_forward_hook(lambda _, __, output: 2.0 * output)
    close(fused(randn(B, T, E)), module(randn(B, T, E)), 1e-9)


def test_hooks_on_all_modules_fire(products):
    _, fused = built()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        fused(randn(B, T, E))
    finally:
        handle.remove()
    assert products.count == 0 and fused.v_proj in seen


@pytest.mark.parametrize("change", [*HOOKED, replaced, pruned])
def test_refusal(change):
    module, _ = built()
    change(module)
    with pytest.raises(ValueError, match="cannot be fused: [qkv]_proj (has hooks|is a Sequential)"):
        module.fuse_qkv_()


def test_refusal_of_other_widths():
    with pytest.raises(ValueError, match="kdim or vdim differs"):
        MultiHeadAttention(E, H, kdim=3).fuse_qkv_()


def test_cross_attention_and_padding_take_the_three_products(products):
    module, fused = built()
    x, y = randn(B, T, E), randn(B, S, E, seed=1)
    close(fused(x, y), module(x, y))
    key_mask = mask_cases()["key_mask, holes"]["key_mask"]
    close(fused(y, key_mask=key_mask), module(y, key_mask=key_mask))
    assert products.count == 0


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_compile_vmap_autocast_and_copies():
    module, fused = built()
    x = randn(B, T, E)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    close(compiled(x), module(x), 1e-9)
    close(torch.func.vmap(fused)(x[:, None])[:, 0], module(x), 1e-9)
    close(copy.deepcopy(fused)(x), module(x), 1e-9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fused.float()(x.float()), module.float()(x.float()))


def test_a_second_derivative_is_refused_and_not_wrong():
    _, fused = built(backend="reference")
    x = randn(1, T, E, requires_grad=True)
    (first,) = torch.autograd.grad(fused(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
