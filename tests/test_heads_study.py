"""The heads study of benchmarks/heads.py, in small, and what it recorded."""

import functools
import importlib
import itertools
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import torch

from mha import data, models, results, training

ROOT = Path(__file__).resolve().parents[1]
TINY = {"embed_dim": 16, "ff_dim": 16, "num_layers": 1}


@pytest.fixture(scope="module")
def study():
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("heads")


@pytest.fixture(scope="module")
def recorded():
    return results.load("heads")


@functools.cache
def vocabulary_sizes(pairs: int, seed: int) -> tuple[int, ...]:
    return tuple(map(len, data.date_vocabularies(data.dates(pairs, 2_000, seed=seed)[0])))


def runs(recorded) -> list[dict]:
    return [row for row in recorded["rows"] if row["part"] == "training"]


def test_every_run_is_recorded_once(study, recorded):
    seeds = recorded["seeds"]
    assert len(seeds) >= 3
    wanted = Counter(itertools.product(study.TASKS, study.HEADS, seeds))
    assert Counter((row["task"], row["heads"], row["seed"]) for row in runs(recorded)) == wanted


def test_every_time_is_recorded_once(study, recorded):
    times = [row for row in recorded["rows"] if row["part"] == "time"]
    wanted = Counter(itertools.product(study.SIZES, ("reference", "sdpa"), study.HEADS))
    size = ("batch", "length", "embed_dim")
    found = ((tuple(r[name] for name in size), r["backend"], r["heads"]) for r in times)
    assert Counter(found) == wanted


@pytest.mark.slow
def test_recorded_counts_are_what_the_code_gives_now(study, recorded):
    ids = torch.ones(1, 20, dtype=torch.int64)
    image = torch.ones(1, 1, 8, 8)
    for row in runs(recorded):
        heads, seed = row["heads"], row["seed"]
        if row["task"] == "digits":
            model, example = models.VisionTransformer(num_heads=heads), (image,)
        else:
            pairs = 10_000 if row["task"] == "dates" else 1_000
            model = models.Translator(*vocabulary_sizes(pairs, seed), num_heads=heads)
            example = ids, ids[:, :11]
        counts = sum(p.numel() for p in model.parameters()), study.count_flops(model, *example)
        assert counts == (row["parameters"], row["flops"]), row


def test_counter_and_formula_must_agree(study, monkeypatch):
    monkeypatch.setattr(study, "flops_by_formula", lambda model, *example: 1)
    with pytest.raises(AssertionError):
        study.count_flops(models.VisionTransformer(), torch.ones(1, 1, 8, 8))


@pytest.mark.slow
def test_small_runs_give_the_rows_that_are_recorded(study, recorded):
    keys = set(runs(recorded)[0]) - {"part", "task", "heads", "seed"}
    dates = study.train_dates(2, 0, pairs=200, steps=6, count=20, **TINY)
    digits = study.train_digits(2, 0, passes=1, **TINY)
    for row in (dates, digits):
        assert set(row) == keys
        assert 0 <= row["score"] <= 1 and 0 <= row["train_score"] <= 1
        assert min(row["loss"], row["train_loss"], row["flops"], row["cpu_seconds"]) > 0
        assert len(row["steps"]) == len(row["scores"])
    again = study.train_digits(2, 0, passes=1, **TINY)
    other = study.train_digits(1, 0, passes=1, **TINY)
    assert again["loss"] == digits["loss"] != other["loss"]


@pytest.mark.slow
def test_recipes_are_those_of_the_chapters(study, monkeypatch):
    """The options that reach training.fit are written in chapters 6.1 and 6.2."""
    seen = []

    def fit(model, batches, loss_fn, **options):
        seen.append((len(batches), loss_fn, options))
        raise StopIteration

    monkeypatch.setattr(training, "fit", fit)
    for train in (study.train_dates, study.train_digits):
        with pytest.raises(StopIteration):
            train(4, 0)
    (_, loss, dates), (epoch, image_loss, digits) = seen
    assert loss is training.translation_loss and image_loss is training.image_loss
    assert (dates["steps"], dates["lr"], dates["warmup"]) == (600, 1e-3, 100)
    assert (digits["steps"], digits["lr"], digits["warmup"]) == (60 * epoch, 3e-3, 18 * epoch)
    first, second = (chapter("06-1-dates"), chapter("06-2-digits"))
    for words in ("steps=600", "lr=1e-3", "warmup=100", "source_vocab, target_vocab, 64)"):
        assert words in first
    assert '{"steps": 60 * epoch, "lr": 3e-3, "warmup": 18 * epoch}' in second
    assert "data.image_batches(*split[:2], 64, seed=seed)" in second


def chapter(name: str) -> str:
    cells = nbformat.read(ROOT / f"chapters/{name}.ipynb", as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def test_only_missing_runs_are_made(study, recorded, monkeypatch):
    made, saved = [], []
    monkeypatch.setattr(study, "train_digits", lambda *run: made.append(run) or {})
    monkeypatch.setattr(study, "train_dates", None)  # must not be called
    monkeypatch.setattr(study, "train_few_dates", None)
    monkeypatch.setattr(study, "time_layers", None)
    monkeypatch.setattr(study, "save", lambda *what: saved.append(what))
    gone = ("digits", 4, recorded["seeds"][0])
    rows = recorded["rows"]
    kept = [r for r in rows if (r.get("task"), r["heads"], r.get("seed")) != gone]
    study.run(kept, recorded["seeds"])
    assert made == [gone[1:]] and len(saved) == 1
    assert len(saved[0][2]) == len(rows) and saved[0][3] == recorded["seeds"]


def test_layers_are_timed_in_turn(study):
    rows = study.time_layers(2, 8, 16, rounds=3)
    assert [(row["backend"], row["heads"]) for row in rows] == [
        (backend, heads) for backend in ("reference", "sdpa") for heads in study.HEADS
    ]
    for row in rows:
        assert row["ms"] > 0 and row["low"] <= row["ratio"] <= row["high"]
        assert row["heads"] > 1 or row["ratio"] == 1
