"""Writing folders so that a killed process never leaves a half-written file under its final name."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_folder"]

# Moved last: a folder without its configuration is not loadable, so that an interrupted move is noticed.
_LAST = ("config.json", "processor_config.json")


@contextmanager
def atomic_folder(target: str | os.PathLike) -> Iterator[Path]:
    """Collect files in a temporary folder, then rename each into `target`; nothing is moved if the body fails.

    Args:
        target: The folder that gets the files, made if absent; files of other names that lie there stay.

    Yields:
        The temporary folder, on the same file system as `target`.
    """
    target = Path(target)
    if target.is_file():
        raise ValueError(f"{target} is a file; give the name of a folder to save into.")
    target.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
    try:
        yield staging
        for path in sorted(staging.iterdir(), key=lambda path: (path.name in _LAST, path.name)):
            os.replace(path, target / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
