"""The script that measures on a GPU: all but the device's own clock, in small, on the CPU."""

import contextlib
import importlib
import inspect
import itertools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import close, oracle, to_numpy

import mha
from mha import reference, results
from mha.cost import Cost, Machine

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("measure", "peers", "record", "attention", "gpu_cases", "gpu_clock", "gpu_tune", "gpu")
CPU = torch.device("cpu")
ABSENT = {"SDPA cuDNN", "SDPA efficient"}  # on the CPU


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """The modules of benchmarks/ by name; what they save goes to an empty folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    modules = {name: importlib.import_module(name) for name in SCRIPTS}
    monkeypatch.setattr(modules["record"], "RESULTS", tmp_path / "results")
    monkeypatch.setattr(modules["measure"], "SAMPLE", 1e-4)
    return SimpleNamespace(**modules)


@pytest.fixture
def run(scripts, monkeypatch, tmp_path):
    """Run the script with options: its exit status, and what it saved."""

    def run(*options, name="gpu"):
        device = ("--device", "cpu", "--out", str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py", "--smoke", *device, *options])
        status = scripts.gpu.main()
        return status, json.loads((tmp_path / f"{name}.json").read_text(encoding="utf8"))

    return run


@pytest.fixture
def options(scripts, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke", "--device", "cpu"])
    return scripts.gpu.parse()


ROOF = Machine(flops_per_second=1e9, bytes_per_second=1e8)


def check_rows(scripts, rows):
    """What holds of every result, whether measured here or on a GPU."""
    ceiling = {row["part"]: row for row in rows if row["part"] in ("matmul", "copy")}
    roof = Machine(ceiling["matmul"]["tflops"] * 1e12, ceiling["copy"]["gbs"] * 1e9)
    assert rows[0]["part"] == "device" and rows[0]["name"]
    timed = [row for row in rows if "contestant" in row and "error" not in row]
    for row in timed:
        assert 0 < row["low"] <= row["ms"] <= row["high"] and row["rounds"] > 0
        assert all(not isinstance(x, float) or math.isfinite(x) for x in row.values())
        assert row["tflops"] > 0
    places = ("part", "case", "mode", "batch", "length", "size", "width", "contestant")
    names = [tuple(row.get(key) for key in places) for row in timed]
    assert len(set(names)) == len(names)
    for row in timed:
        if row["part"] == "module":
            continue
        itemsize = getattr(torch, row["dtype"]).itemsize
        limit = scripts.gpu_cases.TOLERANCES[getattr(torch, row["dtype"])]
        error = "off" if row["mode"] == "forward" else "off_backward"
        assert 0 <= row[error] < limit * (1 if error == "off" else 2)
        B, H, H_kv, T, S, D = (
            row[key] for key in ("batch", "heads", "key_heads", "length", "size", "width")
        )
        passes = 1 if row["mode"] == "forward" else 2
        moved = passes * itemsize * B * D * (2 * H * T + 2 * H_kv * S)
        assert row["gbs"] == pytest.approx(moved / row["ms"] / 1e6, rel=0.02)
        if row["part"] in ("attention", "decode"):
            flops = 4 * B * H * T * S * D * (0.5 if row["case"] == "causal" else 1)
            flops *= 1 if row["mode"] == "forward" else 2.5
            assert row["tflops"] == pytest.approx(flops / row["ms"] / 1e9, rel=0.02)
            assert row["intensity"] == pytest.approx(flops / moved, rel=0.02, abs=0.05)
        allowed = roof.rate(row["tflops"] / row["gbs"] * 1000) / 1e12
        assert row["share"] == pytest.approx(row["tflops"] / allowed, rel=0.02)


@pytest.mark.slow
def test_every_point_is_measured(scripts, run, options, capsys):
    status, result = run()
    rows = result["rows"]
    assert status == 0 and result["seeds"] == [0] and "torch" in result["versions"]
    assert result["command"] == "python benchmarks/gpu.py --smoke --device cpu"
    check_rows(scripts, rows)
    assert {row["contestant"] for row in rows if "error" in row} == ABSENT
    assert not [row for row in rows if row["part"] in ("failed", "left out")]
    ours, kernels = {"mha flash", "mha auto"}, {"SDPA flash"}
    wanted = {}
    for T, case in itertools.product((16, 32), ("none", "causal")):
        wanted["attention", case, T, "forward"] = ours | kernels | {"flex"}
        wanted["attention", case, T, "backward"] = ours | kernels
    specials = {"key mask": 32, "window": 32, "causal, q_offset of each": 8, "causal, softcap": 32}
    for case, T in specials.items():
        others = set() if "softcap" in case else {"SDPA, mask"}
        wanted["rules", case, T, "forward"] = ours | others | {"flex"}
        wanted["rules", case, T, "backward"] = ours | others
    wanted["decode", "decode", 1, "forward"] = ours | kernels | {"flex"}
    for case, mode in itertools.product(("none", "causal"), ("forward", "forward+backward")):
        wanted["module", case, 16, mode] = set(scripts.gpu.MODULES)
    found, places = {}, ("part", "case", "length", "mode")
    for row in rows:
        if "contestant" in row and "error" not in row:
            place = tuple(row[key] for key in places)
            found.setdefault(place, set()).add(row["contestant"])
    assert found == wanted
    for place in wanted:
        here = [r for r in rows if tuple(r.get(k) for k in places) == place and "ms" in r]
        others = [row for row in here if not row["contestant"].startswith("mha")]
        if others:
            assert min(others, key=lambda row: row["ms"])["ratio"] == 1
        assert all(("ratio" in row) == bool(others) for row in here)
    for row in rows:
        if row.get("contestant") == "mha auto" and row["part"] != "module":
            assert (row["took"] == "sdpa") == ("softcap" not in row["case"])
        if row.get("mode") == "backward":
            assert "mib" in row and "graph" not in row
    printed = capsys.readouterr().out
    assert all(name in printed for name in scripts.gpu.points(options))


@pytest.mark.skipif("gpu" not in results.names(), reason="no figures of a GPU are recorded")
def test_recorded_figures_hold_together(scripts):
    result = results.load("gpu")
    check_rows(scripts, result["rows"])
    assert result["rows"][0]["name"] == result["machine"]
    assert "--smoke" not in result["command"]
    assert result["rows"][0]["capability"]  # a GPU


def test_without_a_gpu_it_says_so(scripts, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        scripts.gpu.main()
    assert stop.value.code == 2 and "--smoke" in capsys.readouterr().err


def test_sizes_on_a_gpu_are_those_of_the_usual_comparison(scripts, monkeypatch):
    """16,384 tokens, H D = 2048, T from 1k to 16k, D 64 and 128; what is asked for comes first."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cuda", "--dtype", "float16"])
    options = scripts.gpu.parse()
    assert options.dtype == torch.float16 and options.out == scripts.record.RESULTS
    options.device = CPU  # for the masks of the special cases
    points = scripts.gpu.points(options)
    cases = [point.keywords["case"] for point in points.values() if "case" in point.keywords]
    plain = [case for case in cases if case.name in ("none", "causal")]
    found = {(case.length, case.width, case.name) for case in plain}
    lengths = (1024, 2048, 4096, 8192, 16_384)
    assert found == set(itertools.product(lengths, (64, 128), ("none", "causal")))
    for case in plain:
        assert case.heads * case.width == 2048 and case.batch * case.length == 16_384
        assert case.size == case.length and case.key_heads == case.heads
    assert list(points)[:2] == ["attention T=16384 D=128 none", "attention T=16384 D=128 causal"]
    rules = {case.name: case.rules for case in cases}
    assert rules["window"] == {"window": (255, 0)} and rules["causal, softcap"]["softcap"] == 30
    steps = [case for case in cases if case.name == "decode"]
    assert {case.size for case in steps} == {1024, 4096, 16_384, 65_536}
    assert {(case.heads, case.key_heads, case.length) for case in steps} == {(32, 8, 1)}
    widest = plain[0].cost(2, backward=False)
    assert widest == Cost(4 * 16_384**2 * 2048, 4 * 16_384 * 2048 * 2)
    assert plain[1].cost(2, backward=True).flops == 5 * 16_384**2 * 2048


