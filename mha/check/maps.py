"""Finding the four maps W_Q, W_K, W_V, W_O in a learner's module, by name and by shape.

``candidates`` proposes ways to read the parameters, the likeliest first; which of them is meant is
decided by what the module computes.
"""

import itertools
import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mha.check.simulate import Around, Map, Maps

ROLES = {
    "qkv": r"qkv|kqv|in_?proj|c_attn|attn_in|inproj|to_qkv|packed",
    "kv": r"kv|to_kv|key_?value",
    "q": r"q|quer(y|ies)|w?q(s|w)?|wq|toq|xq",
    "k": r"k|keys?|w?k(s|w)?|wk|tok|xk",
    "v": r"v|values?|w?v(s|w)?|wv|tov|xv",
    "o": r"o|w?o|wo|outs?|outputs?|toout|cproj|unify|unifyheads|dense|final|combine|merge|concat|"
    r"outproj|back|join|resid",
}
FILLERS = r"w|weights?|proj(ection)?s?|linears?|lin|fc|layers?|maps?|heads?|matrix|mats?|net|to|self|attn|attention|param|kernel"


@dataclass
class Unit:
    """A matrix the module holds: its name, the tensor, the bias that belongs to it."""

    name: str
    weight: Tensor
    bias: Tensor | None
    orientation: str  # "out-in" of a Linear, "in-out" of a Conv1D, "free" of a bare tensor
    role: str | None = None
    index: int | None = None  # which head, where there is one for each


def loose_tensors(module) -> set[str]:
    """Names of tensors that are no parameters; what calls leave behind is not among them yet."""
    return {name for name, _ in _plain_tensors(module)} if isinstance(module, nn.Module) else set()


def hidden_modules(module: nn.Module) -> list[str]:
    """Names of plain lists and dicts that hold modules, which nothing registers."""
    return [
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in module.named_modules()
        for name, value in vars(part).items()
        if not name.startswith("_") and _holds_modules(value)
    ]


def _holds_modules(value) -> bool:
    if not isinstance(value, (list, tuple, dict)) or isinstance(value, nn.Module):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return any(isinstance(part, nn.Module) or _holds_modules(part) for part in parts)


def units(module: nn.Module, loose: set[str] | None = None) -> list[Unit]:
    """The matrices of a module, in the order in which it defines them.

    Of tensors that are no parameters, those named in ``loose`` count; None = all.
    """
    found, taken = [], set()
    for name, part in module.named_modules(remove_duplicate=False):
        weight = getattr(part, "weight", None)
        if isinstance(part, nn.Conv1d) and part.kernel_size == (1,):
            weight = weight.squeeze(-1)
        if part is module or not isinstance(weight, Tensor) or weight.ndim != 2:
            continue
        if isinstance(part, nn.Embedding):
            continue
        bias = getattr(part, "bias", None)
        bias = bias if isinstance(bias, Tensor) else None
        is_linear = isinstance(part, (nn.Linear, nn.Conv1d))
        orientation = "out-in" if is_linear else "free"
        if not is_linear and bias is not None and weight.shape[0] != weight.shape[1]:
            orientation = "out-in" if weight.shape[0] == len(bias) else "in-out"
        elif type(part).__name__ == "Conv1D":
            orientation = "in-out"
        found.append(Unit(name, weight, bias, orientation))
        taken |= {id(part.weight), id(bias)}
    plain = [(n, x) for n, x in _plain_tensors(module) if loose is None or n in loose]
    for name, tensor in [*module.named_parameters(), *plain]:
        if BIAS.search(name):
            continue
        if id(tensor) in taken or tensor.ndim < 2 or not tensor.is_floating_point():
            continue
        if len(tensor.detach().unique()) == 2:  # a table of who sees whom
            continue
        found.append(Unit(name, tensor, None, "free"))
        taken.add(id(tensor))
    _give_biases(module, found, taken)
    for unit in found:
        unit.role, unit.index = role_of(unit.name)
    return found


BIAS = re.compile(r"bias|(^|[._])b(_|$|[qkvo]$)", re.I)


def _plain_tensors(module: nn.Module):
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim in (2, 3):
                yield f"{prefix}.{name}".lstrip("."), value
            elif isinstance(value, (list, tuple)) and not name.startswith("_"):
                for i, item in enumerate(value):
                    if isinstance(item, Tensor) and item.is_floating_point():
                        yield f"{prefix}.{name}.{i}".lstrip("."), item


