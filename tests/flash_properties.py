"""What must hold of any ``forward`` and ``backward`` of flash attention, tiles or kernels.

Each property takes a ``Subject`` and asserts; ``ALL`` has them by name. They are given by the
definition, never by another fast implementation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from types import ModuleType

import torch
from support import close, mask_cases, order_cases, randn, to_numpy

from mha import reference
from mha._rules import Rules
from mha.positions import ALiBi

ALL: dict[str, Callable[["Subject"], None]] = {}


@dataclass(frozen=True)
class Subject:
    """A module with ``forward`` and ``backward``, and sizes at which it is tried.

    settings: keyword arguments of both, such as sizes of blocks; each is tried. sizes: (T, S).
    widths: (D, D_v). atol: what rounding in ``dtype`` may make of an error.
    """

    run: ModuleType
    settings: tuple[dict, ...] = ({},)
    sizes: tuple[int, int] = (7, 11)
    widths: tuple[int, int] = (4, 3)
    dtype: torch.dtype = torch.float64
    atol: float = 1e-11


def prop(holds):
    ALL[holds.__name__] = holds
    return holds


def operands(subject, heads=4, kv_heads=2, batch=2, factor=1.0):
    """Query, key, value and the output's gradient."""
    (length, size), (width, value_width) = subject.sizes, subject.widths
    shapes = (heads, length, width), (kv_heads, size, width), (kv_heads, size, value_width)
    shapes = *shapes, (heads, length, value_width)
    made = (randn(batch, *s, seed=n, dtype=subject.dtype) for n, s in enumerate(shapes))
    query, *others = made
    return query * factor, *others


def both(subject, query, key, value, grad, options=None, setting=None, scale=0.5):
    """[output, grad_query, grad_key, grad_value]: of the subject."""
    options, setting = dict(options or {}), setting or subject.settings[0]
    softcap = options.pop("softcap", None)
    given = Rules(**options), scale, softcap
    saved = subject.run.forward(query, key, value, *given, **setting)
    return [saved[0], *subject.run.backward(grad, query, key, value, *saved, *given, **setting)]


def defined(query, key, value, grad, options=None, scale=0.5):
    """The same four by the definition, in float64."""
    arrays = [x.double().numpy() for x in (query, key, value)]
    more = {**to_numpy(options or {}), "scale": scale, "enable_gqa": True}
    output = reference.attention(*arrays, **more)
    grads = reference.attention_backward(grad.double().numpy(), *arrays, **more)
    return [torch.from_numpy(x) for x in (output, *grads)]


def agree(subject, made, options=None, *, which=slice(0, 4), name="", scale=0.5, atol=None):
    """The subject computes what is defined, with each of its settings."""
    expected = defined(*made, options, scale)
    for setting in subject.settings:
        results = both(subject, *made, options, setting, scale)
        pairs = list(zip(results, expected, strict=True))[which]
        for index, (mine, theirs) in enumerate(pairs):
            where = f"{name} {setting} result {index}:"
            close(mine, theirs, atol or subject.atol, name=where)


@prop
def the_output_is_the_definitions(subject):
    agree(subject, operands(subject), which=slice(0, 1))


@prop
def the_gradient_of_the_query_is_the_definitions(subject):
    agree(subject, operands(subject, kv_heads=4), which=slice(1, 2))


@prop
def the_gradient_of_the_key_is_the_definitions(subject):
    agree(subject, operands(subject, kv_heads=4), which=slice(2, 3))


@prop
def the_gradient_of_the_value_is_the_definitions(subject):
    agree(subject, operands(subject, kv_heads=4), which=slice(3, 4))


@prop
def masks_hide_what_they_hide(subject):
    made = operands(subject)
    for name, options in mask_cases(2, 4, *subject.sizes, dtype=subject.dtype).items():
        agree(subject, made, options, name=name)


