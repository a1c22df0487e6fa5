"""mha.data: vocabularies, padding, batches, and what the two data sets promise."""

import datetime
import hashlib
from collections import Counter

import pytest
import torch

from mha import data

WORDS = [["the", "cat", "sat"], ["the", "dog"]]


# Vocabulary


def test_specials_come_first_then_code_point_order():
    vocabulary = data.Vocabulary(WORDS)
    assert vocabulary.tokens == ("<pad>", "<bos>", "<eos>", "<unk>", "cat", "dog", "sat", "the")
    ids = [vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id]
    assert ids == [0, 1, 2, 3] and tuple(vocabulary.tokens[:4]) == data.SPECIALS
    assert "dog" in vocabulary and "cow" not in vocabulary and len(vocabulary) == 8


def test_vocabulary_does_not_depend_on_the_order_of_the_sequences():
    assert data.Vocabulary(WORDS).tokens == data.Vocabulary(WORDS[::-1]).tokens


@pytest.mark.parametrize("unk", [True, False])
def test_characters_round_trip(unk):
    text = "Sonntag, 2. März 1963 年"
    vocabulary = data.Vocabulary([text, "other"], unk=unk)
    ids = vocabulary.encode(text, bos=True, eos=True)
    assert ids[0] == 1 and ids[-1] == 2 and len(ids) == len(text) + 2
    assert vocabulary.decode(ids, sep="") == text
    assert vocabulary.decode(torch.tensor([*ids, 0, 0])) == list(text)


def test_words_round_trip():
    vocabulary = data.Vocabulary(WORDS)
    assert vocabulary.encode(WORDS[0]) == [7, 4, 6]
    assert vocabulary.decode([7, 4, 6], sep=" ") == "the cat sat"


def test_bos_and_eos_are_asked_for_one_by_one():
    vocabulary = data.Vocabulary(WORDS)
    assert vocabulary.encode(["cat"], bos=True) == [1, 4]
    assert vocabulary.encode(["cat"], eos=True) == [4, 2]


def test_decode_stops_at_eos():
    assert data.Vocabulary(WORDS).decode([1, 0, 4, 2, 5, 5]) == ["cat"]


def test_unknown_tokens():
    assert data.Vocabulary(WORDS).encode(["cow", "cat"]) == [3, 4]
    with pytest.raises(ValueError, match="'cow' is not in the vocabulary, which has no <unk>"):
        data.Vocabulary(WORDS, unk=False).encode(["cat", "cow"])


@pytest.mark.parametrize(
    ("sequences", "error", "message"),
    [
        ("abc", TypeError, "one str 'abc'"),
        ([["a", 3]], TypeError, "tokens must be str, got int 3"),
        ([["a", "<eos>"]], ValueError, "special token '<eos>'"),
    ],
)
def test_vocabulary_refusals(sequences, error, message):
    with pytest.raises(error, match=message):
        data.Vocabulary(sequences)


@pytest.mark.parametrize("number", [-1, 8])
def test_decode_refuses_an_id_outside(number):
    with pytest.raises(ValueError, match=f"id {number} is outside a vocabulary of 8"):
        data.Vocabulary(WORDS).decode([4, number])


# pad and Batches


def test_pad_by_hand():
    ids, key_mask = data.pad([[5, 6, 7], [8], []], pad_id=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9], [9, 9, 9]] and ids.dtype == torch.int64
    assert key_mask.tolist() == [[True] * 3, [True, False, False], [False] * 3]


def test_pad_counts_a_pad_id_inside_a_sequence_as_real():
    _, key_mask = data.pad([[5, 0, 0], [1, 2, 3]])
    assert key_mask.all()


def test_pad_of_nothing():
    ids, key_mask = data.pad([])
    assert ids.shape == key_mask.shape == (0, 0)
    assert (ids.dtype, key_mask.dtype) == (torch.int64, torch.bool)


def test_a_pass_holds_every_example_once():
    batches = data.Batches(range(23), 5)
    got = list(batches)
    assert len(got) == len(batches) == 5
    assert sorted(len(batch) for batch in got) == [3, 5, 5, 5, 5]
    assert sorted(item for batch in got for item in batch) == list(range(23))


