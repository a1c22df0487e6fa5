"""BLEU and chrF of translations, and the loss of a translator, by piece."""

import math
from functools import partial

import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF

from mha import data, models, training

SAID = ["el gato duerme en la casa", "no lo sé .", "¿ dónde está ?"]
RIGHT = ["el gato duerme en la cama", "no lo sé .", "¿ dónde está la casa ?"]


def scores(said, *references):
    return training.translation_scores(said, list(references))


# BLEU and chrF


def test_bleu_by_hand():
    # n-grams of "a b c d e" that are in "a b c d f": 4 of 5, 3 of 4, 2 of 3, 1 of 2; no brevity.
    product = 4 / 5 * 3 / 4 * 2 / 3 * 1 / 2
    assert scores(["a b c d e"], ["a b c d f"]).bleu == pytest.approx(100 * product**0.25)


def test_bleu_of_a_set_adds_counts_up_and_punishes_brevity():
    # 4 + 2 of 4 + 2 words, 3 + 1 of 3 + 1 pairs, 2 of 2 threes, 1 of 1 fours; 6 words for 8.
    found = scores(["a b c d", "e f"], ["a b c d"], ["e f g h"])
    assert found.bleu == pytest.approx(100 * math.exp(1 - 8 / 6))


def test_chrf_by_hand():
    # Of "abcd" against "abce": 3 of 4 letters, 2 of 3 pairs, 1 of 2 threes, 0 of 1 fours.
    share = (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4  # precision, and recall too
    assert scores(["abcd"], ["abce"]).chrf == pytest.approx(100 * share)


def test_exact_is_100_and_nothing_in_common_0():
    assert scores(RIGHT, *([text] for text in RIGHT)) == pytest.approx((100, 100))
    assert scores(["a a a a"], ["b c d e"]) == (0, 0)


def test_case_and_accents_count():
    right = scores(["Está en la casa."], ["Está en la casa."])
    for other in ("está en la casa.", "Esta en la casa."):
        assert scores([other], ["Está en la casa."]).bleu < right.bleu


def test_equal_to_sacrebleu_with_one_reference_each():
    found = training.translation_scores(SAID, [[text] for text in RIGHT])
    assert found.bleu == BLEU().corpus_score(SAID, [RIGHT]).score
    assert found.chrf == CHRF().corpus_score(SAID, [RIGHT]).score


def test_equal_to_sacrebleu_with_two_references_each():
    found = training.translation_scores(SAID, list(zip(RIGHT, RIGHT[::-1], strict=True)))
    rows = [RIGHT, RIGHT[::-1]]
    assert found.bleu == BLEU().corpus_score(SAID, rows).score
    assert found.chrf == CHRF().corpus_score(SAID, rows).score


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_sentence_may_have_more_references_than_another(at):
    one = [[text] for text in RIGHT]
    more = [texts + ["nothing of it", SAID[i]] * (i == at) for i, texts in enumerate(one)]
    better, base = training.translation_scores(SAID, more), training.translation_scores(SAID, one)
    known = [
        [*texts, RIGHT[i], RIGHT[i]][:3] for i, texts in enumerate(more)
    ]  # repeats add nothing
    filled = training.translation_scores(SAID, known)
    assert better == pytest.approx(filled)
    assert better.bleu >= base.bleu and better.chrf >= base.chrf
    assert at == 1 or better.bleu > base.bleu + 5


def test_a_reference_of_another_sentence_does_not_count():
    swapped = [[RIGHT[1]], [RIGHT[0]], [RIGHT[2]]]
    mine = training.translation_scores(SAID, [[text] for text in RIGHT]).bleu
    assert training.translation_scores(SAID, swapped).bleu < mine / 2


@pytest.mark.parametrize(
    ("said", "references", "message"),
    [
        ([], [], "got 0 and 0"),
        (["a", "b"], [["a"]], "got 2 and 1"),
        (["a", "b"], [["a"], []], "got 2 and 1 that have references"),
    ],
)
def test_refused_scores(said, references, message):
    with pytest.raises(ValueError, match=message):
        training.translation_scores(said, references)


def test_chinese_is_counted_by_character():
    said, right = ["我買了一輛紅色的車。"], [["我買了一輛紅色的汽車。"]]
    assert training.translation_scores(said, right).bleu == 0  # one word, as blanks have it
    assert training.translation_scores(said, right, tokenize="zh").bleu > 50
    with pytest.raises(ValueError, match="tokenize must be one of .*zh.*, got 'klingon'"):
        training.translation_scores(said, right, tokenize="klingon")


@pytest.mark.parametrize(
    ("said", "references", "name"),
    [("hola", [["hola"]] * 4, "translations"), (["hola"], ["hola"], "references")],
)
def test_a_text_is_no_list_of_texts(said, references, name):
    with pytest.raises(TypeError, match=f"{name} must be .*, got .*'hola'"):
        training.translation_scores(said, references)


# The loss


@pytest.fixture(scope="module")
def task():
    """Pairs of unequal lengths and a small model with dropout, in training."""
    torch.manual_seed(0)
    vocabulary = data.Vocabulary(["abcdefgh"], unk=False)
    pairs = [data.SentencePair("abcdefgh"[: n + 1], "hgfedcba"[: 7 - n], "") for n in range(7)]
    size = len(vocabulary)
    model = models.Translator(size, size, embed_dim=8, num_heads=2, ff_dim=8, dropout=0.5)
    return model.train(), pairs, vocabulary


def direct(model, batch):
    """Each real target token's minus log-probability, (tokens,)."""
    model.eval()
    with torch.no_grad():
        logits = model(batch.source_ids, batch.target_in, source_mask=batch.source_mask)
    log_p = logits.log_softmax(-1)  # (B, T, V)
    picked = log_p.gather(-1, batch.target_out[..., None])[..., 0]  # (B, T)
    return -picked[batch.target_out != model.pad_id]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7])
