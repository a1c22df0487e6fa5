"""Distances in words between sentences, against the table that defines them."""

import random

import numpy as np
import pytest

from mha.data.nearest import nearest_sentences, plain_words


def distance(a, b):
    """Levenshtein's, cell by cell."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            replaced = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, replaced)
    return table[-1][-1]


def sentences(count, longest, alphabet, seed):
    rng = random.Random(seed)
    return [[rng.choice(alphabet) for _ in range(rng.randint(0, longest))] for _ in range(count)]


@pytest.mark.parametrize(
    ("alphabet", "longest"), [("ab", 5), ("abcdefgh", 9), ("abcdefghijklmnopqrstuvwxyz", 14)]
)
def test_equal_to_brute_force(alphabet, longest):
    corpus = sentences(60, longest, alphabet, seed=1)
    asked = sentences(80, longest + 3, alphabet + "!?", seed=2)  # words the corpus lacks, too
    found = nearest_sentences(asked, corpus)
    for text, far, i in zip(asked, found.distance, found.index, strict=True):
        assert far == min(distance(text, other) for other in corpus)
        assert far == distance(text, corpus[i])
    assert found.distance.max() > 2 and found.distance.min() == 0


def test_repeated_words_count_as_often_as_both_have_them():
    # With a word counted once the bound of "a a a" would be 2, with it counted freely below 0.
    found = nearest_sentences([["a", "a", "a"]], [["b", "b"], ["a", "a", "a", "b"], ["a"]])
    assert found.distance.tolist() == [1] and found.index.tolist() == [1]


def test_order_counts():
    assert nearest_sentences([["a", "b", "c"]], [["c", "b", "a"]]).distance.tolist() == [2]


def test_a_near_one_with_a_worse_bound_is_found():
    mixed, near = list("fedcba"), list("abcdxy")  # bound 0 but 6 apart; bound 2 and 2 apart
    found = nearest_sentences([list("abcdef")], [mixed, near])
    assert found.distance.tolist() == [2] and found.index.tolist() == [1]


def test_empty_sentences():
    found = nearest_sentences([[], ["a"]], [[], ["b", "c"]])
    assert found.distance.tolist() == [0, 1] and found.index.tolist() == [0, 0]
    assert nearest_sentences([["a", "b"]], [[]]).distance.tolist() == [2]


def test_no_sentences():
    found = nearest_sentences([], [["a"]])
    assert found.distance.shape == found.index.shape == (0,)
    assert found.distance.dtype == np.int64


def test_plain_words():
    assert plain_words("I'm HERE, Señor: ¿sí? 3_ …") == ["i", "m", "here", "señor", "sí", "3_"]
    assert plain_words("_ ?!") == []


@pytest.mark.parametrize(
    ("asked", "corpus", "error", "message"),
    [
        (["a b"], [["a"]], TypeError, "sentences must hold lists of words, got the str 'a b'"),
        ([["a"]], ["a b"], TypeError, "corpus must hold lists of words"),
        ("ab", [["a"]], TypeError, "sentences must hold lists of words, got the str 'a'"),
        ([["a"]], [], ValueError, "corpus must hold at least one sentence, got none"),
    ],
)
def test_refusals(asked, corpus, error, message):
    with pytest.raises(error, match=message):
        nearest_sentences(asked, corpus)
