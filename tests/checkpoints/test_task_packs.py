"""Task packs on one trunk: what is written, what is shared in memory, what stays as it was."""

import copy
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerModel,
    MetaTransformerProcessor,
)
from meta_transformer.checkpoints.task_pack_files import own_tensors
from meta_transformer.registry import MODALITIES

SAVED = ["README.md", "processor_config.json", "task_pack.json", "task_pack.safetensors"]


@pytest.fixture
def trunk(make_pair):
    return make_pair()[0]


@pytest.fixture
def digits(make_on, trunk):
    """A task on the trunk's weights, in a model of its own."""
    return make_on(trunk, "image", id2label={0: "zero", 1: "one", 2: "two"})


@pytest.fixture
def wine(make_on, trunk):
    return make_on(trunk, "tabular", seed=2, num_labels=4)


def batch_for(model, count=3):
    (modality,) = model.config.modalities
    processor_class = MODALITIES[modality].processor_class
    part = processor_class().fit(processor_class().dummy_samples(16), **processor_class.dummy_call_kwargs)
    return dict(MetaTransformerProcessor(**{modality: part})(**{modality: part.dummy_samples(count)}))


def test_a_pack_holds_all_but_the_trunk(digits, make_pair, tmp_path):
    digits.save_task_pack(tmp_path / "deep" / "digits", processor=make_pair()[1])
    assert sorted(os.listdir(tmp_path / "deep" / "digits")) == SAVED
    names = {name for name in digits.state_dict() if not name.startswith("model.encoder.")}
    assert load_file(tmp_path / "deep" / "digits" / "task_pack.safetensors").keys() == names
    processor = MetaTransformerProcessor.from_pretrained(tmp_path / "deep" / "digits")
    assert processor.to_dict() == make_pair()[1].to_dict()


def test_several_packs_give_what_their_models_gave(trunk, digits, wine, tmp_path):
    models = {"digits": digits, "wine": wine}
    for name, model in models.items():
        model.save_task_pack(tmp_path / name)
        assert trunk.load_task_pack(tmp_path / name) is trunk.task_packs[name]
    for name, model in models.items():
        batch = batch_for(model)
        assert_close(trunk.task_packs[name](**batch).logits, model(**batch).logits, rtol=0, atol=0)
        assert trunk.task_packs[name].config.id2label == model.config.id2label


def test_all_packs_share_the_parameters_of_the_trunk(trunk, digits, wine, tmp_path):
    digits.save_task_pack(tmp_path / "digits")
    wine.save_task_pack(tmp_path / "wine")
    packs = [
        trunk.load_task_pack(tmp_path / name) for name in ("digits", "wine", "digits") if name not in trunk.task_packs
    ]
    for pack in packs:
        shared = pack.trunk_parameters()
        assert shared.keys() == trunk.trunk_parameters().keys()
        assert all(shared[name] is parameter for name, parameter in trunk.trunk_parameters().items())
    models = [trunk, *packs]
    together = {parameter.data_ptr() for model in models for parameter in model.parameters()}
    own = [len(list(model.parameters())) - len(trunk.trunk_parameters()) for model in models]
    assert len(together) == len(trunk.trunk_parameters()) + sum(own)


