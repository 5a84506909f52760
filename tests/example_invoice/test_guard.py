from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from example_invoice.guard import read_groups
from tests.support.processes import PYTHON, ROOT, Process

if TYPE_CHECKING:
    from pathlib import Path


def test_groups_that_have_ended_are_forgotten() -> None:
    assert read_groups(["+1\n", "+2\n", "-1\n", "+3\n"]) == [2, 3]


@pytest.mark.parametrize("stubborn", [False, True])
def test_the_end_of_the_input_ends_the_groups_and_removes_the_folder(tmp_path: Path, *, stubborn: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").touch()
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" if stubborn else ""
    code = f"import signal; {ignore} print('here'); signal.pause()"
    process = Process(*PYTHON, "-c", code, folder=tmp_path, name="victim").start()
    process.wait_for_log("here")
    subprocess.run(
        [*PYTHON, "-m", "example_invoice.guard", str(folder)],
        input=f"+{process.pid}\n+{2**22 + 1}\n",
        text=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        timeout=30,
        check=True,
    )
    assert process.wait() == (-9 if stubborn else -15)
    assert not folder.exists()
    process.kill()
