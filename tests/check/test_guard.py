"""The guard: nothing that a learner's code does ends the check, and causes are told in words."""

import contextlib
import math
import os
import random
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mha.check import causes
from mha.check.guard import Guard, Stopped

SIZES = {"B": 3, "T": 5, "S": 7, "H": 4, "D": 6, "E": 24}
B, T, S, H, D, E = SIZES.values()


def stopped(fn, *args, seconds=1.0, **kwargs) -> Stopped:
    """What the guard makes of a function that does not come through."""
    with Guard(fn, seconds=seconds, sizes=SIZES) as guard, pytest.raises(Stopped) as caught:
        guard.call(fn, *args, **kwargs)
    return caught.value


# --- kinds


def test_a_result_comes_back():
    with Guard(max) as guard:
        assert guard.call(max, 3, 5) == 5
        assert guard.call(sorted, [2, 1], reverse=True) == [2, 1]
    assert guard.printed == ""


def test_an_error_names_the_line():
    def learner(x):
        y = x * 2
        return torch.softmax(y, 7)  # no such axis

    found = stopped(learner, torch.ones(2, 3))
    assert (found.kind, found.function) == ("exception", "learner")
    assert found.line == "return torch.softmax(y, 7)  # no such axis"
    assert found.file == __file__ and found.lineno == learner.__code__.co_firstlineno + 2
    assert isinstance(found.error, IndexError)
    told = found.finding()
    assert told.slug == "exception" and "in learner:\n  return torch.softmax" in told.evidence
    assert "y: (2, 3), float32" in told.evidence and "IndexError: Dimension" in told.evidence
    assert told.explanation.startswith("The tensor has 2 axes")


def test_the_deepest_line_of_the_learner_is_named_not_that_of_torch():
    class Inner(nn.Module):
        def forward(self, x):
            return F.layer_norm(x, (9,))

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner(x)

    found = stopped(Outer(), torch.ones(2, 3))
    assert found.function == "forward" and "layer_norm" in found.line


def test_code_without_a_file_has_a_place_and_no_line():
    space = {}
    exec("def f():\n    return 1 / 0", space)
    found = stopped(space["f"])
    assert (found.file, found.lineno, found.line) == ("<string>", 2, "")
    assert found.finding().evidence == "line 2, in f\nZeroDivisionError: division by zero"


def test_an_error_before_the_first_line_has_no_place():
    found = stopped(lambda x: x)
    assert found.file is None and found.lineno is None and found.where == ""
    assert "missing 1 required" in found.finding().evidence


def loop_plain():
    while True:
        pass


def loop_bare_except():
    while True:
        try:
            torch.ones(20, 20) @ torch.ones(20, 20)
        except:  # noqa: E722
            pass


def loop_nested_except():
    while True:
        try:
            try:
                torch.ones(20, 20) @ torch.ones(20, 20)
            except BaseException:
                pass
        except BaseException:
            continue


def loop_suppressed():
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(10)


@pytest.mark.parametrize("fn", [loop_plain, loop_bare_except, loop_nested_except, loop_suppressed])
def test_an_endless_loop_is_stopped(fn):
    begun = time.monotonic()
    found = stopped(fn, seconds=0.2)
    assert time.monotonic() - begun < 3
    assert sys.exception() is None
    assert found.kind == "timeout" and found.function == fn.__name__
    assert "0.2 s" in found.finding().evidence and found.finding().slug == "timeout"
    assert sys.gettrace() is None or "coverage" in sys.modules or "pydevd" in sys.modules


def test_code_that_catches_the_end_and_returns_is_stopped_too():
    def swallows():
        try:
            time.sleep(5)
        except BaseException:
            return 3

    assert stopped(swallows, seconds=0.1).kind == "timeout"


def test_a_stop_iteration_is_an_error():
    assert isinstance(stopped(lambda: next(iter(()))).error, StopIteration)


