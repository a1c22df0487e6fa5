"""Peak memory of the `sdpa` backend, rule by rule and length by length, beside torch's own kernel;
and how long `import mha` takes.

    python benchmarks/memory.py                         # four minutes on one idle core
    python benchmarks/memory.py --lengths 1024 4096

Each case runs in a process of its own. How memory is measured: see measure.py.

Rows of part "memory", one for each (case, mode, length): self-attention of `batch` examples with
`heads` heads of width `head_dim`.
    mode     "forward" (no gradients) or "forward+backward" (gradients of query, key and value).
    mib      memory that the call adds at its highest point, MiB: output, gradients and masks that
             are made on the way, not the inputs.
    ratio    mib / that of torch's kernel, causal where the case is, in this mode at this length.
The row of part "import": milliseconds of processor time that `import mha` adds after `import torch`, median, and the
quartiles, of `rounds` fresh processes.
"""

import argparse
import functools
import math
import subprocess
import sys
from collections.abc import Callable

import measure
import torch
import torch.nn.functional as F
from record import save
from torch import Tensor

import mha

MODES = ("forward", "forward+backward")
ABOUT = "Peak memory of the sdpa backend by rule and length, beside torch's kernel; import time."
TORCH, TORCH_CAUSAL = "torch, no mask", "torch, causal"
CLOCK = "time.process_time()"  # which other programs do not lengthen
IMPORT = f"import time, torch; start = {CLOCK}; import mha; print({CLOCK} - start)"


def _torch(causal: bool) -> Callable:
    return functools.partial(F.scaled_dot_product_attention, is_causal=causal)


def _torch_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    return F.scaled_dot_product_attention(q, k, v, mask)


def _mha(**rules) -> Callable:
    return functools.partial(mha.scaled_dot_product_attention, **rules, backend="sdpa")


def make_cases(length: int, options) -> dict[str, tuple[Callable, bool]]:
    """Name to a function of (query, key, value), and whether it is causal."""
    batch, device = options.batch, options.device
    real = torch.full((batch,), length)
    real[::2] -= length // 8  # the end of every second example is padding
    key_mask = mha.masks.padding(real, max_len=length).to(device)  # (B, S)
    offsets = torch.arange(batch, device=device)  # (B,)
    return {
        TORCH: (_torch(False), False),
        TORCH_CAUSAL: (_torch(True), True),
        "torch, causal mask": (_torch_mask, True),
        "no mask": (_mha(), False),
        "causal": (_mha(is_causal=True), True),
        "key_mask": (_mha(key_mask=key_mask), False),
        "key_mask, causal": (_mha(key_mask=key_mask, is_causal=True), True),
        "window": (_mha(window=(255, 0)), True),
        "q_offset, causal": (_mha(is_causal=True, q_offset=-1), True),
        "q_offset of each, causal": (_mha(is_causal=True, q_offset=offsets), True),
        "ALiBi, causal": (_mha(attn_mask=mha.positions.ALiBi(options.heads), is_causal=True), True),
    }


def measure_case(name: str, options) -> list[dict]:
    """One case, all modes and lengths, in this process. Returns the rows, still without ratio."""
    torch.set_num_threads(options.threads)
    rows = []
    for mode in MODES:
        make_call(name, options.lengths[0], mode, options)()  # what libraries set up once
        for length in options.lengths:
            peak = measure.once(make_call(name, length, mode, options), options.device).peak
            sizes = {"batch": options.batch, "heads": options.heads, "head_dim": options.head_dim}
            place = {"part": "memory", "case": name, "mode": mode, "length": length, **sizes}
            rows.append({**place, "mib": None if peak is None else round(peak / measure.MIB, 2)})
    return rows


def make_call(name: str, length: int, mode: str, options) -> Callable:
    """The case as a function without arguments, which returns all that it computes."""
    case, _ = make_cases(length, options)[name]
    torch.manual_seed(options.seed)
    sizes = 4, options.batch, options.heads, length, options.head_dim
    *operands, upstream = torch.randn(sizes).to(options.device, options.dtype)
    if mode == "forward":
        return torch.no_grad()(lambda: case(*operands))
    operands = [x.clone().requires_grad_() for x in operands]

    def call():
        output = case(*operands)
        return output, *torch.autograd.grad(output, operands, upstream)

    return call


def add_ratios(rows: list[dict], options) -> None:
    """Compare each row with torch's kernel, causal where the case is."""
    causal = {name: causal for name, (_, causal) in make_cases(16, options).items()}
    torchs = {(row["case"], row["mode"], row["length"]): row["mib"] for row in rows}
    for row in rows:
        beside = TORCH_CAUSAL if causal[row["case"]] else TORCH
        beside = torchs[beside, row["mode"], row["length"]]
        row["ratio"] = round(row["mib"] / beside, 2) if beside else None


def measure_import(rounds: int = 11) -> dict:
    """Processor time of `import mha` after `import torch`, in fresh processes. Returns the row."""
    command = [sys.executable, "-c", IMPORT]
    runs = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(rounds + 1)
    ]
    low, middle, high = measure.spread(runs[1:])  # the first may compile to bytecode
    times = {"ms": middle, "low": low, "high": high}
    times = {name: round(1000 * seconds, 1) for name, seconds in times.items()}
    return {"part": "import", **times, "rounds": rounds}


def show(rows: list[dict]) -> None:
    """A table for each mode: cases down, lengths across."""
    lengths = sorted({row["length"] for row in rows})
    for mode in MODES:
        print(
            f"\n{mode}, MiB\n{'':28}"
            + "".join(f"{'T=' + str(T):>10}" for T in lengths)
            + "   ratio"
        )
        cases = {}
        for row in rows:
            if row["mode"] == mode:
                cases.setdefault(row["case"], []).append(row)
        for case, points in cases.items():
            figures = "".join(f"{point['mib'] or math.nan:10.1f}" for point in points)
            print(f"{case:28}{figures}{points[-1]['ratio'] or math.nan:8.2f}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    lengths = (1024, 2048, 4096, 8192, 16384)
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    measure.add_options(parser)
    return measure.parse(parser)


def main() -> None:
    options = parse()
    rows = []
    for case in make_cases(16, options):
        rows += measure.apart(measure_case, case, options)
    add_ratios(rows, options)
    show(rows)
    row = measure_import()
    print("\nimport mha adds {ms} ms ({low} to {high}) to import torch".format(**row))
    save("memory", ABOUT, [*rows, row], [options.seed])


if __name__ == "__main__":
    main()
