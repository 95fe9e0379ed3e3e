"""A head from outside the package passes the tests of those inside."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_head_of_ones_own_passes_the_generic_suite() -> None:
    command = [sys.executable, "-m", "pytest", "tests/generic", "-p", "04_custom_head", "-k", "ordinal and tabular"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "examples")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30
