"""Models with several modalities, and what they refuse."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForVideoClassification,
)

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerModel,
    MetaTransformerProcessor,
    TokenSequence,
)
from meta_transformer.tokenizers.image import ImageTokenizer

TRUNK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGES = [np.random.default_rng(0).integers(0, 256, (size, 24, 3), dtype=np.uint8) for size in (24, 40)]
TABLE = pd.DataFrame({"height": [1.5, 2.0], "colour": ["red", "blue"]})


@pytest.fixture
def processor():
    fitted = MetaTransformerProcessor(image=True, tabular=True).tabular.fit(TABLE)
    return MetaTransformerProcessor(image=True, tabular=fitted)


@pytest.fixture
def model(processor):
    torch.manual_seed(0)
    return MetaTransformerModel(MetaTransformerConfig(**TRUNK, modalities=processor.tokenizer_configs())).eval()


def test_modalities_of_a_sample_share_one_sequence(model, processor):
    sequence = model.tokenize(**processor(image=IMAGES, tabular=TABLE))
    assert [(s.modality, s.start, s.length) for s in sequence.segments] == [("image", 1, 6), ("tabular", 7, 2)]
    assert sequence.embeddings.shape == (2, 9, 32)
    assert sequence.mask.sum(dim=1).tolist() == [1 + 4 + 2, 1 + 6 + 2]


def test_any_subset_of_the_modalities_can_be_given(model, processor):
    assert len(model(**processor(tabular=TABLE)).last_hidden_state[0]) == 3
    assert len(model(**processor(image=IMAGES)).last_hidden_state[0]) == 7


def test_with_zero_modality_embedding_one_modality_gives_what_a_model_of_it_alone_gives(model, processor):
    alone = MetaTransformerModel(MetaTransformerConfig(**TRUNK, modalities={"image": model.config.modalities["image"]}))
    missing, unexpected = alone.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all("tabular" in name for name in unexpected)
    batch = processor(image=IMAGES)
    assert_close(alone.eval()(**batch).last_hidden_state, model(**batch).last_hidden_state, rtol=0, atol=0)


def test_modalities_attend_to_each_other(model, processor):
    batch = processor(image=IMAGES, tabular=TABLE)
    other = {**batch, "numerical_features": batch["numerical_features"] + 1}
    difference = model(**batch).last_hidden_state - model(**other).last_hidden_state
    assert difference[:, 1].abs().max() > 1e-5  # an image token


def test_two_tables_for_one_image_are_refused(model, processor):
    with pytest.raises(ValueError, match="same number of samples"):
        processor(image=IMAGES[:1], tabular=TABLE)
    batch = {**processor(image=IMAGES[:1]), **processor(tabular=TABLE)}
    with pytest.raises(ValueError, match=r"\{'image': 1, 'tabular': 2\}"):
        model(**batch)


def test_no_input_is_refused(model):
    with pytest.raises(ValueError, match="No sample has any modality"):
        model()
    with pytest.raises(ValueError, match="No sample has any modality"):
        model(pixel_values=None)


def test_a_misspelt_input_is_refused_with_the_known_ones(model):
    with pytest.raises(TypeError, match="Unknown model input 'pixels'.*'pixel_values'"):
        model(pixels=torch.zeros(1, 3, 16, 16))


def test_a_tokenizer_of_another_width_is_refused(model):
    model.tokenizers["image"] = ImageTokenizer(model.config.modalities["image"], hidden_size=48)
    with pytest.raises(ValueError, match="tokens of width 48, but the encoder takes 32"):
        model(pixel_values=torch.zeros(1, 3, 32, 32))


def test_pooling_is_the_class_token_or_the_mean_of_the_others(model, processor):
    batch = processor(image=IMAGES, tabular=TABLE)
    output = model(**batch)
    assert_close(output.pooler_output, output.last_hidden_state[:, 0])
    model.config.pooling = "mean"
    rows = zip(output.last_hidden_state, output.attention_mask, strict=True)
    expected = torch.stack([states[1:][mask[1:]].mean(dim=0) for states, mask in rows])
    assert_close(model.get_features(**batch), expected)


def test_the_signature_names_the_inputs_of_all_modalities(model):
    for made in (model, MetaTransformerForClassification(model.config)):
        names = inspect.signature(made.forward).parameters
        assert {"pixel_values", "pixel_mask", "input_features", "categorical_ids"} <= set(names)
    assert "labels" in names


def test_a_subclass_of_a_task_inherits_everything(processor, model):
    class Renamed(MetaTransformerForClassification):
        pass

    batch = processor(image=IMAGES, tabular=TABLE)
    assert Renamed(model.config)(**batch, labels=torch.tensor([0, 1])).loss.isfinite()


@pytest.mark.parametrize(
    "auto_class",
    [
        AutoModelForImageClassification,
        AutoModelForAudioClassification,
        AutoModelForSequenceClassification,
        AutoModelForVideoClassification,
    ],
)
def test_the_matching_auto_classes_load_classifiers(auto_class, model, tmp_path):
    MetaTransformerForClassification(model.config).save_pretrained(tmp_path)
    assert isinstance(auto_class.from_pretrained(tmp_path), MetaTransformerForClassification)


def test_a_plain_tensor_program_can_use_the_sequence(model, processor):
    sequence = model.tokenize(**processor(image=IMAGES))
    assert isinstance(sequence, TokenSequence)
    output = model.encode(sequence)
    assert_close(output.last_hidden_state, model(**processor(image=IMAGES)).last_hidden_state)


def test_loading_lays_options_over_those_of_the_checkpoint(model, tmp_path):
    config = MetaTransformerConfig(
        **TRUNK, modalities={"image": {"patch_size": 8}}, heads={"classification": {"pooling": "mean"}}
    )
    MetaTransformerForClassification(config).save_pretrained(tmp_path)
    loaded = MetaTransformerForClassification.from_pretrained(
        tmp_path, modalities=["image", "audio"], heads={"classification": {"dropout": 0.1}}
    )
    assert loaded.config.modalities["image"].patch_size == 8
    assert list(loaded.config.modalities) == ["audio", "image"]
    assert (loaded.head.config.pooling, loaded.head.config.dropout) == ("mean", 0.1)


def test_a_trunk_of_another_width_than_the_checkpoint_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    wrong = {**TRUNK, "hidden_size": 64}
    for arguments in ({"hidden_size": 64}, {"config": MetaTransformerConfig(**wrong)}):
        with pytest.raises(ValueError, match="hidden_size is 64, but 32 in the source"):
            MetaTransformerModel.from_pretrained(tmp_path, **arguments)


def test_return_dict_false_in_the_configuration_reaches_the_output_alone(processor, model):
    batch = processor(image=IMAGES)
    config = MetaTransformerConfig(**TRUNK, modalities=model.config.modalities, return_dict=False)
    made = MetaTransformerForClassification(config).eval()
    assert isinstance(made(**batch), tuple)
    assert made.get_features(**batch).shape == (2, 32)


def test_two_models_of_one_configuration_share_no_options(model):
    first, second = (MetaTransformerConfig(modalities=model.config.modalities) for _ in range(2))
    first.modalities["image"].patch_size = 4
    assert second.modalities["image"].patch_size == model.config.modalities["image"].patch_size == 16


def test_a_subclass_may_name_its_inputs_itself(processor, model):
    class Named(MetaTransformerForClassification):
        def forward(self, pixel_values=None, labels=None):
            return super().forward(pixel_values=pixel_values, labels=labels)

    images = processor(image=IMAGES[:1])["pixel_values"]
    assert Named(model.config)(images, labels=torch.tensor([1])).loss.isfinite()
    assert list(inspect.signature(Named.forward).parameters) == ["self", "pixel_values", "labels"]
