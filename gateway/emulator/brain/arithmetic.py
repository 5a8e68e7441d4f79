"""Finds an arithmetic expression in a sentence and calculates it. No I/O.

It supports numbers, the four operations, powers, percent, square roots and brackets. All are bounded, and results are exact
because they are calculated with fractions.
"""

import math
import re
from fractions import Fraction

_WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100, "thousand": 1000,
}  # fmt: skip
_SPOKEN = [
    (r"\bmultiplied by\b|\btimes\b|(?<=[\d)])\s*[x×]\s*(?=[\d(])", "*"),
    (r"\bdivided by\b|\bover\b|÷", "/"),
    (r"\bplus\b|\badded to\b", "+"),
    (r"\bminus\b|−", "-"),
    (r"\bto the power of\b|\*\*", "^"),
    (r"\bsquared\b", "^2"),
    (r"\bcubed\b", "^3"),
    (r"\bpercent of\b|%\s*of\b", "/100*"),
    (r"\bsquare root of\b|√", "√"),
]
_SUM = re.compile(r"[-√(\d.][-+*/^√().\d\s]*[\d)]")
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_MAX_CHARACTERS = 200
_MAX_EXPONENT = 512
_MAX_BITS = 4096
_MAX_DEPTH = 32


def number_word(word: str) -> int | None:
    """Read a number written in digits or as one English word."""
    if word.isascii() and word.isdecimal() and len(word) <= 9:
        return int(word)
    return _WORDS.get(word.lower())


def solve(text: str) -> str | None:
    """Calculate the first expression in `text`; return None if there is none or it divides by zero."""
    # A comma that groups digits is dropped. Any other comma ends the expression.
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text[: _MAX_CHARACTERS * 4].lower())
    for pattern, sign in _SPOKEN:
        text = re.sub(pattern, sign, text)
    text = re.sub(r"[a-z]+", lambda m: str(_WORDS.get(m[0], m[0])), text)
    for match in _SUM.finditer(text):
        found = match[0]
        if len(found) > _MAX_CHARACTERS or not re.search(r"[\d)]\s*[-+*/^]|√", found):
            continue
        try:
            return _show(_Parser(found).parse())
        except (ValueError, ZeroDivisionError):
            continue
    return None


def _show(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    try:
        return f"{float(value):.6f}".rstrip("0").rstrip(".")
    except OverflowError:
        raise ValueError("too large") from None


class _Parser:
    """Recursive descent: sum, product, sign, power, atom."""

    def __init__(self, text: str) -> None:
        self.text = re.sub(r"\s+", "", text)
        self.at = 0
        self.depth = 0

    def parse(self) -> Fraction:
        value = self._sum()
        if self.at != len(self.text):
            raise ValueError("text is left")
        return value

    def _take(self, signs: str) -> str:
        if self.at < len(self.text) and self.text[self.at] in signs:
            self.at += 1
            return self.text[self.at - 1]
        return ""

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._take("+-"):
            right = self._product()
            value = value + right if sign == "+" else value - right
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while sign := self._take("*/"):
            right = self._signed()
            value = value * right if sign == "*" else value / right
        return value

    def _signed(self) -> Fraction:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise ValueError("too deep")
        try:
            return -self._signed() if self._take("-") else self._power()
        finally:
            self.depth -= 1

    def _power(self) -> Fraction:
        base = self._atom()
        if not self._take("^"):
            return base
        exponent = self._signed()
        if exponent.denominator != 1 or abs(exponent) > _MAX_EXPONENT:
            raise ValueError("no such power")
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent.numerator) > _MAX_BITS:
            raise ValueError("too large")
        return base**exponent.numerator

    def _atom(self) -> Fraction:
        if self._take("√"):
            return _root(self._signed())
        if self._take("("):
            value = self._sum()
            if not self._take(")"):
                raise ValueError("a bracket is open")
            return value
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            raise ValueError("a number is missing")
        self.at = match.end()
        return Fraction(match[0])


def _root(value: Fraction) -> Fraction:
    if value < 0:
        raise ValueError("no real root")
    exact = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    return exact if exact * exact == value else Fraction(math.sqrt(value))
