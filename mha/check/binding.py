"""Reading a learner's signatures: which argument means what, and how a result is laid out.

Names are compared without case and underscores. What names do not tell is found by trying.
"""

import functools
import inspect
import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mha.check.simulate import Probe

NAMES = {
    "query": "q query queries x xq inputs input inp hiddenstates target tgt decoderstates dec "
    "embeddings tokens seq xs querystates h",
    "key": "k key keys xk keystates ks",
    "value": "v value values xv valuestates vs",
    "memory": "memory context encoderoutput encoderoutputs encoderhiddenstates enc encout kv y "
    "source keyvalue keyvaluestates ctx mem crossinput encoderstates xkv z other xencoder cond",
    "mask": "mask attnmask attentionmask srcmask tgtmask m visible allowed blocked attnbias bias "
    "blockmask scoremask selfmask masks maskoptional hidden",
    "key_mask": "keypaddingmask paddingmask padmask keymask srckeypaddingmask validmask pad "
    "keyvalid padding ispad",
    "lengths": "validlens validlen lengths lens seqlens keylengths keylens",
    "causal": "iscausal causal usecausal usecausalmask autoregressive docausal",
    "weights": "needweights returnweights returnattention returnattn outputattentions withweights "
    "returnattentionweights returnattnweights getweights needattn returnscores",
    "cache": "cache kvcache past pastkv layerpast pastkeyvalue pastkeyvalues pastkeyvaluestates "
    "state prev layercache memorycache",
    "use_cache": "usecache returncache",
    "offset": "qoffset offset startpos position pos queryoffset start",
    "average": "averageattnweights averageweights",
    "dropout": "dropout dropoutp p pdrop",
    "training": "training train",
    "scale": "scale",
    "gqa": "enablegqa",
}
SETTINGS = {
    "width": "embeddim dmodel din dim hiddendim hiddensize nembd numhiddens embdim modeldim "
    "embedsize embed d e nstate dimmodel emb width embeddingdim size nhidden hidden dembed "
    "dimension querysize dmod units channels embedding inputdim indim nfeatures features dembd",
    "out_width": "dout outdim outputdim odim",
    "key_width": "kdim keysize keydim",
    "value_width": "vdim valuesize valuedim",
    "heads": "numheads nheads nhead h heads headcount numattentionheads nhd numhead attnheads "
    "attentionheads headnum headsnum",
    "kv_heads": "numkvheads nkvheads numkeyvalueheads kvheads nkvhead numkvgroups numgroups groups "
    "ngroups nkv hkv numkeyheads",
    "head_dim": "headdim headsize dhead dk dv dimhead dimperhead headwidth",
    "dropout": "dropout p pdrop attndropout attnpdrop dropoutp dropoutrate attentiondropout drop "
    "dropoutprob pdropout dropprob dropouts residpdrop residdropout",
    "length": "contextlength blocksize maxlen maxseqlen seqlen context maxlength ctxlen nctx "
    "maxseqlength contextsize contextwindow nctxs maxpositionembeddings maxt length maxtokens",
    "bias": "bias qkvbias usebias",
}


WORDS = {
    "dropout": "drop",
    "kv_heads": "(kv|keyvalue|group).*head|head.*(kv|group)",
    "head_dim": "head.*(dim|size|width)|dimper",
    "heads": "head",
    "bias": "bias",
    "length": "len|block|ctx|context|pos|window|maxt|tokens",
    "width": "emb|hidden|hid|model|width|units|channel|features|dim|depth|size",
}


HARMLESS = {
    "device": "cpu",
    "dtype": None,
    "eps": 1e-5,
    "std|init": 0.02,
    "layer_?i|index|idx": 0,
    "^(is|use|do|with|scale_attn|reorder|add|output)_": False,
}


