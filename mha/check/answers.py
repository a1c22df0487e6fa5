"""Answers to exercises that no special check knows: a prediction, a diagnosis, a function.

``prediction`` compares a guess with what the run gives, ``diagnosis`` a name with what a check
finds, ``function`` a learner's function with right code, case by case.
"""

import copy
import difflib
import inspect
import math
import numbers
import re
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mha.check.catalogue import ENTRIES, finding
from mha.check.guard import Guard, Stopped
from mha.check.report import Check, Finding, Report
from mha.check.trial import near, number, show
from mha.check.unwritten import or_your_turn, your_turn

SHORT = 200  # characters of a value that is shown


# --- predictions


def prediction(guess, answer, *, within: float = 0.0) -> Report:
    """Compare what you predicted with what the code gives.

    Args:
        guess: a number, bool, text, shape, list, array or tensor; None = not guessed yet.
        answer: the true value, or a function without arguments that computes it, which is called
            only once there is a guess.
        within: how far a number may be off, relative to the answer: 0.1 is a tenth.
    Returns: a Report.
    Errors: ValueError for a negative ``within``.

    Examples:
        >>> import torch
        >>> import mha
        >>> x = torch.zeros(2, 5, 4, 3)  # (B, T, H, D)
        >>> report = mha.check.prediction((2, 5, 4, 3), lambda: x.transpose(1, 2).shape)
        >>> report.ok, report.headline
        (False, 'not what the run says')
        >>> print(report.findings[0].evidence)
        you said (2, 5, 4, 3), the run says (2, 4, 5, 3)
        the lengths are right, and their order is not
        >>> mha.check.prediction((2, 4, 5, 3), lambda: x.transpose(1, 2).shape).ok
        True
    """
    if within < 0:
        raise ValueError(f"within must not be negative, got {within}")
    if guess is None or guess is Ellipsis:
        return your_turn(
            "Your prediction",
            "You have not predicted yet",
            "",
            "Put your answer in place of None before you look, and run the cell again. A wrong "
            "guess teaches more than none.",
        )
    truth = answer() if callable(answer) else answer
    form = _form(guess, truth)
    if form:
        text = "The answer is not told yet: say it in that form, and run the cell again."
        return your_turn("Your prediction", "Your prediction has another form", form, text)
    off = difference(guess, truth, max(within, 1e-9))
    said = f"you said {shown(guess)}, the run says {shown(truth)}"
    if not off:
        return Report("Your prediction", checks=(Check("it agrees with the run", True, said),),
                      said="right")  # fmt: skip
    found = Finding(
        "prediction-off",
        "mistake",
        "Your prediction and the run differ",
        f"{said}\n{_compared(guess, truth) or off}",
        "Find the step of your reasoning that gave the other value, before you change it.",
    )
    return Report("Your prediction", (found,), said="not what the run says")


def _form(guess, truth) -> str:
    """What a guess must look like to be compared; "" where it does."""
    for kinds, words in (((bool, np.bool_), "True or False"), ((str,), "a text")):
        if isinstance(truth, kinds):
            return "" if isinstance(guess, kinds) else f"{words} is asked for"
    if _is_number(truth):
        return "" if _is_number(guess) else "a number is asked for"
    if isinstance(truth, (list, tuple)):
        if isinstance(guess, (Tensor, np.ndarray)):
            guess = guess.tolist()
        if not isinstance(guess, (list, tuple)):
            return "several values are asked for, in brackets"
        if isinstance(truth, list) and len(guess) != len(truth):
            return f"yours holds {len(guess)} values, and {len(truth)} are asked for"
        forms = (_form(mine, right) for mine, right in zip(guess, truth, strict=False))
        return next((form for form in forms if form), "")
    return ""


