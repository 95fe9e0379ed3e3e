"""Video files: when their frames are shown, and only those frames decoded that are wanted."""

from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["Timeline"]

_SEEK_FROM = 16  # frames; fewer are decoded faster than jumped over


class Timeline:
    """When each frame of a file is shown, read from its packets without decoding them.

    Attributes:
        starts: Seconds at which the frames come on, `(frames,)`, in the order in which they are shown.
        end: Seconds at which the last one goes off.
    """

    def __init__(self, container: Any) -> None:
        if not container.streams.video:
            raise ValueError("it holds no video.")
        if container.format.name.endswith("_pipe") or container.format.name == "image2":
            raise ValueError("it is an image; give the frames of a clip as a list of lists, such as [[frame, frame]].")
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        if not packets:
            raise ValueError("it holds no frame.")
        # Decoders show what there is of a GIF's last frame, which ends with a zero and, after it, the file's end mark.
        gif = container.format.name == "gif"
        unfinished = gif and bytes(packets[-1])[-1:] not in (b"\0", b";")
        if unfinished or any(packet.is_corrupt for packet in packets):
            raise ValueError("it is damaged or cut off.")
        if gif and _is_end(bytes(packets[-1])):
            packets.pop()
        # Raw streams have no times. Those of AVI are made up from the order of packets, which is not that of frames.
        self.timed = all(packet.pts is not None for packet in packets)
        self.has_reliable_times = self.timed and container.format.name != "avi"
        if self.timed:
            packets.sort(key=lambda packet: packet.pts)
            self.ticks = np.array([packet.pts for packet in packets])
            self.starts = self.ticks * float(stream.time_base)
        else:
            self.starts = np.arange(len(packets)) / float(stream.average_rate or 1)
        self.keys = np.array([packet.is_keyframe for packet in packets]).nonzero()[0]
        last = (packets[-1].duration or 0) * float(stream.time_base)
        gaps = np.diff(self.starts)
        self.end = self.starts[-1] + (last or (np.median(gaps) if len(gaps) else 0) or 1.0)

    @property
    def rate(self) -> float | None:
        """Frames in a second, on the average; `None` for one frame, and where the file does not tell."""
        return len(self.starts) / (self.end - self.starts[0]) if self.timed and len(self.starts) > 1 else None

    def frames(self, container: Any, chosen: np.ndarray, seek: bool) -> Iterator[np.ndarray]:
        """The chosen frames as arrays `(height, width, 3)`; it stops early if jumping did not lead to one of them.

        Args:
            container: The file, just opened.
            chosen: Indices of frames, ascending and different from each other.
            seek: Whether to jump over what is not needed.
        """
        stream = container.streams.video[0]
        decoded, position = container.decode(stream), -1  # the index of the last frame that was decoded
        shown, following = None, None
        for index in chosen.tolist():
            key = self.keys[max(0, np.searchsorted(self.keys, index, side="right") - 1)] if len(self.keys) else 0
            seek = seek and self.has_reliable_times
            if seek and key > position + _SEEK_FROM:
                container.seek(int(self.ticks[key]), stream=stream)
                decoded, shown, following = container.decode(stream), None, None
            while position <= index or following is None:
                if following is not None:
                    shown = following
                following = next(decoded, None)
                if following is None:
                    break
                position = self._position(following, position)
            if shown is None and not seek:
                shown = following  # the first that can be decoded at all
            if seek and (shown is None or shown.is_corrupt):
                return
            if shown is None:
                raise ValueError("none of its frames can be decoded.")
            if shown.is_corrupt:
                raise ValueError(f"frame {index} is damaged.")
            yield _upright(shown)

    def _position(self, frame: Any, previous: int) -> int:
        """The index of a decoded frame."""
        if not self.has_reliable_times or frame.pts is None:
            return previous + 1
        return max(0, int(np.searchsorted(self.ticks, frame.pts, side="right")) - 1)


def _is_end(packet: bytes) -> bool:
    """Whether a GIF's packet holds no image, but only extensions, such as a comment, and the file's end mark."""
    at = 0
    while (
        packet[at : at + 1] == b"!"
    ):  # an extension: its kind, and blocks behind their lengths, of which 0 is the last
        at += 2
        while packet[at : at + 1] not in (b"", b"\0"):
            at += 1 + packet[at]
        at += 1
    return packet[at : at + 1] == b";"


def _upright(frame: Any) -> np.ndarray:
    """A decoded frame as an array `(height, width, 3)`, or `(height, width)` of grey, turned as it is to be shown."""
    array = frame.to_ndarray(format="gray" if frame.format.name.startswith("gray") else "rgb24")
    return np.rot90(array, round(frame.rotation / 90))  # phones turn the picture when it is shown, not when it is taken
