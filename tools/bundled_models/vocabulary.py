"""Words that prompts are made of beyond the grammar's own, so that they are whole tokens too."""

from collections import Counter
from pathlib import Path

import numpy as np

from .captions import JUNK_WORDS, caption
from .grammar import sample_landscape, sample_pair, sample_single

COMMON_WORDS = Path(__file__).with_name("common_words.txt").read_text().split()


def grammar_words(captions: int = 20_000) -> Counter[str]:
    """Every lower-case word of many captions, counted."""
    rng = np.random.default_rng(7)
    samplers = (sample_single, sample_pair, sample_landscape)
    counts: Counter[str] = Counter()
    for index in range(captions):
        sentence = caption(samplers[index % 3](rng), rng)
        counts.update(sentence.lower().replace(",", " , ").split())
    return counts


def all_words() -> list[str]:
    """The grammar's words, the commonest first, then the others; none twice."""
    junk = " ".join(JUNK_WORDS).split()
    ordered = [word for word, _ in sorted(grammar_words().items(), key=lambda kv: (-kv[1], kv[0]))]
    return list(dict.fromkeys([*ordered, *junk, *COMMON_WORDS]))
