"""Safe surroundings for a learner's code: what goes wrong in it ends the call, not the check."""

import contextlib
import functools
import inspect
import io
import itertools
import linecache
import os
import random
import re
import signal
import sys
import sysconfig
import threading
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mha.check import causes
from mha.check.catalogue import finding

try:
    import resource
except ImportError:  # Windows
    resource = None

HEADROOM = 2 * 2**30  # bytes that the learner's code may ask for
KEPT = 20_000  # characters of printed text
CELLS = ("<ipython-input", "<stdin>", "<string>")
TOO_MUCH = re.compile(
    r"can't allocate memory|out of memory|std::bad_alloc|Storage size calculation"
)


class Stopped(Exception):
    """What happened inside the learner's code.

    Args:
        kind: "exception", "timeout", "memory" or "exit".
        error: what was raised, or None.
        place: where in the learner's code, or None.
        cause: the likely cause, in a sentence or two, or "".
        seconds: the budget, for a timeout.
        shapes: the tensors of the line, as "scores: (3, 4, 5, 7) = (B, H, T, S), float32".

    ``file``, ``lineno`` and ``line`` are None, None and "" where no line is the learner's.
    """

    def __init__(self, kind, error=None, place=None, cause="", seconds=0.0, shapes=()):
        self.kind, self.error, self.cause, self.seconds = kind, error, cause, seconds
        self.place, self.shapes = place, tuple(shapes)
        self.file, self.lineno, self.function, self.line = place or (None, None, "", "")
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The kind of error and its first lines; what happened, where nothing was raised."""
        if self.kind == "timeout":
            return f"stopped after {self.seconds:g} s in your code"
        if isinstance(self.error, SystemExit):
            return f"the code called exit, with {self.error.code!r}"
        if self.error is None:
            return self.kind
        try:
            lines = [line.strip() for line in str(self.error).splitlines() if line.strip()]
        except Exception:  # an error of the learner's whose __str__ fails
            lines = []
        said = re.sub(r"^\[enforce fail at \S+\] err == 0\. ", "", " ".join(lines[:3]))
        said = said if len(said) <= 400 else said[:399] + "…"
        return f"{type(self.error).__name__}: {said}".removesuffix(": ")

    @property
    def where(self) -> str:
        """'line 12, in forward', or ""."""
        if self.lineno is None:
            return ""
        inside = f", in {self.function}" if self.function not in ("", "<module>") else ""
        return f"line {self.lineno}{inside}"

    def finding(self):
        """The finding that tells it: the line, the error and the likely cause."""
        lines = []
        if self.where:
            lines += [f"{self.where}:", f"  {self.line}"] if self.line else [self.where]
        lines += [f"  {said}" for said in self.shapes if self.line]
        lines.append(self.message)
        replaced = {"explanation": self.cause} if self.cause else {}
        return finding(self.kind, "\n".join(lines), **replaced)


class _TimeUp(BaseException):
    """Raised by the timer inside the learner's code."""


