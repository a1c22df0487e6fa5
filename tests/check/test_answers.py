"""Answers to exercises: a prediction, a diagnosis, a function; and code that is still to be written."""

import numpy as np
import pytest
import torch
from torch import nn

from mha import check
from mha.check.answers import difference, shown


def never():
    raise AssertionError("computed before there was a guess")


def unscaled(query, key, value):
    return (query @ key.mT).softmax(-1) @ value


def scaled(query, key, value):
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value


# --- predictions


@pytest.mark.parametrize("guess", [None, ...])
def test_no_prediction_is_no_mistake_and_computes_nothing(guess):
    report = check.prediction(guess, never)
    assert not report.ok and report.headline == "your turn"
    assert [found.label for found in report.findings] == ["Your turn"]
    assert "✗" not in report.text()


@pytest.mark.parametrize(
    ("guess", "answer"),
    [
        (3, 3), (3.0, 3), (True, True), (False, np.bool_(False)), ("key", "key"),
        ((2, 3), torch.Size([2, 3])), ([2, 3], (2, 3)), (0.5, torch.tensor(0.5).item()),
        ([1, 2], torch.tensor([1, 2])), ([[0.5]], np.array([[0.5]])), ({"a": 1}, {"a": 1}),
    ],
)  # fmt: skip
def test_right_predictions(guess, answer):
    for given in (answer, lambda: answer):
        report = check.prediction(guess, given)
        assert report.ok and report.headline == "right", report


@pytest.mark.parametrize(
    ("guess", "answer", "said"),
    [
        (64, 8, "8 times larger"),
        (2, 8, "4 times smaller"),
        ((3, 2), (2, 3), "their order"),
        ((2, 3), (2, 3, 4), "2 axes, the result 3"),
        ((2, 5, 4), (2, 3, 4), "axis 1"),
        ([1, 2], torch.tensor([1, 3]), "[1]"),
        ([1, 2], [1, 3], "at place 1"),
        (1, torch.ones(2), "shape"),
    ],
)
def test_a_wrong_prediction_is_told_how_it_differs(guess, answer, said):
    report = check.prediction(guess, answer)
    assert not report.ok and said in report.text()
    assert [found.slug for found in report.findings] == ["prediction-off"]


@pytest.mark.parametrize(
    ("guess", "answer", "said"),
    [
        ("yes", True, "True or False"),
        (1, True, "True or False"),
        ("a", 3, "a number is asked for"),
        ("16, 65", [16, 65], "several values"),
        ([16, 65], [16, 65, 520], "2 values, and 3"),
        ([None, 65], [16, 65], "a number"),
        (3, "key", "a text"),
    ],
)
def test_a_guess_of_another_form_learns_no_answer(guess, answer, said):
    report = check.prediction(guess, answer)
    assert not report.ok and said in report.text() and "the run says" not in report.text()
    assert [found.slug for found in report.findings] == ["unwritten"]


def test_within_is_relative_to_the_answer():
    assert check.prediction(0.9, 1.0, within=0.1).ok
    assert not check.prediction(0.89, 1.0, within=0.1).ok
    assert check.prediction(110, 100, within=0.1).ok and not check.prediction(99, 100).ok
    with pytest.raises(ValueError, match="within"):
        check.prediction(1, 1, within=-1)


# --- diagnoses


def test_no_diagnosis_is_no_mistake():
    report = check.diagnosis(None, unscaled)
    assert not report.ok and report.headline == "your turn"


def test_the_right_diagnosis_shows_the_finding_as_a_note():
    report = check.diagnosis("scale-missing", unscaled)
    assert report.ok and report.headline == "your diagnosis is right"
    assert [(found.slug, found.severity) for found in report.findings] == [
        ("scale-missing", "note")
    ]
    assert check.diagnosis(["scale-missing"], unscaled).ok
    assert check.diagnosis(" Scale_missing ", unscaled).ok


def test_a_wrong_diagnosis_gets_a_hint_and_not_the_name():
    report = check.diagnosis("scale-linear", unscaled)
    assert not report.ok and "scale-missing" not in report.text()
    assert "scale-linear would mean" in report.text() and report.findings[0].hint


