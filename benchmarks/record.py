"""How the scripts in this folder write down what they measured; see `mha.results` for reading."""

import contextlib
import datetime
import json
import os
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> str:
    """The processor, or the CUDA device when there is one, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Versions of torch, numpy and those of `packages` that are installed."""
    found = {"torch": torch.__version__.split("+")[0], "numpy": np.__version__}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def save(
    name: str, about: str, rows: list[dict], seeds: list[int], *, packages: Iterable[str] = ()
) -> Path:
    """Write `rows` and where they come from to results/<name>.json; returns its path.

    Besides torch's and numpy's, the versions of `packages` are noted where they are installed.
    """
    result = {
        "about": about,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": versions(packages),
        "seeds": seeds,
    }
    # a line a row: small files, readable differences
    text = json.dumps({**result, "rows": []}, indent=1, ensure_ascii=False)
    body = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    path = RESULTS / f"{name}.json"
    path.write_text(text.replace('"rows": []', f'"rows": [\n{body}\n ]') + "\n", encoding="utf8")
    return path