def every_case(scripts, options):
    cases = scripts.gpu_cases
    plain = [cases.plain(options, 16, 16, causal) for causal in (False, True)]
    return [*plain, *cases.special(options), cases.decoding(options, 16, 2)]


def test_shares_masks_and_flex_say_the_same(scripts, options):
    """The part of the pairs that counts is that of the mask; flex's function is that mask."""
    options.tokens = 64  # two examples
    for case in every_case(scripts, options):
        mask = scripts.gpu_cases.dense_mask(case, CPU)
        everything = torch.ones(case.batch, 1, case.length, case.size, dtype=torch.bool)
        mask = everything if mask is None else mask & everything
        share = case.share if "softcap" not in case.name and case.name != "causal" else None
        assert share is None or mask.double().mean().item() == pytest.approx(share), case.name
        mask_mod, _ = case.flex
        if mask_mod is None:
            assert mask.all()
            continue
        b, i, j = torch.meshgrid(
            *(torch.arange(n) for n in (case.batch, case.length, case.size)), indexing="ij"
        )
        assert torch.equal(mask_mod(b, None, i, j)[:, None].expand_as(mask), mask), case.name


def test_the_definition_is_that_of_the_reference(scripts, options, monkeypatch):
    monkeypatch.setattr(scripts.gpu_cases, "ROWS", 5)  # several pieces, and a shorter last one
    options.tokens = 64
    for case in every_case(scripts, options):
        operands = scripts.gpu_cases.make_operands(case, options, 0)
        wanted = scripts.gpu_cases.truths(case, operands)
        assert set(wanted) == {(0, 0), (case.batch - 1, case.key_heads - 1)}
        rules = case.rules | {"enable_gqa": True}
        arrays = [x.double().numpy() for x in operands]
        query, key, value, upstream = arrays
        output = oracle(*operands[:3], **rules)
        gradients = reference.attention_backward(upstream, query, key, value, **to_numpy(rules))
        group = case.heads // case.key_heads
        for (b, h), truth in wanted.items():
            asking, asked = slice(h * group, (h + 1) * group), slice(h, h + 1)
            places = (asking, asking, asked, asked)
            whole = (output, *map(torch.from_numpy, gradients))
            for mine, theirs, heads in zip(truth, whole, places, strict=True):
                close(mine, theirs[b : b + 1, heads], 1e-12, case.name)


