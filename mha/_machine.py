"""What computes here, in words: for the provenance of measurements and of trained weights."""

import contextlib
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import numpy as np
import torch


def machine(device: str | None = None) -> str:
    """The processor, or the CUDA device when there is one, in words; or what ``device`` means."""
    if torch.cuda.is_available() and (device is None or device.startswith("cuda")):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Versions of torch, numpy and those of ``packages`` that are installed."""
    found = {"torch": torch.__version__.split("+")[0], "numpy": np.__version__}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