def test_nats_count_each_target_token_once_in_batches_of_any_size(task, batch_size):
    model, pairs, vocabulary = task
    everything = direct(model, data.translation_batch(pairs, vocabulary, vocabulary))
    assert len(everything) == sum(8 - n for n in range(7))  # the ends count too
    batches = data.translation_batches(pairs, vocabulary, vocabulary, batch_size, shuffle=False)
    model.train()
    found = training.nats_per_target_token(model, batches)
    assert found == pytest.approx(everything.mean().item(), abs=1e-5)
    assert model.training


def test_nats_leave_an_eval_mode_and_gradients_alone(task):
    model, pairs, vocabulary = task
    model.eval()
    training.nats_per_target_token(model, [data.translation_batch(pairs, vocabulary, vocabulary)])
    assert not model.training and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("batches", [[], "padding"])
def test_nats_of_nothing_are_refused(task, batches):
    model, pairs, vocabulary = task
    if batches:
        batch = data.translation_batch(pairs, vocabulary, vocabulary)
        batches = [batch._replace(target_out=torch.zeros_like(batch.target_out))]
    with pytest.raises(ValueError, match="batches must hold at least one target token, got none"):
        training.nats_per_target_token(model, batches)


def test_label_smoothing_mixes_the_mean_over_all_tokens_in(task):
    model, pairs, vocabulary = task
    batch = data.translation_batch(pairs, vocabulary, vocabulary)
    plain = direct(model, batch)
    logits = model(batch.source_ids, batch.target_in, source_mask=batch.source_mask)
    even = -logits.log_softmax(-1).mean(-1)[batch.target_out != model.pad_id]  # (tokens,)
    expected = (0.7 * plain + 0.3 * even).mean()
    found = training.translation_loss(model, batch, label_smoothing=0.3)
    torch.testing.assert_close(found, expected)
    smoothed = partial(training.translation_loss, label_smoothing=0.0)
    torch.testing.assert_close(smoothed(model, batch), plain.mean())
