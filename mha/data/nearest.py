"""How near a sentence is to one that a model was trained on, counted in words."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from mha.data.sentences import words


class Nearest(NamedTuple):
    """For each of N sentences how far its nearest neighbor is, and which one that is.

    Examples:
        >>> import mha
        >>> texts = "I saw a dog.", "We sing very well.", "I see the dog!"
        >>> corpus = [mha.data.plain_words(text) for text in texts]
        >>> found = mha.data.nearest_sentences([["we", "sing"]], corpus)
        >>> found.distance.tolist(), texts[found.index[0]]
        ([2], 'We sing very well.')
    """

    distance: Int[ndarray, " N"]
    index: Int[ndarray, " N"]


def plain_words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation: "I'm here." has i, m, here.

    Examples:
        >>> import mha
        >>> mha.data.plain_words("I'm here.")
        ['i', 'm', 'here']
    """
    return [word for word in words(text.lower()) if any(map(str.isalnum, word))]


def nearest_sentences(
    sentences: Sequence[Sequence[str]], corpus: Sequence[Sequence[str]]
) -> Nearest:
    """The least number of words to put in, take out or replace to come to a sentence of the corpus.

    The distance is exact, though few pairs are compared: two sentences of m and n words that have
    k words in common, in whatever order, are at least max(m, n) - k apart. So the corpus is gone
    through from the smallest such bound on, until the bound reaches what was found.

    Args:
        sentences: N lists of words, as of `plain_words`.
        corpus: lists of words, at least one.
    Returns: `Nearest`: distance (N,), and index (N,) into the corpus, of one of those that are as
        near, where there are several; the same one each time.
    Errors: TypeError for a text that is not cut into words; ValueError for an empty corpus.
    Source: the distance is that of Levenshtein 1966, of words instead of letters.

    Examples:
        >>> import mha
        >>> corpus = [["i", "saw", "a", "dog"], ["we", "sing", "very", "well"]]
        >>> sentences = [["i", "saw", "a", "black", "dog"], ["we", "sing"], ["they", "sing", "well"]]
        >>> distance, index = mha.data.nearest_sentences(sentences, corpus)
        >>> distance.tolist(), index.tolist()
        ([1, 2, 2], [0, 1, 1])
    """
    for name, texts in (("sentences", sentences), ("corpus", corpus)):
        for text in texts:
            if isinstance(text, str):
                raise TypeError(f"{name} must hold lists of words, got the str {text!r}")
    if not len(corpus):
        raise ValueError("corpus must hold at least one sentence, got none")
    index = _Index(corpus)
    found = [index.nearest(sentence) for sentence in sentences]
    return Nearest(*np.array(found, dtype=np.int64).reshape(-1, 2).T)  # (N, 2) -> twice (N,)


class _Index:
    """M sentences as numbers, and for each word the sentences that have it."""

    def __init__(self, corpus: Sequence[Sequence[str]]):
        self.ids: dict[str, int] = {}
        rows = [[self.ids.setdefault(word, len(self.ids)) for word in text] for text in corpus]
        self.lengths = np.array([len(row) for row in rows])  # (M,)
        self.words = np.full((len(rows), max(1, self.lengths.max())), -1, dtype=np.int32)  # (M, L)
        places = defaultdict(list)  # (word, 2) -> the sentences that have the word twice or more
        for i, row in enumerate(rows):
            self.words[i, : len(row)] = row
            for word in _counted(row):
                places[word].append(i)
        self.places = {word: np.array(found) for word, found in places.items()}

    def nearest(self, text: Sequence[str]) -> tuple[int, int]:
        """Distance and place of the nearest sentence."""
        query = [self.ids.get(word, -2) for word in text]  # -2 is equal to no word here
        shared = [self.places[word] for word in _counted(query) if word in self.places]
        common = np.bincount(np.concatenate(shared), minlength=len(self.lengths)) if shared else 0
        bounds = np.maximum(self.lengths, len(query)) - common  # (M,)
        best, place = len(query) + int(self.lengths.max()) + 1, -1
        level = int(bounds.min())
        while level < best:
            candidates = np.flatnonzero(bounds == level)  # (K,)
            distances = self._distances(query, candidates) if len(candidates) else None
            if distances is not None and distances.min() < best:
                best, place = int(distances.min()), int(candidates[distances.argmin()])
            level += 1
        return best, place

    def _distances(self, query: list[int], candidates: Int[ndarray, " K"]) -> Int[ndarray, " K"]:
        """The edit distances of the query to K sentences, all at once.

        Row i of the usual table holds the distances of the query's first i words to the first
        0, 1, 2, ... words of each sentence.
        """
        lengths = self.lengths[candidates]  # (K,)
        others = self.words[candidates, : lengths.max()]  # (K, L)
        steps = np.arange(others.shape[1] + 1)
        row = np.broadcast_to(steps, (len(candidates), len(steps)))  # (K, 1 + L)
        for i, word in enumerate(query, start=1):
            replaced = row[:, :-1] + (others != word)  # (K, L)
            best = np.minimum(row[:, 1:] + 1, replaced)  # (K, L): taken out, or replaced or kept
            best = np.concatenate((np.full((len(best), 1), i), best), axis=1)  # (K, 1 + L)
            row = np.minimum.accumulate(best - steps, axis=1) + steps  # or put in, one or several
        return row[np.arange(len(row)), lengths]


def _counted(row: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each word with how often it has come so far: so common words are counted as often as both
    sentences have them."""
    seen: Counter[int] = Counter()
    for word in row:
        seen[word] += 1
        yield word, seen[word]
