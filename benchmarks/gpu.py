"""Attention on one GPU: kernels side by side, what only ours has, the module, decoding, rooflines.

    python benchmarks/gpu.py                  # about six minutes on an H100 or H200
    python benchmarks/gpu.py --budget 200     # the most important points first, then it stops
    python benchmarks/gpu.py --out FOLDER     # writes FOLDER/gpu.json instead of results/gpu.json
    python benchmarks/gpu.py --tune           # tiles, warps and stages of our kernels: gpu_tune.py
    python benchmarks/gpu.py --smoke          # tiny, on any machine; writes only to --out

The file is written anew after each point, so that a run that is stopped leaves what it has. Each
contestant's output and gradients are held against the definition in float64 before the clock
starts, on two heads; one that is wrong, or fails, has a row with an "error" and no figures.
Contestants: gpu_cases.py. Clock and ceilings: gpu_clock.py.

Rows, each with its "part":
    device       what it is; driver, clocks (MHz), power (W), temperature as nvidia-smi says.
    matmul       a product of square matrices: size, ms, tflops. It is the roof's flat part.
    copy         a copy from device memory to device memory: mib, ms, gbs (read and written bytes).
                 It is the roof's slope.
    attention    16k tokens, H D = 2048 (the comparison of Dao 2024, section 4.1), T and D varied.
    rules        rules for which torch's function has no flag.
    decode       one query a head on `size` stored keys, four query heads to a key head.
    module       the layer of width E, bare, and with one product for its three maps.
    failed       a point that broke off, and why. "left out": a point after the budget's end.
Of the last five that are timed, each row is a contestant in a mode ("forward", "backward", and for
the module "forward+backward"):
    ms, low, high    median and quartiles of a call over `rounds` rounds, milliseconds.
    tflops           1e12 FLOPs a second: of attention 4 B H T S D forward, half of it where causal
                     (otherwise the pairs that the rules let see each other), 2.5 times as many
                     backward, forward not counted (Dao 2024, section 4.1); of the module, as
                     attention.py counts.
    gbs              1e9 bytes a second, of those that must move: forward query, key, value and
                     output, backward these and the gradients of all four. See mha.cost.flash.
    intensity        FLOPs per byte by these counts.
    share            the rate's share of the roof there: the lower of flat part and slope.
    ratio            median over the rounds of: time / time of the fastest that is not ours.
    graph            whether a forward pass was timed as a CUDA graph, without Python.
    took             which backend "auto" chose.
    off, off_backward   |error| / |definition|, the largest over two heads; and of the gradients.
    mib              memory that forward and backward together add at their highest point, MiB.
    mhz              the clock of the multiprocessors right after the point, where known.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attention
import gpu_cases
import gpu_clock
import gpu_tune
import measure
import peers
import record
import torch

import mha

ABOUT = "Attention on one GPU: kernels, rules, decoding and layers beside torch's; the roofline."
MODULES = {"mha": None, "mha, fused": None, "mha flash, fused": "flash", "by hand, fused": None}
SMOKE = {
    "lengths": [16, 32], "widths": [16], "embed_dim": 32, "tokens": 32, "special_length": 32,
    "window": 8, "decode_lengths": [16], "decode_batches": [1], "decode_heads": [4, 1],
    "module_lengths": [16], "matmul": 32, "copy_mib": 1, "rounds": 2, "warm_up": 1,
}  # fmt: skip


def attention_point(options, roof, case, part="attention", backward=True) -> list[dict]:
    """All contestants in one case, forward and backward. Returns the rows."""
    operands = gpu_cases.make_operands(case, options, options.seed)
    wanted = gpu_cases.truths(case, operands)
    more = gpu_clock.sets_needed(sum(x.nbytes for x in operands), options.device) - 1
    others = [gpu_cases.make_operands(case, options, options.seed + 1 + n) for n in range(more)]
    place = {"part": part, **case.place(), "dtype": gpu_clock.words(options.dtype)}
    passes, notes, rows = {"forward": {}, "backward": {}}, {}, []
    for name, contestant in gpu_cases.contestants(case, options).items():
        try:
            note = gpu_cases.agreement(case, contestant, operands, wanted, backward)
            found = _passes(contestant, [operands, *others], note, options.device)
        except Exception as error:  # whatever one does, the others are timed
            rows.append({**place, "contestant": name, "error": gpu_clock.words(error)})
            continue
        if name == "mha auto":
            grouped = case.heads != case.key_heads
            choice = mha.explain(*operands[:3], **case.rules, enable_gqa=grouped)
            note["took"] = choice.backend
        for mode, timed in found.items():
            passes[mode][name] = timed
        notes[name] = note
    for mode, timed in passes.items():
        work = case.cost(options.dtype.itemsize, mode == "backward")
        rows += _timed(options, roof, {**place, "mode": mode}, timed, work, notes)
    return rows


def _passes(contestant, sets: list, note: dict, device) -> dict[str, gpu_clock.Pass]:
    """Forward, and backward where `note` says that it was checked."""
    calls = [partial(contestant.call, *operands[:3]) for operands in sets]
    forward, note["graph"] = gpu_clock.round_trip(calls, device)
    if "off_backward" not in note:
        return {"forward": forward}
    peak = measure.once(partial(gpu_cases.both, contestant.call, sets[0]), device).peak
    note["mib"] = None if peak is None else round(peak / measure.MIB, 1)
    turns = itertools.cycle(sets)

    def before():
        *inputs, upstream = next(turns)
        leaves = [x.detach().requires_grad_() for x in inputs]
        return contestant.call(*leaves), leaves, upstream

    backward = gpu_clock.Pass(lambda made: torch.autograd.grad(*made), before)
    return {"forward": forward, "backward": backward}


def _timed(options, roof, place: dict, passes: dict, work, notes: dict) -> list[dict]:
    """A row for each contestant of one mode."""
    samples = gpu_clock.in_turn(passes, options.rounds, options.device)
    clock = gpu_clock.smi().get("clocks.sm") if options.device.type == "cuda" else None
    others = {name: mine for name, mine in samples.items() if not _ours(name)}
    fastest = min(others, key=lambda name: measure.spread(others[name])[1], default=None)
    hidden = {"backward": ("graph", "off"), "forward": ("mib", "off_backward")}
    hidden = hidden.get(place["mode"], ())
    rows = []
    for name, mine in samples.items():
        row = {**place, "contestant": name, **gpu_clock.figures(mine, work, roof)}
        if fastest is not None:
            row["ratio"] = round(measure.ratio(mine, others[fastest]), 3)
        row |= {key: x for key, x in notes.get(name, {}).items() if key not in hidden}
        rows.append(row | ({} if clock is None else {"mhz": clock}))
    return rows


def _ours(name: str) -> bool:
    return name.startswith("mha")


def module_point(options, roof, length: int, causal: bool, mode: str) -> list[dict]:
    """The layer, as it is and with one product for its maps, beside one written by hand."""
    source = attention.make_source(options, mode)
    batch = max(1, options.tokens // length)
    draw = torch.Generator(options.device).manual_seed(options.seed)
    x, upstream = (
        torch.randn(
            batch, length, options.embed_dim,
            generator=draw, device=options.device, dtype=options.dtype,
        )
        for _ in range(2)
    )  # fmt: skip
    work = attention.layer_flops(batch, length, options.embed_dim, causal, mode)
    place = {"part": "module", "mode": mode, "case": "causal" if causal else "none"}
    place |= {"batch": batch, "length": length, "embed_dim": options.embed_dim}
    place |= {"heads": options.heads, "dtype": gpu_clock.words(options.dtype)}
    point = peers.Point(source, length, causal)
    passes, rows, first = {}, [], None
    for name, backend in reversed(MODULES.items()):  # the one by hand is what they are held against
        try:
            entry = peers.ENTRIES[name.replace(" flash", "")]
            contestant = entry.make(point)
            if backend is not None:
                contestant.call.backend = backend
            run = _layer(contestant, x, upstream, mode)
            results = [y.detach() for y in run()[:2]]
            first = first or results
            worst = max(map(gpu_cases.off, results, first))
            if not worst < 2 * gpu_cases.TOLERANCES[options.dtype]:
                raise gpu_cases.Wrong(f"off by {worst:.1e}")
            passes[name] = gpu_clock.Pass(run)
        except Exception as error:  # as above
            rows.append({**place, "contestant": name, "error": gpu_clock.words(error)})
    return rows + _timed(options, None, place, passes, mha.cost.Cost(work), {})


def _layer(contestant, x, upstream, mode: str) -> Callable:
    """A call: (output,), or (output, gradient of x, those of the parameters)."""
    if mode == "forward":
        return torch.no_grad()(lambda: (contestant.call(x),))
    leaves = [x.detach().requires_grad_(), *contestant.parameters]

    def run():
        output = contestant.call(leaves[0])
        return output, *torch.autograd.grad(output, leaves, upstream)

    return run


def points(options) -> dict[str, Callable]:
    """Name to a function of (options, roof) that returns rows; what matters most comes first."""
    by_length = sorted(options.lengths, reverse=True)
    found = {}

    def add_attention(lengths, widths):
        for T, D, causal in itertools.product(lengths, widths, (False, True)):
            case = gpu_cases.plain(options, T, D, causal)
            name = f"attention T={T} D={D} {case.name}"
            found[name] = partial(attention_point, case=case)

    add_attention(by_length[:1], options.widths[-1:])
    modes = ("forward", "forward+backward")
    for T, causal, mode in itertools.product(options.module_lengths, (False, True), modes):
        sizes = {"length": T, "causal": causal, "mode": mode}
        found[f"module T={T} {'causal' if causal else 'none'} {mode}"] = partial(
            module_point, **sizes
        )
    add_attention(by_length[:1], options.widths[:-1])
    for case in gpu_cases.special(options):
        found[f"rules {case.name}"] = partial(attention_point, case=case, part="rules")
    for S, B in itertools.product(options.decode_lengths, options.decode_batches):
        case = gpu_cases.decoding(options, S, B)
        more = {"part": "decode", "backward": False}
        found[f"decode S={S} B={B}"] = partial(attention_point, case=case, **more)
    for width in options.widths[::-1]:
        add_attention(by_length[1:], [width])
    return found


def run(options) -> list[dict]:
    """All points within the budget, each saved and shown as soon as it is measured."""
    start, rows = time.monotonic(), [gpu_clock.describe(options.device)]
    roof, ceilings = gpu_clock.ceilings(options)
    rows += ceilings
    show("device", rows)
    for name, point in points(options).items():
        if time.monotonic() - start > options.budget:
            rows.append({"part": "left out", "point": name})
            save(options, rows)
            continue
        try:
            new = point(options, roof)
        except Exception as error:  # such as memory that does not suffice: go on with the next
            new = [{"part": "failed", "point": name, "error": gpu_clock.words(error)}]
        rows += new
        save(options, rows)
        show(f"{name}   ({time.monotonic() - start:.0f} s)", new)
    return rows


def save(options, rows: list[dict]) -> None:
    if options.out is None:
        return
    options.out.mkdir(parents=True, exist_ok=True)
    record.RESULTS = options.out
    record.save("gpu", ABOUT, rows, [options.seed], packages=("triton",))


def show(name: str, rows: list[dict]) -> None:
    """One point as a table."""
    print(f"\n{name}")
    for row in rows:
        if "error" in row:
            print(f"  {row.get('contestant', row['part'])}: {row['error']}")
            continue
        if "ms" not in row:
            print("  " + ", ".join(f"{key} {x}" for key, x in row.items() if key != "part"))
            continue
        spread = f"{row['low']:.3f} to {row['high']:.3f}"
        rates = [f"{row[key]:9.1f} {unit}" if key in row else " " * (10 + len(unit))
                 for key, unit in (("tflops", "TFLOP/s"), ("gbs", "GB/s"))]  # fmt: skip
        shares = "".join(f"  {key} {row[key]}" for key in ("share", "ratio", "mib") if key in row)
        name = f"{row.get('contestant', row['part'])}, {row.get('mode', '')}"
        print(f"  {name:32}{row['ms']:10.3f} ms {spread:>20}{''.join(rates)}{shares}")
    sys.stdout.flush()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",  # --dtype has float16 here
    )
    parser.add_argument("--budget", type=float, default=420, help="seconds; no point starts later")
    parser.add_argument(
        "--out", type=Path, help="folder for gpu.json; benchmarks/results if left out"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument(
        "--no-flex", dest="flex", action="store_false", help="it is slow to compile"
    )
    parser.add_argument("--tune", action="store_true", help="only try tiles for our kernels")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to try the script")
    fixed = {
        "embed_dim": 2048, "tokens": 16_384, "special_length": 4096, "window": 256,
        "decode_lengths": [1024, 4096, 16_384, 65_536], "decode_batches": [16, 1],
        "decode_heads": [32, 8], "module_lengths": [4096, 1024], "matmul": 8192,
        "copy_mib": 2048, "warm_up": 10,
    }  # fmt: skip
    parser.set_defaults(**fixed)
    measure.add_options(parser)
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="bfloat16 on CUDA"
    )
    options = measure.parse(parser)
    place = {"--out", str(options.out), f"--out={options.out}"}
    sys.argv = [x for x in sys.argv if x not in place]  # no part of what made the figures
    if options.smoke:
        vars(options).update(SMOKE)
    elif options.device.type != "cuda":
        parser.error("no CUDA device; --smoke tries the script without one")
    elif options.out is None and not options.tune:
        options.out = record.RESULTS
    options.heads = options.embed_dim // options.widths[-1]  # of the module
    return options


def main() -> int:
    """0 if all of ours are right; 1 if one has an error, or a point failed."""
    options = parse()
    if options.tune:
        rows = gpu_tune.run(options)
        return int(not any("ms" in row for row in rows))
    rows = run(options)
    return int(any("error" in row and _ours(row.get("contestant", "mha")) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