class CountsBytes(TorchDispatchMode):
    """Adds up the memory of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {
            each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)
        }
        output = function(*args, **(kwargs or {}))
        for each in (each for each in tree_leaves(output) if isinstance(each, torch.Tensor) and not each.is_meta):
            storage = each.untyped_storage()
            if storage._cdata not in given:
                self.bytes += storage.nbytes()
        return output


def test_loading_allocates_the_pack_and_never_a_second_trunk(make_pair, make_on, tmp_path):
    trunk, _ = make_pair(num_hidden_layers=24)
    model = make_on(trunk, num_hidden_layers=24)
    model.save_task_pack(tmp_path)
    own = sum(tensor.nbytes for tensor in own_tensors(model).values())
    assert sum(parameter.nbytes for parameter in trunk.trunk_parameters().values()) > 5 * own
    with CountsBytes() as counted:
        trunk.load_task_pack(tmp_path)
    assert own <= counted.bytes < 3 * own  # once read from the file, once in the model


def test_the_trunk_stays_as_it_was(trunk, digits, tmp_path):
    digits.save_task_pack(tmp_path / "digits")
    fingerprint, weights = trunk.encoder_fingerprint(), copy.deepcopy(trunk.state_dict())
    names, mode = [name for name, _ in trunk.named_modules()], trunk.training
    trunk.load_task_pack(tmp_path / "digits").train()
    assert trunk.encoder_fingerprint() == fingerprint
    assert [name for name, _ in trunk.named_modules()] == names
    assert_close(trunk.state_dict(), weights, rtol=0, atol=0)
    assert trunk.training == mode
    trunk.save_pretrained(tmp_path / "trunk")
    assert load_file(tmp_path / "trunk" / "model.safetensors").keys() == weights.keys()


def test_a_loaded_pack_evaluates_and_its_trunk_is_frozen(trunk, make_on, tmp_path):
    model = make_on(trunk, "text")
    model.train()
    model.save_task_pack(tmp_path / "text")
    pack = trunk.load_task_pack(tmp_path / "text")
    assert not any(module.training for module in pack.modules())
    assert not any(parameter.requires_grad for parameter in pack.model.encoder.parameters())
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in pack.named_parameters() if parameter.requires_grad} == expected


def test_training_a_pack_leaves_trunk_and_other_packs_as_they_are(trunk, digits, wine, tmp_path):
    digits.save_task_pack(tmp_path / "digits")
    wine.save_task_pack(tmp_path / "wine")
    pack, other = (trunk.load_task_pack(tmp_path / name) for name in ("digits", "wine"))
    before = copy.deepcopy(pack.state_dict())
    expected, fingerprint = other(**batch_for(wine)).logits, trunk.encoder_fingerprint()
    optimizer = torch.optim.SGD([each for each in pack.train().parameters() if each.requires_grad], lr=0.1)
    pack(**batch_for(digits), labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in pack.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("head.") for name in changed)
    assert any("tokenizers" in name for name in changed)
    assert trunk.encoder_fingerprint() == fingerprint
    assert_close(other(**batch_for(wine)).logits, expected, rtol=0, atol=0)
    pack.save_task_pack(tmp_path / "more")
    again = trunk.load_task_pack(tmp_path / "more")
    assert_close(again(**batch_for(digits)).logits, pack.eval()(**batch_for(digits)).logits, rtol=0, atol=0)


def test_a_pack_may_be_the_trunk_of_another(digits, wine, trunk, tmp_path):
    digits.save_task_pack(tmp_path / "digits")
    wine.save_task_pack(tmp_path / "wine")
    pack = trunk.load_task_pack(tmp_path / "digits").load_task_pack(tmp_path / "wine")
    assert_close(pack(**batch_for(wine)).logits, wine(**batch_for(wine)).logits, rtol=0, atol=0)
    assert list(trunk.task_packs) == ["digits"]


def test_tokenizers_alone_are_a_pack_too(trunk, digits, tmp_path):
    digits.model.save_task_pack(tmp_path / "tokens")
    pack = trunk.load_task_pack(tmp_path / "tokens")
    assert type(pack) is MetaTransformerModel
    assert_close(pack.get_features(**batch_for(digits)), digits.get_features(**batch_for(digits)), rtol=0, atol=0)


def test_options_of_heads_that_the_task_has_not_stay_behind(digits, trunk, tmp_path):
    digits.config.heads = {**digits.config.heads, "regression": {}}
    digits.save_task_pack(tmp_path / "digits")
    assert list(trunk.load_task_pack(tmp_path / "digits").config.heads) == ["classification"]


def test_names_are_the_last_part_and_can_be_chosen_and_freed(trunk, digits, tmp_path):
    digits.save_task_pack(tmp_path / "digits")
    trunk.load_task_pack(tmp_path / "digits")
    with pytest.raises(ValueError, match="'digits' already; give this one another name=, or call unload_task_pack"):
        trunk.load_task_pack(tmp_path / "digits")
    trunk.load_task_pack(f"{tmp_path / 'digits'}/", name="again")
    assert list(trunk.task_packs) == ["digits", "again"]
    trunk.unload_task_pack("digits")
    with pytest.raises(ValueError, match=r"no task pack 'digits'; loaded are \['again'\]"):
        trunk.unload_task_pack("digits")


def test_the_trunks_type_and_attention_carry_over(trunk, digits, tmp_path):
    digits.save_task_pack(tmp_path / "digits")
    trunk.set_attn_implementation("eager")
    trunk.bfloat16()
    pack = trunk.load_task_pack(tmp_path / "digits", check_fingerprint=False)
    assert {parameter.dtype for parameter in pack.parameters()} == {torch.bfloat16}
    assert pack.config._attn_implementation == "eager"
    output = pack(**batch_for(digits), output_attentions=True)
    assert len(output.attentions) == 2
    assert_close(output.logits.float(), digits(**batch_for(digits)).logits, rtol=0.1, atol=0.1)


def test_half_precision_is_kept(trunk, digits, tmp_path):
    trunk.bfloat16()
    digits.bfloat16().save_task_pack(tmp_path / "digits")
    pack = trunk.load_task_pack(tmp_path / "digits")
    assert_close(pack(**batch_for(digits)).logits, digits(**batch_for(digits)).logits, rtol=0, atol=0)


def test_a_copy_of_the_trunk_has_copies_of_its_packs(trunk, digits, tmp_path):
    digits.save_task_pack(tmp_path / "digits")
    pack = trunk.load_task_pack(tmp_path / "digits")
    twin = copy.deepcopy(trunk)
    for name, parameter in twin.task_packs["digits"].trunk_parameters().items():
        assert parameter is twin.trunk_parameters()[name]
        assert parameter is not pack.trunk_parameters()[name]


def test_what_moves_the_trunk_moves_it_under_its_packs(trunk, digits, tmp_path):
    digits.save_task_pack(tmp_path / "digits")
    pack = trunk.load_task_pack(tmp_path / "digits")
    trunk.double()
    assert {parameter.dtype for parameter in pack.model.encoder.parameters()} == {torch.float64}


def test_no_path_of_this_machine_is_in_a_pack(digits, tmp_path):
    digits.config.encoder_name_or_path = str(tmp_path / "secret" / "trunk")
    digits.save_task_pack(tmp_path / "digits")
    for name in ("README.md", "task_pack.json"):
        assert "secret" not in (tmp_path / "digits" / name).read_text()
    assert json.loads((tmp_path / "digits" / "task_pack.json").read_text())["trunk"]["name"] == "trunk"
    assert "`trunk`, a local checkpoint" in (tmp_path / "digits" / "README.md").read_text()


def test_the_card_names_the_trunk_and_a_persons_card_is_kept(digits, tmp_path):
    digits.config.encoder_name_or_path = "someone/trunk"
    digits.save_task_pack(tmp_path, metrics={"accuracy": 0.875}, license="mit", tags="handwriting")
    card = (tmp_path / "README.md").read_text()
    for line in (
        "base_model: someone/trunk",
        "license: mit",
        "- handwriting",
        "| accuracy | 0.875 |",
        "load_task_pack",
    ):
        assert line in card
    assert digits.encoder_fingerprint() in card
    (tmp_path / "README.md").write_text("# Mine")
    digits.save_task_pack(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine"


@pytest.mark.parametrize("shape", ["tiny", "small", "base_patch16", "large_patch14"])
def test_a_pack_for_pictures_takes_a_few_megabytes_for_any_trunk(shape):
    with torch.device("meta"):
        model = MetaTransformerForClassification(getattr(MetaTransformerConfig, shape)(num_labels=100))
    size = sum(tensor.nbytes for tensor in own_tensors(model).values())
    assert size < 5e6
    assert size < sum(parameter.nbytes for parameter in model.parameters()) / 20
