"""Pieces of words: text comes back, ids mean what they say, and what is wrong is refused."""

import copy
import pickle
import re
import sys
import unicodedata

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mha import data
from mha.data import SentencePair, Subwords

pytest.importorskip("sentencepiece")

WORDS = "El yo canto tú cantas ella canta niño corazón qué señor pingüino I sing you she sings car"
TEXTS = [
    f"{first} {second}{mark}"
    for first in WORDS.split()
    for second in WORDS.split()
    for mark in (".", "?", "!", ",")
]
TEXTS += ["¿Qué?", "¡No!", "½ m² …", "Abc xyz 0123456789 wkjhbfvz"]
LETTERS = sorted({letter for text in TEXTS for letter in text} - {" "})


@pytest.fixture(scope="module")
def subwords() -> Subwords:
    return Subwords.train(TEXTS, 120)


# A text and its ids

sentences = st.lists(st.text(LETTERS, min_size=1), max_size=6).map(" ".join)


@given(sentences)
@example("¿Qué niño canta? ¡El pingüino!")
@example("")
@settings(deadline=None)
def test_text_comes_back(subwords, text):
    ids = subwords.encode(text)
    assert subwords.decode(ids) == text
    assert subwords.decode(subwords.encode(text, bos=True, eos=True)) == text
    assert subwords.unk_id not in ids and not {0, 1, 2} & set(ids)
    assert "".join(subwords.pieces(text)) == (text and "▁" + text.replace(" ", "▁"))
    assert [subwords.tokens[i] for i in ids] == subwords.pieces(text)


@given(sentences)
@settings(deadline=None)
def test_accents_may_come_apart_from_their_letters(subwords, text):
    apart = unicodedata.normalize("NFD", text)
    assert subwords.encode(apart) == subwords.encode(text)
    assert subwords.pieces(apart) == subwords.pieces(text)


def test_pieces_are_learned_from_any_form_of_the_text(subwords):
    apart = Subwords.train((unicodedata.normalize("NFD", text) for text in TEXTS), 120)
    assert apart.to_bytes() == subwords.to_bytes()


@given(st.text())
@settings(deadline=None)
def test_any_text_can_be_read(subwords, text):
    ids = subwords.encode(text)
    assert all(3 <= i < len(subwords) for i in ids)
    assert isinstance(subwords.decode(ids), str)


def test_unknown_characters(subwords):
    ids = subwords.encode("canto 🎵 señor")
    assert ids.count(subwords.unk_id) == 1
    assert "🎵" in subwords.pieces("canto 🎵 señor")  # what cannot be known stands for itself
    decoded = subwords.decode(ids)
    assert re.fullmatch(r"canto +⁇ +señor", decoded), decoded
    assert subwords.encode("漢")[-1] == subwords.encode("Ж")[-1] == subwords.unk_id


def test_spaces_are_single_ones_between_words(subwords):
    assert subwords.decode(subwords.encode("  yo   canto ")) == "yo canto"


@pytest.mark.parametrize("space", ["\n", "\t", "\r\n", "\u00a0", "\u3000"])
def test_spaces_of_any_kind_are_spaces(subwords, space):
    assert subwords.encode(f"yo{space}canto") == subwords.encode("yo canto")
    assert Subwords.train([text.replace(" ", space) for text in TEXTS], 120).tokens == (
        subwords.tokens
    )


def test_what_is_no_text_is_refused(subwords):
    for call in (subwords.encode, subwords.pieces, lambda x: Subwords.train([x], 50)):
        with pytest.raises(TypeError, match="text must be a str, got NoneType"):
            call(None)


def test_errors_of_the_texts_come_through():
    def broken():
        yield from TEXTS
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        Subwords.train(broken(), 120)


def test_words_that_are_frequent_are_pieces(subwords):
    assert subwords.pieces("yo canto") == ["▁yo", "▁canto"]
    assert len(subwords.pieces("xyz")) > 1


# Ids


def test_special_ids(subwords):
    assert (subwords.pad_id, subwords.bos_id, subwords.eos_id, subwords.unk_id) == (0, 1, 2, 3)
    assert len(subwords.tokens) == len(subwords) == len(set(subwords.tokens)) == 120
    plain = subwords.encode("yo canto")
    assert subwords.encode("yo canto", bos=True) == [1, *plain]
    assert subwords.encode("yo canto", eos=True) == [*plain, 2]
    assert subwords.encode("yo canto", bos=True, eos=True) == [1, *plain, 2]
    assert subwords.encode("", bos=True, eos=True) == [1, 2]
    assert repr(subwords) == "Subwords(120 pieces)"