def plain(name: str) -> str:
    """A name without case and underscores."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _lookup(table: dict[str, str], name: str) -> str | None:
    for meaning, names in table.items():
        if plain(name) in names.split():
            return meaning
    return None


@dataclass
class Arguments:
    """Which parameter of a function means what: meaning -> name."""

    names: dict[str, str] = field(default_factory=dict)
    positional: list[str] = field(default_factory=list)  # the inputs, in their order
    unknown: list[str] = field(default_factory=list)  # required, and not understood
    required: set[str] = field(default_factory=set)
    settings: dict[str, str] = field(default_factory=dict)  # required numbers: name -> meaning

    def spelled(self, meaning: str) -> str:
        """The learner's name for a mask; lengths stand in for a mask of the keys."""
        return self.names.get(meaning) or self.names["lengths"]

    @property
    def kind(self) -> str:
        """ "qkv", "memory" (x and a memory), or "self" (x alone)."""
        if "key" in self.names or "value" in self.names:
            return "qkv"
        return "memory" if "memory" in self.names else "self"


def signature(function) -> inspect.Signature:
    """Of a Python function; of a built-in one, as its docstring shows it."""
    try:
        return inspect.signature(function)
    except ValueError:
        shown = re.search(r"\(([^()]*)\)", inspect.getdoc(function) or "")
        names = [part.partition("=") for part in shown[1].split(",")] if shown else []
        keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [
            inspect.Parameter(
                name.strip(), keyword, default=default if equals else inspect.Parameter.empty
            )
            for name, equals, default in names
            if name.strip().isidentifier()
        ]
        return inspect.Signature(parameters)


def read_arguments(function) -> Arguments:
    """The meanings of a function's parameters. Errors: ValueError if it has no signature."""
    found = Arguments()
    parameters = list(signature(function).parameters.values())
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(named) < len(parameters) and len(named) < 1:  # *args alone
        found.positional = ["query", "key", "value"]
        found.names = dict.fromkeys(found.positional, "")
        return found
    for p in named:
        setting = _lookup(SETTINGS, p.name) if p.default is p.empty else None
        if setting in ("head_dim", "heads", "dropout") and "query" in found.names:
            found.settings[p.name] = setting
            continue
        meaning = _lookup(NAMES, p.name)
        if meaning in ("dropout", "training", "scale", "gqa", "average") and p.default is p.empty:
            meaning = None
        if meaning is not None and meaning not in found.names:
            found.names[meaning] = p.name
            if p.default is p.empty:
                found.required.add(meaning)
        elif p.default is p.empty:
            found.unknown.append(p.name)
    _name_by_place(found, named)
    _name_by_words(found, named)
    found.positional = [
        meaning
        for p in named
        for meaning, name in found.names.items()
        if name == p.name and meaning in ("query", "key", "value", "memory")
    ]
    return found


def _name_by_words(found: Arguments, named: list) -> None:
    """An optional argument whose name speaks of a mask is one, if no other is."""
    taken = set(found.names.values())
    for p in named:
        low = p.name.lower()
        if p.name in taken or p.default is not None:
            continue
        if re.search(r"mask|keep|visib|allow|block|hid|forbid|ignore|see|attend|valid|pad", low):
            meaning = "key_mask" if re.search(r"pad|key", low) else "mask"
            if meaning not in found.names:
                found.names[meaning] = p.name
                taken.add(p.name)


def _name_by_place(found: Arguments, named: list) -> None:
    """Inputs whose names say nothing are told by their place: query, key, value, then mask."""
    has = found.names
    if "query" not in has and "memory" in has and "key" not in has and not found.unknown:
        has["query"] = has.pop("memory")
    first_three = [p.name for p in named[:3]]
    if "query" not in has and found.unknown:
        has["query"] = found.unknown.pop(0)
    if len(found.unknown) >= 2 and "key" not in has and "value" not in has:
        has["key"], has["value"] = found.unknown[:2]
        del found.unknown[:2]
    for meaning in ("key", "value"):
        other = {"key": "value", "value": "key"}[meaning]
        if other in has and meaning not in has and found.unknown:
            has[meaning] = found.unknown.pop(0)
    if found.unknown and found.unknown[0] in first_three and "key" not in has:
        meaning = "mask" if "memory" in has else "memory"
        has.setdefault(meaning, found.unknown.pop(0))
    if found.unknown and "mask" not in has:
        has["mask"] = found.unknown.pop(0)


