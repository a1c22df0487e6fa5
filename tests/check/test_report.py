"""Reports: what stands in them, as text and as HTML, whatever a learner's text holds."""

import copy
import re

import pytest
from bs4 import BeautifulSoup

from mha.check.report import Check, Finding, Report, link, place

NASTY = '<script>alert("1")</script> & \x1b[31mred\x07 \u202e "quoted" \'so\''
MISTAKE = Finding(
    "mask-ignored",
    "mistake",
    "The mask has no effect",
    "all outputs are equal\nquery 0:\n  yours [1.0 2.0]\n  right [3.0 4.0]",
    "Outputs are the same with `mask` and without.",
    "chapters/05-4-masks#how-a-mask-enters",
    "Follow the mask.",
)
NOTE = Finding("dead-row-nan", "note", "A dead row gives NaN", chapter="chapters/09-faq")
CHECKS = (
    Check("one row for each query", True),
    Check("the future moves no past output", False, "moved by 0.38", ("mask-ignored",)),
    Check("half precision", None, "no product in float16 here"),
)
REPORT = Report("MyMHA", (NOTE, MISTAKE), CHECKS, ("mask: True = may attend",))


def soup(report: Report) -> BeautifulSoup:
    return BeautifulSoup(report._repr_html_(), "html.parser")


def test_only_a_mistake_makes_a_report_fail():
    assert not REPORT.ok
    assert Report("f", (NOTE,), CHECKS).ok  # a failed line with no finding is told, not judged
    assert Report("f").ok


def test_the_headline_counts_each_kind():
    def head(*slugs):
        return Report("f", tuple(Finding(slug, "mistake", "T") for slug in slugs)).headline

    assert REPORT.headline == "1 mistake, 1 note"
    assert Report("f").headline == "no mistake found"
    assert Report("f", (NOTE, NOTE)).headline == "no mistake found, 2 notes"
    assert head("mask-ignored", "mask-nan", "question") == "2 mistakes, 1 question"
    assert head("exception") == "1 error"
    assert head("timeout") == "stopped"


def test_text_has_findings_then_reading_then_checks():
    assert str(REPORT) == repr(REPORT) == REPORT.text()
    assert (
        str(REPORT)
        == """\
MyMHA: 1 mistake, 1 note

✗ Mistake: The mask has no effect [mask-ignored]
      all outputs are equal
      query 0:
        yours [1.0 2.0]
        right [3.0 4.0]
  Outputs are the same with `mask` and without.
  Hint: Follow the mask.
  Read: chapter 5.4, "How a mask enters"

• Note: A dead row gives NaN [dead-row-nan]
  Read: chapter 9

How your code was read
  mask: True = may attend

3 checks: 1 passed, 1 failed, 1 not tried
  ✓ passed     one row for each query
  ✗ failed     the future moves no past output  moved by 0.38
  – not tried  half precision                   no product in float16 here"""
    )


def test_colors_are_there_only_when_asked_for():
    assert "\033" not in str(REPORT)
    colored = REPORT.text(color=True)
    assert re.sub(r"\033\[[0-9;]*m", "", colored) == str(REPORT)
    assert colored.count("\033[0m") == colored.count("\033[") / 2 > 5


def long(text: str) -> Report:
    found = Finding("unknown", "mistake", text, f"{text}\n  {text}", text, "", text)
    return Report(text, (found,), (Check(text, False, text), Check("x", None, text)), (text,))


@pytest.mark.parametrize(
    "text", ["word " * 99, "W" * 333, "注意力" * 99, "a-b/c" * 50, "e\u0301" * 200]
)
def test_no_line_of_text_is_wider_than_a_hundred_columns(text):
    for line in str(long(text)).split("\n"):
        assert sum(2 if c > "\u2e7f" else 0 if c == "\u0301" else 1 for c in line) <= 100
        assert line == line.rstrip()


def test_no_word_is_lost_when_lines_are_broken():
    text = " ".join(f"word{i}" for i in range(80))
    assert str(long(text)).replace("\n", " ").split().count("word79") >= 6


