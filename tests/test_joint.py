"""Task packs run together: the same numbers as alone, in as few passes of the trunk as can be."""

from contextlib import contextmanager

import pytest
import torch
from torch.testing import assert_close

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerForRetrieval,
    MetaTransformerModel,
)
from meta_transformer.encoder.attention import SelfAttention

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PIXELS, TALL = torch.rand(3, 3, 32, 32), torch.rand(2, 3, 96, 32)
IDS = torch.randint(3, 200, (4, 7))


@pytest.fixture
def trunk():
    return noisy(MetaTransformerModel(MetaTransformerConfig(**TINY)))


def noisy(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


@pytest.fixture
def load(trunk, tmp_path):
    """Load a pack of a new model, by default a classifier of pictures, onto the trunk."""

    def make(name, modalities=("image",), model_class=MetaTransformerForClassification, change=None, **options):
        config = MetaTransformerConfig(**{**TINY, "modalities": list(modalities), **options})
        model = noisy(model_class(config))
        model.base_model.encoder.load_state_dict(trunk.encoder.state_dict())
        if change is not None:
            change(model)
        model.save_task_pack(tmp_path / name)
        return trunk.load_task_pack(tmp_path / name)

    return make


@contextmanager
def counted(trunk):
    """Collect, for each pass of the weights of the trunk, how many tokens are in it, padding included."""
    passes = []

    def count(module, args):
        passes.append(args[0].shape[0] * args[0].shape[1])

    firsts = [model.base_model.encoder.layers[0] for model in (trunk, *trunk.task_packs.values())]
    assert all(isinstance(first.attention, SelfAttention) for first in firsts)
    hooks = [first.register_forward_pre_hook(count) for first in firsts]
    yield passes
    for hook in hooks:
        hook.remove()


def same(trunk, batches, passes, tokens=None):
    """Check that all packs together give what each gives alone, and in how many passes."""
    alone = {name: trunk.task_packs[name](**batch) for name, batch in batches.items()}
    with counted(trunk) as found:
        together = trunk.run_task_packs(batches)
    assert list(together) == list(batches)
    for name, output in together.items():
        assert type(output) is type(alone[name])
        assert_close(output.to_tuple(), alone[name].to_tuple(), rtol=1e-5, atol=1e-5)
    assert len(found) == passes
    assert tokens is None or sum(found) == tokens


def test_one_pass_of_the_trunk_for_all_without_tokens_of_padding(trunk, load):
    load("small")
    load("tall", num_labels=5)
    load("text", ["text"], MetaTransformerForRetrieval)
    load("features", model_class=MetaTransformerModel, pooling="mean")
    batches = {
        "small": {"pixel_values": PIXELS, "labels": torch.tensor([0, 1, 1])},
        "tall": {"pixel_values": TALL},
        "text": {"input_ids": IDS, "labels": torch.tensor([0, 0, 1, 1])},
        "features": {"pixel_values": PIXELS},
    }
    tokens = [len(trunk.task_packs[name].base_model.tokenize(**inputs(batches[name]))) for name in batches]
    assert len(set(tokens)) == 3
    same(
        trunk,
        batches,
        passes=1,
        tokens=sum(n * len(rows) for n, rows in zip(tokens, (PIXELS, TALL, IDS, PIXELS), strict=True)),
    )


def inputs(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


def test_samples_with_masks_of_their_own(trunk, load):
    load("first", ["image", "text"], absent_tokens=True)
    load("second")
    mixed = {
        "pixel_values": PIXELS[:2],
        "image_samples": torch.tensor([0, 2]),
        "input_ids": IDS[:2],
        "text_samples": torch.tensor([1, 2]),
    }
    same(trunk, {"first": mixed, "second": {"pixel_values": PIXELS}}, passes=1)


@pytest.mark.parametrize("fusion", ["concat", "gated", "attention", "bottleneck"])
def test_modalities_apart_take_a_pass_of_their_own(fusion, trunk, load):
    load("first", ["image", "text"], fusion=fusion)
    load("second")
    both = {"pixel_values": PIXELS, "input_ids": IDS[:3]}
    same(
        trunk,
        {
            "first": both,
            "second": {"pixel_values": PIXELS},
        },
        passes=2,
    )


def test_a_head_that_reads_layers_takes_a_pass_of_its_own(trunk, load):
    load("first", heads={"classification": {"layers": "all"}})
    load("second")
    load("third")
    same(trunk, {name: {"pixel_values": PIXELS} for name in ("first", "second", "third")}, passes=2)


def test_adapters_take_a_pass_of_their_own(trunk, load):
    def adapt(model):
        model.freeze_encoder("lora", init_lora_weights=False)

    load("first", change=adapt)
    load("second")
    load("third")
    same(trunk, {name: {"pixel_values": PIXELS} for name in ("first", "second", "third")}, passes=2)


def test_hidden_states_on_request(trunk, load):
    load("first")
    load("second")
    output = trunk.run_task_packs(
        {"first": {"pixel_values": PIXELS, "output_hidden_states": True}, "second": {"pixel_values": PIXELS}}
    )
    assert len(output["first"].hidden_states) == 3
    assert output["second"].get("hidden_states") is None


def test_losses_train_each_task_as_alone(trunk, load):
    packs = {name: load(name).train() for name in ("first", "second")}
    batches = {
        "first": {"pixel_values": PIXELS, "labels": torch.tensor([0, 1, 1])},
        "second": {"pixel_values": TALL, "labels": torch.tensor([0, 1])},
    }
    sum(output.loss for output in trunk.run_task_packs(batches).values()).backward()
    together = gradients(packs)
    for name, pack in packs.items():
        pack.zero_grad()
        pack(**batches[name]).loss.backward()
    assert_close(together, gradients(packs), rtol=1e-4, atol=1e-5)
    assert any(".tokenizers." in name for name in together)


def gradients(packs):
    named = [(f"{name}.{each}", value) for name, pack in packs.items() for each, value in pack.named_parameters()]
    return {name: value.grad.clone() for name, value in named if value.grad is not None}


def test_a_name_that_is_not_loaded_and_no_name_are_refused(trunk, load):
    load("first")
    with pytest.raises(ValueError, match=r"no task pack 'second'; loaded are \['first'\]"):
        trunk.run_task_packs({"second": {"pixel_values": PIXELS}})
    with pytest.raises(ValueError, match=r"at least one of the task packs \['first'\]"):
        trunk.run_task_packs({})