def test_one_of_two_is_not_enough():
    def two(query, key, value, mask=None):
        return (query @ key.mT).softmax(-1) @ value

    report = check.diagnosis("scale-missing", two)
    assert not report.ok and "scale-missing: right" in report.text()
    assert "mask-ignored" not in report.text()
    assert check.diagnosis({"scale-missing", "mask-ignored"}, two).ok


def test_names_that_do_not_exist_are_answered_by_those_that_do():
    report = check.diagnosis("scale-mising", unscaled)
    assert not report.ok and "scale-missing" in report.text()
    for guess in ("qwertyuiop", "", 5, True, ["scale-missing", 3], unscaled):
        assert check.diagnosis(guess, unscaled).findings[0].slug == "diagnosis-unknown"


def test_mended_code_passes_whatever_was_guessed():
    assert check.diagnosis("scale-missing", scaled).ok


def test_other_checks_may_be_asked():
    def uppers(T):
        return torch.ones(T, T, dtype=torch.bool).triu()

    assert check.diagnosis("causal-upper", uppers, by=check.causal_mask).ok

    class Faulty(nn.Module):
        def __init__(self, embed_dim, num_heads):
            super().__init__()
            self.heads = num_heads
            self.q, self.k, self.v, self.o = (nn.Linear(embed_dim, embed_dim) for _ in range(4))

        def split(self, x):
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        def forward(self, query, key, value):
            q, k, v = self.split(self.q(query)), self.split(self.k(key)), self.split(self.v(value))
            return scaled(q, k, v).transpose(1, 2).flatten(2)

    assert check.diagnosis("out-proj-missing", Faulty).ok  # the check of a class by default


# --- functions


def double(x):
    return 2 * x


def test_a_right_function_passes_each_case():
    report = check.function(lambda x: x + x, double, (1,), (2.5,), (torch.ones(2, 3),))
    assert report.ok and [one.passed for one in report.checks] == [True] * 3


def test_the_first_case_that_differs_is_shown():
    report = check.function(lambda x: x**2, double, (2,), (3,), (4,))
    assert not report.ok and [one.passed for one in report.checks] == [True, False]
    assert "yours: 9" in report.text() and "right: 6" in report.text()


def test_a_likely_mistake_is_named_if_it_explains_all_cases():
    known = {"you squared": lambda x: x * x, "you added one": lambda x: x + 1}
    report = check.function(lambda x: x**2, double, (2,), (3,), mistakes=known)
    assert report.findings[0].title == "You squared"
    report = check.function(lambda x: x**3, double, (0,), (3,), mistakes=known)
    assert report.findings[0].title == "The result is another than it should be"


def test_each_call_gets_arguments_of_its_own():
    def in_place(x):
        return x.mul_(2)

    x = torch.ones(3)
    assert check.function(in_place, double, (x,), (x,)).ok and torch.equal(x, torch.ones(3))


def test_what_a_function_does_wrong_ends_no_check():
    def forever(x):
        while True:
            pass

    assert check.function(lambda x: 1 / 0, double, (1,)).findings[0].slug == "exception"
    assert check.function(forever, double, (1,), seconds=0.3).findings[0].slug == "timeout"
    assert check.function(lambda x: None, double, (1,)).findings[0].slug == "returns-nothing"
    with pytest.raises(ValueError, match="cases"):
        check.function(double, double)


@pytest.mark.parametrize(
    ("yours", "right"),
    [
        (1, 2), (1, True), (True, 1), ("a", "b"), ([1, 2], [1]), ([1, 2], [1, 3]), (1, "1"), (None, 1),
        (float("nan"), 1.0), (1.0, float("nan")), (torch.ones(2), torch.ones(3)),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])), ({"a": 1}, {"b": 1}),
        ({"a": 1, "b": 2}, {"a": 1}), ("x", torch.ones(1)), ([["a"]], [["b"]]), (3, [3]),
    ],
)  # fmt: skip
def test_values_that_differ(yours, right):
    assert difference(yours, right, 1e-6)


@pytest.mark.parametrize(
    ("yours", "right"),
    [
        (1.0 + 1e-9, 1.0), (torch.tensor(2), 2), ((1, 2), [1, 2]), (torch.tensor([1, 2]), [1, 2]),
        (float("nan"), float("nan")), ([torch.ones(2), "a"], (torch.ones(2), "a")), (None, None),
        (torch.zeros(0), torch.zeros(0)), (torch.ones(2, dtype=torch.bool), torch.ones(2)),
    ],
)  # fmt: skip
def test_values_that_agree(yours, right):
    assert not difference(yours, right, 1e-6)


