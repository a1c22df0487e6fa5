"""The check of a cache of keys and values: tokens go in one after another, and all come out."""

import inspect

import torch
from torch import Tensor

from mha.check import binding
from mha.check.catalogue import finding
from mha.check.guard import Guard, Stopped
from mha.check.report import Check, Report
from mha.check.trial import PLAINER, Question, Wrong, draw, misshapen, near, positions_first, show
from mha.check.unwritten import or_your_turn

SIZES = {"B": 2, "H": 3, "D": 4}
ROOM = 16  # slots of a cache that is given its length
METHODS = "append update add push extend insert put store write cache __call__ forward"
SETTINGS = {
    "B": "b batch batchsize bs maxbatchsize n",
    "H": "h heads numheads nheads numkvheads nkvheads kvheads nhead hkv",
    "D": "d headdim dim dhead headsize dk dh",
    "room": "maxlen maxlength maxseqlen size capacity length s contextlength maxtokens t maxsize "
    "seqlen windowsize blocksize",
    "layers": "layers numlayers nlayers",
}


def check(cls, seconds: float) -> Report:
    """The report on a class, or on an instance that is empty."""
    name = getattr(cls, "__name__", type(cls).__name__)
    found, lines, reading = [], [], []
    with Guard(cls, seconds=seconds, sizes=SIZES | {"S": ROOM}) as guard:
        try:
            CacheTrial(cls, guard, found, lines, reading).run()
        except Stopped as stopped:
            found.append(stopped.finding())
        except Wrong as wrong:
            found.append(wrong.found)
        except Question as question:
            found.append(finding("question", str(question)))
    if guard.unprotected:
        reading.append(guard.unprotected)
    report = Report(name, tuple(found), tuple(lines), tuple(reading))
    return or_your_turn(report, cls)


