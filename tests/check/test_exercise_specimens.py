"""The checks of the exercises, on functions written without a look at them."""

import pytest
import specimens

from mha import check

specimens.load()
WHOLE = ("attention", "multi_head_attention")
FAULTY = [s for s in specimens.SPECIMENS if s.check not in WHOLE]
CORRECT = [c for c in specimens.CORRECT if c.check not in WHOLE]
# the author of the specimens had other words for these
ALIKE = {
    "split-wrong-axes": {"split-heads-behind", "wrong-shape"},
    "merge-wrong-axes": {"merge-no-transpose"},
    "softmax-global": {"softmax-joint"},
    "softmax-max-global": {"softmax-global-max"},
    "softmax-shifts-input": {"input-changed"},
    "softmax-no-exp": {"softmax-linear"},
    "mask-not-bool": {"mask-numbers"},
    "pad-off-by-one": {"padding-off-by-one"},
    "pad-all-lengths-alike": {"padding-shared"},
    "pad-left": {"padding-left"},
    "pe-sin-cos-exchanged": {"pe-cos-first"},
    "pe-exponent": {"pe-own-frequency"},
    "pe-frequency-multiplied": {"pe-growing"},
    "pe-transposed": {"wrong-shape"},
    "cache-shared-between-instances": {"cache-shared"},
    "cache-returns-new-only": {"cache-overwrites"},
    "gqa-mean": {"gqa-averaged"},
    "gqa-values-tiled": {"gqa-tiled"},
    "flash-sum-no-rescale": {"flash-no-rescale-sum"},
    "flash-output-no-rescale": {"flash-no-rescale-output"},
    "flash-no-rescale": {"flash-tile-max"},
    "flash-tail-dropped": {"flash-last-tile-dropped"},
    "flash-no-normalise": {"flash-not-normalised"},
}
# read as another convention, and said so
CONVENTION = {"split_folded": "folded into one axis", "causal_additive": "a large negative number"}
# a mistake, but none that the check knows by name
NAMELESS = {"merge_by_mean", "merge_batch_mixed", "CacheOfKeysTwice"}


def name(entry):
    return f"{entry.check}-{getattr(entry.subject, '__name__', type(entry.subject).__name__)}"


@pytest.mark.parametrize("entry", FAULTY, ids=name)
def test_a_faulty_function_is_named(entry):
    called = name(entry).partition("-")[2]
    report = getattr(check, entry.check)(entry.subject, **entry.options)
    found = {f.slug for f in report.findings}
    if called in CONVENTION:
        assert CONVENTION[called] in " ".join(report.reading)
    elif called in NAMELESS:
        assert found == {"unknown"}
    else:
        for slug in entry.slugs:
            assert ({slug} | ALIKE.get(slug, set())) & found, str(report)


@pytest.mark.parametrize("entry", CORRECT, ids=name)
def test_a_correct_function_passes(entry):
    report = getattr(check, entry.check)(entry.subject, **entry.options)
    assert report.ok, str(report)


def test_there_are_enough_of_each_kind():
    for kind in {entry.check for entry in FAULTY}:
        assert sum(entry.check == kind for entry in CORRECT) >= 3
        assert sum(entry.check == kind for entry in FAULTY) >= 4
