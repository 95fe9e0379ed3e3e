"""What a front end's measurement returns."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Bar"]


@dataclass(frozen=True)
class Bar:
    """One comparison: how many times faster ours is than the peer, and how many times it should be.

    Attributes:
        name: What is measured.
        peer: What it is compared with.
        ours_seconds: One time for each round.
        peer_seconds: The peer's, of the same rounds.
        needed: The ratio of the peer's time to ours that is asked for.
        note: What a reader must know to judge it.
        unit: Of what is compared: `"ms"` for seconds, which are printed as milliseconds, or `"MB"` for bytes.
    """

    name: str
    peer: str
    ours_seconds: list[float]
    peer_seconds: list[float]
    needed: float
    note: str = ""
    unit: Literal["ms", "MB"] = "ms"
