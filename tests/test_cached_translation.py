"""Translation with caches: the same tokens, scores and weights as computed afresh."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from support import close

from mha import data, models

PAD, BOS, EOS = 0, 1, 2
SIZE, LIMIT = 13, 9
LENGTHS = 5, 3, 6, 1, 4, 2, 6, 5
SEEDS = 2, 3, 4

VARIANTS = {
    "plain": {},
    "one matrix": {"shared": True},
    "one layer, four heads": {"num_layers": 1, "num_heads": 4},
    "no layers": {"num_layers": 0},
}
each_variant = pytest.mark.parametrize("name", VARIANTS)


def translator(name="plain", seed=3, **changes):
    """A random translator whose every token matters, and which ends some sentences early."""
    torch.manual_seed(seed)
    options = {"embed_dim": 8, "num_heads": 2, "num_layers": 2, "ff_dim": 12, "max_length": LIMIT}
    model = models.Translator(SIZE, SIZE, **(options | VARIANTS[name] | changes)).double().eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data = 0.3 * torch.randn_like(parameter)
    model.to_logits.bias.data = torch.zeros(SIZE).double().index_fill(0, torch.tensor(EOS), 0.7)
    return model


def source(*lengths):
    """Ids (B, S) without special tokens, padded on the right."""
    return data.pad([torch.randint(4, SIZE, (length,)).tolist() for length in lengths])[0]


def both(call, model, ids, **options):
    """What a decoder says with caches, and without."""
    return (call(model, ids, **options, use_cache=use_cache) for use_cache in (True, False))


def check_beams(model, ids, atol=1e-10, **options):
    (cached, scores), (afresh, expected) = both(models.beam_search, model, ids, **options)
    assert torch.equal(cached, afresh)
    close(scores, expected, atol=atol)
    return cached


def lengths_of(ids):
    return (ids != PAD).sum(1).tolist()


# The same decoder


@pytest.mark.parametrize("chunks", [(1,) * 6, (3, 1, 2), (1, 5), (6,)])
@each_variant
@torch.no_grad()
def test_a_target_in_parts_is_the_target_at_once(name, chunks):
    """Logits and weights alike: a part stands behind the earlier ones and sees them, and itself."""
    model, ids = translator(name), source(*LENGTHS)
    mask, target = ids != PAD, torch.randint(3, SIZE, (8, 6))
    memory = model.encode(ids)
    logits, own, cross = model.decode(target, memory, source_mask=mask, return_weights=True)
    caches, end = model.new_caches(*ids.shape), 0
    for part in target.split(chunks, 1):
        start, end = end, end + part.shape[1]
        options = {"source_mask": mask, "caches": caches, "return_weights": True}
        got, got_own, got_cross = model.decode(part, memory, **options)
        assert caches.length == end
        close(got, logits[:, start:end])
        for layer in range(len(model.decoder)):
            close(got_own[layer], own[layer][:, :, start:end, :end])
            close(got_cross[layer], cross[layer][:, :, start:end])


@torch.no_grad()
def test_the_memory_is_read_once_with_its_mask():
    model, ids = translator(), source(*LENGTHS)
    mask, target = ids != PAD, torch.randint(3, SIZE, (8, 4))
    memory = model.encode(ids)
    expected = model.decode(target, memory, source_mask=mask)
    read = []
    for block in model.decoder:
        block.cross_attention.k_proj.register_forward_hook(lambda *call: read.append(call))
    caches = model.new_caches(*ids.shape)
    close(model.decode(target[:, :1], memory, source_mask=mask, caches=caches), expected[:, :1])
    for t in range(1, 4):
        got = model.decode(target[:, t : t + 1], memory, caches=caches)
        close(got, expected[:, t : t + 1])
    assert len(read) == len(model.decoder)


@pytest.mark.parametrize("index", [[4, 0, 0, 2, 3, 7, 5, 6], [1], [7, 7, 2, 1, 0, 4, 4, 3, 5, 6]])
@torch.no_grad()
def test_reorder_moves_rows_with_their_memory(index):
    model, ids, index = translator(), source(*LENGTHS), torch.tensor(index)
    mask, target = ids != PAD, torch.randint(3, SIZE, (8, 3))
    memory, caches = model.encode(ids), model.new_caches(*ids.shape)
    model.decode(target, memory, source_mask=mask, caches=caches)
    caches.reorder(index)
    new = torch.randint(3, SIZE, (len(index), 2))
    got = model.decode(new, memory[index], caches=caches)
    whole = torch.cat((target[index], new), dim=1)
    close(got, model.decode(whole, memory[index], source_mask=mask[index])[:, 3:])


@torch.no_grad()
def test_reorder_can_leave_the_memory_where_it_is():
    model, ids = translator(), source(5, 3).repeat_interleave(2, dim=0)
    mask, target = ids != PAD, torch.randint(3, SIZE, (4, 3))
    memory, caches = model.encode(ids), model.new_caches(*ids.shape)
    model.decode(target, memory, source_mask=mask, caches=caches)
    index = torch.tensor([1, 1, 2, 2])  # within each source
    caches.reorder(index, memory=False)
    got = model.decode(target[:, :1], memory, caches=caches)
    whole = torch.cat((target[index], target[:, :1]), dim=1)
    close(got, model.decode(whole, memory, source_mask=mask)[:, 3:])
    before = [layer.memory.read().key.clone() for layer in caches]
    caches.reorder(torch.tensor([3, 2, 1, 0]), memory=False)  # across sources
    assert all(torch.equal(x.memory.read().key, y) for x, y in zip(caches, before, strict=True))


# The same sentences


@pytest.mark.parametrize("max_length", [None, 1, 4])
@pytest.mark.parametrize("seed", SEEDS)
@each_variant
def test_greedy_says_the_same(name, seed, max_length):
    model, ids = translator(name, seed), source(*LENGTHS)
    cached, afresh = both(models.greedy, model, ids, max_length=max_length)
    assert torch.equal(cached, afresh)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_says_the_same_alone_as_in_a_batch(seed, use_cache):
    model, ids = translator(seed=seed), source(*LENGTHS)
    for row, tokens in zip(ids, models.greedy(model, ids, use_cache=use_cache), strict=True):
        alone = models.greedy(model, row[row != PAD][None], use_cache=use_cache)[0]
        assert torch.equal(F.pad(alone, (0, len(tokens) - len(alone))), tokens)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("seed", SEEDS)
@each_variant
def test_beams_say_the_same_at_the_same_score(name, seed, size):
    model, ids = translator(name, seed), source(*LENGTHS)
    check_beams(model, ids, beam_size=size)
    check_beams(model, ids, beam_size=size, length_penalty=0.3, max_length=4)
    check_beams(model, ids[1:2, :3], beam_size=size)


def test_the_sentences_compared_end_early_late_and_never():
    ends = set()
    for seed in SEEDS:
        ids = models.greedy(translator(seed=seed), source(*LENGTHS))
        ends |= {
            length if EOS in row else "never"
            for row, length in zip(ids.tolist(), lengths_of(ids), strict=True)
        }
    assert len(ends) > 4 and "never" in ends


def test_more_beams_than_words():
    model = translator()
    check_beams(model, source(4, 2), beam_size=SIZE + 7, max_length=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_trained_translator_says_is_the_same(dtype):
    """It learns to say sentences backwards, so it must look at the source, and know its place."""
    torch.manual_seed(0)
    options = {"embed_dim": 32, "num_heads": 4, "num_layers": 1, "ff_dim": 64, "max_length": 10}
    model = models.Translator(SIZE, SIZE, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        length = int(torch.randint(2, 6, ()))
        ids = torch.randint(4, SIZE, (64, length))
        target = F.pad(F.pad(ids.flip(1), (1, 0), value=BOS), (0, 1), value=EOS)
        logits = model(ids, target[:, :-1])
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten()).backward()
        optimizer.step()
    model, ids = model.to(dtype), source(*[2, 5, 3, 4] * 8)
    cached, afresh = both(models.Translator.translate, model, ids)
    assert torch.equal(cached, afresh)
    right = [
        row[row > EOS].tolist() == words[words != PAD].flip(0).tolist()
        for row, words in zip(cached, ids, strict=True)
    ]
    assert sum(right) > 16 and set(lengths_of(cached)) >= {3, 4, 5, 6}
    check_beams(model.eval(), ids, beam_size=4, atol=1e-10 if dtype == torch.float64 else 1e-5)
    cached, afresh = both(models.Translator.translate, model, ids, beam_size=4)
    assert torch.equal(cached, afresh)


def test_scores_are_in_the_models_precision_and_at_least_float32():
    model, ids = translator(), source(4, 2)
    for dtype, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        _, scores = models.beam_search(model.to(dtype), ids, beam_size=2)
        assert scores.dtype == expected


@torch.no_grad()
def test_scores_of_a_float64_model_are_exact():
    model, ids = translator(), source(*LENGTHS)
    said, scores = models.beam_search(model, ids, beam_size=3)
    logits = model(ids, F.pad(said, (1, 0), value=BOS)[:, :-1])  # (B, L, V)
    logits[..., [PAD, BOS]] = -torch.inf
    log_p = logits.log_softmax(-1).gather(-1, said[..., None])[..., 0]  # (B, L)
    real = said != PAD
    close(scores, log_p.masked_fill(~real, 0).sum(1) / real.sum(1))


@pytest.mark.parametrize("size", [1, 3])
def test_a_mask_counts_whatever_the_ids(size):
    model, ids = translator(), source(6, 6, 6, 6, 6)
    plain = model.translate(ids, beam_size=size)
    holes = torch.tensor([[True, False, True, True, False, False]])  # (1, S): for every row
    cached, afresh = both(
        models.Translator.translate, model, ids, beam_size=size, source_mask=holes
    )
    assert torch.equal(cached, afresh)
    assert cached.shape != plain.shape or not torch.equal(cached, plain)
    other = torch.where(holes, ids, (ids + 1) % 9 + 4)
    assert torch.equal(model.translate(other, beam_size=size, source_mask=holes), cached)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape", [(0, 4), (0, 0), (2, 0)])
def test_nothing_to_translate(shape, size):
    model, ids = translator(), torch.zeros(shape, dtype=torch.int64)
    cached, afresh = both(models.Translator.translate, model, ids, beam_size=size)
    assert torch.equal(cached, afresh) and len(cached) == shape[0]


@pytest.mark.parametrize("size", [1, 3])
def test_translate_in_training_turns_dropout_off_and_needs_no_gradient(size):
    model, ids = translator(), source(*LENGTHS)
    noisy = translator(dropout=0.5)
    noisy.load_state_dict(model.state_dict())
    noisy.train()
    assert torch.is_grad_enabled()
    expected = model.translate(ids, beam_size=size)
    for said in both(models.Translator.translate, noisy, ids, beam_size=size):
        assert torch.equal(said, expected)
    assert noisy.training and noisy.decoder[0].training
    with torch.inference_mode():
        assert torch.equal(noisy.translate(ids, beam_size=size), expected)
    assert torch.equal(noisy.translate(ids, beam_size=size), expected)


# What is computed


def sizes_read(model, ids, **options):
    """Shape of what the decoder reads at each step."""
    read, embedding = [], model.target_embedding
    handle = embedding.register_forward_hook(lambda _, args, out: read.append(args[0].shape))
    said = model.translate(ids, **options)
    handle.remove()
    return read, said


def test_each_token_is_read_once():
    model, ids = translator(), source(*LENGTHS)
    for options in ({}, {"beam_size": 3}):
        read, said = sizes_read(model, ids, **options)
        assert {length for _, length in read} == {1}
        read, again = sizes_read(model, ids, **options, use_cache=False)
        assert [length for _, length in read] == list(range(1, len(read) + 1))
        assert torch.equal(said, again) and len(read) > 3


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_computes_nothing_for_what_has_ended(use_cache):
    model, ids = translator(), source(*LENGTHS)
    read, said = sizes_read(model, ids, use_cache=use_cache)
    lengths = torch.tensor(lengths_of(said))
    expected = [int((lengths > step).sum()) for step in range(said.shape[1])]
    assert [rows for rows, _ in read] == expected and len(set(expected)) > 2


# What is refused


@torch.no_grad()
def test_a_full_target_is_refused_and_changes_nothing():
    model, ids = translator(), source(4, 4)
    memory, target = model.encode(ids), torch.randint(3, SIZE, (2, LIMIT))
    expected = model.decode(target, memory)
    caches = model.new_caches(*ids.shape)
    model.decode(target[:, :7], memory, caches=caches)
    message = r"target_ids.*max_length=9 tokens, got \(2, 3\) behind 7 in the caches"
    with pytest.raises(ValueError, match=message):
        model.decode(target[:, :3], memory, caches=caches)
    close(model.decode(target[:, 7:], memory, caches=caches), expected[:, 7:])
    short = model.new_caches(*ids.shape, 2)
    with pytest.raises(ValueError, match="the cache is full: 0 of max_len=2"):
        model.decode(target[:, :3], memory, caches=short)
    close(model.decode(target[:, :2], memory, caches=short), expected[:, :2])


def test_caches_are_for_no_gradient_and_their_own_batch():
    model, ids = translator(), source(4, 4)
    memory, target = model.encode(ids), torch.full((2, 1), BOS)
    caches = model.new_caches(*ids.shape)
    with pytest.raises(ValueError, match=r"key requires grad.*torch.no_grad\(\)"):
        model.decode(target, memory, caches=caches)
    assert caches.length == 0
    with torch.no_grad():
        close(model.decode(target, memory, caches=caches), model.decode(target, memory))
        with pytest.raises(ValueError, match="batch size of query, B=1, got 2"):
            model.decode(target[:1], memory[:1], caches=caches)


@pytest.mark.parametrize("use_cache", [True, False])
def test_weights_of_the_whole_are_as_before(use_cache):
    """Translating leaves nothing behind on the model."""
    model, ids = translator(), source(*LENGTHS)
    target = torch.randint(3, SIZE, (8, 4))
    logits, weights = model(ids, target, return_weights=True)
    model.translate(ids, use_cache=use_cache)
    again, weights_again = model(ids, target, return_weights=True)
    assert torch.equal(again, logits)
    for x, y in zip(itertools.chain(*weights), itertools.chain(*weights_again), strict=True):
        assert torch.equal(x, y)
