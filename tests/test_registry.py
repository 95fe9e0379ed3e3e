"""The registry refuses what would be ambiguous, and says what it knows."""

import pytest
import torch

from meta_transformer import TokenSequence, list_heads, list_modalities, register_head, register_modality
from meta_transformer.heads.classification import ClassificationHead
from meta_transformer.processors.base import ModalityProcessor
from meta_transformer.registry import HEADS, MODALITIES
from meta_transformer.tokenizers.base import ModalityTokenizer


class RadarTokenizer(ModalityTokenizer):
    """Inputs of its own."""

    def forward(self, radar_values: torch.Tensor) -> TokenSequence:
        return TokenSequence(radar_values)


class ClashingTokenizer(ModalityTokenizer):
    """An input that images have."""

    def forward(self, pixel_values: torch.Tensor) -> TokenSequence:
        return TokenSequence(pixel_values)


def test_built_in_modalities_and_heads_are_listed():
    assert {"image", "audio", "tabular"} <= set(list_modalities())
    assert "classification" in list_heads()


def test_a_modality_declares_the_inputs_of_its_tokenizer():
    assert MODALITIES["image"].model_input_names == ("pixel_values", "pixel_mask")


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="Unknown modality 'radar'.*'image'"):
        MODALITIES["radar"]
    with pytest.raises(ValueError, match="Unknown head 'captioning'.*'classification'"):
        HEADS["captioning"]


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="registered already"):
        register_modality("image", processor_class=ModalityProcessor, tokenizer_class=RadarTokenizer)
    with pytest.raises(ValueError, match="registered already"):
        register_head("classification", head_class=type("OtherHead", (ClassificationHead,), {}))


def test_the_same_class_may_be_registered_again_as_by_a_notebook_cell_that_is_run_twice():
    known = list_heads()
    register_head("classification", head_class=ClassificationHead)
    image = MODALITIES["image"]
    register_modality("image", processor_class=image.processor_class, tokenizer_class=image.tokenizer_class)
    assert list_heads() == known


def test_a_clash_of_model_inputs_is_refused():
    with pytest.raises(ValueError, match=r"\['pixel_values'\].*'image'"):
        register_modality("radar", processor_class=ModalityProcessor, tokenizer_class=ClashingTokenizer)
    assert "radar" not in list_modalities()


@pytest.mark.parametrize("name", ["Radar", "ra dar", "", "radar-x"])
def test_a_name_that_is_no_identifier_is_refused(name):
    with pytest.raises(ValueError, match="identifier"):
        register_modality(name, processor_class=ModalityProcessor, tokenizer_class=RadarTokenizer)
