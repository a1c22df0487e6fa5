"""One step of a decoder: a query reads the keys of all that came before.

    python benchmarks/decoding.py                       # half a minute on one idle core
    python benchmarks/decoding.py --lengths 1024 --kv-heads 1 2 8

A step of one text: H query heads, H_kv key heads, S stored keys. All contestants are shown to give
the same output before the clock starts. How time is measured: see measure.py.

Rows of part "attention": attention alone, on keys and values that lie in a buffer of 2 S slots.
    repeat_interleave    each key head is copied for its H / H_kv query heads, then torch's kernel.
    enable_gqa           torch's kernel with its flag.
    packed by hand       the query heads of a key head stand in the T axis; torch's kernel.
    mha                  mha.scaled_dot_product_attention, told of the offset.
Rows of part "layer": the maps and the cache too, for STEPS tokens one after the other, from S - STEPS
stored ones on; a copy of the stored ones is made first, and its time counts. Figures are per token.
    cat, repeat_interleave   keys and values grow by torch.cat, then as above.
    buffer, enable_gqa       they are written into a buffer; torch's kernel with its flag.
    mha, KVCache             mha.MultiHeadAttention with its cache.
Each row:
    malloc     "gives back": as it comes, large pieces go back to the system when free and come anew,
               filled with zeros, at the next step. "keeps": told to keep them. Copies of keys cost
               several times more in the first case, and more or less so by chance.
    ms         median time of a step, milliseconds; low and high are the quartiles.
    speedup    median over the rounds of: time with repeat_interleave / time.
    gbytes     1e9 bytes a second: the stored keys and values, read once a step, by the median time.
"""

import argparse
import copy
import itertools
from collections.abc import Callable

import measure
import torch
import torch.nn.functional as F
from record import save
from torch import Tensor

import mha

STEPS = 64
ABOUT = "One step of a decoder with grouped heads: attention alone, and a layer with its cache."


def attention_calls(options, length: int, kv_heads: int) -> dict[str, Callable]:
    """Attention alone: one query on `length` keys."""
    H, D, G = options.heads, options.head_dim, options.heads // kv_heads
    made = {"device": options.device, "dtype": options.dtype}
    query = torch.randn(1, H, 1, D, **made)
    key, value = torch.randn(2, 1, kv_heads, 2 * length, D, **made)[:, :, :, :length]

    def repeat():
        k, v = (x.repeat_interleave(G, 1) for x in (key, value))  # (1, H, S, D)
        return F.scaled_dot_product_attention(query, k, v)

    def packed():
        groups = query.view(1, kv_heads, G, D)
        return F.scaled_dot_product_attention(groups, key, value).view(1, H, 1, D)

    return {
        "repeat_interleave": repeat,
        "enable_gqa": lambda: F.scaled_dot_product_attention(query, key, value, enable_gqa=True),
        "packed by hand": packed,
        "mha": lambda: mha.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True, q_offset=length - 1
        ),
    }


def layer_calls(options, length: int, kv_heads: int) -> dict[str, Callable]:
    """A layer, STEPS tokens one after the other, the last of them the `length`-th."""
    made = {"device": options.device, "dtype": options.dtype}
    E, G = options.heads * options.head_dim, options.heads // kv_heads
    sizes = {"num_kv_heads": kv_heads, "is_causal": True}
    layer = mha.MultiHeadAttention(E, options.heads, **sizes, **made).eval()
    x = torch.randn(1, length, E, **made)
    before, steps = x[:, : length - STEPS], x[:, length - STEPS :].split(1, 1)
    cache = mha.KVCache.for_module(layer, 1, length)
    layer(before, cache=cache)
    stored = torch.stack(project(layer, before)[1:])  # (2, B, H_kv, S, D)
    buffer = stored.new_zeros(*stored.shape[:-2], length, options.head_dim)
    buffer[..., : length - STEPS, :] = stored

    def grown(token: Tensor, state: dict) -> Tensor:
        query, *new = project(layer, token)
        state["stored"] = torch.cat([state["stored"], torch.stack(new)], -2)
        key, value = (x.repeat_interleave(G, 1) for x in state["stored"])
        return finish(layer, F.scaled_dot_product_attention(query, key, value))

    def buffered(token: Tensor, state: dict) -> Tensor:
        query, key, value = project(layer, token)
        keys, values = state["buffer"]
        size = state["size"] = state["size"] + 1
        keys[:, :, size - 1 : size], values[:, :, size - 1 : size] = key, value
        stored = keys[:, :, :size], values[:, :, :size]
        return finish(layer, F.scaled_dot_product_attention(query, *stored, enable_gqa=True))

    def ours(token: Tensor, state: dict) -> Tensor:
        return layer(token, cache=state["cache"])

    def run(step: Callable, **state) -> Tensor:
        state = copy.deepcopy(state)
        return torch.cat([step(token, state) for token in steps], 1)  # (B, STEPS, E)

    return {
        "cat, repeat_interleave": lambda: run(grown, stored=stored),
        "buffer, enable_gqa": lambda: run(buffered, buffer=buffer, size=length - STEPS),
        "mha, KVCache": lambda: run(ours, cache=cache),
    }


