"""The online softmax: the script's states are those of `mha.flash`, its end that of the definition."""

import numpy as np
import pytest
from lessons import close, opened, said, slide, values

from mha import reference
from mha.flash import rows
from mha.viz import lessons


@pytest.mark.parametrize("block", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(2))
def test_every_state_is_that_of_the_package(page, tmp_path, block, seed):
    drawn = np.random.default_rng(seed).normal(size=9).round(2).tolist()
    lesson = lessons.OnlineSoftmax(drawn, seed=seed)
    figure = opened(page, lesson, tmp_path)
    scores, v = np.array(lesson.state["scores"]), np.array(lesson.state["values"])
    states = rows.online_softmax(scores, v, block=block)
    for done, state in enumerate(states):
        found = values(figure, block=block, done=done)
        assert found["tiles"] == len(states) - 1 and found["now"] == done
        close(found["state"]["maximum"], state.maximum)
        close(found["state"]["total"], state.total)
        close(found["state"]["output"], state.output)
        close(found["average"], state.average)
    close(found["row"], reference.softmax(scores))
    close(found["exact"], reference.softmax(scores) @ v)
    close(found["average"], found["exact"])


def test_each_average_is_the_exact_attention_to_the_keys_met(page, tmp_path):
    lesson = lessons.OnlineSoftmax([1.0, 5.0, 2.0, 9.0, 0.0], [[1.0], [2.0], [3.0], [4.0], [5.0]])
    figure = opened(page, lesson, tmp_path)
    for done, met in ((1, 2), (2, 4), (3, 5)):
        found = values(figure, done=done)
        assert found["met"] == met
        scores, v = np.array(lesson.state["scores"][:met]), np.array(lesson.state["values"][:met])
        close(found["average"], reference.softmax(scores) @ v)


def test_a_reader_steps_through_the_tiles(page, tmp_path):
    figure = opened(page, lessons.OnlineSoftmax(), tmp_path)
    slide(figure, "tiles read", "Home")
    assert said(figure).startswith("0 of 8 keys met: maximum −∞, sum 0.000")
    slide(figure, "tiles read", "ArrowRight", 4)
    assert "which is the exact row" in said(figure)
    shown = figure.get_by_role("row", name="value 0").last.get_by_role("cell").all_inner_texts()
    assert shown[0] == shown[1]
    figure.get_by_role("radio", name="4", exact=True).click()
    slide(figure, "tiles read", "End")
    assert (
        figure.get_by_role("slider", name="tiles read").get_attribute("aria-valuetext") == "2 of 2"
    )
    assert "which is the exact row" in said(figure)
