"""transformers' own test suite, which its wheel leaves out: fetched from the sdist of the installed version.

The sdist in turn leaves out three helpers of the suite, none of which matters here; stubs take their place. All of it
lies in the git-ignored `.cache/` afterwards, so that only the first run needs the network.
"""

import importlib
import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

CACHE = Path(__file__).resolve().parents[2] / ".cache"
PACKAGE = "transformers_tests"  # `tests`, its name in the sdist, is the name of our own folder too
STUBS = {
    "__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


class SuiteUnavailable(Exception):
    """The sdist cannot be fetched or does not hold what is expected."""


def load_suite() -> tuple[type, Any]:
    """Transformers' `ModelTesterMixin` and `ConfigTester`.

    Where they cannot be had, the mixin is one whose every test fails and says why: an error here, while pytest
    collects, would keep all other tests from running too.
    """
    try:
        sys.path.append(str(fetch(importlib.metadata.version("transformers"))))
    except SuiteUnavailable as error:
        reason = str(error)

        class Unavailable:
            def setUp(self) -> None:
                pytest.fail(reason, pytrace=False)

        return Unavailable, None
    modeling, configuration = (
        importlib.import_module(f"{PACKAGE}.{name}") for name in ("test_modeling_common", "test_configuration_common")
    )
    return modeling.ModelTesterMixin, configuration.ConfigTester


def fetch(version: str) -> Path:
    """The folder that holds the suite as the package `PACKAGE`; downloaded unless it is there."""
    folder = CACHE / f"transformers-{version}"
    CACHE.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):  # one of xdist's workers downloads, the others wait
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                complete = unpack(download(version, Path(scratch)))
                complete.rename(folder)
    return folder


def download(version: str, folder: Path) -> Path:
    """Let pip put the sdist into `folder`, from whichever index it is configured for."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--retries", "2", "--no-deps"]
    command += ["--no-binary", "transformers", "--dest", str(folder), f"transformers=={version}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(folder.glob("*.tar.gz"))
    if result.returncode or not found:
        raise SuiteUnavailable(
            f"Cannot fetch the sdist of transformers=={version}, whose tests these are. The first run needs a package "
            f"index; later ones use what the first has left in {CACHE}. pip said:\n"
            f"{result.stderr.strip() or result.stdout.strip()}"
        )
    return found[0]


def unpack(sdist: Path) -> Path:
    """Take the tests out of the sdist and add the stubs; the folder for `sys.path` that results."""
    root = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as archive:
        tests = [member for member in archive.getmembers() if member.name.startswith(f"{root}/tests/")]
        archive.extractall(sdist.parent, members=tests, filter="data")
    folder = sdist.parent / root
    if not (folder / "tests" / "test_modeling_common.py").exists():
        raise SuiteUnavailable(f"{sdist.name} holds no tests/test_modeling_common.py; see where transformers has it.")
    (folder / "tests").rename(folder / PACKAGE)
    for name, text in STUBS.items():
        path = folder / PACKAGE / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():  # a later version may bring its own
            path.write_text(text, encoding="utf-8")
    return folder
