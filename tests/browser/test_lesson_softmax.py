"""Softmax and temperature: the script's numbers are those of `mha.reference`."""

import numpy as np
import pytest
from lessons import close, opened, said, shown, slide, values

from mha import reference
from mha.viz import lessons

SCORES = [[2.0, 1.0, 0.0, -1.0], [4.0, -4.0, 4.0, 0.5], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("exponent", [-3, -0.5, 0, 3])
def test_weights_entropy_and_slopes_are_those_of_the_definition(page, tmp_path, scores, exponent):
    found = values(opened(page, lessons.Softmax(), tmp_path), scores=scores, exponent=exponent)
    temperature = 2.0**exponent
    weights = reference.softmax(np.array(scores) / temperature)
    close(found["temperature"], temperature)
    close(found["weights"], weights)
    safe = np.where(weights > 0, weights, 1)
    close(found["entropy"], -(weights * np.log2(safe)).sum())
    rows = [reference.softmax_backward(weights, one) / temperature for one in np.eye(4)]
    close(found["gradient"], rows)


def test_a_reader_moves_a_score_and_the_temperature_by_keyboard(page, tmp_path):
    figure = opened(page, lessons.Softmax([1.0, 1.0]), tmp_path)
    assert shown(figure, ".mha-bars span:last-child") == [0.5, 0.5]
    slide(figure, "score of key 1", "ArrowRight", 10)
    expected = reference.softmax(np.array([1.0, 2.0])).round(3).tolist()
    assert shown(figure, ".mha-bars span:last-child") == expected
    assert "0.269, 0.731" in said(figure)
    slide(figure, "temperature", "Home")
    assert shown(figure, ".mha-bars span:last-child") == [0, 1]
    assert (
        figure.get_by_role("slider", name="temperature").get_attribute("aria-valuetext") == "0.13"
    )
