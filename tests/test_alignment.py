"""The pairs linked by hand, and the way from cross-attention to links and their score."""

import re
from collections import Counter

import pytest
import torch

from mha import data, models
from mha.data import alignments as module
from mha.models import AlignmentScore, LinkCounts


@pytest.fixture(scope="module")
def gold():
    return data.aligned_pairs()


# The pairs


def test_there_are_five_pairs_for_each_of_twelve_phenomena(gold):
    assert len({pair.source for pair in gold}) == len({pair.target for pair in gold}) == 60
    assert [*Counter(pair.phenomenon for pair in gold).values()] == [5] * 12


def test_links_are_inside_and_leave_no_word_out(gold):
    for pair in gold:
        assert pair.sure < pair.possible or pair.sure == pair.possible
        linked = [sorted({link[side] for link in pair.possible}) for side in (0, 1)]
        assert linked == [list(range(len(data.words(text)))) for text in pair[:2]], pair


def test_a_target_word_has_at_most_one_sure_link(gold):
    """So links of one source word for each target word can be right everywhere."""
    best = []
    for pair in gold:
        sure = {target: (source, target) for source, target in pair.sure}
        assert len(sure) == len(pair.sure), pair
        chosen = {target: (source, target) for source, target in pair.possible} | sure
        best.append(models.link_counts(chosen.values(), pair))
    assert models.alignment_score(best) == AlignmentScore(1.0, 1.0, 0.0)


def test_sentences_are_short_and_well_formed(gold):
    for pair in gold:
        assert 4 <= len(re.findall(r"[\w']+", pair.source)) <= 9, pair.source
        for text in pair[:2]:
            assert data.words(text)[-1] in ".?" and text == " ".join(text.split())
        assert ("?" in pair.source) == pair.target.startswith("¿") == pair.target.endswith("?")


def test_punctuation_and_unchanged_words_are_linked(gold):
    for pair in gold:
        source, target = map(data.words, pair[:2])
        assert (len(source) - 1, len(target) - 1) in pair.sure
        for name in {"Tom", "hotel"} & {*source}:
            assert (source.index(name), target.index(name)) in pair.sure
        for (english, spanish), place in WELL_KNOWN.items():
            if english in source and spanish in target and source.count(english) == 1:
                link = source.index(english), target.index(spanish)
                assert (link in pair.sure) == place, (pair, english)


WELL_KNOWN = {
    ("car", "coche"): True,
    ("red", "rojo"): True,
    ("small", "pequeña"): True,
    ("I", "vi"): False,
    ("him", "Lo"): True,
    ("t", "no"): True,
    ("t", "No"): True,
    ("never", "Nunca"): True,
    ("There", "Hay"): False,
    ("like", "gusta"): True,
    ("children", "niños"): True,
    ("children", "los"): False,
    ("door", "puerta"): True,
    ("doctor", "médico"): True,
    ("speak", "Hablas"): True,
}


def test_no_pair_is_one_that_translators_are_trained_on(gold):
    parts = data.tatoeba()
    known = {bare(text) for part in parts for pair in part for text in pair[:2]}
    assert not [pair for pair in gold if bare(pair.source) in known or bare(pair.target) in known]


def bare(text: str) -> str:
    return "".join(data.words(text.casefold()))


@pytest.mark.parametrize("links", ["2-0", "0-2"])
def test_a_link_outside_its_sentence_is_refused(monkeypatch, links):
    monkeypatch.setattr(module, "PAIRS", f"# x\nYes. | Sí. | 0-0 {links}")
    with pytest.raises(ValueError, match=re.escape("links must be below (2, 2) in 'Yes.'")):
        data.aligned_pairs()


def test_possible_links_hold_the_sure_ones(monkeypatch):
    monkeypatch.setattr(module, "PAIRS", "# x\nI am. | Soy. | 1-0 2-1 | 0-0")
    (pair,) = data.aligned_pairs()
    assert pair.sure == {(1, 0), (2, 1)} and pair.possible == {(0, 0), (1, 0), (2, 1)}
    assert pair.phenomenon == "x"


# From pieces to words


