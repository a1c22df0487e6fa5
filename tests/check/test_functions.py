"""The functions of the exercises: the right ones equal ``mha``, the faulty ones differ as meant."""

import inspect
import math

import pytest
import specimens.functions as module
import torch
from specimens import CORRECT, SPECIMENS

import mha

B, H, T, S, D = 2, 3, 5, 7, 4
E = H * D
CHECKS = (
    "split_heads",
    "merge_heads",
    "softmax",
    "causal_mask",
    "padding_mask",
    "positional_encoding",
    "kv_cache",
    "grouped_query_attention",
    "flash_attention",
)
KNOWN = {  # slugs of attention as a whole that these functions can have too
    *("split-no-transpose", "split-dim-major", "merge-no-transpose", "merge-dim-major"),
    *("batch-mixed", "heads-summed", "causal-upper", "causal-strict", "causal-leak-one"),
    *("mask-inverted", "mask-ignored", "pad-query-axis", "gqa-tiled"),
    *("scale-missing", "scale-model-dim"),
}
LENGTHS = torch.tensor([3, 6])
IDS = torch.tensor([[5, 8, 2, 0, 0, 0], [4, 1, 7, 3, 9, 6]])
REAL = torch.arange(6) < LENGTHS[:, None]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one, other, tolerance=1e-9):
    if one.shape != other.shape:
        return False
    return torch.allclose(one.double(), other.double(), rtol=0, atol=tolerance)


def right(check):
    return [entry.subject for entry in CORRECT if entry.check == check]


def faulty(check):
    found = [(e.slugs[0], e.subject) for e in SPECIMENS if e.check == check]
    return [pair for pair in found if pair[1].__module__ == module.__name__]


def cases(check):
    """Parameters of a test of the faulty functions of one check."""
    return pytest.mark.parametrize(
        ("slug", "fn"), [pytest.param(s, f, id=f"{s}-{f.__name__}") for s, f in faulty(check)]
    )


def each(check):
    return pytest.mark.parametrize("fn", right(check), ids=lambda fn: fn.__name__)


@pytest.mark.parametrize("check", CHECKS)
def test_there_are_enough(check):
    assert len(right(check)) >= 3 and len(faulty(check)) >= 4


def test_slugs_are_described():
    used = {slug for check in CHECKS for slug, _ in faulty(check)}
    used |= {n for e in CORRECT if e.check in CHECKS for n in e.notes}
    assert set(module.NEW_SLUGS) == used - KNOWN
    assert used >= KNOWN


# --- heads ----------------------------------------------------------------------------------------


@each("split_heads")
def test_split(fn):
    x = randn(B, T, E)
    assert close(fn(x, H), mha.heads.split_heads(x, H))


@cases("split_heads")
def test_faulty_split(slug, fn):
    x = randn(B, T, E)
    out, good = fn(x, H), mha.heads.split_heads(x, H)
    assert not close(out, good)
    assert close(out.flatten().sort().values, x.flatten().sort().values)  # nothing is lost
    if slug == "split-no-transpose":
        assert torch.equal(out.flatten(), x.flatten())  # nothing has moved
    elif slug == "split-dim-major":
        assert torch.equal(out[:, 1, :, 2], x[:, :, 2 * H + 1])
    elif slug == "batch-mixed":
        assert close(out.reshape(H, B, T, D).transpose(0, 1), good)
    elif slug == "split-batch-lost":
        assert out.ndim == 3 and close(out.view(B, H, T, D), good)
    else:
        assert slug == "split-wrong-axes" and out.ndim == 4 and out.shape != good.shape
        moved = out.transpose(1, 2) if out.shape[0] == B else out.transpose(0, 1)
        assert close(moved, good)


@each("merge_heads")
def test_merge(fn):
    x = randn(B, H, T, D)
    given = [E] if len(inspect.signature(fn).parameters) == 2 else []
    assert close(fn(x, *given), mha.heads.merge_heads(x))


@cases("merge_heads")
def test_faulty_merge(slug, fn):
    x = randn(B, H, T, D)
    out, good = fn(x), mha.heads.merge_heads(x)
    assert not close(out, good)
    if slug == "heads-summed":
        total = x.sum(1)
        assert close(out, total) or close(out, (total / H).repeat(1, 1, H))
        return
    assert out.shape == good.shape
    if slug == "merge-no-transpose":
        assert torch.equal(out.flatten(), x.flatten())
    elif slug == "merge-dim-major":
        assert torch.equal(out[:, :, 2 * H + 1], x[:, 1, :, 2])
    elif slug == "batch-mixed":
        changed = x.clone()
        changed[1] += 1.0
        assert not close(fn(changed)[0], out[0])
    else:
        assert slug == "merge-wrong-axes" and close(out, x.mT.reshape(B, T, E))


