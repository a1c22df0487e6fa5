"""What an exercise asks for beyond right numbers."""

import pytest
import torch
from torch import nn

from mha import check
from mha.check.asked import ASKED


class Right(nn.Module):
    bias, causal = True, False

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.heads = num_heads
        self.q, self.k, self.v, self.o = (
            nn.Linear(embed_dim, embed_dim, bias=self.bias) for _ in range(4)
        )

    def forward(self, query, key=None, value=None, mask=None):
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        output, weights = attention(q, k, v, mask)
        return self.o(output.transpose(1, 2).flatten(2)), weights


def attention(query, key, value, mask=None):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if mask is None:
        weights = scores.softmax(-1)
    else:
        dead = ~mask.any(-1, keepdim=True)
        weights = scores.masked_fill(~mask & ~dead, -torch.inf).softmax(-1).masked_fill(dead, 0.0)
    return weights @ value, weights


class NoBias(Right):
    bias = False


class ValueIsQuery(Right):
    def forward(self, query, key=None, value=None, mask=None):
        return super().forward(query, key, query if value is None else value, mask)


class Unmasked(Right):
    def forward(self, query, key=None, value=None):
        return super().forward(query, key, value)


class OnlySelf(Right):
    def forward(self, x, mask=None):
        return super().forward(x, x, x, mask)


class OnlyOutput(Right):
    def forward(self, query, key=None, value=None, mask=None):
        return super().forward(query, key, value, mask)[0]


class DeadNaN(Right):
    def forward(self, query, key=None, value=None, mask=None):
        output, weights = super().forward(query, key, value, mask)
        if mask is not None:
            output = output.masked_fill(~mask.any(-1)[:, 0, :, None], torch.nan)
        return output, weights


class KeysOnly(Right):
    """Its mask is of the keys alone, (B, S)."""

    def forward(self, query, key=None, value=None, mask=None):
        mask = None if mask is None else mask[:, None, None, :]
        return super().forward(query, key, value, mask)


EVERYTHING = ("memory", "mask", "weights", "zeros", "biases", "defaults")


def slugs(report):
    return {found.slug for found in report.findings if found.severity == "mistake"}


def test_what_is_asked_for_and_there_passes():
    assert slugs(check.multi_head_attention(Right, asked=EVERYTHING)) == set()
    assert slugs(check.attention(attention, asked=("axes", "mask", "weights", "zeros"))) == set()


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        (NoBias, "biases"), (ValueIsQuery, "defaults"), (Unmasked, "mask"), (OnlySelf, "memory"),
        (OnlyOutput, "weights"), (DeadNaN, "zeros"), (KeysOnly, "mask"),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)  # fmt: skip
def test_what_is_missing_is_told_and_only_that(subject, name):
    assert check.multi_head_attention(subject).ok  # right, but for what is asked
    report = check.multi_head_attention(subject, asked=EVERYTHING)
    assert "not-as-asked" in slugs(report) and ASKED[name] in report.text()
    others = [n for n in EVERYTHING if n != name and ASKED[n] in report.text()]
    assert not others or subject in (OnlySelf, DeadNaN, KeysOnly)


def folded(query, key, value):
    return attention(query, key.transpose(1, 2).transpose(1, 2), value)[0]


def flat(query, key, value):
    w = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
    return w @ value, w


def test_functions_too():
    report = check.attention(folded, asked=("mask", "weights"))
    assert ASKED["mask"] in report.text() and ASKED["weights"] in report.text()
    report = check.attention(flat, asked=("axes",))
    assert check.attention(flat).ok and not report.ok and ASKED["axes"] in report.text()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="asked"):
        check.attention(attention, asked=("speed",))
    with pytest.raises(ValueError, match="asked"):
        check.multi_head_attention(Right, asked=["speed"])


# --- what learners' code does to its surroundings, and other stumbles of the core path


def in_place(query, key, value, mask=None):
    query /= query.shape[-1] ** 0.5
    scores = query @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value