@prop
def windows_and_offsets_are_obeyed(subject):
    made = operands(subject)
    for name, options in order_cases(2, 4, *subject.sizes).items():
        if "softcap" not in options:
            agree(subject, made, options, name=name)


@prop
def the_softcap_bends_the_scores_and_their_gradients(subject):
    cases = order_cases(2, 4, *subject.sizes)
    masked = {"is_causal": True, "window": (2, 1), "softcap": 0.9}
    capped = {name: options for name, options in cases.items() if "softcap" in options}
    for name, options in {**capped, "softcap, window": masked}.items():
        if "attn_mask" in options and options["attn_mask"].is_floating_point():
            options = {**options, "attn_mask": options["attn_mask"].to(subject.dtype)}
        agree(subject, operands(subject, factor=2.0), options, name=name)


@prop
def grouped_heads_read_their_key_head_and_sum_its_gradients(subject):
    for kv_heads in (1, 2, 3, 6):
        agree(subject, operands(subject, heads=6, kv_heads=kv_heads), name=f"H_kv={kv_heads}")


@prop
def a_bias_by_distance_is_added(subject):
    made, bias = operands(subject), ALiBi(4)
    apart = torch.tensor([2, -1])
    for setting in subject.settings:
        for offset in (0, 3, apart):
            rules = {"q_offset": offset, "is_causal": True}
            mask = bias.bias(*subject.sizes, q_offset=offset, dtype=torch.float64)  # (.., H, T, S)
            results = both(subject, *made, {**rules, "attn_mask": bias}, setting)
            expected = defined(*made, {**rules, "attn_mask": mask})
            for mine, theirs in zip(results, expected, strict=True):
                close(mine, theirs, subject.atol)


@prop
def a_row_that_sees_nothing_is_zero_and_harmless(subject):
    length, size = subject.sizes
    made = operands(subject)
    dead = torch.ones(length, size, dtype=torch.bool)
    dead[1] = False
    nobody = torch.tensor([True, False])[:, None].expand(2, size)
    bias = torch.zeros(length, size, dtype=subject.dtype).masked_fill(~dead, -math.inf)
    for options in ({"attn_mask": dead}, {"attn_mask": bias}, {"key_mask": nobody}):
        for setting in subject.settings:
            results = both(subject, *made, options, setting)
            assert all(x.isfinite().all() for x in results), "not finite"
            zero = (slice(None), slice(None), 1) if "attn_mask" in options else 1
            assert (results[0][zero] == 0).all(), "the output of a dead row is not 0"
            assert (results[1][zero] == 0).all(), "a dead row's query has a gradient"


@prop
def what_is_kept_of_a_row_is_its_top_and_total(subject):
    """Of a dead row 0 and 1; of another a total from 1 (its greatest score) to S (all alike)."""
    length, size = subject.sizes
    query, key, value, _ = operands(subject)
    dead = torch.ones(length, size, dtype=torch.bool)
    dead[1] = False
    for setting in subject.settings:
        rules = Rules(attn_mask=dead)
        _, top, total = subject.run.forward(query, key, value, rules, 0.5, None, **setting)
        exact = torch.promote_types(torch.float32, subject.dtype)
        assert top.dtype == total.dtype == exact and top.shape == total.shape == query.shape[:-1]
        assert (top[:, :, 1] == 0).all() and (total[:, :, 1] == 1).all()
        live = torch.cat([total[:, :, :1], total[:, :, 2:]], 2)
        assert (live >= 1).all() and (live <= size).all()
        _, _, total = subject.run.forward(0 * query, key, value, rules, 0.5, None, **setting)
        assert (total[:, :, 2:] == size).all()


