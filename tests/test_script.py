"""What is left out of client.js when it is served, and that nothing else is."""

from __future__ import annotations

import gzip
import re
from importlib import resources

import pytest

from celery_notify import script

SOURCE = resources.files("celery_notify").joinpath("static", "client.js").read_text(encoding="utf-8")
#: What the blueprint sends is to be no longer.
MOST = 12_000

# A lexer that knows what `bare` does not: regular expressions, and templates in templates.

_APART = re.compile(r"(?:\s|//[^\n]*|/\*.*?\*/)+", re.DOTALL)
_STRING = re.compile(r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL)
_REGULAR = re.compile(r"/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\[\n])+/\w*")
_OURS = re.compile(r"[#$].*|[A-Z]+_[A-Z_]+")
_WORD = re.compile(r"[\w$#\u0080-\uffff]+")
#: After these words a slash begins a regular expression, after any other and after ), ] and } it divides.
_BEFORE_AN_EXPRESSION = {"return", "typeof", "case", "in", "of", "delete", "void", "throw", "new", "do", "else"}
_BEFORE_AN_EXPRESSION |= {"await", "yield", "instanceof"}
#: After these JavaScript puts no semicolon at a line's end.
_CANNOT_END = set("{([,;:?&|")


def tokens(text: str) -> list[str]:
    """Return the tokens of JavaScript; a newline stands for all that is between two tokens on different lines.

    Names that are ours are numbered, since they only need to be the same wherever they were the same.
    """
    found: list[str] = []
    lex(text, 0, found, until="")
    while found and found[-1] == "\n":
        found.pop()
    ours = list(dict.fromkeys(token for token in found if _OURS.fullmatch(token)))
    return [f"{token[0] == '#'} {ours.index(token)}" if token in ours else token for token in found]


def lex(text: str, at: int, found: list[str], *, until: str) -> int:
    """Add the tokens from a position to the bracket that closes; return where that stands."""
    depth = 0
    while at < len(text):
        if apart := _APART.match(text, at):
            at = apart.end()
            if "\n" in apart[0] and found and found[-1] not in _CANNOT_END:
                found.append("\n")
            continue
        last = next((one for one in reversed(found) if one != "\n"), "")
        divides = bool(_WORD.fullmatch(last)) and last not in _BEFORE_AN_EXPRESSION
        divides = divides or last[:1] in set(")]}\"'`")
        if text[at] == "`":
            at = lex_template(text, at, found)
        elif token := _STRING.match(text, at) or _WORD.match(text, at) or (not divides and _REGULAR.match(text, at)):
            found.append(token[0])
            at = token.end()
        else:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if text[at] == until and depth < 0:
                return at
            found.append(text[at])
            at += 1
    return at


def lex_template(text: str, at: int, found: list[str]) -> int:
    begin = at
    at += 1
    while text[at : at + 1] not in {"`", ""}:
        if text.startswith("${", at):
            found.append(text[begin:at])
            begin = at = lex(text, at + 2, found, until="}")
        at += 2 if text[at : at + 1] == "\\" else 1
    found.append(text[begin : at + 1])
    if found[-1].startswith("`\n"):  # a style sheet
        found[-1] = re.sub(r"\s*([{};,])\s*|(?<=[^\s{};,]:)\s+", r"\1", found[-1]).replace(";}", "}")
    return at + 1


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("// a\nlet x = 1; // b\n\n  let y; /* c */\n", "let x=1;let y;\n"),
        ("/** a\n * b\n */\nf(/** @type {any} */ (x));\n", "f((x));\n"),
        ("return /* a\n */ x", "return\nx\n"),  # where JavaScript sees a line's end
        ("a/**/b // c", "a b\n"),
        ('f("// no", \'/* no */\', "a\\"//b")  // yes', 'f("// no",\'/* no */\',"a\\"//b")\n'),
        ("s = ` \n    // stays\n  ${x}; \n`;\n    t()", "s=` \n    // stays\n  ${x}; \n`;t()\n"),
        ('x = "https://h"; // `', 'x="https://h";\n'),
        ("// it's a comment\ny = 'z'", "y='z'\n"),
        ("x = /^\\d+$/.test(y) ? a / b : c; // d", "x=/^\\d+$/.test(y)?a/b:c;\n"),
        ("get #one() { return a + +b - -c }", "get #a(){return a+ +b- -c}\n"),
        ("this.#one = '#one' + this.#another + this.#one", "this.#a='#one'+this.#b+this.#a\n"),
        ("const TWO_WORDS = ONE + 'TWO_WORDS'; f(TWO_WORDS, this.#one)", "const $a=ONE+'TWO_WORDS';f($a,this.#b)\n"),
        ("a = b\n(c)", "a=b\n(c)\n"),
        ("`\n  a :hover, b { c: d e; f: url(x:y); }\n  g { }\n`", "`\n  a :hover,b{c:d e;f:url(x:y)}g{}`\n"),
    ],
)
def test_what_separates_nothing_is_left_out_and_nothing_else(source: str, expected: str) -> None:
    assert script.bare(source) == expected
    assert tokens(source) == tokens(expected)


def test_what_is_served_is_the_same_program() -> None:
    """Fails should client.js hold what `bare` does not understand, which is said there."""
    assert len(tokens(SOURCE)) > 1000
    assert tokens(script.bare(SOURCE)) == tokens(SOURCE)


@pytest.mark.parametrize(
    "text",
    [
        "x = /[/*]/.test(y); z = '*/';",
        "x = /[//]/.test(y);",
        'x = /"/.test("a  // b");',
        "x = y.replace(/'/g, 'a  b');",
        "x = /a  b/.test(y);",
        "x = /`/.test(y);",
        "x = `${y ? ` a  // b` : ''}`;",
        "x = `${this.#state}`;",
        "x = `${NO_ETAG}`;",
    ],
)
def test_it_is_seen_when_the_source_holds_what_is_not_understood(text: str) -> None:
    """The negative control of the test above."""
    source = SOURCE.replace("// Milliseconds.\n", f"{text}\n", 1)
    assert source != SOURCE

    assert tokens(script.bare(source)) != tokens(source)


def test_no_comment_and_no_indentation_is_left() -> None:
    lines = script.bare(SOURCE).splitlines()

    assert not [line for line in lines if line.startswith(("/*", "//", "* "))]
    assert "" not in lines
    assert "@param" in SOURCE
    assert "@param" not in "\n".join(lines)


def test_what_is_sent_is_short() -> None:
    assert len(script.load().gzipped) <= MOST


def test_the_compressed_form_is_the_same_content() -> None:
    client = script.load()

    assert gzip.decompress(client.gzipped) == client.content == script.bare(SOURCE).encode()
    assert len(client.gzipped) < len(client.content) < len(SOURCE)


def test_the_tag_is_the_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    once = script.load()
    script.load.cache_clear()
    again = script.load()
    with monkeypatch.context() as changed:
        changed.setattr(script, "bare", lambda source: f"{source};")
        script.load.cache_clear()
        other = script.load()
    script.load.cache_clear()

    assert once == again
    assert re.fullmatch(r"[0-9a-f]{16}", again.tag)
    assert other.tag != again.tag
