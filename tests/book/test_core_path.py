"""The core path: the solutions of the core exercises, one after another, make a working attention.

A learner who does only these carries the code from chapter to chapter. So here the solutions run in
the order of the book, in one namespace that holds nothing of a chapter.
"""

import copy
import linecache
import math
import re

import numpy as np
import pytest
import torch
from bookfiles import notebooks, read
from exercises import Exercise, exercises
from torch import nn

import mha
from mha import check, masks
from mha.models import Translator

PLACES = ["03", "04-2", "05-3", "05-4", "05-5", "06-4"]
PIECES = ["softmax", "attention", "split_heads", "merge_heads"]
ENGLISH = [
    "Hello!",
    "The water is very cold today.",
    "I don't know where my keys are.",
    "My sister bought two books and a red hat.",
    "Why did you open the door if you were afraid of the dog?",
]
CAUSAL = masks.causal(3, 5)  # (T, S)
MASKS = {
    "none": None,
    "causal and padding": CAUSAL & masks.padding([5, 2])[:, None, None],
    "a dead row": CAUSAL & torch.tensor([[True], [False], [True]]),
    "a dead sentence": CAUSAL & masks.padding([0, 4], max_len=5)[:, None, None],
    "a mask for each head": torch.rand(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    < 0.5,
}


def place(exercise: Exercise) -> str:
    """The number of its chapter as the file spells it: "04-2" of 04-2-scores.ipynb."""
    return re.match(r"\d+(-\d)?(?=-)", exercise.path.stem)[0]


CORE = [one for path in notebooks() for one in exercises(path) if one.core]
HERE = [one for one in CORE if place(one) != PLACES[-1]]  # the last needs data from the network


def run(source: str, name: str, namespace: dict) -> None:
    """Execute one cell; the checker can read its lines, as it can those of a notebook."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), namespace)


@pytest.fixture(scope="module")
def written():
    """The names that the path leaves behind."""
    namespace = {"__name__": "core_path", "torch": torch, "np": np, "math": math, "nn": nn}
    namespace |= {"mha": mha, "check": check}
    for exercise in HERE:
        for part, cell in enumerate(exercise.tagged("solution")):
            name = f"<{exercise.path.stem}, exercise {exercise.number}, cell {part}>"
            run(cell.source, name, namespace)
    return namespace


@pytest.fixture(scope="module")
def attentions(written):
    """The learner's module and ours, in float64, with the same weights."""
    torch.manual_seed(0)
    ours = mha.MultiHeadAttention(24, 4, dropout=0.25, dtype=torch.float64).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.5)
    theirs = written["MyMultiHeadAttention"](24, 4, dropout=0.25).double().eval()
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


def test_the_path_leads_through_these_chapters():
    assert list(dict.fromkeys(map(place, CORE))) == PLACES


def test_each_exercise_of_the_path_is_written_and_names_the_way_on():
    for one in HERE:
        assert one.kind == "write it", one.title
        statement = next(
            cell.source
            for cell in read(one.path).cells
            if f"### Exercise {one.number}: {one.title}" in cell.source
        )
        chapters = re.findall(r"\]\((\d[\w-]+)\.ipynb", statement)
        onward = [chapter for chapter in chapters if chapter > one.path.stem]
        assert onward or re.search(r"next exercise|exercise \d", statement), one.title


def test_the_pieces_are_left_behind(written):
    names = {*PIECES, "causal_mask", "padding_mask", "MyMultiHeadAttention"}
    assert names <= written.keys()


def test_the_class_is_made_of_the_pieces(written, monkeypatch):
    called = []
    for name in PIECES:
        piece = written[name]

        def counted(*args, name=name, piece=piece, **kwargs):
            called.append(name)
            return piece(*args, **kwargs)

        monkeypatch.setitem(written, name, counted)
    written["MyMultiHeadAttention"](8, 2)(torch.randn(2, 3, 8))
    assert set(called) == set(PIECES)


@pytest.mark.parametrize("name", [*PIECES, "causal_mask", "padding_mask"])
def test_the_checker_finds_nothing_in_a_piece(written, name):
    report = getattr(check, name)(written[name])
    assert not report.findings, str(report)


def test_the_checker_finds_nothing_in_the_class(written):
    report = check.multi_head_attention(written["MyMultiHeadAttention"])
    assert not report.findings, str(report)


@pytest.mark.parametrize("name", MASKS)
def test_the_class_gives_the_numbers_and_the_gradients_of_ours(attentions, name):
    mask, results = MASKS[name], []
    for module, argument in zip(attentions, ("mask", "attn_mask"), strict=True):
        chance = torch.Generator().manual_seed(1)
        query, key, value, probe = (
            torch.randn(2, length, 24, generator=chance, dtype=torch.float64)
            for length in (3, 5, 5, 3)
        )
        inputs = [x.requires_grad_() for x in (query, key, value)]
        module.zero_grad()
        output = module(*inputs, **{argument: mask})  # (B, T, E)
        (output * probe).sum().backward()
        grads = {name: p.grad for name, p in module.named_parameters()}
        grads |= {name: x.grad for name, x in zip("qkv", inputs, strict=True)}
        results.append({"output": output} | grads)
    mine, right = results
    assert mine.keys() == right.keys()
    for part, x in mine.items():
        assert x.isfinite().all(), part
        assert (x - right[part]).abs().max() <= 1e-12, part


def test_a_dead_query_gets_exactly_zero(written):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, length, 6) for length in (3, 5, 5))
    output, weights = written["attention"](query, key, value, MASKS["a dead row"])
    assert (output[:, :, 1] == 0).all() and (weights[:, :, 1] == 0).all()


def test_missing_inputs_are_those_before(attentions):
    theirs, _ = attentions
    x, memory = (torch.randn(2, length, 24, dtype=torch.float64) for length in (3, 5))
    assert torch.equal(theirs(x), theirs(x, x, x))
    assert torch.equal(theirs(x, memory), theirs(x, memory, memory))


def test_dropout_acts_in_training_only_and_keeps_the_mean(attentions):
    theirs, ours = (copy.deepcopy(module) for module in attentions)
    x = torch.randn(1, 4, 24, dtype=torch.float64)
    torch.manual_seed(0)
    with torch.no_grad():
        draws = theirs.train()(x.expand(4000, 4, 24))  # (draws, T, E)
    error = (draws.mean(0) - ours(x)[0]) / (draws.std(0) / 4000**0.5)  # in standard errors
    assert draws.std(0).min() > 0 and error.abs().max() < 5


def test_the_class_translates_as_ours_token_for_token(written):
    model = Translator.from_checkpoint("en-es")
    changed = check.transplant(model, written["MyMultiHeadAttention"])
    kinds = [type(part).__name__ for part in changed.modules()]
    assert kinds.count("MyMultiHeadAttention") == 6 and "MultiHeadAttention" not in kinds
    ids, mask = mha.data.pad([model.subwords.encode(text) for text in ENGLISH], model.pad_id)
    options = {"source_mask": mask, "max_length": 40}
    said = changed.translate(ids, use_cache=False, **options)
    assert torch.equal(said, model.translate(ids, **options))
    spanish = [model.subwords.decode(row) for row in said]
    assert len(set(spanish)) == len(ENGLISH) and all(spanish)