def test_contestants_agree_in_half_precision(scripts, options):
    """The tolerances leave room for what rounding does, and for little more."""
    for dtype in (torch.bfloat16, torch.float16):
        options.dtype, options.flex = dtype, False
        case = scripts.gpu_cases.plain(options, 32, 16, causal=True)
        operands = scripts.gpu_cases.make_operands(case, options, 0)
        wanted = scripts.gpu_cases.truths(case, operands)
        found = scripts.gpu_cases.contestants(case, options)
        for name in ("mha flash", "mha auto", "SDPA flash"):
            note = scripts.gpu_cases.agreement(case, found[name], operands, wanted, True)
            limit = scripts.gpu_cases.TOLERANCES[dtype]
            assert limit / 50 < note["off"] < limit
            assert limit / 50 < note["off_backward"] < 2 * limit


def test_memory_is_poisoned_before_a_contestant_is_asked(scripts, options, monkeypatch):
    """So that what it leaves unwritten is not what another one wrote."""
    cases, log, made = scripts.gpu_cases, [], torch.full_like
    case = cases.plain(options, 16, 16, False)
    operands = cases.make_operands(case, options, 0)
    wanted, contestant = cases.truths(case, operands), cases.contestants(case, options)["mha auto"]
    watched = contestant._replace(call=lambda *x: log.append("call") or contestant.call(*x))
    monkeypatch.setattr(torch, "full_like", lambda x, fill: log.append(fill) or made(x, fill))
    cases.agreement(case, watched, operands, wanted, False)
    assert log[-1] == "call" and len(log) == 5 and all(map(math.isnan, log[:-1]))


