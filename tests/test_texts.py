"""Texts in, texts out: translators with subwords, and their files."""

import pytest
import torch

from mha import _files, data, models

TEXTS = [
    "I bought a red car.",
    "No.",
    "Where is the house that you bought?",
    "A red house.",
    "The car is red, the house is not.",
]


@pytest.fixture(scope="module")
def subwords():
    return data.Subwords.train(TEXTS * 3, 60)


def new_model(subwords, **options):
    """An untrained translator that says something else to each text."""
    torch.manual_seed(1)
    sizes = {"embed_dim": 16, "num_heads": 2, "ff_dim": 16, "max_length": 48, "shared": True}
    model = models.Translator(len(subwords), len(subwords), **(sizes | options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name:
                parameter.mul_(4)
    model.subwords = subwords
    return model


@pytest.fixture(scope="module")
def model(subwords):
    return new_model(subwords).eval()


@pytest.fixture(scope="module")
def one_by_one(model):
    """What the model says to each text alone, from ids."""
    said = []
    for text in TEXTS:
        ids = torch.tensor([model.subwords.encode(text)])  # (1, S)
        row = model.translate(ids, max_length=30)[0]  # (L,)
        said.append(model.subwords.decode(row))
    return said


# Translating


def test_each_text_alone(model, one_by_one):
    assert [model.translate(text, max_length=30) for text in TEXTS] == one_by_one
    assert len(set(one_by_one)) == len(TEXTS)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_batches_of_any_size_keep_the_order(model, one_by_one, batch_size):
    options = {"batch_size": batch_size, "max_length": 30}
    assert models.translate_texts(model, TEXTS, **options) == one_by_one
    assert models.translate_texts(model, TEXTS[::-1], **options) == one_by_one[::-1]


def test_a_list_gives_a_list_and_a_text_a_text(model, one_by_one):
    assert model.translate([TEXTS[0]], max_length=30) == one_by_one[:1]
    assert model.translate(tuple(TEXTS), max_length=30) == one_by_one
    assert isinstance(model.translate(TEXTS[0]), str) and model.translate([]) == []


def test_texts_of_like_length_go_together(model, monkeypatch):
    shapes, translate = [], model.translate

    def note(ids, **options):
        shapes.append(tuple(ids.shape))
        return translate(ids, **options)

    monkeypatch.setattr(model, "translate", note)
    models.translate_texts(model, TEXTS, batch_size=2, max_length=5)
    lengths = sorted(len(model.subwords.encode(text)) for text in TEXTS)
    assert shapes == [(2, lengths[1]), (2, lengths[3]), (1, lengths[4])]


@pytest.mark.parametrize("options", [{"beam_size": 3}, {"beam_size": 3, "length_penalty": 0.0}])
def test_options_reach_the_search(model, options):
    ids = torch.tensor([model.subwords.encode(TEXTS[0])])
    expected = model.subwords.decode(model.translate(ids, max_length=30, **options)[0])
    assert model.translate(TEXTS[0], max_length=30, **options) == expected


@pytest.mark.parametrize("beam_size", [1, 2])
def test_with_and_without_the_cache_are_the_same(model, beam_size):
    said = [model.translate(TEXTS, beam_size=beam_size, use_cache=use) for use in (True, False)]
    assert said[0] == said[1]


def test_by_default_the_longest_is_twice_the_source_and_ten_more(model, monkeypatch):
    limits, translate = [], model.translate

    def note(ids, **options):
        limits.append(options["max_length"])
        return translate(ids, **options)

    monkeypatch.setattr(model, "translate", note)
    short, long = "No.", "No. " * 12
    for text in (short, long, short):
        models.translate_texts(model, [text], max_length=7 if len(limits) == 2 else None)
    pieces = [len(model.subwords.encode(text)) for text in (short, long)]
    assert limits == [2 * pieces[0] + 10, 48, 7] and 2 * pieces[1] + 10 > 48


def test_the_mode_is_put_back(subwords):
    model = new_model(subwords, dropout=0.5).train()
    assert model.translate(TEXTS[:2]) == model.translate(TEXTS[:2]) and model.training


@pytest.mark.parametrize("text", ["", "a red car " * 20])
def test_texts_of_no_or_too_many_pieces_are_refused(model, text):
    with pytest.raises(ValueError, match=r"a text must have 1 to 48 pieces, got \d+ in '"):
        model.translate(["No.", text])


def test_what_is_no_text_is_refused(model, subwords):
    with pytest.raises(TypeError, match="texts must be str, got int"):
        model.translate(["No.", 3])
    bare = models.Translator(9, 9, embed_dim=4, num_heads=1)
    with pytest.raises(ValueError, match="this Translator has no subwords"):
        bare.translate("No.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length must be 1 to the model's 48, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
    ],
)
def test_options_out_of_range_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        models.translate_texts(model, TEXTS, **options)


def test_a_mask_goes_with_ids_only(model):
    with pytest.raises(ValueError, match="source_mask must be None for texts, got .*Tensor"):
        model.translate("No.", source_mask=torch.ones(1, 3, dtype=torch.bool))


# Files


def logits(model):
    ids, mask = data.pad([model.subwords.encode(text) for text in TEXTS])
    with torch.no_grad():
        return model(ids, ids[:, :7], source_mask=mask)


ABOUT = {"command": "by hand", "seed": 3, "seconds": 1.5, "versions": {"torch": "2"}, "who": "ñ"}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 0), (torch.float16, 0.2), (torch.float64, 0)]
)
def test_a_file_gives_the_model_back(model, tmp_path, dtype, tolerance):
    path = tmp_path / "model.safetensors"
    models.save_translator(path, model, ABOUT, dtype=dtype)
    back = models.Translator.from_checkpoint(path)
    assert back.about == ABOUT and back.config == model.config and not back.training
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    for kept, weight in zip(back.parameters(), model.parameters(), strict=True):
        assert kept.equal(weight.to(dtype).float())
    torch.testing.assert_close(logits(back), logits(model), atol=tolerance, rtol=0)
    assert back.subwords.tokens == model.subwords.tokens
    assert back.translate(TEXTS[0]) == models.Translator.from_checkpoint(str(path)).translate(
        TEXTS[0]
    )