# --- softmax --------------------------------------------------------------------------------------


@each("softmax")
@pytest.mark.parametrize("dim", [-1, 1, 0])
def test_softmax(fn, dim):
    x = 50 * randn(B, T, S)
    kept = x.clone()
    for scores in (x, 1e4 * x, 1e6 + x, torch.zeros_like(x)):
        assert close(fn(scores, dim=dim), scores.softmax(dim))
    assert close(fn(x), x.softmax(-1)) and torch.equal(x, kept)


@cases("softmax")
def test_faulty_softmax(slug, fn):
    x = randn(B, T, S)
    out, good = fn(x.clone(), dim=-1), x.softmax(-1)
    if slug == "softmax-overflow":
        assert close(out, good) and fn(1000 * x).isnan().any()
    elif slug == "softmax-max-global":
        assert close(out, good)
        apart = torch.tensor([[0.0, 1.0], [2000.0, 2001.0]])
        assert fn(apart).isnan().any() and apart.softmax(-1).isfinite().all()
    elif slug == "softmax-shifts-input":
        changed = x.clone()
        assert close(fn(changed), good) and not torch.equal(changed, x)
    elif slug == "softmax-wrong-axis":
        assert any(close(out, x.softmax(dim)) for dim in (0, 1)) and not close(out, good)
    elif slug == "softmax-global":
        assert close(out, x.flatten().softmax(0).view_as(x))
    elif slug == "softmax-no-normalise":
        assert not close(out, good) and close(out / out.sum(-1, keepdim=True), good)
    elif slug == "softmax-log":
        assert close(out, x.log_softmax(-1))
    else:
        assert slug == "softmax-no-exp" and close(out * x.sum(-1, keepdim=True), x)


# --- masks ----------------------------------------------------------------------------------------


@each("causal_mask")
def test_causal(fn):
    mask = fn(T)
    assert mask.dtype == torch.bool and torch.equal(mask.view(T, T), mha.masks.causal(T))
    if "S" in inspect.signature(fn).parameters:
        assert torch.equal(fn(T, S), mha.masks.causal(T, S))
    if "offset" in inspect.signature(fn).parameters:
        assert torch.equal(fn(T, S, offset=S - T), mha.masks.causal(T, S, q_offset=S - T))


@cases("causal_mask")
def test_faulty_causal(slug, fn):
    mask = fn(T)
    assert mask.shape == (T, T)
    expected = {
        "causal-upper": lambda i, j: j >= i,
        "causal-strict": lambda i, j: j < i,
        "causal-leak-one": lambda i, j: j <= i + 1,
        "mask-inverted": lambda i, j: j > i,
        "mask-not-bool": lambda i, j: j <= i,
    }[slug]
    where = torch.tensor([[expected(i, j) for j in range(T)] for i in range(T)])
    if slug == "mask-not-bool":
        assert mask.dtype != torch.bool
        mask = mask == 0 if mask.isinf().any() else mask == 1
    assert torch.equal(mask, where)


def padding_of(fn):
    return fn(IDS, 0) if "pad_id" in inspect.signature(fn).parameters else fn(LENGTHS)


@each("padding_mask")
def test_padding(fn):
    mask = padding_of(fn)
    assert mask.dtype == torch.bool and torch.equal(mask.view(B, 6), REAL)
    if "pad_id" in inspect.signature(fn).parameters:
        assert torch.equal(fn(IDS, pad_id=9).view(B, 6), IDS != 9)


@cases("padding_mask")
def test_faulty_padding(slug, fn):
    mask, place = padding_of(fn), torch.arange(6)
    if slug == "mask-inverted":
        assert torch.equal(mask, ~REAL)
    elif slug == "pad-query-axis":
        assert torch.equal(mask, REAL[:, None, :, None])
    elif slug == "pad-off-by-one":
        shifted = (place < LENGTHS[:, None] + step for step in (1, -1))
        assert any(torch.equal(mask, wrong) for wrong in shifted)
    elif slug == "pad-all-lengths-alike":
        assert torch.equal(mask, REAL[:1].expand(B, -1))
    elif slug == "pad-left":
        assert torch.equal(mask, REAL.flip(1))
    else:
        assert slug == "mask-not-bool" and mask.is_floating_point() and torch.equal(mask == 1, REAL)


# --- positions ------------------------------------------------------------------------------------