def flawed(kind):
    """Attention, but for one mistake."""
    attend = mha.scaled_dot_product_attention

    def call(query, key, value, **rules):
        if kind == "one key more":
            rules = rules | {"q_offset": 1}
        output = attend(query, key, value, **rules)
        if kind == "a head unwritten":
            output = torch.cat([output[:, :-1], torch.empty_like(output[:, -1:])], dim=1)
        if kind == "NaN":
            output = (
                output * torch.where(torch.arange(output.shape[-2]) == 3, math.nan, 1.0)[:, None]
            )
        if kind == "gradient":  # a tenth too large
            output = output + 0.1 * (output - output.detach())
        return output

    return call


@pytest.mark.parametrize("kind", ["one key more", "a head unwritten", "NaN", "gradient"])
def test_a_wrong_contestant_is_not_timed(scripts, options, monkeypatch, kind):
    options.flex = False
    made = scripts.gpu_cases.contestants

    def contestants(case, options):
        found = made(case, options)
        call = flawed(kind)
        wrong = scripts.gpu_cases.Contestant(lambda q, k, v: call(q, k, v, **case.rules))
        return found | {"mha flash": wrong}

    monkeypatch.setattr(scripts.gpu_cases, "contestants", contestants)
    case = scripts.gpu_cases.plain(options, 32, 16, causal=True)
    rows = scripts.gpu.attention_point(options, ROOF, case)
    mine = [row for row in rows if row["contestant"] == "mha flash"]
    assert len(mine) == 1 and "ms" not in mine[0]
    which = "off_backward" if kind == "gradient" else "off"
    assert mine[0]["error"].startswith(f"Wrong: {which} by ")
    others = {row["contestant"] for row in rows if "ms" in row}
    assert others == {"mha auto", "SDPA flash"}


def test_a_wrong_module_is_not_timed(scripts, options, monkeypatch):
    made = scripts.peers.ENTRIES["mha, fused"].make

    def doubled(point):
        contestant = made(point)
        with torch.no_grad():
            contestant.parameters[0].mul_(1.01)
        return contestant

    monkeypatch.setitem(scripts.peers.ENTRIES, "mha, fused", scripts.peers.Entry(doubled))
    rows = scripts.gpu.module_point(options, ROOF, 16, True, "forward+backward")
    wrong = {row["contestant"]: row["error"] for row in rows if "error" in row}
    assert set(wrong) == {"mha, fused", "mha flash, fused"}
    assert all(text.startswith("Wrong: off by") for text in wrong.values())
    assert {row["contestant"] for row in rows if "ms" in row} == {"mha", "by hand, fused"}


def test_operations_of_the_module_and_ratio_to_the_one_by_hand(scripts, options, monkeypatch):
    flash, log = importlib.import_module("mha.attention")._flash, []
    attend = flash.attend
    monkeypatch.setattr(flash, "attend", lambda *a, **k: log.append(1) or attend(*a, **k))
    rows = scripts.gpu.module_point(options, ROOF, 16, False, "forward")
    assert [row["contestant"] for row in rows] == list(reversed(scripts.gpu.MODULES))
    assert rows[0]["ratio"] == 1.0 and log  # one of them does take flash
    for row in rows:
        flops = 2 * (8 * 16 * 32**2 + 4 * 16 * 16 * 32)  # two texts of 16 tokens
        assert row["tflops"] == pytest.approx(flops / row["ms"] / 1e9, rel=0.02)


def tiny(points):
    """Stands in for `gpu.points`: name to a function without arguments."""
    return lambda options: {name: lambda options, roof, f=f: f() for name, f in points.items()}


ROW = {"part": "attention", "contestant": "mha flash", "mode": "forward"}
ROW |= {"ms": 1.0, "low": 0.9, "high": 1.1, "tflops": 1.0}


def test_after_the_budget_points_are_left_out_and_said_to_be(scripts, run, monkeypatch):
    monkeypatch.setattr(scripts.gpu, "points", tiny({"a": lambda: [ROW], "b": lambda: [ROW]}))
    status, result = run("--budget", "0")
    assert status == 0
    assert [row["part"] for row in result["rows"]] == ["device", "matmul", "copy"] + [
        "left out"
    ] * 2
    assert [row["point"] for row in result["rows"][3:]] == ["a", "b"]