def _compared(guess, truth) -> str:
    """How a wrong guess differs, in words; "" where there is nothing to add."""
    if _is_number(guess) and _is_number(truth):
        if guess and truth and guess / truth > 0:
            ratio = guess / truth
            larger = "larger" if ratio > 1 else "smaller"
            return f"yours is {number(max(ratio, 1 / ratio))} times {larger}"
        return ""
    if _is_shape(guess) and _is_shape(truth):
        mine, right = tuple(guess), tuple(truth)
        if sorted(mine) == sorted(right):
            return "the lengths are right, and their order is not"
        if len(mine) != len(right):
            return f"yours has {len(mine)} axes, the result {len(right)}"
        axes = [str(i) for i, (a, b) in enumerate(zip(mine, right, strict=True)) if a != b]
        return f"they differ in {'axis' if len(axes) == 1 else 'the axes'} {', '.join(axes)}"
    return ""


def _is_number(x) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, (bool, np.bool_))


def _is_shape(x) -> bool:
    return isinstance(x, tuple) and bool(x) and all(type(n) is int for n in x)


# --- diagnoses


def diagnosis(guess, subject, by: Callable[..., Report] | None = None, **options) -> Report:
    """Compare your diagnosis of faulty code with that of a check.

    Args:
        guess: a name from the catalogue such as "mask-inverted", or several; None = not yet.
        subject: the faulty class or function.
        by: the check that is asked; by default ``check.multi_head_attention`` for a class, and
            ``check.attention`` for a function.
        options: are handed to that check.
    Returns: a Report, ok if the names are those that the check finds, or if it finds no mistake
        any more. A wrong guess is answered by a hint, and not by the name.

    Examples:
        >>> import mha
        >>> def attend(query, key, value):
        ...     return (query @ key.mT).softmax(-1) @ value
        >>> report = mha.check.diagnosis("softmax-wrong-axis", attend)
        >>> report.ok, report.headline
        (False, 'not yet right')
        >>> report = mha.check.diagnosis("scale-missing", attend)
        >>> report.ok, report.headline
        (True, 'your diagnosis is right')
    """
    from mha import check

    name = getattr(subject, "__name__", type(subject).__name__)
    if guess is None or guess is Ellipsis:
        return your_turn(
            f"Your diagnosis of {name}",
            "You have not named the mistake yet",
            "",
            "Read the code, and try it by hand. Then put a name from the checker's table in place "
            "of None, and run the cell again.",
        )
    guesses = guess if isinstance(guess, (list, tuple, set)) else [guess]
    named = {re.sub(r"[\s_]+", "-", str(one).strip().lower()) for one in guesses}
    unknown = sorted(slug for slug in named if slug not in ENTRIES)
    if unknown:
        return _no_such_name(name, unknown[0])
    if by is None:
        a_module = inspect.isclass(subject) or isinstance(subject, nn.Module)
        by = check.multi_head_attention if a_module else check.attention
    report = by(subject, **options)
    mistakes = [found for found in report.findings if found.severity == "mistake"]
    if not mistakes:
        return report
    true = {found.slug for found in mistakes}
    if named == true:
        notes = tuple(Finding(**vars(found) | {"severity": "note"}) for found in report.findings)
        return Report(name, notes, report.checks, report.reading, said="your diagnosis is right")
    return _other_name(name, named, true, mistakes)


def _no_such_name(subject: str, guess: str) -> Report:
    like = difflib.get_close_matches(guess, ENTRIES, 3, 0.5)
    text = f"did you mean {', '.join(like)}?" if like else ""
    found = Finding(
        "diagnosis-unknown", "mistake", f"There is no mistake named {guess}", text,
        "The names are those of the checker's table, in the appendix.",
    )  # fmt: skip
    return Report(subject, (found,), said="no such name")


