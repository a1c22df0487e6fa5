"""The encoder-decoder of "Attention Is All You Need", with pre-norm blocks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mha import masks
from mha.cache import KVCache
from mha.data.subwords import Subwords
from mha.models.blocks import DecoderBlock, EncoderBlock
from mha.models.checkpoint import load
from mha.models.decoding import LayerCaches, TranslatorCaches, beam_search, greedy
from mha.models.texts import translate_texts
from mha.positions import sinusoidal


class TranslatorWeights(NamedTuple):
    """Attention weights of every layer, from the first to the last, per head, before dropout.

    ``encoder`` and ``decoder`` are of self-attention, ``cross`` is of attention to the memory.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> model = models.Translator(9, 7, embed_dim=8, num_heads=2, num_layers=1, ff_dim=16)
        >>> source, target = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[1, 3, 4]])
        >>> logits, weights = model(source, target, return_weights=True)
        >>> [tuple(layers[0].shape) for layers in weights]  # encoder, decoder, cross
        [(1, 2, 4, 4), (1, 2, 3, 3), (1, 2, 3, 4)]
    """

    encoder: tuple[Float[Tensor, "B H S S"], ...]
    decoder: tuple[Float[Tensor, "B H T T"], ...]
    cross: tuple[Float[Tensor, "B H T S"], ...]


class Translator(nn.Module):
    """Reads source ids, says target ids.

    Token embeddings are multiplied by sqrt(E) and sinusoidal positions added (Vaswani et al. 2017,
    sections 3.4 and 3.5); source and target have embeddings of their own.

    Args:
        source_size, target_size: tokens in the two vocabularies.
        embed_dim: width E, even.
        num_heads: heads H, a divisor of E.
        num_layers: blocks in the encoder, and as many in the decoder.
        ff_dim: inner width of the feed-forward.
        dropout: probability.
        max_length: longest source and target, in tokens.
        pad_id, bos_id, eos_id: the special tokens, in both vocabularies.
        shared: one matrix (V, E) for the source's tokens, the target's and the logits, where both
            sides have the same vocabulary (Press and Wolf 2017; Vaswani et al. 2017, section 3.4).
    Attributes:
        subwords: the `mha.data.Subwords` of a translator of sentences, or None.
        about: what is known of a trained one (command, seed, machine, date, ...), from its
            checkpoint.
        config: the arguments it was made with.
    Errors: ValueError for shared with two sizes of vocabulary, and what the blocks refuse.
    Source: Vaswani et al. 2017; pre-norm after Xiong et al. 2020.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> model = models.Translator(9, 7, embed_dim=8, num_heads=2, num_layers=1, ff_dim=16)
        >>> source, target = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[1, 3, 4]])
        >>> tuple(model(source, target).shape)  # (B, T, V): the token after each of the target's
        (1, 3, 7)
        >>> memory = model.encode(source)  # (B, S, E)
        >>> torch.equal(model.decode(target, memory), model(source, target))
        True
        >>> model.translate(source, max_length=5).shape[1] <= 5  # (B, L)
        True
    """

    subwords: Subwords | None = None

    def __init__(
        self,
        source_size: int,
        target_size: int,
        *,
        embed_dim: int = 128,
        num_heads: int = 4,
        num_layers: int = 2,
        ff_dim: int = 256,
        dropout: float = 0.0,
        max_length: int = 64,
        pad_id: int = 0,
        bos_id: int = 1,
        eos_id: int = 2,
        shared: bool = False,
    ):
        super().__init__()
        if shared and source_size != target_size:
            raise ValueError(
                "shared needs one vocabulary, got source_size="
                f"{source_size} and target_size={target_size}"
            )
        self.config = {
            "source_size": source_size,
            "target_size": target_size,
            "embed_dim": embed_dim,
            "num_heads": num_heads,
            "num_layers": num_layers,
            "ff_dim": ff_dim,
            "dropout": dropout,
            "max_length": max_length,
            "pad_id": pad_id,
            "bos_id": bos_id,
            "eos_id": eos_id,
            "shared": shared,
        }
        self.about: dict[str, Any] = {}
        self.pad_id, self.bos_id, self.eos_id = pad_id, bos_id, eos_id
        self.embed_dim, self.max_length = embed_dim, max_length
        self.source_embedding = _embedding(source_size, embed_dim)
        self.target_embedding = _embedding(target_size, embed_dim)
        self.register_buffer("positions", sinusoidal(max_length, embed_dim), persistent=False)
        self.dropout = nn.Dropout(dropout)
        sizes = (embed_dim, num_heads, ff_dim)
        self.encoder = nn.ModuleList(
            EncoderBlock(*sizes, dropout=dropout) for _ in range(num_layers)
        )
        self.decoder = nn.ModuleList(
            DecoderBlock(*sizes, dropout=dropout) for _ in range(num_layers)
        )
        self.encoder_norm = nn.LayerNorm(embed_dim)
        self.decoder_norm = nn.LayerNorm(embed_dim)
        self.to_logits = nn.Linear(embed_dim, target_size)
        if shared:
            self.target_embedding = self.source_embedding
            self.to_logits.weight = self.source_embedding.weight

    @classmethod
    def from_checkpoint(cls, source: Path | str) -> "Translator":
        """A trained translator of sentences, in eval mode, as `mha.models.save_translator` left it.

        Args:
            source: a file, or the name of a checkpoint that comes with the package: "en-es"
                (English to Spanish). ``about`` says how it was made.
        Errors: ValueError where there is none, listing the names, and for a file of another kind;
            ImportError without safetensors or sentencepiece.

        Examples:
            >>> from mha import models
            >>> model = models.Translator.from_checkpoint("en-es")
            >>> model.translate("I live in this house.")
            'Vivo en esta casa.'
            >>> model.about["steps"], model.training
            (6000, False)
        """
        return load(cls, source)

    def forward(
        self,
        source_ids: Int[Tensor, "B S"],
        target_ids: Int[Tensor, "B T"],
        *,
        source_mask: Bool[Tensor, "B S"] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "B T V"] | tuple[Float[Tensor, "B T V"], TranslatorWeights]:
        """Logits of the token after each target token; with ``return_weights`` also the weights.

        Args:
            source_ids: (B, S), padded on the right.
            target_ids: (B, T), beginning with bos_id. Padding on the right needs no mask, since
                no token sees a later one.
            source_mask: (B, S) bool, True = a real token; by default every id but pad_id.
            return_weights: also give the weights.
        Returns: logits (B, T, V), and `TranslatorWeights` where asked for.
        Errors: ValueError for more than max_length tokens, or shapes that do not fit.
        """
        source_mask = self.source_mask(source_ids, source_mask)
        options = {"source_mask": source_mask, "return_weights": return_weights}
        if not return_weights:
            return self.decode(target_ids, self.encode(source_ids, **options), **options)
        memory, encoder = self.encode(source_ids, **options)
        logits, decoder, cross = self.decode(target_ids, memory, **options)
        return logits, TranslatorWeights(encoder, decoder, cross)

    def encode(
        self,
        source_ids: Int[Tensor, "B S"],
        *,
        source_mask: Bool[Tensor, "B S"] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "B S E"] | tuple[Float[Tensor, "B S E"], tuple[Tensor, ...]]:
        """The memory (B, S, E), and each layer's weights (B, H, S, S) where asked for.

        Args:
            source_ids, source_mask, return_weights: as of `forward`.
        Errors: ValueError for more than max_length tokens, or shapes that do not fit.
        """
        source_mask = self.source_mask(source_ids, source_mask)
        x = self._embed("source_ids", source_ids, self.source_embedding)  # (B, S, E)
        all_weights = []
        for block in self.encoder:
            x = block(x, key_mask=source_mask, return_weights=return_weights)
            if return_weights:
                x, weights = x
                all_weights.append(weights)
        memory = self.encoder_norm(x)
        return (memory, tuple(all_weights)) if return_weights else memory

    def decode(
        self,
        target_ids: Int[Tensor, "B T"],
        memory: Float[Tensor, "B S E"],
        *,
        source_mask: Bool[Tensor, "B S"] | None = None,
        caches: TranslatorCaches | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "B T V"] | tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Logits (B, T, V); where asked for also each layer's (B, H, T, T) and (B, H, T, S).

        Args:
            target_ids: (B, T).
            memory: (B, S, E), of `encode`.
            source_mask: (B, S) bool; without it every memory position counts as real.
            caches: made by `new_caches`, under ``torch.no_grad()``. target_ids then go on where
                the earlier ones ended, and see them: the decoder's weights are (B, H, T, K), with
                K all target tokens so far. Memory and source_mask are read at the first call only.
            return_weights: also give the weights.
        Errors: ValueError for more than max_length tokens, those in the caches counted.
        """
        first = 0 if caches is None else caches.length
        x = self._embed("target_ids", target_ids, self.target_embedding, first)  # (B, T, E)
        options = {"memory_mask": source_mask, "return_weights": return_weights}
        layers = [(None, None)] * len(self.decoder) if caches is None else caches
        self_weights, cross_weights = [], []
        for block, (cache, memory_cache) in zip(self.decoder, layers, strict=True):
            x = block(x, memory, cache=cache, memory_cache=memory_cache, **options)
            if return_weights:
                x, own, cross = x
                self_weights.append(own)
                cross_weights.append(cross)
        if caches is not None:
            caches.length += target_ids.shape[1]
        logits = self.to_logits(self.decoder_norm(x))  # (B, T, V)
        return (logits, tuple(self_weights), tuple(cross_weights)) if return_weights else logits

    def new_caches(
        self, batch_size: int, source_length: int, max_length: int | None = None
    ) -> TranslatorCaches:
        """Empty caches for `decode`.

        Args:
            batch_size: B.
            source_length: S of the memory (B, S, E), padding counted.
            max_length: most target tokens; by default as many as the model can take.
        """
        room = self.max_length if max_length is None else max_length
        width = max(1, source_length)  # a cache has a slot, needed or not
        return TranslatorCaches(
            LayerCaches(
                KVCache.for_module(block.self_attention, batch_size, room),
                KVCache.for_module(block.cross_attention, batch_size, width, static=True),
            )
            for block in self.decoder
        )

    def translate(
        self,
        source: Int[Tensor, "B S"] | str | Sequence[str],
        *,
        source_mask: Bool[Tensor, "B S"] | None = None,
        beam_size: int = 1,
        length_penalty: float = 1.0,
        max_length: int | None = None,
        use_cache: bool = True,
    ) -> Int[Tensor, "B L"] | str | list[str]:
        """The translation, by `beam_search`, or `greedy` where beam_size is 1; see there.

        Dropout is off meanwhile, and the module's mode is put back.

        Args:
            source: ids (B, S); or, for a translator with subwords, one text or several, of which
                each comes back as a text (`translate_texts`, which takes a batch_size too).
            source_mask: (B, S) bool, True = real; goes with ids only.
            beam_size, length_penalty: as of `beam_search`.
            max_length: most tokens to say, as of `greedy`; for texts, of `translate_texts`.
            use_cache: as of `greedy`.
        Returns: ids (B, L) of ids, a str of a str, a list of several.
        Errors: ValueError for options out of range, and for a source_mask that goes with texts;
            for texts also as of `translate_texts`.

        Examples:
            >>> from mha import models
            >>> model = models.Translator.from_checkpoint("en-es")
            >>> model.translate(["The cat drinks milk.", "They want cold water."], beam_size=2)
            ['El gato bebe leche.', 'Quieren agua fría.']
        """
        if not isinstance(source, Tensor):
            if source_mask is not None:
                kind = type(source_mask).__name__
                raise ValueError(f"source_mask must be None for texts, got a {kind}")
            options = {"beam_size": beam_size, "length_penalty": length_penalty}
            options |= {"max_length": max_length, "use_cache": use_cache}
            said = translate_texts(self, [source] if isinstance(source, str) else source, **options)
            return said[0] if isinstance(source, str) else said
        training = self.training
        self.eval()
        options = {"source_mask": source_mask, "max_length": max_length, "use_cache": use_cache}
        try:
            if beam_size == 1:
                return greedy(self, source, **options)
            options |= {"beam_size": beam_size, "length_penalty": length_penalty}
            return beam_search(self, source, **options)[0]
        finally:
            self.train(training)

    def source_mask(
        self, source_ids: Int[Tensor, "B S"], given: Bool[Tensor, "B S"] | None = None
    ) -> Bool[Tensor, "B S"]:
        """The given mask, or the one (B, S) by which every id but pad_id is real."""
        return masks.padding(ids=source_ids, pad_id=self.pad_id) if given is None else given

    def _embed(self, name: str, ids: Tensor, embedding: nn.Embedding, first: int = 0) -> Tensor:
        """Tokens and positions, dropped out: (B, length, E); the first id stands at ``first``."""
        if ids.ndim != 2:
            raise ValueError(f"{name} must be (B, length), got {tuple(ids.shape)}")
        end = first + ids.shape[1]
        if end > self.max_length:
            behind = f" behind {first} in the caches" if first else ""
            raise ValueError(
                f"{name} must have at most max_length={self.max_length} tokens, "
                f"got {tuple(ids.shape)}{behind}"
            )
        x = embedding(ids) * self.embed_dim**0.5  # (B, length, E)
        return self.dropout(x + self.positions[first:end])


def _embedding(size: int, embed_dim: int) -> nn.Embedding:
    embedding = nn.Embedding(size, embed_dim)
    # Times sqrt(E) this is 0.5, a little below the 0.7 of the positions, which must not be drowned.
    nn.init.normal_(embedding.weight, std=0.5 * embed_dim**-0.5)
    return embedding
