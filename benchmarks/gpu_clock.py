"""Clock of gpu.py, what the device is, and its two ceilings.

A sample is a run of calls between two events of the device that takes about measure.SAMPLE
seconds; contestants take turns, round after round. Forward passes are captured in a CUDA graph
where that works, so that the time is the device's and not Python's. The graph of a backward pass
is made before the clock starts, anew for each call. If operands could stay in the cache, calls go
round several sets of them.
"""

import csv
import gc
import math
import shutil
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

import measure
import torch
from record import machine

from mha.cost import Cost, Machine

SMI = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "temperature.gpu",
)
MOST = 50  # calls in a sample: each backward pass keeps a graph


class Pass(NamedTuple):
    """`run()`, or `run(before())` with the clock started between, is `calls` calls."""

    run: Callable
    before: Callable[[], Any] | None = None
    calls: int = 1


def sample(timed: Pass, number: int, device: torch.device) -> float:
    """Seconds a call, of `number` runs in a row."""
    seconds = measure.timer(device)
    if timed.before is None:
        return seconds(timed.run, number) / timed.calls
    ready = [timed.before() for _ in range(number)]
    return seconds(lambda: timed.run(ready.pop()), number) / timed.calls


def in_turn(passes: dict[str, Pass], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Time all in turn, round after round, after two calls to warm up: name to its samples."""
    numbers = {}
    for name, timed in passes.items():
        took = max(1e-7, min(sample(timed, 1, device) for _ in range(2)) * timed.calls)
        numbers[name] = min(MOST, math.ceil(measure.SAMPLE / took))
    samples = {name: [] for name in passes}
    gc.disable()
    try:
        for _ in range(rounds):
            for name, timed in passes.items():
                samples[name].append(sample(timed, numbers[name], device))
    finally:
        gc.enable()
    return samples


def round_trip(calls: list[Callable], device: torch.device) -> tuple[Pass, bool]:
    """All calls one after the other, as one replay of a CUDA graph; whether that worked."""

    @torch.no_grad()
    def run():
        for call in calls:
            call()

    if device.type == "cuda":
        replay = _captured(run)
        if replay is not None:
            return Pass(replay, calls=len(calls)), True
    return Pass(run, calls=len(calls)), False


def _captured(run: Callable) -> Callable | None:
    """A replay of what `run` launches, or None where it cannot be captured."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is set up once must not be captured
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()

        def replay(kept=run):  # its operands must stay where they are
            graph.replay()

        replay()
        torch.cuda.synchronize()
    except RuntimeError:  # what cannot be captured says so by one
        torch.cuda.synchronize()
        return None
    return replay


def sets_needed(moved: int, device: torch.device) -> int:
    """How many sets of operands of `moved` bytes are four times the device's last cache."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, math.ceil(4 * cache / moved))


def smi() -> dict[str, int | str]:
    """What nvidia-smi says of the first device: driver, clocks in MHz, watts, degrees; or {}."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(SMI)}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return parse_smi(answer)


def parse_smi(answer: str) -> dict[str, int | str]:
    """The first line of its table, by name; {} if it says anything else, such as an error."""
    lines = list(csv.reader(answer.splitlines(), skipinitialspace=True))
    if not lines or len(lines[0]) != len(SMI):
        return {}
    numbers = [int(x) if x.isdecimal() else x for x in lines[0]]
    return dict(zip(SMI, numbers, strict=True))


def describe(device: torch.device) -> dict:
    """The row of part "device"."""
    row = {"part": "device", "name": machine(), "cuda": torch.version.cuda}
    row["cudnn"] = torch.backends.cudnn.version()
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        row |= {"name": found.name, "capability": f"{found.major}.{found.minor}"}
        row["multiprocessors"] = found.multi_processor_count
        row["l2_mib"] = found.L2_cache_size // measure.MIB
        row["memory_mib"] = found.total_memory // measure.MIB
    return row | smi()


def ceilings(options) -> tuple[Machine, list[dict]]:
    """The roofline, measured: one large product of square matrices, and one large copy.

    Returns the machine, and the rows of parts "matmul" and "copy".
    """
    size, device = options.matmul, options.device
    a, b = (torch.randn(size, size, device=device).to(options.dtype) for _ in range(2))
    source = torch.randn(options.copy_mib * measure.MIB // 4, device=device)
    target = torch.empty_like(source)
    works = {"matmul": Cost(2 * size**3), "copy": Cost(0, 2 * source.nbytes)}
    calls = {"matmul": lambda: a @ b, "copy": lambda: target.copy_(source)}
    passes = {name: Pass(call) for name, call in calls.items()}
    for _ in range(options.warm_up):  # clocks rise under load
        in_turn(passes, 1, device)
    samples, rows = in_turn(passes, options.rounds, device), []
    for name, work in works.items():
        row = {"part": name, "size": size} if name == "matmul" else {"part": name}
        if name == "copy":
            row["mib"] = source.nbytes // measure.MIB
        rows.append({**row, "dtype": words(options.dtype), **figures(samples[name], work)})
    rates = rows[0]["tflops"] * 1e12, rows[1]["gbs"] * 1e9
    return Machine(flops_per_second=rates[0], bytes_per_second=rates[1]), rows


def figures(samples: list[float], work: Cost, roof: Machine | None = None) -> dict:
    """ms, low and high (quartiles), rounds; TFLOP/s and GB/s by the median; under a roof, the
    intensity in FLOPs per byte, and the rate's share of what the roof allows there."""
    low, middle, high = measure.spread(samples)
    times = {"ms": middle, "low": low, "high": high}
    found = {name: round(1000 * seconds, 5) for name, seconds in times.items()}
    found["rounds"] = len(samples)
    rate = work.flops / middle
    if work.flops:
        found["tflops"] = float(f"{rate / 1e12:.4g}")
    if work.bytes:
        found["gbs"] = float(f"{work.bytes / middle / 1e9:.4g}")
    if roof is not None:
        found["intensity"] = round(work.intensity, 1)
        found["share"] = float(f"{rate / roof.rate(work.intensity):.3g}")
    return found


def words(thing) -> str:
    """A dtype's name; of an error its class and what it says first."""
    if isinstance(thing, torch.dtype):
        return str(thing).removeprefix("torch.")
    lines = str(thing).strip().splitlines() or [""]
    return f"{type(thing).__name__}: {lines[0]}"[:200]
