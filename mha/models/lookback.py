"""Three ways to look back, of equal size: a recurrent net, a causal convolution, attention.

Each reads the same embedding and positions, mixes along the sequence and is read out by one
linear map. Axes: B batch, L positions, E width of the input, V symbols.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mha.multihead import MultiHeadAttention
from mha.positions import sinusoidal

LOOKBACK_KINDS = ("GRU", "convolution", "attention", "patient GRU", "dilated convolution")
"""The names of the models that ``lookback_model`` makes."""

CHANNELS, LAYERS, KERNEL, DILATION, HEADS, MEMORY = 16, 4, 9, 3, 2, 128


class Recurrent(nn.GRU):
    """One layer of gated recurrent units, (B, L, E) -> (B, L, width): L steps, each on the last.

    Args:
        embed_dim: E.
        width: W of the state.
        memory: start the update gate so that a state keeps ``1 - 1 / memory`` of itself a step;
            None leaves PyTorch's start, which keeps about half.
    Errors: ValueError for a memory of 1 or less.
    Source: Cho et al. 2014; the start of the gate after Tallec and Ollivier 2018.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> net = models.Recurrent(4, 3, memory=100)
        >>> tuple(net(torch.randn(2, 5, 4)).shape)
        (2, 5, 3)
        >>> kept = net.bias_ih_l0[3:6].sigmoid()  # of the state, where inputs and state are 0
        >>> [round(share, 2) for share in kept.tolist()]
        [0.99, 0.99, 0.99]
    """

    def __init__(self, embed_dim: int, width: int, *, memory: float | None = None):
        super().__init__(embed_dim, width, batch_first=True)
        if memory is None:
            return
        if memory <= 1:
            raise ValueError(f"memory must be above 1 step, got {memory}")
        with torch.no_grad():  # gates stand in the order reset, update, new
            self.bias_ih_l0[width : 2 * width] = math.log(memory - 1)
            self.bias_hh_l0[width : 2 * width] = 0.0

    def forward(self, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B L W"]:
        """The state after each position, (B, L, W), of inputs (B, L, E)."""
        return super().forward(x)[0]


class CausalConvolution(nn.Module):
    """Convolutions with ReLU, (B, L, E) -> (B, L, width), that see no later position.

    Args:
        embed_dim: E.
        width: W, channels of every layer.
        layers: how many.
        kernel: k, positions that one layer sees.
        dilation: layer n (from 0) takes every ``dilation ** n``-th position.
    Source: van den Oord et al. 2016, section 2.1.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> net = models.CausalConvolution(4, 3, layers=2, kernel=3, dilation=2)
        >>> tuple(net(torch.randn(2, 5, 4)).shape)
        (2, 5, 3)
        >>> net.reach  # 2 * 1 + 2 * 2
        6
    """

    def __init__(self, embed_dim: int, width: int, *, layers: int, kernel: int, dilation: int = 1):
        super().__init__()
        widths = [embed_dim] + [width] * layers
        self.layers = nn.ModuleList(
            nn.Conv1d(widths[n], width, kernel, dilation=dilation**n) for n in range(layers)
        )

    @property
    def reach(self) -> int:
        """Steps back that the output can see: the sum of (k - 1) * dilation over the layers."""
        return sum(self._past(layer) for layer in self.layers)

    def forward(self, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B L W"]:
        """Each position from itself and the ``reach`` before it; zeros before the first.

        Args:
            x: (B, L, E).
        Returns: (B, L, W).
        """
        x = x.mT  # (B, E, L)
        for layer in self.layers:
            x = F.relu(layer(F.pad(x, (self._past(layer), 0))))  # (B, width, L)
        return x.mT  # (B, L, width)

    @staticmethod
    def _past(layer: nn.Conv1d) -> int:
        return (layer.kernel_size[0] - 1) * layer.dilation[0]


class Lookback(nn.Module):
    """Embedding plus positions, a mixer along the sequence, a linear read-out at each position.

    Args:
        mixer: module (B, L, E) -> (B, L, width) that sees no later position.
        width: of what the mixer gives.
        symbols: V, size of the alphabet.
        embed_dim: E, even.
        positions: whether sinusoidal positions are added to the embedding.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> model = models.Lookback(models.Recurrent(4, 3), 3, symbols=8, embed_dim=4)
        >>> ids = torch.tensor([[0, 5, 2], [1, 1, 7]])
        >>> tuple(model(ids).shape)  # (B, L, V)
        (2, 3, 8)
        >>> torch.equal(model(ids), model.read(model.embed(ids)))
        True
    """

    def __init__(
        self, mixer: nn.Module, width: int, *, symbols: int, embed_dim: int, positions: bool = True
    ):
        super().__init__()
        self.embedding = nn.Embedding(symbols, embed_dim)
        self.mixer = mixer
        self.read_out = nn.Linear(width, symbols)
        self.positions = positions

    def embed(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        """What the mixer reads, (B, L, E): one vector for each symbol, with its position."""
        x = self.embedding(ids)  # (B, L, E)
        if not self.positions:
            return x
        return x + sinusoidal(x.shape[1], x.shape[2], device=x.device, dtype=x.dtype)

    def read(self, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B L V"]:
        """Logits (B, L, V) at each position, from what `embed` gives, (B, L, E)."""
        return self.read_out(self.mixer(x))

    def forward(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
        """Logits (B, L, V) of a symbol; position i has read ids[:, : i + 1]."""
        return self.read(self.embed(ids))


def lookback_model(
    kind: str, *, symbols: int = 8, embed_dim: int = 64, positions: bool = True
) -> Lookback:
    """One of `LOOKBACK_KINDS`, all with the same number of parameters within two percent.

    "convolution" has 4 layers of kernel 9 and reaches 32 steps back; the others take the width
    that brings their count closest to its own. "attention" is one layer of two heads. "patient
    GRU" starts with gates that remember (memory=128), "dilated convolution" reaches 320 steps.

    Args:
        kind: name of the model.
        symbols: V, size of the alphabet.
        embed_dim: E, even.
        positions: whether sinusoidal positions are added to the embedding.
    Errors: ValueError for an unknown kind, listing those there are.

    Examples:
        >>> from mha import models
        >>> both = [models.lookback_model(kind) for kind in ("attention", "convolution")]
        >>> [type(model.mixer).__name__ for model in both]
        ['MultiHeadAttention', 'CausalConvolution']
        >>> one, other = (models.count_parameters(model) for model in both)
        >>> abs(one - other) < 0.02 * other
        True
    """
    if kind not in LOOKBACK_KINDS:
        raise ValueError(f"kind must be one of {', '.join(LOOKBACK_KINDS)}; got {kind!r}")
    options = {"symbols": symbols, "embed_dim": embed_dim}
    with torch.device("meta"):  # counting draws no numbers
        goal = count_parameters(_build("convolution", CHANNELS, **options))
        counts = {w: count_parameters(_build(kind, w, **options)) for w in range(1, embed_dim + 1)}
    width = min(counts, key=lambda w: abs(counts[w] - goal))
    return _build(kind, width, **options, positions=positions)


def _build(kind: str, width: int, *, embed_dim: int, **options) -> Lookback:
    """A model whose mixer has this width: of the state, of the channels, or of one head."""
    if "GRU" in kind:
        mixer = Recurrent(embed_dim, width, memory=MEMORY if kind == "patient GRU" else None)
    elif "convolution" in kind:
        dilation = DILATION if kind == "dilated convolution" else 1
        mixer = CausalConvolution(embed_dim, width, layers=LAYERS, kernel=KERNEL, dilation=dilation)
    else:
        mixer = MultiHeadAttention(embed_dim, HEADS, head_dim=width, is_causal=True)
        width = embed_dim
    return Lookback(mixer, width, embed_dim=embed_dim, **options)


def count_parameters(model: nn.Module) -> int:
    """How many numbers the model can learn; one that two modules share counts once.

    Examples:
        >>> from torch import nn
        >>> from mha import models
        >>> models.count_parameters(nn.Linear(4, 3))  # 3 * 4 weights and 3 biases
        15
    """
    return sum(p.numel() for p in model.parameters())


def lookback_loss(model: Lookback, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of the answer, read at the last position; for `training.fit`.

    Args:
        model: gives logits (B, L, V).
        batch: ids (B, L) and answers (B,), as of `mha.data.lookback_batches`.

    Examples:
        >>> import torch
        >>> from mha import data, models
        >>> batch = next(data.lookback_batches(distance=4, batch_size=16, symbols=8))
        >>> guessing = lambda ids: torch.zeros(16, 1, 8)  # (B, 1, V)
        >>> round(float(models.lookback_loss(guessing, batch)), 2)  # log(8)
        2.08
    """
    ids, answers = batch
    return F.cross_entropy(model(ids)[:, -1], answers)


