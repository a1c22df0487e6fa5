"""mha.flash.kernels in Triton's interpreter: what the definition says, and nothing read or written
that is not the call's own."""

import itertools
import math
from dataclasses import dataclass, replace
from types import ModuleType
from unittest.mock import patch

import faulty
import flash_properties
import numpy as np
import pytest
import torch
from faulty.flash import patched
from faulty.flash_kernels import KERNELS
from flash_properties import Subject, agree, both, defined, operands
from support import close, oracle, order_cases, randn, to_numpy

import mha
from mha import flash
from mha._rules import Rules
from mha.positions import ALiBi

triton = pytest.importorskip("triton", reason="triton is for Linux")
interpreter = pytest.importorskip("triton.runtime.interpreter")
kernels = pytest.importorskip("mha.flash.kernels")
tl = triton.language

pytestmark = [
    pytest.mark.skipif(not kernels.INTERPRETED, reason="needs Triton's interpreter"),
    # triton 3.6's own interpreter, under later versions of NumPy
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]

ATOL = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""What rounding of the weights, of their gradients and of the results may make of errors."""


@dataclass(frozen=True)
class Run:
    """The kernels with tiles of a given size: a module with ``forward`` and ``backward``."""

    module: ModuleType = kernels
    queries: int = 16
    keys: int = 16

    def forward(self, *call):
        return self.module.forward(*call, cut=self._cut())

    def backward(self, *call):
        return self.module.backward(*call, cuts=(self._cut(), self._cut()))

    def _cut(self):
        return self.module.Blocks(self.queries, self.keys, 4, 1)


SUBJECT = Subject(
    Run(), sizes=(17, 20), widths=(12, 20), dtype=torch.float32, atol=ATOL[torch.float32]
)
"""Two by two tiles of 16: whole ones and edges, and widths that fill no tile."""


class Watch:
    """Notes what kernels read and write, and keeps them from what is not theirs.

    strays: places read or written outside the tensors given to a kernel. written: of each launch,
    how often each element of each tensor was written. products: calls of dot.
    """

    def __enter__(self):
        self.strays, self.written, self.products, self._patches = 0, [], 0, []
        builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
        self._wrap(executor, "_init_args_hst", self._launch)
        self._wrap(builder, "create_masked_load", self._load)
        self._wrap(builder, "create_masked_store", self._store)
        self._wrap(builder, "create_dot", self._dot)
        return self

    def __exit__(self, *_):
        for change in self._patches:
            change.stop()

    def _wrap(self, owner, name, around):
        original = getattr(owner, name)
        change = patch.object(owner, name, lambda *args: around(original, *args))
        change.start()
        self._patches.append(change)

    def _launch(self, original, executor, args, kwargs):
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        self._owned = [np.unique(addresses(x)) for x in tensors]
        self._all = np.unique(np.concatenate(self._owned))
        self._counts = [np.zeros(len(x), int) for x in self._owned]
        self.written.append(self._counts)
        return original(executor, args, kwargs)

    def _inside(self, pointers, mask):
        """The mask, less what belongs to no tensor."""
        places = pointers.data.astype(np.int64)
        inside = mask.data & np.isin(places, self._all)
        self.strays += int((mask.data & ~inside).sum())
        return interpreter.TensorHandle(inside, mask.dtype)

    def _load(self, original, builder, pointers, mask, *rest):
        return original(builder, pointers, self._inside(pointers, mask), *rest)

    def _store(self, original, builder, pointers, value, mask, *rest):
        mask = self._inside(pointers, mask)
        places = pointers.data.astype(np.int64)[mask.data]
        for owned, counts in zip(self._owned, self._counts, strict=True):
            mine = places[np.isin(places, owned)]
            np.add.at(counts, np.searchsorted(owned, mine), 1)
        return original(builder, pointers, value, mask, *rest)

    def _dot(self, original, *args):
        self.products += 1
        return original(*args)


def addresses(x):
    """The address of each element of a tensor."""
    places = np.full(1, x.data_ptr(), np.int64)
    for count, stride in zip(x.shape, x.stride(), strict=True):
        places = (places[:, None] + np.arange(count) * stride * x.element_size()).reshape(-1)
    return places


def everything(subject):
    """Options that take every branch, with a bool mask, a float mask, ALiBi."""
    cases = order_cases(2, 4, *subject.sizes)
    bias = randn(4, *subject.sizes, seed=4, dtype=subject.dtype)
    return (
        cases["all"],
        {**cases["all"], "attn_mask": bias},
        {**cases["window (2, 0), q_offset (B,)"], "attn_mask": ALiBi(4)},
    )


def nothing_but_the_operands_is_touched(subject):
    """No kernel reads or writes beside its tensors, and each result is written exactly once."""
    made = [torch.nn.functional.pad(x, (3, 4, 2, 5), value=math.nan) for x in operands(subject)]
    made = [x[:, :, 2:-5, 3:-4] for x in made]  # with NaN on all sides
    for options in ({}, {"is_causal": True}, *everything(subject)):
        with Watch() as watch:
            results = both(subject, *made, options)
        assert watch.strays == 0, f"{watch.strays} places beside the tensors"
        assert all(x.isfinite().all() for x in results)
        results = [sum((counts == 1).all() for counts in launch) for launch in watch.written]
        assert results == [3, 2, 2]  # output, top, total; delta, grad_query; grad_key, grad_value
        assert all(counts.max() <= 1 for launch in watch.written for counts in launch)


def tiles_that_nobody_sees_are_not_visited(subject):
    """A tile has two products forward, three for the query, four for key and value."""
    longer = replace(subject, sizes=(48, 64))
    made = operands(longer, heads=1, kv_heads=1, batch=1)
    for options, tiles in (({}, 12), ({"is_causal": True}, 6), ({"window": (7, 0)}, 5)):
        with Watch() as watch:
            both(longer, *made, options)
        assert watch.products == (2 + 3 + 4) * tiles, f"{options}: {watch.products} products"


@triton.jit
def tell_walk(
    found, firsts, lasts, sizes, lows, highs,
    WALK: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    low = tl.load(lows + n) if LEFT else None
    high = tl.load(highs + n) if RIGHT else None
    size = tl.load(sizes + n)
    a, b, c, d = WALK(tl.load(firsts + n), tl.load(lasts + n), size, low, high, BLOCK)
    tl.store(found + 4 * n, a)
    tl.store(found + 4 * n + 1, b)
    tl.store(found + 4 * n + 2, c)
    tl.store(found + 4 * n + 3, d)


def a_walk_finds_the_tiles_that_are_seen_and_those_seen_whole(subject):
    """For random rows and bounds, against all pairs of a row and a column."""
    cases, block = 60, 4
    random, sides = np.random.default_rng(1), (False, True)
    first, count, low, width = (random.integers(*ends, cases) for ends in
                                ((0, 20), (1, 9), (-25, 25), (0, 20)))  # fmt: skip
    given = np.stack([first, first + count - 1, random.integers(1, 30, cases), low, low + width])
    for left, right in itertools.product(sides, sides):
        found = torch.full((cases, 4), -1, dtype=torch.int32)
        columns = torch.from_numpy(given.astype(np.int32))
        options = {"WALK": subject.run.module.walk, "LEFT": left, "RIGHT": right}
        tell_walk[(cases,)](found, *columns, **options, BLOCK=block)
        for (first, last, size, low, high), tiles in zip(given.T, found.tolist(), strict=True):
            i = np.arange(first, last + 1)[:, None]
            j = np.arange(block * math.ceil(size / block))
            sees = (j < size) & ((j - i >= low) | (not left)) & ((j - i <= high) | (not right))
            sees = np.broadcast_to(sees, (len(i), len(j))).reshape(len(i), -1, block)
            a, b, c, d = tiles
            assert 0 <= a <= b <= c <= d
            if not left or first + low < size:  # else one tile may be looked at in vain
                assert [*range(a, d)] == np.flatnonzero(sees.any((0, 2))).tolist()
            assert [*range(b, c)] == np.flatnonzero(sees.all((0, 2))).tolist()


def bounds_and_offsets_may_be_of_any_size(subject):
    """Beyond 32 bits, and at their end, where a sum of two would pass it."""
    made, end, beyond = operands(subject, heads=1, kv_heads=1), 2**31 - 1, 10**12
    apart = torch.tensor([beyond, 3 - beyond])
    for options in (
        {"window": (end, end - 1), "q_offset": torch.tensor([-7, 7])},
        {"window": (beyond + 2, 0), "q_offset": apart},
        {"window": (1, beyond), "q_offset": 5 - beyond},
        {"is_causal": True, "q_offset": -end},
    ):
        agree(subject, made, options, name=str(options))
    plain = defined(*made)
    for offset in (beyond, -beyond):  # equally far from all keys, but for a constant
        slope = torch.tensor([0.0])
        results = both(subject, *made, {"attn_mask": ALiBi(1, slopes=slope), "q_offset": offset})
        for mine, theirs in zip(results, plain, strict=True):
            close(mine, theirs, subject.atol)


def a_loose_softcap_bends_nothing(subject):
    """At softcap 10**5, tanh is the identity to 10 digits, and must be so to the last of float32."""
    made = operands(subject, heads=1, kv_heads=1)
    results = both(subject, *made, {"softcap": 1e5})
    for mine, theirs in zip(results, defined(*made), strict=True):
        close(mine, theirs, subject.atol)


def addresses_have_64_bits(subject):
    """Rows 2**30 numbers apart, and columns of a mask: the memory between is never touched."""
    half, apart = replace(subject, sizes=(3, 4), dtype=torch.float16), 2**30
    query, key, value, grad = operands(half, heads=1, kv_heads=1, batch=1)
    mask = torch.tensor([True, False, True, True])
    room = torch.empty(3 * apart + 64, dtype=torch.bool)
    columns = room[: 3 * apart + 1 : apart].copy_(mask)  # (S,)
    room = torch.empty(3 * apart + 64, dtype=torch.float16)
    rows = room.as_strided(key.shape, (0, 0, apart, 1)).copy_(key)
    expected = defined(query, key, value, grad, {"attn_mask": mask})
    with Watch() as watch:
        results = both(half, query, rows, value, grad, {"attn_mask": columns})
    assert watch.strays == 0
    for mine, theirs in zip(results, expected, strict=True):
        close(mine, theirs, ATOL[torch.float16])


def half_types_are_summed_in_float32(subject):
    """A sum of many small numbers, which in half would stop growing."""
    sizes, widths = (8, 1024), subject.widths
    for dtype in (torch.bfloat16, torch.float16):
        half = replace(subject, sizes=sizes, widths=widths, dtype=dtype)
        query, key, value, grad = operands(half, heads=1, kv_heads=1, batch=1)
        made = 0.1 * query, key, 1.0 + value, 0.1 + grad.abs()
        results = both(half, *made)
        assert all(x.dtype == dtype for x in results)
        for which in (0, 3):  # those of the weights; the others are differences of half types
            mine, theirs = results[which].double(), defined(*made)[which]
            error = (mine - theirs).abs().max() / theirs.abs().max()
            assert error < 2 * torch.finfo(dtype).eps, f"{dtype}: relative error {error:.2g}"


OWN = (
    nothing_but_the_operands_is_touched,
    tiles_that_nobody_sees_are_not_visited,
    a_walk_finds_the_tiles_that_are_seen_and_those_seen_whole,
    bounds_and_offsets_may_be_of_any_size,
    a_loose_softcap_bends_nothing,
    addresses_have_64_bits,
    half_types_are_summed_in_float32,  # in place of that of the tiles, whose weights stay float32
)
PROPERTIES = {**flash_properties.ALL, **{holds.__name__: holds for holds in OWN}}
MANY = {"masks_hide_what_they_hide", "what_padding_holds_goes_nowhere"}  # cases; so fewer tiles


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name):
    PROPERTIES[name](replace(SUBJECT, run=Run(queries=32)) if name in MANY else SUBJECT)


@pytest.mark.slow
@pytest.mark.parametrize("slug", KERNELS)
def test_each_mistake_is_caught_by_name(slug, tmp_path):
    """Under a watch, which also keeps a faulty kernel from memory that is not its own."""
    about, old, new, caught_by = KERNELS[slug]
    variant = replace(SUBJECT, run=Run(patched(kernels, old, new, tmp_path)))
    with Watch(), np.errstate(all="ignore"):
        assert faulty.verdict(PROPERTIES[caught_by], variant) == "fails"


def test_mistakes_are_many_and_each_property_catches_one():
    assert len(KERNELS) >= 12
    spared = {"operands_stay_as_they_were", "the_layout_in_memory_does_not_matter"}
    assert {mistake.caught_by for mistake in KERNELS.values()} | spared == set(PROPERTIES)
    abouts = [mistake.about for mistake in KERNELS.values()]
    assert len(set(abouts)) == len(abouts) and all(x.endswith(".") for x in abouts)


@pytest.mark.parametrize("dtype", ATOL)
def test_dtypes(dtype):
    """Masks of all kinds together, in each dtype, with the tiles that ``blocks`` names."""
    subject = Subject(kernels, ({},), (37, 45), (20, 24), dtype, ATOL[dtype])
    agree(subject, operands(subject), everything(subject)[1], name=str(dtype))


@pytest.mark.parametrize("widths", [(3, 5), (16, 17), (24, 64), (80, 128), (256, 256)])
def test_widths(widths):
    """The tiles are a power of two wide, 16 or more; what is beyond a head is 0."""
    subject = replace(SUBJECT, run=kernels, widths=widths)
    options = {"is_causal": True, "q_offset": 3}
    made = operands(subject, heads=2, kv_heads=1, batch=1)
    agree(subject, made, options, scale=widths[0] ** -0.5)


@pytest.mark.parametrize("cut", [(16, 32), (32, 16), (16, 16)])
@pytest.mark.parametrize("window", [(40, 3), (3, 40), (None, 20)])
def test_long_walks(cut, window):
    """Tiles seen whole with edges on both sides."""
    subject = replace(SUBJECT, run=Run(kernels, *cut), sizes=(70, 100), widths=(4, 4))
    made = operands(subject, heads=1, kv_heads=1, batch=1)
    agree(subject, made, {"window": window, "q_offset": 15})


def test_one_query_and_one_key():
    for sizes in ((1, 1), (1, 40), (40, 1)):
        subject = replace(SUBJECT, sizes=sizes)
        agree(subject, operands(subject, heads=2, kv_heads=1, batch=1), {"is_causal": True})


def test_the_same_call_gives_the_same_bits():
    made = operands(SUBJECT, heads=2, kv_heads=1)
    first, second = (both(SUBJECT, *made, {"is_causal": True}) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_results_share_no_memory():
    """As torch asks of the results of an operator."""
    made = operands(SUBJECT, kv_heads=4)
    saved = kernels.forward(*made[:3], Rules(), 0.5, None)
    grads = kernels.backward(made[3], *made[:3], *saved, Rules(), 0.5, None)
    for group in (saved, grads):
        assert len({x.untyped_storage().data_ptr() for x in (*group, *made)}) == 7


def door():
    """Operands (2, 3, 4, ...) of the public function with two axes before the heads."""
    query, key = randn(2, 1, 4, 17, 8, dtype=torch.float32), randn(1, 3, 2, 20, 8, seed=1)
    value = randn(2, 3, 2, 20, 6, seed=2).float()
    return query.requires_grad_(), key.float().requires_grad_(), value.requires_grad_()


def test_the_public_door():
    """Axes before the heads broadcast; a sum's gradient comes as one number for all."""
    key_mask = torch.arange(20) != 3
    options = {"is_causal": True, "key_mask": key_mask, "softcap": 3.0, "window": (9, None)}
    made = door()
    output = flash.attention_by_kernel(*made, **options)
    expected = oracle(*made, enable_gqa=True, **options)
    close(output, expected, 2e-5)
    grads = torch.autograd.grad(output.sum(), made)
    doubles = [x.detach().double().requires_grad_() for x in made]
    other = mha.scaled_dot_product_attention(
        *doubles, enable_gqa=True, backend="reference", **options
    )
    for mine, theirs in zip(grads, torch.autograd.grad(other.sum(), doubles), strict=True):
        close(mine, theirs, 2e-5)


