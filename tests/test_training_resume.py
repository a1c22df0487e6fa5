"""Training that is stopped, killed and taken up again; and its command line."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from torch import nn

from mha import _files, data, models, training
from mha._machine import machine
from mha.training import __main__ as command
from mha.training import translate

SUBJECTS = {"a cat": "un gato", "the dog": "el perro", "a red bird": "un pájaro rojo", "Ana": "Ana"}
VERBS = {"sees": "ve", "eats": "come", "wants": "quiere", "has": "tiene", "draws": "dibuja"}
SMALL = ["translate", "--pieces", "80", "--embed-dim", "8", "--num-heads", "2", "--ff-dim", "16"]
SMALL += [
    "--num-layers",
    "1",
    "--steps",
    "24",
    "--every",
    "4",
    "--warmup",
    "2",
    "--batch-size",
    "5",
]


def sentences():
    """Sentences enough to train a toy on, with some held out."""
    pairs = [
        data.SentencePair(f"{s} {v} {o}.", f"{t} {w} {p}.", f"#{n}")
        for n, (s, t) in enumerate(SUBJECTS.items())
        for v, w in VERBS.items()
        for o, p in SUBJECTS.items()
    ]
    return data.split_by_source(pairs, held_out=10)


def net(seed=0):
    torch.manual_seed(seed)
    shared = nn.Linear(3, 3)  # used twice, and dropout, whose chance must go on where it was
    return nn.Sequential(shared, nn.Dropout(0.5), nn.BatchNorm1d(3), shared, nn.Linear(3, 1))


def batches(**options):
    examples = [
        (torch.randn(3, generator=g), torch.randn(1, generator=g)) for g in map(seeded, range(20))
    ]
    return data.Batches(
        examples, 4, collate=lambda e: tuple(map(torch.stack, zip(*e, strict=True)))
    )


def seeded(number):
    return torch.Generator().manual_seed(number)


def loss(model, batch, calls=None, until=None):
    if calls is not None:
        calls.append(1)
        if len(calls) == until:
            raise KeyboardInterrupt
    return (model(batch[0]) - batch[1]).square().mean()


OPTIONS = {"steps": 17, "every": 3, "warmup": 2, "lr": 0.01, "progress": False, "seed": 5}


@pytest.mark.parametrize("until", [2, 4, 9, 17])
def test_a_broken_training_goes_on_as_if_nothing_had_happened(tmp_path, until):
    whole = net()
    expected = training.fit(whole, batches(), loss, **OPTIONS)
    file = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        broken = partial(loss, calls=[], until=until)
        training.fit(net(), batches(), broken, checkpoint=file, **OPTIONS)
    assert file.exists() == (until > 3)
    calls, model = [], net(seed=1)  # whatever weights, they are those of the file in the end
    if not file.exists():
        model = net()
    got = training.fit(model, batches(), partial(loss, calls=calls), checkpoint=file, **OPTIONS)
    assert len(calls) == 17 - (until - 1) // 3 * 3
    assert [row[:4] for row in got.rows] == [row[:4] for row in expected.rows]
    assert [row.seconds for row in got.rows] == sorted(row.seconds for row in got.rows)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)
    assert not model.training


def test_a_finished_training_is_only_read(tmp_path):
    file = tmp_path / "state.safetensors"
    first, second, calls = net(), net(seed=1), []
    expected = training.fit(first, batches(), loss, checkpoint=file, **OPTIONS)
    got = training.fit(second, batches(), partial(loss, calls=calls), checkpoint=file, **OPTIONS)
    assert not calls and got.rows == expected.rows and not second.training
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_seconds_stop_at_a_row_and_the_rest_can_follow(tmp_path):
    file = tmp_path / "state.safetensors"
    expected = training.fit(net(), batches(), loss, **OPTIONS)
    for row in range(1, 7):  # 3, 6, 9, 12, 15 and 17 steps
        got = training.fit(net(), batches(), loss, checkpoint=file, seconds=1e-9, **OPTIONS)
        assert len(got.rows) == row and got.stopped_early == (row < 6)
    assert [row[:3] for row in got.rows] == [row[:3] for row in expected.rows]
    with pytest.raises(ValueError, match="seconds must be above 0, got 0"):
        training.fit(net(), batches(), loss, seconds=0, **OPTIONS)


def test_a_training_out_of_patience_is_only_read(tmp_path):
    options = {"checkpoint": tmp_path / "state", "evaluate": lambda _: 0.0, **OPTIONS}
    expected = training.fit(net(), batches(), loss, patience=2, **options)
    got = training.fit(net(seed=1), batches(), loss, patience=2, **options)
    assert got == expected and got.stopped_early and len(got.rows) == 3
    got = training.fit(net(seed=1), batches(), loss, patience=3, **options)  # more of it goes on
    assert len(got.rows) == 4


def test_batches_may_come_in_an_order_of_torch(tmp_path):
    def loader():  # its order is drawn where it starts, from the same chance as dropout
        return torch.utils.data.DataLoader(batches().examples, 4, shuffle=True)

    options = OPTIONS | {"steps": 5, "every": 2}
    expected = training.fit(net(), loader(), loss, **options)
    for _ in range(3):
        options["checkpoint"] = tmp_path / "state"
        got = training.fit(net(), loader(), loss, seconds=1e-9, **options)
    assert [row[:3] for row in got.rows] == [row[:3] for row in expected.rows]


def test_weights_may_lie_in_another_order_in_memory(tmp_path):
    def conv():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 1))
        return model.to(memory_format=torch.channels_last)

    images = [(torch.randn(4, 3, 6, 6), torch.randn(4, 1)) for _ in range(3)]
    expected = training.fit(conv(), images, loss, **OPTIONS)
    for _ in range(6):
        options = OPTIONS | {"checkpoint": tmp_path / "state", "seconds": 1e-9}
        got = training.fit(conv(), images, loss, **options)
    assert [row[:3] for row in got.rows] == [row[:3] for row in expected.rows]


def test_a_checkpoint_needs_a_folder(tmp_path):
    calls = []
    with pytest.raises(
        ValueError, match="checkpoint must be in a folder that is there, got .*no/x"
    ):
        training.fit(
            net(), batches(), partial(loss, calls=calls), checkpoint=tmp_path / "no/x", **OPTIONS
        )
    assert not calls


def test_a_checkpoint_of_another_precision_is_refused(tmp_path):
    file = tmp_path / "state"
    training.fit(net(), batches(), loss, checkpoint=file, seconds=1e-9, **OPTIONS)
    with pytest.raises(ValueError, match="must hold the model that is trained"):
        training.fit(net().double(), batches(), loss, checkpoint=file, **OPTIONS)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    file = tmp_path / "state.safetensors"
    training.fit(net(), batches(), loss, checkpoint=file, **OPTIONS)
    message = r"must be of a training with .*'lr': 0.02.*, got .*0.01.*: name another file"
    with pytest.raises(ValueError, match=message):
        training.fit(net(), batches(), loss, checkpoint=file, **OPTIONS | {"lr": 0.02})
    with pytest.raises(ValueError, match="must hold the model that is trained"):
        training.fit(nn.Linear(3, 1), batches(), loss, checkpoint=file, **OPTIONS)
    file.write_bytes(b"something else, and long enough for a header")
    with pytest.raises(ValueError, match="is not a checkpoint of mha"):
        training.fit(net(), batches(), loss, checkpoint=file, **OPTIONS)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, step):
    file = tmp_path / "x.safetensors"
    _files.write(file, {"a": torch.ones(2)}, {"what": ["old", 1]})

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space"):
        _files.write(file, {"a": torch.zeros(2)}, {"what": "new"})
    tensors, about = _files.read(file)
    assert tensors["a"].tolist() == [1, 1] and about == {"what": ["old", 1]}
    assert os.listdir(tmp_path) == ["x.safetensors"]


RUN = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import torch
from mha import data
from mha.training.__main__ import main
from test_training_resume import sentences
torch.set_num_threads(1)
data.tatoeba = sentences
sys.exit(main(sys.argv[1:]))
"""


