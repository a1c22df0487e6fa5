"""How the scripts in this folder write down what they measured; see `mha.results` for reading."""

import datetime
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from mha._machine import machine, versions

RESULTS = Path(__file__).resolve().parent / "results"


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
