"""The browser client as it is served: without what only its readers need, under a name that is its content's."""

from __future__ import annotations

import functools
import gzip
import re
from dataclasses import dataclass
from hashlib import blake2b
from importlib import resources
from string import ascii_letters

#: A string or a template, which stay as they are; a name of ours, private or of a constant with an underscore; or all
#: that stands between two tokens.
_PARTS = re.compile(
    r"""
    ("(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | `(?:\\.|[^`\\])*`)
    | (\#\w+ | \b[A-Z]+_[A-Z_]+\b)
    | (?: \s | //[^\n]* | /\*.*?\*/ )+
    """,
    re.DOTALL | re.VERBOSE,
)

#: Around these spaces mean nothing in a style sheet, nor does the last semicolon; before a colon a space would.
_STYLE = re.compile(r"\s*;?\s*(\})\s*|\s*([{;,])\s*|(?<=[\w-]:)\s+")


@dataclass(frozen=True, slots=True)
class Script:
    """What is sent; `tag` is another one for each content."""

    content: bytes
    gzipped: bytes
    tag: str


#: After these no line's end means a semicolon.
_GOES_ON = frozenset("{([,;:?&|")


def bare(source: str) -> str:
    """Return JavaScript without its comments, and without spaces that separate nothing: the same program.

    A line's end stays where JavaScript may put a semicolon. Names that nobody else can see become short: private ones,
    and those of constants, as far as they are of several words.
    A template that begins with a line's end is a style sheet, in which spaces around punctuation mean nothing either.
    What would take a parser may not be in the source: a quotation mark, ``//``, ``/*``, ``#`` or a space in a regular
    expression; a template or such a name within a template; such a name that is somebody else's.
    """
    names: dict[str, str] = {}

    def shorten(part: re.Match[str]) -> str:
        if part[1]:
            return _STYLE.sub(r"\1\2", part[1]) if part[1].startswith("`\n") else part[1]
        if part[2]:
            round_, letter = divmod(len(names), len(ascii_letters))
            sign = "#" if part[2].startswith("#") else "$"
            return names.setdefault(part[2], f"{sign}{ascii_letters[letter]}{round_ or ''}")
        before, after = source[part.start() - 1 : part.start()], source[part.end() : part.end() + 1]
        if "\n" in part[0]:
            return "" if before in _GOES_ON else "\n"
        one = before == after and before in {"+", "-", "/"}  # as in `a + +b`
        return " " if one or (_is_word(before) and _is_word(after)) else ""

    return _PARTS.sub(shorten, source).strip() + "\n"


def _is_word(character: str) -> bool:
    return character.isalnum() or character in {"_", "$", "#"}


@functools.cache
def load() -> Script:
    """Return the client, made once for the process."""
    source = resources.files("celery_notify").joinpath("static", "client.js").read_text(encoding="utf-8")
    content = bare(source).encode()
    return Script(content, gzip.compress(content, 9, mtime=0), blake2b(content, digest_size=8).hexdigest())
