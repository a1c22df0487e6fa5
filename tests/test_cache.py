"""The cache: what each query sees after any history of calls, and what the cache refuses."""

import copy

import pytest
import torch
from support import close, collector, oracle, randn

from mha.cache import KVCache, Stored

HEADS, WIDTH, VALUE = 2, 3, 5
"""H_kv, D and D_v."""


def cache(batch=2, max_len=8, **options):
    """An empty float64 cache with values wider than keys."""
    made = {"value_dim": VALUE, "dtype": torch.float64, **options}
    return KVCache(batch, HEADS, max_len, WIDTH, **made)


def tokens(batch=2, length=3, seed=0, dtype=torch.float64):
    """Keys (B, H_kv, T, D) and values (B, H_kv, T, D_v)."""
    keys = randn(batch, HEADS, length, WIDTH, seed=seed, dtype=dtype)
    return keys, randn(batch, HEADS, length, VALUE, seed=seed + 1000, dtype=dtype)


class Ledger:
    """What a cache must do, said with Python lists: one list of (key, value, is real) an example."""

    def __init__(self, batch, left=None):
        self.rows, self.left = [[] for _ in range(batch)], left

    def append(self, key, value, key_mask=None):
        before = [len(row) for row in self.rows]
        for b, row in enumerate(self.rows):
            real = [True] * key.shape[2] if key_mask is None else key_mask[b].tolist()
            while real and not real[-1]:  # right padding takes no room
                real.pop()
            row += [(key[b, :, t], value[b, :, t], real[t]) for t in range(len(real))]
        return before

    def reorder(self, index):
        self.rows = [list(self.rows[i]) for i in index]

    def check(self, stored, before, length, lengths):
        """Every query that is no padding sees the right keys and values, in the right order."""
        for b, row in enumerate(self.rows):
            if stored.key_mask is not None:
                assert not stored.key_mask[b, lengths[b] :].any()
            start = stored.q_offset if isinstance(stored.q_offset, int) else stored.q_offset[b]
            for t in range(min(length, len(row) - before[b])):
                here = before[b] + t
                first = 0 if self.left is None else max(0, here - self.left)
                wanted = [entry for entry in row[first : here + 1] if entry[2]]
                slot = torch.arange(stored.key.shape[2])
                visible = slot <= start + t
                if self.left is not None:
                    visible &= slot >= start + t - self.left
                if stored.key_mask is not None:
                    visible &= stored.key_mask[b]
                assert visible.sum() == len(wanted)
                for j, (key, value, _) in zip(visible.nonzero()[:, 0], wanted, strict=True):
                    assert torch.equal(stored.key[b, :, j], key)
                    assert torch.equal(stored.value[b, :, j], value)


