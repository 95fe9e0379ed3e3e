"""Saving and loading of every head on every modality."""

import subprocess
import sys
from contextlib import nullcontext
from itertools import zip_longest

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel

from meta_transformer import MetaTransformerConfig, MetaTransformerModel
from meta_transformer.modeling import MetaTransformerPreTrainedModel


def randomise(model):
    """Fill every weight with noise, so that none can be right by its initial value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model


def test_a_loaded_model_gives_the_same_and_is_frozen(case, tmp_path):
    model, batch = randomise(case.model(id2label={0: "a", 1: "b", 2: "c"})), case.batch()
    model.save_pretrained(tmp_path)
    loaded = case.model_class.from_pretrained(tmp_path)
    assert_close(loaded(**batch).to_tuple(), model(**batch).to_tuple(), rtol=0, atol=0)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert loaded.encoder_fingerprint() == model.encoder_fingerprint()
    assert not any(p.requires_grad for p in loaded.model.encoder.parameters())
    assert any(p.requires_grad for p in loaded.model.tokenizers.parameters())


def test_unfrozen_stays_unfrozen(costly_case, tmp_path):
    model = costly_case.model()
    model.unfreeze_encoder()
    model.save_pretrained(tmp_path)
    assert all(p.requires_grad for p in costly_case.model_class.from_pretrained(tmp_path).parameters())


def test_base_and_head_load_from_each_other(costly_case, tmp_path):
    model, batch = randomise(costly_case.model()), costly_case.batch()
    model.save_pretrained(tmp_path / "head")
    base = MetaTransformerModel.from_pretrained(tmp_path / "head")
    assert_close(base(**batch).to_tuple(), model.model(**batch).to_tuple(), rtol=0, atol=0)
    base.save_pretrained(tmp_path / "base")
    again, report = costly_case.model_class.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert_close(again.model(**batch).to_tuple(), base(**batch).to_tuple(), rtol=0, atol=0)
    assert all(name.startswith("head.") for name in report["missing_keys"])


def test_auto_classes_load_it(modality_case, tmp_path):
    model = MetaTransformerModel(modality_case.config()).eval()
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MetaTransformerConfig)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, MetaTransformerModel)
    batch = modality_case.batch()
    assert_close(loaded(**batch).to_tuple(), model(**batch).to_tuple(), rtol=0, atol=0)


def test_bfloat16_survives(costly_case, tmp_path):
    model = costly_case.model().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = costly_case.model_class.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.encoder_fingerprint() == model.encoder_fingerprint()


def test_weights_missing_from_a_checkpoint_are_initialised_as_in_a_new_model(case, monkeypatch):
    config = case.config()
    initialise = MetaTransformerPreTrainedModel._init_weights

    def seeded(self, module):
        torch.manual_seed(0)  # for each module, because the two ways build them in another order
        initialise(self, module)

    monkeypatch.setattr(MetaTransformerPreTrainedModel, "_init_weights", seeded)
    fresh = case.model_class(config)
    loaded = case.model_class.from_pretrained(None, config=config, state_dict={})
    for kind in ("named_parameters", "named_buffers"):
        expected, found = (dict(getattr(model, kind)()) for model in (fresh, loaded))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].device.type == "cpu", name
            assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.fixture
def poisoned(monkeypatch):
    """What transformers allocates for missing weights is NaN, so that none can be right by chance."""
    zeros_like = torch.zeros_like

    def poison(tensor, **options):
        return zeros_like(tensor, **options).fill_(float("nan") if tensor.is_floating_point() else 77)

    monkeypatch.setattr(torch, "empty_like", poison)


def load_without(case, weights, missing):
    """A model of all weights but some, which are asserted to be initialised."""
    rest = {name: value.clone() for name, value in weights.items() if name not in missing}
    loaded = case.model_class.from_pretrained(None, config=case.config(), state_dict=rest)
    for name in missing:
        assert torch.isfinite(loaded.get_parameter(name)).all(), name


def test_a_weight_may_be_missing_from_each_module(costly_case, poisoned):
    """The first of each module, then the second of each: what else a module has is there."""
    weights = costly_case.model().state_dict()
    of_module = {}
    for name in weights:
        of_module.setdefault(name.rpartition(".")[0], []).append(name)
    for missing in zip_longest(*of_module.values()):
        load_without(costly_case, weights, [name for name in missing if name])


@pytest.mark.slow
def test_any_weight_may_be_missing_alone(costly_case, poisoned):
    weights = costly_case.model().state_dict()
    for missing in weights:
        load_without(costly_case, weights, [missing])


def test_a_model_built_on_the_meta_device_can_be_initialised(case):
    config = case.config()
    with torch.device("meta"):
        model = case.model_class(config)
    model = model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().fill_(77)
    model.init_weights()
    assert not any((tensor == 77).any() for tensor in (*model.parameters(), *model.buffers()) if tensor.numel())
    assert torch.isfinite(case.prediction(model.eval()(**case.batch()))).all()


def test_a_mismatched_head_can_be_replaced(costly_case, tmp_path):
    """With other classes, or, where the head's size does not follow from them, with everything as it was."""
    small, large = costly_case.model(num_labels=3), costly_case.model(num_labels=5)
    small.save_pretrained(tmp_path)
    labels = {index: str(index) for index in range(5)}
    follows = [p.shape for p in small.parameters()] != [p.shape for p in large.parameters()]
    with pytest.raises(RuntimeError, match="size") if follows else nullcontext():
        costly_case.model_class.from_pretrained(tmp_path, id2label=labels)
    loaded = costly_case.model_class.from_pretrained(tmp_path, id2label=labels, ignore_mismatched_sizes=True)
    assert loaded.config.num_labels == 5
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in large.parameters()]


IN_A_FRESH_PROCESS = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModel
import meta_transformer

folder = Path(sys.argv[1])
model = AutoModel.from_pretrained(folder)
features = model.get_features(**load_file(folder / "batch"))
save_file({"features": features.contiguous()}, folder / "features")
"""


@pytest.mark.slow
def test_a_fresh_process_computes_the_same_features(modality_case, tmp_path):
    torch.manual_seed(0)
    model, batch = randomise(MetaTransformerModel(modality_case.config()).eval()), modality_case.batch()
    model.save_pretrained(tmp_path, processor=modality_case.processor())
    save_file({name: value.contiguous() for name, value in batch.items()}, tmp_path / "batch")
    subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS, str(tmp_path)], check=True)
    assert_close(load_file(tmp_path / "features")["features"], model.get_features(**batch), rtol=1e-5, atol=1e-6)