def start(*arguments):
    return subprocess.Popen([sys.executable, "-c", RUN, *arguments], stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path):
    arguments = [*SMALL, "--steps", "120", "--every", "2", "--dropout", "0.2"]
    assert start(*arguments, "--out", str(tmp_path / "whole")).wait() == 0
    out, chance = tmp_path / "killed", random.Random(0)
    state = out / "training.safetensors"
    steps = []
    for _ in range(3):
        process = start(*arguments, "--out", str(out))
        before = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.001)  # until it has written something
        time.sleep(chance.random() / 10)
        process.send_signal(signal.SIGKILL)
        process.wait()
        steps.append(_files.read(state)[1]["rows"][-1][0])  # a whole file, each time
    assert steps == sorted(steps) and 0 < steps[0] < 120
    assert start(*arguments, "--out", str(out)).wait() == 0
    (whole, about), (broken, other) = (
        _files.read(tmp_path / name / "training.safetensors") for name in ("whole", "killed")
    )
    assert [row[:4] for row in about["rows"]] == [row[:4] for row in other["rows"]]
    torch.testing.assert_close(broken, whole, rtol=0, atol=0)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(data, "tatoeba", sentences)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return command.main


def test_command_writes_state_translator_table_and_curve(small, tmp_path, capsys):
    assert small([*SMALL, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "60 pairs to train on, 0 too long; Subwords(80 pieces)" in said
    table = [line.split("\t") for line in (tmp_path / "metrics.tsv").read_text().splitlines()]
    assert table[0] == ["step", "loss", "lr", "metric", "seconds"]
    assert [int(row[0]) for row in table[1:]] == [4, 8, 12, 16, 20, 24]
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    model = models.Translator.from_checkpoint(tmp_path / "translator.safetensors")
    assert model.about["command"] == " ".join(
        ["python -m mha.training", *SMALL, "--out", str(tmp_path)]
    )
    assert (model.about["seed"], model.about["steps"], model.about["training_pairs"]) == (0, 24, 60)
    assert [row[0] for row in model.about["rows"]] == [4, 8, 12, 16, 20, 24]
    held_out = data.translation_batches(sentences().validation, model.subwords, model.subwords, 4)
    nats = training.nats_per_target_token(model, held_out)
    assert model.about["validation_nats"] == pytest.approx(nats, abs=2e-3)  # weights are halves
    assert isinstance(model.translate("a cat sees Ana."), str)


def test_command_stops_after_minutes_and_goes_on(small, tmp_path, capsys):
    assert small([*SMALL, "--out", str(tmp_path / "a")]) == 0
    for _ in range(6):
        assert small([*SMALL, "--out", str(tmp_path / "b"), "--minutes", "1e-9"]) == 0
    one, two = (
        models.Translator.from_checkpoint(tmp_path / name / "translator.safetensors")
        for name in "ab"
    )
    assert two.about["steps"] == 24
    torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=0, atol=0)


def test_command_counts_pairs_that_are_too_long(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(translate, "MAX_LENGTH", 9)
    assert small([*SMALL, "--out", str(tmp_path)]) == 0
    subwords = models.Translator.from_checkpoint(tmp_path / "translator.safetensors").subwords
    longest = [max(len(subwords.encode(t)) for t in pair[:2]) for pair in sentences().train]
    too_long = sum(length > 8 for length in longest)  # one more piece ends them
    assert 0 < too_long < 60
    assert f"{60 - too_long} pairs to train on, {too_long} too long" in capsys.readouterr().out


def test_command_refuses_in_a_sentence(small, tmp_path, capsys):
    assert small([*SMALL, "--out", str(tmp_path), "--steps", "1"]) == 1
    assert capsys.readouterr().err == "ValueError: warmup must be 0 to steps=1, got 2\n"
    with pytest.raises(SystemExit) as stop:
        small(["translate", "--pair", "en-tlh"])
    assert stop.value.code == 2 and "en-es" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        small([*SMALL, "--device", "abacus"])
    assert stop.value.code == 2 and "--device: there is no 'abacus'" in capsys.readouterr().err
    file = tmp_path / "file"
    file.touch()
    assert small([*SMALL, "--out", str(file)]) == 1
    assert "FileExistsError" in capsys.readouterr().err
    assert small([*SMALL, "--out", str(tmp_path), "--threads", "0"]) == 1
    assert "positive" in capsys.readouterr().err


OTHER = ["--dropout=0.3", "--batch-size=7", "--label-smoothing=0", "--pair=en-zh", "--embed-dim=16"]


def test_command_goes_on_with_the_same_training_only(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "libreoffice_zh", sentences)
    here = [*SMALL, "--out", str(tmp_path)]
    assert small([*here, "--minutes", "1e-9"]) == 0
    for option in OTHER:
        capsys.readouterr()
        assert small([*here, option]) == 1
        said = capsys.readouterr().err
        name, value = option.removeprefix("--").split("=")
        name = name.replace("-", "_")
        assert f"holds a training with {name}=" in said, said
        assert (
            f", got {name}=" in said and value in said and "name another folder with --out" in said
        )
    assert small([*here, "--threads", "1"]) == 0
    (tmp_path / "options.json").unlink()  # as in a folder from before there were such files
    assert small([*here, "--batch-size", "0"]) == 1  # what cannot be done is not remembered
    assert small(here) == 0
    (tmp_path / "training.safetensors").unlink()  # then there is nothing to go on with
    assert small([*here, OTHER[0]]) == 0


@pytest.mark.parametrize(("pair", "tokenize"), [("en-es", "13a"), ("en-zh", "zh")])
def test_command_scores_each_language_as_it_is_written(
    small, tmp_path, monkeypatch, pair, tokenize
):
    asked = set()
    monkeypatch.setattr(data, "libreoffice_zh", sentences)

    def note(said, references, *, tokenize):
        asked.add(tokenize)
        return training.translation_scores(said, references, tokenize=tokenize)

    monkeypatch.setattr(translate, "translation_scores", note)
    assert small([*SMALL, "--out", str(tmp_path), "--pair", pair, "--minutes", "1e-9"]) == 0
    assert asked == {tokenize}


def test_the_machine_is_the_one_that_trained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {device}")
    assert machine() == "GPU None" and machine("cuda:1") == "GPU cuda:1"
    assert machine("cpu").endswith("cores")