@each("positional_encoding")
@pytest.mark.parametrize(("length", "width"), [(5, 8), (50, 12), (1, 2)])
def test_positions(fn, length, width):
    good = mha.positions.sinusoidal(length, width)
    assert close(fn(length, width), good, 1e-5)


@cases("positional_encoding")
def test_faulty_positions(slug, fn):
    length, width = 7, 8
    out = fn(length, width)
    good = mha.positions.sinusoidal(length, width)
    assert not close(out, good, 1e-3)
    angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    if slug == "pe-sin-only":
        assert close(out[:, 0::2], out[:, 1::2]) and close(out[:, 0::2], good[:, 0::2], 1e-5)
    elif slug == "pe-sin-cos-exchanged":
        assert close(out[:, 0::2], good[:, 1::2], 1e-5) and close(out[:, 1::2], good[:, 0::2], 1e-5)
    elif slug == "pe-from-one":
        assert close(out[:-1], good[1:], 1e-5)
    elif slug == "pe-transposed":
        assert close(out.T, good, 1e-5)
    elif slug == "pe-base":
        assert close(out, mha.positions.sinusoidal(length, width, base=1000.0), 1e-5)
    elif slug == "pe-degrees":
        assert close(out[:, 0::2], (angle * math.pi / 180).sin(), 1e-5)
    elif slug == "pe-exponent":
        assert close(out[:, :1], good[:, :1], 1e-5)  # the first feature is right all the same
        one_pair = close(out[:, 2:4], mha.positions.sinusoidal(length, width)[:, 4:6], 1e-5)
        one_feature = close(out[:, 2:3], good[:, 2:3], 1e-5) and not close(out[:, 3], good[:, 3])
        assert one_pair or one_feature
    else:
        assert slug == "pe-frequency-multiplied" and close(out[:, :2], good[:, :2], 1e-5)


# --- caches ---------------------------------------------------------------------------------------

STEPS = 3, 1, 2


def feed(cache):
    """What a cache returns after each step, and what it should."""
    keys = [randn(B, H, n, D, seed=n) for n in STEPS]
    values = [randn(B, H, n, D, seed=10 + n) for n in STEPS]
    returned, expected = [], []
    for n in range(len(STEPS)):
        returned.append(tuple(x.clone() for x in cache.append(keys[n].clone(), values[n].clone())))
        expected.append((torch.cat(keys[: n + 1], 2), torch.cat(values[: n + 1], 2)))
    return returned, expected, keys, values


def same(returned, expected):
    pairs = zip(returned, expected, strict=True)
    return all(close(k, good_k) and close(v, good_v) for (k, v), (good_k, good_v) in pairs)


@each("kv_cache")
def test_cache(fn):
    for _ in range(2):  # a second cache is empty
        returned, expected, *_ = feed(fn())
        assert same(returned, expected)


def test_the_note_on_aliasing():
    """Only the one with the note is changed when its input is."""
    for fn in right("kv_cache"):
        cache, k = fn(), randn(B, H, 2, D)
        kept = k.clone()
        cache.append(k, k.clone())
        k.zero_()
        stored, _ = cache.append(kept, kept)
        assert close(stored[:, :, :2], kept) == (fn is not module.CacheByCat)


@cases("kv_cache")
def test_faulty_cache(slug, fn):
    if slug == "cache-wrong-axis":
        cache = fn()
        for n in range(2):
            k, _ = cache.append(randn(B, H, 2, D, seed=n), randn(B, H, 2, D, seed=9))
        assert k.shape in ((2 * B, H, 2, D), (B, 2 * H, 2, D))
        return
    if slug == "cache-shared-between-instances":
        fn.keys, fn.values = [], []
        returned, expected, *_ = feed(fn())
        assert same(returned, expected)
        returned, expected, *_ = feed(fn())
        assert not same(returned, expected)
        fn.keys, fn.values = [], []
        return
    returned, expected, keys, values = feed(fn())
    assert same(returned[:1], expected[:1]) and not same(returned, expected)
    if slug in ("cache-overwrites", "cache-returns-new-only"):
        assert same(returned, zip(keys, values, strict=True))
    elif slug == "cache-order":
        assert close(returned[-1][0], torch.cat(keys[::-1], 2))
    else:
        assert slug == "cache-values-stale" and close(returned[-1][0], expected[-1][0])


# --- grouped queries ------------------------------------------------------------------------------

QUERY_HEADS, KEY_HEADS = 6, 3
QKV = randn(B, 6, T, D), randn(B, 3, S, D, seed=1), randn(B, 3, S, D, seed=2)
MASK = torch.rand(B, 1, T, S, generator=torch.Generator().manual_seed(3)) < 0.6
MASK[..., 0] = True