@torch.no_grad()
def lookback_accuracy(model: Lookback, batch: tuple[Tensor, Tensor]) -> float:
    """Share of the answers that are the likeliest symbol at the last position, 0 to 1.

    Args:
        model, batch: as of `lookback_loss`.

    Examples:
        >>> import torch
        >>> from mha import data, models
        >>> ids, answers = next(data.lookback_batches(distance=1, batch_size=16))
        >>> cheating = lambda ids: torch.eye(8)[answers][:, None]  # (B, 1, V)
        >>> models.lookback_accuracy(cheating, (ids, answers))
        1.0
    """
    ids, answers = batch
    return (model(ids)[:, -1].argmax(-1) == answers).double().mean().item()


def gradient_by_distance(model: Lookback, ids: Int[Tensor, "B L"]) -> Float[Tensor, " L"]:
    """How strongly the logits at the last position depend on the input d steps before it.

    Args:
        model: a `Lookback`.
        ids: (B, L), the sequences at which the derivative is taken.
    Returns: (L,), entry d the Frobenius norm of d logits[-1] / d x[-1 - d], where x is what
        `Lookback.embed` gives; the root of the mean square over the batch. Logits per unit of x.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> _ = torch.manual_seed(0)
        >>> mixer = models.CausalConvolution(4, 3, layers=1, kernel=3)  # reaches 2 steps back
        >>> model = models.Lookback(mixer, 3, symbols=8, embed_dim=4)
        >>> gradient = models.gradient_by_distance(model, torch.randint(8, (16, 6)))
        >>> (gradient > 0).tolist()
        [True, True, True, False, False, False]
    """
    x = model.embed(ids).detach().requires_grad_()  # (B, L, E)
    logits = model.read(x)[:, -1]  # (B, V)
    square = torch.zeros(ids.shape, dtype=x.dtype, device=x.device)  # (B, L)
    for symbol in logits.sum(0):  # V scalars; examples do not mix
        (gradient,) = torch.autograd.grad(symbol, x, retain_graph=True)  # (B, L, E)
        square += gradient.square().sum(-1)
    return square.mean(0).sqrt().flip(0)  # (L,), from the last position backwards