def _other_name(subject: str, named: set, true: set, mistakes: list[Finding]) -> Report:
    """What the wrong names would mean, and the hint of the first mistake that was not named."""
    wrong, missed = sorted(named - true), [f for f in mistakes if f.slug not in named]
    lines = [f"{slug} would mean: {ENTRIES[slug].title}" for slug in wrong]
    if named & true:
        lines.insert(0, f"{' and '.join(sorted(named & true))}: right")
    title = "There is more than that" if not wrong else "It is another mistake"
    found = Finding(
        "diagnosis-other", "mistake", title, "\n".join(lines),
        "The check was asked, and does not find what you named." if wrong
        else "The check finds what you named, and something else.",
        hint=missed[0].hint if missed else "What you named first explains it all.",
    )  # fmt: skip
    return Report(subject, (found,), said="not yet right")


# --- functions


def function(
    fn: Callable,
    reference: Callable,
    *cases: tuple,
    close: float = 1e-6,
    mistakes: dict[str, Callable] | None = None,
    seconds: float = 10.0,
) -> Report:
    """Compare a function with right code, on one case after another.

    Args:
        fn: the learner's function.
        reference: right code for the same task, which takes the same arguments.
        cases: tuples of arguments; each call gets copies of its own.
        close: tolerance, relative to the largest number of a result.
        mistakes: what a likely mistake is, in a few words -> a function that makes it.
        seconds: after which the learner's code is cut off.
    Returns: a Report.
    Errors: ValueError without any case.

    Examples:
        >>> import mha
        >>> report = mha.check.function(
        ...     lambda row: sum(row) / (len(row) - 1),
        ...     lambda row: sum(row) / len(row),
        ...     ([1.0, 2.0, 6.0],),
        ...     mistakes={"it divides by one too few": lambda row: sum(row) / (len(row) - 1)},
        ... )
        >>> report.ok, report.findings[0].title
        (False, 'It divides by one too few')
    """
    if not cases:
        raise ValueError("cases must hold at least one tuple of arguments")
    name = getattr(fn, "__name__", type(fn).__name__)
    results, checks, found = [], [], None
    with Guard(fn, seconds=seconds) as guard:
        for case in cases:
            given, expected = fresh(case), reference(*fresh(case))
            try:
                results.append(guard.call(fn, *given))
            except Stopped as stopped:
                found = stopped.finding()
                break
            off = difference(results[-1], expected, close)
            checks.append(Check(_call(name, case), not off))
            if off:
                found = _differs(_call(name, case), results[-1], expected, off)
                break
    if found is not None and found.slug == "differs":
        found = _known(found, cases, results, close, mistakes or {})
    reading = (guard.unprotected,) if guard.unprotected else ()
    report = Report(name, (found,) if found else (), tuple(checks), reading)
    return or_your_turn(report, fn)


def _differs(call: str, yours, right, off: str) -> Finding:
    if yours is None:
        return finding("returns-nothing", f"{call} returned None")
    lines = [call, f"  yours: {shown(yours)}", f"  right: {shown(right)}", off]
    return Finding(
        "differs", "mistake", "The result is another than it should be", "\n".join(lines),
        "This is the first case that differs; what comes before it is right.",
        hint="Compute that case by hand, line by line, and compare after each.",
    )  # fmt: skip


def _known(found: Finding, cases, results, close: float, mistakes: dict) -> Finding:
    """The finding with the words for a mistake that gives all of these results."""
    for words, wrong in mistakes.items():
        tried = zip(cases, results, strict=False)
        if all(not difference(yours, wrong(*fresh(case)), close) for case, yours in tried):
            title = words[:1].upper() + words[1:]
            text = "Right code with this one mistake gives your result."
            return Finding(**vars(found) | {"title": title, "explanation": text})
    return found


def _call(name: str, case: tuple) -> str:
    text = f"{name}({', '.join(map(shown, case))})"
    return text if len(text) <= SHORT else f"{name}({', '.join(_kind(x) for x in case)})"


def _kind(x) -> str:
    shape = getattr(x, "shape", None)
    return type(x).__name__ if shape is None else f"{type(x).__name__} {tuple(shape)}"


