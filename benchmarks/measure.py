"""Clock and memory gauge of the scripts in this folder.

Time: contestants take turns, round after round, so that a machine that slows down slows them all.
On one thread of a CPU the clock counts processor time, which other programs do not lengthen; on
more threads it counts time that passes; on CUDA the device's own events count.

Memory: what a call adds at its highest point, to what the process (on CUDA: torch) held before.
On Linux the kernel keeps the highest resident size, and writing 5 to /proc/self/clear_refs lets it
start again from the present one. Memory that malloc keeps for later is handed back first, or a
call could fill it unseen. Elsewhere the gauge says None.
"""

import argparse
import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

MIB = 2**20
CLEAR = Path("/proc/self/clear_refs")
SAMPLE = 0.02  # seconds: a sample is as many calls as take about this long


def timer(device: torch.device) -> Callable[[Callable, int], float]:
    """A function (call, number) -> seconds that one of `number` calls in a row takes."""
    if device.type == "cuda":
        return _cuda_seconds
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def seconds(call: Callable, number: int) -> float:
        start = clock()
        for _ in range(number):
            call()
        return (clock() - start) / number

    return seconds


def _cuda_seconds(call: Callable, number: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(number):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / number  # elapsed_time is in milliseconds


def in_turn(
    calls: dict[str, Callable],
    *,
    repeats: int,
    budget: float = math.inf,
    first: dict[str, float] | None = None,
    device: torch.device | None = None,
) -> dict[str, list[float]]:
    """Time all calls in turn, round after round.

    Args:
        calls: name to a function without arguments.
        repeats: rounds, each with a sample of every call.
        budget: seconds after which a call takes part in no further round. It gets three at least,
            unless it is more than 1.5 times as slow as the fastest; such a call, if it takes
            longer than the budget, has its earlier time for its only sample.
        first: seconds of an earlier call of each: one of a second or more needs no warming up.
        device: of the tensors, the CPU by default.
    Returns: for each name its samples, seconds a call.
    """
    seconds = timer(device or torch.device("cpu"))
    took = dict(first or dict.fromkeys(calls, 0.0))
    for name, call in calls.items():
        for _ in range(2):
            took[name] = max(1e-7, took[name] if took[name] >= 1 else seconds(call, 1))
    numbers = {name: math.ceil(SAMPLE / time) for name, time in took.items()}
    least = {name: 3 if time <= 1.5 * min(took.values()) else 0 for name, time in took.items()}
    samples = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for turn in range(repeats):
            for name, call in calls.items():
                if turn < least[name] or (turn + 1) * took[name] <= budget:
                    samples[name].append(seconds(call, numbers[name]))
    finally:
        gc.enable()
    return {name: mine or [took[name]] for name, mine in samples.items()}


def spread(samples: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile; of one sample, that sample."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    return tuple(statistics.quantiles(samples, n=4, method="inclusive"))


def ratio(samples: list[float], others: list[float]) -> float:
    """Median over the rounds of: time / time of the other in that round."""
    return statistics.median(a / b for a, b in zip(samples, others, strict=False))


class Once(NamedTuple):
    """What one call returned, the seconds it took, and the bytes it added at its highest point,
    the result included; None where that cannot be told."""

    result: Any
    seconds: float
    peak: int | None


def once(call: Callable, device: torch.device | None = None) -> Once:
    """Call it once. The peak is right to about a quarter of a MiB."""
    device, results = device or torch.device("cpu"), []
    seconds, cuda = timer(device), device.type == "cuda"
    _start_again(cuda)
    before = _highest(cuda)
    took = seconds(lambda: results.append(call()), 1)
    after = _highest(cuda)
    return Once(results[0], took, None if before is None else after - before)


def _start_again(cuda: bool) -> None:
    """Let the highest point be the present one."""
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR.exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others keep little
        if trim is not None:
            trim(0)
        CLEAR.write_text("5")


def _highest(cuda: bool) -> int | None:
    """The highest point since, bytes."""
    if cuda:
        return torch.cuda.max_memory_allocated()
    if not CLEAR.exists():
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def assert_same(name: str, output: Tensor, wanted: Tensor) -> None:
    """AssertionError if the outputs differ by more than their dtype excuses."""
    tolerance = 1e-4 if output.dtype == torch.float32 else 5e-2
    off = ((output - wanted).abs().max() / wanted.abs().max()).item()
    assert off < tolerance, f"{name} is off by {off:.1e}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all scripts share."""
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=device)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="bfloat16 on CUDA")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line, give dtype its value, and set the threads."""
    options = parser.parse_args()
    default = "bfloat16" if options.device.type == "cuda" else "float32"
    options.dtype = getattr(torch, options.dtype or default)
    torch.set_num_threads(options.threads)
    return options


def apart(function: Callable, *arguments):
    """`function(*arguments)`, run in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def keep_memory() -> bool:
    """Let malloc keep what it gets, for good: no call pays again for memory it gave back.

    By default glibc hands large pieces back as soon as they are free, and the next call waits
    until the system has filled new ones with zeros. Returns whether malloc understood.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # as in malloc.h
    return bool(option(trim_threshold, 2**31 - 1) and option(mmap_threshold, 32 * MIB))
