"""A learner's own attention in a trained model of the book, with the model's weights in it.

The checker has found out which of the learner's parameters are the four maps, and how a mask is
handed over. Both are used here: the trained weights go into the learner's parameters, and each call
of the model becomes a call of the learner's module.
"""

import copy
import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mha import masks
from mha.check import binding, maps
from mha.check.asked import FORMS
from mha.check.binding import Adapter
from mha.check.guard import Guard
from mha.check.lab import SIZES
from mha.check.modules import Examination
from mha.check.report import Report
from mha.check.simulate import Maps, Probe, interleaved
from mha.check.unwritten import or_your_turn
from mha.multihead import MultiHeadAttention

CLOSE = 1e-4


def transplant(
    model: nn.Module,
    subject,
    *,
    mask: str | None = None,
    weights: dict[str, str] | None = None,
    seconds: float = 20.0,
) -> nn.Module:
    """A copy of ``model`` with the learner's attention in place of each ``MultiHeadAttention``.

    The trained weights are written into the learner's parameters, and every replacement is compared
    with what it replaces. It knows no cache: decode with ``use_cache=False``.

    Args:
        model: for example ``Translator.from_checkpoint("en-es")``; left as it is.
        subject: a class, made anew for each place, in which ``check.multi_head_attention`` finds no
            mistake.
        mask, weights, seconds: as of ``check.multi_head_attention``.
    Returns: the copy, in the mode of ``model``.
    Errors: ValueError saying what stands in the way.

    Examples:
        >>> import torch
        >>> import mha
        >>> sizes = {"embed_dim": 16, "num_heads": 2, "num_layers": 1, "max_length": 8}
        >>> model = mha.models.GPT(11, positions="learned", **sizes)
        >>> class Mine(mha.MultiHeadAttention):  # stands for a class of yours
        ...     pass
        >>> changed = mha.check.transplant(model, Mine)
        >>> ids = torch.tensor([[3, 1, 4, 1, 5]])  # (B, T)
        >>> torch.allclose(changed(ids), model(ids), atol=1e-5)
        True
    """
    exam = _examined(subject, {"mask": mask, "weights": weights}, seconds)
    places = [name for name, part in model.named_modules() if isinstance(part, MultiHeadAttention)]
    if not places:
        raise ValueError("model holds no mha.MultiHeadAttention")
    changed = copy.deepcopy(model)
    for place in places:
        ours = changed.get_submodule(place)
        changed.set_submodule(place, Transplanted(exam, ours))
    return changed


def _examined(subject, declared: dict, seconds: float) -> Examination:
    """The examination of a class that can be transplanted. Errors: ValueError."""
    if not inspect.isclass(subject):
        raise ValueError("subject must be a class: a new module is made for each place")
    with Guard(subject, seconds=seconds, sizes=SIZES) as guard:
        exam = Examination(subject, guard, declared)
        exam.run()
    report = Report(subject.__name__, tuple(exam.findings), tuple(exam.checks))
    report = or_your_turn(report, subject)
    if not report.ok or exam.match is None or exam.match.maps is None:
        says = "; ".join(found.title for found in report.findings) or report.headline
        raise ValueError(f"the checker must be content first, and says: {says}")
    if exam.match.maps.around is not None:
        raise ValueError(f"attention alone is wanted, and {exam.match.maps.around.says}")
    if exam.kind != "qkv":
        raise ValueError("forward must take query, key and value, for attention to a memory")
    if exam.mask_form is None or exam.mask_form.shape not in FORMS:
        raise ValueError("forward must take a mask that broadcasts to (B, H, T, S)")
    return exam


class Transplanted(nn.Module):
    """A learner's module behind the signature of ``MultiHeadAttention``, with the same weights.

    Args: exam: a finished examination of the learner's class. ours: what it replaces.
    Errors: ValueError where the weights find no place, or the numbers differ.
    """

    def __init__(self, exam: Examination, ours: MultiHeadAttention):
        super().__init__()
        unlike = [
            name
            for name, plain in {"rope": None, "window": None, "softcap": None, "q_norm": None,
                                "num_kv_heads": ours.num_heads}.items()
            if getattr(ours, name) != plain
        ]  # fmt: skip
        if unlike or ours.scale is not None or ours.head_dim * ours.num_heads != ours.embed_dim:
            raise ValueError("only plain attention can be replaced, of H heads of E / H features")
        sizes = SIZES | {"E": ours.embed_dim, "H": ours.num_heads, "D": ours.head_dim}
        theirs = binding.construct(exam.subject, sizes, ours.num_heads)
        self.module = theirs.to(ours.q_proj.weight)
        self.is_causal, self.num_heads = ours.is_causal, ours.num_heads
        self._adapter = Adapter(
            self.module, exam.arguments, Unguarded(), exam.batch_first, exam.axes,
            exam.mask_form, exam.key_form, ours.num_heads, watch=False,
        )  # fmt: skip
        _write(exam, self.module, sizes, ours)
        self.train(ours.training)
        _compare(self, ours)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        attn_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        is_causal: bool | None = None,
        positions: Tensor | None = None,
        cache=None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As of ``MultiHeadAttention``, for bool masks, without positions and without a cache."""
        if positions is not None:
            raise ValueError("a transplanted attention turns nothing by its positions")
        if cache is not None:
            self.k_proj  # noqa: B018, says why there is no cache
        key = query if key is None else key
        value = key if value is None else value
        B, T, S = len(query), query.shape[1], key.shape[1]
        causal = self.is_causal if is_causal is None else is_causal
        seen = [masks.causal(T, S, device=query.device)] if causal else []
        seen += [key_mask[:, None, None, :]] if key_mask is not None else []  # (B, 1, 1, S)
        seen += [attn_mask] if attn_mask is not None else []
        allowed = torch.ones(B, 1, T, S, dtype=torch.bool, device=query.device)
        for one in seen:
            if one.dtype != torch.bool:
                raise TypeError(f"a transplanted attention takes bool masks, got {one.dtype}")
            allowed = allowed & one
        output, weights = self._adapter(Probe(query, key, value, allowed))
        if return_weights and weights is None:
            raise ValueError("the transplanted module returns no weights")
        return (output, weights) if return_weights else output

    @property
    def k_proj(self):
        """Asked for by a cache, which a learner's module does not know. Errors: ValueError."""
        raise ValueError("a transplanted attention knows no cache: decode with use_cache=False")


