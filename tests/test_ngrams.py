"""mha.models.ngram_nats: tables of counts, against the definition written out."""

import math

import pytest
import torch

from mha import models

TRAIN = torch.tensor([0, 1, 2, 0, 1, 3, 0, 1, 2, 2, 0])
HELD = torch.tensor([1, 2, 0, 1, 2, 3, 3, 0])


def by_definition(order, strength, vocab_size=5):
    """The recursion, with strings for the runs of tokens."""
    train, held = ("".join(map(str, ids.tolist())) for ids in (TRAIN, HELD))

    def count(run):
        return sum(train[i : i + len(run)] == run for i in range(len(train) - len(run) + 1))

    def probability(run):
        if not run:
            return 1 / vocab_size
        followed = sum(count(run[:-1] + str(token)) for token in range(vocab_size))
        return (count(run) + strength * probability(run[1:])) / (followed + strength)

    places = range(order - 1, len(held))
    return [
        sum(-math.log(probability(held[t - n + 1 : t + 1])) for t in places) / len(places)
        for n in range(1, order + 1)
    ]


@pytest.mark.parametrize("strength", [0.5, 20.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_tables_are_their_definition(order, strength):
    found = models.ngram_nats(TRAIN, HELD, order, vocab_size=5, strength=strength)
    assert found == pytest.approx(by_definition(order, strength), abs=1e-12)


def test_what_follows_a_rule_is_soon_told():
    ids = torch.tensor([0, 1, 0, 2]).repeat(500)
    one, two, three = models.ngram_nats(ids, ids, 3, vocab_size=3, strength=0.01)
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert one == pytest.approx(entropy, abs=1e-3)
    assert two == pytest.approx(0.5 * math.log(2), abs=1e-3) and three < 1e-3


def test_refusals():
    for change, message in (
        ({"order": 0}, "order must be 1 or more"),
        ({"order": 11, "vocab_size": 67}, r"V \*\* order below 2 \*\* 63, got 11"),
        ({"strength": 0}, "strength must be above 0, got 0"),
        ({"order": 9}, "at least order=9 tokens, got 11 and 8"),
    ):
        options = {"order": 2, "vocab_size": 4} | change
        with pytest.raises(ValueError, match=message):
            models.ngram_nats(TRAIN, HELD, **options)