# --- constructors


def read_constructor(cls) -> dict[str, str]:
    """Meaning -> parameter of a class's constructor; "?" holds what is required and unknown."""
    meanings, unknown = {}, []
    for p in list(inspect.signature(cls).parameters.values()):
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        meaning = _lookup(SETTINGS, p.name)
        if meaning is None and p.default is not p.empty and "drop" in plain(p.name):
            meaning = "dropout"
        if meaning is None and plain(p.name) in ("config", "cfg", "args", "hparams", "conf"):
            meaning = "config"
        if meaning == "width" and "width" in meanings:
            meaning = "width again"
        if meaning in meanings or meaning is None:
            meaning = None
        if meaning is not None:
            meanings[meaning] = p.name
            if meaning == "head_dim":
                meanings.update(
                    {
                        f"head_dim {q.name}": q.name
                        for q in inspect.signature(cls).parameters.values()
                        if plain(q.name) in ("dk", "dv", "dq") and q.name != p.name
                    }
                )
        elif p.default is p.empty and p.name not in meanings.values():
            unknown.append(p.name)
    places = [m for m in ("width", "heads") if m not in meanings]
    for meaning, name in zip(places, list(unknown), strict=False):
        if "config" not in meanings:
            meanings[meaning] = name
            unknown.remove(name)
    meanings["?"] = unknown
    return meanings


def construct(cls, sizes: dict, heads: int, dropout: float = 0.0, kv_heads: int | None = None):
    """An instance of a learner's class. Errors: TypeError naming what is not understood."""
    meanings = read_constructor(cls)
    values = {
        "width": sizes["E"],
        "width again": sizes["E"],
        "out_width": sizes["E"],
        "key_width": sizes["E"],
        "value_width": sizes["E"],
        "heads": heads,
        "head_dim": sizes["E"] // heads,
        "kv_heads": kv_heads or heads,  # fewer than heads, so that groups show
        "dropout": dropout,
        "length": 64,
        "bias": True,
    }
    if "config" in meanings:
        return cls(**{meanings["config"]: Config(values)})
    given = {}
    for name in list(meanings["?"]):
        harmless = [value for words, value in HARMLESS.items() if re.search(words, name)]
        meaning = guess(name)
        if harmless or meaning in values:
            given[name] = harmless[0] if harmless else values[meaning]
            meanings["?"].remove(name)
    if meanings["?"]:
        raise TypeError(f"the constructor asks for {', '.join(meanings['?'])}")
    required = {p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty}
    if set(meanings) == {"?"} and parameters_are_open(cls):
        return cls(embed_dim=values["width"], num_heads=values["heads"])
    if "width" not in meanings and "key_width" in meanings:  # as in Keras: the width of one head
        meanings["head_dim"] = meanings.pop("key_width")
    for meaning, name in meanings.items():
        key = "head_dim" if meaning.startswith("head_dim ") else meaning
        if key == "?" or key in ("bias", "length", "head_dim") and name not in required:
            continue
        if key in ("key_width", "value_width", "out_width") and name not in required:
            continue
        if key == "kv_heads" and kv_heads is None and name not in required:
            continue
        given[name] = values[key]
    return cls(**given)