def test_a_killed_run_leaves_what_it_has(scripts, run, monkeypatch, tmp_path):
    def killed():
        raise KeyboardInterrupt

    monkeypatch.setattr(scripts.gpu, "points", tiny({"a": lambda: [ROW], "b": killed}))
    with pytest.raises(KeyboardInterrupt):
        run()
    rows = json.loads((tmp_path / "gpu.json").read_text(encoding="utf8"))["rows"]
    assert [row["part"] for row in rows] == ["device", "matmul", "copy", "attention"]


def test_a_point_that_fails_is_noted_and_the_next_is_measured(scripts, run, monkeypatch):
    def failing():
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(scripts.gpu, "points", tiny({"a": failing, "b": lambda: [ROW]}))
    status, result = run()
    assert status == 1
    failed, measured = result["rows"][3:]
    assert failed == {"part": "failed", "point": "a", "error": "RuntimeError: CUDA out of memory."}
    assert measured == ROW


def test_only_an_error_of_ours_counts(scripts, run, monkeypatch):
    theirs = {"part": "attention", "contestant": "SDPA cuDNN", "error": "RuntimeError: no"}
    monkeypatch.setattr(scripts.gpu, "points", tiny({"a": lambda: [theirs]}))
    assert run()[0] == 0
    mine = theirs | {"contestant": "mha flash"}
    monkeypatch.setattr(scripts.gpu, "points", tiny({"a": lambda: [mine]}))
    assert run()[0] == 1


def test_turns_are_taken_and_graphs_are_made_before_the_clock(scripts, monkeypatch):
    clock, log = scripts.gpu_clock, []
    monkeypatch.setattr(scripts.measure, "SAMPLE", 1.0)

    def seconds(call, number):
        log.append("clock")
        for _ in range(number):
            call()
        return {"a": 0.4, "b": 0.3}[log[-1][0]]

    monkeypatch.setattr(scripts.measure, "timer", lambda device: seconds)
    passes = {
        "a": clock.Pass(lambda: log.append("a"), calls=2),
        "b": clock.Pass(lambda made: log.append(made), lambda: log.append("make") or "b"),
    }
    samples = clock.in_turn(passes, 2, CPU)
    assert samples == {"a": [0.2] * 2, "b": [0.3] * 2}  # seconds a call
    warm = ["clock", "a"] * 2 + ["make", "clock", "b"] * 2
    turn = ["clock", *"aaa", *["make"] * 4, "clock", *"bbbb"]  # about one second each
    assert log == warm + turn * 2


def test_rounds_go_over_all_sets(scripts):
    log = []
    calls = [lambda n=n: log.append((n, torch.is_grad_enabled())) for n in range(3)]
    timed, graph = scripts.gpu_clock.round_trip(calls, CPU)
    timed.run()
    assert (timed.calls, graph, log) == (3, False, [(n, False) for n in range(3)])


class FakeCuda:
    """What torch.cuda's part in a capture is made of; a launch while capturing may be refused."""

    def __init__(self, monkeypatch, refuse=False):
        self.log, self.capturing, self.refuse = [], False, refuse
        names = ("Stream", "current_stream", "stream", "CUDAGraph", "graph", "synchronize")
        for name in names:
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def Stream(self):
        return SimpleNamespace(wait_stream=lambda other: self.log.append("wait"))

    current_stream = Stream

    def stream(self, stream):
        return contextlib.nullcontext()

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextlib.contextmanager
    def graph(self, graph):
        self.capturing = True
        yield
        self.capturing = False

    def synchronize(self):
        self.log.append("synchronize")

    def launch(self):
        if self.capturing and self.refuse:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.log.append("captured" if self.capturing else "run")


def test_a_forward_pass_is_captured_once_it_is_warm(scripts, monkeypatch):
    cuda = FakeCuda(monkeypatch)
    timed, graph = scripts.gpu_clock.round_trip([cuda.launch] * 2, torch.device("cuda"))
    assert graph and timed.calls == 2
    warm = ["wait", *["run"] * 6, "wait"]
    assert cuda.log == [*warm, "captured", "captured", "replay", "synchronize"]
    timed.run()
    assert cuda.log[-1] == "replay"


