"""The checker names the mistake of each specimen, and finds none in correct code."""

import copy
import json
import linecache
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import specimens
import torch
from torch import nn

import mha
from mha import check

specimens.load()
WHOLE = ("attention", "multi_head_attention")
FAULTY = [s for s in specimens.SPECIMENS if s.check in WHOLE]
CORRECT = [c for c in specimens.CORRECT if c.check in WHOLE]
# what a query without keys gives, and where a causal rule begins, are told beside any mistake
ASIDE = {"dead-row-nan", "dead-row-uniform", "causal-top-left", "dropout-ignored"}


@pytest.fixture(autouse=True)
def faults_of_the_checker_are_raised(monkeypatch):
    monkeypatch.setenv("MHA_CHECK_RAISE", "1")


def name(entry):
    subject = entry.subject
    called = getattr(subject, "__name__", type(subject).__name__)
    return "-".join([called, *getattr(entry, "slugs", ())])


def examine(entry):
    return getattr(check, entry.check)(entry.subject, **entry.options)


def slugs(report, severity=None):
    return {f.slug for f in report.findings if severity in (None, f.severity)}


@pytest.mark.parametrize("entry", FAULTY, ids=name)
def test_the_mistake_of_a_specimen_is_named_and_no_other(entry):
    report = examine(entry)
    assert set(entry.slugs) <= slugs(report), str(report)
    assert slugs(report, "mistake") <= set(entry.slugs), str(report)


@pytest.mark.parametrize("entry", CORRECT, ids=name)
def test_correct_code_has_no_mistake(entry):
    report = examine(entry)
    assert report.ok, str(report)
    assert slugs(report) <= set(entry.notes) | ASIDE | {"split-dim-major"}, str(report)


def test_every_slug_of_the_catalogue_has_two_specimens():
    whole = [slug for s in specimens.SPECIMENS if len(s.slugs) == 1 for slug in s.slugs]
    catalogue = json.loads((Path(__file__).parent / "slugs.json").read_text("utf8"))
    assert {slug for slug in catalogue if whole.count(slug) < 2} == set()
    assert len(catalogue) == len(set(catalogue)) == 47


def test_there_are_many_correct_styles():
    assert len(CORRECT) >= 60


@pytest.mark.parametrize("subject", [nn.MultiheadAttention, nn.MultiheadAttention(24, 4)])
def test_the_layer_of_torch_has_the_two_notes_and_nothing_else(subject):
    if not isinstance(subject, type):  # an instance without dropout has none to show
        subject.dropout = 0.1
    report = check.multi_head_attention(subject)
    assert report.ok
    assert sorted(slugs(report)) == ["dead-row-nan", "weights-after-dropout"]


def test_there_are_many_pairs_of_mistakes():
    assert sum(len(entry.slugs) == 2 for entry in FAULTY) >= 16


def test_the_first_cause_stands_on_top():
    order = [f.slug for f in check.multi_head_attention(Careless).findings]
    assert order[:3] == ["qk-shared", "scale-missing", "merge-no-transpose"]


def test_a_class_takes_less_than_two_seconds():
    check.multi_head_attention(mha.MultiHeadAttention)  # what torch imports at its first use
    seconds = []
    for entry in FAULTY[::8]:
        start = time.process_time()
        examine(entry)
        seconds.append(time.process_time() - start)
    assert statistics.median(seconds) < 1 and max(seconds) < 4


