"""Replacing the files of a folder so that a killed process leaves the old set, the new set, or a folder that says so.

A rename replaces one file in one step; several files take several. So a save goes through three stages:

1. All files are written to a staging folder inside the target. A process killed here leaves the old files as they were.
2. The staging folder is renamed to `.unfinished-save`. From this one step on the new files count.
3. They are moved out of it, and what they supersede is removed; the folder `.unfinished-save` goes last. A process
   killed here leaves files of two saves: `refuse_unfinished` keeps them from being loaded, `finish_save` moves the
   rest.

Readers do not finish a save by themselves, because the process that saves may be alive and at work.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

__all__ = ["atomic_folder", "finish_save", "refuse_unfinished"]

_UNFINISHED = ".unfinished-save"
_SUPERSEDED = ".superseded.json"
_STAGING = ".saving-"
_ABANDONED_AFTER = 24 * 3600  # seconds; no save takes that long, so its process was killed


@contextmanager
def atomic_folder(target: str | os.PathLike, supersede: Sequence[str] = ()) -> Generator[Path]:
    """Collect files in a temporary folder, then move all of them into `target`; none if the body fails.

    One process at a time may save into a folder. For a while the old and the new files take up space together.

    Args:
        target: The folder that gets the files, made if absent. What lies there under other names stays.
        supersede: Patterns of file names. What matches one in `target` and is not written anew is removed, such as the
            shards of an earlier checkpoint.

    Yields:
        The temporary folder, on the same file system as `target`.

    Raises:
        ValueError: `target` is a file.
    """
    target = Path(target)
    if target.is_file():
        raise ValueError(f"{target} is a file; give the name of a folder to save into.")
    target.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=target))
    try:
        yield staging
        finish_save(target)
        written = {path.as_posix() for path in _files(staging)}
        old = [name for name in os.listdir(target) if any(fnmatchcase(name, pattern) for pattern in supersede)]
        manifest = staging / _SUPERSEDED
        manifest.write_text(json.dumps(sorted(set(old) - written)), encoding="utf-8")
        for name in written:
            # safetensors makes files for their owner alone, which is not what the umask says of new files.
            (staging / name).chmod(manifest.stat().st_mode)
        os.rename(staging, target / _UNFINISHED)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    finish_save(target)
    _remove_abandoned(target)


def finish_save(folder: str | os.PathLike) -> None:
    """Complete a save that was interrupted while its files were moved into place; nothing happens if there is none.

    No weight is lost by such an interruption: all new files were complete before the first of them was moved.

    Args:
        folder: The folder that was being saved into.
    """
    target = Path(folder)
    unfinished = target / _UNFINISHED
    if not unfinished.is_dir():
        return
    manifest = unfinished / _SUPERSEDED
    files = sorted(_files(unfinished), key=_is_index)
    # The index ties shards together, so it goes first and comes last. Without one, a program that knows nothing of the
    # marker fails; with one it would read shards of two checkpoints, as they bear the same names.
    indices = [path for path in files if _is_index(path)]
    for name in (*indices, *json.loads(manifest.read_text(encoding="utf-8"))):
        (target / name).unlink(missing_ok=True)
    for path in files:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(unfinished / path, target / path)
    finished = Path(tempfile.mkdtemp(prefix=_STAGING, dir=target))
    os.rename(unfinished, finished / "done")  # the marker goes in one step, unlike a folder that is deleted
    shutil.rmtree(finished, ignore_errors=True)


def refuse_unfinished(folder: Any, subfolder: str | None = None) -> None:
    """Raise an error if a save into `folder` was interrupted so that its files are of two saves.

    Args:
        folder: A folder, or anything else that `from_pretrained` takes, which passes.
        subfolder: The folder inside it that is to be read.

    Raises:
        ValueError: The save is unfinished.
    """
    if not isinstance(folder, str | os.PathLike):
        return
    path = Path(folder, subfolder or "")
    if (path / _UNFINISHED).is_dir():
        raise ValueError(
            f"A save into {str(path)!r} was interrupted while its files were replaced: some are new, some may be of an "
            "earlier save. Nothing is lost. If no process is saving there any more, complete it by "
            f"meta_transformer.checkpoints.atomic.finish_save({str(path)!r}), or save there again."
        )


def _files(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders, relative to it, without the list of superseded ones."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path for path in files if path.name != _SUPERSEDED]


def _is_index(path: Path) -> bool:
    return fnmatchcase(path.name, "*.index.*json")


def _remove_abandoned(target: Path) -> None:
    """Delete the staging folders of processes that were killed long ago, which may be as large as a checkpoint."""
    for path in target.glob(f"{_STAGING}*"):
        with suppress(FileNotFoundError):  # another process may have been here
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                shutil.rmtree(path, ignore_errors=True)
