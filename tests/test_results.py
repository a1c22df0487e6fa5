"""What was measured: how a script records it, and how a chapter reads it."""

import json
import sys
from datetime import date

import pytest
import torch
from book.bookfiles import ROOT

from mha import results

FIELDS = {"about", "command", "date", "machine", "threads", "versions", "seeds", "rows"}
ROWS = [{"heads": 1, "score": 0.5, "unit": "größe"}, {"heads": 8, "score": None, "unit": ""}]


@pytest.fixture
def record(tmp_path, monkeypatch):
    """benchmarks/record.py and `mha.results`, both at work on an empty folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import record

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(results, "files", lambda package: tmp_path)
    monkeypatch.setattr(sys, "argv", ["somewhere/benchmarks/heads.py", "--seeds", "2"])
    return record


def test_what_is_saved_is_what_is_loaded(record, tmp_path):
    path = record.save("heads", "Scores by heads.", ROWS, seeds=[0, 1])
    assert path == tmp_path / "heads.json"
    assert results.names() == ["heads"]
    result = results.load("heads")
    assert set(result) == FIELDS
    assert result["rows"] == ROWS
    assert (result["about"], result["seeds"]) == ("Scores by heads.", [0, 1])
    assert result["command"] == "python benchmarks/heads.py --seeds 2"
    assert result["date"] == date.today().isoformat()
    assert result["threads"] == 3
    assert torch.__version__.startswith(result["versions"]["torch"])
    assert result["machine"] == record.machine()


def test_file_has_a_line_for_each_row(record):
    lines = record.save("heads", "Scores.", ROWS, seeds=[0]).read_text(encoding="utf8").splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines if '"heads": ' in line] == ROWS
    assert "größe" in "".join(lines)


def test_text_that_looks_like_the_list_of_rows_is_kept(record):
    record.save("heads", 'Sets "rows": [] aside.', ROWS, seeds=[0])
    result = results.load("heads")
    assert (result["about"], result["rows"]) == ('Sets "rows": [] aside.', ROWS)


def test_unknown_name_lists_the_names(record):
    record.save("b", "B.", [], seeds=[])
    record.save("a", "A.", [], seeds=[])
    with pytest.raises(ValueError, match="name: got 'c', expected one of a, b"):
        results.load("c")


@pytest.mark.parametrize(("threads", "words"), [(1, "1 thread,"), (2, "2 threads,")])
def test_provenance_is_two_lines(threads, words):
    result = {
        "command": "python benchmarks/x.py",
        "date": "2026-01-31",
        "machine": "an abacus, 2 cores",
        "threads": threads,
        "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
        "seeds": [0, 1, 2],
    }
    assert results.provenance(result) == (
        "Recorded 2026-01-31 by `python benchmarks/x.py`\n"
        f"on an abacus, 2 cores, {words} torch 2.13.0, numpy 2.4.6; seeds 0, 1, 2."
    )


def test_there_are_results():
    assert results.names()


@pytest.mark.parametrize("name", results.names())
def test_recorded_result_is_whole_and_has_its_script(name):
    result = results.load(name)
    assert set(result) == FIELDS
    assert result["rows"] and all(isinstance(row, dict) for row in result["rows"])
    assert result["command"].split()[:2] == ["python", f"benchmarks/{name}.py"]
    assert (ROOT / "benchmarks" / f"{name}.py").is_file()
    assert date.fromisoformat(result["date"]).isoformat() == result["date"]
    assert {"torch", "numpy"} <= set(result["versions"])
    assert max(map(len, results.provenance(result).splitlines())) <= 80
