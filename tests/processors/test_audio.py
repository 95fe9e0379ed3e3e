"""Audio processor: against transformers' AST feature extractor, soundfile, scipy and numpy, on real recordings."""

import io
import os
import sys
import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly
from transformers import ASTFeatureExtractor

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.audio import AudioProcessor
from tests.support.fuzz import finite_or_refused, measurements

RATE = 16_000


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    """A harmonic tone that swells and fades, with a little noise, as float32 in -1..1."""
    time = np.arange(round(seconds * rate)) / rate
    swell = np.sin(np.pi * time / seconds)
    noise = np.random.default_rng(0).normal(0, 0.01, len(time))
    return (0.4 * swell * (np.sin(2 * np.pi * hertz * time) + 0.5 * np.sin(4 * np.pi * hertz * time)) + noise).astype(
        "f4"
    )


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Mono 16-bit WAV files of 8 kHz and different length: spoken digits, or tones where there is no data."""
    data = os.environ.get("META_TRANSFORMER_DATA")
    if data:
        return sorted((Path(data) / "audio/fsdd_small/recordings").glob("3_*_1.wav"))[:4]
    paths = [tmp_path_factory.mktemp("audio") / f"{index}.wav" for index in range(4)]
    for index, path in enumerate(paths):
        soundfile.write(path, tone(0.3 + 0.1 * index, 8000), 8000, subtype="PCM_16")
    return paths


def features(samples: object, sampling_rate: int | None = None, **settings: object) -> torch.Tensor:
    return AudioProcessor(**settings)(samples, sampling_rate=sampling_rate)["input_features"]


def pcm16(path: Path) -> np.ndarray:
    """The integers of a WAV file, read by the standard library."""
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


@pytest.mark.parametrize("mels", [64, 128])
def test_features_equal_those_of_the_ast_feature_extractor(recordings: list[Path], mels: int) -> None:
    for path in recordings:
        waveform, _ = soundfile.read(path, dtype="float32")
        ours = features(waveform, RATE, num_mel_bins=mels)[0]
        theirs = ASTFeatureExtractor(num_mel_bins=mels)(waveform, sampling_rate=RATE, return_tensors="pt")[
            "input_values"
        ]
        assert len(ours) == 1 + (len(waveform) - 400) // 160
        # The one difference: the mean of the clip is subtracted, as in AST's own code, which only rounds differently.
        torch.testing.assert_close(ours, theirs[0, : len(ours)], atol=1e-4, rtol=0)


def test_resampling_agrees_with_scipy(recordings: list[Path]) -> None:
    waveform, rate = soundfile.read(recordings[0], dtype="float32")
    ours = features(waveform, rate)[0]
    reference = features(resample_poly(waveform, 2, 1).astype(np.float32), RATE)[0]
    # Bins below 3 kHz: near 4 kHz, where the recording ends, the two filters differ by design.
    torch.testing.assert_close(ours[:, :80], reference[:, :80], atol=0.02, rtol=0)


@pytest.mark.parametrize("rate", [44_101, 15_999, 47_999, 7919])
def test_rates_without_a_simple_ratio_cost_no_more_and_shift_no_tone(rate: int) -> None:
    # 44101 to 16000 Hz would ask for a filter of 700 million weights.
    found, expected = (features(tone(0.5, each, 1000), each)[0] for each in (rate, RATE))
    assert abs(len(found) - len(expected)) <= 1
    frames = min(len(found), len(expected))
    loud = expected[:frames] > expected.max() - 0.3
    torch.testing.assert_close(found[:frames][loud], expected[:frames][loud], atol=0.02, rtol=0)


def test_files_are_read_at_their_own_rate(recordings: list[Path]) -> None:
    for path in recordings:
        waveform, rate = soundfile.read(path, dtype="float32")
        expected = features(waveform, rate)
        assert rate == 8000
        for sample in (path, str(path), path.read_bytes()):
            assert torch.equal(features(sample), expected)


def test_both_forms_of_a_datasets_column_are_taken(recordings: list[Path]) -> None:
    from datasets import Audio, Dataset

    decoded = [dict(zip(("array", "sampling_rate"), soundfile.read(path), strict=True)) for path in recordings]
    dataset = Dataset.from_dict({"clip": [str(path) for path in recordings]}).cast_column("clip", Audio(decode=False))
    in_memory = [{"bytes": path.read_bytes(), "path": "not there"} for path in recordings]
    expected = features(recordings)
    for samples in (decoded, dataset["clip"], dataset[:]["clip"], in_memory):
        torch.testing.assert_close(features(samples), expected, atol=1e-5, rtol=0)


def test_a_torchcodec_decoder_is_taken() -> None:
    waveform = torch.stack([torch.from_numpy(tone(0.2)), torch.zeros(3200)])
    decoder = SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=waveform, sample_rate=RATE))
    assert torch.equal(features(decoder), features(waveform[0] / 2, RATE))
    assert torch.equal(features([decoder]), features(decoder))


def test_arrays_tensors_and_lists_of_numbers_are_the_same_clip() -> None:
    waveform = tone(0.2)
    expected = features(waveform, RATE)
    view = waveform[::-1].copy()[::-1]
    for sample in (torch.from_numpy(waveform), waveform.tolist(), tuple(waveform), waveform.astype("f8"), view):
        assert torch.equal(features(sample, RATE), expected)
        assert torch.equal(features([sample], RATE), expected)


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_integers_are_scaled_to_the_unit_range(recordings: list[Path], dtype: str) -> None:
    integers, rate = soundfile.read(recordings[0], dtype=dtype)
    torch.testing.assert_close(features(integers, rate), features(recordings[0]), atol=1e-6, rtol=0)


def test_integers_of_the_standard_librarys_wave_give_the_features_of_the_file(recordings: list[Path]) -> None:
    assert torch.equal(features(pcm16(recordings[0]), 8000), features(recordings[0]))


def test_channels_are_averaged_whichever_dimension_they_are() -> None:
    stereo = np.stack([tone(0.2), tone(0.2, hertz=1000)])
    expected = features((stereo[0] + stereo[1]) / 2, RATE)
    file = io.BytesIO()
    soundfile.write(file, stereo.T, RATE, format="WAV", subtype="FLOAT")
    for sample in (stereo, stereo.T, torch.from_numpy(stereo), file.getvalue()):
        torch.testing.assert_close(features(sample, RATE), expected, atol=1e-5, rtol=0)


def test_a_square_array_has_its_channels_first() -> None:
    square = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32)
    torch.testing.assert_close(features(square, RATE), features(square.mean(axis=0), RATE))


def test_clips_of_different_length_are_padded_with_zeros_and_masked(recordings: list[Path]) -> None:
    batch = AudioProcessor()(recordings)
    clips = [features(path)[0] for path in recordings]
    assert batch["input_features"].dtype == torch.float32
    assert batch["input_features_mask"].dtype == torch.bool
    assert batch["input_features_mask"].sum(dim=1).tolist() == [len(clip) for clip in clips]
    for row, mask, clip in zip(batch["input_features"], batch["input_features_mask"], clips, strict=True):
        assert torch.equal(row[mask], clip)
        assert torch.equal(row[len(clip) :], torch.zeros(len(row) - len(clip), 128))


def test_clips_of_equal_length_have_no_mask() -> None:
    assert list(AudioProcessor()([tone(0.2), tone(0.2, hertz=1000)], sampling_rate=RATE)) == ["input_features"]


def test_a_clip_shorter_than_a_window_is_padded_with_silence_to_one_frame() -> None:
    short = tone(0.01)
    padded = np.concatenate([short - short.mean(), np.zeros(240)])
    assert features(short, RATE).shape == (1, 1, 128)
    torch.testing.assert_close(features(short, RATE), features(padded, RATE), atol=1e-4, rtol=0)


def test_fit_learns_the_mean_and_standard_deviation_of_all_real_frames(recordings: list[Path]) -> None:
    extractor = ASTFeatureExtractor(do_normalize=False, max_length=1000)
    values = []
    for path in recordings:
        waveform = pcm16(path).astype(np.float32) / 32768
        frames = 1 + (len(waveform) - 400) // 160
        values.append(np.asarray(extractor(waveform, sampling_rate=RATE)["input_values"])[0, :frames])
    values = np.concatenate(values).astype(np.float64)
    processor = AudioProcessor().fit((pcm16(path) for path in recordings), sampling_rate=RATE)
    assert processor.mean == pytest.approx(values.mean(), abs=1e-4)
    assert processor.std == pytest.approx(values.std(), abs=1e-4)


def test_features_of_the_fitted_corpus_have_mean_0_and_standard_deviation_one_half(recordings: list[Path]) -> None:
    batch = AudioProcessor().fit(recordings)(recordings)
    values = batch["input_features"][batch["input_features_mask"]]
    assert values.mean().item() == pytest.approx(0, abs=1e-5)
    assert values.std(correction=0).item() == pytest.approx(0.5, abs=1e-5)


def test_silence_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="fit on clips with sound"):
        AudioProcessor().fit([np.zeros(4000)], sampling_rate=RATE)


def test_silence_has_the_lowest_features() -> None:
    # Kaldi's floor is the logarithm of the machine epsilon.
    expected = (np.log(np.finfo(np.float32).eps) + 4.2677393) / (2 * 4.5689974)
    silence = features(np.zeros(4000), RATE)
    torch.testing.assert_close(silence, torch.full_like(silence, expected))


def test_settings_and_statistics_survive_json(recordings: list[Path], tmp_path: Path) -> None:
    processor = AudioProcessor(sampling_rate=8000, num_mel_bins=40).fit(recordings)
    MetaTransformerProcessor(audio=processor).save_pretrained(tmp_path)
    restored = MetaTransformerProcessor.from_pretrained(tmp_path)
    assert restored.audio.to_dict() == processor.to_dict()
    assert torch.equal(restored(audio=recordings)["input_features"], processor(recordings)["input_features"])


def test_the_tokenizer_gets_the_number_of_mel_bins() -> None:
    assert AudioProcessor(num_mel_bins=64).tokenizer_config() == {"num_mel_bins": 64}


def test_numpy_arrays_are_returned_on_request(recordings: list[Path]) -> None:
    arrays, tensors = (AudioProcessor()(recordings, return_tensors=kind) for kind in ("np", "pt"))
    for name, tensor in tensors.items():
        assert isinstance(arrays[name], np.ndarray)
        assert np.array_equal(arrays[name], tensor.numpy())


def test_dummy_samples_are_ragged_and_repeatable() -> None:
    first, again = (AudioProcessor().dummy_samples(4, seed=3) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({len(clip) for clip in first}) > 1
    assert all(0.3 <= len(clip) / RATE <= 0.6 and clip.dtype == np.float32 for clip in first)


GOOD = np.ones(1000, np.float32)
BAD_SAMPLES = {
    "empty array": (GOOD[:0], ValueError, "the clip is empty"),
    "nan": (np.full(1000, np.nan, np.float32), ValueError, "NaN or infinity"),
    "infinity": (np.full(1000, -np.inf, np.float32), ValueError, "NaN or infinity"),
    "too loud": (np.full(1000, 1e20), ValueError, "more than 1e\\+15"),
    "beyond float32": (np.full(1000, 1e200), ValueError, "more than 1e\\+15"),
    "three dimensions": (np.ones((2, 2, 1000)), ValueError, "several clips as a list"),
    "no dimension": (np.array(1.0), ValueError, "must have shape"),
    "many channels": (np.ones((20, 1000)), ValueError, "20 channels; give several clips as a list"),
    "ragged lists": ([[0.1, 0.2], [0.3]], ValueError, "inhomogeneous"),
    "int64": (np.ones(1000, np.int64), TypeError, "int64 have no known range"),
    "complex": (np.ones(1000, np.complex64), TypeError, "complex64 have no known range"),
    "missing file": ("no/such/file.wav", ValueError, "no file 'no/such/file.wav'"),
    "file of another kind": (Path(__file__), ValueError, "cannot read .*test_audio.py' as an audio file"),
    "raw bytes": (b"\0" * 1000, ValueError, "cannot read 1000 bytes as an audio file"),
    "dict without audio": ({"bytes": None, "path": None}, ValueError, "must hold 'array' and 'sampling_rate'"),
    "contradicting rate": ({"array": GOOD, "sampling_rate": 8000}, ValueError, "8000 Hz, but sampling_rate=16000"),
    "rate of no sense": ({"array": GOOD, "sampling_rate": "16k"}, ValueError, "16k"),
    "none": (None, TypeError, "got NoneType"),
    "object": (object(), TypeError, "got object"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_sample_is_named_with_its_index_and_the_remedy(case: str) -> None:
    sample, error, message = BAD_SAMPLES[case]
    with pytest.raises(error, match=rf"audio\[1\]: .*{message}"):
        AudioProcessor()([GOOD, sample], sampling_rate=RATE)


@pytest.mark.parametrize("sample", [GOOD, [0.1, 0.2], {"array": GOOD}], ids=["array", "list", "dict"])
def test_an_array_without_sampling_rate_is_refused(sample: object) -> None:
    with pytest.raises(ValueError, match="pass sampling_rate=<Hz>"):
        AudioProcessor()(sample)


def test_a_file_refuses_another_sampling_rate_than_its_own(recordings: list[Path]) -> None:
    with pytest.raises(ValueError, match="8000 Hz, but sampling_rate=16000"):
        AudioProcessor()(recordings, sampling_rate=RATE)


@pytest.mark.parametrize("rate", [0, -8000, 16_000.5, 10**15])
def test_a_sampling_rate_must_be_a_positive_integer(rate: float) -> None:
    with pytest.raises(ValueError, match="positive integer, in Hz"):
        AudioProcessor()(GOOD, sampling_rate=rate)


def test_an_empty_list_and_what_is_no_sample_are_refused() -> None:
    with pytest.raises(ValueError, match="audio is an empty list"):
        AudioProcessor()([])
    with pytest.raises(TypeError, match="got int"):
        AudioProcessor()(3)


@pytest.mark.parametrize(
    "settings",
    [{"sampling_rate": 999}, {"sampling_rate": 16e3}, {"num_mel_bins": 3}, {"std": 0.0}, {"mean": float("nan")}],
)
def test_settings_that_make_no_features_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}.* must be"):
        AudioProcessor(**settings)


@pytest.mark.parametrize("module", ["soundfile", "torchaudio"])
def test_a_missing_package_is_named_with_its_extra(
    module: str, recordings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "meta_transformer\[audio\]"'):
        AudioProcessor()(recordings)


CLIPS = measurements(
    st.tuples(st.integers(1, 3000)) | st.tuples(st.integers(1, 2), st.integers(1, 3000)), ["f2", "f4", "f8"]
)
LOOSE = st.none() | st.floats() | st.text(max_size=8) | st.binary(max_size=40)
KEYS = st.sampled_from(["array", "sampling_rate", "path", "bytes"])
ARRAYS = st.sampled_from(["u1", "i2", "i4", "i8", "c8", "?", "U1", "O"]).flatmap(
    lambda dtype: st.lists(st.integers(0, 4), max_size=3).map(lambda shape: np.zeros(shape, dtype))
)
ANY = CLIPS | LOOSE | ARRAYS | st.dictionaries(KEYS, LOOSE | CLIPS | st.integers(), max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    samples=ANY | st.lists(ANY, max_size=3),
    rate=st.none() | st.sampled_from([RATE, 8000, 44_100, 3, 10**9, 0]) | st.floats(),
)
def test_any_input_gives_finite_features_or_a_sentence(samples: object, rate: object) -> None:
    finite_or_refused(lambda: AudioProcessor()(samples, sampling_rate=rate))


@settings(max_examples=40, deadline=None)
@given(CLIPS, st.sampled_from([RATE, 8000, 44_100, 44_101]))
def test_a_clip_is_taken_unless_it_has_no_finite_power(clip: np.ndarray, rate: int) -> None:
    taken = finite_or_refused(lambda: AudioProcessor()(clip, sampling_rate=rate))
    assert taken == bool((np.abs(clip.astype(np.float64)) <= 1e15).all())
