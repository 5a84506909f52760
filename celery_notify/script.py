"""The browser client as it is served: without what only its readers need, under a name that is its content's."""

from __future__ import annotations

import functools
import gzip
import re
from dataclasses import dataclass
from hashlib import blake2b
from importlib import resources

#: A string or a template, which stay as they are; or all that stands between two tokens.
_PARTS = re.compile(
    r"""
    ("(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | `(?:\\.|[^`\\])*`)
    | (?: \s | //[^\n]* | /\*.*?\*/ )+
    """,
    re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Script:
    """What is sent; `tag` is another one for each content."""

    content: bytes
    gzipped: bytes
    tag: str


def bare(source: str) -> str:
    """Return JavaScript without its comments and its indentation: the same program.

    A line's end stays where there was one, since JavaScript may put a semicolon there. What would take a parser may not
    be in the source: a quotation mark, ``//``, ``/*`` or two spaces in a regular expression; a template within another.
    """
    return _PARTS.sub(lambda part: part[1] or ("\n" if "\n" in part[0] else " "), source).strip() + "\n"


@functools.cache
def load() -> Script:
    """Return the client, made once for the process."""
    source = resources.files("celery_notify").joinpath("static", "client.js").read_text(encoding="utf-8")
    content = bare(source).encode()
    return Script(content, gzip.compress(content, 9, mtime=0), blake2b(content, digest_size=8).hexdigest())
