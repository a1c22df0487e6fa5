"""Dates in eleven locales' own words, with the same dates in ISO 8601: a small translation task.

The words come from Unicode's CLDR, which the package ``babel`` carries; nothing is downloaded.
"""

import datetime
import random
from collections.abc import Sequence
from typing import NamedTuple

from mha._extras import require
from mha.data.batching import shuffled
from mha.data.vocabulary import Vocabulary

LOCALES = ("en_US", "en_GB", "de", "fr", "es", "it", "nl", "pt_BR", "sv", "pl", "zh_Hans")
"""CLDR names of the locales."""

FORMATS = ("medium", "long", "full")
"""CLDR date formats; ``short`` is left out, since 03/04/05 means another day in another locale."""

FIRST, LAST = datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)


class DatePair(NamedTuple):
    """One date twice: ``source`` in a locale's words, ``target`` in ISO 8601 (YYYY-MM-DD).

    Examples:
        >>> import mha
        >>> pair = mha.data.DatePair("14. März 2005", "2005-03-14", "de", "long")
        >>> pair.source, pair.target
        ('14. März 2005', '2005-03-14')
        >>> pair.locale in mha.data.LOCALES, pair.format in mha.data.FORMATS
        (True, True)
    """

    source: str
    target: str
    locale: str
    format: str


def dates(
    train: int = 10_000, held_out: int = 1_000, *, seed: int = 0
) -> tuple[list[DatePair], list[DatePair]]:
    """Pairs to train on and pairs to test on; no date stands twice, within either or in both.

    Each list takes locales and formats in turn, in equal shares, in random order.

    Args:
        train, held_out: number of pairs in each list.
        seed: fixes dates, order and split, on every platform; the words are those of the
            installed ``babel``.
    Returns: the two lists. Years are 1950 to 2049.
    Errors: ValueError for a negative number, and for more pairs than there are days;
        ImportError without ``babel``.

    Examples:
        >>> import mha
        >>> train, test = mha.data.dates(330, 33)
        >>> train[0].target, train[0].locale
        ('2005-03-14', 'nl')
        >>> {pair.target for pair in train} & {pair.target for pair in test}
        set()
        >>> [sum(pair.locale == name for pair in test) for name in ("de", "zh_Hans")]
        [3, 3]
    """
    days = (LAST - FIRST).days + 1
    if train < 0 or held_out < 0 or train + held_out > days:
        raise ValueError(
            f"train and held_out must not be negative, and together at most {days} (the days of "
            f"{FIRST.year} to {LAST.year}), got {train} and {held_out}"
        )
    rng = random.Random(seed)
    chosen = shuffled(range(days), rng)[: train + held_out]
    return _pairs(chosen[:train], rng), _pairs(chosen[train:], rng)


def _pairs(days: Sequence[int], rng: random.Random) -> list[DatePair]:
    format_date = require("babel.dates", "data").format_date
    styles = [(locale, format) for locale in LOCALES for format in FORMATS]
    turns = shuffled([styles[i % len(styles)] for i in range(len(days))], rng)
    pairs = []
    for day, (locale, format) in zip(days, turns, strict=True):
        date = FIRST + datetime.timedelta(days=day)
        words = format_date(date, format=format, locale=locale)
        pairs.append(DatePair(words, date.isoformat(), locale, format))
    return pairs


def date_vocabularies(pairs: Sequence[DatePair]) -> tuple[Vocabulary, Vocabulary]:
    """Vocabularies of characters: of the sources, with ``<unk>``, and of the targets, without.

    Args:
        pairs: those to train on, as of `dates`.
    Returns: two `Vocabulary`, of the sources and of the targets.

    Examples:
        >>> import mha
        >>> train, _ = mha.data.dates(1_000, 0)
        >>> source, target = mha.data.date_vocabularies(train)
        >>> "".join(target.tokens[3:]), target.unk_id
        ('-0123456789', None)
        >>> target.encode("2005-03-14")
        [6, 4, 4, 9, 3, 4, 7, 3, 5, 8]
        >>> source.encode("☃") == [source.unk_id]
        True
    """
    return (
        Vocabulary(pair.source for pair in pairs),
        Vocabulary((pair.target for pair in pairs), unk=False),
    )
