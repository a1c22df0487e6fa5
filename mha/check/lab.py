"""The workbench of a check: the learner's module with known numbers in it, and inputs for it."""

import copy
import inspect

import torch
from torch import Tensor, nn

from mha.check import binding, maps
from mha.check.binding import Question
from mha.check.simulate import Probe

SIZES = {"B": 3, "T": 5, "S": 7, "H": 4, "D": 6, "E": 24}


def numbers(seed: int) -> torch.Generator:
    """A source of chance of its own."""
    return torch.Generator().manual_seed(seed)


class Lab:
    """A learner's class or instance, ready to be called.

    Args: subject: a class or an instance. guard: a ``Guard`` that is entered.
    Errors: Stopped if the learner's constructor fails, Question if it cannot be called.
    """

    def __init__(self, subject, guard):
        self.subject, self.guard = subject, guard
        self.is_class = inspect.isclass(subject)
        self.sizes = dict(SIZES)
        self.takes_heads = True
        if not self.is_class:
            self._read_sizes(subject)

    def _read_sizes(self, module: nn.Module) -> None:
        """E, H and D of an instance, from its attributes and matrices."""
        found = maps.units(module)
        widths = [u.weight.shape[1] for u in found if u.orientation == "out-in"]
        widths += [u.weight.shape[-2] for u in found if u.orientation != "out-in"]
        named, heads = (list(_settings(module, meaning)) for meaning in ("width", "heads"))
        if not heads:
            counts = [len(p) for p in module.modules() if isinstance(p, nn.ModuleList)]
            heads = [c for c in counts if c > 1]
        if not heads or not (named or widths):
            raise Question("say how many heads it has, as an attribute num_heads of the instance")
        E, H = (named or widths)[0], heads[0]
        T, S, B = [n for n in (5, 7, 3, 11, 13, 17) if n not in (H, E, E // H)][:3]
        self.sizes = {"B": B, "T": T, "S": S, "H": H, "D": max(1, E // H), "E": E}

    def believe(self, module) -> None:
        """Take E from the matrices, and H from attributes, where a constructor does not take them."""
        if not isinstance(module, nn.Module):
            return
        asked = binding.read_constructor(self.subject) if self.is_class else {"heads": ""}
        if not {"heads", "config"} & asked.keys():
            self.takes_heads = False
            self._read_sizes(module)
            return
        found = [u for u in maps.units(module) if u.orientation == "out-in" and u.role != "o"]
        widths = [unit.weight.shape[1] for unit in found if unit.role in ("q", "k", "v", "qkv")]
        if widths and self.sizes["E"] not in widths:
            self.sizes["E"] = widths[0]

    def make(self, dtype=torch.float64, dropout: float = 0.0, **changed) -> nn.Module:
        """A module in eval mode with weights drawn from seed 0; for a class a new one each time."""
        sizes = self.sizes | changed
        if self.is_class:
            kv_heads = sizes["H"] // 2 if sizes["H"] % 2 == 0 else None
            module = self.guard.call(
                binding.construct, self.subject, sizes, sizes["H"], dropout, kv_heads
            )
        else:
            module = self.guard.call(copy.deepcopy, self.subject)
            if isinstance(module, nn.Module):
                module.requires_grad_(True)
        if not isinstance(module, nn.Module):
            return module
        module = self.guard.call(lambda: module.to(dtype).eval())
        self.fill(module, sizes["E"])
        return module

    @staticmethod
    def fill(module: nn.Module, width: int, seed: int = 0) -> None:
        """Draw the weights anew, so that no two are alike and no bias is 0."""
        source = numbers(seed)
        done = set()
        with torch.no_grad():
            for unit in maps.units(module):
                for tensor in (unit.weight, unit.bias):
                    if tensor is None or tensor.data_ptr() in done:
                        continue
                    spread = 1.3 * width**-0.5 if tensor is unit.weight else 0.5
                    draw = torch.randn(tensor.shape, generator=source, dtype=torch.float64)
                    tensor.data.copy_(draw * spread)
                    done.add(tensor.data_ptr())

    def probe(self, kind: str = "self", seed: int = 1, dtype=torch.float64, **changed) -> Probe:
        """Inputs: "self" (x three times), "cross" (three, T != S), "memory" (x, and one twice)."""
        n = self.sizes | changed
        source = numbers(seed)

        def draw(length: int) -> Tensor:
            shape = n["B"], length, n["E"]
            return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)

        x = draw(n["T"])
        if kind == "self":
            return Probe(x, x, x)
        key = draw(n["S"])
        return Probe(x, key, draw(n["S"]) if kind == "qkv" else key)


def _settings(module: nn.Module, meaning: str):
    """Integers among the attributes of a module and of its settings that have this meaning."""
    for part in module.modules():
        kept = [x for x in vars(part).values() if hasattr(x, "__dict__")]
        configs = [x for x in kept if not isinstance(x, (nn.Module, Tensor, type))]
        for place in (part, *configs):
            for name, value in vars(place).items():
                if binding.plain(name) in binding.SETTINGS[meaning].split():
                    if isinstance(value, int) and not isinstance(value, bool):
                        yield value


def random_mask(n: dict, uniform: str = "", seed: int = 2, dead: bool = False) -> Tensor:
    """Bool (B, 1, T, S): every query sees a key and misses one; with ``dead``, query 1 sees none."""
    B, T, S = n["B"], n["T"], n["S"]
    source = numbers(seed)
    if uniform == "prefix":
        lengths = torch.tensor([S - 1 - (b % (S - 1)) for b in range(B)])
        return (torch.arange(S) < lengths[:, None])[:, None, None, :].expand(B, 1, T, S).clone()
    mask = torch.rand(B, 1, T, S, generator=source) < 0.6
    rows = torch.arange(T) * 3 + torch.arange(B)[:, None]
    mask[:, 0].scatter_(-1, (rows % S)[..., None], True)
    mask[:, 0].scatter_(-1, ((rows + 1) % S)[..., None], False)
    if dead:
        mask[:, :, 1] = False
    if uniform == "batch":
        mask = mask[:1].expand(B, 1, T, S).clone()
    elif uniform == "queries":
        mask = mask[:, :, :1].expand(B, 1, T, S).clone()
        if dead:
            mask[1] = False
    return mask
