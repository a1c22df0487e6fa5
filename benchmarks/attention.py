"""Self-attention layers of several libraries side by side: time, rate and memory.

    pip install "mha[peers]"              # Transformers and x-transformers; left out where missing
    python benchmarks/attention.py        # about a quarter of an hour on one idle core
    python benchmarks/attention.py --lengths 128 512 --repeats 5 --only

After its own part it runs decoding.py and memory.py, each of which stands alone too; `--only`
leaves them out. Contestants: see peers.py; all are shown to give the same output, and the same
gradient of the input, before the clock starts. How time and memory are measured: see measure.py.
On CUDA the layers are bfloat16 and a batch holds 16,384 tokens; on the CPU float32, and one text.

Rows of part "layer", one for each (length, causal, mode, contestant):
    mode      "forward" (eval, no gradients) or "forward+backward" (train, gradients of the input
              and all parameters).
    ms        median time of a call, milliseconds; low and high are the quartiles.
    ratio     median over the rounds of: time / time of the fastest contestant that is not mha.
    gflops    1e9 floating-point operations a second: the products a call cannot do without (of a
              causal layer, those on and below the diagonal; backward counts twice forward; what is
              computed again does not count), by the median time.
    share     that rate by the rate of one plain product of matrices, timed in the same rounds.
    mib       memory that a call adds at its highest point, output and gradients included, MiB.
    rounds    how many samples: slow contestants sit out the later rounds.
Rows of part "matmul" hold that plain product: its size, ms, low, high and gflops.
"""

import argparse
import gc
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import measure
import peers
import torch
from record import save
from torch import Tensor

import mha

LENGTHS = (128, 512, 2048, 8192)
MODES = ("forward", "forward+backward")
TOKENS = 16_384  # in a batch on CUDA
ABOUT = "Self-attention layers side by side, forward and backward: time, rate and memory."


def layer_flops(batch: int, length: int, embed_dim: int, causal: bool, mode: str) -> int:
    """Floating-point operations of one call: four maps, scores and weighted sums."""
    pairs = length * (length + 1) // 2 if causal else length * length
    forward = batch * (8 * length * embed_dim**2 + 4 * pairs * embed_dim)
    return forward if mode == "forward" else 3 * forward


def make_source(options, mode: str) -> mha.MultiHeadAttention:
    """The module whose weights all contestants carry; biases are not zero, so that they count."""
    torch.manual_seed(options.seed)
    source = mha.MultiHeadAttention(options.embed_dim, options.heads)
    for name, parameter in source.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return source.to(options.device, options.dtype).train(mode != "forward")


def make_calls(options, length: int, causal: bool, mode: str) -> dict[str, Callable]:
    """A function for each contestant: (output,), or (output, gradient of x, of parameters)."""
    point = peers.Point(make_source(options, mode), length, causal)
    sizes = batch_size(options, length), length, options.embed_dim
    x, upstream = (torch.randn(sizes).to(options.device, options.dtype) for _ in range(2))
    calls = {}
    for name, entry in peers.ENTRIES.items():
        if entry.needs in peers.missing() or (entry.forward_only and mode != "forward"):
            continue
        contestant = entry.make(point)
        count = sum(p.numel() for p in contestant.parameters)
        assert count == sum(p.numel() for p in point.module.parameters()), (name, count)
        calls[name] = _call(contestant, x, upstream, mode)
    return calls


