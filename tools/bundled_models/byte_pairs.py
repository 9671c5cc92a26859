"""Byte-pair merges learnt word by word, ties broken by spelling: the same words, the same merges."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

Pair = tuple[str, str]


def _merged(pieces: Sequence[str], pair: Pair) -> list[str]:
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def learn_merges(words: Iterable[str]) -> list[Pair]:
    """The merges, in order, after which each word is one piece that ends in `</w>`."""
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in dict.fromkeys(words)]
    merges: list[Pair] = []
    while True:
        counts = Counter(pair for pieces in split for pair in pairwise(pieces))
        if not counts:
            return merges
        pair = min(counts, key=lambda candidate: (-counts[candidate], candidate))
        merges.append(pair)
        split = [_merged(pieces, pair) for pieces in split]
