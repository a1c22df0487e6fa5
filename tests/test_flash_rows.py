"""mha.flash.rows: the online softmax, key by key, block by block, and merged from parts."""

import numpy as np
import pytest
from faulty.flash import patched
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support import MASK_NAMES, ORDER_NAMES, mask_cases, order_cases, randn, to_numpy

from mha import reference
from mha.flash import rows

CASES = {**mask_cases(2, 4), **order_cases(2, 4)}
SCORES = np.array([-np.inf, 1.0, 3.0, -np.inf, 3000.0, -3000.0, 2999.0])
VALUES = randn(7, 3).numpy()


def same(one, other, atol=1e-12):
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def operands():
    return (x.numpy() for x in (randn(2, 4, 3, 4), randn(2, 2, 5, 4, seed=1), randn(2, 2, 5, 2)))


def agrees_with_the_definition(module, name):
    query, key, value = operands()
    options = to_numpy(CASES[name])
    expected = reference.attention(query, key, value, **options, enable_gqa=True)
    same(module.attention_by_rows(query, key, value, **options), expected)


@pytest.mark.parametrize("name", [*MASK_NAMES, *ORDER_NAMES])
def test_rows_agree_with_the_definition(name):
    agrees_with_the_definition(rows, name)


def each_state_is_that_of_the_keys_so_far(module):
    states = module.online_softmax(SCORES, VALUES)
    assert len(states) == 8 and states[0].maximum == -np.inf
    for met, state in enumerate(states):
        seen, values = SCORES[:met], VALUES[:met]
        assert state.maximum == max(seen, default=-np.inf)
        top = 0.0 if state.maximum == -np.inf else state.maximum
        same(state.total, np.exp(seen - top).sum())
        same(state.output, np.exp(seen - top) @ values)
        same(state.average, reference.softmax(seen) @ values)


def test_states():
    each_state_is_that_of_the_keys_so_far(rows)


@pytest.mark.parametrize("block", [2, 3, 6, 7, 100])
def test_a_block_of_keys_is_as_good_as_one(block):
    one, many = (rows.online_softmax(SCORES, VALUES, block=n) for n in (1, block))
    assert len(many) == 1 + -(-7 // block)
    for index, state in enumerate(many):
        for mine, theirs in zip(state, one[min(index * block, 7)], strict=True):
            same(mine, theirs)


NUMBERS = st.floats(-800, 800) | st.just(-np.inf)
PARTS = st.integers(0, 4).flatmap(lambda n: arrays(np.float64, n, elements=NUMBERS))


def state_of(module, scores):
    values = np.cos(np.arange(2.0 * len(scores)) + len(scores)).reshape(-1, 2)
    return module.online_softmax(scores, values)[-1]


def alike(one, other):
    """One state, up to rounding. (A sum holds up to 12 numbers of size 1.)"""
    assert one.maximum == other.maximum
    same(one.total, other.total)
    same(one.output, other.output)


@settings(max_examples=100, deadline=None)
@given(PARTS, PARTS, PARTS)
def test_merge_is_commutative_and_associative(first, second, third):
    a, b, c = (state_of(rows, scores) for scores in (first, second, third))
    alike(rows.merge(a, b), rows.merge(b, a))
    alike(rows.merge(rows.merge(a, b), c), rows.merge(a, rows.merge(b, c)))
    alike(rows.merge(rows.State(), a), a)


def parts_merge_to_the_whole(module):
    whole = module.online_softmax(SCORES, VALUES)[-1]
    for cut in range(8):
        parts = (slice(0, cut), slice(cut, 7))
        states = (module.online_softmax(SCORES[x], VALUES[x])[-1] for x in parts)
        alike(module.merge(*states), whole)


def test_parts_merge_to_the_whole():
    parts_merge_to_the_whole(rows)


def test_by_hand():
    """Scores 0 and log 3: first 1 with total 1, then 1/3 and 1 above the new maximum."""
    first, second = rows.online_softmax(np.log([1.0, 3.0]), np.array([[4.0], [8.0]]))[1:]
    assert (first.maximum, first.total, first.output.item()) == (0.0, 1.0, 4.0)
    same((second.total, second.output.item(), second.average.item()), (4 / 3, 28 / 3, 7.0))


def test_nothing_at_padding_counts():
    query, key, value = operands()
    key_mask = np.array([True, False, True, True, False])[None].repeat(2, 0)
    clean = rows.attention_by_rows(query, key, value, key_mask=key_mask)
    key[:, :, ~key_mask[0]] = value[:, :, ~key_mask[0]] = np.nan
    same(rows.attention_by_rows(query, key, value, key_mask=key_mask), clean)


def test_empty_axes_and_three_axes():
    query, key, value = operands()
    assert rows.attention_by_rows(query[:, :, :0], key, value).shape == (2, 4, 0, 2)
    assert rows.attention_by_rows(query[:0], key[:0], value[:0]).shape == (0, 4, 3, 2)
    nothing = rows.attention_by_rows(query, key[:, :, :0], value[:, :, :0])
    assert nothing.shape == (2, 4, 3, 2) and (nothing == 0).all()
    alone = rows.attention_by_rows(query[0], key[0], value[0], is_causal=True)
    same(alone, rows.attention_by_rows(query, key, value, is_causal=True)[0])


MISTAKES = {
    "total not rescaled": (
        "rescale * state.total + weights.sum()",
        "state.total + weights.sum()",
        each_state_is_that_of_the_keys_so_far,
    ),
    "output not rescaled": (
        "rescale * state.output + weights @ values",
        "state.output + weights @ values",
        each_state_is_that_of_the_keys_so_far,
    ),
    "rescaled the wrong way round": (
        "np.exp(state.maximum - safe)",
        "np.exp(np.minimum(safe - state.maximum, 0.0))",
        each_state_is_that_of_the_keys_so_far,
    ),
    "maximum of this block only": (
        "max(state.maximum, scores.max())",
        "scores.max()",
        each_state_is_that_of_the_keys_so_far,
    ),
    "second part not rescaled": (
        "first * one.total + second * other.total",
        "first * one.total + other.total",
        parts_merge_to_the_whole,
    ),
    "maximum of the first part": (
        "max(one.maximum, other.maximum)",
        "one.maximum",
        parts_merge_to_the_whole,
    ),
    "output divided along the way": (
        "return State(maximum, total, output)",
        "return State(maximum, total, output / max(total, 1.0))",
        each_state_is_that_of_the_keys_so_far,
    ),
    "last block dropped": (
        "range(0, len(scores), block)",
        "range(0, len(scores) - block, block)",
        lambda module: agrees_with_the_definition(module, "none"),
    ),
    "mask forgotten": (
        ", softcap) + mask[row]",
        ", softcap)",
        lambda module: agrees_with_the_definition(module, "causal"),
    ),
    "capped after the mask": (
        "reference.cap(scale * (key[row[:-1]] @ query[row]), softcap) + mask[row]",
        "reference.cap(scale * (key[row[:-1]] @ query[row]) + mask[row], softcap)",
        lambda module: agrees_with_the_definition(module, "softcap, float mask"),
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_caught(name, tmp_path):
    old, new, holds = MISTAKES[name]
    variant = patched(rows, old, new, tmp_path)
    with pytest.raises(AssertionError):
        holds(variant)
