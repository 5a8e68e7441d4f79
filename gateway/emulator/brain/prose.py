"""Writes text of any length about any subject. No I/O.

The text has no real content. Sentences are chosen in a fixed order that depends only on the subject, so that a test can
predict a text of a given length and a demo shows varied text.
"""

import zlib

MAX_WORDS = 20_000
_SENTENCES_A_PARAGRAPH = 6
_SENTENCES = (
    "{S} rewards anybody who looks twice.",
    "Most people meet {s} early and think about it late.",
    "There is a plain side to {s}, and a side that takes years to see.",
    "Ask three people about {s} and you will hear four opinions.",
    "The history of {s} is longer than it seems from where we stand.",
    "What makes {s} worth the trouble is the detail.",
    "Some days {s} feels simple, and those are the days to be careful.",
    "A good question about {s} is worth more than a quick answer.",
    "Nobody owns {s}, which is why so many take care of it.",
    "In winter {s} is a matter of patience, in summer a matter of light.",
    "One can measure {s}, count it and draw it, and still miss the point.",
    "Old books treat {s} kindly and at length.",
    "The first rule of {s} is to begin.",
    "Those who teach {s} learn it a second time.",
    "It is easy to praise {s} and harder to describe it well.",
    "Every town has somebody who knows everything about {s}.",
    "Small habits decide how far one gets with {s}.",
    "Seen from above, {s} has a pattern; seen from close by, it has a texture.",
    "There are tools for {s}, but hands do most of the work.",
    "Whoever hurries through {s} has to come back.",
    "The best stories about {s} start with a mistake.",
    "And so {s} goes on, a little different each time.",
)


def write(words: int, subject: str) -> str:
    """Write exactly `words` words about `subject`, in paragraphs."""
    words = max(1, min(words, MAX_WORDS))
    subject = " ".join(subject.split()[:8]) or "nothing in particular"
    at = zlib.crc32(subject.lower().encode("utf-8", "replace"))
    written: list[str] = []
    count = sentences = 0
    while count < words:
        sentence = _SENTENCES[at % len(_SENTENCES)].format(s=subject, S=subject[:1].upper() + subject[1:])
        at += 7
        part = sentence.split()[: words - count]
        count += len(part)
        sentences += 1
        end = "\n\n" if sentences % _SENTENCES_A_PARAGRAPH == 0 and count < words else " "
        written.append(" ".join(part).rstrip(".,;") + "." + end)
    return "".join(written).rstrip()
