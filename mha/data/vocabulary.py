"""Vocabularies: a number for each token, and the way back."""

from collections.abc import Iterable, Sequence

from torch import Tensor

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
"""Padding, beginning of sequence, end of sequence, unknown token: ids 0, 1, 2 and 3."""

MASK = "<mask>"
"""A token that is hidden, to be guessed from the others: in vocabularies that ask for it."""


class Vocabulary:
    """Token <-> id, both ways; the special tokens first, then the tokens in code point order.

    Args:
        sequences: iterable of token sequences. A str is a sequence of characters, a list of str
            one of words.
        unk: whether there is an ``<unk>`` that stands for every token not in ``sequences``.
        mask: whether there is a ``<mask>``, the last of the specials, for `masked_tokens`.
    Attributes:
        tokens: all tokens, by id.
        pad_id, bos_id, eos_id, unk_id, mask_id: ids of the specials; the last two are None where
            there is no such token.
    Errors: TypeError for one bare string (each of its characters would count as a sequence) and
        for a token that is not a str; ValueError for a token that is the name of a special.

    Examples:
        >>> import mha
        >>> vocabulary = mha.data.Vocabulary(["to be", "or not"])
        >>> "".join(vocabulary.tokens[4:])
        ' benort'
        >>> ids = vocabulary.encode("note", bos=True, eos=True)
        >>> ids, vocabulary.decode(ids, sep="")
        ([1, 7, 8, 10, 6, 2], 'note')
        >>> vocabulary.decode(vocabulary.encode("body"), sep="")  # no d and no y in what it was made of
        'bo<unk><unk>'
    """

    def __init__(self, sequences: Iterable[Sequence[str]], *, unk: bool = True, mask: bool = False):
        if isinstance(sequences, str):
            raise TypeError(f"sequences must hold sequences of tokens, got one str {sequences!r}")
        found = {token for sequence in sequences for token in sequence}
        for token in found:
            if not isinstance(token, str):
                raise TypeError(f"tokens must be str, got {type(token).__name__} {token!r}")
            if token in SPECIALS or (mask and token == MASK):
                raise ValueError(f"sequences hold the special token {token!r}")
        specials = SPECIALS[: 3 + unk] + (MASK,) * mask
        self.tokens: tuple[str, ...] = (*specials, *sorted(found))
        self.pad_id, self.bos_id, self.eos_id = 0, 1, 2
        self.unk_id = 3 if unk else None
        self.mask_id = 3 + unk if mask else None
        self._specials = len(specials)
        self._ids = {token: number for number, token in enumerate(self.tokens)}

    @property
    def ordinary(self) -> range:
        """The ids of all tokens but the special ones."""
        return range(self._specials, len(self.tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: str) -> bool:
        return token in self._ids

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tokens, {'with' if self.unk_id else 'without'} <unk>)"

    def encode(self, sequence: Sequence[str], *, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of the tokens of one sequence, between ``<bos>`` and ``<eos>`` where asked for.

        Errors: ValueError for a token that is not in the vocabulary, where there is no ``<unk>``.
        """
        ids = [self._ids.get(token, self.unk_id) for token in sequence]
        if None in ids:
            token = sequence[ids.index(None)]
            raise ValueError(f"token {token!r} is not in the vocabulary, which has no <unk>")
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, ids: Sequence[int] | Tensor, *, sep: str | None = None) -> list[str] | str:
        """Tokens of one sequence of ids (list or (T,) tensor), up to the first ``<eos>``.

        ``<pad>`` and ``<bos>`` are left out. With ``sep`` the tokens are joined to one str by it.

        Errors: ValueError for an id outside the vocabulary.
        """
        tokens = []
        for number in ids.tolist() if isinstance(ids, Tensor) else ids:
            if not 0 <= number < len(self):
                raise ValueError(f"id {number} is outside a vocabulary of {len(self)} tokens")
            if number == self.eos_id:
                break
            if number not in (self.pad_id, self.bos_id):
                tokens.append(self.tokens[number])
        return tokens if sep is None else sep.join(tokens)
