"""Reading video files: against PyAV's plain decoding, on files of many formats that are made here."""

import io
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from torch.testing import assert_close

from meta_transformer.processors.readers import video_files
from meta_transformer.processors.video import VideoProcessor
from tests.support.clips import CLIP, FORMATS, decode, encode, numbers, raw, tensor, values


@pytest.mark.parametrize("kind", FORMATS)
def test_every_frame_of_a_file_equals_pyavs(kind: str) -> None:
    data = encode(kind)
    assert_close(values(raw(num_frames="all"), data), tensor(decode(data)))


def test_a_recording_of_a_turned_phone_is_turned_upright() -> None:
    data = bytearray(encode(size=(64, 32)))
    identity = b"".join(value.to_bytes(4, "big") for value in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    turned = (0, 1 << 16, 0, (1 << 32) - (1 << 16), 0, 0, 0, 0, 1 << 30)  # by 90 degrees clockwise
    start = data.index(identity, data.index(b"tkhd"))
    data[start : start + 36] = b"".join(value.to_bytes(4, "big") for value in turned)
    assert values(raw(), bytes(data)).shape == (16, 3, 64, 32)
    turns = [np.rot90(frame, -1) for frame in decode(bytes(data))]
    assert_close(values(raw(num_frames="all"), bytes(data)), tensor(np.stack(turns)))


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "raw"])
def test_frames_of_a_variable_rate_are_chosen_by_time(kind: str) -> None:
    times = [0, 100, 200, 1000, 1100, 1200, 1300, 1400]  # nothing happens for 0.8 s; the end is at 1.5 s
    data = encode(kind, 8, times=times)
    if kind != "avi with B-frames":  # whose times are not those that were written
        assert numbers(values(raw(num_frames=5), data)) == [1, 2, 2, 3, 6]  # at 0.15, 0.45, 0.75, 1.05 and 1.35 s
        assert numbers(values(raw(frames_per_second=5), data)) == [0, 2, 2, 2, 2, 3, 5, 7]
    assert numbers(values(raw(num_frames="all"), data)) == list(range(8))


def test_a_clip_may_start_late() -> None:
    data = encode("mpegts", 10, times=[5000 + 100 * number for number in range(10)])
    assert numbers(values(raw(num_frames=5), data)) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("kind", ["mp4", "webm", "mpegts"])
def test_jumping_finds_the_frames_that_plain_decoding_finds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(kind, 200, 25, g="20")
    jumps = values(raw(num_frames=7), data)
    monkeypatch.setattr(video_files, "_SEEK_FROM", 10**9)
    assert_close(jumps, values(raw(num_frames=7), data), rtol=0, atol=0)


def test_jumping_decodes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    data, decoded = encode("mp4", 400, 25, g="20"), []
    position = video_files.Timeline._position

    def counted(*arguments: Any) -> int:
        decoded.append(1)
        return position(*arguments)

    monkeypatch.setattr(video_files.Timeline, "_position", counted)
    values(raw(num_frames=4), data)
    assert len(decoded) < 100


def test_a_jump_that_leads_too_far_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode("mp4", 200, 25, g="20")
    expected = values(raw(num_frames=4), data)
    initialise = video_files.Timeline.__init__

    def misled(self: Any, container: Any) -> None:
        initialise(self, container)
        self.ticks = self.ticks.copy()
        self.keys = self.keys + 15  # the next key frame is taken for the one before

    monkeypatch.setattr(video_files.Timeline, "__init__", misled)
    assert_close(values(raw(num_frames=4), data), expected)


def test_a_long_clip_of_large_frames_needs_little_memory() -> None:
    """60 frames of 640x480 are 221 MB in float32; 4 small ones are wanted."""
    data = encode("mp4", 60, 25, size=(640, 480))
    processor = VideoProcessor(num_frames=4, size=32)
    processor(data)
    tracemalloc.start()
    processor(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_a_still_image_is_no_clip(tmp_path: Path) -> None:
    Image.fromarray(CLIP[0]).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="it is an image; .* list of lists"):
        raw()([tmp_path / "a.png"])


def test_a_file_of_sound_is_no_clip() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ValueError, match="it holds no video"):
        raw()(buffer.getvalue())


@pytest.mark.parametrize("kind", ["mp4", "webm", "avi", "gif"])
@pytest.mark.parametrize("cut", [0.02, 0.3, 0.9])
def test_a_file_that_is_cut_off_gives_its_first_frames_or_an_error(kind: str, cut: float) -> None:
    data = encode(kind, 20, size=(160, 120), movflags="faststart") if kind == "mp4" else encode(kind, size=(160, 120))
    try:
        found = numbers(values(raw(num_frames="all"), data[: int(cut * len(data))]))
    except ValueError as error:
        assert "video[0]: cannot read" in str(error)
    else:
        assert found == list(range(len(found)))


def test_an_mp4_without_its_index_is_refused() -> None:
    with pytest.raises(ValueError, match=r"video\[0\]: cannot read \d+ bytes as a video file"):
        raw()(encode()[:-600])


def test_damaged_frames_are_refused() -> None:
    data = bytearray(encode(size=(160, 120)))
    start = data.index(b"mdat") + 900
    data[start : start + 200] = np.random.default_rng(0).bytes(200)
    with pytest.raises(ValueError, match=r"video\[0\]: cannot read \d+ bytes as a video file"):
        raw()(bytes(data))


def test_a_missing_pyav_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "meta_transformer\[video\]"'):
        raw()(b"anything")


def test_a_comment_after_the_last_frame_of_a_gif_is_no_frame() -> None:
    data = encode("gif", 5)
    comment = b"!\xfe\x05hello\0"
    for tail in (comment, comment * 2, b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"):
        assert numbers(values(raw(num_frames="all"), data[:-1] + tail + b";")) == [0, 1, 2, 3, 4]
