"""The checkpoint that comes with the package: its size, its origin, and that training repeats it."""

import shlex
from datetime import date

import pytest
import torch

from mha import data, models, training
from mha.models.checkpoint import CHECKPOINTS
from mha.training import translate
from mha.training.__main__ import parser


@pytest.fixture(scope="module")
def translator():
    return models.Translator.from_checkpoint("en-es")


def options_of(translator, *more):
    program, *arguments = shlex.split(translator.about["command"].removeprefix("python -m "))
    assert program == "mha.training"
    options = parser().parse_args([*arguments, *more])
    options.command = arguments
    return options


def test_files_are_small():
    sizes = {path.stem: path.stat().st_size for path in CHECKPOINTS.iterdir()}
    assert sizes.keys() == {"en-es"} and max(sizes.values()) <= 4_000_000


def test_origin_is_told(translator):
    about = translator.about
    date.fromisoformat(about["date"])
    assert about["seed"] == options_of(translator).seed and about["machine"] and about["versions"]
    assert about["steps"] == options_of(translator).steps == about["rows"][-1][0]
    losses = [row[1] for row in about["rows"]]
    assert losses[0] > 2 * losses[-1]


def test_it_translates(translator):
    said = translator.translate(["I bought a red car.", "Where is the book?", "I don't know."])
    assert said == ["Compré un coche rojo.", "¿Dónde está el libro?", "No sé."]


@pytest.mark.slow
def test_score_on_validation_sentences_is_as_recorded(translator):
    validation = data.tatoeba().validation
    batches = data.translation_batches(
        validation, translator.subwords, translator.subwords, 64, shuffle=False
    )
    nats = training.nats_per_target_token(translator, batches)
    assert nats == pytest.approx(translator.about["validation_nats"], abs=0.002)  # halves
    references = data.references(validation)
    bleu = translate.sample_bleu(translator, references)
    assert bleu == pytest.approx(translator.about["rows"][-1][3], abs=1.0)


@pytest.mark.slow
def test_training_again_moves_the_loss_as_recorded(translator, tmp_path):
    first = translator.about["rows"][0]  # step, mean loss, learning rate, BLEU, seconds
    options = options_of(translator, "--minutes", "1e-9", "--out", str(tmp_path))
    history = translate.run(options)
    assert len(history.rows) == 1 and history.rows[0].step == first[0]
    assert history.rows[0].loss == pytest.approx(first[1], rel=0.01)
    assert history.rows[0].lr == pytest.approx(first[2], rel=1e-3)
    assert first[1] < 0.8 * torch.tensor(4000.0).log()  # a model that guesses is above this
