"""The checker on the command line.

    python -m mha.check lesson.py:MyAttention
    python -m mha.check lesson.py:split_heads --what split_heads

The file is executed, in a process of its own that is killed after a time. The exit status is 0 if
no mistake was found, 1 for a mistake, 2 if the command is wrong, and 3 if the checker itself fails.
"""

import argparse
import ast
import contextlib
import difflib
import importlib.util
import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from torch import nn

import mha.check

EXERCISES = {  # what a name must hold, without case and underscores, to be taken for one
    "split_heads": "splitheads",
    "merge_heads": "(merge|combine|join)heads",
    "causal_mask": "causalmask",
    "padding_mask": "pad(ding)?mask",
    "positional_encoding": "positionalencoding|sinusoid",
    "grouped_query_attention": "groupedquery|gqa",
    "flash_attention": "flash",
    "softmax": "^(my|stable)?softmax$",
}
WHAT = ("multi_head_attention", "attention", *EXERCISES, "kv_cache")
MASKS = ("attend", "block", "additive")
OK, MISTAKE, USAGE, BROKEN = 0, 1, 2, 3
SHARE = 2 / 3  # of the time for the check; the rest is for imports and for the file itself


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        path, name = _target(options.target)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return USAGE
    if options.inside:
        return _inside(options, path, name)
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack a sign, such as a tick
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")
    print(
        f"Executing {path} in a process of its own, which is killed after {options.seconds:g} s.",
        "Check only files that you trust: their code can do whatever you can.",
        sep="\n",
        flush=True,
    )
    return _outside(options, path, name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mha.check",
        description="Examine attention that you wrote, and name the mistake in it. Executes FILE.",
        epilog="Exit status: 0 no mistake found, 1 a mistake, 2 a wrong command, 3 the checker "
        "itself failed.",
    )
    parser.add_argument("target", metavar="FILE:NAME", help="a class, function or instance in FILE")
    parser.add_argument(
        "--what",
        choices=WHAT,
        metavar="WHAT",
        help="what NAME is meant to be, by default told from its name: " + ", ".join(WHAT),
    )
    parser.add_argument("--mask", choices=MASKS, help="what True, or a number, means in its masks")
    parser.add_argument(
        "--seconds", type=_seconds, default=30.0, help="the time it may take, in all (default: 30)"
    )
    parser.add_argument("--inside", metavar="RESULT", help=argparse.SUPPRESS)
    parser.add_argument("--color", action="store_true", help=argparse.SUPPRESS)
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text}")
    return seconds


def _target(text: str) -> tuple[Path, str]:
    """The file and the name. Errors: ValueError that says what is missing."""
    file, colon, name = text.rpartition(":")
    if not colon or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        file, name = text, ""  # a path alone, perhaps with a drive letter
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no file {file!r}; write FILE:NAME, as in lesson.py:MyAttention")
    if path.suffix != ".py":
        raise ValueError(f"{file!r} is no Python file (.py); in a notebook call mha.check itself")
    if not name:
        raise ValueError(f"say which class or function: {file}:NAME. {_offer(path)}")
    return path, name


