"""Byte-pair encoding in plain Python, to be read: pieces of words, learned from counts of words."""

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

SPACE = "▁"
"""U+2581, which stands for the space before a word, as in SentencePiece."""


def marked_words(text: str) -> list[str]:
    """The words of a text, each with "▁" for the space before it, apart from punctuation.

    "I'm 28 now." has ▁I, ', m, ▁28, ▁now and a point. A run of letters is a word, and so is a run
    of anything else: a piece holds letters or other characters, never both, as in SentencePiece.
    Joined, the words are the text again, with one "▁" before each of its parts between spaces.

    Examples:
        >>> import mha
        >>> marked = mha.data.marked_words("I'm 28 now.")
        >>> marked
        ['▁I', "'", 'm', '▁28', '▁now', '.']
        >>> "".join(marked).replace("▁", " ").strip()
        "I'm 28 now."
    """
    marked = "".join(SPACE + part for part in text.split())
    return re.findall(rf"{SPACE}?(?:[^\W\d_]+|(?:(?!{SPACE})[\W\d_])+)|{SPACE}", marked)


def learn_bpe(counts: Mapping[str, int], merges: int) -> list[tuple[str, str]]:
    """The pairs of pieces to merge, in their order: the most frequent one, again and again.

    At first each character is a piece. The two pieces that stand side by side most often become
    one piece wherever they do; pairs are counted anew, and so on. Of pairs that are equally
    frequent, the one that makes the shortest piece comes first, then the first in code point order.

    Args:
        counts: word -> how often it stands in the text.
        merges: how many pairs to learn.
    Returns: the pairs, fewer where every word has become one piece before.
    Errors: ValueError for a negative number of merges, and for a count below 1.
    Source: Sennrich et al. 2016, Algorithm 1; here counts are kept up to date, not made anew.

    Examples:
        >>> import mha
        >>> counts = {"hand": 4, "hands": 2, "land": 3}
        >>> mha.data.learn_bpe(counts, 4)
        [('a', 'n'), ('an', 'd'), ('h', 'and'), ('l', 'and')]
    """
    if merges < 0:
        raise ValueError(f"merges must be at least 0, got {merges}")
    for word, count in counts.items():
        if count < 1:
            raise ValueError(f"counts must be at least 1, got {count} for {word!r}")
    cut = {word: list(word) for word in counts}  # each word in its pieces so far
    totals, holders = _pairs(cut, counts)
    queue = [_turn(pair, total) for pair, total in totals.items()]
    heapq.heapify(queue)
    learned = []
    while queue and len(learned) < merges:
        turn = heapq.heappop(queue)
        pair = turn[-1]
        if turn != _turn(pair, totals[pair]):
            continue  # out of date: the pair has queued again since, unless it is gone
        learned.append(pair)
        changed = set()
        for word in holders.pop(pair):
            before, after = cut[word], _merged(cut[word], *pair)
            if len(before) == len(after):
                continue
            cut[word] = after
            for old in pairwise(before):
                totals[old] -= counts[word]
            for new in pairwise(after):
                totals[new] += counts[word]
                holders[new].add(word)
            changed.update(pairwise(before), pairwise(after))
        for pair in changed:
            if totals[pair]:
                heapq.heappush(queue, _turn(pair, totals[pair]))
    return learned


def apply_bpe(word: str, merges: Sequence[tuple[str, str]]) -> list[str]:
    """The pieces of one word: its characters, merged by one pair after the other.

    A word that `learn_bpe` has seen comes out as it was cut there, and any other word by the same
    rules. A character that is in no pair stays a piece of its own. Joined, pieces are the word.

    Args:
        word: one word, with "▁" before it if the words that were learned from had it.
        merges: the pairs, in the order in which `learn_bpe` gave them.
    Returns: the pieces, from left to right.
    Source: Sennrich et al. 2016, section 3.2.

    Examples:
        >>> import mha
        >>> merges = mha.data.learn_bpe({"hand": 4, "hands": 2, "land": 3}, 4)
        >>> mha.data.apply_bpe("hand", merges)
        ['hand']
        >>> mha.data.apply_bpe("sand", merges)  # not seen before
        ['s', 'and']
    """
    pieces = list(word)
    for left, right in merges:
        if len(pieces) == 1:
            break
        if left in pieces:
            pieces = _merged(pieces, left, right)
    return pieces


def _pairs(
    cut: Mapping[str, Sequence[str]], counts: Mapping[str, int]
) -> tuple[Counter, defaultdict[tuple[str, str], set[str]]]:
    """How often each pair stands in the text, and the words that hold it."""
    totals, holders = Counter(), defaultdict(set)
    for word, pieces in cut.items():
        for pair in pairwise(pieces):
            totals[pair] += counts[word]
            holders[pair].add(word)
    return totals, holders


def _merged(pieces: Sequence[str], left: str, right: str) -> list[str]:
    """The pieces, with left and right made one wherever they are neighbors, from the start on."""
    merged: list[str] = []
    for piece in pieces:
        if piece == right and merged and merged[-1] == left:
            merged[-1] = left + right
        else:
            merged.append(piece)
    return merged


def _turn(pair: tuple[str, str], total: int) -> tuple:
    """What a pair queues by: the smallest comes first."""
    piece = "".join(pair)
    return -total, len(piece), piece, pair
