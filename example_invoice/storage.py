"""Where finished PDFs lie: one folder for each user, one file for each order and for each statement."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

#: The environment variable that names the folder of all PDFs.
FOLDER_VARIABLE = "INVOICE_FOLDER"
#: File systems allow 255 bytes a name; longer ids are told apart by a hash.
_LONGEST_NAME = 200


def invoice_path(user_id: str, order_id: str) -> Path:
    """Return where an invoice's PDF lies or will lie. Any two texts are ids; none leads out of the folder."""
    return _user_folder(user_id) / f"{encode_name(order_id)}.pdf"


def statement_path(user_id: str, statement_id: str) -> Path:
    """Return where a statement's PDF lies or will lie: beside the user's invoices, all of whose names end in .pdf."""
    return _user_folder(user_id) / "statements" / f"{encode_name(statement_id)}.pdf"


def _user_folder(user_id: str) -> Path:
    return Path(os.environ.get(FOLDER_VARIABLE, "invoices")) / encode_name(user_id)


def encode_name(text: str) -> str:
    """Return a file name for any text, a different one for each: percent-encoded, or hashed if long."""
    name = quote(text, safe="", errors="surrogatepass").replace(".", "%2E").replace("~", "%7E")
    if 0 < len(name) <= _LONGEST_NAME:
        return name
    return "~" + hashlib.sha256(name.encode()).hexdigest()


def store(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix="~", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
