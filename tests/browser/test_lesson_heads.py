"""Heads: the script counts as `mha.cost` and as the module itself do."""

import pytest
from lessons import opened, said, slide, values

import mha
from mha import cost
from mha.viz import lessons


@pytest.mark.parametrize("heads", [0, 2, 6])
@pytest.mark.parametrize("length", [3, 7, 12])
def test_counts_are_those_of_the_package(page, tmp_path, heads, length):
    E, B, H, T = 64, 3, 2**heads, 2**length
    found = values(opened(page, lessons.Heads(batch=B), tmp_path), heads=heads, length=length)
    parts = cost.naive(H=H, T=T, S=T, D=E // H, B=B)
    expected = {name: part.flops for name, part in parts.items()}
    expected["projections"] = cost.total(cost.projections(T=T, E=E, H=H, B=B)).flops
    assert found["flops"] == expected
    assert found["bytes"] * 2 == parts["softmax"].bytes  # read once, written once
    module = mha.MultiHeadAttention(E, H)
    assert found["parameters"] == sum(p.numel() for p in module.parameters())


def test_shapes_are_those_of_the_module(page, tmp_path):
    import torch

    found = values(opened(page, lessons.Heads(), tmp_path), heads=3, length=4)
    x = torch.zeros(2, 16, 64)
    module = mha.MultiHeadAttention(64, 8)
    out, weights = module(x, return_weights=True)
    heads = mha.heads.split_heads(module.q_proj(x), 8)
    shapes = {"x": x, "heads": heads, "scores": weights, "merged": out}
    assert found["shapes"] == {name: list(tensor.shape) for name, tensor in shapes.items()}


def test_a_reader_slides_from_one_head_to_many(page, tmp_path):
    figure = opened(page, lessons.Heads(), tmp_path)
    slide(figure, "heads H", "Home")
    assert figure.locator(".mha-strip span").count() == 1
    assert said(figure).startswith("1 head of width 64: 16,640 parameters")
    slide(figure, "heads H", "End")
    assert figure.locator(".mha-strip span").count() == 64
    assert said(figure).startswith("64 heads of width 1: 16,640 parameters")
    cell = figure.get_by_role("row", name="scores, (B, H, T, T)").get_by_role("cell")
    assert cell.first.inner_text() == "(2, 64, 128, 128)"
