"""Video processor: against PyAV's plain decoding, PIL and a loop over time, on files made here and on real clips."""

import io
import os
import sys
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.image import ImageProcessor
from meta_transformer.processors.readers import video_files
from meta_transformer.processors.video import VideoProcessor
from tests.support.fuzz import finite_or_refused

RANDOM = np.random.default_rng(0)
CLIP = RANDOM.integers(0, 256, size=(6, 20, 30, 3), dtype=np.uint8)
FORMATS = {
    "mp4": ("mp4", "libx264", "yuv420p"),
    "webm": ("webm", "libvpx-vp9", "yuv420p"),
    "avi": ("avi", "mpeg4", "yuv420p"),
    "avi with B-frames": ("avi", "libx264", "yuv420p"),
    "mpegts": ("mpegts", "libx264", "yuv420p"),
    "gif": ("gif", "gif", "rgb8"),
    "raw": ("h264", "libx264", "yuv420p"),
}


def encode(
    kind: str = "mp4",
    frames: int = 20,
    rate: int = 10,
    times: list[int] | None = None,
    size: tuple[int, int] = (64, 48),
    **options: str,
) -> bytes:
    """A file whose frame number `n` is of the one grey level `5 + 10 n % 240`; `times` are in milliseconds."""
    container_format, codec, pixel_format = FORMATS[kind]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            level = np.full((size[1], size[0], 3), 5 + 10 * number % 240, np.uint8)
            frame = av.VideoFrame.from_ndarray(level, format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = times[number] if times else number * 1000 // rate, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode(data: bytes | Path) -> np.ndarray:
    """All frames as PyAV gives them, one after the other."""
    with av.open(io.BytesIO(data) if isinstance(data, bytes) else str(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def raw(**options: Any) -> VideoProcessor:
    """A processor that scales to 0..1 and keeps the size."""
    return VideoProcessor(**{"image_mean": 0.0, "image_std": 1.0, **options})


def values(processor: VideoProcessor, sample: Any, **kwargs: Any) -> torch.Tensor:
    return processor(sample, **kwargs)["pixel_values_videos"][0]


def numbers(clip: torch.Tensor) -> list[int]:
    """The numbers of the frames of a file of `encode`, from their levels."""
    return [round((level - 5) / 10) for level in (clip.mean(dim=(1, 2, 3)) * 255).tolist()]


def tensor(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """MP4 files of surveillance cameras, or of generated levels where there is no data."""
    data = os.environ.get("META_TRANSFORMER_DATA")
    if data:
        return sorted((Path(data) / "video/fight_surveillance/clips/fight").glob("*.mp4"))[:6]
    paths = [tmp_path_factory.mktemp("video") / f"{index}.mp4" for index in range(3)]
    for index, path in enumerate(paths):
        path.write_bytes(encode(frames=15 + 5 * index, rate=10 + index))
    return paths


# What goes in


@pytest.mark.parametrize("kind", FORMATS)
def test_every_frame_of_a_file_equals_pyavs(kind: str) -> None:
    data = encode(kind)
    assert_close(values(raw(num_frames="all"), data), tensor(decode(data)))


def test_every_frame_of_a_real_recording_equals_pyavs(recordings: list[Path]) -> None:
    for path in recordings:
        assert_close(values(raw(num_frames="all"), path), tensor(decode(path)))


def test_all_forms_of_one_clip_give_the_same(tmp_path: Path) -> None:
    expected = tensor(CLIP)
    images = [Image.fromarray(frame) for frame in CLIP]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(len(CLIP))]
    for form in (
        CLIP,
        [CLIP],
        torch.from_numpy(CLIP),
        torch.from_numpy(CLIP).permute(0, 3, 1, 2),
        CLIP.astype(np.float64) / 255,
        CLIP[None],
        {"array": CLIP},
        {"array": images, "frames_per_second": 3},
        images,
        [images],
        tuple(images),
        list(CLIP),
        [list(CLIP)],
        iter([CLIP]),
        [paths],
        [[Path(path).read_bytes() for path in paths]],
        [[{"path": path, "bytes": None} for path in paths]],
    ):
        assert_close(values(raw(num_frames="all"), form), expected)


def test_all_forms_of_one_file_give_the_same(tmp_path: Path) -> None:
    data = encode()
    (tmp_path / "a.mp4").write_bytes(data)
    expected = values(raw(), data)
    for form in (
        tmp_path / "a.mp4",
        str(tmp_path / "a.mp4"),
        [data],
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.mp4")},
    ):
        assert_close(values(raw(), form), expected, rtol=0, atol=0)


def test_a_column_of_datasets_is_taken(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "a.mp4").write_bytes(encode())
    column = datasets.Dataset.from_dict({"video": [str(tmp_path / "a.mp4")] * 2})
    column = column.cast_column("video", datasets.Video(decode=False))
    assert raw(num_frames=4)(column["video"])["pixel_values_videos"].shape == (2, 4, 3, 48, 64)


class Decoder:
    """What this processor uses of torchcodec's `VideoDecoder`."""

    def __init__(self, frames: np.ndarray, rate: float) -> None:
        self.frames, self.rate = torch.from_numpy(frames).permute(0, 3, 1, 2), rate
        self.metadata = SimpleNamespace(begin_stream_seconds=2.0, end_stream_seconds=2.0 + len(frames) / rate)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.frames[index]

    def get_frame_played_at(self, seconds: float) -> SimpleNamespace:
        return SimpleNamespace(data=self.frames[int((seconds - 2.0) * self.rate + 1e-6)])


@pytest.mark.parametrize("options", [{"num_frames": "all"}, {"num_frames": 3}, {"frames_per_second": 2}])
def test_a_decoder_of_torchcodec_gives_what_an_array_gives(options: dict) -> None:
    decoder = Decoder(CLIP, 4.0)
    for form in (decoder, [decoder]):
        assert_close(values(raw(**options), form), values(raw(**options), CLIP, frames_per_second=4.0))


def test_grey_files_and_clips_become_any_number_of_channels() -> None:
    grey = CLIP[..., :1]
    assert_close(values(raw(num_frames="all"), grey), tensor(grey).expand(-1, 3, -1, -1))
    one = values(raw(num_frames="all", num_channels=1), encode())
    three = values(raw(num_frames="all"), encode())
    assert_close(one, (three * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True))
    alpha = np.concatenate([CLIP, CLIP[..., :1]], axis=-1)
    assert_close(values(raw(num_frames="all"), alpha), tensor(CLIP))


def test_an_ambiguous_order_is_told_by_an_argument() -> None:
    clip = RANDOM.integers(0, 256, size=(2, 3, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"video\[0\]: frame 0: cannot tell .* input_data_format"):
        raw()(clip)
    assert values(raw(), clip, input_data_format="channels_first").shape == (16, 3, 8, 3)
    assert values(raw(), clip, input_data_format="channels_last").shape == (16, 3, 3, 8)


def test_a_recording_of_a_turned_phone_is_turned_upright() -> None:
    data = bytearray(encode(size=(64, 32)))
    identity = b"".join(value.to_bytes(4, "big") for value in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    turned = (0, 1 << 16, 0, (1 << 32) - (1 << 16), 0, 0, 0, 0, 1 << 30)  # by 90 degrees clockwise
    start = data.index(identity, data.index(b"tkhd"))
    data[start : start + 36] = b"".join(value.to_bytes(4, "big") for value in turned)
    assert values(raw(), bytes(data)).shape == (16, 3, 64, 32)
    turns = [np.rot90(frame, -1) for frame in decode(bytes(data))]
    assert_close(values(raw(num_frames="all"), bytes(data)), tensor(np.stack(turns)))


# Which frames are chosen


@pytest.mark.parametrize(
    ("frames", "wanted", "expected"),
    [
        (6, 3, [1, 3, 5]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (6, 4, [0, 2, 3, 5]),
        (5, 1, [2]),
        (2, 4, [0, 0, 1, 1]),
        (1, 3, [0] * 3),
    ],
)
def test_a_number_of_frames_is_spread_over_the_middles_of_equal_parts(
    frames: int, wanted: int, expected: list[int]
) -> None:
    assert_close(values(raw(num_frames=wanted), CLIP[:frames]), tensor(CLIP[expected]))


@pytest.mark.parametrize(
    ("own", "wanted", "expected"),
    [(4, 2, [0, 2, 4]), (4, 4, [0, 1, 2, 3, 4, 5]), (3, 2, [0, 1, 3, 4]), (2, 4, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])],
)
def test_a_rate_of_frames_counts_from_the_start(own: float, wanted: float, expected: list[int]) -> None:
    processor = raw(frames_per_second=wanted)
    assert_close(values(processor, CLIP, frames_per_second=own), tensor(CLIP[expected]))
    assert_close(values(processor, {"array": CLIP, "frames_per_second": own}), tensor(CLIP[expected]))


@pytest.mark.parametrize("rate", [29.97, 24000 / 1001, 12.5, 1 / 3])
def test_a_clips_own_rate_gives_each_frame_once(rate: float) -> None:
    clip = np.zeros((300, 2, 2, 3), np.uint8)
    clip[:, 0, 0, 0], clip[:, 0, 1, 0] = np.arange(300) // 256, np.arange(300) % 256
    assert_close(values(raw(frames_per_second=rate), clip, frames_per_second=rate), tensor(clip))


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


# What comes out


def test_each_frame_is_what_the_image_processor_makes_of_it(recordings: list[Path]) -> None:
    options = {"size": 40, "crop_size": [32, 36], "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    frames = decode(recordings[0])[:4]
    expected = ImageProcessor(**options)(list(frames))["pixel_values"]
    assert_close(values(VideoProcessor(num_frames=4, **options), frames), expected)


def test_changes_are_absolute_differences_to_the_frame_before() -> None:
    processor = raw(num_frames="all", represent="changes")
    levels = CLIP.astype(np.float64) / 255
    expected = [np.abs(levels[max(1, index)] - levels[max(1, index) - 1]) for index in range(len(CLIP))]
    assert_close(values(processor, CLIP), torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2).float())
    assert values(processor, CLIP[:1]).abs().max() == 0
    assert values(processor, CLIP[[2] * 4]).abs().max() == 0


def test_changes_are_those_between_chosen_frames() -> None:
    assert_close(
        values(raw(num_frames=3, represent="changes"), CLIP),
        values(raw(num_frames="all", represent="changes"), CLIP[[1, 3, 5]]),
    )


def test_clips_of_one_shape_need_no_mask() -> None:
    assert set(raw(num_frames=4)([CLIP, CLIP[:2]])) == {"pixel_values_videos"}


def test_clips_of_different_length_and_size_are_padded_and_masked() -> None:
    short, small = CLIP[:4], CLIP[:, :8, :12]
    batch = VideoProcessor(num_frames="all")([short, small])
    pixels, frames, inside = (
        batch[name] for name in ("pixel_values_videos", "padding_mask_videos", "pixel_mask_videos")
    )
    assert pixels.shape == (2, 6, 3, 20, 30)
    assert frames.tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    assert inside.sum(dim=(1, 2)).tolist() == [20 * 30, 8 * 12]
    assert inside[1, :8, :12].all()
    real = frames[:, :, None, None, None] & inside[:, None, None]
    assert pixels.masked_select(~real.expand_as(pixels)).abs().max() == 0
    assert_close(pixels[1, :, :, :8, :12], values(VideoProcessor(num_frames="all"), small))


def test_only_what_differs_is_masked() -> None:
    processor = raw(num_frames="all")
    assert set(processor([CLIP, CLIP[:2]])) == {"pixel_values_videos", "padding_mask_videos"}
    assert set(processor([CLIP, CLIP[:, :9]])) == {"pixel_values_videos", "pixel_mask_videos"}


@pytest.mark.parametrize("options", [{"num_frames": 5}, {"frames_per_second": 2.5}, {"num_frames": "all"}, {}])
def test_settings_survive_saving(options: dict, tmp_path: Path) -> None:
    processor = MetaTransformerProcessor(video=VideoProcessor(size=16, **options))
    processor.save_pretrained(tmp_path)
    loaded = MetaTransformerProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert_close(dict(loaded(video=encode())), dict(processor(video=encode())))


# What is refused


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (b"", "cannot read 0 bytes as a video file"),
        (b"no video", "cannot read 8 bytes as a video file"),
        ("no/such/file.mp4", "there is no file 'no/such/file.mp4'"),
        ({"path": None, "bytes": None}, "a dict must hold 'array', 'bytes' or 'path'"),
        ({"array": CLIP, "frames_per_second": 0}, "frames_per_second must be a positive number, got 0"),
        ([], "the clip holds no frame"),
        (CLIP[:0], "the clip holds no frame"),
        (CLIP[:, :0], "frame 0: the array is empty"),
        (CLIP[0], "an array must have shape"),
        (CLIP[0, 0], "an array must have shape"),
        (np.full((2, 8, 8, 3), np.nan), "frame 0: .*NaN"),
        (np.full((2, 8, 8, 3), 255.0), "frame 0: .*float_range"),
        (np.zeros((2, 8, 8, 3), np.int64), "frame 0: .*int64"),
        (np.zeros((2, 8, 8, 5), np.uint8), "cannot tell"),
        ([CLIP[0], CLIP[1, :9]], "the frames of a clip must have one height and width"),
    ],
)
def test_bad_clips_are_refused_with_their_index(sample: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"video\[1\]: .*{message}"):
        raw(num_frames="all")([CLIP, sample])


@pytest.mark.parametrize("sample", [3, None, 1.5, object(), Image.fromarray(CLIP[0])])
def test_something_else_is_refused(sample: Any) -> None:
    for form in (sample, [CLIP, sample]):
        with pytest.raises(TypeError, match="got [A-Za-z]+"):
            raw()(form)


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


def test_damaged_frames_are_refused_or_decoded() -> None:
    data = bytearray(encode(size=(160, 120)))
    start = data.index(b"mdat") + 900
    data[start : start + 200] = RANDOM.bytes(200)
    assert finite_or_refused(lambda: raw()(bytes(data))) in (True, False)


def test_frames_chosen_by_time_need_a_rate() -> None:
    with pytest.raises(ValueError, match="pass frames_per_second=<rate of the clip>"):
        raw(frames_per_second=2)(CLIP)


def test_a_rate_that_contradicts_the_clips_own_is_refused() -> None:
    with pytest.raises(ValueError, match="the clip has 4 frames per second, but frames_per_second=5"):
        raw(frames_per_second=2)({"array": CLIP, "frames_per_second": 4}, frames_per_second=5)


def test_a_rate_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="would be 6000000000 frames"):
        raw(frames_per_second=1)(CLIP, frames_per_second=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames must be a positive integer or 'all', got 0"),
        ({"num_frames": 2.5}, "num_frames must be"),
        ({"num_frames": True}, "num_frames must be"),
        ({"num_frames": "every"}, "num_frames must be"),
        ({"frames_per_second": 0}, "frames_per_second must be a positive number, got 0"),
        ({"frames_per_second": float("inf")}, "frames_per_second must be"),
        ({"frames_per_second": "5"}, "frames_per_second must be"),
        ({"num_frames": 4, "frames_per_second": 2}, "not both"),
        ({"represent": "motion"}, "represent must be 'frames' or 'changes', got 'motion'"),
        ({"num_channels": 0}, "num_channels"),
    ],
)
def test_impossible_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoProcessor(**options)


def test_a_missing_pyav_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "meta_transformer\[video\]"'):
        raw()(b"anything")


DTYPES = ["uint8", "uint16", "float32", "float64", "float16", "int64", "bool", "complex64", "S3", "object"]
ARRAYS = st.builds(
    lambda shape, dtype: np.zeros(shape, dtype),
    st.lists(st.integers(0, 6), min_size=0, max_size=6).map(tuple),
    st.sampled_from(DTYPES),
)
ODD = st.sampled_from([np.full((2, 4, 5, 3), bad) for bad in (np.nan, np.inf, -1.0, 0.5)])
ANYTHING = st.one_of(ARRAYS, ODD, st.none(), st.integers(), st.floats(), st.text(), st.binary(max_size=64))
SAMPLES = st.recursive(
    ANYTHING,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["array", "path", "bytes", "frames_per_second"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SAMPLES, st.one_of(st.none(), st.floats(), st.integers(-1, 30)), st.sampled_from([{}, {"frames_per_second": 3}]))
def test_any_input_is_taken_or_refused_with_a_sentence(sample: Any, rate: Any, options: dict) -> None:
    processor = VideoProcessor(**options)
    call: Callable[[], Any] = lambda: processor(sample, frames_per_second=rate)  # noqa: E731
    finite_or_refused(call)
