"""Cuts text into tokens as a language model's tokenizer roughly would. No I/O.

It is an approximation, because no vocabulary is shipped. Joining the tokens always returns the text. A token is a word with
the space before it, at most three digits, or a punctuation mark. Long words are split. Streams send one token per delta, and
usage counts the same tokens, so the two agree.
"""

import re

# Above this many letters a word is rarely one token.
_LONGEST_WORD = 10
_PIECE = 6
_TOKEN = re.compile(r" ?[^\W\d_]+|\d{1,3}| (?=\d)|[ \t]*\n+[ \t]*| ?[^\w\s]|\s+|_")


def tokenize(text: str) -> list[str]:
    """Split `text` into tokens; `"".join` restores the text."""
    tokens: list[str] = []
    for token in _TOKEN.findall(text):
        if len(token) > _LONGEST_WORD + 1:
            tokens += [token[at : at + _PIECE] for at in range(0, len(token), _PIECE)]
        else:
            tokens.append(token)
    return tokens


def count(text: str) -> int:
    """Count the tokens of `text`."""
    return len(tokenize(text))