def test_the_time_is_for_all_calls_together_and_only_for_them():
    def slow():
        time.sleep(0.12)

    with Guard(slow, seconds=0.3) as guard:
        time.sleep(0.4)  # the checker's own time
        guard.call(slow)
        guard.call(slow)
        with pytest.raises(Stopped) as caught:
            guard.call(slow)
        assert caught.value.kind == "timeout"
        with pytest.raises(Stopped) as caught:
            guard.call(max, 1, 2)
        assert caught.value.kind == "timeout" and caught.value.function == "slow"


def test_too_much_memory_is_refused(monkeypatch):
    resource = pytest.importorskip("resource")
    if torch.cuda.is_available() or not sys.platform.startswith("linux"):
        pytest.skip("no limit of memory here")
    before = resource.getrlimit(resource.RLIMIT_AS)
    monkeypatch.setattr("mha.check.guard.HEADROOM", 2**28)

    def tensor():
        return torch.zeros(10**10)

    def grows():
        kept = []
        while True:
            kept.append(bytearray(10**8))

    found = stopped(tensor)
    assert found.kind == "memory" and "40 GB" in found.finding().explanation
    found = stopped(grows, seconds=20)
    assert found.kind == "memory" and found.finding().slug == "memory"
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_recursion_is_an_error():
    class Module(nn.Module):
        def forward(self, x):
            return self(x)

    found = stopped(Module(), 1, seconds=10)
    assert found.kind == "exception" and "calls itself" in found.cause


@pytest.mark.parametrize("leave", [lambda: exit(3), lambda: sys.exit("bye"), lambda: quit()])
def test_an_exit_is_caught(leave):
    found = stopped(leave)
    assert found.kind == "exit" and found.finding().slug == "exit"


def test_the_user_may_interrupt():
    def interrupted():
        raise KeyboardInterrupt

    with Guard(interrupted) as guard, pytest.raises(KeyboardInterrupt):
        guard.call(interrupted)


def test_other_ways_to_fail():
    class Odd(BaseException):
        def __str__(self):
            raise ValueError

    def odd():
        raise Odd

    found = stopped(odd)
    assert found.kind == "exception" and found.message == "Odd"
    assert "nobody answers" in stopped(lambda: input()).cause


def test_a_call_within_a_call():
    def fails():
        raise ValueError("inner")

    with Guard(fails) as guard:
        with pytest.raises(Stopped, match="inner"):
            guard.call(lambda: guard.call(fails))
        assert guard.call(lambda: guard.call(max, 1, 2)) == 2


# --- surroundings


def test_everything_is_as_it_was():
    def careless():
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        sys.setrecursionlimit(5000)
        print("hello")
        print("again", file=sys.stderr)
        warnings.warn("careful", stacklevel=1)
        raise ValueError

    def state():
        return (
            torch.random.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            sys.getrecursionlimit(),
            signal.getsignal(signal.SIGALRM),
            sys.stdout,
            sys.stderr,
            sys.stdin,
        )

    before = state()
    with Guard(careless) as guard:
        with pytest.raises(Stopped):
            guard.call(careless)
        assert torch.is_grad_enabled()
    assert state() == before
    assert guard.printed == "hello\nagain\n"


def test_a_flood_of_prints_is_cut():
    def prints():
        for _ in range(10_000):
            print("x" * 100)

    with Guard(prints, seconds=10) as guard:
        guard.call(prints)
    assert len(guard.printed) == 20_000


def test_the_checkers_own_error_passes_and_all_is_restored():
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyError), Guard(max):
        raise KeyError("checker")
    assert signal.getsignal(signal.SIGALRM) is handler