def test_what_cannot_be_captured_is_run(scripts, monkeypatch):
    cuda = FakeCuda(monkeypatch, refuse=True)
    timed, graph = scripts.gpu_clock.round_trip([cuda.launch], torch.device("cuda"))
    assert not graph
    cuda.capturing = False
    timed.run()
    assert cuda.log[-2:] == ["synchronize", "run"]


def test_what_is_called_of_cuda_exists(scripts):
    """Names and arguments, as far as a machine without a GPU can tell."""
    assert {"stream"} <= set(inspect.signature(torch.cuda.graph.__init__).parameters)
    assert callable(torch.cuda.CUDAGraph.replay) and callable(torch.cuda.Stream.wait_stream)
    assert callable(torch.cuda.Event.elapsed_time) and callable(torch.cuda.synchronize)
    stub = Path(torch._C.__file__).parent / "_C" / "__init__.pyi"
    fields = stub.read_text(encoding="utf8").split("class _CudaDeviceProperties:")[1][:600]
    used = ("name", "major", "minor", "multi_processor_count", "total_memory", "L2_cache_size")
    assert all(f"{name}:" in fields for name in used)
    assert torch.version.cuda is None or isinstance(torch.version.cuda, str)


def test_operands_that_the_cache_could_hold_come_in_several_sets(scripts, monkeypatch):
    properties = SimpleNamespace(L2_cache_size=50 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    needed = scripts.gpu_clock.sets_needed
    assert needed(2**28, torch.device("cuda")) == 1  # 256 MiB: four tensors of 16k tokens
    assert needed(2**22, torch.device("cuda")) == 50
    assert needed(2**10, CPU) == 1


def test_backward_passes_go_round_the_sets(scripts, options, monkeypatch):
    monkeypatch.setattr(scripts.gpu_clock, "sets_needed", lambda moved, device: 3)
    options.flex = False
    seen = {False: [], True: []}
    made = scripts.gpu.gpu_cases.contestants

    def contestants(case, options):
        watched = made(case, options)["SDPA flash"]

        def call(query, key, value):
            seen[query.requires_grad].append(query[0, 0, 0, 0].item())
            return watched.call(query, key, value)

        return {"SDPA flash": scripts.gpu_cases.Contestant(call)}

    monkeypatch.setattr(scripts.gpu_cases, "contestants", contestants)
    case = scripts.gpu_cases.plain(options, 16, 16, causal=False)
    rows = scripts.gpu.attention_point(options, ROOF, case)
    assert [row["mode"] for row in rows] == ["forward", "backward"]
    for log in seen.values():  # without gradients, and with
        assert len(set(log)) == 3


def test_nvidia_smi_is_read(scripts, monkeypatch):
    answer = "580.159.03, 1980, 3201, 1980, 693.52, 41\n570.1, 345, 1, 1, 1.0, 30\n"
    read = scripts.gpu_clock.parse_smi(answer)
    assert read["driver_version"] == "580.159.03" and read["clocks.sm"] == 1980
    assert (read["clocks.mem"], read["power.draw"], len(read)) == (3201, "693.52", 6)
    assert scripts.gpu_clock.parse_smi("No devices were found\n") == {}
    assert scripts.gpu_clock.parse_smi("") == {}
    monkeypatch.setattr(scripts.gpu_clock.shutil, "which", lambda name: None)
    assert scripts.gpu_clock.smi() == {}


def test_figures_by_hand(scripts):
    """A median of 2 s for 8 GFLOP and 4 GB, where the roof is the lower of 10 GFLOP/s and 3 GB/s."""
    roof = Machine(flops_per_second=10e9, bytes_per_second=3e9)
    found = scripts.gpu_clock.figures([3.0, 2.0, 1.0], Cost(8 * 10**9, 4 * 10**9), roof)
    assert (found["ms"], found["low"], found["high"], found["rounds"]) == (2000, 1500, 2500, 3)
    assert (found["tflops"], found["gbs"], found["intensity"]) == (0.004, 2.0, 2.0)
    assert found["share"] == 0.667  # 4 of 2 * 3 GFLOP/s
    bare = scripts.gpu_clock.figures([2.0], Cost(8 * 10**9))
    assert set(bare) == {"ms", "low", "high", "rounds", "tflops"}


@pytest.mark.slow
def test_tiles_are_tried(scripts, run, capsys):
    kernels = importlib.import_module("mha.flash.kernels")
    status, result = run("--tune", name="gpu_tune")
    rows = [row for row in result["rows"] if row["part"] == "tune"]
    assert status == 0 and not [row for row in result["rows"] if "error" in row]
    groups = itertools.product(("none", "causal"), scripts.gpu_tune.KINDS)
    own = kernels.blocks("forward", 16, torch.float32, (0, 0))
    cuts = {own, *scripts.gpu_tune.candidates("forward", SimpleNamespace(smoke=True))}
    for case, kind in groups:
        here = [row for row in rows if (row["case"], row["kind"]) == (case, kind)]
        assert {tuple(row[key] for key in own._fields) for row in here} == cuts
        assert [row["ms"] for row in here] == sorted(row["ms"] for row in here)
        assert [tuple(r[key] for key in own._fields) for r in here if r["chosen"]] == [own]
        flops = 4 * 2 * 32 * 32 * 16 * (0.5 if case == "causal" else 1)
        flops *= 1 if kind == "forward" else 2.5
        for row in here:
            assert row["tflops"] == pytest.approx(flops / row["ms"] / 1e9, rel=0.02)
    assert capsys.readouterr().out.count("<- chosen") == 6


def test_tiles_that_are_wrong_or_do_not_fit_are_not_timed(scripts, options, monkeypatch):
    kernels = importlib.import_module("mha.flash.kernels")
    wrong, large = kernels.Blocks(16, 16, 4, 1), kernels.Blocks(32, 16, 4, 1)
    made = kernels.forward

    def forward(*args, cut=None):
        if cut == large:
            raise MemoryError("out of resource: shared memory")
        output, *rest = made(*args, cut=cut)
        return (output * 1.01 if cut == wrong else output, *rest)

    monkeypatch.setattr(kernels, "forward", forward)
    good, *failed = scripts.gpu_tune.tune(16, True, "forward", options)
    assert good["chosen"] and good["ms"] > 0
    assert all("ms" not in row for row in failed)
    errors = [row["error"] for row in failed]
    assert errors[0].startswith("Wrong: off by")
    assert errors[1] == "MemoryError: out of resource: shared memory"


def test_candidates_are_compiled_for_what_is_timed(scripts, options, monkeypatch):
    """A short call has the heads and widths of the timed one; its failure is nobody's business."""
    kernels = importlib.import_module("mha.flash.kernels")
    seen = []
    monkeypatch.setattr(scripts.gpu_tune, "SHORT", 32)
    monkeypatch.setattr(kernels, "forward", lambda q, *_, cut: seen.append((q.shape, cut)))
    scripts.gpu_tune.compile_one((16, True, "forward", "cut"), options)
    assert seen == [((1, 2, 32, 16), "cut")]
    options.smoke = False
    for kind in scripts.gpu_tune.KINDS:
        cuts = scripts.gpu_tune.candidates(kind, options)
        assert len(set(cuts)) == len(cuts) >= 24


def test_a_candidate_goes_to_its_kernel(scripts, options, monkeypatch):
    kernels, log = importlib.import_module("mha.flash.kernels"), []
    monkeypatch.setattr(kernels, "forward", lambda *_, cut=None: log.append(cut) or (0, 0, 0))
    monkeypatch.setattr(kernels, "backward", lambda *_, cuts: log.append(cuts))
    case = scripts.gpu_cases.plain(options, 16, 16, False)
    operands = scripts.gpu_cases.make_operands(case, options, 0)
    for kind in scripts.gpu_tune.KINDS:
        scripts.gpu_tune.prepare(kind, case, operands)("cut")
    assert log == ["cut", None, ("cut", None), None, (None, "cut")]
