"""Video processor: against PyAV's plain decoding, PIL and a loop over time, on files made here and on real clips."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.image import ImageProcessor
from meta_transformer.processors.video import VideoProcessor
from tests.support.clips import CLIP, decode, encode, raw, tensor, values
from tests.support.fuzz import finite_or_refused, measurements


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
        {"array": images, "frame_rate": 3},
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
    import datasets

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
        assert_close(values(raw(**options), form), values(raw(**options), CLIP, frame_rate=4.0))


def test_grey_files_and_clips_become_any_number_of_channels() -> None:
    grey = CLIP[..., :1]
    assert_close(values(raw(num_frames="all"), grey), tensor(grey).expand(-1, 3, -1, -1))
    one = values(raw(num_frames="all", num_channels=1), encode())
    three = values(raw(num_frames="all"), encode())
    assert_close(one, (three * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True))
    alpha = np.concatenate([CLIP, CLIP[..., :1]], axis=-1)
    assert_close(values(raw(num_frames="all"), alpha), tensor(CLIP))


def test_an_ambiguous_order_is_told_by_an_argument() -> None:
    clip = np.random.default_rng(0).integers(0, 256, size=(2, 3, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"video\[0\]: frame 0: cannot tell .* input_data_format"):
        raw()(clip)
    assert values(raw(), clip, input_data_format="channels_first").shape == (16, 3, 8, 3)
    assert values(raw(), clip, input_data_format="channels_last").shape == (16, 3, 3, 8)


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
    assert_close(values(processor, CLIP, frame_rate=own), tensor(CLIP[expected]))
    assert_close(values(processor, {"array": CLIP, "frame_rate": own}), tensor(CLIP[expected]))


@pytest.mark.parametrize("rate", [29.97, 24000 / 1001, 12.5, 1 / 3])
def test_a_clips_own_rate_gives_each_frame_once(rate: float) -> None:
    clip = np.zeros((300, 2, 2, 3), np.uint8)
    clip[:, 0, 0, 0], clip[:, 0, 1, 0] = np.arange(300) // 256, np.arange(300) % 256
    assert_close(values(raw(frames_per_second=rate), clip, frame_rate=rate), tensor(clip))


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
        ({"array": CLIP, "frame_rate": 0}, "frame_rate must be a positive number, got 0"),
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


def test_frames_chosen_by_time_need_a_rate() -> None:
    with pytest.raises(ValueError, match="pass frame_rate=<frames in a second of the clip>"):
        raw(frames_per_second=2)(CLIP)


@pytest.mark.parametrize(
    "sample",
    [{"array": CLIP, "frame_rate": 10}, encode("mp4"), encode("gif"), {"bytes": encode("avi")}, Decoder(CLIP, 10)],
)
def test_a_rate_that_contradicts_the_clips_own_is_refused(sample: Any) -> None:
    expected = values(raw(num_frames=2), sample)
    assert_close(values(raw(num_frames=2), sample, frame_rate=10.01), expected)
    with pytest.raises(ValueError, match="the clip has 10 frames per second, but frame_rate=5 was passed"):
        raw(num_frames=2)(sample, frame_rate=5)


@pytest.mark.parametrize("rate", [-2, 0, float("nan"), "10", True])
@pytest.mark.parametrize("sample", [encode("gif"), CLIP], ids=["file", "array"])
def test_a_rate_of_no_sense_is_refused_whether_needed_or_not(sample: Any, rate: Any) -> None:
    with pytest.raises(ValueError, match="frame_rate must be a positive number"):
        raw()(sample, frame_rate=rate)


def test_a_rate_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="would be 6000000000 frames"):
        raw(frames_per_second=1)(CLIP, frame_rate=1e-9)


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


DTYPES = ["uint8", "uint16", "float16", "int64", "bool", "complex64", "S3", "object"]
ARRAYS = st.builds(
    lambda shape, dtype: np.zeros(shape, dtype),
    st.lists(st.integers(0, 6), min_size=0, max_size=6).map(tuple),
    st.sampled_from(DTYPES),
)
ANYTHING = st.one_of(ARRAYS, st.none(), st.integers(), st.floats(), st.text(), st.binary(max_size=64))
SAMPLES = st.recursive(
    ANYTHING,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["array", "path", "bytes", "frame_rate"]), inner, max_size=3)
    ),
    max_leaves=6,
)
SIZES = st.integers(1, 9)
CLIPS = measurements(
    st.tuples(SIZES, SIZES, SIZES, st.sampled_from([1, 3, 4])) | st.tuples(SIZES, st.just(3), SIZES, st.just(5))
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SAMPLES, st.one_of(st.none(), st.floats(), st.integers(-1, 30)), st.sampled_from([{}, {"frames_per_second": 3}]))
def test_any_input_is_taken_or_refused_with_a_sentence(sample: Any, rate: Any, options: dict) -> None:
    finite_or_refused(lambda: VideoProcessor(**options)(sample, frame_rate=rate))


@settings(max_examples=40, deadline=None)
@given(
    clip=CLIPS,
    rate=st.floats(20, 60),
    options=st.sampled_from([{}, {"represent": "changes"}, {"size": [5, 3]}, {"frames_per_second": 60}]),
)
def test_a_clip_is_taken_if_its_values_lie_in_the_range(clip: np.ndarray, rate: float, options: dict) -> None:
    order = "channels_last" if clip.shape[-1] in (1, 3, 4) else "channels_first"
    processor = VideoProcessor(**{"num_frames": None if "frames_per_second" in options else "all", **options})
    taken = finite_or_refused(lambda: processor(clip, frame_rate=rate, input_data_format=order))
    assert taken == bool(((clip >= 0) & (clip <= 1)).all())