def test_a_timer_of_others_goes_on():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        stopped(loop_plain, seconds=0.1)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] < 0.3
        time.sleep(0.4)
        assert rung == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_another_thread_has_no_timer_and_says_so():
    said = []

    def work():
        with Guard(max) as guard:
            said.extend([guard.unprotected, guard.call(max, 1, 2)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "main thread" in said[0] and said[1] == 2


def test_gradients_work_inside_under_inference_mode():
    def learner(x):
        return (x * 2).sum()

    with torch.inference_mode(), Guard(learner) as guard, torch.enable_grad():
        x = torch.ones(3, requires_grad=True)
        guard.call(guard.call(learner, x).backward)
        assert x.grad.tolist() == [2, 2, 2]


# --- causes


x, q, k = torch.zeros(B, T, E), torch.zeros(B, H, T, D), torch.zeros(B, H, S, D)
w = torch.zeros(B, H, T, S)


class NoSuper(nn.Module):
    def __init__(self):
        self.layer = nn.Linear(E, E)


class Misspelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(E, E)

    def forward(self, x):
        return self.qproj(x)


class NeverSet(Misspelled):
    def forward(self, x):
        return self.rotary(x)


def name_close():
    scores = 3
    return scorse + scores


def name_of_self():
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads = 3

        def forward(self):
            return num_heads

    return M()()


def no_import():
    return rearrange(x)


def mask_none(mask=None):
    return w + mask


def mask_compared(mask=None):
    return w.masked_fill(mask == 0, -1e9)


def no_return():
    def attention(x):
        x @ x.mT

    out = attention(x)
    return out + x


def tuple_used():
    out = nn.MultiheadAttention(E, H)(x, x, x)
    return out + x


def changed_in_place():
    a = torch.ones(3, 3, requires_grad=True).softmax(-1)
    a *= 2
    a.sum().backward()


def no_self():
    return self.num_heads


def length_none(S=None):
    return torch.arange(S)


def unbound():
    if math.pi > 4:
        y = 1
    return y


CAUSES = [
    (name_close, "Did you mean `scores`"),
    (name_of_self, "`self.num_heads` exists"),
    (no_import, "from einops import rearrange"),
    (unbound, "another path"),
    (NoSuper, "super().__init__()"),
    (lambda: Misspelled()(x), "Did you mean `q_proj`"),
    (lambda: NeverSet()(x), "`self.rotary` was never set"),
    (lambda: torch.softmx(x, -1), "torch.softmax"),
    (lambda: x.transposee(1, 2), "Did you mean `.transpose`"),
    (mask_none, "no mask was given"),
    (mask_compared, "if mask is not None"),
    (no_return, "`out` is None here"),
    (tuple_used, "(output, weights)"),
    (lambda: nn.Linear(E, E)(x.long()), "Whole numbers"),
    (lambda: nn.Linear(E, E)(x.half()), "Two number formats"),
    (lambda: x @ x.double().mT, "Two number formats"),
    (lambda: q.transpose(1, 2).view(B, T, E), ".reshape"),
    (lambda: x.view(B, T, H, E), "360 numbers = B·T·E"),
    (lambda: x.view(B, T, H, E), "width of one head"),
    (lambda: x.view(B, H, S, D), "The keys' length S stands where T belongs"),
    (lambda: k.transpose(1, 2).reshape(B, T, E), "T stands where the keys' length"),
    (lambda: nn.Linear(E, E)(q), "6 (D, width of a head) meets 24 (E, width of the model)"),
    (lambda: nn.Linear(D, D)(x), "made for one head's width"),
    (lambda: w + torch.zeros(T, T), "7 (S, keys) in one and 5 (T, queries)"),
    (lambda: w.masked_fill(torch.ones(B, T, S).bool(), 0.0), "mask[:, None]"),
    (lambda: torch.bmm(q.flatten(0, 1), k.flatten(0, 1)), "exchange the last two axes"),
    (lambda: torch.bmm(q, k), "three axes"),
    (lambda: torch.einsum("bhtd,bhtd->bht", q, k), "The letter t stands for 7 (S, keys)"),
    (lambda: torch.einsum("bhtd,bsd->bhts", q, k), "3 letters to a tensor with 4 axes"),
    (lambda: x.transpose(1, 3), "3 axes, 0 to 2"),
    (lambda: x.permute(0, 2, 1, 3), "`permute` must name every axis"),
    (lambda: torch.cat([q, k], -1), "5 (T, queries) and one 7 (S, keys)"),
    (lambda: x.shape[3], "fewer axes"),
    (lambda: w.masked_fill(torch.ones(T, S), 0.0), "mask.bool()"),
    (lambda: w.masked_fill(torch.ones(T, S).long(), 0.0), "mask.bool()"),
    (lambda: 1 - torch.ones(3).bool(), "~mask"),
    (lambda: w.half().masked_fill(w > 1, -1e9), "-65,504"),
    (lambda: 1 if x > 0 else 2, "is not None"),
    (lambda: nn.Parameter(x).numpy(), "NumPy cannot follow"),
    (changed_in_place, "A result of Softmax"),
    (lambda: torch.ones(2, requires_grad=True).mul_(2), "An input or a parameter"),
    (no_self, "def forward(self"),
    (length_none, "`S` is None here"),
    (lambda: x - x.max(-1, keepdim=True), "Take `.values`, or call `amax`"),
    (lambda: np.max(x, axis=-1, keepdims=True), "`x.amax(dim, keepdim=True)`"),
    (lambda: np.mean(x, axis=-1, keepdims=True), "`x.mean(dim, keepdim=True)`"),
    (lambda: np.sum(x, axis=-1, keepdims=True), "`x.sum(dim, keepdim=True)`"),
    (lambda: x.sum().backward(), "No gradient can flow"),
    (lambda y: y, "default, such as `mask=None`"),
    (lambda: mask_none(1, 2), "more arguments than it takes"),
    (lambda: mask_none(msk=1), "no parameter `msk`"),
    (lambda: torch.sqrt(D), "math.sqrt"),
    (lambda: x.view(B, T, H, E / H), "use `//`"),
    (lambda: nn.Linear(E, E / H), "use `//`"),
    (lambda: torch.softmax(x), "`dim=-1`"),
    (lambda: torch.ones(3) + torch.ones(3, device="meta"), "register_buffer"),
    (lambda: {x.shape: 1, (): {[]: 1}}, "Use a tuple"),
    (lambda: x(3), "`*` or `@`"),
    (lambda: torch.ones(1, T, E).expand(B, S, E), "length 1 can be expanded"),
]


@pytest.mark.parametrize("number", range(len(CAUSES)))
def test_the_cause_is_told(number):
    fn, words = CAUSES[number]
    found = stopped(fn)
    assert found.kind == "exception"
    assert words in found.cause, (found.message, found.cause)
    told = found.finding()
    assert told.explanation == found.cause and "\n" not in found.cause
    assert len(found.cause) < 420


def test_an_unknown_error_has_the_words_of_the_catalogue():
    def odd():
        raise ValueError("something of its own")

    found = stopped(odd)
    assert found.cause == "" and "raised" in found.finding().explanation


def test_axes_are_named():
    assert causes.axes(5, SIZES) == "T"
    assert causes.axes(15, SIZES) == "B·T"
    assert causes.axes(24, SIZES) == "E"
    assert causes.axes(1, SIZES) == "" and causes.axes(11, SIZES) == ""
    assert causes.axes(2, {"B": 2, "T": 2}) == "B or T"
    assert causes.shape(w, SIZES) == "(3, 4, 5, 7) = (B, H, T, S)"
    assert causes.shape(w[:, :1], SIZES) == "(3, 1, 5, 7) = (B, 1, T, S)"
    assert causes.shape(torch.ones(11, 3), SIZES) == "(11, 3)"


def test_what_the_code_sets_for_everyone_is_as_before():
    def meddle():
        torch.set_default_device("meta")
        torch.use_deterministic_algorithms(True)
        torch.nn.functional.softmax = None
        os.environ["MHA_MEDDLED"] = "1"
        os.chdir("/")

    softmax, folder = torch.nn.functional.softmax, os.getcwd()
    with Guard(meddle) as guard:
        guard.call(meddle)
    assert torch.get_default_device().type == "cpu"
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.nn.functional.softmax is softmax
    assert "MHA_MEDDLED" not in os.environ and os.getcwd() == folder
