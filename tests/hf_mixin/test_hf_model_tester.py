"""transformers' own `ModelTesterMixin` and `ConfigTester` on our models, one test class for each modality."""

import inspect
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
from meta_transformer.registry import MODALITIES

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
    seq_length = 1 + 3 * 4

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
    # Tokenizers have no vocabulary that could grow.
    test_resize_embeddings = False

    @pytest.fixture(autouse=True)
    def _alone(self) -> Iterator[None]:
        """Unregister text, whose `attention_mask` the mixin hands to every model whose forward could take it."""
        modalities = {"image", *self.model_tester_class.modalities}  # images are the default of the configuration
        with patch.object(MODALITIES, "_entries", {name: MODALITIES[name] for name in modalities}):
            yield

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
        super().setUp()
        self.model_tester = self.model_tester_class()
        # What else the tests of attention hand to the model beside its main input.
        self.additional_model_inputs = list(self.model_tester.inputs())

    def test_config(self) -> None:
        """The mixin leaves it to each model to call its `ConfigTester`."""
        modalities = self.model_tester.get_config().to_dict()["modalities"]
        tester = ConfigTester(self, MetaTransformerConfig, has_text_modality=False, **TINY, modalities=modalities)
        tester.run_common_tests()

    def test_model_get_set_embeddings(self) -> None:
        """Overridden: samples become tokens in one tokenizer for each modality, so no one layer is the embedding."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            with self.assertRaises(NotImplementedError):
                model.get_input_embeddings()
            self.assertIsNone(model.get_output_embeddings())

    def test_model_main_input_name(self) -> None:
        """Overridden: the main input is that of the first modality, which objects have and classes have not."""
        given = self.model_tester.inputs()
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            taken = [name for name in inspect.signature(model.forward).parameters if name in given]
            self.assertEqual(model.main_input_name, taken[0])

    def test_model_outputs_equivalence(self) -> None:
        """Without padding: the mixin subtracts outputs, and our `attention_mask` is boolean, which has no minus."""
        padded = self.model_tester.inputs

        def full() -> dict[str, Tensor]:
            return {name: value for name, value in padded().items() if not name.endswith("_mask")}

        with patch.object(self.model_tester, "inputs", full):
            super().test_model_outputs_equivalence()

    def test_problem_types(self) -> None:
        """Overridden: the mixin has classification models solve regression too, which takes a head of its own here."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        batch_size = self.model_tester.batch_size
        problems = {
            "multi_label_classification": (2, torch.zeros(batch_size, 2)),
            "single_label_classification": (1, torch.zeros(batch_size, dtype=torch.long)),
        }
        for problem_type, (num_labels, labels) in problems.items():
            config.problem_type, config.num_labels = problem_type, num_labels
            with self.subTest(problem_type):
                model = MetaTransformerForClassification(config).to(torch_device).train()
                model(**inputs, labels=labels.to(torch_device)).loss.backward()
        config.problem_type = "regression"
        with self.assertRaisesRegex(ValueError, "regression"):
            MetaTransformerForClassification(config)


class ImageModelTest(OurModels, unittest.TestCase):
    """The mixin on images."""

    model_tester_class = ImageModelTester


class AudioModelTest(OurModels, unittest.TestCase):
    """The mixin on audio."""

    model_tester_class = AudioModelTester


class TabularModelTest(OurModels, unittest.TestCase):
    """The mixin on tables."""

    model_tester_class = TabularModelTester