def test_kernel_tiles_and_rows_agree():
    made = operands(SUBJECT)[:3]
    options = everything(SUBJECT)[0]
    by_kernel = flash.attention_by_kernel(*made, **options)
    by_tiles = flash.attention_by_tiles(*made, **options)
    arrays = (x.numpy() for x in made)
    by_rows = torch.from_numpy(flash.attention_by_rows(*arrays, **to_numpy(options)))
    close(by_kernel, by_rows, 2e-5)
    close(by_tiles, by_rows, 2e-5)


def test_as_an_operator_of_torch():
    """What torch's own checks ask of an operator: schema, fake tensors, autograd, tracing."""
    made = [x.requires_grad_() for x in operands(SUBJECT, heads=2, kv_heads=1, batch=1)[:3]]
    rest = None, None, torch.ones(1, 20, dtype=torch.bool), None, 3, None, 0, 0.5, 2.0, True
    torch.library.opcheck(torch.ops.mha.flash, (*made, *rest))


def test_what_a_kernel_refuses(monkeypatch):
    made = operands(SUBJECT)[:3]
    with pytest.raises(ValueError, match="float64 on cpu; 'reference' can"):
        flash.attention_by_kernel(*(x.double() for x in made))
    wide = randn(1, 2, 3, 257, dtype=torch.float32)
    with pytest.raises(ValueError, match="wider than 256"):
        flash.attention_by_kernel(wide, wide, wide)
    bias = torch.zeros(17, 20, requires_grad=True)
    with pytest.raises(ValueError, match="gradient to attn_mask"):
        flash.attention_by_kernel(*made, attn_mask=bias)
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1 before triton"):
        flash.attention_by_kernel(*made)
