"""One processor for several modalities: routing of arguments, and what it refuses."""

import json

import numpy as np
import pytest
import torch

from meta_transformer import MetaTransformerConfig, MetaTransformerProcessor
from meta_transformer.processors.image import ImageProcessor

IMAGE = np.zeros((16, 16, 3), np.uint8)
WAVE = np.sin(np.arange(8000) / 10).astype(np.float32)


@pytest.fixture
def processor():
    return MetaTransformerProcessor(image=ImageProcessor(image_mean=0.0), audio=True)


def test_tensors_of_all_modalities_come_together(processor):
    batch = processor(image=IMAGE, audio=WAVE, sampling_rate=16_000)
    assert set(batch) == {"pixel_values", "input_features"}
    image, audio = ["pixel_values", "pixel_mask", "image_samples"], ["input_features", "input_features_mask"]
    assert processor.model_input_names == [*image, *audio, "audio_samples"]


def test_a_modality_may_be_none(processor):
    assert set(processor(image=IMAGE, audio=None)) == {"pixel_values"}


def test_arguments_reach_the_processor_that_takes_them(processor):
    direct = processor(audio=WAVE, sampling_rate=8_000)
    named = processor(audio=WAVE, audio_kwargs={"sampling_rate": 8_000})
    torch.testing.assert_close(direct["input_features"], named["input_features"])
    assert direct["input_features"].shape[1] > processor(audio=WAVE, sampling_rate=16_000)["input_features"].shape[1]


def test_processors_are_attributes(processor):
    assert isinstance(processor.image, ImageProcessor)
    with pytest.raises(AttributeError, match="tabular"):
        processor.tabular  # noqa: B018


def test_processors_follow_from_a_configuration():
    options = {"audio": {"num_mel_bins": 64}, "image": {"num_channels": 1}, "tabular": {}}
    made = MetaTransformerProcessor.from_config(MetaTransformerConfig(modalities=options))
    assert list(made.processors) == ["audio", "image", "tabular"]
    assert (made.audio.num_mel_bins, made.image.num_channels) == (64, 1)


def test_raw_data_is_processed_in_full_precision_under_autocast(processor):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = processor(image=IMAGE, audio=WAVE, sampling_rate=16_000)
    assert {value.dtype for value in batch.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Nothing to process"),
        ({"smell": [1]}, "'smell' is no modality"),
        ({"tabular": {"a": 1}}, r"No processor for \['tabular'\] here, only for \['image', 'audio'\]"),
        ({"image": []}, "empty list"),
        ({"audio": WAVE}, "sampling_rate"),
        ({"image": [IMAGE, IMAGE], "audio": WAVE, "sampling_rate": 16_000}, "same number of samples"),
        ({"image": IMAGE, "window": 16}, "'window' is no modality, nor an argument"),
    ],
)
def test_bad_calls_are_refused(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_rows_and_columns_of_mixed_samples_give_the_same(processor):
    rows = [{"image": IMAGE, "audio": WAVE}, {"audio": WAVE[:4000], "image": None}, {"image": (IMAGE, IMAGE + 9)}]
    batch = processor(rows, sampling_rate=16_000)
    columns = processor(image=[IMAGE, None, (IMAGE, IMAGE + 9)], audio=[WAVE, WAVE[:4000], None], sampling_rate=16_000)
    assert batch.keys() == columns.keys()
    for name, value in batch.items():
        torch.testing.assert_close(columns[name], value, rtol=0, atol=0)
    assert batch["image_samples"].tolist() == [0, 2, 2]
    assert batch["audio_samples"].tolist() == [0, 1]
    torch.testing.assert_close(batch["pixel_values"], processor(image=[IMAGE, IMAGE, IMAGE + 9])["pixel_values"])


def test_samples_that_all_have_one_of_a_modality_need_no_numbers(processor):
    batch = processor([{"image": IMAGE, "audio": WAVE}, {"image": IMAGE, "audio": WAVE}], sampling_rate=16_000)
    assert set(batch) == {"pixel_values", "input_features"}


def test_gaps_of_one_series_and_points_as_tuples_are_no_samples():
    processor = MetaTransformerProcessor(time_series=True, point_cloud=True)
    assert "time_series_samples" not in processor(time_series=[1.0, None, 3.0, 4.0])
    cloud = [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)]
    assert "point_cloud_samples" not in processor(point_cloud=cloud)


def test_a_column_of_a_data_set_may_have_gaps():
    datasets = pytest.importorskip("datasets")
    column = datasets.Dataset.from_dict({"text": ["a", None, "b"]})["text"]
    batch = MetaTransformerProcessor(text=True, image=True)(text=column, image=[IMAGE] * 3)
    assert batch["text_samples"].tolist() == [0, 2]


def test_one_sample_that_is_a_tuple_is_refused_where_tuples_hold_several():
    cloud = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="point_cloud holds 3 samples, but they make 1: a tuple stands for several"):
        MetaTransformerProcessor(point_cloud=True)([{"point_cloud": cloud}])


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], ValueError, "empty list"),
        ({"image": IMAGE}, TypeError, "list of samples, each a dict"),
        ([IMAGE], TypeError, r"rows\[0\] must be a dict"),
        ([{"image": IMAGE}, {"smell": 1}], ValueError, r"rows\[1\] has the keys \['smell'\]"),
        ([{"image": IMAGE}, {}], ValueError, r"samples \[1\] have no modality"),
        ([{"image": None}, {}], ValueError, r"samples \[0, 1\] have no modality"),
        ([{}], ValueError, "No sample has any modality"),
    ],
)
def test_bad_rows_are_refused(processor, rows, error, message):
    with pytest.raises(error, match=message):
        processor(rows)


def test_a_modality_in_rows_and_beside_them_is_refused(processor):
    with pytest.raises(ValueError, match="once"):
        processor([{"image": IMAGE}], image=[IMAGE])


def test_bad_parts_are_refused():
    with pytest.raises(ValueError, match="at least one modality"):
        MetaTransformerProcessor()
    with pytest.raises(ValueError, match="Unknown modality 'smell'"):
        MetaTransformerProcessor(smell=True)
    with pytest.raises(TypeError, match="audio must be a AudioProcessor or True"):
        MetaTransformerProcessor(audio=ImageProcessor())


def test_a_folder_without_processor_is_refused(tmp_path):
    MetaTransformerConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no MetaTransformerProcessor"):
        MetaTransformerProcessor.from_pretrained(tmp_path)


def test_foreign_weights_bring_their_image_preprocessing(tmp_path):
    settings = {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": 64}, "pretrained_cfg": {}}
    settings["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.8}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    processor = MetaTransformerProcessor.from_pretrained(tmp_path)
    assert (processor.image.image_mean, processor.image.image_std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert processor(image=np.zeros((100, 200, 3), np.uint8))["pixel_values"].shape == (1, 3, 64, 64)
