"""Decoding with a cache: every feature of the module, in chunks of any size, is the full pass."""

import gc
import weakref

import pytest
import torch
from support import close, collector, randn

import mha
from mha.cache import KVCache
from mha.positions import ALiBi, Rotary

EMBED, QUERY_HEADS, LENGTH = 8, 4, 9

FEATURES = {
    "plain": {},
    "fewer key heads": {"num_kv_heads": 2},
    "one key head": {"num_kv_heads": 1},
    "rope": {"rope": Rotary()},
    "rope, interleaved": {"rope": Rotary(interleaved=True)},
    "rope, partial": {"rope": Rotary(4), "head_dim": 6},
    "window": {"window": (2, 0)},
    "qk_norm": {"qk_norm": "rms"},
    "softcap": {"softcap": 0.8},
    "alibi": {},
    "alibi, window, fewer key heads": {"window": (3, None), "num_kv_heads": 2},
    "rope, window, layer norm, fewer key heads": {
        "rope": Rotary(2, interleaved=True),
        "window": (2, 1),
        "qk_norm": "layer",
        "num_kv_heads": 2,
    },
    "all": {
        "rope": Rotary(2),
        "window": (4, 0),
        "qk_norm": "rms",
        "num_kv_heads": 2,
        "softcap": 0.8,
    },
}

CASES = [
    (name, backend)
    for name, options in FEATURES.items()
    for backend in ("reference", "auto" if "softcap" in options else "sdpa")
]
"""``sdpa`` has no softcap."""


class Decoder:
    """A causal module of one feature, in float64, run with and without a cache."""

    def __init__(self, name, backend):
        options = {"head_dim": 4, **FEATURES[name]}
        self.module = mha.MultiHeadAttention(
            EMBED, QUERY_HEADS, is_causal=True, backend=backend, dtype=torch.float64, **options
        ).eval()
        for index, parameter in enumerate(self.module.parameters()):
            parameter.data.copy_(randn(*parameter.shape, seed=index))  # biases too
        self.bias = ALiBi(QUERY_HEADS) if "alibi" in name or name == "all" else None
        self.window = options.get("window")

    def new_cache(self, batch=2, chunk=1):
        """Just enough room for the window and one chunk, so that a window has to slide."""
        room = 40 if self.window is None else self.window[0] + max(chunk, 2)
        return KVCache.for_module(self.module, batch, room)

    @torch.no_grad()
    def __call__(self, x, key_mask=None, cache=None):
        return self.module(x, attn_mask=self.bias, key_mask=key_mask, cache=cache)

    def chunked(self, x, sizes, key_mask=None):
        """The outputs of all chunks, one behind the other."""
        cache = self.new_cache(len(x), max(sizes))
        masks = [None] * len(sizes) if key_mask is None else key_mask.split(sizes, 1)
        chunks = zip(x.split(sizes, 1), masks, strict=True)
        return torch.cat([self(part, mask, cache) for part, mask in chunks], 1)


@pytest.mark.parametrize("sizes", [[1] * LENGTH, [4, 1, 1, 1, 2], [2, 3, 4], [LENGTH]])
@pytest.mark.parametrize("name, backend", CASES)
def test_chunks_equal_the_full_pass(name, backend, sizes):
    decoder, x = Decoder(name, backend), randn(2, LENGTH, EMBED, seed=50)
    close(decoder.chunked(x, sizes), decoder(x))


@pytest.mark.parametrize("sizes", [[1] * LENGTH, [4, 1, 1, 1, 2], [2, 3, 4]])
@pytest.mark.parametrize("name, backend", CASES)
def test_left_padding_equals_the_full_pass(name, backend, sizes):
    decoder, x = Decoder(name, backend), randn(3, LENGTH, EMBED, seed=51)
    mask = torch.arange(LENGTH) >= torch.tensor([[3], [0], [1]])
    close(decoder.chunked(x, sizes, mask), decoder(x, mask))
    alone = decoder(x[:1, 3:])  # attention knows distances only, so the padding need not be there
    close(decoder.chunked(x, sizes, mask)[:1, 3:], alone)


GIVEN = [(4, 2, 3), (1, 1, 1), (1, 3, 0), (1, 1, 1), (2, 1, 3)]
"""How many tokens each call brings to each of three examples, padded on the right."""