def fresh(x):
    """A copy that a function may change; tensors keep whether they require a gradient."""
    if isinstance(x, Tensor):
        return x.detach().clone().requires_grad_(x.requires_grad)
    if isinstance(x, (list, tuple)):
        return type(x)(fresh(part) for part in x) if type(x) in (list, tuple) else copy.deepcopy(x)
    return x if callable(x) and not isinstance(x, nn.Module) else copy.deepcopy(x)


# --- values


def difference(yours, right, close: float) -> str:
    """Where two values differ first, in words; "" where they agree."""
    if isinstance(right, (Tensor, np.ndarray)):
        return _tensors_differ(yours, right, close)
    if isinstance(right, (bool, np.bool_)):
        same = isinstance(yours, (bool, np.bool_, Tensor)) and bool(yours) == bool(right)
        return "" if same else "the answer is another one: True or False"
    if _is_number(right):
        value = yours.item() if isinstance(yours, Tensor) and yours.numel() == 1 else yours
        if not _is_number(value):
            return f"a number is asked for, and yours is of type {type(yours).__name__}"
        same = math.isclose(value, right, rel_tol=close, abs_tol=1e-12)
        return "" if same or value == right or value != value and right != right else "they differ"
    if isinstance(right, (list, tuple)):
        return _sequences_differ(yours, right, close)
    if isinstance(right, dict) and isinstance(yours, dict):
        for key in [*right, *yours]:
            if (key in yours) != (key in right):
                return f"{key!r} is {'missing' if key in right else 'too many'}"
            off = difference(yours[key], right[key], close)
            if off:
                return f"at {key!r}: {off}"
        return ""
    return "" if type(yours) is type(right) and yours == right else "they differ"


def _tensors_differ(yours, right, close: float) -> str:
    right = torch.as_tensor(right).detach()
    try:
        yours = torch.as_tensor(yours).detach()
    except (TypeError, ValueError, RuntimeError):
        return f"a tensor is asked for, and yours is of type {type(yours).__name__}"
    if yours.shape != right.shape:
        return f"your shape is {tuple(yours.shape)}, right is {tuple(right.shape)}"
    if near(yours, right, close):
        return ""
    size = float(right.double().nan_to_num().abs().max()) if right.numel() else 0.0
    gap = (yours.double() - right.double()).abs().nan_to_num(nan=torch.inf)
    at = (gap > close * max(size, 1e-30)).nonzero()
    if yours.ndim == 0 or not len(at):
        return "they differ"
    place = tuple(at[0].tolist())
    mine, wanted = (number(float(x[place])) for x in (yours, right))
    return f"at [{', '.join(map(str, place))}]: yours {mine}, right {wanted}"


def _sequences_differ(yours, right, close: float) -> str:
    if isinstance(yours, (Tensor, np.ndarray)):
        yours = yours.tolist()
    if not isinstance(yours, (list, tuple)):
        return f"several values are asked for, and yours is of type {type(yours).__name__}"
    if len(yours) != len(right):
        return f"yours holds {len(yours)} values, right are {len(right)}"
    for place, (mine, wanted) in enumerate(zip(yours, right, strict=True)):
        off = difference(mine, wanted, close)
        if off:
            return f"at place {place}: {off}"
    return ""


def shown(x) -> str:
    """A value in few characters."""
    if isinstance(x, (Tensor, np.ndarray)):
        return show(torch.as_tensor(x).detach())
    if _is_number(x):
        return number(x) if isinstance(x, (float, np.floating)) and math.isfinite(x) else str(x)
    x = tuple(x) if isinstance(x, torch.Size) else x
    if isinstance(x, (list, tuple)) and any(
        isinstance(part, (Tensor, np.ndarray, float)) for part in x
    ):
        return f"({', '.join(map(shown, x))})"
    text = x.__name__ if callable(x) and hasattr(x, "__name__") else repr(x)
    if " at 0x" in text:
        text = type(x).__name__
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"
