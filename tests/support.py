"""What several test files share: unequal sizes, seeded tensors, and every kind of mask."""

import contextlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch

from mha import reference

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

B, H, T, S, D, E = 2, 2, 3, 5, 4, 8
"""Unequal sizes, so that a wrong axis cannot go unseen."""


@contextlib.contextmanager
def benchmark(name):
    """A script of benchmarks/ as a module; what stands beside it can be imported meanwhile."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


def randn(*shape, seed=0, dtype=torch.float64, requires_grad=False):
    """Seeded normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    return x.requires_grad_(requires_grad)


def mask_cases(batch=B, heads=H, length=T, size=S, dtype=torch.float64):
    """Name -> keyword arguments of the function: every kind of mask, alone and together."""
    generator = torch.Generator().manual_seed(7)

    def coin(*shape):
        return torch.rand(*shape, generator=generator) < 0.6

    ragged = torch.arange(size)[None] < torch.tensor([[size - 2], [size]])[:batch]  # (B, S)
    holes = torch.ones(batch, size, dtype=torch.bool)
    holes[0, 1] = False
    dead = coin(length, size)
    dead[1] = False
    lowest = torch.finfo(torch.float32).min  # a row of it rounds to one value: all keys alike
    bias = torch.randn(heads, length, size, generator=generator, dtype=torch.float64)
    with_inf = bias.masked_fill(~dead, float("-inf"))
    nobody = ragged.clone()
    nobody[-1] = False
    return {
        "none": {},
        "causal": {"is_causal": True},
        "bool (T, S)": {"attn_mask": coin(length, size)},
        "bool (S,)": {"attn_mask": torch.arange(size) != 2},
        "bool (B, 1, T, S)": {"attn_mask": coin(batch, 1, length, size)},
        "bool (B, H, T, S)": {"attn_mask": coin(batch, heads, length, size)},
        "bool, a dead row": {"attn_mask": dead},
        "float (H, T, S)": {"attn_mask": bias.to(dtype)},
        "float, a dead row": {"attn_mask": with_inf.to(dtype)},
        "float, finfo.min": {"attn_mask": torch.zeros(length, size).masked_fill(~dead, lowest)},
        "key_mask": {"key_mask": ragged},
        "key_mask, holes": {"key_mask": holes},
        "key_mask, an example without keys": {"key_mask": nobody},
        "causal and key_mask": {"is_causal": True, "key_mask": holes},
        "bool, causal and key_mask": {
            "attn_mask": coin(batch, heads, length, size),
            "is_causal": True,
            "key_mask": ragged,
        },
        "float, causal and key_mask": {
            "attn_mask": bias.to(dtype),
            "is_causal": True,
            "key_mask": ragged,
        },
    }


MASK_NAMES = tuple(mask_cases())


def order_cases(batch=B, heads=H, length=T, size=S):
    """Name -> keyword arguments that the function alone has: windows, offsets, a softcap."""
    apart = torch.tensor([size - length, -1])[:batch]  # (B,)
    masks = mask_cases(batch, heads, length, size)
    return {
        "causal, q_offset 2": {"is_causal": True, "q_offset": 2},
        "causal, q_offset -1": {"is_causal": True, "q_offset": -1},
        "causal, q_offset (B,)": {"is_causal": True, "q_offset": apart},
        "window (1, 1)": {"window": (1, 1)},
        "window (0, 2), q_offset 1": {"window": (0, 2), "q_offset": 1},
        "window (None, 1)": {"window": (None, 1)},
        "window (1, None), q_offset -2": {"window": (1, None), "q_offset": -2},
        "window (2, 0), q_offset (B,)": {"window": (2, 0), "q_offset": apart},
        "window beyond the last key": {"window": (0, 0), "q_offset": size - 1},
        "window, causal": {"window": (1, 3), "is_causal": True},
        "softcap": {"softcap": 0.7},
        "softcap, float mask": {"softcap": 0.7, **masks["float, a dead row"]},
        "all": {
            **masks["bool, causal and key_mask"],
            "window": (2, 1),
            "q_offset": apart,
            "softcap": 1.3,
        },
    }


ORDER_NAMES = tuple(order_cases())


def to_numpy(masks):
    """The same keyword arguments for ``mha.reference``."""
    return {
        name: x.double().numpy()
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x.numpy()
        if isinstance(x, torch.Tensor)
        else x
        for name, x in masks.items()
    }


def oracle(query, key, value, **options):
    """``mha.reference.attention`` on tensors; float64 tensors come back."""
    arrays = (x.detach().double().numpy() for x in (query, key, value))
    result = reference.attention(*arrays, **to_numpy(options))
    if isinstance(result, tuple):
        return tuple(torch.from_numpy(np.ascontiguousarray(x)) for x in result)
    return torch.from_numpy(np.ascontiguousarray(result))


def close(actual, expected, atol=1e-12, name=""):
    """Equal within ``atol``, shapes included; the dtype may differ. ``name`` says which case."""
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=atol, msg=lambda text: f"{name} {text}"
    )


def collector(graphs):
    """A backend for ``torch.compile`` that adds each graph to the list, and runs it uncompiled."""

    def compile(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    return compile