def test_each_piece_belongs_to_its_word():
    shares = models.word_shares(["▁I", "▁do", "n", "'", "t", "▁know", "."])
    assert shares.argmax(1).tolist() == [0, 1, 1, 2, 3, 4, 5]  # I don ' t know .
    assert shares.sum(1).tolist() == [1] * 7 and shares.max(1).values.tolist() == [1] * 7


def test_a_space_alone_belongs_to_the_word_behind_it():
    assert models.word_shares(["▁", "¿", "Qué", "▁", "x"]).tolist() == [
        [1, 0, 0],
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [0, 0, 1],
    ]


def test_a_piece_of_several_words_is_shared_by_characters():
    shares = models.word_shares(["▁ab", '."', "▁2:30"])  # ab . " 2 : 30
    expected = [[1, 0, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0, 0], [0, 0, 0, 0.25, 0.25, 0.5]]
    assert shares.tolist() == expected


@pytest.mark.parametrize("pieces", [[], ["▁"], [" "]])
def test_pieces_must_hold_a_word(pieces):
    with pytest.raises(ValueError, match="pieces must hold at least one word"):
        models.word_shares(pieces)


def test_real_pieces_make_the_words_of_their_text():
    texts = [text for pair in data.aligned_pairs() for text in pair[:2]]
    subwords = data.Subwords.train(texts, 150)
    for text in texts:
        pieces = subwords.pieces(text)
        shares = models.word_shares(pieces)
        made = [""] * shares.shape[1]
        for piece, word in zip(pieces, shares.argmax(1).tolist(), strict=True):
            made[word] += piece.replace("▁", "")
        assert made == data.words(text)


# From weights to words, by hand: "▁re d ▁car" and "▁co che ▁rojo"

SOURCE, TARGET = ["▁re", "d", "▁car"], ["▁co", "che", "▁rojo"]
WEIGHTS = torch.tensor(
    [[0.1, 0.1, 0.8], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1], [0.0, 0.3, 0.7]]  # reads <bos> co che rojo
)


def test_rows_that_say_a_word():
    words = models.word_attention(WEIGHTS, SOURCE, TARGET)
    torch.testing.assert_close(words, torch.tensor([[0.3, 0.7], [0.9, 0.1]]))
    assert models.best_links(words) == {(1, 0), (0, 1)}


def test_rows_that_read_a_word():
    words = models.word_attention(WEIGHTS, SOURCE, TARGET, rows="reads")
    torch.testing.assert_close(words, torch.tensor([[0.65, 0.35], [0.3, 0.7]]))
    assert models.best_links(words) == {(0, 0), (1, 1)}


def test_layers_and_heads_are_kept_apart():
    weights = torch.rand(2, 3, 4, 3).softmax(-1)
    words = models.word_attention(weights, SOURCE, TARGET)
    assert words.shape == (2, 3, 2, 2)
    for layer in range(2):
        for head in range(3):
            alone = models.word_attention(weights[layer, head], SOURCE, TARGET)
            torch.testing.assert_close(words[layer, head], alone)
    torch.testing.assert_close(words.sum(-1), torch.ones(2, 3, 2))


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (5, 3)])
def test_weights_must_fit_the_pieces(shape):
    wanted = re.escape("weights must be (..., 4, 3) for 3 target and 3 source pieces")
    with pytest.raises(ValueError, match=wanted):
        models.word_attention(torch.ones(shape), SOURCE, TARGET)


def test_rows_must_be_one_of_two():
    with pytest.raises(ValueError, match="rows must be .*, got 'next'"):
        models.word_attention(WEIGHTS, SOURCE, TARGET, rows="next")


# A translator's


@pytest.fixture(scope="module")
def translator():
    torch.manual_seed(0)
    gold = data.aligned_pairs()
    subwords = data.Subwords.train([text for pair in gold for text in pair[:2]], 150)
    sizes = {"embed_dim": 16, "num_heads": 2, "num_layers": 3, "ff_dim": 16, "shared": True}
    model = models.Translator(len(subwords), len(subwords), dropout=0.5, **sizes)
    model.subwords = subwords
    return model