class Guard:
    """Surroundings in which a learner's code may fail, hang, print, exit and draw random numbers.

    Args:
        subject: the learner's function, class or instance; its file tells which lines are theirs.
        seconds: the time that all calls together may take.
        sizes: name of an axis -> its length, to explain errors of shape; lengths all different.

    ``unprotected`` says what could not be guarded, or is None. ``printed`` is what was printed, ``changed``
    names the inputs that were changed in place.
    """

    def __init__(self, subject, seconds: float = 10.0, sizes: dict[str, int] | None = None):
        self.subject, self.seconds, self.sizes = subject, seconds, dict(sizes or {})
        self.files = _files(subject)
        self.unprotected: str | None = None
        self.changed: set[str] = set()  # inputs that the learner's code has changed
        self._left = seconds
        self._running = False
        self._depth = 0
        self._ticks = 0
        self._timed_out: Stopped | None = None
        self._output = _Output()
        self._chance = random.Random(0)
        self._timer = False

    @property
    def printed(self) -> str:
        """What the learner's code printed, its beginning if it is long."""
        return self._output.getvalue()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self._restore_state(stack)
            self._silence(stack)
            self._set_timer(stack)
            self._limit_memory(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._running = False
        return self._stack.__exit__(*error)

    def call(self, fn, *args, **kwargs):
        """The result of fn(*args, **kwargs). Errors: Stopped."""
        if self._timed_out is not None:
            raise self._again()
        if self._depth:  # a call within a call
            try:
                return fn(*args, **kwargs)
            except (Stopped, _TimeUp, KeyboardInterrupt):
                raise
            except BaseException as error:
                raise self._stopped(error) from error
        trace, grad = sys.gettrace(), torch.is_grad_enabled()
        begun = time.monotonic()
        self._depth += 1
        failed = None
        try:
            try:
                if self._timer:
                    self._ticks, self._running = 0, True
                    signal.setitimer(signal.ITIMER_REAL, max(self._left, 1e-3))
                result, ended = next(_apart(fn, args, kwargs))
            finally:
                self._running = False
            if ended is None and not self._ticks:
                return result
            failed = ended or _TimeUp()  # caught by the learner's code, which then went on
        except BaseException as error:
            self._running = False
            failed = error
        finally:
            if self._timer:
                signal.setitimer(signal.ITIMER_REAL, 0)
                if self._ticks:
                    sys.settrace(trace)
            self._depth -= 1
            self._left -= time.monotonic() - begun
            torch.set_grad_enabled(grad)
        if isinstance(failed, (KeyboardInterrupt, Stopped)):
            raise failed
        raise self._stopped(failed) from failed

    # --- what went wrong

    def _stopped(self, error: BaseException) -> Stopped:
        too_much = isinstance(error, MemoryError) or TOO_MUCH.search(causes.text(error))
        if too_much:
            traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
        frame, place = self._where(error)
        if isinstance(error, _TimeUp):
            self._timed_out = Stopped("timeout", None, place, seconds=self.seconds)
            return self._timed_out
        if isinstance(error, SystemExit):
            return Stopped("exit", error, place)
        line = place[3] if place else ""
        cause = causes.likely(error, self.sizes, frame, line)
        if too_much:
            return Stopped("memory", error, place, cause)
        shapes = causes.shapes(frame, line, self.sizes)
        return Stopped("exception", error, place, cause, shapes=shapes)

    def _again(self) -> Stopped:
        """The time was up in an earlier call."""
        return Stopped("timeout", None, self._timed_out.place, seconds=self.seconds)

    def _where(self, error: BaseException):
        """The deepest frame that is the learner's, and (file, lineno, function, line); or None."""
        trace, found = error.__traceback__, None
        while trace is not None:
            if self._is_theirs(trace.tb_frame.f_code.co_filename):
                found = trace
            trace = trace.tb_next
        if found is None:
            return None, None
        code = found.tb_frame.f_code
        first, last = found.tb_lineno, found.tb_lineno
        positions = next(itertools.islice(code.co_positions(), found.tb_lasti // 2, None), None)
        if positions and positions[0] == first and positions[1]:
            last = min(positions[1], first + 5)
        linecache.checkcache(code.co_filename)
        lines = [linecache.getline(code.co_filename, n).strip() for n in range(first, last + 1)]
        return found.tb_frame, (code.co_filename, first, code.co_name, " ".join(lines).strip())

    def _is_theirs(self, file: str) -> bool:
        if file in self.files or file.startswith(CELLS) or "ipykernel_" in file:
            return True
        if file.startswith("<"):
            return False
        return not any(Path(file).is_relative_to(folder) for folder in _libraries())

    # --- surroundings

    def _restore_state(self, stack) -> None:
        """Chance, grad mode, number format and threads are as before afterwards."""
        gradients = torch.is_grad_enabled()
        stack.callback(torch.set_grad_enabled, gradients)
        stack.enter_context(torch.inference_mode(False))
        torch.set_grad_enabled(gradients)  # leaving inference mode switches gradients on
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # the inputs are small; and new threads would take memory
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if torch.cuda.is_initialized():
            stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(sys.setrecursionlimit, sys.getrecursionlimit())
        stack.callback(
            torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()
        )
        stack.callback(torch.autograd.set_detect_anomaly, torch.is_anomaly_enabled())
        stack.callback(os.chdir, Path.cwd())
        if torch.get_default_device().type == "cpu":  # setting it anew would leave a mode behind
            stack.callback(_reset_default_device)
        for names in (vars(torch.nn), vars(torch.nn.functional), os.environ):
            stack.callback(_put_back, names, dict(names))

    def _silence(self, stack) -> None:
        """Nothing is printed, nothing is asked, and no warning comes through."""
        stack.enter_context(contextlib.redirect_stdout(self._output))
        stack.enter_context(contextlib.redirect_stderr(self._output))
        stack.callback(setattr, sys, "stdin", sys.stdin)
        sys.stdin = io.StringIO()
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")

    def _set_timer(self, stack) -> None:
        """Take over the signal of the timer, where there is one."""
        if not hasattr(signal, "setitimer"):
            self.unprotected = "no time limit: this system has no timer that interrupts Python"
            return
        if threading.current_thread() is not threading.main_thread():
            self.unprotected = "no time limit: the check does not run in the main thread"
            return
        begun = time.monotonic()
        left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
        before = signal.signal(signal.SIGALRM, self._tick)

        def put_back():
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
            if left:
                rest = max(left - (time.monotonic() - begun), 1e-3)
                signal.setitimer(signal.ITIMER_REAL, rest, interval)

        stack.callback(put_back)
        self._timer = True

    def _tick(self, signum, frame) -> None:
        """Time is up. Code that catches it meets it again, at its next line and at the next tick."""
        if not self._running:
            return
        self._ticks += 1
        later = 0.05 if self._ticks < 4 else self._chance.uniform(5e-5, 2e-3)
        signal.setitimer(signal.ITIMER_REAL, later)
        while frame is not None and frame.f_code is not Guard.call.__code__:
            frame.f_trace = self._trace
            frame = frame.f_back
        sys.settrace(self._trace)
        raise _TimeUp

    def _trace(self, frame, event, argument):
        """A trace function: the learner's next line raises."""
        if not self._running or frame.f_code.co_filename == __file__:
            return None
        if event == "line":
            raise _TimeUp
        return self._trace

    def _limit_memory(self, stack) -> None:
        """The address space may grow by HEADROOM, where that can be told."""
        statm = Path("/proc/self/statm")
        if resource is None or not statm.exists():
            return
        if torch.cuda.is_available():  # CUDA reserves far more addresses than memory
            more = "no limit of memory: none goes well with CUDA"
            self.unprotected = f"{self.unprotected}; {more}" if self.unprotected else more
            return
        present = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        before = resource.getrlimit(resource.RLIMIT_AS)
        limit = present + HEADROOM
        if before[0] != resource.RLIM_INFINITY and before[0] <= limit:
            return
        try:
            resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
        except (ValueError, OSError):
            return
        stack.callback(resource.setrlimit, resource.RLIMIT_AS, before)


def _reset_default_device() -> None:
    """The CPU again, if the learner's code chose another device for all new tensors."""
    if torch.get_default_device().type != "cpu":
        torch.set_default_device(None)


def _put_back(names, before: dict) -> None:
    """What was replaced in a namespace is as it was; what was added to the environment is gone."""
    for key in set(names) - set(before) if names is os.environ else ():
        if not key.startswith("KMP_"):  # OpenMP's own
            del names[key]
    for key, value in before.items():
        if names.get(key) is not value and names.get(key) != value:
            names[key] = value


def _apart(fn, args, kwargs):
    """The result, or a StopIteration. A generator has an exception state of its own: what is left
    of it when a trace interrupts a handler goes with the generator."""
    try:
        result = fn(*args, **kwargs)
    except StopIteration as error:
        yield None, error
    else:
        yield result, None


class _Output(io.TextIOBase):
    """Takes what is printed and keeps its beginning."""

    encoding = "utf-8"

    def __init__(self):
        self._parts, self._room = [], KEPT

    def write(self, text: str) -> int:
        if self._room > 0 and text:
            self._parts.append(text[: self._room])
            self._room -= len(text)
        return len(text)

    def writable(self) -> bool:
        return True

    def getvalue(self) -> str:
        return "".join(self._parts)


@functools.cache
def _libraries() -> tuple[Path, ...]:
    """Folders whose code is no learner's: torch, mha and what Python brings."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__))]
    return tuple(Path(path) for path in paths if path)


def _files(subject) -> set[str]:
    """The files in which the code of a function, class or instance stands."""
    while isinstance(subject, functools.partial):
        subject = subject.func
    if inspect.isroutine(subject):
        with contextlib.suppress(ValueError):
            subject = inspect.unwrap(subject)
        code = getattr(getattr(subject, "__func__", subject), "__code__", None)
        return {code.co_filename} if code else set()
    kinds = type.mro(subject) if isinstance(subject, type) else list(type(subject).__mro__)
    if isinstance(subject, nn.Module):
        kinds += [kind for part in subject.modules() for kind in type(part).__mro__]
    files = set()
    for kind in kinds:
        if kind.__module__.split(".")[0] in ("builtins", "torch", "abc", "typing"):
            continue
        for member in vars(kind).values():
            code = getattr(inspect.unwrap(member) if callable(member) else member, "__code__", None)
            if code is not None:
                files.add(code.co_filename)
    return files
