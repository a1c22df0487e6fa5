"""The kernels of mha.flash compile for GPUs that are not here, and fit them.

`ahead_of_time.py` compiles, once for all tests, in a process in which Triton's interpreter is off.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"),
        reason="Triton's compiler is for Linux on x86_64",
    ),
]

HERE = Path(__file__).parent
KIB = {75: 64, 80: 163, 86: 99, 90: 227}
"""Shared memory that one program can have, by compute capability: NVIDIA's programming guide."""

PLAN = {
    75: "float16:64:all, bool;float32:64:causal",
    80: "bfloat16:128:causal;bfloat16:64:all, ALiBi;float16:64:causal;float32:128:causal",
    86: "bfloat16:128:all, float;bfloat16:256:all, float",
    90: "bfloat16:64:none;bfloat16:128:causal;bfloat16:128:all, float;float32:64:causal;float16:256:causal",
}
"""What is compiled for which capability, dtype:width:case, as `ahead_of_time.py` takes it."""


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    """What the compiler tells, a dict for each kernel."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    jobs = [f"{capability}:{job}" for capability, jobs in PLAN.items() for job in jobs.split(";")]
    command = [sys.executable, str(HERE / "ahead_of_time.py"), *jobs]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_three_kernels_compile_for_each(notes):
    jobs = sum(len(jobs.split(";")) for jobs in PLAN.values())
    assert len(notes) == 3 * jobs
    assert len({tuple(note[x] for x in ("capability", "dtype", "width", "case", "kernel"))
                for note in notes}) == len(notes)  # fmt: skip


def test_shared_memory_suffices(notes):
    for note in notes:
        assert 0 < note["shared"] <= KIB[note["capability"]] * 1024, note


def test_half_types_take_the_matrix_units(notes):
    """From 8.0 on: Triton's compiler uses none for 7.5, and for float32 they would round."""
    for note in notes:
        if note["dtype"] == "float32" or note["capability"] == 75:
            assert note["mma"] == note["wgmma"] == 0, note
        elif note["capability"] == 90:
            assert note["wgmma"] > 0 and note["mma"] == 0, note
        else:
            assert note["mma"] > 0, note


def test_registers_suffice(notes):
    """Half types, no mask but the causal one, heads up to 128 wide: nothing is spilled.

    But for the gradients of keys and values at width 128 on 9.0: four registers.
    """
    seen = 0
    for note in notes:
        plain = note["case"] in ("none", "causal") and note["dtype"] != "float32"
        if plain and note["width"] <= 128:
            wide = note["capability"] == 90 and note["width"] == 128
            most = 16 if wide and note["kernel"] == "grad_key_value_kernel" else 0
            assert note["stack"] <= most, note
            seen += 1
    assert seen == 12


def test_the_interpreter_must_be_off():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, str(HERE / "ahead_of_time.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "needs TRITON_INTERPRET=0" in done.stderr