def test_ids_of_a_model_become_text(subwords):
    ids = subwords.encode("yo canto")
    junk = subwords.encode("señor")
    assert subwords.decode(torch.tensor([1, *ids, 2, *junk, 0, 0])) == "yo canto"
    assert subwords.decode(torch.tensor([0, 1, *ids])) == "yo canto"
    assert subwords.decode(torch.tensor([], dtype=torch.long)) == ""
    assert subwords.decode([0, 0, 1, 2, 1]) == ""
    assert subwords.decode(tuple(ids)) == "yo canto"


def test_ids_outside_are_refused(subwords):
    for wrong in (-1, 120):
        with pytest.raises(ValueError, match=f"id {wrong} is outside a vocabulary of 120 pieces"):
            subwords.decode([5, wrong])
        with pytest.raises(ValueError, match=f"id {wrong} is outside"):
            subwords.decode(torch.tensor([2, wrong]))  # after the end, too


# Training and keeping


def test_same_texts_same_bytes(subwords):
    again = Subwords.train(iter(TEXTS), 120)  # any iterable does
    assert again.to_bytes() == subwords.to_bytes()
    assert Subwords.train(TEXTS, 100).to_bytes() != subwords.to_bytes()


def test_fewer_pieces_are_a_part_of_more(subwords):
    # both end with the characters, the merged pairs come before them
    characters = [piece for piece in subwords.tokens[4:] if len(piece) == 1]
    few = Subwords.train(TEXTS, 100).tokens
    assert subwords.tokens[: 100 - len(characters)] == few[: 100 - len(characters)]
    assert list(few[-len(characters) :]) == characters
    assert set(characters) == {*LETTERS, "▁"}


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda pieces: pickle.loads(pickle.dumps(pieces)),
        lambda pieces: Subwords.from_bytes(pieces.to_bytes()),
    ],
    ids=["copy", "deepcopy", "pickle", "bytes"],
)
def test_copies_do_the_same(subwords, copied):
    again = copied(subwords)
    assert again is not subwords
    assert again.tokens == subwords.tokens and again.to_bytes() == subwords.to_bytes()
    for text in TEXTS[:50]:
        assert again.encode(text) == subwords.encode(text)


def test_long_texts_are_learned_from_too():
    text = "zorro zumba " * 1000  # SentencePiece by itself passes over what has 4193 bytes
    assert "▁zorro" in Subwords.train([*TEXTS, text], 120).tokens
    assert len(Subwords.train(["漢字" * 3000], 8)) == 8


def test_training_that_cannot_be_done():
    with pytest.raises(TypeError, match="texts must be an iterable of str, got one str 'canto'"):
        Subwords.train("canto", 50)
    with pytest.raises(ValueError, match="no 9999 pieces can be made of these texts"):
        Subwords.train(TEXTS, 9999)
    with pytest.raises(ValueError, match="no 20 pieces can be made of these texts"):
        Subwords.train(TEXTS, 20)  # fewer than there are characters
    with pytest.raises(ValueError, match="no 50 pieces can be made of these texts"):
        Subwords.train([], 50)


def test_a_model_with_other_special_ids_is_refused():
    import io

    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=made,
        model_type="bpe",
        vocab_size=120,
        minloglevel=2,
    )  # the library's own choice: unknown 0, beginning 1, end 2, no padding
    with pytest.raises(ValueError, match=r"ids 0 to 3 .* got \(-1, 1, 2\) and 0"):
        Subwords(made.getvalue())


@pytest.mark.parametrize("model", [b"", b"no model of pieces"])
def test_bytes_of_another_kind_are_refused(model):
    with pytest.raises(ValueError, match=f"a SentencePiece model, got {len(model)} bytes"):
        Subwords.from_bytes(model)


@pytest.mark.parametrize("use", [lambda: Subwords(b""), lambda: Subwords.train(TEXTS, 120)])
def test_without_the_library_the_error_names_the_extra(monkeypatch, use):
    for name in [name for name in sys.modules if name.split(".")[0] == "sentencepiece"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r'needs sentencepiece: pip install "mha\[data\]"'):
        use()


# As a vocabulary


def test_they_stand_in_for_vocabularies(subwords):
    pairs = [
        SentencePair("I sing.", "yo canto.", "ours"),
        SentencePair("she sings", "ella canta, niño?", "ours"),
    ]
    batch = data.translation_batch(pairs, subwords, subwords)
    for row, pair in enumerate(pairs):
        source = batch.source_ids[row]
        assert subwords.decode(source) == pair.source
        assert batch.source_mask[row].tolist() == (source != subwords.pad_id).tolist()
        assert batch.target_in[row, 0] == subwords.bos_id
        assert subwords.decode(batch.target_in[row]) == pair.target
        assert subwords.decode(batch.target_out[row]) == pair.target
        assert batch.target_out[row].tolist().count(subwords.eos_id) == 1
    batches = data.translation_batches(pairs * 5, subwords, subwords, 4, seed=0)
    seen = [subwords.decode(ids) for batch in batches for ids in batch.target_out]
    assert sorted(seen) == sorted(pair.target for pair in pairs * 5)
