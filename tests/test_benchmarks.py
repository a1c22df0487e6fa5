"""The scripts that compare layers, decoders and memory: in small, and what they recorded."""

import importlib
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mha
from mha import results

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("measure", "peers", "record", "attention", "decoding", "memory")

# what x-transformers does while it is imported
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is dep:DeprecationWarning")


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """The modules of benchmarks/ by name; what they save goes to an empty folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    modules = {name: importlib.import_module(name) for name in SCRIPTS}
    monkeypatch.setattr(modules["record"], "RESULTS", tmp_path)
    monkeypatch.setattr(modules["measure"], "SAMPLE", 1e-4)
    monkeypatch.setattr(modules["measure"].gc, "collect", lambda: None)  # slow beside many modules
    return modules


def run(scripts, monkeypatch, name: str, *options: str) -> dict:
    """Run a script with options; what it saved."""
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", "--device", "cpu", *options])
    scripts[name].main()
    return json.loads((scripts["record"].RESULTS / f"{name}.json").read_text(encoding="utf8"))


TINY_LAYERS = "--lengths 8 17 --repeats 2 --embed-dim 16 --heads 2 --matmul 16 --only".split()


def test_layers_are_timed_at_every_point(scripts, monkeypatch, capsys):
    result = run(scripts, monkeypatch, "attention", *TINY_LAYERS)
    points = list(itertools.product((8, 17), (False, True), scripts["attention"].MODES))
    rows = [row for row in result["rows"] if row["part"] == "layer"]
    found = [(row["length"], row["causal"], row["mode"], row["contestant"]) for row in rows]
    entries, missing = scripts["peers"].ENTRIES, scripts["peers"].missing()
    wanted = [
        (*point, name)
        for point in points
        for name, entry in entries.items()
        if entry.needs not in missing and not (entry.forward_only and point[2] != "forward")
    ]
    assert found == wanted
    for row in rows:
        assert 0 < row["low"] <= row["ms"] <= row["high"]
        assert row["gflops"] > 0 and row["share"] > 0 and row["rounds"] == 2
        assert row["dtype"] == "float32" and row["batch"] == 1
    for point in points:
        here = [row for row, at in zip(rows, found, strict=True) if at[:3] == point]
        peers = [row for row in here if not row["contestant"].startswith("mha")]
        assert 1 in [row["ratio"] for row in peers]
    products = [row for row in result["rows"] if row["part"] == "matmul"]
    assert [(row["length"], row["causal"], row["mode"]) for row in products] == points
    assert {"torch", "numpy"} <= set(result["versions"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in {row["contestant"] for row in rows})
    assert printed.count("is not installed, and left out") == len(missing)


def options(scripts, monkeypatch, *more: str):
    monkeypatch.setattr(sys, "argv", ["attention.py", "--device", "cpu", *TINY_LAYERS, *more])
    return scripts["attention"].parse()


@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("causal", [False, True])
def test_contestants_compute_what_the_reference_does(scripts, monkeypatch, causal, mode):
    sizes = options(scripts, monkeypatch)
    attention = scripts["attention"]
    source, x = attention.make_source(sizes, mode), torch.randn(1, 17, 16)
    source.backend = "reference"
    point = scripts["peers"].Point(source, 17, causal)
    for name, entry in scripts["peers"].ENTRIES.items():
        if entry.needs in scripts["peers"].missing() or entry.forward_only:
            continue
        contestant = entry.make(point)
        output, wanted = contestant.call(x), source(x, is_causal=causal)
        torch.testing.assert_close(output, wanted, msg=lambda m, n=name: f"{n}: {m}")
        assert all(p.requires_grad for p in contestant.parameters)


def test_a_contestant_that_computes_something_else_is_found(scripts, monkeypatch):
    peers = scripts["peers"]
    made = peers.ENTRIES["by hand, fused"].make

    def without_bias(point):
        contestant = made(point)
        with torch.no_grad():
            contestant.parameters[1].zero_()
        return contestant

    monkeypatch.setitem(peers.ENTRIES, "by hand, fused", peers.Entry(without_bias))
    with pytest.raises(AssertionError, match="by hand, fused is off by"):
        scripts["attention"].measure_point(options(scripts, monkeypatch), 8, True, "forward")


def test_a_gradient_that_is_something_else_is_found(scripts, monkeypatch):
    peers = scripts["peers"]
    made = peers.ENTRIES["by hand, fused"].make

    def doubled(point):
        contestant = made(point)
        twice = contestant.call
        call = lambda x: twice(x).detach() + 0 * twice(x)  # noqa: E731
        return contestant._replace(call=call)

    monkeypatch.setitem(peers.ENTRIES, "by hand, fused", peers.Entry(doubled))
    with pytest.raises(AssertionError, match="by hand, fused is off by"):
        scripts["attention"].measure_point(options(scripts, monkeypatch), 8, True, MODES[1])


MODES = ("forward", "forward+backward")


@pytest.mark.parametrize("mode", MODES)
def test_operations_are_those_that_torch_counts(scripts, mode):
    layer = mha.MultiHeadAttention(16, 2, backend="reference")
    x = torch.randn(3, 5, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output = layer(x)
        if mode != "forward":
            output.sum().backward()
    assert scripts["attention"].layer_flops(3, 5, 16, False, mode) == counter.get_total_flops()


def test_a_causal_layer_needs_the_pairs_on_and_below_the_diagonal(scripts):
    flops = scripts["attention"].layer_flops
    attention = [flops(1, 5, 16, causal, "forward") - 8 * 5 * 16**2 for causal in (False, True)]
    assert [count / (4 * 16) for count in attention] == [25, 15]


def test_turns_are_taken_and_the_slow_sit_out(scripts, monkeypatch):
    measure, log = scripts["measure"], []
    seconds = {"fast": 0.1, "slower": 0.14, "slow": 0.4, "slowest": 2.0}
    monkeypatch.setattr(measure, "timer", lambda device: lambda call, number: call())
    calls = {name: lambda name=name: log.append(name) or seconds[name] for name in seconds}
    first = dict.fromkeys(calls, 0.0) | {"slowest": 2.0}
    samples = measure.in_turn(calls, repeats=5, budget=0.8, first=first)
    assert samples == {"fast": [0.1] * 5, "slower": [0.14] * 5, "slow": [0.4] * 2, "slowest": [2.0]}
    quick, all_three = ["fast", "slower"], ["fast", "slower", "slow"]
    warm = [name for name in all_three for _ in range(2)]
    assert log == warm + all_three * 2 + quick * 3
    few = measure.in_turn(calls, repeats=5, budget=0.1, first=first)
    assert {name: len(mine) for name, mine in few.items()} == {
        "fast": 3, "slower": 3, "slow": 1, "slowest": 1
    }  # fmt: skip


def test_spread_and_ratio(scripts):
    measure = scripts["measure"]
    assert measure.spread([5.0, 1.0, 3.0, 2.0, 4.0]) == (2, 3, 4)
    assert measure.spread([7.0]) == (7, 7, 7)
    assert measure.ratio([2.0, 3.0, 40.0], [1.0, 2.0, 4.0]) == 2  # round by round: 2, 1.5, 10


GAUGED = """
import measure, torch
MIB = 1 << 20

