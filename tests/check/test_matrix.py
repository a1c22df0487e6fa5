"""What the appendix shows of the checker, benchmarks/results/checker.json, is that of today."""

import json
from pathlib import Path

import pytest
import torch
from support import benchmark

from mha import results

ROOT = Path(__file__).resolve().parents[2]
ROWS = results.load("checker")["rows"]
SLUGS = json.loads((ROOT / "tests/check/slugs.json").read_text(encoding="utf8"))
AGAIN = "run: python benchmarks/checker.py"
CHEAP = ("none", "mask-multiplied", "bias-missing")


@pytest.fixture(scope="module")
def script():
    """benchmarks/checker.py, which records the rows."""
    with benchmark("checker") as module:
        yield module


def test_rows_are_those_of_the_specimens(script):
    found = [
        (slug, one.subject.__name__) for slug, many in script.subjects().items() for one in many
    ]
    assert [(row["mistake"], row["class"]) for row in ROWS] == found, AGAIN
    assert {row["mistake"] for row in ROWS} == {"none", *SLUGS}


@pytest.mark.parametrize("slug", CHEAP)
def test_a_recorded_row_is_what_the_checker_says_today(script, slug):
    recorded = [row for row in ROWS if row["mistake"] == slug]
    today = [script.verdict(slug, one) for one in script.subjects()[slug]]
    for row, now in zip(recorded, today, strict=True):
        assert {key: row[key] for key in now} == now, AGAIN


@pytest.mark.slow
def test_all_recorded_rows_are_what_the_checker_says_today(script):
    today = [script.verdict(slug, one) for slug, many in script.subjects().items() for one in many]
    recorded = [{key: row[key] for key in now} for row, now in zip(ROWS, today, strict=True)]
    assert recorded == today, AGAIN


def test_each_mistake_is_named_alone():
    for row in ROWS:
        named = row["findings"] + row["notes"]
        assert row["mistake"] in [*named, "none"], row
        assert set(row["findings"]) <= {row["mistake"]}, row


def test_shares_are_there_or_a_reason_is():
    for row in ROWS:
        assert (row["taught"] is None) == (row["alone"] is None) == bool(row["why"]), row
        assert row["taught"] is None or 0 <= row["taught"] <= 1 and 0 <= row["alone"] <= 1


@pytest.mark.parametrize(
    ("slug", "leaks"),
    [("none", False), ("scale-missing", False), ("mask-inverted", True), ("causal-upper", True)],
)
def test_a_class_is_called_in_its_own_way(script, slug, leaks):
    for one in script.subjects()[slug]:
        module = script.Called(script.examine(one)[0], 0.0, 32, 4, is_causal=True).eval()
        x = torch.randn(2, 6, 32)
        changed = x.clone()
        changed[:, -1] += 1.0
        moved = (module(changed) - module(x)).abs().nan_to_num().amax((0, 2))  # (T,)
        assert bool(moved[:-1].max() > 1e-3) == leaks
