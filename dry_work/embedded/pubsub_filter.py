"""Pub/Sub's subscription filter language: text -> a predicate on a message's attributes. Pure, thread-safe.

The grammar is the one Google documents (https://cloud.google.com/pubsub/docs/subscription-message-filter):

    attributes:key                      the message has the attribute
    attributes.key = "value"            it has the attribute with this value
    attributes.key != "value"           it does not have the attribute with this value (true without the attribute)
    hasPrefix(attributes.key, "value")  it has the attribute and its value starts so
    NOT x, -x, x AND y, x OR y, (x)     NOT binds closest; AND beside OR needs parentheses

Keywords are upper case. A key of other characters than letters, digits, `-` and `_` is written as a string. What Google
does not document (single quotes, blanks around the dot) is refused, so that a filter that works here works there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from dry_work.errors import DryWorkError

MAX_FILTER_BYTES = 256

Predicate = Callable[[Mapping[str, str]], bool]

_BLANK = re.compile(r"\s*")
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_WORD = re.compile(r"[A-Za-z]+")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[0-7]{1,3}|.)", re.DOTALL)
_SIMPLE_ESCAPES = {
    "\\": "\\", '"': '"', "'": "'", "`": "`", "?": "?",
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
}  # fmt: skip


class FilterError(DryWorkError):
    """A filter is not in the documented grammar. Handled by the server: INVALID_ARGUMENT."""


def parse_filter(text: str) -> Predicate | None:
    """Return the predicate of a filter, None for the empty filter, which lets every message through.

    Raises:
        FilterError: the text is too long or not in the grammar; says where.
    """
    if not text:
        return None
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_FILTER_BYTES:
        raise FilterError(f"the filter has {size} bytes, at most {MAX_FILTER_BYTES} are allowed")
    return _Parser(text).parse()


class _Parser:
    """Recursive descent over the text itself; the length limit bounds the depth."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> Predicate:
        predicate = self._expression()
        if self._at < len(self._text):
            self._fail("AND, OR or the end")
        return predicate

    def _expression(self) -> Predicate:
        """Parse terms joined by one kind of operator, up to a closing parenthesis or the end."""
        terms = [self._term()]
        joined_by = ""
        while (word := self._peek_word()) in ("AND", "OR"):
            if joined_by and word != joined_by:
                self._fail(f"parentheses, since {joined_by} and {word} stand side by side")
            joined_by = word
            self._at += len(word)
            terms.append(self._term())
        if len(terms) == 1:
            return terms[0]
        members = tuple(terms)
        if joined_by == "AND":
            return lambda attributes: all(member(attributes) for member in members)
        return lambda attributes: any(member(attributes) for member in members)

    def _term(self) -> Predicate:
        negated = False
        while True:
            self._skip_blanks()
            if self._peek_word() == "NOT":
                self._at += len("NOT")
            elif self._text.startswith("-", self._at):
                self._at += 1
            else:
                break
            negated = not negated
        if self._text.startswith("(", self._at):
            self._at += 1
            predicate = self._expression()
            self._expect(")")
        else:
            predicate = self._comparison()
        self._skip_blanks()
        return (lambda attributes: not predicate(attributes)) if negated else predicate

    def _comparison(self) -> Predicate:
        word = self._peek_word()
        if word == "hasPrefix":
            self._at += len(word)
            self._expect("(")
            self._expect("attributes")
            self._expect(".", blanks=False)
            key = self._key()
            self._expect(",")
            prefix = self._string()
            self._expect(")")
            return lambda attributes: (value := attributes.get(key)) is not None and value.startswith(prefix)
        if word != "attributes":
            self._fail('"attributes", "hasPrefix", "NOT", "-" or "("')
        self._at += len(word)
        if self._text.startswith(".", self._at):
            self._at += 1
            return self._equality(self._key())
        self._expect(":")
        self._skip_blanks()
        present = self._key()
        return lambda attributes: present in attributes

    def _equality(self, key: str) -> Predicate:
        self._skip_blanks()
        if self._text.startswith("!=", self._at):
            self._at += 2
            unwanted = self._string()
            return lambda attributes: attributes.get(key) != unwanted
        if not self._text.startswith("=", self._at):
            self._fail('"=" or "!="')
        self._at += 1
        wanted = self._string()
        return lambda attributes: attributes.get(key) == wanted

    def _key(self) -> str:
        if self._text.startswith('"', self._at):
            return self._string()
        found = _KEY.match(self._text, self._at)
        if found is None:
            self._fail("an attribute key (letters, digits, - and _; others as a string in double quotes)")
        self._at = found.end()
        return found.group()

    def _string(self) -> str:
        self._skip_blanks()
        found = _STRING.match(self._text, self._at)
        if found is None:
            self._fail("a string in double quotes")
        value = _ESCAPE.sub(self._unescape, found.group(1))
        self._at = found.end()
        return value

    def _unescape(self, found: re.Match[str]) -> str:
        body = found.group(1)
        if body in _SIMPLE_ESCAPES:
            return _SIMPLE_ESCAPES[body]
        if body[0] in "xuU" and len(body) > 1:
            code = int(body[1:], 16)
        elif body[0] in "01234567":
            code = int(body, 8)
        else:
            self._fail(f"a known escape sequence instead of {found.group()!r}")
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            self._fail(f"an escape sequence of a Unicode character instead of {found.group()!r}")
        return chr(code)

    def _peek_word(self) -> str:
        found = _WORD.match(self._text, self._at)
        return found.group() if found else ""

    def _skip_blanks(self) -> None:
        found = _BLANK.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _expect(self, token: str, *, blanks: bool = True) -> None:
        if blanks:
            self._skip_blanks()
        if not self._text.startswith(token, self._at):
            self._fail(f'"{token}"')
        self._at += len(token)

    def _fail(self, wanted: str) -> NoReturn:
        rest = self._text[self._at : self._at + 20]
        found = repr(rest) if rest else "the end"
        raise FilterError(f"the filter is not valid at character {self._at + 1}: {wanted} was expected before {found}")