class Unguarded:
    """Calls without a limit: the checker was content with the code."""

    @staticmethod
    def call(function, *args, **kwargs):
        """What it returns."""
        return function(*args, **kwargs)


# --- the weights


def _write(exam: Examination, module: nn.Module, sizes: dict, ours: MultiHeadAttention) -> None:
    """Write the weights of ``ours`` into the learner's parameters.

    Each number of the learner's becomes its own place in a list; the maps are read from that, and so
    tell where each of their numbers lives, whatever cuts, transposes and stacks lie between.
    """
    tensors = list(_numbers(module, exam.loose))
    ends = torch.tensor([0, *(x.numel() for x in tensors)]).cumsum(0).tolist()
    order = torch.randperm(ends[-1], generator=torch.Generator().manual_seed(0))
    coded = copy.deepcopy(module).cpu().double()
    for x, a, b in zip(_numbers(coded, exam.loose), ends, ends[1:], strict=False):
        x.data.copy_(order[a:b].reshape(x.shape))
    read = _same_reading(exam, coded, sizes)
    values = torch.zeros(ends[-1], dtype=ours.q_proj.weight.dtype)
    wanted = dict(zip("qkvo", (ours.q_proj, ours.k_proj, ours.v_proj, ours.out_proj), strict=True))
    turned = interleaved(exam.match.recipe)
    for role, linear in wanted.items():
        rows = _turned(ours, turned) if role != "o" else slice(None)
        columns = _turned(ours, turned) if role == "o" else slice(None)
        map_ = getattr(read, role)
        parts = [(map_.weight, linear.weight[rows][:, columns])]
        if linear.bias is not None:
            if map_.bias is None:
                raise ValueError(f"the map {role} has a bias in the model, and none in your class")
            parts.append((map_.bias, linear.bias[rows]))
        elif map_.bias is not None:
            parts.append((map_.bias, torch.zeros(len(map_.bias))))
        for code, numbers in parts:
            if code.shape != numbers.shape:
                theirs, right = tuple(code.shape), tuple(numbers.shape)
                raise ValueError(f"the map {role} of your class is {theirs}, the model's {right}")
            index = code.detach().round().long().flatten()
            values[index] = numbers.detach().cpu().to(values.dtype).flatten()
    with torch.no_grad():
        for x, a, b in zip(tensors, ends, ends[1:], strict=False):
            x.data.copy_(values[order[a:b]].reshape(x.shape))


def _numbers(module: nn.Module, loose: set[str]) -> Iterator[Tensor]:
    """The tensors that hold weights, each once."""
    taken = set()
    for unit in maps.units(module, loose):
        for tensor in (unit.weight, unit.bias):
            if tensor is not None and tensor.data_ptr() not in taken:
                taken.add(tensor.data_ptr())
                yield tensor


def _same_reading(exam: Examination, module: nn.Module, sizes: dict) -> Maps:
    """The maps of another module of the class, read as those that explained its numbers."""
    found = exam.read_maps(module, sizes)
    place = exam.readings.index(exam.match.maps)
    if place >= len(found) or found[place].o is None:
        raise ValueError("the four maps of your class were not found again at the model's sizes")
    return found[place]


def _turned(ours: MultiHeadAttention, turned: bool):
    """Rows in the order of a learner whose heads are interleaved: feature d of head h at d*H + h."""
    if not turned:
        return slice(None)
    H, D = ours.num_heads, ours.head_dim
    return torch.arange(H * D).reshape(H, D).T.flatten()


@torch.no_grad()
def _compare(theirs: Transplanted, ours: MultiHeadAttention) -> None:
    """Refuse a replacement that gives other numbers. Errors: ValueError."""
    weight = ours.q_proj.weight
    chance = torch.Generator().manual_seed(0)
    x, memory = (torch.randn(2, n, ours.embed_dim, generator=chance).to(weight) for n in (5, 7))
    key_mask = (torch.arange(7) < torch.tensor([[7], [4]])).to(weight.device)  # (B, S)
    training = theirs.training, ours.training
    theirs.eval(), ours.eval()
    for given in ({"key": memory, "key_mask": key_mask, "is_causal": False}, {"is_causal": True}):
        mine, right = theirs(x, **given), ours(x, **given)
        if mine.shape != right.shape or (mine - right).abs().max() > CLOSE * right.abs().max():
            raise ValueError("your class gives other numbers at the model's sizes than it should")
    theirs.train(training[0]), ours.train(training[1])