@pytest.mark.parametrize("rows", ["says", "reads"])
def test_cross_attention_of_each_pair_by_words(translator, gold, rows):
    translator.train()
    found = models.cross_word_attention(translator, gold[:4], rows=rows)
    assert translator.training
    for words, pair in zip(found, gold[:4], strict=True):
        source, target = map(data.words, pair[:2])
        assert words.shape == (3, 2, len(target), len(source)) and not words.requires_grad
        torch.testing.assert_close(words.sum(-1), torch.ones(words.shape[:-1]))
    batch = data.translation_batch(gold[:1], translator.subwords, translator.subwords)
    translator.eval()
    weights = translator(batch.source_ids, batch.target_in, return_weights=True)[1].cross
    pieces = map(translator.subwords.pieces, gold[0][:2])
    expected = models.word_attention(weights[2][0], *pieces, rows=rows)
    torch.testing.assert_close(found[0][2], expected.detach())


@pytest.mark.parametrize("measure", [models.cross_word_attention, models.hiding_costs])
def test_a_translator_of_ids_has_no_words(gold, measure):
    with pytest.raises(ValueError, match="model must have subwords"):
        measure(models.Translator(5, 5, embed_dim=4), gold)


@pytest.mark.parametrize("everywhere", [False, True])
def test_hiding_a_word_costs_what_the_loss_without_it_says(translator, gold, everywhere):
    pair = gold[1]
    translator.train()
    (found,) = models.hiding_costs(translator, [pair], everywhere=everywhere)
    assert translator.training
    translator.eval()
    source, target = map(data.words, pair[:2])
    assert found.shape == (len(target), len(source))
    batch = data.translation_batch([pair], translator.subwords, translator.subwords)
    shares = [models.word_shares(translator.subwords.pieces(text)) for text in pair[:2]]

    def nats(shown):
        mask = shown if everywhere else torch.ones_like(shown)
        memory = translator.encode(batch.source_ids, source_mask=mask)
        logits = translator.decode(batch.target_in, memory, source_mask=shown)
        chosen = logits.log_softmax(-1)[0].gather(1, batch.target_out.T)[:-1, 0]  # (n,)
        return -chosen.detach()

    for word in range(len(source)):
        hidden = nats(shares[0][None, :, word] == 0) - nats(shares[0].sum(1)[None] > 0)
        torch.testing.assert_close(found[:, word], shares[1].T @ hidden)
    assert found.abs().max() > 1e-3


def test_an_only_word_cannot_be_hidden(translator):
    pair = data.SentencePair("go", "sí.", "")
    with pytest.raises(ValueError, match="a source must have at least two words, got 'go'"):
        models.hiding_costs(translator, [pair])


# Scores


def test_score_by_hand():
    pair = data.AlignedPair(
        "a b c",
        "x y z",
        frozenset({(0, 0), (1, 1)}),
        frozenset({(0, 0), (1, 1), (2, 1), (2, 2)}),
        "",
    )
    counts = models.link_counts([(0, 0), (2, 1), (0, 2)], pair)
    assert counts == LinkCounts(sure_hits=1, possible_hits=2, found=3, sure=2)
    score = models.alignment_score([counts])
    assert score == pytest.approx((2 / 3, 1 / 2, 1 - (1 + 2) / (3 + 2)))
    both = models.alignment_score([counts, LinkCounts(2, 2, 2, 2)])
    assert both == pytest.approx((4 / 5, 3 / 4, 1 - (3 + 4) / (5 + 4)))


@pytest.mark.parametrize("counts", [[], [LinkCounts(0, 0, 0, 2)], [LinkCounts(0, 0, 2, 0)]])
def test_nothing_cannot_be_scored(counts):
    with pytest.raises(ValueError, match="counts must hold found and sure links"):
        models.alignment_score(counts)


def test_diagonal():
    assert models.diagonal_links(3, 5) == {(0, 0), (2, 1), (4, 2)}
    assert models.diagonal_links(4, 2) == {(0, 0), (0, 1), (1, 2), (1, 3)}
    assert models.diagonal_links(1, 4) == {(0, 0)}