@pytest.mark.parametrize("name, backend", CASES)
def test_right_padding_equals_each_example_alone(name, backend):
    decoder = Decoder(name, backend)
    totals = torch.tensor(GIVEN).sum(0).tolist()
    rows = [randn(1, total, EMBED, seed=60 + b) for b, total in enumerate(totals)]
    cache, done = decoder.new_cache(3, chunk=4), [[] for _ in rows]
    used = [0, 0, 0]
    for given in GIVEN:
        x = randn(3, max(given), EMBED, seed=99)  # what stands in the padding must not matter
        for b, count in enumerate(given):
            x[b, :count] = rows[b][0, used[b] : used[b] + count]
            used[b] += count
        mask = torch.arange(max(given)) < torch.tensor(given)[:, None]
        output = decoder(x, None if min(given) == max(given) else mask, cache)
        for b, count in enumerate(given):
            done[b].append(output[b, :count])
    for row, parts in zip(rows, done, strict=True):
        close(torch.cat(parts)[None], decoder(row))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name, backend", CASES)
def test_beams_equal_the_full_pass_of_each(name, backend, padded):
    decoder, x = Decoder(name, backend), randn(2, 4, EMBED, seed=70)
    mask = torch.arange(4) >= torch.tensor([[2], [0]]) if padded else None
    cache = decoder.new_cache(chunk=4)
    decoder(x, mask, cache)
    for seed, picked in enumerate(([0, 0, 1, 1], [3, 1, 0, 0], [2, 2, 1, 3], [1])):
        index = torch.tensor(picked)
        cache.reorder(index)
        new = randn(len(picked), 2, EMBED, seed=71 + seed)
        x = torch.cat([x[index], new], 1)
        if padded:
            mask = torch.cat([mask[index], torch.ones(len(picked), 2, dtype=torch.bool)], 1)
        close(decoder(new, cache=cache), decoder(x, mask)[:, -2:])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("name", ["plain", "fewer key heads", "qk_norm", "rope"])
def test_a_memory_is_projected_once(name, backend, padded):
    decoder = Decoder(name, backend)
    module, calls = decoder.module, []
    module.is_causal = False
    module.k_proj.register_forward_hook(lambda *_: calls.append("k"))
    x, memory = randn(2, 5, EMBED, seed=80), randn(2, 7, EMBED, seed=81)
    mask = torch.tensor([[True] * 4 + [False] * 3, [False] + [True] * 6]) if padded else None
    places = {"positions": torch.arange(5)} if module.rope else {}
    full = module(x, memory, key_mask=mask, **places)
    cache = KVCache.for_module(module, 2, 7, static=True)
    calls.clear()
    with torch.no_grad():
        for t in range(5):
            at = {name: p[t : t + 1] for name, p in places.items()}
            given = {"key": memory, "key_mask": mask} if t == 0 else {}
            close(module(x[:, t : t + 1], **given, **at, cache=cache), full[:, t : t + 1])
        cache.reorder(torch.tensor([1, 0, 1]))
        close(module(x[[1, 0, 1]], cache=cache), full[[1, 0, 1]])
    assert calls == ["k"]


def test_weights_of_a_chunk_are_rows_of_the_full_weights():
    decoder, x = Decoder("rope", "sdpa"), randn(2, 6, EMBED, seed=85)
    full = decoder.module(x, return_weights=True)[1]
    cache = decoder.new_cache()
    with torch.no_grad():
        decoder.module(x[:, :4], cache=cache)
        weights = decoder.module(x[:, 4:], cache=cache, return_weights=True)[1]
    close(weights, full[:, :, 4:])


def test_no_module_keeps_a_cache():
    decoder = Decoder("all", "auto")
    before = dict(vars(decoder.module))
    cache = decoder.new_cache()
    decoder(randn(2, 3, EMBED), cache=cache)
    assert vars(decoder.module) == before
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None


def test_a_module_in_training_must_not_fill_a_cache():
    decoder = Decoder("plain", "auto")
    with pytest.raises(ValueError, match="key requires grad.*no_grad"):
        decoder.module(randn(2, 3, EMBED), cache=decoder.new_cache())


@pytest.mark.parametrize("name, padded", [("plain", False), ("all", True)])
def test_a_compiled_decoder_needs_few_graphs(name, padded):
    graphs = []
    decoder, x = Decoder(name, "auto"), randn(2, 13, EMBED, seed=90)
    compiled = torch.compile(decoder.module, backend=collector(graphs), fullgraph=True)
    cache = KVCache.for_module(decoder.module, 2, 24)
    mask = torch.tensor([[False, True, True], [True, True, True]]) if padded else None
    parts = []
    for index, chunk in enumerate(x.split([3] + [1] * 10, 1)):
        with torch.no_grad():
            given = {"key_mask": mask} if padded and index == 0 else {}
            parts.append(compiled(chunk, attn_mask=decoder.bias, cache=cache, **given))
    whole = None if mask is None else torch.cat([mask, torch.ones(2, 10, dtype=torch.bool)], 1)
    close(torch.cat(parts, 1), decoder(x, whole))
    assert len(graphs) <= 4
