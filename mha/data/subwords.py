"""Pieces of words, by SentencePiece: the vocabulary of models that read and write sentences."""

import io
import unicodedata
from collections.abc import Iterable, Sequence

from torch import Tensor

from mha._extras import require


class Subwords:
    """Text <-> ids of pieces, both ways: a model of SentencePiece, made by byte-pair encoding.

    It stands where a `Vocabulary` can stand, for text that is not cut into tokens yet. A piece
    that begins a word starts with "▁" (U+2581), which stands for the space before it; so decoding
    gives a text of known characters back, in Unicode's form NFC, with single spaces.

    Args:
        model: the bytes of a SentencePiece model with the special ids below; see `train`.
    Attributes:
        tokens: the pieces, by id.
        pad_id, bos_id, eos_id, unk_id: 0, 1, 2 and 3.
    Errors: ImportError without sentencepiece; ValueError for bytes that are no such model, or one
        with other special ids.
    Source: Kudo and Richardson 2018; byte-pair encoding of words: Sennrich et al. 2016.

    Examples:
        >>> import mha
        >>> subwords = mha.data.Subwords.train(["low low lower", "new newer newest"], size=24)
        >>> subwords
        Subwords(24 pieces)
        >>> subwords.pieces("lowest")  # not seen before
        ['▁low', 'est']
        >>> subwords.decode(subwords.encode("lowest  newer", bos=True, eos=True))
        'lowest newer'
        >>> mha.data.Subwords.from_bytes(subwords.to_bytes()).tokens == subwords.tokens
        True
    """

    pad_id, bos_id, eos_id, unk_id = range(4)

    def __init__(self, model: bytes):
        library = require("sentencepiece", "data")
        self._model = model
        try:
            if not model:  # which the library takes for no model at all, and then crashes
                raise RuntimeError("no bytes")
            self._processor = library.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(
                f"model must be a SentencePiece model, got {len(model)} bytes of another kind"
            ) from error
        found = (self._processor.pad_id(), self._processor.bos_id(), self._processor.eos_id())
        if (*found, self._processor.unk_id()) != (0, 1, 2, 3):
            raise ValueError(
                "model must have the ids 0 to 3 for padding, beginning, end and unknown, got "
                f"{found} and {self._processor.unk_id()}"
            )
        pieces = range(self._processor.get_piece_size())
        self.tokens: tuple[str, ...] = tuple(map(self._processor.id_to_piece, pieces))

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "Subwords":
        """Learn pieces from texts by byte-pair encoding: all characters, then merged pairs.

        Args: texts, an iterable of str; size, number of pieces, special ones included.
        Errors: TypeError for one bare str, and for what is not a str; ValueError for a size that
            the texts cannot fill, or that is too small for their characters.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be an iterable of str, got one str {texts!r}")
        texts = [_normal(text) for text in texts]  # the library may garble errors in between
        made = io.BytesIO()
        try:
            require("sentencepiece", "data").SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=made,
                model_type="bpe",
                vocab_size=size,
                character_coverage=1.0,
                max_sentence_length=2**30,  # bytes, the most; longer texts are passed over
                normalization_rule_name="identity",  # `_normal` does what there is to do
                pad_id=cls.pad_id,
                bos_id=cls.bos_id,
                eos_id=cls.eos_id,
                unk_id=cls.unk_id,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"no {size} pieces can be made of these texts: {error}") from error
        return cls(made.getvalue())

    @classmethod
    def from_bytes(cls, model: bytes) -> "Subwords":
        """The pieces that `to_bytes` wrote down."""
        return cls(model)

    def to_bytes(self) -> bytes:
        """All there is to know about the pieces, in SentencePiece's own form."""
        return self._model

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"Subwords({len(self)} pieces)"

    def __reduce__(self):
        return type(self), (self._model,)

    def pieces(self, text: str) -> list[str]:
        """The text cut into pieces, an unknown character standing for itself."""
        return self._processor.encode(_normal(text), out_type=str)

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of the text's pieces, between beginning and end where asked for."""
        ids = self._processor.encode(_normal(text))
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of one sequence of ids (list or (T,) tensor), up to the first end.

        Padding and beginning are left out. Errors: ValueError for an id outside the vocabulary.
        """
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        for number in ids:
            if not 0 <= number < len(self):
                raise ValueError(f"id {number} is outside a vocabulary of {len(self)} pieces")
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return self._processor.decode([i for i in ids if i not in (self.pad_id, self.bos_id)])


def _normal(text: str) -> str:
    """In Unicode's form NFC, with single spaces: of any kind, but between words only."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {type(text).__name__}")
    return " ".join(unicodedata.normalize("NFC", text).split())
