"""What a front end's measurement returns, and how rounds are timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Bar", "in_turns"]


@dataclass(frozen=True)
class Bar:
    """One comparison: how many times faster ours is than the peer, and how many times it should be.

    Attributes:
        name: What is measured.
        peer: What it is compared with.
        ours_seconds: One time for each round.
        peer_seconds: The peer's, of the same rounds.
        needed: The ratio of the peer's time to ours that is asked for; `None` if none is.
        note: What a reader must know to judge it.
        unit: Of what is compared: `"ms"` for seconds, which are printed as milliseconds, or `"MB"` for bytes.
    """

    name: str
    peer: str
    ours_seconds: list[float]
    peer_seconds: list[float]
    needed: float | None
    note: str = ""
    unit: Literal["ms", "MB"] = "ms"


def in_turns(repeats: int, *sides: Callable[[], object]) -> list[list[float]]:
    """Seconds of each side in each round, after one round that does not count.

    Each round begins with another side: load on the machine hits all alike, and nobody always comes first.
    """
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        for place in range(len(sides)):
            side = (place + turn) % len(sides)
            start = time.perf_counter()
            sides[side]()
            if turn:
                times[side].append(time.perf_counter() - start)
    return times
