"""The command line: python -m mha.check FILE:NAME."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from mha.check import __main__ as command

LESSON = """
import math
import os
import sys

import torch

print("the file speaks")


def right(query, key, value, mask=None):
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ value


def unscaled(query, key, value, mask=None):
    scores = query @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ value


def leaves(query, key, value, mask=None):
    os._exit(0)


def split_heads(x, num_heads):
    B, T, E = x.shape
    return x.view(B, T, num_heads, E // num_heads).transpose(1, 2)


number = 3
_hidden = 4

if __name__ == "__main__":
    raise SystemExit("run as a script")
"""


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "lesson.py"
    path.write_text(LESSON)
    yield path
    sys.modules.pop("lesson", None)


def inside(target, *options: str) -> tuple[int, str]:
    """Exit status and text of the part that runs in a process of its own, run in this one."""
    result = target_folder(target) / "result.json"
    code = command.main([str(target), "--inside", str(result), *options])
    found = json.loads(result.read_text())
    assert found["code"] == code
    return code, found["text"]


def target_folder(target):
    return command.Path(str(target).rpartition(":")[0]).parent


# --- the command itself


def test_a_path_that_is_none_is_refused(tmp_path, capsys):
    assert command.main([str(tmp_path / "nothing.py:f")]) == 2
    said = capsys.readouterr()
    assert "there is no file" in said.err and "FILE:NAME" in said.err and not said.out


def test_a_notebook_is_refused(tmp_path, capsys):
    (tmp_path / "lesson.ipynb").write_text("{}")
    assert command.main([str(tmp_path / "lesson.ipynb:f")]) == 2
    assert "no Python file" in capsys.readouterr().err


def test_without_a_name_the_names_are_offered_and_nothing_runs(lesson, capsys):
    for target in (str(lesson), f"{lesson}:", f"{lesson}:3x"):
        status = command.main([target])
        said = capsys.readouterr()
        assert status == 2 and "the file speaks" not in said.out
    assert command.main([str(lesson)]) == 2
    said = capsys.readouterr().err
    assert "It has right, unscaled, leaves, split_heads, number." in said


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_that_is_none_is_refused(lesson, seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([f"{lesson}:right", f"--seconds={seconds}"])
    assert ended.value.code == 2
    assert "--seconds" in capsys.readouterr().err


def test_names_are_guessed_by_kind_and_name():
    class Attention(nn.Module):
        pass

    class KVCache:
        pass

    def anything():
        pass

    for name, subject, what in [
        ("Attention", Attention, "multi_head_attention"),
        ("attention", Attention(), "multi_head_attention"),
        ("CachedAttention", Attention, "multi_head_attention"),
        ("KVCache", KVCache, "kv_cache"),
        ("scaled_dot_product_attention", anything, "attention"),
        ("split_heads", anything, "split_heads"),
        ("splitHeads2", anything, "split_heads"),
        ("my_merge_heads", anything, "merge_heads"),
        ("make_causal_mask", anything, "causal_mask"),
        ("causal_attention", anything, "attention"),
        ("pad_mask", anything, "padding_mask"),
        ("sinusoidal", anything, "positional_encoding"),
        ("gqa", anything, "grouped_query_attention"),
        ("flash", anything, "flash_attention"),
        ("softmax", anything, "softmax"),
        ("masked_softmax", anything, "attention"),
        ("number", 3, None),
    ]:
        assert command.guess(name, subject) == what, name


def test_every_check_that_can_be_named_exists():
    for what in command.WHAT:
        assert callable(getattr(command.mha.check, what))


# --- the part inside


def test_inside_right_code_passes_and_a_mistake_is_named(lesson):
    code, text = inside(f"{lesson}:right")
    assert code == 0 and "no mistake found" in text and "Taken for attention" in text
    code, text = inside(f"{lesson}:unscaled", "--what", "attention")
    assert code == 1 and "[scale-missing]" in text and "Taken for" not in text
    assert "\033" not in text
    assert "\033[1;31m" in inside(f"{lesson}:unscaled", "--color")[1]


def test_inside_an_exercise_is_told_by_its_name(lesson):
    code, text = inside(f"{lesson}:split_heads")
    assert code == 0 and "Taken for split_heads" in text


def test_inside_a_name_that_is_not_there(lesson):
    code, text = inside(f"{lesson}:unscald")
    assert code == 2 and "has no unscald" in text and "Did you mean unscaled?" in text
    code, text = inside(f"{lesson}:number")
    assert code == 2 and "neither a class nor a function" in text


def test_inside_masks_go_only_where_there_are_masks(lesson):
    assert inside(f"{lesson}:right", "--mask", "attend")[0] == 0
    code, text = inside(f"{lesson}:split_heads", "--mask", "block")
    assert code == 2 and "--mask does not go with split_heads" in text
    code, text = inside(f"{lesson}:right", "--what", "causal_mask", "--mask", "additive")
    assert code == 2 and 'must be "attend" or "block"' in text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\ny = xx\n", "NameError: name 'xx' is not defined"),
        ("def f(:\n", "SyntaxError"),
        ("import sys\nsys.exit(3)\n", "ended the program when it was run, with 3"),
        ("input()\n", "Error"),
    ],
)
def test_inside_a_file_that_does_not_run(tmp_path, monkeypatch, source, said):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "broken.py"
    path.write_text(source)
    code, text = inside(f"{path}:f")
    assert code == 1 and said in text and "__main__.py" not in text
    sys.modules.pop("broken", None)


def test_inside_a_failing_checker_gives_no_verdict(lesson, monkeypatch):
    def broken(fn, *, mask=None, seconds=1.0):
        raise RuntimeError("a slip")

    monkeypatch.setattr(command.mha.check, "attention", broken)
    code, text = inside(f"{lesson}:right")
    assert code == 3 and "checker itself failed" in text and "a slip" in text


def test_a_file_named_like_a_module_does_not_replace_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "torch.py"
    path.write_text(LESSON)
    assert inside(f"{path}:right")[0] == 0
    assert sys.modules["torch"] is torch
    sys.modules.pop("torch of the learner")


# --- both processes


@pytest.mark.slow
def test_the_whole_command(lesson):
    ran = subprocess.run(
        [sys.executable, "-m", "mha.check", f"{lesson}:unscaled"], capture_output=True, text=True
    )
    assert ran.returncode == 1, ran.stderr
    first, rest = ran.stdout.split("\n", 1)
    assert first == f"Executing {lesson} in a process of its own, which is killed after 30 s."
    assert "the file speaks" in rest and "[scale-missing]" in rest and "\033" not in rest
    assert [path.name for path in lesson.parent.iterdir()] == ["lesson.py"]


@pytest.mark.slow
def test_code_that_ends_the_process_gets_no_pass(lesson, capfd):
    assert command.main([f"{lesson}:leaves"]) == 1
    said = capfd.readouterr().out
    assert "ended with status 0, while your code was checked, and left no report" in said


@pytest.mark.slow
def test_a_file_without_end_is_killed_with_all_it_started(tmp_path, capfd):
    path = tmp_path / "endless.py"
    path.write_text(
        "import os, pathlib, subprocess, sys\n"
        "sleeper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(sleeper.pid))\n"
        "while True:\n"
        "    try:\n"
        "        sum(range(100))\n"
        "    except BaseException:\n"
        "        pass\n"
    )
    assert command.main([f"{path}:f", "--seconds", "15"]) == 1
    assert f"Killed after 15 s, while {path} was run" in capfd.readouterr().out
    state = command.Path("/proc", (tmp_path / "pid").read_text(), "stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"
