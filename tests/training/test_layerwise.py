"""Layer-wise learning rates against rates written out by hand."""

from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification
from meta_transformer.training import layerwise_learning_rates

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def make_model(**options: Any) -> MetaTransformerForClassification:
    settings = {"modalities": ["image", "audio"], "use_pre_layernorm": True, "freeze_encoder": "none", **options}
    return MetaTransformerForClassification(MetaTransformerConfig(**SHAPE, **settings))


def by_name(model: torch.nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_rates_fall_from_the_head_to_the_tokenizers() -> None:
    model = make_model()
    found = by_name(model, layerwise_learning_rates(model, 1e-2, 0.5, 0.1))
    starts = {
        "head.": 1e-2,
        "model.encoder.layernorm.": 1e-2,
        "model.encoder.layers.1.": 5e-3,
        "model.encoder.layers.0.": 2.5e-3,
        "model.encoder.pre_layernorm.": 1.25e-3,
        "model.tokenizers.": 1.25e-3,
        "model.modality_embeddings.": 1.25e-3,
        "model.cls_token": 1.25e-3,
    }
    for name, _ in model.named_parameters():
        rate = next(rate for start, rate in starts.items() if name.startswith(start))
        assert found.pop(name)[0] == pytest.approx(rate), name
    assert not found


def test_matrices_alone_have_weight_decay() -> None:
    model = make_model()
    found = by_name(model, layerwise_learning_rates(model, 1e-2, 0.5, 0.1))
    for name, (_, decay) in found.items():
        is_matrix = name.endswith(".weight") and "layernorm" not in name
        assert decay == (0.1 if is_matrix else 0.0), name


def test_a_decay_of_1_gives_all_the_same_rate() -> None:
    model = make_model()
    assert {rate for rate, _ in by_name(model, layerwise_learning_rates(model, 1e-2, 1.0)).values()} == {1e-2}


def test_new_tokenizers_learn_as_the_head() -> None:
    model = make_model()
    found = by_name(model, layerwise_learning_rates(model, 1e-2, 0.5, new_modalities=["audio"]))
    rates = {
        modality: {rate for name, (rate, _) in found.items() if f"tokenizers.{modality}." in name}
        for modality in ("audio", "image")
    }
    assert rates == {"audio": {1e-2}, "image": {1.25e-3}}


def test_what_is_frozen_is_in_no_group_and_adapters_learn_as_their_block() -> None:
    model = make_model(freeze_encoder="lora")
    found = by_name(model, layerwise_learning_rates(model, 1e-2, 0.5))
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {rate for name, (rate, _) in found.items() if "layers.0" in name and "lora" in name} == {2.5e-3}


def test_trainer_moves_each_parameter_at_its_rate(tmp_path) -> None:
    """One step of SGD: each parameter moves by its gradient times its rate."""
    torch.manual_seed(0)
    model = make_model(modalities=["image"])
    rows = [{"pixel_values": torch.rand(3, 32, 32), "labels": label % 2} for label in range(4)]
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    pixels, labels = torch.stack([row["pixel_values"] for row in rows]), torch.tensor([0, 1, 0, 1])
    model(pixel_values=pixels, labels=labels).loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    groups = layerwise_learning_rates(model, 1.0, 0.5)
    rates = by_name(model, groups)
    arguments = TrainingArguments(
        tmp_path, per_device_train_batch_size=4, max_steps=1, lr_scheduler_type="constant", max_grad_norm=0,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows, optimizers=(torch.optim.SGD(groups), None)).train()
    for name, parameter in model.named_parameters():
        expected = start[name] - rates[name][0] * gradients[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 0.0}, "decay above 0 and at most 1"),
        ({"decay": 1.5}, "decay above 0 and at most 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay at least 0"),
        ({"new_modalities": ["video"]}, r"new_modalities names \['video'\]"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layerwise_learning_rates(make_model(), **{"learning_rate": 1e-3, **options})


def test_a_model_of_which_nothing_trains_is_refused() -> None:
    model = make_model().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model trains"):
        layerwise_learning_rates(model, 1e-3)
