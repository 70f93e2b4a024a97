"""A driver's library that does as a test's environment says, built where there is a C compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from modelpipes.machine.nvml import LIBRARY

SOURCE = Path(__file__).parent / "fake_nvml.c"


def build_driver(folder: Path, *flags: str) -> Path:
    """The folder, with the library in it; the test is skipped where it cannot be built."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to build the fake NVML library with")
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", *flags, "-o", str(folder / LIBRARY), str(SOURCE)]
    subprocess.run(command, check=True)
    return folder