class CacheTrial:
    """One class of caches under examination."""

    def __init__(self, cls, guard, found: list, lines: list, reading: list):
        self.cls, self.guard = cls, guard
        self.found, self.lines, self.reading = found, lines, reading
        self.swapped = positions_first(cls)
        if self.swapped:
            reading.append("it takes (B, T, H, D), positions before heads")

    def make(self):
        """An empty cache."""
        if not isinstance(self.cls, type):
            return self.cls
        values = {**SIZES, "room": ROOM, "layers": 1}
        given = {}
        for name, parameter in binding.signature(self.cls).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            plain = binding.plain(name)
            for role, spellings in SETTINGS.items():
                if plain in spellings.split():
                    given[name] = values[role]
            if name not in given and parameter.default is parameter.empty:
                raise Question(f"its constructor asks for `{name}`: give it a default")
        return self.guard.call(self.cls, **given)

    def method(self, cache):
        """The method that takes new keys and values."""
        own = [m for m in METHODS.split() if callable(getattr(type(cache), m, None))]
        if not own:
            raise Question("it has no method append(k, v)")
        return getattr(cache, own[0])

    def append(self, cache, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """What it holds after new tokens. Errors: Stopped, Wrong."""
        method = self.method(cache)
        names = [
            p for p in inspect.signature(method).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]  # fmt: skip
        extra = [p.name for p in names[2:]]
        more = {}
        for name in extra:
            if binding.plain(name) in ("layer", "layeridx", "layeri", "idx", "index"):
                more[name] = 0
            elif binding.plain(name) in ("pos", "position", "startpos", "start", "inputpos"):
                more[name] = self.put
            else:
                raise Question(f"append asks for `{name}`: give it a default")
        if names and binding.plain(names[0].name) in ("layer", "layeridx", "startpos", "inputpos"):
            raise Question("let append take k and v first")
        given = [x.transpose(1, 2).contiguous() if self.swapped else x for x in (key, value)]
        result = self.guard.call(method, *given, **more)
        self.put += key.shape[2]
        if result is None or result is cache:
            result = self.attributes(cache)
        if not isinstance(result, (tuple, list)) or len(result) < 2:
            text = f"append returned {type(result).__name__}"
            raise Wrong(misshapen(text, "append does not return (keys, values)"))
        pair = tuple(result[:2])
        if self.swapped:
            pair = tuple(
                x.transpose(1, 2) if isinstance(x, Tensor) and x.ndim == 4 else x for x in pair
            )
        for part in pair:
            if not isinstance(part, Tensor):
                text = f"append returned a pair that holds {type(part).__name__}"
                raise Wrong(misshapen(text, "The result is not two tensors"))
        return pair

    def attributes(self, cache):
        """Keys and values that are kept on the cache."""
        for method in ("get", "read", "fetch", "kv"):
            if callable(getattr(type(cache), method, None)):
                return self.guard.call(getattr(cache, method))
        for names in [("keys", "values"), ("k", "v"), ("key", "value"), ("key_cache", "value_cache"),
                      ("k_cache", "v_cache"), ("cached_k", "cached_v"), ("K", "V")]:  # fmt: skip
            pair = [getattr(cache, name, None) for name in names]
            if all(isinstance(x, Tensor) for x in pair):
                self.reading.append(f"append returns nothing; .{names[0]} and .{names[1]} are read")
                return pair
        raise Wrong(finding("returns-nothing", "append returned None"))

    def line(self, name: str, passed: bool, detail: str = "", *slugs: str) -> bool:
        self.lines.append(Check(name, passed, detail, slugs))
        return passed

    def add(self, slug: str, evidence: str, severity: str = "mistake", **replaced) -> None:
        if all(known.slug != slug for known in self.found):
            self.found.append(finding(slug, evidence, severity, **replaced))

    def run(self) -> None:
        """Token by token, then several at once, then a second cache."""
        self.put = 0
        if not self.steps("one token at a time", [1, 1, 1]):
            return
        if isinstance(self.cls, type) and not self.separate():
            return
        if not self.steps("several tokens at once", [3, 1, 2]):
            return
        self.shares_memory()
        self.length()
        self.reset()

    def tokens(self, counts: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each step, (B, H, t, D), all numbers different."""
        B, H, D = SIZES.values()
        return [
            (draw(B, H, t, D, seed=10 + i), draw(B, H, t, D, seed=50 + i))
            for i, t in enumerate(counts)
        ]

    def steps(self, name: str, counts: list[int]) -> bool:
        """Each step returns all so far."""
        cache, self.put = self.make(), 0
        given = self.tokens(counts)
        for i, (key, value) in enumerate(given):
            keys, values = self.append(cache, key.clone(), value.clone())
            so_far = given[: i + 1]
            right = [torch.cat([step[part] for step in so_far], 2) for part in (0, 1)]
            if near(keys, right[0]) and near(values, right[1]):
                continue
            slug, where = self.explain((keys, values), so_far, right)
            self.line(name, False, slug, slug)
            text = (
                f"after step {i + 1} of (B, H, t, D) with t = {', '.join(map(str, counts[: i + 1]))}"
                f"{where}:\n  your keys: {tuple(keys.shape)}\n  right: {tuple(right[0].shape)}"
            )
            if keys.shape == right[0].shape:
                text += (
                    f"\n  your keys, first feature: {show(keys[0, 0, :, 0])}"
                    f"\n  right: {show(right[0][0, 0, :, 0])}"
                )
            if slug == "wrong-shape":
                self.found.append(misshapen(text))
            else:
                self.add(slug, text, **({"explanation": PLAINER[slug]} if slug in PLAINER else {}))
            return False
        return self.line(name, True)

    def explain(self, got, given, right) -> tuple[str, str]:
        """The slug of what came back, and which of the two it concerns."""
        if near(got[0], right[1]) and near(got[1], right[0]):
            return "kv-swapped", ", keys come back as values"
        if near(got[1], right[0]):
            return "cache-keys-twice", ", the values are the keys"
        if near(got[0], right[1]):
            return "cache-keys-twice", ", the keys are the values"
        names = [
            self.one(got[part], [step[part] for step in given], right[part]) for part in (0, 1)
        ]
        wrong = [slug for slug in names if slug != "right"]
        if len(set(wrong)) > 1:
            return ("unknown", "")
        said = {("right",): ""}.get(tuple(names), "")
        if names[0] == "right":
            said = ", of the values (the keys are right)"
        elif names[1] == "right":
            said = ", of the keys (the values are right)"
        return wrong[0] if wrong else "unknown", said

    @staticmethod
    def one(got: Tensor, steps: list[Tensor], right: Tensor) -> str:
        """The slug for one of the two tensors, "right" or "unknown"."""
        if near(got, right):
            return "right"
        if near(got, steps[-1]):
            return "cache-overwrites"
        if len(steps) > 1 and near(got, torch.cat(steps[:-1], 2)):
            return "cache-late"
        if near(got, torch.cat(steps[::-1], 2)):
            return "cache-order"
        doubled = [part for step in steps for part in (step, step)]
        repeats = [torch.cat(doubled, 2), torch.cat([right, right], 2),
                   torch.cat([steps[0], *steps], 2)]  # fmt: skip
        if any(near(got, twice) for twice in repeats):
            return "cache-duplicates"
        same = all(step.shape == steps[0].shape for step in steps)
        for axis in (0, 1, 3):
            if same and near(got, torch.cat(steps, axis)):
                return "cache-wrong-axis"
        if same and near(got, torch.stack(steps)):
            return "cache-wrong-axis"
        if got.ndim == 4 and got.shape[2] > right.shape[2] and got.shape[:2] == right.shape[:2]:
            n = right.shape[2]
            if near(got[:, :, :n], right) and bool((got[:, :, n:] == 0).all()):
                return "cache-unfilled"
        if (
            got.ndim == 4
            and got.shape[2] == ROOM
            and near(got[:, :, : steps[-1].shape[2]], steps[-1])
        ):
            return "cache-overwrites"
        if got.shape == right.shape and near(got.flatten().sort()[0], right.flatten().sort()[0]):
            return "batch-mixed"
        return "wrong-shape" if got.shape != right.shape else "unknown"

    def separate(self) -> bool:
        """A second cache is empty at first."""
        first, second = self.make(), self.make()
        (key, value), (other, more) = self.tokens([1, 1])
        self.put = 0
        self.append(first, key.clone(), value.clone())
        self.put = 0
        keys, values = self.append(second, other.clone(), more.clone())
        good = near(keys, other) and near(values, more)
        if not self.line("two caches are apart", good, "", *(() if good else ("cache-shared",))):
            text = f"a new cache holds {tuple(keys.shape)} after its first token"
            self.add("cache-shared", text)
        return good

    def shares_memory(self) -> None:
        """Changing a tensor after it was given changes nothing in the cache."""
        if not isinstance(self.cls, type):
            return
        cache, self.put = self.make(), 0
        (key, value), (more, other) = self.tokens([2, 1])
        mine = key.clone()
        self.append(cache, mine, value.clone())
        mine.fill_(99.0)
        keys, _ = self.append(cache, more.clone(), other.clone())
        good = near(keys[:, :, :2], key)
        if not self.line("it keeps numbers of its own", good):
            text = "the keys that were given were changed later in place, and the cache with them"
            self.add("cache-shares-memory", text, "note")

    def length(self) -> None:
        """A length that it tells is the number of tokens."""
        if not isinstance(self.cls, type):
            return
        cache, self.put = self.make(), 0
        for key, value in self.tokens([3, 1]):
            self.append(cache, key, value)
        for name in ("length", "seq_len", "seq_length", "cur_len", "__len__", "get_seq_length"):
            if not hasattr(cache, name):
                continue
            told = getattr(cache, name)
            told = self.guard.call(told) if callable(told) else told
            if isinstance(told, int) and not isinstance(told, bool):
                good = told == 4
                if not self.line("its length is the number of tokens", good, f"{name}: {told}"):
                    self.add("cache-length", f"after 3 tokens and 1 more, {name} is {told}")
                return

    def reset(self) -> None:
        """After a reset it is empty."""
        if not isinstance(self.cls, type):
            return
        cache, self.put = self.make(), 0
        name = next((n for n in ("reset", "clear", "empty") if hasattr(cache, n)), None)
        if name is None or not callable(getattr(cache, name)):
            return
        (key, value), (other, more) = self.tokens([2, 1])
        self.append(cache, key, value)
        self.guard.call(getattr(cache, name))
        self.put = 0
        keys, values = self.append(cache, other.clone(), more.clone())
        good = near(keys, other) and near(values, more)
        if not self.line(f"{name}() empties it", good):
            self.add(
                "cache-reset", f"after {name}() and one token the keys are {tuple(keys.shape)}"
            )