def _offer(path: Path, wanted: str = "") -> str:
    """The names at the top level of a file, which is read and not run."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):
        return f"{path} is no valid Python."
    names = []
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    names = list(dict.fromkeys(name for name in names if not name.startswith("_")))
    if not names:
        return "It has no names at its top level."
    close = difflib.get_close_matches(wanted, names, 1)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{meant}It has {', '.join(names)}."


# --- the process that waits


def _outside(options, path: Path, name: str) -> int:
    """Run the check in a process of its own, print what it found, return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [sys.executable, "-m", "mha.check", "--inside", str(result)]
        command += ["--seconds", str(options.seconds)]
        command += ["--what", options.what] if options.what else []
        command += ["--mask", options.mask] if options.mask else []
        command += ["--color"] if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else []
        child = subprocess.Popen(
            [*command, "--", f"{path}:{name}"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},  # nothing appears beside the file
        )
        try:
            code = child.wait(options.seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(child)
        found = json.loads(result.read_text(encoding="utf8")) if result.exists() else {}
    if "text" in found:
        print(found["text"])
        return found["code"]
    print(_unfinished(found.get("phase"), code, options.seconds, path))
    return MISTAKE if "phase" in found else BROKEN


def _kill(child: subprocess.Popen) -> None:
    """End a process and what it started, unless it has ended."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(child.pid, signal.SIGKILL)  # it leads a group of its own
            else:
                child.kill()
        child.wait()


def _unfinished(phase: str | None, code: int | None, seconds: float, path: Path) -> str:
    """What is said of a process that left no report."""
    during = {
        "file": f"while {path} was run",
        "check": "while your code was checked",
        None: "before your file was run",
    }[phase]
    if code is None:
        return (
            f"Killed after {seconds:g} s, {during}.\nLook for a loop that never ends, or allow "
            "more time with --seconds."
        )
    how = f"by signal {-code}" if code < 0 else f"with status {code}"
    return f"The process ended {how}, {during}, and left no report."


# --- the process that runs the file


def _inside(options, path: Path, name: str) -> int:
    """Run the file and the check; the outcome goes into the file ``options.inside``."""
    result = Path(options.inside)

    def tell(**outcome) -> None:
        part = result.with_suffix(".part")
        part.write_text(json.dumps(outcome), encoding="utf8")
        part.replace(result)

    tell(phase="file")
    code, text = BROKEN, ""
    try:
        code, text = _examine(options, path, name, tell)
    except Exception:
        text = (
            f"The checker itself failed. This is no verdict on your code.\n{traceback.format_exc()}"
        )
    tell(code=code, text=text.rstrip())
    return code


def _examine(options, path: Path, name: str, tell) -> tuple[int, str]:
    """The exit status and the text to print."""
    try:
        module = _load(path)
    except KeyboardInterrupt:
        raise
    except SystemExit as ended:
        return MISTAKE, f"{path} ended the program when it was run, with {ended.code!r}."
    except BaseException as error:
        return MISTAKE, f"{path} ended in an error when it was run.\n{_traceback(error, path)}"
    try:
        subject = module
        for part in name.split("."):
            subject = getattr(subject, part)
    except AttributeError:
        return USAGE, f"{path} has no {name}. {_offer(path, name)}"
    what = options.what or guess(name.rpartition(".")[2], subject)
    if what is None:
        return USAGE, f"{name} is neither a class nor a function, it is of {type(subject)}."
    check = getattr(mha.check, what)
    takes = inspect.signature(check).parameters
    seconds = float(f"{options.seconds * SHARE:.2g}")
    given = {"seconds": seconds} if "seconds" in takes else {}
    if options.mask:
        if "mask" not in takes:
            return USAGE, f"--mask does not go with {what}, which is given no mask."
        given["mask"] = options.mask
    tell(phase="check")
    try:
        report = check(subject, **given)
    except ValueError as refused:
        if not str(refused).startswith("mask must be"):
            raise
        return USAGE, f"--mask does not go with {what} so: {refused}."
    told = "" if options.what else f"Taken for {what}; say --what if it is something else.\n"
    return (OK if report.ok else MISTAKE), f"{told}\n{report.text(options.color)}".lstrip("\n")


def _load(path: Path):
    """The module that a file makes, run as an import and not as a script."""
    path = path.resolve()
    sys.path.insert(0, str(path.parent))
    name = path.stem if path.stem not in sys.modules else f"{path.stem} of the learner"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _traceback(error: BaseException, path: Path) -> str:
    """The traceback from the first line of the file on."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != str(path.resolve()):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def guess(name: str, subject) -> str | None:
    """Which check fits a subject, by its kind and its name; None if it cannot be checked."""
    plain = re.sub(r"[^a-z]", "", name.lower())
    if isinstance(subject, nn.Module):
        return "multi_head_attention"
    if isinstance(subject, type):
        module = issubclass(subject, nn.Module) or "cache" not in plain
        return "multi_head_attention" if module else "kv_cache"
    if not callable(subject):
        return None
    for check, pattern in EXERCISES.items():
        if re.search(pattern, plain):
            return check
    return "attention"


if __name__ == "__main__":
    sys.exit(main())