def test_orders_repeat_with_the_seed_and_differ_between_passes():
    one, same, other = (data.Batches(range(40), 4, seed=s) for s in (7, 7, 8))
    first, second = list(one), list(one)
    assert first != second
    assert [list(same), list(same)] == [first, second]
    assert list(other) != first


def test_order_is_the_same_on_every_platform():
    # random.Random(0).random() gives .84 .76 .42 .26 .51 .40, so 3 5 2 4 1 0, then .78 .30 .48
    assert list(data.Batches(range(6), 2, seed=0)) == [[2, 4], [1, 0], [3, 5]]


def test_without_shuffle_the_order_stays():
    assert list(data.Batches("abcde", 2, shuffle=False)) == [["a", "b"], ["c", "d"], ["e"]]


def test_buckets_hold_examples_of_like_length():
    examples = [[0] * n for n in range(1, 17)] * 3
    batches = list(data.Batches(examples, 6, length=len))  # 8 batches: one group, sorted whole
    assert [max(map(len, batch)) - min(map(len, batch)) for batch in batches] == [1] * 8
    lengths = [len(batch[0]) for batch in batches]
    assert lengths != sorted(lengths), "the batches must come in random order"


def test_without_shuffle_buckets_are_in_order_of_length():
    examples = [[0] * n for n in (3, 1, 2, 5, 4)]
    batches = list(data.Batches(examples, 2, length=len, shuffle=False))
    assert [[len(example) for example in batch] for batch in batches] == [[1, 2], [3, 4], [5]]
    many = data.Batches([[0] * n for n in range(30, 0, -1)], 1, length=len, shuffle=False)
    assert [len(example) for (example,) in many] == list(range(1, 31))


@pytest.mark.parametrize(
    ("examples", "size", "message"), [([1], 0, "at least 1, got 0"), ([], 2, "must not be empty")]
)
def test_batches_refusals(examples, size, message):
    with pytest.raises(ValueError, match=message):
        data.Batches(examples, size)


# Dates


@pytest.fixture(scope="module")
def date_pairs():
    return data.dates()


def test_no_date_stands_twice(date_pairs):
    train, held_out = date_pairs
    assert (len(train), len(held_out)) == (10_000, 1_000)
    assert len({pair.target for pair in train + held_out}) == 11_000


def test_no_source_is_ambiguous(date_pairs):
    train, held_out = date_pairs
    assert len({pair.source for pair in train + held_out}) == 11_000


def test_targets_are_iso_dates_of_the_promised_years(date_pairs):
    years = Counter()
    for pair in date_pairs[0]:
        date = datetime.date.fromisoformat(pair.target)
        assert date.isoformat() == pair.target
        years[date.year] += 1
    assert min(years) == 1950 and max(years) == 2049 and len(years) == 100


def test_equal_shares_of_locales_and_formats(date_pairs):
    for pairs in date_pairs:
        styles = Counter((pair.locale, pair.format) for pair in pairs)
        assert set(styles) == {(loc, form) for loc in data.LOCALES for form in data.FORMATS}
        assert max(styles.values()) - min(styles.values()) <= 1


GERMAN = "Januar Februar März April Mai Juni Juli August September Oktober November Dezember"
SPANISH = "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre"


def test_sources_are_the_same_dates_in_the_locales_words(date_pairs):
    written_by_hand = {
        "de": lambda d: f"{d.day}. {GERMAN.split()[d.month - 1]} {d.year}",
        "es": lambda d: f"{d.day} de {SPANISH.split()[d.month - 1]} de {d.year}",
        "zh_Hans": lambda d: f"{d.year}年{d.month}月{d.day}日",
    }
    checked = 0
    for pair in date_pairs[0]:
        if pair.format == "long" and pair.locale in written_by_hand:
            date = datetime.date.fromisoformat(pair.target)
            assert pair.source == written_by_hand[pair.locale](date)
            checked += 1
    assert checked == 909


def test_full_names_the_weekday(date_pairs):
    days = ["Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"]
    for pair in date_pairs[0]:
        if (pair.locale, pair.format) == ("de", "full"):
            assert pair.source.startswith(
                days[datetime.date.fromisoformat(pair.target).weekday()] + ", "
            )


