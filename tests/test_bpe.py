"""Byte-pair encoding: against the definition, by hand, and against SentencePiece's."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mha.data import Subwords, apply_bpe, learn_bpe, marked_words

few_letters = st.dictionaries(st.text("abc", min_size=1, max_size=8), st.integers(1, 5), max_size=8)


def learn_slowly(counts, merges):
    """The definition: all pairs are counted anew before each merge. Also returns the cut words."""
    cut, learned = {word: list(word) for word in counts}, []
    while len(learned) < merges:
        totals = Counter()
        for word, pieces in cut.items():
            for pair in pairwise(pieces):
                totals[pair] += counts[word]
        if not totals:
            break
        pair = min(totals, key=lambda p: (-totals[p], len(p[0] + p[1]), p[0] + p[1], p[0]))
        learned.append(pair)
        for pieces in cut.values():
            place = 0
            while place < len(pieces) - 1:
                if (pieces[place], pieces[place + 1]) == pair:
                    pieces[place : place + 2] = ["".join(pair)]
                place += 1
    return learned, cut


# Words


def test_words_are_marked_and_punctuation_stands_apart():
    assert marked_words("I'm 28 now.") == ["▁I", "'", "m", "▁28", "▁now", "."]
    assert marked_words("¿Qué? ¡No...!") == ["▁¿", "Qué", "?", "▁¡", "No", "...!"]
    assert marked_words("snake_case a1") == ["▁snake", "_", "case", "▁a", "1"]
    assert marked_words("  two   spaces ") == ["▁two", "▁spaces"]
    assert marked_words("") == marked_words(" ") == []


@given(st.text())
@example("a▁b ▁ c▁▁")
def test_words_joined_are_the_text(text):
    words = marked_words(text)
    assert "".join(words) == "".join("▁" + part for part in text.split())
    assert all(words)


# Learning


def test_merges_by_hand():
    counts = {"abc": 3, "bcd": 2, "bc": 1, "ad": 5}
    # bc stands 6 times, ad 5 times; then a + bc 3 times, and bc + d 2 times
    pairs = [("b", "c"), ("a", "d"), ("a", "bc"), ("bc", "d")]
    assert learn_bpe(counts, 4) == pairs
    assert learn_bpe(counts, 2) == pairs[:2]
    assert learn_bpe(counts, 0) == []
    assert learn_bpe(counts, 99) == pairs  # every word is one piece


def test_ties_go_to_the_shorter_piece_then_to_code_points():
    assert learn_bpe({"xy": 1, "ab": 1}, 2) == [("a", "b"), ("x", "y")]
    assert learn_bpe({"aab": 1, "Zz": 1}, 2) == [("Z", "z"), ("a", "a")]
    counts = {"cde": 9, "yz": 8, "bcde": 8, "xb": 8}
    assert learn_bpe(counts, 4)[:2] == [("c", "d"), ("cd", "e")]
    assert learn_bpe(counts, 4)[2:] == [("x", "b"), ("y", "z")]  # before the longer b + cde


@given(few_letters, st.integers(0, 12))
@example({"aaa": 1, "aaaa": 1}, 5)
@example({"ababab": 2, "baba": 3}, 6)
@settings(deadline=None, max_examples=50)
def test_merges_are_those_of_the_definition(counts, merges):
    learned, cut = learn_slowly(counts, merges)
    assert learn_bpe(counts, merges) == learned
    for word in counts:
        assert apply_bpe(word, learned) == cut[word]


def test_the_order_of_the_words_does_not_matter():
    words = "a man a plan a canal panama uno dos tres cuatro canta cantas cantan".split()
    learned = learn_bpe(Counter(words), 20)
    for seed in range(5):
        random.Random(seed).shuffle(words)
        assert learn_bpe(Counter(words), 20) == learned


def test_arguments_that_are_refused():
    with pytest.raises(ValueError, match="merges must be at least 0, got -1"):
        learn_bpe({"ab": 1}, -1)
    with pytest.raises(ValueError, match="counts must be at least 1, got 0 for 'cd'"):
        learn_bpe({"ab": 1, "cd": 0}, 1)


# Applying


def test_pieces_of_a_word():
    merges = [("a", "n"), ("c", "an"), ("a", "s"), ("can", "t"), ("an", "an")]
    assert apply_bpe("cantas", merges) == ["cant", "as"]
    assert apply_bpe("banana", merges) == ["b", "anan", "a"]
    assert apply_bpe("€", merges) == ["€"]
    assert apply_bpe("cab", []) == ["c", "a", "b"]
    assert apply_bpe("", merges) == []


def test_merges_are_applied_in_their_order():
    # b + c is the first to merge, so a + b finds no b
    assert apply_bpe("abc", [("b", "c"), ("a", "b")]) == ["a", "bc"]
    assert apply_bpe("abc", [("a", "b"), ("b", "c")]) == ["ab", "c"]
    assert apply_bpe("aaa", [("a", "a")]) == ["aa", "a"]  # from the left


@given(few_letters, st.text("abcd"))
@settings(deadline=None, max_examples=50)
def test_pieces_joined_are_the_word_and_more_merges_never_more_pieces(counts, word):
    merges = learn_bpe(counts, 12)
    lengths = []
    for n in range(len(merges) + 1):
        pieces = apply_bpe(word, merges[:n])
        assert "".join(pieces) == word
        lengths.append(len(pieces))
    assert lengths == sorted(lengths, reverse=True)


# Another implementation


def test_merges_are_those_of_sentencepiece():
    pytest.importorskip("sentencepiece")
    syllables = ["ca", "no", "pre", "st", "ó", "ñ", "le", "mi", "r", "oo", "fff"]
    rng = random.Random(0)
    lexicon = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(300)]
    weights = [1 / rank for rank in range(1, 301)]
    texts = [" ".join(rng.choices(lexicon, weights, k=8)) + rng.choice(".?!") for _ in range(400)]
    library = Subwords.train(texts, 220)
    theirs = [piece for piece in library.tokens[4:] if len(piece) > 1]
    counts = Counter(word for text in texts for word in marked_words(text))
    ours = ["".join(pair) for pair in learn_bpe(counts, len(theirs))]
    assert len(theirs) > 150
    assert ours == theirs
