"""transformers' own `ModelTesterMixin` and `ConfigTester` on our models, one test class for each modality."""

import unittest
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerModel

from .suite import load_suite

pytestmark = pytest.mark.hf_mixin

ModelTesterMixin, ConfigTester = load_suite()

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def lengths_mask(lengths: list[int], size: int) -> Tensor:
    """`(batch, size)`, true for as many at the start as `lengths` says."""
    return torch.arange(size) < torch.tensor(lengths)[:, None]


class ModelTester:
    """What the mixin asks about a model: its configuration, inputs, and the sizes to be found in its outputs."""

    is_training = True
    batch_size = 7  # the mixin fills smaller batches up with numbers that are no masks
    hidden_size = TINY["hidden_size"]
    num_hidden_layers = TINY["num_hidden_layers"]
    num_attention_heads = TINY["num_attention_heads"]

    modalities: dict[str, dict[str, Any]]
    seq_length: int

    def get_config(self) -> MetaTransformerConfig:
        return MetaTransformerConfig(**TINY, modalities=self.modalities)

    def inputs(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def prepare_config_and_inputs_for_common(self) -> tuple[MetaTransformerConfig, dict[str, Tensor]]:
        return self.get_config(), {name: value.to(torch_device) for name, value in self.inputs().items()}


class ImageModelTester(ModelTester):
    """Images of different size, so that there is padding."""

    modalities = {"image": {"patch_size": 8, "image_size": 32}}
    seq_length = 1 + 3 * 4

    def inputs(self) -> dict[str, Tensor]:
        rows, columns = lengths_mask([24, 24, 16, 9, 24, 8, 24], 24), lengths_mask([32, 20, 32, 17, 8, 8, 32], 32)
        return {"pixel_values": torch.randn(7, 3, 24, 32), "pixel_mask": rows[:, :, None] & columns[:, None, :]}


class AudioModelTester(ModelTester):
    """Clips of different length."""

    modalities = {"audio": {"num_mel_bins": 16, "patch_size": 8, "stride": 5, "max_time_positions": 8}}
    seq_length = 1 + 2 * 4

    def inputs(self) -> dict[str, Tensor]:
        mask = lengths_mask([20, 20, 11, 8, 19, 3, 20], 20)
        return {"input_features": torch.randn(7, 20, 16), "input_features_mask": mask}


class TabularModelTester(ModelTester):
    """Numbers, some of them missing, and categories."""

    modalities = {
        "tabular": {
            "numerical_columns": ["a", "b", "c"],
            "categorical_columns": ["d", "e"],
            "cardinalities": [4, 3],
            "numerical_embedding": "periodic",
            "num_frequencies": 4,
        }
    }
    seq_length = 1 + 5

    def inputs(self) -> dict[str, Tensor]:
        return {
            "numerical_features": torch.randn(7, 3),
            "numerical_mask": torch.rand(7, 3) < 0.8,
            "categorical_ids": torch.randint(3, (7, 2)),
        }


class OurModels(ModelTesterMixin):
    """The mixin with what differs for our models."""

    all_model_classes = (MetaTransformerModel, MetaTransformerForClassification)
    model_tester_class: type[ModelTester]

    # By default the test passes over models whose file bears no year from 2023 on.
    test_can_init_all_missing_weights_before_2023 = True

    @pytest.fixture(autouse=True)
    def _listed(self) -> Iterator[None]:
        """List our models where the mixin looks up which of them has no loss and which takes class labels."""
        with (
            patch.dict(modeling_auto.MODEL_MAPPING_NAMES, meta_transformer="MetaTransformerModel"),
            patch.dict(
                modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
                meta_transformer="MetaTransformerForClassification",
            ),
        ):
            yield

    def setUp(self) -> None:
        self.model_tester = self.model_tester_class()
        # What else the tests of attention hand to the model beside its main input.
        self.additional_model_inputs = list(self.model_tester.inputs())


class ImageModelTest(OurModels, unittest.TestCase):
    model_tester_class = ImageModelTester


class AudioModelTest(OurModels, unittest.TestCase):
    model_tester_class = AudioModelTester


class TabularModelTest(OurModels, unittest.TestCase):
    model_tester_class = TabularModelTester