def project(layer: mha.MultiHeadAttention, x: Tensor) -> list[Tensor]:
    """Queries, keys and values of x (B, T, E), in heads: (B, H or H_kv, T, D)."""
    split, H_kv = mha.heads.split_heads, layer.num_kv_heads
    keys = [split(linear(x), H_kv) for linear in (layer.k_proj, layer.v_proj)]
    return [split(layer.q_proj(x), layer.num_heads), *keys]


def finish(layer: mha.MultiHeadAttention, heads: Tensor) -> Tensor:
    """Join the heads and map them: (B, H, T, D) -> (B, T, E)."""
    return layer.out_proj(mha.heads.merge_heads(heads))


@torch.no_grad()
def measure_step(options, malloc: str, part: str, length: int, kv_heads: int) -> list[dict]:
    """All contestants of one part. Returns the rows."""
    torch.manual_seed(options.seed)
    make, steps = (attention_calls, 1) if part == "attention" else (layer_calls, STEPS)
    calls = make(options, length, kv_heads)
    first = next(iter(calls))  # the one that repeats keys
    outputs = {name: call() for name, call in calls.items()}
    for name, output in outputs.items():
        measure.assert_same(name, output, outputs[first])
    samples = measure.in_turn(calls, repeats=options.repeats, device=options.device)
    sizes = {"malloc": malloc, "length": length, "heads": options.heads, "kv_heads": kv_heads}
    sizes |= {"head_dim": options.head_dim, "dtype": str(options.dtype).removeprefix("torch.")}
    stored = 2 * length * kv_heads * options.head_dim * options.dtype.itemsize
    rows = []
    for name, mine in samples.items():
        times = dict(zip(("low", "ms", "high"), measure.spread(mine), strict=True))
        figures = {key: round(1000 * times[key] / steps, 4) for key in ("ms", "low", "high")}
        figures["speedup"] = round(measure.ratio(samples[first], mine), 2)
        figures["gbytes"] = round(stored * steps / times["ms"] / 1e9, 2)
        rows.append({"part": part, **sizes, "contestant": name, **figures, "rounds": len(mine)})
    return rows


def show(rows: list[dict]) -> None:
    """One point as a table."""
    sizes = "{part}: S={length}, H={heads}, H_kv={kv_heads}, D={head_dim}, malloc {malloc}"
    sizes = sizes.format(**rows[0])
    print(f"\n{sizes}\n{'':24}{'ms':>9}{'quartiles':>20}{'speedup':>10}{'GB/s':>8}")
    for row in rows:
        quartiles = f"{row['low']:.4f} to {row['high']:.4f}"
        print(
            f"{row['contestant']:24}{row['ms']:9.4f}{quartiles:>20}{row['speedup']:10.2f}"
            f"{row['gbytes']:8.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=(1024, 8192))
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, nargs="+", default=(2,))
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=25, help="rounds")
    measure.add_options(parser)
    options = measure.parse(parser)
    rows = []
    for malloc in ("gives back", "keeps"):
        if malloc == "keeps" and not measure.keep_memory():
            continue
        for size in itertools.product(("attention", "layer"), options.lengths, options.kv_heads):
            rows += (point := measure_step(options, malloc, *size))
            show(point)
    save("decoding", ABOUT, rows, [options.seed])


if __name__ == "__main__":
    main()
