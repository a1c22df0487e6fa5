"""The script of the quiz in a real browser: what a reader does, and what the page then says."""

import json
import re
import shutil
import subprocess

import pytest
from bookfiles import ROOT

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(
    BROWSER is None,
    reason="needs a browser: apt-get install chromium, or google-chrome on the PATH",
)
QUESTION = """<p><strong>Question {n}.</strong> Two and two?</p>
<ol><li><p>Three, <code>or so</code></p></li><li>Four</li><li>Five</li><li>Six</li></ol>
<details class="quiz"><summary>Answers</summary>
<ol><li><p>No. Too few.</p></li><li><strong>Right.</strong> Count.</li><li>No, 5.</li><li>No, 6.</li></ol>
</details>"""
BROKEN = """<p>Not a question</p><details class="quiz"><summary>Answers</summary><ol><li>A</li></ol></details>"""


def told(tmp_path, body: str, actions: str):
    """What ``actions``, statements that fill ``out``, find on a page with the script."""
    script = (ROOT / "chapters/_static/quiz.js").as_uri()
    page = tmp_path / "page.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><body>{body}<script src="{script}"></script>'
        '<pre id="out"></pre><script>addEventListener("load", () => { const out = {};'
        'const forms = [...document.querySelectorAll("form")];'
        "const choose = (form, i) => form.querySelectorAll('input')[i].click();"
        "const check = (form) => form.querySelector('button').click();"
        "const said = (form) => form.querySelector('[role=status]').textContent;"
        f'{actions}; document.getElementById("out").textContent = JSON.stringify(out); }});</script>',
        encoding="utf8",
    )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return json.loads(re.search(r'<pre id="out">(.*?)</pre>', dom, re.S)[1])


@needs_browser
def test_a_choice_is_answered_by_its_own_explanation(tmp_path):
    actions = """
      choose(forms[0], 0); check(forms[0]); out.wrong = said(forms[0]);
      out.hidden = document.querySelector("details").hidden;
      choose(forms[0], 2); out.cleared = said(forms[0]);
      choose(forms[0], 1); check(forms[0]); out.right = said(forms[0]);
      out.open = !document.querySelector("details").hidden;
      out.second = said(forms[1])"""
    found = told(tmp_path, QUESTION.format(n=1) + QUESTION.format(n=2), actions)
    assert found == {
        "wrong": "No. Too few.", "hidden": True, "cleared": "", "right": "Right. Count.",
        "open": True, "second": "",
    }  # fmt: skip


@needs_browser
def test_a_question_is_a_group_that_a_screen_reader_names(tmp_path):
    actions = """
      const group = forms[1].querySelector("fieldset");
      out.legend = group.querySelector("legend").textContent;
      out.labels = [...group.querySelectorAll("label")].map((l) => l.textContent);
      out.radios = [...group.querySelectorAll("input")].map((i) => i.type + i.name);
      out.role = forms[1].querySelector(".quiz-said").getAttribute("role");
      check(forms[1]); out.none = said(forms[1])"""
    found = told(tmp_path, QUESTION.format(n=1) + QUESTION.format(n=2), actions)
    assert found["legend"] == "Question 2. Two and two?"
    assert found["labels"] == ["Three, or so", "Four", "Five", "Six"]
    assert len(set(found["radios"])) == 1 and found["radios"][0].startswith("radio")
    assert found["role"] == "status" and found["none"] == "Choose one of the four first."


@needs_browser
def test_what_is_no_question_stays_as_it_was(tmp_path):
    actions = 'out.forms = forms.length; out.hidden = document.querySelector("details").hidden'
    assert told(tmp_path, BROKEN, actions) == {"forms": 0, "hidden": False}