class Plain(nn.Module):
    """The base of the classes below, correct."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.w_q, self.w_k, self.w_v, self.w_o = (nn.Linear(embed_dim, embed_dim) for _ in range(4))

    def heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def weights(self, q, k):
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)

    def forward(self, query, key, value):
        q, k, v = (
            self.heads(self.w_q(query)),
            self.heads(self.w_k(key)),
            self.heads(self.w_v(value)),
        )
        return self.w_o((self.weights(q, k) @ v).transpose(1, 2).flatten(2))


class Careless(Plain):
    def forward(self, query, key, value):
        q, k, v = (
            self.heads(self.w_q(query)),
            self.heads(self.w_q(key)),
            self.heads(self.w_v(value)),
        )
        mixed = (q @ k.mT).softmax(-1) @ v
        return self.w_o(mixed.reshape(query.shape))


class Sigmoid(Plain):
    def weights(self, q, k):
        return torch.sigmoid(q @ k.mT / q.shape[-1] ** 0.5)


class Squared(Plain):
    def weights(self, q, k):
        scores = (q @ k.mT).square()
        return scores / scores.sum(-1, keepdim=True)


class Rectified(Plain):
    def forward(self, query, key, value):
        return torch.relu(super().forward(query, key, value))


class Nearest(Plain):
    def weights(self, q, k):
        return super().weights(q, k).roll(1, -1)


@pytest.mark.parametrize("subject", [Sigmoid, Squared, Rectified, Nearest])
def test_what_is_not_in_the_catalogue_gets_no_name(subject):
    report = check.multi_head_attention(subject)
    assert slugs(report, "mistake") == {"unknown"}
    (found,) = [f for f in report.findings if f.slug == "unknown"]
    assert "the smallest example that differs" in found.evidence and "yours" in found.evidence


@pytest.mark.parametrize("factor", [0.7, 3.0])
def test_another_scale_is_told_with_its_number(factor):
    class Scaled(Plain):
        def weights(self, q, k):
            return (q @ k.mT * factor).softmax(-1)

    (found,) = check.multi_head_attention(Scaled).findings[:1]
    assert found.slug == "scale-other" and f"multiplied by {factor:.4g}" in found.evidence


def test_numbers_that_a_function_asks_for_are_given():
    def by_width(q, k, v, d_k, mask=None, dropout=None):
        scores = q @ k.mT / d_k
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -6e4)
        weights = scores.softmax(-1)
        return (weights if dropout is None else dropout(weights)) @ v

    assert slugs(check.attention(by_width), "mistake") == {"scale-linear"}


class InAList(nn.Module):
    """Its maps stand in plain lists, which no optimizer looks into."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        width = embed_dim // num_heads
        self.maps = [[nn.Linear(embed_dim, width) for _ in range(3)] for _ in range(num_heads)]
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(self, x):
        heads = [(q(x) @ k(x).mT / q.out_features**0.5).softmax(-1) @ v(x) for q, k, v in self.maps]
        return self.out(torch.cat(heads, -1))


def test_maps_in_a_plain_list_are_no_parameters():
    assert "weights-not-parameters" in slugs(check.multi_head_attention(InAList), "mistake")


class Restless(Plain):
    def forward(self, query, key, value):
        return super().forward(query, key, value) + torch.randn(1)


def test_what_differs_from_call_to_call_is_not_called_dropout():
    report = check.multi_head_attention(Restless)
    assert "dropout-in-eval" not in slugs(report) and "batch-mixed" not in slugs(report)
    assert any("two calls" in found.evidence for found in report.findings)


class WeakFill(Plain):
    fill = -100.0

    def forward(self, x, mask=None):
        q, k, v = self.heads(self.w_q(x)), self.heads(self.w_k(x)), self.heads(self.w_v(x))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, self.fill)
        return self.w_o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_a_weak_fill_shows_where_queries_and_keys_grow_together():
    assert "mask-fill-small" in slugs(check.multi_head_attention(WeakFill), "mistake")
    strong = type("StrongFill", (WeakFill,), {"fill": -6e4})
    assert check.multi_head_attention(strong).ok


def test_a_bias_of_unnamed_keys_is_not_blamed():
    class Unnamed(Plain):
        def __init__(self, embed_dim, num_heads):
            nn.Module.__init__(self)
            self.num_heads = num_heads
            self.first, self.second, self.third, self.last = (
                nn.Linear(embed_dim, embed_dim) for _ in range(4)
            )

        def forward(self, x):
            q, k, v = (self.heads(m(x)) for m in (self.first, self.third, self.second))
            return self.last((self.weights(q, k) @ v).transpose(1, 2).flatten(2))

    report = check.multi_head_attention(Unnamed)
    assert report.ok and all(line.passed is not False for line in report.checks), str(report)