def grouped(q, k, v, mask=None, **options):
    return mha.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True, **options)


@each("grouped_query_attention")
@pytest.mark.parametrize("mask", [None, MASK], ids=["", "mask"])
@pytest.mark.parametrize("key_heads", [1, 3])
def test_grouped(fn, mask, key_heads):
    q, k, v = QKV
    k, v = k[:, :key_heads], v[:, :key_heads]
    assert close(fn(q, k, v, mask), grouped(q, k, v, mask))
    k, v = randn(B, 6, S, D), randn(B, 6, S, D)
    assert close(fn(q, k, v, mask), grouped(q, k, v, mask))


@cases("grouped_query_attention")
def test_faulty_grouped(slug, fn):
    q, k, v = QKV
    assert not close(fn(q, k, v, MASK), grouped(q, k, v, MASK))
    tiles = [h % KEY_HEADS for h in range(QUERY_HEADS)]
    repeats = [h // 2 for h in range(QUERY_HEADS)]
    expected = {
        "gqa-tiled": lambda: grouped(q, k[:, tiles], v[:, tiles], MASK),
        "gqa-mean": lambda: grouped(q, k.mean(1, True), v.mean(1, True), MASK),
        "gqa-first-head": lambda: grouped(q, k[:, :1], v[:, :1], MASK),
        "gqa-values-tiled": lambda: grouped(q, k[:, repeats], v[:, tiles], MASK),
        "scale-missing": lambda: grouped(q, k, v, MASK, scale=1.0),
        "scale-model-dim": lambda: grouped(q, k, v, MASK, scale=(QUERY_HEADS * D) ** -0.5),
        "mask-ignored": lambda: grouped(q, k, v),
    }[slug]()
    assert close(fn(q, k, v, MASK), expected)


# --- flash ----------------------------------------------------------------------------------------

LONG = randn(B, H, T, D), 3 * randn(B, H, 10, D, seed=1), randn(B, H, 10, D, seed=2)


@each("flash_attention")
@pytest.mark.parametrize("size", [1, 3, 4, 5, 16])
def test_flash(fn, size):
    q, k, v = LONG
    names = [n for n in inspect.signature(fn).parameters if n not in ("q", "k", "v", "Q", "K", "V")]
    sizes = dict.fromkeys((n for n in names if n != "is_causal"), size)
    assert close(fn(q, k, v, **sizes), mha.scaled_dot_product_attention(q, k, v))
    assert close(fn(q, 1e4 * k, v, **sizes), mha.scaled_dot_product_attention(q, 1e4 * k, v), 1e-6)
    assert close(fn(q[0], k[0], v[0]), mha.scaled_dot_product_attention(q[0], k[0], v[0]))
    if "is_causal" in names:
        good = mha.scaled_dot_product_attention(q, k, v, is_causal=True)
        assert close(fn(q, k, v, **sizes, is_causal=True), good)


@cases("flash_attention")
def test_faulty_flash(slug, fn):
    q, k, v = LONG
    good = mha.scaled_dot_product_attention(q, k, v)
    out, one_tile = fn(q, k, v, 4), fn(q, k, v, 10)
    if slug == "flash-overflow":
        assert close(out, good) and not fn(q, 1e4 * k, v, 4).isfinite().all()
        return
    assert not close(out, good)
    assert close(one_tile, good) == (slug not in ("flash-no-normalise", "scale-missing"))
    falling = k.flip(-2) * 0 + torch.linspace(1, 0.1, 10)[:, None].double()  # the largest first
    positive, zeros = q.abs(), torch.zeros_like(k)
    if slug.endswith("no-rescale"):  # right wherever the maximum never grows
        if fn is not module.flash_max_of_tile:
            first = mha.scaled_dot_product_attention(positive, falling, v)
            assert close(fn(positive, falling, v, 4), first)
        assert close(fn(q, zeros, v, 4), mha.scaled_dot_product_attention(q, zeros, v))
    elif slug == "flash-tail-dropped":
        assert close(out, mha.scaled_dot_product_attention(q, k[..., :8, :], v[..., :8, :]))
    elif slug == "flash-tile-softmax":
        parts = zip(k.split(4, -2), v.split(4, -2), strict=True)
        assert close(out, sum(mha.scaled_dot_product_attention(q, *part) for part in parts) / 3)
    elif slug == "flash-no-normalise":
        ones = fn(q, k, torch.ones_like(v), 4)  # the sum
        assert close(out / ones, good)
    else:
        assert slug == "scale-missing"
        assert close(out, mha.scaled_dot_product_attention(q, k, v, scale=1.0))