def test_names_of_checks_break_between_words():
    name = "the numbers are those of multi-head attention with your own weights"
    lines = str(Report("f", (), (Check(name, True, "to the last digit"),))).split("\n")
    assert lines[-2:] == [
        "  ✓ passed     the numbers are those of multi-head attention with  to the last digit",
        "               your own weights",
    ]


def test_control_characters_of_a_learner_do_not_reach_the_terminal():
    text = str(long(NASTY))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    assert "red" in text


def test_html_escapes_everything():
    found = Finding(NASTY, "mistake", NASTY, f"{NASTY}\n  {NASTY}", NASTY, "", NASTY)
    checks = (Check(NASTY, False, NASTY, (NASTY,)),)
    page = soup(Report(NASTY, (found,), checks, (NASTY,)))
    assert not page.find_all(["script", "style", "img"])
    assert page.get_text().count('<script>alert("1")</script> & ') == 10
    assert "\x1b" not in page.get_text()
    assert not [key for tag in page.find_all() for key in tag.attrs if key.startswith("on")]


def test_html_says_in_words_what_symbols_and_colors_say():
    page = soup(REPORT)
    titles = [strong.get_text() for strong in page.find_all("strong")]
    assert titles[:3] == [
        "MyMHA: 1 mistake, 1 note",
        "Mistake: The mask has no effect",
        "Note: A dead row gives NaN",
    ]
    assert [row.td.get_text(" ", strip=True).split(" ", 1)[1] for row in page.tbody("tr")] == [
        "passed",
        "failed",
        "not tried",
    ]
    assert all(span["aria-hidden"] == "true" for span in page.find_all("span"))


def test_html_table_has_headers():
    table = soup(REPORT).table
    assert [th.get_text() for th in table.thead("th")] == ["Result", "Check", "Detail"]
    assert all(th["scope"] == "col" for th in table.thead("th"))
    assert all(row.th["scope"] == "row" for row in table.tbody("tr"))


def test_html_folds_the_checks_away_below_a_mistake():
    assert not soup(REPORT)("details")[-1].has_attr("open")
    assert soup(Report("f", (), CHECKS))("details")[-1].has_attr("open")
    summaries = [details.find("summary").get_text() for details in soup(REPORT)("details")]
    assert summaries == ["Hint", "3 checks: 1 passed, 1 failed, 1 not tried"]


def test_html_keeps_the_columns_of_an_example():
    page = soup(REPORT)
    assert page.pre.get_text() == "query 0:\n  yours [1.0 2.0]\n  right [3.0 4.0]"
    assert page.pre["tabindex"] == "0" and page.pre["aria-label"]
    assert [p.get_text() for p in page("p")].count("all outputs are equal") == 1
    assert page.find_all("code")[1].get_text() == "mask"


def test_html_takes_its_colors_from_the_page():
    styles = " ".join(tag.get("style", "") for tag in soup(REPORT).find_all())
    colors = set(re.findall(r"#[0-9a-f]{3,6}", styles))
    assert colors == {"#d0274f", "#6f7781"}  # the edges of findings, the same on light and dark
    assert re.findall(r"(?<!-)color:(\w+)", styles).count("inherit") == len(
        re.findall(r"(?<!-)color:(\w+)", styles)
    )


def test_links_lead_to_pages_of_the_book():
    assert [a["href"] for a in soup(REPORT)("a")] == [
        "05-4-masks.html#how-a-mask-enters",
        "09-faq.html",
    ]
    assert link("chapters/10-2-alignment#dead-rows") == "10-2-alignment.html#dead-rows"


def test_places_in_words():
    assert place("chapters/10-2-alignment#dead-rows") == 'chapter 10.2, "Dead rows"'
    assert place("chapters/03-algorithm") == "chapter 3"
    assert place("chapters/appendix-mistakes#the-table") == 'the appendix on mistakes, "The table"'
    assert place("chapters/05-2-first-head#padding-in-one-line").endswith('"Padding, in one line"')


def test_a_report_of_nothing():
    empty = Report("f")
    assert str(empty) == "f: no mistake found"
    assert not soup(empty)("table")


def test_reports_are_values():
    assert copy.deepcopy(REPORT) == REPORT and hash(REPORT) == hash(copy.copy(REPORT))
    with pytest.raises(AttributeError):
        REPORT.subject = "other"
