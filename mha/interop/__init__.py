"""Weights to and from other libraries. Masks cross by ``mha.masks``."""

from mha.interop.torch_nn import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
