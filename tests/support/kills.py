"""Jobs in child processes that are killed at random moments.

Children are forked, so that the libraries are imported once; therefore a script without threads does it, not pytest.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Job", "ended", "forked", "kill_ten_times", "outcomes"]

ROOT = Path(__file__).parents[2]

# Does its work in a folder, going on with what is there, and says which phase begins.
Job = Callable[[Path, Callable[[str], None]], None]


def outcomes(kind: str, folder: Path, *options: str) -> list[int]:
    """How the processes of `killed_jobs.py` ended; see there."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_jobs", kind, str(folder), *options], cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    codes = json.loads(done.stdout.strip().splitlines()[-1])
    assert not any(code > 0 for code in codes), done.stderr[-3000:]
    return codes


def forked(function: Callable[..., Any], *arguments: Any) -> int:
    """The number of a new process that calls the function."""
    if child := os.fork():
        return child
    code = 1
    try:
        function(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(child: int) -> int:
    """0, or the signal or code that a child ended with."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_ten_times(job: Job, examine: Callable[[Path, Path], None], folder: Path) -> list[int]:
    """A whole run in `whole`; and in `killed` ten that are killed, what each left being looked at, and one to the end.

    Kills are spread evenly over the phases of the job. Within a phase, whose length was measured, the moments are
    drawn so that what was done before all kills of the phase together takes about as long as the phase.

    Args:
        job: What is killed.
        examine: Gets the killed run's folder and the whole one's; raises where something is wrong.
        folder: For both.

    Returns:
        How the processes ended: the whole run, ten pairs of a killed run and of its examination, the last such pair.
    """
    code, lengths = _measure(job, folder / "whole")
    phases, moments, codes = list(lengths), random.Random(0), [code]
    killed, whole = folder / "killed", folder / "whole"
    for number in range(10):
        phase = phases[number * len(phases) // 10]
        wait = moments.uniform(0, 2 * len(phases) / 10) * lengths[phase]
        codes += [_kill(job, killed, phase, wait), ended(forked(examine, killed, whole))]
    return [*codes, _measure(job, killed)[0], ended(forked(examine, killed, whole))]


def _start(job: Job, folder: Path) -> tuple[int, Any]:
    """A child that does the job, and the lines in which it says its phases."""
    reading, writing = os.pipe()
    child = forked(job, folder, lambda phase: os.write(writing, f"{phase}\n".encode()))
    os.close(writing)
    return child, os.fdopen(reading)


def _measure(job: Job, folder: Path) -> tuple[int, dict[str, float]]:
    """How an undisturbed run ends, and the seconds of its phases."""
    child, said = _start(job, folder)
    with said:
        begun = {phase.strip(): time.monotonic() for phase in said}
    end = [*list(begun.values())[1:], time.monotonic()]
    return ended(child), {phase: end[number] - begun[phase] for number, phase in enumerate(begun)}


def _kill(job: Job, folder: Path, phase: str, wait: float) -> int:
    """Kill a run some seconds after a phase begins; return how it ended."""
    child, said = _start(job, folder)
    with said:
        any(each.strip() == phase for each in said)  # reads on until it is
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    return ended(child)