@prop
def rows_of_the_lowest_number_see_all_alike(subject):
    """Not dead; and what rebuilds weights from a log-sum has lost every digit of it here."""
    length, size = subject.sizes
    options = {"attn_mask": torch.zeros(length, size, dtype=torch.float32)}
    options["attn_mask"][:2] = torch.finfo(torch.float32).min
    made = operands(subject)
    if subject.dtype == torch.float64:
        made = tuple(x.float() for x in made)
    for setting in subject.settings:
        results = both(subject, *made, options, setting)
        expected = defined(*made, options)
        mean = made[2].double().mean(2).repeat_interleave(2, 1)  # (B, H, D_v)
        close(results[0][:, :, 0], mean, max(subject.atol, 1e-6))
        for mine, theirs in zip(results, expected, strict=True):
            close(mine, theirs, max(subject.atol, 1e-5))


@prop
def scores_may_be_huge(subject):
    """Rising and falling by thousands from key to key: no exp may overflow."""
    query, key, value, grad = operands(subject)
    slope = torch.arange(subject.sizes[1]).to(subject.dtype) * 3000.0
    for towards in (slope, slope.flip(0), -slope):
        mask = {"attn_mask": towards.expand(*subject.sizes)}
        agree(subject, (query, key, value, grad), mask, name="huge")


@prop
def what_padding_holds_goes_nowhere(subject):
    """NaN and inf at keys that key_mask excludes reach neither output nor gradient."""
    length, size = subject.sizes
    query, key, value, grad = operands(subject)
    key_mask = torch.ones(2, size, dtype=torch.bool)
    key_mask[0, 1::3] = key_mask[1, -4:] = False
    holes = ~key_mask[:, None, :, None]  # (B, 1, S, 1)
    bias = randn(length, size, seed=5, dtype=subject.dtype)
    for more in ({}, {"attn_mask": bias}, {"is_causal": True, "q_offset": 2}, {"softcap": 0.8}):
        options = {"key_mask": key_mask, **more}
        expected = defined(query, key, value, grad, options)
        for poison, setting in product((math.nan, math.inf), subject.settings):
            bad = [x.masked_fill(holes, poison) for x in (key, value)]
            results = both(subject, query, *bad, grad, options, setting)
            for mine, theirs in zip(results, expected, strict=True):
                close(mine, theirs, subject.atol, name=f"{[*options]} {poison}")
            assert all((x.masked_select(holes) == 0).all() for x in results[2:])


@prop
def operands_stay_as_they_were(subject):
    made = operands(subject, kv_heads=4)
    copies = [x.clone() for x in made]
    for setting in subject.settings:
        both(subject, *made, {"is_causal": True, "softcap": 2.0}, setting)
        assert all(torch.equal(x, copy) for x, copy in zip(made, copies, strict=True))


@prop
def the_layout_in_memory_does_not_matter(subject):
    """(B, T, H, D) behind (B, H, T, D), every other column, and one example for all."""
    made = operands(subject, kv_heads=4)
    turned = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in made)
    sparse = tuple(x.repeat_interleave(2, -1)[..., ::2] for x in made)
    for again in (turned, sparse):
        for mine, theirs in zip(both(subject, *again), both(subject, *made), strict=True):
            close(mine, theirs, subject.atol)
    alike = tuple(x[:1].expand_as(x) for x in made)
    agree(subject, alike)


@prop
def half_types_are_summed_in_float32(subject):
    """A sum of many small numbers, which in half would stop growing."""
    (length, size), (width, value_width) = (8, 1024), subject.widths
    for dtype in (torch.bfloat16, torch.float16):
        query = 0.1 * randn(1, 1, length, width, seed=3, dtype=dtype)
        key = randn(1, 1, size, width, dtype=dtype)
        value = 1.0 + randn(1, 1, size, value_width, seed=1, dtype=dtype)
        grad = 0.1 + randn(1, 1, length, value_width, seed=2, dtype=dtype).abs()
        results = both(subject, query, key, value, grad)
        assert all(x.dtype == dtype for x in results)
        for mine, theirs in zip(results, defined(query, key, value, grad), strict=True):
            error = (mine.double() - theirs).abs().max() / theirs.abs().max()
            assert error < 2 * torch.finfo(dtype).eps, f"{dtype}: relative error {error:.2g}"
