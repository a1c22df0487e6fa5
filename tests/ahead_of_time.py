"""Compile the kernels of mha.flash for GPUs that are not here: python ahead_of_time.py [JOB ...]

A job is capability:dtype:width:case, such as "90:bfloat16:128:causal"; `cases` names the cases, and
"*" means all.

Runs in a process of its own, since Triton's interpreter must be off. A kernel is launched as in a
real call, but for the last step: what would be started on a GPU is compiled for it instead. Prints
one line of JSON for each kernel.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from mha._rules import Rules
from mha.flash import kernels
from mha.positions import ALiBi

KERNELS = "forward_kernel", "grad_query_kernel", "grad_key_value_kernel"
DEFAULT = [f"{capability}:bfloat16:{width}:*" for capability in (80, 90) for width in (64, 128)]
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Compiled:
    """Stands in for a kernel: compiles it for the arguments of a launch, and notes what came out."""

    def __init__(self, kernel, capability: int, notes: list[dict]):
        self.kernel, self.capability, self.notes = kernel, capability, notes

    def __getitem__(self, grid):
        return self._launch

    def _launch(self, *args, **options):
        target = GPUTarget("cuda", self.capability, 32)
        backend = make_backend(target)
        binder = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, specialization, options = binder(*args, debug=False, **options)
        packed = self.kernel._pack_args(backend, options, bound, specialization, options)
        options, signature, constants, attributes = packed
        source = ASTSource(self.kernel, signature, constants, attributes)
        made = triton.compile(source, target=target, options=options.__dict__)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(made.asm["cubin"])
            file.flush()
            usage = subprocess.run(
                [CUOBJDUMP, "--dump-resource-usage", file.name],
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
        self.notes.append({
            "kernel": self.kernel.fn.__name__,
            "capability": self.capability,
            "shared": made.metadata.shared,  # bytes of shared memory
            "registers": int(re.search(r"REG:(\d+)", usage)[1]),
            "stack": int(re.search(r"STACK:(\d+)", usage)[1]),  # bytes of registers spilled
            "wgmma": made.asm["ptx"].count("wgmma.mma_async"),
            "mma": made.asm["ptx"].count("mma.sync"),
        })  # fmt: skip


def cases(batch, heads, length, size):
    """Name -> rules and softcap: together they take every branch of the kernels."""
    key_mask = torch.ones(batch, size, dtype=torch.bool)
    each = torch.zeros(batch, dtype=torch.int64)
    bias = torch.zeros(heads, length, size)
    return {
        "none": (Rules(), None),
        "causal": (Rules(is_causal=True), None),
        "all, bool": (Rules(bias > 0, key_mask, True, (100, 5), each), 20.0),
        "all, float": (Rules(bias, key_mask, True, (100, None), 3), 20.0),
        "all, ALiBi": (Rules(ALiBi(heads), key_mask, True, (100, None), each), None),
    }


def compile_all(capability: int, dtype: torch.dtype, width: int, names=None, cuts=None):
    """Compile the three kernels for each case; a list of notes."""
    kernels._capability = lambda device: divmod(capability, 10)
    batch, heads, length, size = 2, 4, 300, 400
    query = torch.empty(batch, heads, length, width, dtype=dtype)
    key, value = torch.empty(2, batch, 2, size, width, dtype=dtype)
    originals = {name: getattr(kernels, name) for name in KERNELS}
    notes = []
    for name, (rules, softcap) in cases(batch, heads, length, size).items():
        if names is not None and name not in names:
            continue
        found = []
        for kernel, original in originals.items():
            setattr(kernels, kernel, Compiled(original, capability, found))
        forward, *backward = cuts or (None, None, None)
        given = query, key, value
        output = kernels.forward(*given, rules, width**-0.5, softcap, cut=forward)
        kernels.backward(
            torch.empty_like(output[0]), *given, *output, rules, width**-0.5, softcap,
            cuts=tuple(backward),
        )  # fmt: skip
        case = {"dtype": str(dtype).removeprefix("torch."), "width": width, "case": name}
        notes += [case | note for note in found]
    for name, original in originals.items():
        setattr(kernels, name, original)
    return notes


def main(jobs: list[str]) -> None:
    assert not kernels.INTERPRETED, "needs TRITON_INTERPRET=0"
    for job in jobs or DEFAULT:
        capability, dtype, width, case = job.split(":")
        names = None if case == "*" else [case]
        for note in compile_all(int(capability), getattr(torch, dtype), int(width), names):
            print(json.dumps(note), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