def _give_biases(module: nn.Module, found: list[Unit], taken: set) -> None:
    """Bare one-dimensional parameters are the biases of bare matrices of the same role."""
    for name, tensor in module.named_parameters():
        if id(tensor) in taken or not BIAS.search(name):
            continue
        role, index = role_of(re.sub(r"bias|(^|(?<=[._]))b_?", "", name, flags=re.I))
        for unit in found:
            same = (
                role is not None
                and role_of(unit.name)[0] == role
                and role_of(unit.name)[1] == index
            )
            if unit.orientation == "free" and unit.bias is None and same:
                unit.bias = tensor.reshape(-1)
                break


def role_of(name: str) -> tuple[str | None, int | None]:
    """The role that a name tells, and the number in it: "heads.2.W_q.weight" -> ("q", 2)."""
    numbers = re.findall(r"(?<![A-Za-z])\d+", name)
    index = int(numbers[-1]) if numbers else None
    parts = [p for p in name.split(".") if p and not p.isdigit() and p not in ("weight", "bias")]
    for part in reversed(parts):
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", part).lower()
        words = [w for w in re.split(r"[_\d]+", words) if w and w not in ("weight", "bias")]
        joined = "_".join(words)
        for role, pattern in ROLES.items():
            if re.fullmatch(pattern, joined) or re.fullmatch(pattern, "".join(words)):
                return role, index
        core = [w for w in words if not re.fullmatch(FILLERS, w)]
        for role, pattern in ROLES.items():
            if core and re.fullmatch(pattern, "_".join(core)):
                return role, index
    if parts and re.fullmatch(r"proj|projection|fc|linear|lin", parts[-1].lower()):
        return "o?", index
    return None, index


def candidates(
    module: nn.Module, width: int, num_heads: int, head_dim: int | None, loose=None
) -> list[Maps]:
    """Readings of the module's matrices as maps, the likeliest first; [] if there is none."""
    found = units(module, loose)
    readings = list(_by_name(found, width, num_heads, head_dim))
    if not readings or not all(r.fixed >= {"q", "k", "v"} for r in readings):
        readings += _by_order(found, width, num_heads, head_dim)
    return _distinct(readings)


def _distinct(readings: list[Maps]) -> list[Maps]:
    kept, seen = [], set()
    for maps in readings:
        key = tuple(
            (
                m.weight.shape,
                round(float(m.weight.detach().double().flatten()[[0, 1, -1]].sum()), 9),
            )
            + (m.bias is None, round(float(m.weight.detach().double()[1].sum()), 9))
            if m is not None and len(m.weight) > 1
            else None
            for m in (maps.q, maps.k, maps.v, maps.o)
        )
        if key not in seen:
            kept.append(maps)
            seen.add(key)
    return kept


# --- one role


def _oriented(unit: Unit, width: int, role: str) -> list[Map]:
    """Ways to read one two-dimensional matrix as a map into or out of the heads."""
    weight, bias = unit.weight, unit.bias
    if unit.orientation == "out-in":
        return [Map(weight, bias)]
    if unit.orientation == "in-out":
        return [Map(weight.T, bias)]
    axis = 0 if role == "o" else 1  # where the model's width stands in (out, in)
    ways = [weight.T, weight] if weight.shape[1 - axis] == width else []
    ways += [weight] if weight.shape[axis] == width and not ways else []
    return [Map(way, bias) for way in ways if way.shape[axis] == width]


def _three_axes(unit: Unit, width: int, role: str, num_heads: int) -> list[Map]:
    """Ways to read (H, E, D), (E, H, D), (H, D, E) ... as one matrix, head by head."""
    ways = []
    for order in itertools.permutations(range(3)):
        heads, inner, model = (unit.weight.shape[i] for i in order)
        if model != width or heads > num_heads or num_heads % heads:
            continue
        cube = unit.weight.permute(order).reshape(heads * inner, model)  # (H*D, E)
        bias = unit.bias
        if role == "o":
            ways.append(Map(cube.T, bias))
            continue
        ways.append(Map(cube, None if bias is None else bias.reshape(-1)))
    return ways