def spoils_mask(query, key, value, mask=None):
    if mask is not None:
        mask |= ~mask.any(-1, keepdim=True)
    return attention(query, key, value, mask)


class FourHeads(Right):
    def __init__(self, embed_dim, num_heads):
        super().__init__(embed_dim, num_heads)
        self.heads = 4


class NoModule:
    def __init__(self, embed_dim, num_heads):
        self.heads = num_heads

    def forward(self, query, key, value):
        return query


def test_inputs_that_are_changed_in_place_are_named():
    assert slugs(check.attention(in_place)) == {"input-changed"}
    report = check.attention(spoils_mask)
    assert "input-changed" in slugs(report) and "after the call: mask" in report.text()


def test_a_number_of_heads_that_is_written_as_a_number():
    assert slugs(check.multi_head_attention(FourHeads)) == {"heads-ignored"}


def test_a_class_that_inherits_from_nothing():
    assert "inherit from nn.Module" in check.multi_head_attention(NoModule).text()


def test_inputs_changed_out_of_shape_end_no_check():
    def split_heads(x, num_heads):
        x.unsqueeze_(0)
        return x[0].unflatten(-1, (num_heads, -1)).transpose(1, 2)

    assert not check.split_heads(split_heads).ok


def test_a_function_that_returns_nothing():
    def silent(query, key, value):
        attention(query, key, value)

    report = check.attention(silent)
    assert slugs(report) == {"returns-nothing"} and "(B, H, T, D)" in report.text()


# --- natural mistakes on the core path, and what the checker must say of them


def three_axes(query, key, value):
    B, T, D = query.shape
    weights = (query @ key.mT / D**0.5).softmax(-1)
    return weights @ value, weights


def weights_first(query, key, value, mask=None):
    return attention(query, key, value, mask)[::-1]


def afterwards(query, key, value, mask=None):
    """The right formula on paper: all keys first, then the allowed ones share out 1 anew."""
    weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    if mask is not None:
        weights = weights * mask
        weights = weights / weights.sum(-1, keepdim=True)
    return weights @ value, weights


class LayersInAList(nn.Module):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.maps = [nn.Linear(embed_dim, embed_dim) for _ in range(3)]
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, query, key, value):
        q, k, v = (
            part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, T or S, D)
            for part, x in zip(self.maps, (query, key, value), strict=True)
        )
        return self.out_proj(attention(q, k, v)[0].transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("fn", "line"), [(flat, "key.transpose(1, 2)"), (three_axes, "B, T, D = query.shape")]
)
def test_code_for_three_axes_is_told_what_four_do_to_it(fn, line):
    text = check.attention(fn, asked=("axes", "weights")).text()
    assert line in text and "Error: " in text and ASKED["axes"] in text
    assert ASKED["weights"] not in text


def test_weights_before_the_output_are_told_as_such():
    assert check.attention(weights_first).ok
    report = check.attention(weights_first, asked=("weights",))
    assert slugs(report) == {"not-as-asked"} and ASKED["weights"] in report.text()


def test_a_nan_of_low_scores_is_not_taken_for_a_small_fill():
    report = check.attention(afterwards, asked=("mask",))
    assert slugs(report) == {"softmax-overflow"} and "NaN" in report.text()


def test_layers_in_a_list_are_the_one_mistake():
    assert slugs(check.multi_head_attention(LayersInAList)) == {"weights-not-parameters"}


def test_a_wrong_shape_is_told_with_the_names_of_its_axes():
    def split_heads(x, num_heads):
        return torch.stack(x.chunk(num_heads, dim=-1))

    text = check.split_heads(split_heads).text()
    assert "should be (3, 4, 5, 6) = (B, H, T, D) and is (4, 3, 5, 6) = (H, B, T, D)" in text


def test_an_input_changed_in_place_is_told_once():
    def softmax(x, dim=-1):
        x -= x.amax(dim, keepdim=True)
        return x.exp() / x.exp().sum(dim, keepdim=True)

    assert slugs(check.softmax(softmax)) == {"input-changed"}
