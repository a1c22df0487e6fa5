"""The offset and the cache: the script's steps are those of `mha.masks`, a cache, the definition."""

import re

import numpy as np
import pytest
import torch
from lessons import close, opened, said, slide, values

import mha
from mha import masks, reference
from mha.viz import lessons


@pytest.mark.parametrize("prompt, chunk", [(1, 1), (3, 2), (4, 3), (5, 1)])
def test_each_step_is_that_of_a_decoder_with_a_cache(page, tmp_path, prompt, chunk):
    lesson = lessons.Alignment()
    figure = opened(page, lesson, tmp_path)
    scores = np.array(lesson.state["scores"])
    N = len(scores)
    whole = reference.softmax(scores + reference.bias((N, N), is_causal=True))
    module = mha.MultiHeadAttention(8, 2, is_causal=True)
    cache = mha.KVCache.for_module(module, batch_size=1, max_len=N)
    x, done = torch.randn(1, N, 8), 0
    while int(cache.length) < N:
        before, done = int(cache.length), done + 1
        after = min(N, before + (chunk if before else prompt))
        with torch.no_grad():
            module(x[:, before:after], cache=cache)
        found = values(figure, prompt=prompt, chunk=chunk, done=done, corner="cache")
        assert (found["before"], found["S"]) == (before, int(cache.length))
        assert found["offset"] == before and found["difference"] == 0
        mask = masks.causal(after - before, after, q_offset=before)
        assert found["allowed"] == mask.tolist()
        close(found["weights"], whole[before:after, :after])
    assert found["steps"] == done


@pytest.mark.parametrize("done", [1, 2, 3])
def test_top_left_is_wrong_from_the_second_step_on(page, tmp_path, done):
    lesson = lessons.Alignment()
    found = values(opened(page, lesson, tmp_path), done=done, corner="top left")
    before, S, T = found["before"], found["S"], found["T"]
    mask = masks.causal(T, S)
    assert found["allowed"] == mask.tolist() and found["offset"] == 0
    scores = np.array(lesson.state["scores"])[before:S, :S]
    close(found["weights"], reference.softmax(np.where(mask, scores, -np.inf)))
    assert (found["difference"] > 0.1) == (done > 1)


def test_bottom_right_is_the_offset_of_the_cache(page, tmp_path):
    figure = opened(page, lessons.Alignment(), tmp_path)
    for done in range(5):
        one = values(figure, done=done, corner="cache")
        assert values(figure, done=done, corner="bottom right") == one


def test_a_reader_steps_the_decoder(page, tmp_path):
    figure = opened(page, lessons.Alignment(), tmp_path)
    slots = figure.get_by_role("list", name="slots of the cache").get_by_role("listitem")
    slide(figure, "steps so far", "Home")
    assert slots.all_inner_texts() == ["empty"] * 6
    slide(figure, "steps so far", "ArrowRight", 2)
    told = ["we (kept)", "read (kept)", "a (kept)", "book (new)", "empty", "empty"]
    assert slots.all_inner_texts() == told
    assert "q_offset = 3. Each row is that of the whole text" in said(figure)
    figure.get_by_role("radio", name="top left").click()
    assert "q_offset = 0. Wrong" in said(figure)
    assert "1.00 ≠" in figure.get_by_role("row", name=re.compile("^book")).inner_text()
    figure.get_by_role("radio", name="cache").click()
    slide(figure, "prompt, tokens", "ArrowRight")
    assert said(figure).startswith("Step 1: T = 4 new queries, S = 4 keys, 0 from the cache")
