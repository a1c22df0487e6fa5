"""The tests are known to bite: each faulty function or module fails the property that names it."""

import json
from functools import partial
from pathlib import Path

import faulty
import function_properties
import properties
import pytest
from support import benchmark, randn

import mha

ROOT = Path(__file__).resolve().parent.parent
FUNCTION_CHECKS, MODULE_CHECKS = function_properties.ALL, properties.ALL
RIGHT = {
    "step by step": faulty.Function(),
    "reference": partial(mha.scaled_dot_product_attention, backend="reference"),
    "sdpa": partial(mha.scaled_dot_product_attention, backend="sdpa"),
    "auto": mha.scaled_dot_product_attention,
}
# no wrong number, but an error: any other variant that crashes is itself broken
CRASHES = {"mask-half-overflow", "empty-keys-raise", "device-buffer", "value-width-assumed"}
AT_OPTIONS = [s for s, m in faulty.MODULES.items() if m.options or not m.in_training]
OWN = {slug: module for slug, module in faulty.MODULES.items() if module.caught_by}


@pytest.fixture(scope="module")
def script():
    """benchmarks/mistakes.py, which records what this file tests."""
    with benchmark("mistakes") as module:
        yield module


def recorded(kind, what):
    """The rows of one kind in benchmarks/results/mistakes.json, by name."""
    rows = json.loads((ROOT / "benchmarks/results/mistakes.json").read_text("utf8"))["rows"]
    return {row[what]: row for row in rows if row["kind"] == kind and what in row}


@pytest.mark.parametrize("name", FUNCTION_CHECKS)
@pytest.mark.parametrize("subject", RIGHT.values(), ids=RIGHT)
def test_the_right_function_passes(subject, name):
    FUNCTION_CHECKS[name](subject)


@pytest.mark.parametrize("name", MODULE_CHECKS)
def test_the_right_module_passes(name):
    MODULE_CHECKS[name](faulty.Module)


def test_there_are_many_mistakes_and_each_is_described():
    assert len(faulty.FUNCTIONS) >= 60 and len(OWN) >= 40
    for variant in [*faulty.FUNCTIONS.values(), *faulty.MODULES.values()]:
        assert len(variant.__doc__.splitlines()) == 1 and variant.__doc__.endswith(".")
    abouts = [variant.__doc__ for variant in faulty.FUNCTIONS.values()]
    abouts += [variant.__doc__ for variant in OWN.values()]
    assert len(set(abouts)) == len(abouts)


@pytest.mark.parametrize(
    ("slug", "name"), [(s, name) for s, f in faulty.FUNCTIONS.items() for name in f.caught_by]
)
def test_each_mistake_of_the_function_is_caught_by_name(slug, name):
    symptom = "raises" if slug in CRASHES else "fails"
    assert faulty.verdict(FUNCTION_CHECKS[name], faulty.FUNCTIONS[slug]()) == symptom


@pytest.mark.parametrize(("slug", "name"), [(s, n) for s, m in OWN.items() for n in m.caught_by])
def test_each_mistake_of_the_module_is_caught_by_name(slug, name):
    assert faulty.verdict(MODULE_CHECKS[name], faulty.MODULES[slug]) == "fails"


@pytest.mark.parametrize("slug", [s for s in faulty.FUNCTIONS if s not in faulty.HIDDEN])
def test_a_module_with_a_faulty_function_is_caught(slug):
    verdicts = (faulty.verdict(holds, faulty.MODULES[slug]) for holds in MODULE_CHECKS.values())
    assert any(verdict != "passes" for verdict in verdicts)


@pytest.mark.parametrize("slug", AT_OPTIONS)
def test_a_mistake_is_at_work_with_its_options_and_in_training_if_it_says_so(slug):
    variant, x = faulty.MODULES[slug], randn(2, 11, 32)
    for options in ({}, variant.options):
        made = (variant, faulty.Module)
        outputs = [properties.built(m, 32, 4, is_causal=True, **options)(x) for m in made]
        at_work = bool(options) and variant.in_training
        assert ((outputs[0] - outputs[1]).abs().max() > 1e-3) == at_work, options


@pytest.mark.parametrize("slug", faulty.HIDDEN)
def test_what_no_caller_of_the_module_can_see_is_not_seen(slug):
    hiding = type("Hiding", (faulty.Module,), {"attend": faulty.FUNCTIONS[slug]()})
    assert {faulty.verdict(holds, hiding) for holds in MODULE_CHECKS.values()} == {"passes"}


@pytest.mark.parametrize("kind", ["function", "module"])
def test_each_property_catches_something(kind):
    mistakes = recorded(kind, "mistake").values()
    for name in set(recorded(kind, "property")) - {"has_the_right_shape"}:
        assert any(name in row["fails"] + row["raises"] for row in mistakes), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["function", "module"])
def test_recorded_table_is_current(script, kind):
    checks, variants = script.KINDS[kind]
    assert list(recorded(kind, "property").values()) == script.properties_of(kind)
    found = recorded(kind, "mistake")
    assert list(found) == list(variants), "run: python benchmarks/mistakes.py"
    for slug in variants:
        row = {key: x for key, x in found[slug].items() if key not in ("taught", "alone")}
        assert row == script.verdicts(kind, slug), "run: python benchmarks/mistakes.py"


@pytest.mark.slow
@pytest.mark.parametrize("slug", ["none", "split-no-transpose"])
def test_recorded_training_is_what_training_gives(script, slug):
    row, now = recorded("module", "mistake")[slug], script.learned(script.KINDS["module"][1][slug])
    for share in ("taught", "alone"):
        assert abs(row[share] - now[share]) < 0.15