def _stacked(group: list[Unit], width: int, role: str) -> list[Map]:
    """One small matrix for each head, put together in the order of their numbers."""
    group = sorted(group, key=lambda unit: unit.index if unit.index is not None else 0)
    ways = []
    for which in range(2):
        parts = [_oriented(unit, width, role) for unit in group]
        if any(len(part) <= which for part in parts):
            break
        parts = [part[which] for part in parts]
        axis = 1 if role == "o" else 0
        weight = torch.cat([part.weight for part in parts], axis)
        biases = [part.bias for part in parts]
        bias = None
        if all(b is not None for b in biases):
            bias = sum(biases[1:], biases[0]) if role == "o" else torch.cat(biases)
        ways.append(Map(weight, bias))
    return ways


def _maps_of(group: list[Unit], width: int, role: str, num_heads: int) -> list[Map]:
    if len(group) > 1:
        return _stacked(group, width, role)
    (unit,) = group
    if unit.weight.ndim == 3:
        return _three_axes(unit, width, role, num_heads)
    return _oriented(unit, width, role) if unit.weight.ndim == 2 else []


# --- packed


def _packed(unit: Unit, width: int, num_heads: int, parts: int) -> list[tuple[list[Map], str]]:
    """Ways to cut one matrix into queries, keys and values (or keys and values)."""
    ways = []
    if unit.weight.ndim > 2:
        return _packed_cube(unit, width, num_heads, parts)
    for whole in _oriented(unit, width, "q"):
        rows = len(whole.weight)
        if rows % parts == 0 and (parts == 3 or rows // parts % num_heads == 0 or parts == 2):
            share = rows // parts
            ways.append((_cut(whole, [share] * parts), "one after another"))
            if share % num_heads == 0:
                D = share // num_heads
                index = torch.arange(rows)
                by_head = index.reshape(num_heads, parts, D).transpose(0, 1).reshape(parts, share)
                ways.append((_pick(whole, by_head), "head by head"))
                inner = index.reshape(D, parts, num_heads).permute(1, 2, 0).reshape(parts, share)
                ways.append((_pick(whole, inner), "feature by feature"))
        if parts == 3 and rows > width:  # grouped: H*D, H_kv*D, H_kv*D
            kv = (rows - width) // 2
            if 0 < kv < width and (rows - width) % 2 == 0 and width % kv == 0:
                ways.append((_cut(whole, [width, kv, kv]), "one after another"))
    return ways


def _packed_cube(unit: Unit, width: int, num_heads: int, parts: int):
    """(3, E, H*D), (3, H, E, D) and their like: the axis of three comes first or last."""
    ways, shape = [], unit.weight.shape
    for axis in [a for a in range(len(shape)) if shape[a] == parts]:
        pieces = [Unit(unit.name, piece, None, "free") for piece in unit.weight.unbind(axis)]
        read = [_maps_of([piece], width, "q", num_heads) for piece in pieces]
        for options in zip(*read, strict=False):
            ways.append((list(options), "one after another"))
    return ways


def _cut(whole: Map, sizes: list[int]) -> list[Map]:
    weights = whole.weight.split(sizes)
    biases = [None] * len(sizes) if whole.bias is None else whole.bias.split(sizes)
    return [Map(w, b) for w, b in zip(weights, biases, strict=True)]


def _pick(whole: Map, rows: Tensor) -> list[Map]:
    return [
        Map(whole.weight[some], None if whole.bias is None else whole.bias[some]) for some in rows
    ]


# --- the four together


def _by_name(found: list[Unit], width: int, num_heads: int, head_dim: int | None):
    """Readings where names say which matrix is which."""
    groups: dict[str, list[Unit]] = {}
    for unit in found:
        if unit.role is not None:
            groups.setdefault(unit.role, []).append(unit)
    if "o" not in groups and "o?" in groups:
        groups["o"] = groups["o?"]
    outs = _maps_of(groups["o"], width, "o", num_heads) if "o" in groups else [None]
    outs = outs or [None]
    names = {role: [u.name for u in group] for role, group in groups.items()}
    for q, k, v, layout, fixed in _named_inputs(groups, width, num_heads):
        for o in outs:
            yield from _complete(q, k, v, o, width, num_heads, head_dim, fixed, layout, names)


def _named_inputs(groups, width: int, num_heads: int):
    """(q, k, v, layout, fixed) that names allow."""
    fixed = frozenset("qkv")
    if {"q", "k", "v"} <= groups.keys():
        read = [_maps_of(groups[role], width, role, num_heads) for role in "qkv"]
        for q, k, v in zip(*read, strict=False):
            yield q, k, v, "", fixed
    elif {"q", "kv"} <= groups.keys() and len(groups["kv"]) == 1:
        for pair, layout in _packed(groups["kv"][0], width, num_heads, 2):
            for q in _maps_of(groups["q"], width, "q", num_heads):
                yield q, *pair, layout, fixed
    elif "qkv" in groups and len(groups["qkv"]) == 1:
        (unit,) = groups["qkv"]
        says = "qkv" in unit.name.lower() or "in_proj" in unit.name.lower()
        for parts, layout in _packed(unit, width, num_heads, 3):
            yield *parts, layout, fixed if says else frozenset()
    elif "qkv" in groups:  # one packed matrix for each head
        cut = []
        for unit in sorted(groups["qkv"], key=lambda u: u.index or 0):
            ways = _packed(unit, width, 1, 3)
            if not ways:
                return
            cut.append(ways[0][0])
        joined = []
        for parts in zip(*cut, strict=True):
            bias = None if parts[0].bias is None else torch.cat([p.bias for p in parts])
            joined.append(Map(torch.cat([p.weight for p in parts]), bias))
        yield *joined, "one packed matrix for each head", fixed


def _by_order(found: list[Unit], width: int, num_heads: int, head_dim: int | None) -> list[Maps]:
    """Readings where names are silent: all orders of the matrices that are there."""
    readings = []
    outs = [u for u in found if u.role in ("o", "o?")]
    rest = [u for u in found if u.role not in ("o", "o?")] if len(outs) == 1 else found
    groups = _alike(rest)
    if not groups:
        return []
    for packed in [g[0] for g in groups if len(g) == 1]:
        others = [[o] for o in outs] or [g for g in groups if g[0] is not packed] or [None]
        for parts, layout in _packed(packed, width, num_heads, 3):
            for order in itertools.permutations(range(3)):
                q, k, v = (parts[i] for i in order)
                for group in others:
                    ways = [None] if group is None else _maps_of(group, width, "o", num_heads)
                    for o in ways or [None]:
                        readings += _complete(q, k, v, o, width, num_heads, head_dim, (), layout)
    for order in itertools.permutations(range(len(groups)), min(3, len(groups))):
        left = [g for i, g in enumerate(groups) if i not in order]
        lasts = [[o] for o in outs] if len(outs) == 1 else [*left, None]
        chosen = [groups[i] for i in order]
        chosen += [chosen[-1]] * (3 - len(chosen))
        read = [_maps_of(g, width, role, num_heads) for g, role in zip(chosen, "qkv", strict=True)]
        for q, k, v in zip(*read, strict=False):
            for last in lasts:
                ways = [None] if last is None else _maps_of(last, width, "o", num_heads)
                for o in ways:
                    readings += _complete(q, k, v, o, width, num_heads, head_dim, (), "")
        if len(readings) > 400:
            break
    return readings


def _alike(found: list[Unit]) -> list[list[Unit]]:
    """Units of one name but for the number are one group, unless they are the four maps in a list."""
    groups: dict[str, list[Unit]] = {}
    for unit in found:
        groups.setdefault(re.sub(r"\d+", "#", unit.name), []).append(unit)
    split = []
    for group in groups.values():
        square = all(u.weight.ndim == 2 and u.weight.shape[0] == u.weight.shape[1] for u in group)
        split += [[u] for u in group] if square else [group]
    return split


def _complete(q, k, v, o, width, num_heads, head_dim, fixed, layout, names=None):
    """A reading, if its shapes fit."""
    rows = len(q.weight)
    if any(m.weight.shape[1] != width for m in (q,)):
        return
    D = rows // num_heads if rows % num_heads == 0 else None
    if rows == head_dim != width and num_heads > 1:  # one head's maps for all heads
        D = head_dim
    if D is None or any(len(m.weight) % D for m in (k, v)):
        return
    if rows == D and num_heads > 1:
        q, k, v = (_tile(m, num_heads) for m in (q, k, v))
    if rows // D and num_heads % max(1, len(k.weight) // D):
        return
    if o is not None and o.weight.shape[1] not in (num_heads * D, D):
        return
    yield Maps(q, k, v, o, num_heads, D, frozenset(fixed), layout, names or {})


def _tile(m: Map, times: int) -> Map:
    return Map(m.weight.repeat(times, 1), None if m.bias is None else m.bias.repeat(times))


def to_double(read: Maps) -> Maps:
    """The same maps in float64."""
    double = [
        None if m is None else Map(m.weight.double(), None if m.bias is None else m.bias.double())
        for m in (read.q, read.k, read.v, read.o)
    ]
    return replace(read, **dict(zip("qkvo", double, strict=True)))


def declared(module: nn.Module, names: dict[str, str], width: int, num_heads: int) -> list[Maps]:
    """Readings where the learner said which parameter is which.

    Args: names: "W_q", "W_k", "W_v", "W_o" (or "q", "k", "v", "o") -> the name of a parameter.
    Errors: ValueError naming a parameter that the module does not have, or a missing role.
    """
    roles = {re.sub(r"[^qkvo]", "", key.lower())[-1:]: name for key, name in names.items()}
    by_name = {}
    for unit in units(module):
        by_name |= {unit.name: unit, f"{unit.name}.weight": unit}
    for role in "qkv":
        if role not in roles:
            raise ValueError(f"weights must name W_q, W_k and W_v, and lacks W_{role}")
    for name in roles.values():
        if name not in by_name:
            raise ValueError(f"the module has no matrix {name!r}; it has {sorted(by_name)}")
    chosen = {role: [by_name[name]] for role, name in roles.items()}
    names = {role: [units_of_role[0].name] for role, units_of_role in chosen.items()}
    fixed = frozenset("qkv")
    outs = _maps_of(chosen["o"], width, "o", num_heads) if "o" in chosen else [None]
    read = [_maps_of(chosen[role], width, role, num_heads) for role in "qkv"]
    return [
        maps
        for q, k, v in zip(*read, strict=False)
        for o in outs
        for maps in _complete(q, k, v, o, width, num_heads, None, fixed, "", names)
    ]


def shared(read: Maps) -> tuple[str, str, str] | None:
    """Slug, evidence and severity where two maps are one matrix, or all heads have one map."""
    q, k, v = (m.weight.detach() for m in (read.q, read.k, read.v))
    alike = {
        pair: a.shape == b.shape and torch.equal(a, b)
        for pair, a, b in (("qk", q, k), ("kv", k, v), ("qv", q, v))
    }
    said = " ".join(str(names).lower() for names in read.names.values())
    told = "note" if re.search(r"shared|tied|(?<![a-z])(qk|kv)(?![a-z])", said) else "mistake"
    if all(alike.values()):
        return "qkv-shared", "queries, keys and values are made by one matrix", "mistake"
    for pair, slug in (("qk", "qk-shared"), ("kv", "kv-shared"), ("qv", "qv-shared")):
        if alike[pair]:
            names = {"q": "queries", "k": "keys", "v": "values"}
            text = f"{names[pair[0]]} and {names[pair[1]]} are made by one matrix"
            return slug, text, told
    D, H = read.head_dim, read.num_heads
    if H > 1 and len(q) == H * D and torch.equal(q.reshape(H, D, -1), q[None, :D].expand(H, D, -1)):
        return (
            "head-weights-shared",
            f"one matrix of {D} rows makes the queries of all {H} heads",
            "mistake",
        )
    return None


def surroundings(module: nn.Module, width: int, head_dim: int) -> list[Around]:
    """What a module may do besides attention, by the norms that it holds; a residual in any case."""
    found = [Around(residual=True)]
    norms = [part for part in module.modules() if isinstance(part, NORMS)]
    wide = [norm for norm in norms if tuple(norm.normalized_shape) == (width,)]
    for norm in wide:
        found += [Around(residual=True, after=norm), Around(after=norm)]
        found += [Around(before=norm, residual=True), Around(before=norm)]
    narrow = [norm for norm in norms if tuple(norm.normalized_shape) == (head_dim,)]
    if narrow:
        found.insert(0, Around(heads=(narrow[0], narrow[-1])))
    return found


NORMS = (nn.LayerNorm, nn.RMSNorm)


def foreign(module: nn.Module, source: str) -> list[str]:
    """What the checker cannot compute, by the names of parts and by words in the source code."""
    told = r"rope|rotary|alibi|slopes?\b|rel(ative)?_?pos|pos_?emb|inv_?freq|soft_?cap|window"
    names = [name for name, _ in [*module.named_modules(), *module.named_buffers()]]
    names += [name for name, _ in module.named_parameters()]
    names += [name for name, value in vars(module).items() if value is not None]
    found = [name for name in names if re.search(told, name.rpartition(".")[2], re.I)]
    words = re.findall(
        r"\b\w*(?:rope|rotary|rotate|alibi|softcap)\w*|\btanh\b|\b(?:cos|sin)\(", source, re.I
    )
    return list(dict.fromkeys(found or words))
