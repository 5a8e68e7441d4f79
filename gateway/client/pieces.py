"""Joins pieces of text whose borders may be inside a character. No I/O."""

import codecs


class Pieces:
    """The pieces of one text, in order.

    OpenAI counts in UTF-16, so a delta may end with the first half of a surrogate pair. Such a half cannot be encoded, and
    printing it fails. It is kept until the next piece brings the other half; a half without one becomes U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")

    def add(self, piece: str) -> str:
        """Return the text that a piece completes, which may be empty."""
        return self._decoder.decode(piece.encode("utf-16-le", "surrogatepass"))

    def rest(self) -> str:
        """Return what was kept, at the end of the text."""
        return self._decoder.decode(b"", final=True)