def test_values_are_shown_in_few_characters():
    assert shown(torch.ones(100)) == "numbers of shape (100,)"
    assert shown(torch.Size([2, 3])) == "(2, 3)" and shown(0.12345678) == "0.1235"
    assert len(shown("x" * 1000)) <= 200 and shown(double) == "double"
    assert "0x" not in shown(object())
    assert shown((np.ones(2), 0.5)) == "([1 1], 0.5)" and shown([1, 2]) == "[1, 2]"


# --- code that is still to be written


class Starter(nn.Module):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.heads, self.q_proj = num_heads, nn.Linear(embed_dim, embed_dim)

    def forward(self, query, key=None, value=None, mask=None):
        """(B, T, E) -> (B, T, E)"""
        heads = self.q_proj(query)[..., :].unflatten(-1, (self.heads, -1))
        weights = ...
        return heads, weights


class EmptyCache:
    def append(self, k, v):
        """(B, H, T, D), twice -> all keys, all values"""


def dots(x, num_heads):
    """(B, T, E) -> (B, H, T, D)"""
    ...


def gap(query, key, value):
    scores = ...
    return scores @ value


def silent(x, num_heads):
    pass


def refusing(x, num_heads):
    raise NotImplementedError("yours")


def returning(x, num_heads):
    return ...


@pytest.mark.parametrize("starter", [dots, silent, refusing, returning])
def test_a_starter_is_no_mistake(starter):
    report = check.split_heads(starter)
    assert not report.ok and report.headline == "your turn"
    assert [found.slug for found in report.findings] == ["unwritten"]
    assert check.function(starter, max, (1, 2)).headline == "your turn"


@pytest.mark.parametrize(
    "report",
    [
        lambda: check.multi_head_attention(Starter),
        lambda: check.kv_cache(EmptyCache),
        lambda: check.attention(gap),
        lambda: check.multi_head_attention(Starter(8, 2)),
    ],
    ids=["class", "cache", "function", "instance"],
)
def test_every_check_knows_a_starter(report):
    assert report().headline == "your turn"


def test_the_line_of_the_gap_is_told():
    text = check.multi_head_attention(Starter).text()
    line = Starter.forward.__code__.co_firstlineno + 3
    assert f"line {line}: weights = ..." in text and "[..., :]" not in text


def test_code_that_is_right_may_keep_its_dots():
    def split_heads(x, num_heads):
        ...
        return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)

    assert check.split_heads(split_heads).ok


def below(x, num_heads):
    ...
    return x.reshape(x.shape[0], num_heads, x.shape[1], -1)


def above(x, num_heads):
    return x.reshape(x.shape[0], num_heads, x.shape[1], -1)
    ...


class Around(EmptyCache):
    def __init__(self):
        self.k = None
        ...

    def append(self, k, v):
        self.k = k
        return k, v


def test_dots_that_were_left_above_or_below_hide_no_mistake():
    for written in (below, above):
        report = check.split_heads(written)
        assert [found.slug for found in report.findings] == ["split-no-transpose"]
    assert "cache-overwrites" in check.kv_cache(Around).text()


def test_dots_among_numbers_are_no_gap():
    def attention(query, key, value):
        w = torch.einsum(query, [..., 0, 1], key, [..., 2, 1], [..., 0, 2]).softmax(-1)
        return w @ value

    assert [found.slug for found in check.attention(attention).findings] == ["scale-missing"]


def test_a_result_handed_over_in_place_of_a_function_is_no_starter():
    assert "your turn" not in check.softmax(torch.ones(2)).text()


def test_wrong_code_without_a_gap_is_a_mistake():
    def split_heads(x, num_heads):
        return x[..., :].unflatten(-1, (num_heads, -1))

    report = check.split_heads(split_heads)
    assert [found.slug for found in report.findings] == ["split-heads-behind"]


def test_learners_code_runs_in_the_grad_mode_of_the_caller():
    def mode(x):
        return torch.is_grad_enabled()

    with torch.no_grad():
        assert check.function(mode, lambda x: False, (1,)).ok
    with torch.inference_mode():
        assert check.function(mode, lambda x: False, (1,)).ok
    assert check.function(mode, lambda x: True, (1,)).ok and torch.is_grad_enabled()
