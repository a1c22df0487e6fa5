"""A learner's class in the place of ours: the same numbers, or a refusal that says why."""

import importlib
import inspect

import pytest
import torch
from torch import nn

from mha import check
from mha.models import GPT, Translator, VisionTransformer
from mha.multihead import MultiHeadAttention

correct = importlib.import_module("specimens.correct")
FIT = """OwnSoftmax PackedWeights Interleaved BareParameters Loops BlockedByName TorchMasks TwoMasks
AddedMask GroupedQueries ReturnsMean ValuesFirst KeywordsOnly""".split()


def translator(**options) -> Translator:
    torch.manual_seed(0)
    sizes = {"embed_dim": 24, "num_heads": 3, "num_layers": 2, "ff_dim": 16, "max_length": 12}
    model = Translator(11, 13, pad_id=0, bos_id=1, eos_id=2, **sizes | options).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)  # biases start at 0, where a forgotten one would not show
    return model


def ids(model):
    source = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 3, 0, 0]])  # (B, S), the second one padded
    target = torch.tensor([[1, 3, 4, 5], [1, 9, 8, 7]])  # (B, T)
    return source, target


class Plain(nn.Module):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.heads = num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(embed_dim, embed_dim) for _ in range(4))

    def forward(self, query, key, value, mask=None):
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D)
            for part, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        scores = q @ k.mT / self.divisor(q)  # (B, H, T, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return self.o((scores.softmax(-1).nan_to_num(0.0) @ v).transpose(1, 2).flatten(2))

    def divisor(self, q):
        return q.shape[-1] ** 0.5


@pytest.mark.parametrize("name", FIT)
def test_every_style_gives_the_same_numbers(name):
    model = translator()
    theirs = check.transplant(model, getattr(correct, name))
    with torch.no_grad():
        torch.testing.assert_close(theirs(*ids(model)), model(*ids(model)), rtol=0, atol=2e-5)
    assert not any(isinstance(part, MultiHeadAttention) for part in theirs.modules())
    assert any(isinstance(part, getattr(correct, name)) for part in theirs.modules())


def test_the_model_itself_stays():
    model = translator()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    theirs = check.transplant(model, Plain)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert sum(isinstance(part, MultiHeadAttention) for part in model.modules()) == 6


def test_modes_follow_the_model():
    assert not check.transplant(translator(), Plain).training
    training = check.transplant(translator(dropout=0.1).train(), Plain)
    assert all(part.training for part in training.modules())


def test_other_models_take_it_too():
    gpt = GPT(9, embed_dim=24, num_heads=2, num_layers=1, max_length=8, positions="learned")
    gpt = gpt.eval()
    x = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(check.transplant(gpt, Plain)(x), gpt(x), rtol=0, atol=2e-5)


def test_the_same_words_are_written():
    model = Translator.from_checkpoint("en-es")
    theirs = check.transplant(model, Plain)
    texts = ["I bought a red car.", "Where is the station?"]
    for beam in (1, 3):
        told = theirs.translate(texts, use_cache=False, beam_size=beam)
        assert told == model.translate(texts, beam_size=beam)


def test_weights_come_back_where_the_class_returns_them():
    model = translator()
    _, right = model(*ids(model), return_weights=True)
    _, mine = check.transplant(model, correct.ReturnsBoth)(*ids(model), return_weights=True)
    torch.testing.assert_close(mine.cross[0], right.cross[0], rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match="returns no weights"):
        check.transplant(model, Plain)(*ids(model), return_weights=True)


class Unscaled(Plain):
    def divisor(self, q):
        return 1.0


class OnlyAtSmallSizes(Plain):
    """Right where the check looks, wrong at 128 features."""

    def divisor(self, q):
        return q.shape[-1] ** 0.5 if q.shape[-1] < 7 else 1.0


class SelfOnly(Plain):
    def forward(self, x, mask=None):
        return super().forward(x, x, x, mask)


class Normed(Plain):
    def __init__(self, embed_dim, num_heads):
        super().__init__(embed_dim, num_heads)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, query, key, value, mask=None):
        return self.norm(query + super().forward(query, key, value, mask))


class WithoutMask(Plain):
    def forward(self, query, key, value):
        return super().forward(query, key, value)


@pytest.mark.parametrize(
    ("subject", "why"),
    [
        (Unscaled, "the checker must be content"),
        (OnlyAtSmallSizes, "other numbers at the model's sizes"),
        (SelfOnly, "query, key and value"),
        (Normed, "adds the query"),
        (WithoutMask, "must take a mask"),
        (correct.NoBiases, "has a bias in the model, and none in your class"),
        (Plain(24, 3), "must be a class"),
    ],
    ids=lambda x: x if isinstance(x, str) else getattr(x, "__name__", "instance"),
)
def test_what_does_not_fit_is_refused(subject, why):
    with pytest.raises(ValueError, match=why):
        check.transplant(translator(), subject)


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match="holds no"):
        check.transplant(nn.Linear(2, 2), Plain)
    rotary = GPT(9, embed_dim=24, num_heads=2, num_layers=1, max_length=8, num_kv_heads=1)
    with pytest.raises(ValueError, match="plain attention"):
        check.transplant(rotary, Plain)


def test_a_cache_and_float_masks_are_refused():
    model = translator()
    theirs = check.transplant(model, Plain)
    with pytest.raises(ValueError, match="use_cache=False"):
        theirs.translate(ids(model)[0])
    assert theirs.translate(ids(model)[0], use_cache=False).shape[0] == 2
    attention = theirs.encoder[0].attention
    with pytest.raises(TypeError, match="bool masks"):
        attention(torch.ones(1, 3, 24), attn_mask=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="positions"):
        attention(torch.ones(1, 3, 24), positions=torch.arange(3))


def test_the_signature_is_that_of_the_module():
    ours = inspect.signature(MultiHeadAttention.forward).parameters
    theirs = inspect.signature(check.transplant.__globals__["Transplanted"].forward).parameters
    assert list(theirs) == list(ours)


def test_a_vision_transformer_reads_the_same():
    vit = VisionTransformer(embed_dim=24, num_heads=2, num_layers=1).eval()
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(check.transplant(vit, Plain)(x), vit(x), rtol=0, atol=2e-5)
