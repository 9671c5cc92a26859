"""The tokenizers: CLIP's byte-pair encoding and T5's unigrams, over the grammar's words.

Every word of the vocabulary is one token; any other text falls apart into bytes or letters.
"""

import argparse
import re
import string
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, T5Tokenizer

from .byte_pairs import learn_merges
from .vocabulary import all_words, grammar_words

CLIP_LENGTH = 32
"""Tokens of a prompt that CLIP's encoder reads, as its 77 are for the large models."""
T5_LENGTH = 512
_WORD = re.compile("[a-z]+|[0-9]|[^a-z0-9]+")


def learn_clip() -> CLIPTokenizer:
    """A stock CLIPTokenizer whose merges make each word one token.

    As in the original, every byte is a token, inside a word and at its end: no text is unknown.
    """
    merges = learn_merges(word for words in all_words() for word in _WORD.findall(words))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["".join(merge) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)


def learn_t5() -> T5Tokenizer:
    """A stock T5Tokenizer: whole words are likely, single characters are the last resort.

    It knows no lower-casing, so the grammar's words are there in capitals as well.
    """
    words = all_words()
    grammar = sorted(grammar_words())
    words += [word.capitalize() for word in grammar] + [word.upper() for word in grammar]
    pieces = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    pieces += [(f"▁{word}", -6.0 - rank / 1000) for rank, word in enumerate(dict.fromkeys(words))]
    known = {piece for piece, _ in pieces}
    letters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    pieces += [(letter, -14.0) for letter in letters if letter not in known]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH)


def main() -> None:
    """Write `clip` and `t5` under the folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    learn_clip().save_pretrained(arguments.out / "clip")
    learn_t5().save_pretrained(arguments.out / "t5")


if __name__ == "__main__":
    main()
