"""Adapters inside the shared trunk: they travel in a pack, and no other pack and not the trunk knows of them."""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch.testing import assert_close

LORA = {"target_modules": ["q_proj", "v_proj"], "r": 2}


def freeze_with_lora(model):
    model.freeze_encoder("lora", **LORA)


def add_adapter(model):
    model.add_adapter(LoraConfig(**LORA))


def wrap(model):
    get_peft_model(model, LoraConfig(**LORA, modules_to_save=["head"]))


def add_ia3(model):
    model.add_adapter(IA3Config(target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"]), "scaled")


def add_dora_everywhere(model):
    get_peft_model(model, LoraConfig(target_modules="all-linear", use_dora=True, r=2))


WAYS = [freeze_with_lora, add_adapter, wrap, add_ia3, add_dora_everywhere]
PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(pixel_values=PIXELS).logits


def stir(model, seed=0):
    """Give all weights of adapters, and of what PEFT trains in the place of others, random values."""
    generator = torch.Generator().manual_seed(seed)
    marks = ("lora_", "ia3_", "modules_to_save")
    for name, parameter in model.named_parameters():
        if any(mark in name for mark in marks):
            parameter.data = torch.rand(parameter.shape, generator=generator) * 0.5 + 0.2
    return model.eval()


@pytest.fixture
def trunk(make_pair):
    return make_pair()[0]


@pytest.fixture
def save(make_on, trunk, tmp_path):
    """Save a task with adapters by one of `WAYS`, or with none, and return its model."""

    def make(name, way=None, seed=1):
        model = make_on(trunk, seed=seed, num_labels=3)
        if way is not None:
            bare = logits(model)
            way(model)
            assert not torch.allclose(logits(stir(model, seed)), bare)
        model.save_task_pack(tmp_path / name)
        return model

    return make


@pytest.mark.parametrize("way", WAYS)
def test_adapters_travel_and_do_not_leak(way, save, trunk, tmp_path):
    adapted, plain = save("adapted", way), save("plain", seed=2)
    before, fingerprint, names = logits(trunk), trunk.encoder_fingerprint(), list(trunk.state_dict())
    without = trunk.load_task_pack(tmp_path / "plain")
    pack = trunk.load_task_pack(tmp_path / "adapted")
    for _ in range(2):
        assert_close(logits(pack), logits(adapted), rtol=0, atol=0)
        assert_close(logits(without), logits(plain), rtol=0, atol=0)
        assert_close(logits(trunk), before, rtol=0, atol=0)
    features = pack.get_features(pixel_values=PIXELS)
    assert_close(features, adapted.get_features(pixel_values=PIXELS), rtol=0, atol=0)
    assert trunk.encoder_fingerprint() == pack.encoder_fingerprint() == fingerprint
    assert list(trunk.state_dict()) == names


def test_two_packs_with_adapters_of_one_name_live_side_by_side(save, trunk, tmp_path):
    models = {name: save(name, way, seed) for seed, (name, way) in enumerate({"a": add_adapter, "b": wrap}.items(), 1)}
    packs = {name: trunk.load_task_pack(tmp_path / name) for name in models}
    for name in ("a", "b", "a"):
        assert_close(logits(packs[name]), logits(models[name]), rtol=0, atol=0)


@pytest.mark.parametrize("way", [freeze_with_lora, add_adapter])
def test_an_adapter_trains_further_alone_also_with_checkpointing(way, save, trunk, tmp_path):
    save("adapted", way)
    save("plain", seed=2)
    pack, other = (trunk.load_task_pack(tmp_path / name) for name in ("adapted", "plain"))
    expected, fingerprint = logits(other), trunk.encoder_fingerprint()
    pack.train()
    pack.activation_checkpointing_enable({"use_reentrant": False})
    before = copy.deepcopy(pack.state_dict())
    optimizer = torch.optim.SGD([each for each in pack.parameters() if each.requires_grad], lr=0.1)
    loss = pack(pixel_values=PIXELS, labels=torch.tensor([0, 1, 2])).loss
    assert_close(logits(other), expected, rtol=0, atol=0)  # between forward and backward, which computes blocks again
    loss.backward()
    gradients = {name: each.grad.clone() for name, each in pack.named_parameters() if each.grad is not None}
    optimizer.step()
    changed = {name for name, value in pack.state_dict().items() if not torch.equal(value, before[name])}
    assert {"lora_A", "lora_B"} <= {part for name in changed for part in name.split(".")}
    assert any(name.startswith("head.") for name in changed)
    assert_close(logits(other), expected, rtol=0, atol=0)
    assert trunk.encoder_fingerprint() == fingerprint

    alone = make_gradients(trunk, tmp_path / "adapted")
    assert_close(gradients, alone, rtol=1e-5, atol=1e-6)


def make_gradients(trunk, folder):
    """Those of the same step without checkpointing and other packs."""
    model = copy.deepcopy(trunk).load_task_pack(folder, name="alone").train()
    model(pixel_values=PIXELS, labels=torch.tensor([0, 1, 2])).loss.backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def test_dropout_of_an_adapter_stays_with_the_pack_that_trains(save, trunk, tmp_path):
    options = {**LORA, "lora_dropout": 0.5}
    save("noisy", lambda model: model.freeze_encoder("lora", **options))
    first, second = (trunk.load_task_pack(tmp_path / "noisy", name=name) for name in "ab")
    first.train()
    assert not torch.equal(logits(first), logits(first))
    assert torch.equal(logits(second), logits(second))


def test_an_adapter_added_to_a_loaded_pack_stays_in_it(save, trunk, tmp_path):
    plain = save("plain")
    pack, other = (trunk.load_task_pack(tmp_path / "plain", name=name) for name in "ab")
    before = logits(trunk)
    stir(get_peft_model(pack, LoraConfig(**LORA)))
    assert not torch.allclose(logits(pack), logits(plain))
    assert_close(logits(other), logits(plain), rtol=0, atol=0)
    assert_close(logits(trunk), before, rtol=0, atol=0)


def test_a_trunk_with_adapters_of_its_own_keeps_them_to_itself(save, trunk, tmp_path):
    plain = save("plain", seed=2)
    add_adapter(trunk)
    before = logits(stir(trunk))
    assert_close(logits(trunk.load_task_pack(tmp_path / "plain")), logits(plain), rtol=0, atol=0)
    assert_close(logits(trunk), before, rtol=0, atol=0)


def test_peft_switches_a_loaded_adapter_off_and_on(save, trunk, tmp_path):
    adapted = save("adapted", add_adapter)
    pack = trunk.load_task_pack(tmp_path / "adapted")
    pack.disable_adapters()
    adapted.disable_adapters()
    assert_close(logits(pack), logits(adapted), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"adapters \['default'\], of which \[\] are active"):
        pack.save_task_pack(tmp_path / "off")
    pack.enable_adapters()
    pack.save_task_pack(tmp_path / "on")
    assert_close(logits(trunk.load_task_pack(tmp_path / "on")), logits(pack), rtol=0, atol=0)


def test_merging_gives_the_pack_weights_of_its_own(save, trunk, tmp_path):
    adapted = save("adapted", freeze_with_lora)
    before, fingerprint = logits(trunk), trunk.encoder_fingerprint()
    pack = trunk.load_task_pack(tmp_path / "adapted")
    pack.merge_lora()
    assert_close(logits(pack), logits(adapted), rtol=1e-5, atol=1e-5)
    assert_close(logits(trunk), before, rtol=0, atol=0)
    assert trunk.encoder_fingerprint() == fingerprint != pack.encoder_fingerprint()


def test_merged_adapters_are_refused(make_on, trunk, tmp_path):
    wrapped = get_peft_model(make_on(trunk), LoraConfig(**LORA))
    wrapped.merge_adapter()
    with pytest.raises(ValueError, match="merged into the weights of the trunk"):
        wrapped.save_task_pack(tmp_path / "merged")


def test_an_adapter_that_trains_biases_of_the_trunk_is_refused(make_on, trunk, tmp_path):
    wrapped = get_peft_model(make_on(trunk), LoraConfig(**LORA, bias="all"))
    with pytest.raises(ValueError, match="leaves out the trunk's own weights"):
        wrapped.save_task_pack(tmp_path / "biased")