def parameters_are_open(cls) -> bool:
    """Whether a constructor takes any keywords."""
    kinds = [p.kind for p in inspect.signature(cls).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def guess(name: str) -> str | None:
    """What a setting means, by the words in its name."""
    known = _lookup(SETTINGS, name)
    if known is not None:
        return known
    low = plain(name)
    for meaning, words in WORDS.items():
        if re.search(words, low):
            return meaning
    return None


class Config:
    """An object of settings that has whatever a learner's constructor asks it for, as far as guessed."""

    def __init__(self, values: dict):
        self._values = values

    def __getattr__(self, name: str):
        for words, value in HARMLESS.items():
            if not name.startswith("_") and re.search(words, name):
                return value
        meaning = None if name.startswith("_") else guess(name)
        if meaning is None:
            raise AttributeError(f"the settings have no {name}")
        return self._values[meaning]

    def __getitem__(self, name: str):
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None

    def get(self, name: str, default=None):
        """As of a dict."""
        return getattr(self, name, default)


# --- results


class Question(Exception):
    """Something that could not be told; the message asks for it in one sentence."""


class Malformed(Exception):
    """The learner's code returned something else than was asked for; ``what`` says so."""

    def __init__(self, slug: str, what: str):
        super().__init__(what)
        self.slug, self.what = slug, what


def unpack(result, shape: tuple[int, ...], pairs: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Output and weights (or None) of what a call returned.

    Args:
        shape: the shape the output should have; pairs: (T, S), by which weights are known.
    Errors: Malformed.
    """
    if isinstance(result, Tensor):
        return result, None
    if result is None:
        raise Malformed("returns-nothing", "it returned None")
    if hasattr(result, "values") and isinstance(result, dict):
        result = tuple(result.values())
    if not isinstance(result, (tuple, list)):
        raise Malformed("wrong-shape", f"it returned a {type(result).__name__}, not a tensor")
    tensors = [x for x in result if isinstance(x, Tensor)]
    if not tensors:
        raise Malformed("wrong-shape", "it returned a tuple without any tensor")
    outputs = [x for x in tensors if tuple(x.shape) == tuple(shape)]
    output = outputs[0] if outputs else tensors[0]
    if len(outputs) > 1 and _shares(outputs[0]) and not _shares(outputs[1]):
        output = outputs[1]  # weights first, where both have one shape
    weights = [x for x in tensors if x is not output and tuple(x.shape[-2:]) == pairs]
    return output, weights[0] if weights else None


def _shares(x: Tensor) -> bool:
    """Whether every row shares out 1, as weights do."""
    x = x.detach().double()
    return bool((x >= 0).all()) and bool(((x.sum(-1) - 1).abs() < 1e-3).all())


# --- calls


@dataclass(frozen=True)
class MaskForm:
    """How a mask is handed over: its shape, dtype and what True means."""

    shape: str = "B1TS"
    dtype: str = "bool"
    polarity: str = "attend"

    def make(self, mask: Tensor, heads: int, like: Tensor) -> Tensor:
        """From a bool (B, 1, T, S), True = may attend."""
        m = {
            "B1TS": lambda: mask,
            "BTS": lambda: mask[:, 0],
            "TS": lambda: mask[0, 0],
            "11TS": lambda: mask[:1],
            "BHTS": lambda: mask.expand(-1, heads, -1, -1),
            "(BH)TS": lambda: mask.expand(-1, heads, -1, -1).flatten(0, 1),
            "BS": lambda: mask[:, 0, 0],
            "B1S": lambda: mask[:, 0, :1],
            "B11S": lambda: mask[:, :, :1],
            "lengths": lambda: mask[:, 0, 0].sum(-1),
        }[self.shape]()
        if self.shape == "lengths":
            return m
        if self.dtype == "additive":
            return torch.zeros(m.shape, dtype=like.dtype, device=m.device).masked_fill(
                ~m, -torch.inf
            )
        m = ~m if self.polarity == "block" else m
        if self.dtype == "bool":
            return m.clone()
        return m.to(like.dtype if self.dtype == "float" else torch.long)

    @property
    def uniform(self) -> str:
        """What the mask must be alike over: "batch", "queries", "prefix" or ""."""
        if self.shape in ("TS", "11TS"):
            return "batch"
        if self.shape == "lengths":
            return "prefix"
        return "queries" if self.shape in ("BS", "B1S", "B11S") else ""

    def says(self) -> str:
        """In words."""
        if self.shape == "lengths":
            return "lengths"
        shape = {"B1TS": "(B, 1, T, S)", "BTS": "(B, T, S)", "TS": "(T, S)", "BS": "(B, S)"}
        what = {
            "attend": "True = may attend",
            "block": "True = blocked",
        }[self.polarity]
        if self.dtype == "additive":
            what = "added to the scores"
        elif self.dtype != "bool":
            what = what.replace("True", "1")
        return f"{shape.get(self.shape, self.shape)}, {what}"


ATTENTION_FORMS = ("B1TS", "BTS", "TS", "BHTS", "(BH)TS", "11TS", "B11S", "B1S", "BS")
PADDING_FORMS = ("BS", "B1S", "B11S", "B1TS", "BTS")


@dataclass
class Adapter:
    """A learner's function or module behind one way of calling it.

    ``guard`` is a ``Guard``; its Stopped and Malformed pass through.
    """

    function: object
    arguments: Arguments
    guard: object
    batch_first: bool = True
    axes: int = 3  # of the inputs: 3 for a module; 4, 3 or 2 for a function
    mask_form: MaskForm | None = None
    key_form: MaskForm | None = None
    heads: int = 1
    extra: dict = field(default_factory=dict)
    watch: bool = True  # hand over copies, and note on the guard which of them were changed

    def __call__(self, probe: Probe) -> tuple[Tensor, Tensor | None]:
        """Output and weights for a probe, batch first, as a module or function gives them."""
        if self.axes == 2 or (self.axes == 3 and probe.query.ndim == 4):
            return self._folded(probe)
        given = self._inputs(probe)
        given.update(self._options(probe))
        tensors = {m: x for m, x in given.items() if isinstance(x, Tensor) and not x.is_meta}
        before = {m: x.detach().clone() for m, x in tensors.items()} if self.watch else {}
        result = self.guard.call(self._run, given)
        for m, x in before.items():
            if x.shape != given[m].shape or not bool(((x == given[m]) | (x != x)).all()):
                self.guard.changed.add(self.arguments.names.get(m, m))
        T, S = probe.sizes
        shape = list(probe.query.shape)
        if probe.query.ndim == 4:
            shape[-1] = probe.value.shape[-1]
        elif not self.batch_first:
            shape[0], shape[1] = shape[1], shape[0]
        output, weights = unpack(result, tuple(shape), (T, S))
        if not self.batch_first and output.ndim == 3:
            output = output.transpose(0, 1)
        return output, weights

    def _run(self, given: dict):
        if "" in self.arguments.names.values():  # *args
            return self.function(*[given[m] for m in self.arguments.positional])
        by_name = {self.arguments.names.get(m, m): x for m, x in given.items()}
        function = self.function
        function = function.forward if isinstance(function, nn.Module) else function
        parameters = signature(function).parameters
        first = [
            by_name.pop(name)
            for name in list(parameters)
            if parameters[name].kind is inspect.Parameter.POSITIONAL_ONLY and name in by_name
        ]
        return self.function(*first, **by_name)

    def _inputs(self, probe: Probe) -> dict:
        kind = self.arguments.kind
        given = {"query": probe.query}
        if kind == "memory":
            given["memory"] = probe.key
        elif kind == "qkv":
            given.update(key=probe.key, value=probe.value)
        given = {m: x for m, x in given.items() if m in self.arguments.names}
        if self.watch:
            own = {id(x): x.clone() for x in given.values()}  # what is one tensor stays one
            given = {m: own[id(x)] for m, x in given.items()}
        if not self.batch_first:
            given = {m: x.transpose(0, 1).contiguous() for m, x in given.items()}
        return given

    def _options(self, probe: Probe) -> dict:
        names, given = self.arguments.names, dict(self.extra)
        if "weights" in names:
            given["weights"] = True
        if "average" in names:
            given["average"] = False
        if "gqa" in names and probe.query.ndim == 4:
            given["gqa"] = probe.query.shape[1] != probe.key.shape[1]
        for meaning in ("mask", "key_mask", "lengths", "offset", "cache"):
            if meaning in self.arguments.required:
                given[meaning] = None
        if probe.mask is not None:
            for meaning, form in (("mask", self.mask_form), ("key_mask", self.key_form)):
                use = probe.key_mask is None if meaning == "mask" else probe.key_mask is not None
                if form is not None and use:
                    name = "lengths" if form.shape == "lengths" else meaning
                    given[name] = form.make(probe.mask, self.heads, probe.query)
                    break
        if probe.causal and "causal" in names:
            given["causal"] = True
        elif "causal" in names:
            given["causal"] = False
        return given

    def _folded(self, probe: Probe) -> tuple[Tensor, Tensor | None]:
        """One call for all heads of all examples, (B*H, T, D), or one for each, (T, D)."""
        lead = probe.query.shape[:-2]
        query, key, value = (
            x.reshape(-1, *x.shape[-2:]) for x in (probe.query, probe.key, probe.value)
        )
        mask = probe.mask
        if mask is not None:
            mask = mask.expand(*lead, *mask.shape[-2:]) if len(lead) == 2 else mask[:, 0]
            mask = mask.reshape(-1, *mask.shape[-2:])
        if self.axes == 3:
            inner = Adapter(**{**vars(self), "axes": 4})
            folded = None if mask is None else mask[:, None]
            output, weights = inner(Probe(query, key, value, folded, causal=probe.causal))
        else:
            inner = Adapter(**{**vars(self), "axes": 0})
            single = [
                inner(
                    Probe(*xyz, None if mask is None else mask[i][None, None], causal=probe.causal)
                )
                for i, xyz in enumerate(zip(query, key, value, strict=True))
            ]
            output = torch.stack([o for o, _ in single])
            weights = None if single[0][1] is None else torch.stack([w for _, w in single])
        output = output.reshape(*lead, *output.shape[-2:])
        return output, None if weights is None else weights.reshape(*lead, *weights.shape[-2:])


def source_of(subject) -> str:
    """The source code of a class, an instance's class, or a function; "" if there is none."""
    made_here = inspect.isclass(subject) or inspect.isroutine(subject)
    return _source(subject if made_here else type(subject))


@functools.lru_cache(maxsize=32)
def _source(thing) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        pass
    # a class of a notebook has no file, yet its methods have their cell
    found = [inspect.getdoc(thing) and f'"""{thing.__doc__}"""']
    for method in vars(thing).values() if inspect.isclass(thing) else ():
        if inspect.isfunction(method):
            try:
                found.append(inspect.getsource(method))
            except OSError:
                continue
    return "\n".join(part for part in found if part)


def documented_source(subject) -> str:
    """The comments and docstrings of the learner's code, in lower case."""
    source = source_of(subject)
    return " ".join(re.findall(r"#[^\n]*|\"\"\".*?\"\"\"|'''.*?'''", source, flags=re.S)).lower()


def documented_polarity(subject) -> str | None:
    """What the learner's comments and docstrings say that a mask means: attend, block, additive."""
    words = documented_source(subject)
    for said in re.findall(r"\b(?:true|1s?)\b([^.;]{0,60})", words):
        said = re.split(r"\bfalse\b|\b0s?\b|\bzero", said)[0]
        if re.search(
            r"block|hid(e|den)|ignor|\bmasked\b|mask(s|ed)? out|forb|\bpad|drop|\bnot\b|never|exclu|disallow|cannot",
            said,
        ):
            return "block"
        if re.search(
            r"attend|keep|kept|token|word|visible|may|allow|\bcan\b|\bsee|valid|real|look", said
        ):
            return "attend"
    if re.search(
        r"additive|mask[^.]{0,60}\badded|added to the scores|(huge|large|very) negative", words
    ):
        return "additive"
    return None
