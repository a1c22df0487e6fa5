"""The catalogue: every mistake is there, in words that fit, with a place in the book."""

import json
import re
from pathlib import Path

import pytest

from mha.check.catalogue import ENTRIES, finding
from mha.check.report import place

CHAPTERS = Path(__file__).resolve().parents[2] / "chapters"
MISTAKES = """
scale-model-dim scale-missing scale-multiplied scale-linear
split-no-transpose merge-no-transpose split-and-merge-wrong split-dim-major merge-dim-major
batch-mixed heads-summed heads-ignored softmax-queries softmax-heads scores-transposed
mask-inverted mask-ignored mask-after-softmax mask-multiplied mask-added-bool mask-fill-small
mask-nan mask-half-overflow pad-query-axis dead-row-nan dead-row-uniform
causal-upper causal-strict causal-leak-one causal-top-left
kv-swapped qk-shared kv-shared qkv-shared cross-self cross-reversed head-weights-shared
out-proj-missing bias-missing gqa-tiled
dropout-in-eval dropout-on-scores dropout-unscaled weights-after-dropout
not-differentiable dtype-leak device-buffer
""".split()
OTHERS = """
exception timeout memory exit unknown ambiguous question wrong-shape wrong-dtype not-finite
weights-wrong weights-not-parameters scale-other
""".split()
each_entry = pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))


def headings(page: str) -> dict[str, str]:
    """Anchor -> heading of a chapter, as docutils makes anchors."""
    cells = json.loads((CHAPTERS / f"{page}.ipynb").read_text(encoding="utf8"))["cells"]
    found = {}
    for cell in cells:
        if cell["cell_type"] == "markdown":
            for line in re.findall(r"^#+ +(.+?) *$", "".join(cell["source"]), re.M):
                text = re.sub(r"[$`]", "", line)
                found[re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-0123456789")] = text
                found[re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")] = text
    return found


def test_every_mistake_has_an_entry():
    assert set(MISTAKES) | set(OTHERS) <= set(ENTRIES)
    assert all(slug == entry.slug for slug, entry in ENTRIES.items())


@each_entry
def test_an_entry_says_what_happens_in_few_words(entry):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry.slug)
    assert 10 <= len(entry.title) <= 70 and entry.title[0].isupper()
    assert not entry.title.endswith(".")
    sentences = re.findall(r"[.!?](?= |$)", entry.explanation)
    assert 2 <= len(sentences) <= 5 and entry.explanation[-1] in ".!?"
    assert len(entry.explanation) < 420
    assert entry.hint and entry.hint[-1] in ".!?" and len(entry.hint) < 160
    for text in (entry.title, entry.explanation, entry.hint):
        assert text == " ".join(text.split()) and "\u2014" not in text


def test_no_two_entries_have_one_title():
    titles = [entry.title for entry in ENTRIES.values()]
    assert len(set(titles)) == len(titles)


@each_entry
def test_the_place_in_the_book_exists_and_is_named_as_there(entry):
    folder, page, anchor = re.fullmatch(r"(chapters)/([\w-]+)#([a-z0-9-]+)", entry.chapter).groups()
    found = headings(page)
    assert anchor in found, sorted(found)
    heading = found[anchor].replace('"', "'")
    assert place(entry.chapter).endswith(f', "{heading}"')


def test_a_finding_takes_the_words_of_its_entry_or_others():
    entry = ENTRIES["mask-ignored"]
    found = finding("mask-ignored", "nothing moved")
    assert (found.slug, found.severity, found.evidence) == (
        "mask-ignored",
        "mistake",
        "nothing moved",
    )
    assert (found.title, found.explanation) == (entry.title, entry.explanation)
    assert (found.chapter, found.hint) == (entry.chapter, entry.hint)
    assert finding("dead-row-nan", "", "note", title="Other").title == "Other"


def test_wrong_names_are_refused():
    with pytest.raises(KeyError, match="no-such"):
        finding("no-such")
    with pytest.raises(ValueError, match="severity"):
        finding("mask-ignored", "", "warning")
    with pytest.raises(TypeError):
        finding("mask-ignored", colour="red")