def batch_size(options, length: int) -> int:
    default = max(1, TOKENS // length) if options.device.type == "cuda" else 1
    return options.batch or default


def _call(contestant: peers.Contestant, x: Tensor, upstream: Tensor, mode: str) -> Callable:
    if mode == "forward":

        @torch.no_grad()
        def call():
            return (contestant.call(x),)

        return call
    leaves = [x.requires_grad_(), *contestant.parameters]

    def call():
        output = contestant.call(x)
        return output, *torch.autograd.grad(output, leaves, upstream)

    return call


def try_out(options, calls: dict[str, Callable]) -> tuple[dict, dict]:
    """Call each once: its seconds, its bytes. AssertionError if their results differ."""
    gc.collect()  # leftovers of earlier points
    wanted, seconds, peaks = None, {}, {}
    for name, call in calls.items():
        result, seconds[name], peaks[name] = measure.once(call, options.device)
        got = [x.detach() for x in result[:2]]  # the output, and the gradient of x
        del result
        wanted = wanted or got
        for mine, theirs in zip(wanted, got, strict=True):
            measure.assert_same(name, theirs, mine)
    return seconds, peaks


def measure_point(options, length: int, causal: bool, mode: str) -> list[dict]:
    """All contestants at one length. Returns the rows."""
    calls = make_calls(options, length, causal, mode)
    first, peaks = try_out(options, calls)
    size = options.matmul or (8192 if options.device.type == "cuda" else 1024)
    a, b = (torch.randn(size, size).to(options.device, options.dtype) for _ in range(2))
    calls["matmul"], first["matmul"] = (lambda: a @ b), 0.0
    turns = {"repeats": options.repeats, "budget": options.budget, "first": first}
    samples = measure.in_turn(calls, **turns, device=options.device)
    batch = batch_size(options, length)
    place = {"mode": mode, "causal": causal, "batch": batch, "length": length}
    place |= {"embed_dim": options.embed_dim, "heads": options.heads}
    place |= {"dtype": str(options.dtype).removeprefix("torch.")}
    product = _figures(samples.pop("matmul"), 2 * size**3)
    flops = layer_flops(batch, length, options.embed_dim, causal, mode)
    fastest = min(
        (name for name in samples if not peers.ENTRIES[name].ours),
        key=lambda name: measure.spread(samples[name])[1],
    )
    rows = [{"part": "matmul", **place, "size": size, **product}]
    for name, mine in samples.items():
        figures = _figures(mine, flops)
        figures["ratio"] = round(measure.ratio(mine, samples[fastest]), 3)
        figures["share"] = round(figures["gflops"] / product["gflops"], 3)
        figures["mib"] = None if peaks[name] is None else round(peaks[name] / measure.MIB, 1)
        rows.append({"part": "layer", **place, "contestant": name, **figures})
    return rows


def _figures(samples: list[float], flops: int) -> dict:
    low, middle, high = measure.spread(samples)
    times = {"ms": middle, "low": low, "high": high}
    figures = {name: round(1000 * seconds, 4) for name, seconds in times.items()}
    return {**figures, "gflops": round(flops / middle / 1e9, 3), "rounds": len(samples)}


def show(rows: list[dict]) -> None:
    """One point as a table."""
    product, *layers = rows
    causal = "causal" if product["causal"] else "not causal"
    print(
        f"\nT={product['length']}, B={product['batch']}, {causal}, {product['mode']}; "
        f"matmul {product['gflops']:.0f} GFLOP/s"
    )
    print(f"{'':30}{'ms':>10}{'quartiles':>22}{'ratio':>8}{'GFLOP/s':>10}{'share':>7}{'MiB':>9}")
    for row in sorted(layers, key=lambda row: row["ms"]):
        quartiles = f"{row['low']:.2f} to {row['high']:.2f}"
        print(
            f"{row['contestant']:30}{row['ms']:10.2f}{quartiles:>22}{row['ratio']:8.2f}"
            f"{row['gflops']:10.0f}{row['share']:7.2f}{math.nan if row['mib'] is None else row['mib']:9.1f}"
        )
    sys.stdout.flush()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=15, help="rounds")
    parser.add_argument("--budget", type=float, default=5, help="seconds a contestant and point")
    parser.add_argument("--embed-dim", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--batch", type=int, help="1 on the CPU, 16,384 tokens on CUDA")
    parser.add_argument("--matmul", type=int, help="1024 on the CPU, 8192 on CUDA")
    parser.add_argument("--only", action="store_true", help="without decoding.py and memory.py")
    measure.add_options(parser)
    return measure.parse(parser)


def main() -> None:
    options = parse()
    for package in sorted(peers.missing()):
        print(f'{package} is not installed, and left out: pip install "mha[peers]"')
    for causal, mode in itertools.product((False, True), MODES):
        try_out(options, make_calls(options, 16, causal, mode))  # what libraries set up once
    rows = []
    for length, causal, mode in itertools.product(options.lengths, (False, True), MODES):
        rows += (point := measure_point(options, length, causal, mode))
        show(point)
    save("attention", ABOUT, rows, [options.seed], packages=peers.PACKAGES)
    if not options.only:
        for script in ("decoding.py", "memory.py"):
            command = [sys.executable, Path(__file__).with_name(script)]
            subprocess.run([*command, "--threads", str(options.threads)], check=True)


if __name__ == "__main__":
    main()