def test_dates_repeat_with_the_seed(date_pairs):
    assert data.dates() == date_pairs
    other, _ = data.dates(seed=1)
    assert {pair.target for pair in other} != {pair.target for pair in date_pairs[0]}


def test_which_dates_are_drawn_does_not_depend_on_the_platform(date_pairs):
    text = "\n".join(f"{p.target} {p.locale} {p.format}" for pairs in date_pairs for p in pairs)
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "f50e453f7835880a0b0721db2e56c1f568f1bcf74b24eb2a1edc4cc778310356"
    )


@pytest.mark.parametrize("numbers", [(-1, 5), (5, -1), (36_000, 526)])
def test_dates_refusals(numbers):
    with pytest.raises(ValueError, match=f"at most 36525.*got {numbers[0]} and {numbers[1]}"):
        data.dates(*numbers)


# Batches for the translator


def test_translation_batch_by_hand():
    pairs = [
        data.DatePair("ab", "12", "de", "long"),
        data.DatePair("bcb", "2", "de", "long"),
    ]
    batch = data.translation_batch(pairs, *data.date_vocabularies(pairs))
    assert batch.source_ids.tolist() == [[4, 5, 0], [5, 6, 5]]
    assert batch.source_mask.tolist() == [[True, True, False], [True] * 3]
    assert batch.target_in.tolist() == [[1, 3, 4], [1, 4, 0]]
    assert batch.target_out.tolist() == [[3, 4, 2], [4, 2, 0]]
    assert all(t.device.type == "meta" for t in batch.to("meta"))


def test_translation_batches_decode_to_the_pairs(date_pairs):
    pairs = date_pairs[1]
    source, target = data.date_vocabularies(pairs)
    found = set()
    for batch in data.translation_batches(pairs, source, target, 64):
        assert torch.equal(batch.source_mask, batch.source_ids != 0)
        for source_ids, target_ids in zip(batch.source_ids, batch.target_out, strict=True):
            found.add((source.decode(source_ids, sep=""), target.decode(target_ids, sep="")))
    assert found == {(pair.source, pair.target) for pair in pairs}


def test_buckets_waste_little_on_padding(date_pairs):
    train, _ = date_pairs
    batches = data.translation_batches(train, *data.date_vocabularies(train), 64)
    masks = [batch.source_mask for batch in batches]
    real, all_of_it = sum(m.sum().item() for m in masks), sum(m.numel() for m in masks)
    assert real / all_of_it > 0.85  # in random order it would be 0.50


# Digits


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def test_digits_shapes_and_range(digits):
    assert digits.train_images.shape == (1438, 1, 8, 8)
    assert digits.test_images.shape == (359, 1, 8, 8)
    assert digits.train_images.dtype == torch.float32 and digits.train_labels.dtype == torch.int64
    assert digits.train_images.min() == 0 and digits.train_images.max() == 1


def test_digits_are_stratified(digits):
    test, train = digits.test_labels.bincount(), digits.train_labels.bincount()
    assert (test / (test + train) - 0.2).abs().max() < 0.5 / 174


def test_digits_split_loses_and_repeats_nothing(digits):
    from sklearn.datasets import load_digits

    whole = Counter(image.tobytes() for image in (load_digits().images / 16).astype("float32"))
    both = torch.cat((digits.train_images, digits.test_images))
    assert Counter(image.numpy().tobytes() for image in both) == whole


def test_digits_labels_belong_to_their_images(digits):
    from sklearn.datasets import load_digits

    loaded = load_digits()
    label_of = {
        image.astype("float32").tobytes(): label
        for image, label in zip(loaded.images / 16, loaded.target, strict=True)
    }
    for image, label in zip(digits.test_images, digits.test_labels, strict=True):
        assert label_of[image.numpy().tobytes()] == label


def test_digits_repeat_with_the_seed(digits):
    again, other = data.digits(), data.digits(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(digits, again, strict=True))
    assert not torch.equal(digits.test_images, other.test_images)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_digits_refuses_an_empty_side(fraction):
    with pytest.raises(ValueError, match=f"above 0 and below 1, got {fraction}"):
        data.digits(test_fraction=fraction)


def test_digits_notices_other_data(monkeypatch):
    import sklearn.datasets

    loaded = sklearn.datasets.load_digits()
    loaded.images[0, 0, 0] += 1
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: loaded)
    with pytest.raises(RuntimeError, match="SHA-256"):
        data.digits()


