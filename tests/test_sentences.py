"""Sentence pairs: the real ones of Tatoeba, how they are split, tidied and counted."""

import re

import pytest

from mha import data
from mha.data.sentences import tidy

CREDIT = re.compile(
    r"CC-BY 2\.0 \(France\) Attribution: tatoeba\.org #\d+ \([^()]+\) & #\d+ \([^()]+\)"
)


def pairs(*texts):
    """Pairs from "source > target", credited by their number."""
    cut = (text.split(" > ") for text in texts)
    return [data.SentencePair(one, other, f"#{i}") for i, (one, other) in enumerate(cut)]


LETTERS = pairs(*(f"{s} > {t}" for s in "abcdefghij" for t in "xy"[: 1 + (s < "e")]))


@pytest.fixture(scope="module")
def real():
    return data.tatoeba()


# Tatoeba


def test_all_pairs_are_there_in_parts_without_a_common_source(real):
    assert [len(part) for part in real] == [138_503, 1_175, 1_190]
    sources = [{pair.source for pair in part} for part in real]
    assert [len(part) for part in sources] == [117_342, 1_000, 1_000]
    assert len(set.union(*sources)) == 119_342


def test_attribution_of_every_pair_is_kept(real):
    odd = [p.attribution for part in real for p in part if not CREDIT.fullmatch(p.attribution)]
    assert odd == []
    [go] = [p for p in real.train if p.source == "Go." and p.target == "Ve."]
    assert go.attribution == (
        "CC-BY 2.0 (France) Attribution: tatoeba.org #2877272 (CM) & #4986655 (cueyayotl)"
    )


def test_texts_are_tidy_and_in_their_own_language(real):
    texts = [text for part in real for pair in part for text in pair[:2]]
    assert all(texts) and all(tidy(text) == text for text in texts[::7])
    letters = {side: "".join(p[side] for p in real.train).count("ñ") for side in (0, 1)}
    assert letters[1] > 100 * letters[0]


def test_sources_of_all_kinds_are_held_out(real):
    for part in (real.validation, real.test):
        lengths = [len(data.words(source)) for source in data.references(part)]
        assert 7 < sum(lengths) / len(lengths) < 9
        assert min(lengths) <= 3 and max(lengths) >= 20
    several = [texts for texts in data.references(real.test).values() if len(texts) > 1]
    assert len(several) > 80


# The split


def test_all_pairs_of_a_source_are_in_one_part_and_none_is_lost():
    parts = data.split_by_source(LETTERS, held_out=3)
    assert sorted(sum(parts, [])) == sorted(LETTERS)
    sources = [[*dict.fromkeys(pair.source for pair in part)] for part in parts]
    assert list(map(len, sources)) == [4, 3, 3]
    assert len({source for part in sources for source in part}) == 10
    for part in parts:
        assert part == sorted(part, key=LETTERS.index)  # in the order they came


def test_the_seed_alone_decides():
    parts = data.split_by_source(LETTERS, held_out=3, seed=1)
    assert data.split_by_source(list(LETTERS), held_out=3, seed=1) == parts
    others = [data.split_by_source(LETTERS, held_out=3, seed=seed) for seed in range(2, 7)]
    assert all(other != parts for other in others)
    assert {p.source for other in others for p in other.test} > {p.source for p in parts.test}


def test_the_split_of_a_seed_never_changes():
    parts = data.split_by_source(LETTERS, held_out=2, seed=0)
    assert ["".join(dict.fromkeys(p.source for p in part)) for part in parts[1:]] == ["cf", "dh"]


@pytest.mark.parametrize("held_out", [-1, 0, 5, 8])
def test_a_split_that_leaves_a_part_empty_is_refused(held_out):
    message = f"held_out must be at least 1 and leave some of the 10 sources .* got {held_out} for"
    with pytest.raises(ValueError, match=message):
        data.split_by_source(LETTERS, held_out=held_out)


def test_the_largest_split_leaves_one_source_to_train_on():
    parts = data.split_by_source(pairs("a > x", "b > y", "c > z"), held_out=1)
    assert list(map(len, parts)) == [1, 1, 1]


# References, words, tidy texts


def test_references_are_in_order_with_their_source():
    found = data.references(pairs("b > 2", "a > 1", "b > 0"))
    assert list(found.items()) == [("b", ["2", "0"]), ("a", ["1"])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm here.", ["I", "'", "m", "here", "."]),
        ("¿Qué hora es…?", ["¿", "Qué", "hora", "es", "…", "?"]),
        ("It costs $3.50", ["It", "costs", "$", "3", ".", "50"]),
        ("", []),
    ],
)
def test_words_and_marks(text, expected):
    assert data.words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a\u00a0 b\t c ", "a b c"),
        ("man\u0303ana", "ma\u00f1ana"),
        ("a\u200bb\u200e \ufeffc", "ab c"),
        ("¿Sí?", "¿Sí?"),
    ],
)
def test_tidy(text, expected):
    assert tidy(text) == expected
