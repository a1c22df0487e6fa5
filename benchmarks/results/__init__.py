"""Recorded measurements: what the scripts in ``benchmarks/`` wrote, with machine, date and seeds.

In the checkout this package is the folder benchmarks/results; the wheel carries it as
``mha.results``, so that a notebook finds the figures wherever it runs.
"""

import json
import textwrap
from importlib.resources import files

__all__ = ["load", "names", "provenance"]


def names() -> list[str]:
    """The names of all recorded measurements, sorted.

    Examples:
        >>> import mha
        >>> "attention" in mha.results.names()
        True
    """
    return sorted(f.name[:-5] for f in files(__name__).iterdir() if f.name.endswith(".json"))


def load(name: str) -> dict:
    """One recorded measurement.

    Args:
        name: one of ``names()``.
    Returns: a dict with the keys "about" (a sentence), "command" (what wrote it), "date" (ISO),
        "machine" (in words), "threads" (int), "versions" (package to version), "seeds" (list of
        int), and "rows" (list of dict; the script's own doc says what each figure is and in which
        unit).
    Errors: ValueError for an unknown name, listing those there are.

    Examples:
        >>> import mha
        >>> sorted(mha.results.load("attention"))
        ['about', 'command', 'date', 'machine', 'rows', 'seeds', 'threads', 'versions']
    """
    if name not in names():
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(names())}")
    return json.loads((files(__name__) / f"{name}.json").read_text(encoding="utf8"))


def provenance(result: dict) -> str:
    """Where the figures come from, in lines of at most 80 characters to print beside them.

    Args:
        result: what ``load`` returned.

    Examples:
        >>> import mha
        >>> lines = mha.results.provenance(mha.results.load("attention")).splitlines()
        >>> lines[0].startswith("Recorded "), max(map(len, lines)) <= 80
        (True, True)
    """
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    seeds = ", ".join(map(str, result["seeds"]))
    threads = f"{result['threads']} thread" + "s" * (result["threads"] != 1)
    place = f"on {result['machine']}, {threads}, {versions}; seeds {seeds}."
    place = textwrap.fill(place, 80, break_long_words=False, break_on_hyphens=False)
    return f"Recorded {result['date']} by `{result['command']}`\n{place}"