def test_declared_maps_are_those_of_the_smallest_example_too():
    class Renamed(Plain):
        def forward(self, x):
            q, k, v = self.heads(self.w_v(x)), self.heads(self.w_q(x)), self.heads(self.w_k(x))
            return self.w_o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    names = {"W_q": "w_v", "W_k": "w_q", "W_v": "w_k", "W_o": "w_o"}
    found = check.multi_head_attention(Renamed, weights=names).findings[0]
    # with one key the scale cannot show, with the wrong maps anything could
    assert found.slug == "scale-missing" and "T=S=2" in found.evidence


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("True in the mask = may attend", {"mask-inverted"}),
        ("True where a key is masked out", set()),
        ("mask (B, 1, T, S): True is blocked, False may be seen", set()),
    ],
)
def test_comments_say_what_true_means_in_a_notebook_too(said, named):
    """A class of a notebook has no file; its methods have their cell."""
    source = f"""
class Blocks(Plain):
    def forward(self, x, mask=None):
        # {said}
        q, k, v = self.heads(self.w_q(x)), self.heads(self.w_k(x)), self.heads(self.w_v(x))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask, -6e4)
        return self.w_o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
"""
    cell = f"<ipython-input-{abs(hash(said))}>"
    linecache.cache[cell] = len(source), None, source.splitlines(keepends=True), cell
    names = {"Plain": Plain, "__name__": "__main__"}
    exec(compile(source, cell, "exec"), names)
    assert slugs(check.multi_head_attention(names["Blocks"]), "mistake") == named


class Callable:
    """A function as an object, which cannot stand in a set."""

    def __eq__(self, other):
        return self is other

    def __call__(self, q, k, v):
        return (q @ k.mT).softmax(-1) @ v


def test_an_object_that_cannot_be_hashed_is_examined():
    assert slugs(check.attention(Callable()), "mistake") == {"scale-missing"}


class AddedAndNormed(Plain):
    def __init__(self, n_head, d_model):
        super().__init__(d_model, n_head)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, q, k, v):
        return self.norm(q + super().forward(q, k, v))


class NormedFirst(AddedAndNormed):
    def forward(self, x):
        y = self.norm(x)
        return x + Plain.forward(self, y, y, y)


class NormedAndUnscaled(AddedAndNormed):
    def weights(self, q, k):
        return (q @ k.mT).softmax(-1)


def test_norms_and_residuals_are_read_not_blamed():
    for subject in (AddedAndNormed, NormedFirst):
        report = check.multi_head_attention(subject)
        assert report.ok, str(report)
        assert any("adds the query" in line for line in report.reading)
    assert "scale-missing" in slugs(check.multi_head_attention(NormedAndUnscaled))


def test_what_cannot_be_compared_is_said_and_is_no_mistake():
    turned = mha.MultiHeadAttention(24, 4, rope=mha.positions.Rotary())
    report = check.multi_head_attention(turned)
    assert report.ok and slugs(report) == {"unknown"}
    assert "rope" in report.findings[0].evidence and "not compared" in report.findings[0].title
    assert all(line.passed is not False for line in report.checks), str(report)