def call():
    scratch = torch.ones(24 * MIB // 4)
    del scratch
    return torch.ones(16 * MIB // 4)

torch.ones(30 * MIB // 4)  # from now on malloc keeps pieces up to this size,
pieces = [torch.ones(MIB // 4) for _ in range(64)]
last = torch.ones(1)  # and those below one in use it cannot simply cut off:
del pieces  # the call must not fill them unseen
result, seconds, peak = measure.once(call)
assert result.sum() == 16 * MIB // 4 and seconds > 0
print(peak / MIB, measure.once(lambda: result.sum() + last).peak / MIB)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the gauge is Linux's")
def test_memory_is_what_a_call_adds_at_its_highest_point():
    """In a process of its own, as when it is recorded: what ran before shapes malloc's heap."""
    command = [sys.executable, "-c", GAUGED]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    large, small = map(float, done.stdout.split())
    assert 23 <= large <= 25 and small < 1  # the kernel's own figure is a little behind


def test_a_step_of_a_decoder_is_timed_in_every_way(scripts, monkeypatch):
    monkeypatch.setattr(scripts["decoding"], "STEPS", 4)
    monkeypatch.setattr(scripts["measure"], "keep_memory", lambda: True)  # this process is shared
    sizes = "--lengths 16 33 --heads 4 --kv-heads 1 2 4 --head-dim 8 --repeats 2".split()
    rows = run(scripts, monkeypatch, "decoding", *sizes)["rows"]
    contestants = {
        "attention": ["repeat_interleave", "enable_gqa", "packed by hand", "mha"],
        "layer": ["cat, repeat_interleave", "buffer, enable_gqa", "mha, KVCache"],
    }
    wanted = [
        (*point, name)
        for point in itertools.product(("gives back", "keeps"), contestants, (16, 33), (1, 2, 4))
        for name in contestants[point[1]]
    ]
    names = ("malloc", "part", "length", "kv_heads", "contestant")
    assert [tuple(row[name] for name in names) for row in rows] == wanted
    for row in rows:
        assert 0 < row["low"] <= row["ms"] <= row["high"] and row["gbytes"] >= 0
        assert "repeat_interleave" not in row["contestant"] or row["speedup"] == 1


def test_a_step_that_computes_something_else_is_found(scripts, monkeypatch):
    monkeypatch.setattr(scripts["decoding"], "STEPS", 4)
    append = mha.KVCache.append
    forgetful = lambda cache, key, *rest: append(cache, key.zero_(), *rest)  # noqa: E731
    monkeypatch.setattr(mha.KVCache, "append", forgetful)
    sizes = "--lengths 16 --heads 4 --kv-heads 2 --head-dim 8 --repeats 2".split()
    with pytest.raises(AssertionError, match="mha, KVCache is off by"):
        run(scripts, monkeypatch, "decoding", *sizes)


def test_memory_is_measured_for_every_rule(scripts, monkeypatch):
    memory = scripts["memory"]
    monkeypatch.setattr(scripts["measure"], "apart", lambda function, *args: function(*args))
    monkeypatch.setattr(memory, "measure_import", lambda: {**IMPORT, "rounds": 1})
    sizes = "--lengths 64 512 --heads 2 --head-dim 8".split()
    *rows, last = run(scripts, monkeypatch, "memory", *sizes)["rows"]
    assert last == {**IMPORT, "rounds": 1}
    found = [(row["case"], row["mode"], row["length"]) for row in rows]
    assert len(set(found)) == len(found)
    cases = {case for case, _, _ in found}
    assert {"no mask", "key_mask", "window", "ALiBi, causal", "torch, causal"} <= cases
    assert set(found) == set(itertools.product(cases, MODES, (64, 512)))
    torchs = [row for row in rows if row["case"] in ("torch, no mask", "torch, causal")]
    assert all(row["ratio"] in (1, None) for row in torchs)  # None: nothing that could be seen


IMPORT = {"part": "import", "ms": 1.0, "low": 1.0, "high": 1.0}


def memory_options(scripts, monkeypatch, *more: str):
    arguments = ["memory.py", "--device", "cpu", "--batch", "1", "--heads", "2", *more]
    monkeypatch.setattr(sys, "argv", arguments)
    return scripts["memory"].parse()


def test_each_rule_is_what_its_name_says(scripts, monkeypatch):
    memory, T = scripts["memory"], 40
    sizes = memory_options(scripts, monkeypatch, "--batch", "2")
    q, k, v = torch.randn(3, 2, 2, T, 8)
    outputs = {name: case(q, k, v) for name, (case, _) in memory.make_cases(T, sizes).items()}
    same = [("torch, no mask", "no mask"), ("torch, causal", "causal")]
    for one, other in [*same, ("torch, causal", "torch, causal mask")]:
        torch.testing.assert_close(outputs[one], outputs[other])
    distinct = [name for name in outputs if not name.startswith("torch")]
    distinct.remove("window")  # wider than T here
    for one, other in itertools.combinations(distinct, 2):
        assert not torch.allclose(outputs[one], outputs[other]), (one, other)
    # causal ones: the last key moves the last query alone
    k[:, :, -1] += 1
    for name, (case, causal) in memory.make_cases(T, sizes).items():
        moved = (case(q, k, v) != outputs[name])[:, :, 0].any()
        assert moved != causal or name == "key_mask", name


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the gauge is Linux's")
def test_memory_grows_no_faster_than_the_length(scripts, monkeypatch):
    """Four times the length, at most five times the memory; a mask of T x T has sixteen times."""
    sizes = memory_options(scripts, monkeypatch, "--lengths", "2048", "8192")
    cases = scripts["memory"].make_cases(16, sizes)
    quadratic = []
    for case in cases:
        rows = scripts["measure"].apart(scripts["memory"].measure_case, case, sizes)
        assert [row["mode"] for row in rows] == [mode for mode in MODES for _ in range(2)]
        for short, long in (rows[:2], rows[2:]):
            if long["mib"] > 5 * short["mib"]:
                quadratic.append((case, short["mode"], short["mib"], long["mib"]))
    assert {case for case, *_ in quadratic} == {"torch, causal mask"}, quadratic


@pytest.mark.slow
def test_import_adds_little_to_that_of_torch(scripts):
    assert 0 < scripts["memory"].measure_import(5)["ms"] < 100  # milliseconds


@pytest.fixture(params=["attention", "decoding", "memory"])
def recorded(request):
    return request.param, results.load(request.param)


def test_recorded_figures_hold_together(recorded):
    name, result = recorded
    keys = {
        "attention": ("length", "causal", "mode", "contestant"),
        "decoding": ("malloc", "part", "length", "kv_heads", "contestant"),
        "memory": ("case", "mode", "length"),
    }[name]
    rows = [row for row in result["rows"] if row["part"] not in ("matmul", "import")]
    places = [tuple(row[key] for key in keys) for row in rows]
    assert len(set(places)) == len(places)
    for row in result["rows"]:
        assert "ms" not in row or 0 < row["low"] <= row["ms"] <= row["high"]
        assert all(not isinstance(x, float) or math.isfinite(x) for x in row.values())


def test_recorded_layers_are_complete(scripts):
    result = results.load("attention")
    found = {
        (row["length"], row["causal"], row["mode"], row["contestant"])
        for row in result["rows"]
        if row["part"] == "layer"
    }
    attention, entries = scripts["attention"], scripts["peers"].ENTRIES
    points = itertools.product(attention.LENGTHS, (False, True), MODES, entries)
    wanted = {p for p in points if p[2] == "forward" or not entries[p[3]].forward_only}
    assert found == wanted  # the peers too
    assert set(scripts["peers"].PACKAGES) <= set(result["versions"])
