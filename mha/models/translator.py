"""The encoder-decoder of "Attention Is All You Need", with pre-norm blocks."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mha import masks
from mha.models.blocks import DecoderBlock, EncoderBlock
from mha.models.decoding import beam_search, greedy
from mha.positions import sinusoidal


class TranslatorWeights(NamedTuple):
    """Attention weights of every layer, from the first to the last, per head, before dropout."""

    encoder: tuple[Float[Tensor, "B H S S"], ...]
    decoder: tuple[Float[Tensor, "B H T T"], ...]
    cross: tuple[Float[Tensor, "B H T S"], ...]


class Translator(nn.Module):
    """Reads source ids, says target ids.

    Token embeddings are multiplied by sqrt(E) and sinusoidal positions added (Vaswani et al. 2017,
    sections 3.4 and 3.5); source and target have embeddings of their own.

    Args:
        source_size, target_size: tokens in the two vocabularies.
        embed_dim: width E, even. num_heads: heads H, a divisor of E.
        num_layers: blocks in the encoder, and as many in the decoder.
        ff_dim: inner width of the feed-forward. dropout: probability.
        max_length: longest source and target, in tokens.
        pad_id, bos_id, eos_id: the special tokens, in both vocabularies.
    Source: Vaswani et al. 2017; pre-norm after Xiong et al. 2020.
    """

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
    ):
        super().__init__()
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
        """The memory (B, S, E), and each layer's weights (B, H, S, S) where asked for."""
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
        return_weights: bool = False,
    ) -> Float[Tensor, "B T V"] | tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Logits (B, T, V); where asked for also each layer's (B, H, T, T) and (B, H, T, S).

        Without source_mask every memory position counts as real.
        """
        x = self._embed("target_ids", target_ids, self.target_embedding)  # (B, T, E)
        self_weights, cross_weights = [], []
        for block in self.decoder:
            x = block(x, memory, memory_mask=source_mask, return_weights=return_weights)
            if return_weights:
                x, own, cross = x
                self_weights.append(own)
                cross_weights.append(cross)
        logits = self.to_logits(self.decoder_norm(x))  # (B, T, V)
        return (logits, tuple(self_weights), tuple(cross_weights)) if return_weights else logits

    def translate(
        self,
        source_ids: Int[Tensor, "B S"],
        *,
        source_mask: Bool[Tensor, "B S"] | None = None,
        beam_size: int = 1,
        length_penalty: float = 1.0,
        max_length: int | None = None,
    ) -> Int[Tensor, "B L"]:
        """The translation, by `beam_search`, or `greedy` where beam_size is 1; see there.

        Dropout is off meanwhile, and the module's mode is put back.
        """
        training = self.training
        self.eval()
        options = {"source_mask": source_mask, "max_length": max_length}
        try:
            if beam_size == 1:
                return greedy(self, source_ids, **options)
            options |= {"beam_size": beam_size, "length_penalty": length_penalty}
            return beam_search(self, source_ids, **options)[0]
        finally:
            self.train(training)

    def source_mask(
        self, source_ids: Int[Tensor, "B S"], given: Bool[Tensor, "B S"] | None = None
    ) -> Bool[Tensor, "B S"]:
        """The given mask, or the one by which every id but pad_id is real."""
        return masks.padding(ids=source_ids, pad_id=self.pad_id) if given is None else given

    def _embed(self, name: str, ids: Tensor, embedding: nn.Embedding) -> Tensor:
        if ids.ndim != 2:
            raise ValueError(f"{name} must be (B, length), got {tuple(ids.shape)}")
        if ids.shape[1] > self.max_length:
            raise ValueError(
                f"{name} must have at most max_length={self.max_length} tokens, "
                f"got {tuple(ids.shape)}"
            )
        x = embedding(ids) * self.embed_dim**0.5  # (B, length, E)
        return self.dropout(x + self.positions[: ids.shape[1]])


def _embedding(size: int, embed_dim: int) -> nn.Embedding:
    embedding = nn.Embedding(size, embed_dim)
    # Times sqrt(E) this is 0.5, a little below the 0.7 of the positions, which must not be drowned.
    nn.init.normal_(embedding.weight, std=0.5 * embed_dim**-0.5)
    return embedding
