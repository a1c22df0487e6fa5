"""Tiles, warps and stages for the kernels of mha.flash: python benchmarks/gpu.py --tune

Each candidate is compiled by a process of its own beforehand, then held against what the kernels
give with the tiles of `mha.flash.kernels.blocks`, then timed. With --out, rows go to
FOLDER/gpu_tune.json:
    kind, width, case      which kernel, D, and "none" or "causal".
    queries, keys, warps, stages   the candidate; `chosen` if it is the one that `blocks` names.
    ms, low, high, rounds, tflops  of the forward pass, or of the whole backward pass, in which the
                           other kernel has the tiles of `blocks`. See gpu.py for what is counted.
    error                  instead of these, where it does not fit the device or is wrong.
On the CPU the kernels need Triton's interpreter: TRITON_INTERPRET=1.
"""

import importlib
import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context

import gpu_cases
import gpu_clock
import record
import torch
from torch import Tensor

from mha._rules import Rules

ABOUT = "Tiles, warps and stages of the kernels of mha.flash on one GPU."
KINDS = ("forward", "grad_query", "grad_key_value")
SHORT = 256  # queries and keys of a call that only compiles


def candidates(kind: str, options) -> list:
    """The `Blocks` to try for a kernel."""
    kernels = _kernels()
    if options.smoke:
        return [kernels.Blocks(16, 16, 4, 1), kernels.Blocks(32, 16, 4, 1)]
    wide, narrow = (64, 128), (32, 64)
    if kind == "forward":
        grid = itertools.product(wide, (32, 64, 128), (4, 8), (2, 3, 4))
    elif kind == "grad_query":
        grid = itertools.product(wide, narrow, (4, 8), (1, 2, 3))
    else:
        grid = itertools.product(narrow, wide, (4, 8), (1, 2, 3))
    return [kernels.Blocks(*sizes) for sizes in grid]


def _kernels():
    """The kernels, imported where they are used: triton with them."""
    return importlib.import_module("mha.flash.kernels")


def chosen(kind: str, width: int, options):
    """The `Blocks` that the package takes on this device."""
    kernels, cuda = _kernels(), options.device.type == "cuda"
    capability = torch.cuda.get_device_capability(options.device) if cuda else (0, 0)
    return kernels.blocks(kind, width, options.dtype, capability)


def prepare(kind: str, case: gpu_cases.Case, operands: list[Tensor]) -> Callable:
    """A function of a cut (`Blocks`) that returns what the pass with this cut of this kernel gives:
    the output, or the three gradients."""
    kernels = _kernels()
    *inputs, upstream = operands
    given = Rules(**case.rules), case.width**-0.5, None
    if kind == "forward":
        return lambda cut: kernels.forward(*inputs, *given, cut=cut)[:1]
    saved = kernels.forward(*inputs, *given)

    def call(cut):
        cuts = (cut, None) if kind == "grad_query" else (None, cut)
        return kernels.backward(upstream, *inputs, *saved, *given, cuts=cuts)

    return call


def compile_one(job: tuple, options) -> None:
    """Run one candidate once on a few tokens: the compiled kernel stays in Triton's cache."""
    width, causal, kind, cut = job
    case = gpu_cases.plain(options, SHORT, width, causal)._replace(batch=1)
    try:
        prepare(kind, case, gpu_cases.make_operands(case, options, options.seed))(cut)
    except Exception:  # it fails again, and is noted, where it is timed
        return


def compile_all(groups: list[tuple], options) -> None:
    """`compile_one` for all candidates of all groups, by up to 12 processes."""
    jobs = [(*group, cut) for group in groups for cut in candidates(group[-1], options)]
    workers = min(12, os.cpu_count() or 1)
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(partial(compile_one, options=options), jobs))
    except BrokenProcessPool:  # one took its process down; what is missing is compiled later
        return


def tune(width: int, causal: bool, kind: str, options) -> list[dict]:
    """A row for each candidate of a kernel, the fastest first, those with an error last."""
    case = gpu_cases.plain(options, options.special_length, width, causal)
    own, first = chosen(kind, width, options), int(kind != "forward")
    operands = gpu_cases.make_operands(case, options, options.seed)
    wanted, call = gpu_cases.truths(case, operands), prepare(kind, case, operands)
    passes, failed = {}, {}
    for cut in dict.fromkeys([own, *candidates(kind, options)]):
        try:
            gpu_cases.poison(operands)
            worst = max(gpu_cases.distances(case, call(cut), wanted, first))
            gpu_cases.check("off_backward" if first else "off", worst, options.dtype)
            passes[cut] = gpu_clock.Pass(partial(call, cut))
        except Exception as error:  # too large for the device, most often
            failed[cut] = {"error": gpu_clock.words(error)}
    samples = gpu_clock.in_turn(passes, options.rounds, options.device)
    work = case.cost(options.dtype.itemsize, kind != "forward")
    timed = {cut: gpu_clock.figures(mine, work) for cut, mine in samples.items()}
    ordered = dict(sorted(timed.items(), key=lambda item: item[1]["ms"])) | failed
    place = {"part": "tune", "kind": kind, "width": width, "case": case.name}
    return [
        {**place, **cut._asdict(), "chosen": cut == own, **found} for cut, found in ordered.items()
    ]


def run(options) -> list[dict]:
    """All kernels, widths and cases within the budget; shown, and saved with --out."""
    start, rows = time.monotonic(), [gpu_clock.describe(options.device)]
    groups = list(itertools.product(options.widths[::-1], (False, True), KINDS))
    if options.device.type == "cuda":
        compile_all(groups, options)
    for width, causal, kind in groups:
        place = {"kind": kind, "width": width, "case": "causal" if causal else "none"}
        if time.monotonic() - start > options.budget:
            rows.append({"part": "left out", **place})
            continue
        try:
            new = tune(width, causal, kind, options)
        except Exception as error:  # such as a forward pass that the backward kernels lack
            new = [{"part": "failed", **place, "error": gpu_clock.words(error)}]
        rows += new
        save(options, rows)
        show(new, time.monotonic() - start)
    return rows


def save(options, rows: list[dict]) -> None:
    if options.out is None:
        return
    options.out.mkdir(parents=True, exist_ok=True)
    record.RESULTS = options.out
    record.save("gpu_tune", ABOUT, rows, [options.seed], packages=("triton",))


def show(rows: list[dict], seconds: float) -> None:
    """The ten fastest, the chosen one, and how many failed."""
    first, errors = rows[0], [row for row in rows if "error" in row]
    print(f"\n{first['kind']}, D={first['width']}, {first['case']}   ({seconds:.0f} s)")
    for place, row in enumerate(row for row in rows if "error" not in row):
        if place < 10 or row["chosen"]:
            cut = "queries {queries:4} keys {keys:4} warps {warps} stages {stages}".format(**row)
            mark = "  <- chosen" if row["chosen"] else ""
            print(f"  {cut} {row['ms']:10.3f} ms {row['tflops']:9.4g} TFLOP/s{mark}", flush=True)
    if errors:
        print(f"  {len(errors)} failed, such as {errors[0]['error']}", flush=True)