def random_history(seed, steps=40):
    """Appends of 0 to 4 tokens, some padded left, right or in between, and reorderings."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    kinds = (["none"] * 3, ["none", "right", "left", "holes", "nobody"])[seed % 2]
    batch = 3
    for step in range(steps):
        if draw(0, 5) == 0:
            index = torch.randint(0, batch, (draw(1, 5),), generator=generator)
            batch = len(index)
            yield "reorder", index
        length = draw(0, 5)
        kind = kinds[draw(0, len(kinds))]
        sizes = torch.randint(0, length + 1, (batch, 1), generator=generator)
        mask = {
            "none": None,
            "right": torch.arange(length) < sizes,
            "left": torch.arange(length) >= sizes,
            "holes": torch.rand(batch, length, generator=generator) < 0.6,
            "nobody": torch.zeros(batch, length, dtype=torch.bool),
        }[kind]
        yield "append", (*tokens(batch, length, seed=1000 * seed + step), mask)


@pytest.mark.parametrize("left", [None, 0, 3, 4])
@pytest.mark.parametrize("seed", range(12))
def test_every_query_sees_what_it_must_after_any_history(seed, left):
    long = 200 if left is None else left + 4
    made, ledger = cache(3, long, window=(left, 0)), Ledger(3, left)
    slid = False
    for what, given in random_history(seed):
        if what == "reorder":
            made.reorder(given)
            ledger.reorder(given.tolist())
            assert made.batch_size == len(given)
            continue
        position = torch.as_tensor(made.position).expand(made.batch_size)
        before = ledger.append(*given)
        assert position.tolist() == before
        stored = made.append(*given)
        ledger.check(stored, before, given[0].shape[2], made.lengths)
        now = torch.as_tensor(made.position).expand(made.batch_size).tolist()
        assert now == [len(row) for row in ledger.rows]
        assert made.lengths.max() <= made.length <= made.max_len
        assert stored.key.shape[2] == made.length
        slid = slid or made.length < max(now)
    assert slid == (left is not None)


def test_stored_parts_of_a_batch_without_padding():
    made, (key, value) = cache(), tokens(length=3)
    stored = made.append(key[:, :, :2], value[:, :, :2])
    assert isinstance(stored, Stored)
    assert (stored.q_offset, stored.key_mask) == (0, None)
    stored = made.append(key[:, :, 2:], value[:, :, 2:])
    assert (stored.q_offset, stored.key_mask) == (2, None)
    assert torch.equal(stored.key, key) and torch.equal(stored.value, value)
    assert (made.length, made.position, made.lengths.tolist()) == (3, 3, [3, 3])
    assert made.lengths.dtype == torch.int64


def test_right_padding_is_overwritten_and_hidden_until_then():
    made, (key, value) = cache(), tokens(length=3)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    stored = made.append(key, value, mask)
    assert torch.equal(stored.key_mask, mask)
    assert stored.q_offset.tolist() == [0, 0]
    assert made.lengths.tolist() == made.position.tolist() == [1, 3]
    more = tokens(length=2, seed=5)
    stored = made.append(*more)
    assert made.length == 5 and made.lengths.tolist() == [3, 5]
    assert stored.q_offset.tolist() == [1, 3] and stored.q_offset.dtype == torch.int64
    assert stored.key_mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert torch.equal(stored.key[0, :, :3], torch.cat([key[0, :, :1], more[0][0]], 1))
    assert torch.equal(stored.value[1], torch.cat([value[1], more[1][1]], 1))


def test_left_padding_keeps_its_slot():
    made, (key, value) = cache(), tokens(length=3)
    mask = torch.tensor([[False, False, True], [True, True, True]])
    made.append(key, value, mask)
    stored = made.append(*tokens(length=1, seed=5))
    assert stored.q_offset.tolist() == [3, 3]
    assert stored.key_mask.tolist() == [[False, False, True, True], [True] * 4]


def test_a_mask_may_come_late_and_may_broadcast():
    made = cache(max_len=9)
    made.append(*tokens(length=2))
    stored = made.append(*tokens(length=2, seed=1), torch.tensor([[True, False]]))
    assert stored.key_mask.tolist() == [[True, True, True, False]] * 2
    stored = made.append(*tokens(length=1, seed=2))
    assert stored.key_mask.tolist() == [[True] * 4 + [False]] * 2


def test_nothing_of_before_a_reset_is_left():
    made, (key, value) = cache(), tokens(length=6)
    made.append(key.fill_(torch.nan), value.fill_(torch.nan), torch.ones(2, 6, dtype=torch.bool))
    buffer = made.read().key.data_ptr()
    made.reset()
    assert (made.length, made.position, made.filled) == (0, 0, False)
    with pytest.raises(ValueError, match="empty"):
        made.read()
    fresh = tokens(length=2)
    stored = made.append(*fresh)
    assert torch.equal(stored.key, fresh[0]) and stored.key_mask is None
    mask = torch.tensor([[True, False], [True, True]])
    stored = made.append(*tokens(length=2, seed=1), mask)
    assert stored.key_mask.tolist() == [[True, True, True, False], [True] * 4]
    stored = made.append(*tokens(length=2, seed=2))
    assert stored.key_mask.tolist() == [[True] * 5 + [False], [True] * 6]
    assert stored.key.isfinite().all() and stored.value.isfinite().all()
    assert stored.key.data_ptr() == buffer


def test_room_that_was_never_used_or_slid_out_holds_zeros():
    """A hidden slot may meet a weight of 0, and 0 times NaN is NaN."""
    made = cache()
    made.append(*tokens(length=3), torch.tensor([[True, False, False], [True, True, True]]))
    stored = made.append(*tokens(length=3, seed=1))
    assert stored.key[0, :, 3].all() and not stored.key[0, :, 4:].any()
    made.reorder(torch.tensor([0, 1, 1]))
    assert not any(buffer[:, :, 6:].any() for buffer in made._buffers)
    made = cache(max_len=5, window=(2, 0))
    made.append(*tokens(length=5))
    made.append(*tokens(length=1))
    assert made.length == 3
    assert not any(buffer[:, :, 3:].any() for buffer in made._buffers)


@pytest.mark.parametrize("padded", [False, True])
def test_decoding_allocates_nothing_that_stays(padded):
    made = cache(max_len=5, window=(2, 0))
    mask = torch.tensor([[True, False], [True, True]]) if padded else None
    places = set()
    for step in range(12):
        stored = made.append(*tokens(length=2, seed=step), mask)
        places.add((stored.key.data_ptr(), stored.value.data_ptr()))
        assert stored.key.untyped_storage().nbytes() == 2 * HEADS * 5 * WIDTH * 8
        assert stored.value.untyped_storage().nbytes() == 2 * HEADS * 5 * VALUE * 8
    assert len(places) == 1


def test_reorder_at_the_same_size_keeps_the_buffers():
    made = cache()
    place = made.append(*tokens()).key.data_ptr()
    made.reorder(torch.tensor([1, 0]))
    assert made.read().key.data_ptr() == place
    assert torch.equal(made.read().key, tokens()[0].flip(0))
    made.reorder(torch.tensor([0, 0, 1]))
    assert made.append(*tokens(3, 1)).key.shape == (3, HEADS, 4, WIDTH)


@pytest.mark.parametrize("size", [1, 2])
def test_a_sliding_cache_takes_what_fits_behind_its_window(size):
    made = cache(max_len=4, window=(2, None))
    made.append(*tokens(length=4))  # before it is full, all of it
    for step in range(3):
        made.append(*tokens(length=size, seed=step))
    assert made.position == 4 + 3 * size
    with pytest.raises(ValueError, match=r"at most max_len - left = 2 .* T=3"):
        made.append(*tokens(length=3))
    assert made.position == 4 + 3 * size
    made.reset()
    with pytest.raises(ValueError, match="fit into the 4 free slots, .* T=5"):
        made.append(*tokens(length=5))


def test_a_window_without_left_does_not_slide():
    for window in (None, (None, 0)):
        made = cache(max_len=3, window=window)
        made.append(*tokens(length=3))
        with pytest.raises(ValueError, match="full: 3 of max_len=3 slots are in use and T=1"):
            made.append(*tokens(length=1))
        assert made.append(*tokens(length=0)).q_offset == 3


@pytest.mark.parametrize("masked", [False, True])
def test_a_static_cache_is_filled_once_and_read_ever_after(masked):
    made, (key, value) = cache(max_len=4, static=True, window=(1, 1)), tokens(length=4)
    mask = torch.tensor([[True, False, True, False], [True, True, True, True]]) if masked else None
    assert not made.filled
    for stored in (made.append(key, value, mask), made.read(), made.read()):
        assert stored.q_offset == 0
        assert torch.equal(stored.key, key) and torch.equal(stored.value, value)
        assert mask is stored.key_mask is None or torch.equal(stored.key_mask, mask)
    assert made.filled
    with pytest.raises(ValueError, match="filled once"):
        made.append(*tokens(length=0))
    made.reorder(torch.tensor([1, 1, 0]))
    assert torch.equal(made.read().value, value[[1, 1, 0]])
    made.reset()
    assert made.append(*tokens(3, 2)).key.shape[2] == 2


def test_an_empty_memory_counts_as_filled():
    made = cache(static=True)
    made.append(*tokens(length=0))
    assert made.filled and made.read().key.shape == (2, HEADS, 0, WIDTH)
    with pytest.raises(ValueError, match="filled once"):
        made.append(*tokens(length=0))


def test_empty_batches_and_chunks():
    made = cache(batch=0)
    assert made.append(*tokens(0, 3)).key.shape == (0, HEADS, 3, WIDTH)
    made = cache()
    stored = made.append(*tokens(length=0), torch.ones(2, 0, dtype=torch.bool))
    assert stored.key_mask.shape == (2, 0) and made.lengths.tolist() == [0, 0]


def test_attention_over_stored_parts_is_causal_attention():
    """Query t of a chunk stands at q_offset + t: chunks of any size equal the full pass."""
    key, value = tokens(length=7)
    query = randn(2, HEADS, 7, WIDTH, seed=9)
    full = oracle(query, key, value, is_causal=True)
    for chunks in ([1] * 7, [3, 1, 3], [7], [5, 2]):
        made, parts = cache(), []
        for q, k, v in zip(*(x.split(chunks, 2) for x in (query, key, value)), strict=True):
            stored = made.append(k, v)
            parts.append(
                oracle(q, stored.key, stored.value, is_causal=True, q_offset=stored.q_offset)
            )
        close(torch.cat(parts, 2), full)


def everything(padded, window, device):
    """Each method once, in an order in which a window slides; first what to call them with."""
    mask = torch.tensor([[True, False, False], [True, True, True]]).to(device)
    index = torch.tensor([1, 1, 0]).to(device)
    sizes = [(3, mask if padded else None), (2, None), (2, None), (2, None), (2, None)]
    chunks = [
        ([x.to(device) for x in tokens(length=size, seed=seed, dtype=torch.float32)], given)
        for seed, (size, given) in enumerate(sizes)
    ]
    length = 11 if window is None else 6
    made = KVCache(2, HEADS, length, WIDTH, value_dim=VALUE, window=window, device=device)

    def run():
        for (key, value), given in chunks:
            stored = made.append(key, value, given)
        made.reorder(index)
        return *stored, *made.read(), made.position, made.lengths

    return run


PADDED_AND_WINDOW = pytest.mark.parametrize(
    "padded, window", [(False, None), (True, None), (False, (3, 0)), (True, (3, 0))]
)


@PADDED_AND_WINDOW
def test_no_value_is_read(padded, window):
    """Tensors on the meta device have no values: what asks for one raises."""
    run = everything(padded, window, "meta")
    assert run()[-1].shape == (3,)


@pytest.mark.gpu
@PADDED_AND_WINDOW
def test_no_step_waits_for_the_gpu(padded, window):
    expected = everything(padded, window, "cpu")()
    run = everything(padded, window, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.cpu(), b) if isinstance(b, torch.Tensor) else a == b


@pytest.mark.parametrize("padded, window", [(False, None), (True, (3, 0))])
def test_compile_whole_graph_without_a_graph_for_each_step(padded, window):
    graphs = []

    def step(made, key, value, mask=None):
        stored = made.append(key, value, mask)
        return stored, made.position

    compiled = torch.compile(step, backend=collector(graphs), fullgraph=True)
    caches = [cache(max_len=16 if window is None else 6, window=window) for _ in range(2)]
    mask = torch.tensor([[True, False, False], [True, True, True]]) if padded else None
    numbers = []
    for index in range(11):
        given = (*tokens(length=1 if index else 3, seed=index), None if index else mask)
        (got, here), (expected, there) = compiled(caches[0], *given), step(caches[1], *given)
        for a, b in zip((*got, here), (*expected, there), strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        assert caches[0].length == caches[1].length
        numbers.append(len(graphs))
    # a graph for the empty cache, one for any length, one for a full cache, one that slides
    assert numbers[-5:] == [2 if window is None else 4] * 5, numbers


def test_compile_reorder():
    made, expected = cache(), cache()
    for each in (made, expected):
        each.append(*tokens(), torch.tensor([[True, False, False], [True, True, True]]))
    index = torch.tensor([1, 0, 1])
    torch.compile(lambda c, i: c.reorder(i), backend="aot_eager", fullgraph=True)(made, index)
    expected.reorder(index)
    for a, b in zip(made.read(), expected.read(), strict=True):
        assert torch.equal(a, b)


def test_deepcopy_branches():
    made = cache()
    made.append(*tokens(), torch.tensor([[True, False, False], [True, True, True]]))
    other = copy.deepcopy(made)
    other.append(*tokens(length=1, seed=3))
    assert (made.length, other.length) == (3, 4)
    assert made.lengths.tolist() == [1, 3]
    assert torch.equal(made.read().key, tokens()[0])


def test_inference_mode_leaves_ordinary_buffers():
    with torch.inference_mode():
        made = cache()
        made.append(*tokens(), torch.ones(2, 3, dtype=torch.bool))
    made.append(*tokens(length=1), torch.tensor([[True], [False]]))
    with torch.inference_mode():
        made.reorder(torch.tensor([0, 1, 1]))
    made.append(*tokens(3, 1), torch.tensor([[True], [False], [True]]))
    made.reorder(torch.tensor([0, 1, 1]))
    assert made.lengths.tolist() == [5, 3, 3]


def test_autocast_casts_to_the_buffers():
    for mask in (None, torch.tensor([[True, False, False], [True, True, True]])):
        made = cache(dtype=torch.float32)
        key, value = tokens(dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            stored = made.append(key, value, mask)
        assert stored.key.dtype == torch.float32 and torch.equal(stored.key, key.float())
        with pytest.raises(
            ValueError, match="key must be torch.float32 like the cache, got torch.bf"
        ):
            made.append(key, value)


def test_gradients_are_refused_while_grad_mode_is_on():
    made = cache()
    key, value = tokens()
    for given, name in (
        ((key.clone().requires_grad_(), value), "key"),
        ((key, value.clone().requires_grad_()), "value"),
    ):
        with pytest.raises(ValueError, match=f"{name} requires grad.*no_grad"):
            made.append(*given)
        with torch.no_grad():
            assert not made.append(*given).key.requires_grad
        made.reset()


class Module:
    """What ``for_module`` reads of a module."""

    num_kv_heads, head_dim, window = 3, 4, (2, 0)
    k_proj = torch.nn.Linear(8, 12, dtype=torch.bfloat16, device="meta")


def test_for_module():
    made = KVCache.for_module(Module, 2, 6)
    stored = made.append(*[torch.ones(2, 3, 5, 4, dtype=torch.bfloat16, device="meta")] * 2)
    assert stored.key.shape == stored.value.shape == (2, 3, 5, 4)
    assert (stored.key.dtype, stored.key.device.type) == (torch.bfloat16, "meta")
    made.append(*[torch.ones(2, 3, 4, 4, dtype=torch.bfloat16, device="meta")] * 2)
    assert (made.length, made.position) == (6, 9)  # it slid
    assert KVCache.for_module(Module, 2, 1, static=True).static
    assert repr(made) == "KVCache(batch_size=2, num_kv_heads=3, max_len=6, head_dim=4, length=6)"


BAD_SETTINGS = {
    "no slots": ({"max_len": 0}, ValueError, "max_len must be at least 1, got 0"),
    "half a slot": ({"max_len": 1.5}, TypeError, "max_len must be an int"),
    "negative batch": ({"batch": -1}, ValueError, "batch_size must be at least 1, got -1"),
    "value width": ({"value_dim": 0}, ValueError, "value_dim must be at least 1"),
    "integer dtype": ({"dtype": torch.int64}, TypeError, "dtype must be a floating-point"),
    "static flag": ({"static": 1}, TypeError, "static must be True or False, got 1"),
    "window too wide": ({"window": (8, 0)}, ValueError, "max_len must exceed.*left=8, got 8"),
    "negative window": ({"window": (-1, 0)}, ValueError, "window must hold 0 or more"),
    "window of floats": ({"window": (1.0, 0)}, TypeError, "window must hold ints"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings_are_refused(name):
    options, error, words = BAD_SETTINGS[name]
    with pytest.raises(error, match=words):
        cache(**options)


def bad_appends():
    key, value = tokens()
    ones = torch.ones(2, 3, dtype=torch.bool)
    return {
        "batch": ((key[:1], value[:1]), ValueError, r"key must have shape \(B=2, .*got \(1, 2, 3"),
        "heads": ((key[:, :1], value), ValueError, r"H_kv=2.*got \(2, 1, 3, 3\)"),
        "width": ((key[..., :2], value), ValueError, r"D=3\).*got \(2, 2, 3, 2\)"),
        "value width": ((key, key), ValueError, r"value must .*D_v=5\).*got \(2, 2, 3, 3\)"),
        "axes": ((key[0], value), ValueError, r"got \(2, 3, 3\)"),
        "lengths": ((key, value[:, :, :2]), ValueError, "same length T, got 3 and 2"),
        "dtype": ((key.float(), value), ValueError, "key must be torch.float64.*torch.float32"),
        "device": ((key, value.to("meta")), ValueError, "value must be on cpu.*meta"),
        "integers": ((key.long(), value), TypeError, "key must be a floating-point tensor"),
        "list": ((key.tolist(), value), TypeError, "key must be a tensor, got list"),
        "mask of integers": ((key, value, ones.long()), TypeError, "key_mask must be bool"),
        "mask length": ((key, value, ones[:, :2]), ValueError, r"S=3.*got shape \(2, 2\)"),
        "mask batch": ((key, value, ones[[0, 0, 1]]), ValueError, r"\(3, 3\) to \(2, 3\)"),
        "too many": ((*tokens(length=9), None), ValueError, "full: 0 of max_len=8.*T=9"),
    }


@pytest.mark.parametrize("name", bad_appends())
def test_bad_appends_are_refused_and_change_nothing(name):
    given, error, words = bad_appends()[name]
    made = cache()
    with pytest.raises(error, match=words):
        made.append(*given)
    assert (made.length, made.filled) == (0, False)
    assert not any(buffer.any() for buffer in made._buffers)


BAD_INDICES = {
    "int32": (torch.zeros(2, dtype=torch.int32), TypeError, "int64 tensor, got torch.int32"),
    "list": ([0, 1], TypeError, "int64 tensor, got list"),
    "axes": (
        torch.zeros(1, 2, dtype=torch.int64),
        ValueError,
        r"shape \(N,\) on cpu, got \(1, 2\)",
    ),
    "device": (torch.zeros(2, dtype=torch.int64, device="meta"), ValueError, "on meta"),
    "above": (torch.tensor([0, 2]), ValueError, r"between 0 and 1, got \[0, 2\]"),
    "below": (torch.tensor([-1, 0]), ValueError, r"got \[-1, 0\]"),
}


@pytest.mark.parametrize("name", BAD_INDICES)
def test_bad_indices_are_refused(name):
    index, error, words = BAD_INDICES[name]
    made = cache()
    made.append(*tokens())
    with pytest.raises(error, match=words):
        made.reorder(index)
