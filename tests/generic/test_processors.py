"""Processors of every modality."""

import inspect
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from meta_transformer import MetaTransformerConfig, MetaTransformerProcessor
from meta_transformer.processors.base import ModalityProcessor
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


def test_a_fit_that_raises_changes_nothing(modality_case):
    processor = modality_case.processor().processors[modality_case.modality]
    learns = type(processor).fit is not ModalityProcessor.fit
    state, samples = processor.to_dict(), modality_case.samples(8, seed=1)
    rows = samples.to_dict("records") if hasattr(samples, "to_dict") else list(samples)
    with pytest.raises((ValueError, TypeError)) if learns else nullcontext():
        processor.fit([*rows, object()], **modality_case.raw)
    assert processor.to_dict() == state


def test_numbers_of_numpy_are_settings_that_json_can_store_or_refused(modality_case):
    processor_class = MODALITIES[modality_case.modality].processor_class
    kinds = {int: np.int64, float: np.float32}
    for name, parameter in inspect.signature(processor_class.__init__).parameters.items():
        if kind := kinds.get(type(parameter.default)):
            try:
                state = processor_class(**{name: kind(parameter.default)}).to_dict()
            except ValueError as error:
                assert name in str(error)
            else:
                assert json.loads(json.dumps(state)) == state
                assert state[name] == pytest.approx(parameter.default)