# Augmentation


def test_augment_by_nothing_is_the_identity(digits):
    images = digits.test_images[:7]
    same = data.augment(images, rotate=0, scale=0, shear=0, shift=0)
    torch.testing.assert_close(same, images)


def one_draw(value):
    """A stand-in for torch.rand that draws the same number everywhere."""
    return lambda *shape, generator=None: torch.full(shape, value)


def test_augment_shift_is_a_fraction_of_the_side(monkeypatch):
    monkeypatch.setattr(torch, "rand", one_draw(1.0))
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 5] = 1.0
    moved = data.augment(image, rotate=0, scale=0, shear=0, shift=0.125)  # one pixel of eight
    expected = torch.zeros(1, 1, 8, 8)
    expected[0, 0, 2, 4] = 1.0
    torch.testing.assert_close(moved, expected)


def test_augment_by_a_quarter_turn_is_rot90(monkeypatch):
    monkeypatch.setattr(torch, "rand", one_draw(1.0))
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    turned = data.augment(image, rotate=torch.pi / 2, scale=0, shear=0, shift=0)
    torch.testing.assert_close(turned, image.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_augment_scale_is_a_fraction(monkeypatch):
    monkeypatch.setattr(torch, "rand", one_draw(1.0))
    ramp = torch.linspace(-7 / 8, 7 / 8, 8).expand(1, 1, 8, 8)  # value = place, -1 to 1
    smaller = data.augment(ramp, rotate=0, scale=0.1, shear=0, shift=0)
    torch.testing.assert_close(smaller[0, 0, 4, 1:7], 1.1 * ramp[0, 0, 4, 1:7])


def test_augment_shear_is_columns_a_row(monkeypatch):
    monkeypatch.setattr(torch, "rand", one_draw(1.0))
    ramp = torch.linspace(-7 / 8, 7 / 8, 8).expand(1, 1, 8, 8)
    slanted = data.augment(ramp, rotate=0, scale=0, shear=0.15, shift=0)
    by_row = slanted[0, 0, 1:, 3] - slanted[0, 0, :-1, 3]
    torch.testing.assert_close(by_row, torch.full((7,), 0.15 / 4))  # a row is 1/4 of the 2


def test_augment_draws_for_each_picture_and_from_the_generator(digits):
    images = digits.test_images[:1].expand(4, 1, 8, 8)
    one = data.augment(images, torch.Generator().manual_seed(3))
    again = data.augment(images, torch.Generator().manual_seed(3))
    assert torch.equal(one, again)
    assert not torch.equal(one[0], one[1])
    assert (one - images).abs().mean() > 0.01


def test_augment_refuses_a_bare_picture():
    with pytest.raises(ValueError, match=r"\(B, C, h, w\), got \(8, 8\)"):
        data.augment(torch.zeros(8, 8))


def test_image_batches_pair_images_with_their_labels(digits):
    images, labels = digits.test_images, digits.test_labels
    label_of = {im.numpy().tobytes(): lab for im, lab in zip(images, labels.tolist(), strict=True)}
    seen = 0
    for batch, batch_labels in data.image_batches(images, labels, 50, augmented=False):
        assert [label_of[im.numpy().tobytes()] for im in batch] == batch_labels.tolist()
        seen += len(batch)
    assert seen == len(images)


def test_image_batches_are_augmented_anew_and_repeat_with_the_seed(digits):
    images, labels = digits.test_images[:1], digits.test_labels[:1]
    one, same = (data.image_batches(images, labels, 8, seed=4) for _ in range(2))
    first, second = next(iter(one))[0], next(iter(one))[0]
    assert torch.equal(first, next(iter(same))[0])
    assert not torch.allclose(first, second)


def test_image_batches_refuse_other_numbers(digits):
    with pytest.raises(ValueError, match="got 359 and 1438"):
        data.image_batches(digits.test_images, digits.train_labels, 8)


# Optional dependencies


@pytest.mark.parametrize(
    ("module", "call"), [("babel", lambda: data.dates(1, 1)), ("sklearn", data.digits)]
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, module, call):
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'needs {module}: pip install "mha\[data\]"'):
        call()