def test_the_learner_may_say_what_cannot_be_told():
    class Quiet(nn.Module):
        def __init__(self, embed_dim, num_heads):
            super().__init__()
            self.num_heads = num_heads
            self.a, self.b, self.c, self.d = (nn.Linear(embed_dim, embed_dim) for _ in range(4))

        def forward(self, x, mask=None):
            q, k, v = (
                layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                for layer in (self.c, self.c, self.b)
            )
            scores = q @ k.mT / q.shape[-1] ** 0.5
            if mask is not None:
                scores = scores.masked_fill(mask, -torch.inf)
            return self.d((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    names = {"W_q": "c.weight", "W_k": "a.weight", "W_v": "b.weight", "W_o": "d.weight"}
    report = check.multi_head_attention(Quiet, mask="block", weights=names)
    assert slugs(report, "mistake") == {"qk-shared"}
    assert "mask-inverted" in slugs(check.multi_head_attention(Quiet, weights=names))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"mask": "blocked"}, ValueError, "attend, block, additive"),
        ({"weights": "W_q"}, TypeError, "weights must be a dict"),
        ({"weights": {"W_q": "w_q.weight"}}, ValueError, "lacks W_k"),
        ({"weights": dict.fromkeys(["W_q", "W_k", "W_v"], "w_x")}, ValueError, "no matrix 'w_x'"),
    ],
)
def test_options_that_are_none_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        check.multi_head_attention(Plain, **options)


def test_an_instance_is_left_as_it_was():
    module = nn.MultiheadAttention(12, 3, dropout=0.3).train()
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(5)
    np.random.seed(5)
    check.multi_head_attention(module)
    assert module.training and module.dropout == 0.3
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    torch.testing.assert_close(torch.rand(2), expected[0], rtol=0, atol=0)
    np.testing.assert_array_equal(np.random.rand(2), expected[1])
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


def test_the_report_is_the_same_each_time():
    entry = FAULTY[3]
    assert str(examine(entry)) == str(examine(entry))


BROKEN = {
    "undefined": ("exception", "name 'qq' is not defined"),
    "no_return": ("returns-nothing", "returned None"),
    "endless": ("timeout", "stopped after"),
    "huge": ("memory", ""),
    "leaves": ("exit", ""),
    "recurses": ("exception", "RecursionError"),
}


class Broken(Plain):
    """Its forward ends badly, in the way that ``how`` says."""

    how = ""

    def forward(self, x):
        if self.how == "undefined":
            return qq @ x
        if self.how == "endless":
            while True:
                try:
                    x = x + 0
                except BaseException:
                    pass
        if self.how == "huge":
            return torch.zeros(10**13)
        if self.how == "leaves":
            sys.exit(3)
        if self.how == "recurses":
            return self.forward(x)
        return None


@pytest.mark.parametrize("how", BROKEN)
def test_code_that_ends_badly_becomes_a_finding(how):
    slug, said = BROKEN[how]
    subject = type("Broken", (Broken,), {"how": how})
    report = check.multi_head_attention(subject, seconds=2)
    assert slugs(report) == {slug}, str(report)
    assert said in str(report)


def test_a_question_is_one_sentence():
    class Asks(Plain):
        def __init__(self, embed_dim, num_heads, tokenizer):
            super().__init__(embed_dim, num_heads)

    (found,) = check.multi_head_attention(Asks).findings
    assert found.slug == "question" and "tokenizer" in found.evidence


def test_the_checker_loads_nothing_until_it_is_used():
    code = "import sys, mha; print('mha.check' in sys.modules); mha.check; print('mha.check' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_dropout_whose_draws_all_examples_share_is_not_called_ignored():
    class Mixing(nn.Module):
        """Axes 0 and 2 exchanged, so the weights have no axis for the batch."""

        def __init__(self, d_model, nhead, dropout=0.0):
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(d_model, d_model) for _ in range(4))
            self.dropout = nn.Dropout(dropout)

        def forward(self, query, key, value):
            q, k, v = (
                part(x).transpose(0, 2)
                for part, x in ((self.q, query), (self.k, key), (self.v, value))
            )
            weights = self.dropout((q @ k.mT).softmax(-1))
            return self.o((weights @ v).transpose(0, 2))

    report = check.multi_head_attention(Mixing)
    slugs = [found.slug for found in report.findings]
    assert "batch-mixed" in slugs and "dropout-ignored" not in slugs
