"""Processors of every modality."""

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from meta_transformer import MetaTransformerConfig, MetaTransformerProcessor
from meta_transformer.registry import MODALITIES


def test_returns_the_tensors_that_the_tokenizer_takes(modality_case):
    batch = modality_case.batch(3)
    assert batch
    assert set(batch) <= set(MODALITIES[modality_case.modality].model_input_names)
    assert all(isinstance(value, torch.Tensor) and len(value) == 3 for value in batch.values())


def test_returns_numpy_on_request(modality_case):
    processor = modality_case.processor()
    arrays = processor(**{modality_case.modality: modality_case.samples()}, **modality_case.raw, return_tensors="np")
    for name, value in modality_case.batch().items():
        assert isinstance(arrays[name], np.ndarray)
        np.testing.assert_array_equal(arrays[name], value.numpy())


def test_survives_saving_and_loading(modality_case, tmp_path):
    processor = modality_case.processor()
    processor.save_pretrained(tmp_path)
    MetaTransformerConfig(modalities=["image"]).save_pretrained(tmp_path)
    for loaded in (MetaTransformerProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, MetaTransformerProcessor)
        assert loaded.to_dict() == processor.to_dict()
        again = loaded(**{modality_case.modality: modality_case.samples()}, **modality_case.raw)
        for name, value in modality_case.batch().items():
            torch.testing.assert_close(again[name], value, rtol=0, atol=0)


def test_refuses_an_empty_list(modality_case):
    with pytest.raises(ValueError, match="empty|at least one|no "):
        modality_case.processor()(**{modality_case.modality: []}, **modality_case.raw)


def test_refuses_an_unknown_argument(modality_case):
    with pytest.raises(ValueError, match="no_such_argument"):
        modality_case.processor()(
            **{modality_case.modality: modality_case.samples()}, **modality_case.raw, no_such_argument=1
        )


def test_refuses_an_unknown_setting(modality_case):
    with pytest.raises(TypeError, match="no_such_setting"):
        MODALITIES[modality_case.modality].processor_class(no_such_setting=1)