def test_half_precision_is_the_default_and_halves_the_file(model, tmp_path):
    sizes = {}
    for name, options in (("half", {}), ("single", {"dtype": torch.float32})):
        models.save_translator(tmp_path / name, model, {}, **options)
        tensors, _ = _files.read(tmp_path / name)
        pieces = tensors.pop("subwords")
        assert bytes(pieces.tolist()) == model.subwords.to_bytes()
        assert {t.dtype for t in tensors.values()} == {options.get("dtype", torch.float16)}
        sizes[name] = (tmp_path / name).stat().st_size - len(pieces)
    assert sizes["half"] < 0.65 * sizes["single"]


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_matrix_is_in_the_file_once_and_shared_again(subwords, tmp_path, shared):
    path = tmp_path / "model.safetensors"
    models.save_translator(path, new_model(subwords, shared=shared), {})
    widths = [t.shape for t in _files.read(path)[0].values() if t.shape == (len(subwords), 16)]
    assert len(widths) == (1 if shared else 3)
    back = models.Translator.from_checkpoint(path)
    matrices = {back.source_embedding.weight, back.target_embedding.weight, back.to_logits.weight}
    assert len(matrices) == len(widths)


def test_a_file_is_replaced_at_once(model, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"something else")
    models.save_translator(path, model, {"new": True})
    assert models.Translator.from_checkpoint(path).about == {"new": True}
    with pytest.raises(TypeError):
        models.save_translator(path, model, {"new": object()})  # JSON cannot hold it
    assert models.Translator.from_checkpoint(path).about == {"new": True}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_model_without_subwords_is_not_written(tmp_path):
    bare = models.Translator(9, 9, embed_dim=4, num_heads=1)
    with pytest.raises(ValueError, match="model must have subwords"):
        models.save_translator(tmp_path / "x", bare, {})
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_lists_those_that_there_are(model, tmp_path, monkeypatch):
    monkeypatch.setattr("mha.models.checkpoint.CHECKPOINTS", tmp_path)
    for name in ("en-zh", "en-es"):
        models.save_translator(tmp_path / f"{name}.safetensors", model, {"name": name})
    message = "source must be a file or one of en-es, en-zh, got 'en-fr'"
    with pytest.raises(ValueError, match=message):
        models.Translator.from_checkpoint("en-fr")
    assert models.Translator.from_checkpoint("en-zh").about == {"name": "en-zh"}


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 64])
def test_a_file_of_another_form_is_refused(tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes is not a checkpoint of mha"):
        models.Translator.from_checkpoint(path)


def test_a_file_of_another_kind_is_refused(model, tmp_path):
    path = tmp_path / "other"
    _files.write(path, {"weight": torch.zeros(2)}, {"options": {}})
    with pytest.raises(ValueError, match="other holds no translator"):
        models.Translator.from_checkpoint(path)
    models.save_translator(path, model, {})
    tensors, about = _files.read(path)
    del tensors["encoder_norm.weight"]
    _files.write(path, tensors, about)
    with pytest.raises(ValueError, match="weights of another model than its config says"):
        models.Translator.from_checkpoint(path)


def faulty(tensors, about, fault):
    """Tensors and metadata as a file from elsewhere might have them."""
    config = about["config"]
    return {
        "a newer config": lambda: config.update(heads_from_the_future=1),
        "a config of text": lambda: config.update(embed_dim="16"),
        "another width": lambda: config.update(embed_dim=32),
        "a list": lambda: about.update(config=[1]),
        "a shape that would spread": lambda: tensors.update({"to_logits.bias": torch.zeros(1)}),
        "no pieces": lambda: tensors.update(subwords=torch.zeros(9, dtype=torch.uint8)),
        "pieces of halves": lambda: tensors.update(subwords=torch.zeros(9, dtype=torch.bfloat16)),
        "no origin": lambda: about.pop("about"),
        "fewer pieces": lambda: tensors.update(
            subwords=torch.tensor(list(data.Subwords.train(TEXTS, 50).to_bytes())).byte()
        ),
    }[fault]()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("a newer config", "holds no translator that can be made here: .*heads_from_the_future"),
        ("a config of text", "holds no translator that can be made here"),
        ("another width", "weights of another model than its config says"),
        ("a list", "holds no translator that can be made here"),
        ("a shape that would spread", "weights of another model than its config says"),
        ("no pieces", "holds no translator that can be made here: model must"),
        ("pieces of halves", "holds no translator that can be made here"),
        ("no origin", "holds no translator"),
        ("fewer pieces", "has 50 pieces for a vocabulary of 60"),
    ],
)
def test_a_faulty_file_is_refused_in_a_sentence(model, tmp_path, fault, message):
    path = tmp_path / "faulty"
    models.save_translator(path, model, {})
    tensors, about = _files.read(path)
    faulty(tensors, about, fault)
    _files.write(path, tensors, about)
    with pytest.raises(ValueError, match=message):
        models.Translator.from_checkpoint(path)


def test_what_was_read_is_apart_from_the_file(tmp_path):
    path = tmp_path / "x"
    _files.write(path, {"a": torch.ones(4)}, {})
    tensors, _ = _files.read(path)
    with path.open("r+b") as file:  # written over in place, as `cp` does
        file.seek(-16, 2)
        file.write(bytes(16))
    assert tensors["a"].tolist() == [1, 1, 1, 1]


def test_tensors_that_share_memory_can_be_written(tmp_path):
    whole = torch.arange(4.0)
    _files.write(tmp_path / "x", {"whole": whole, "part": whole[1:3], "same": whole}, {})
    tensors, _ = _files.read(tmp_path / "x")
    assert tensors["part"].tolist() == [1, 2] and tensors["same"].tolist() == [0, 1, 2, 3]
