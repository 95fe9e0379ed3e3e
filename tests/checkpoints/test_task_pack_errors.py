"""What cannot be saved or loaded as a task pack is refused, with the reason and the remedy."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from meta_transformer import MetaTransformerForClassification
from meta_transformer.checkpoints.atomic import atomic_folder
from meta_transformer.encoder import fingerprint


@pytest.fixture
def trunk(make_pair):
    return make_pair()[0]


@pytest.fixture
def pack(make_on, trunk, tmp_path):
    """The folder of a pack that fits `trunk`."""
    trunk.config.encoder_name_or_path = "someone/trunk"
    model = make_on(trunk, encoder_name_or_path="someone/trunk")
    model.save_task_pack(tmp_path / "pack")
    return tmp_path / "pack"


def describe(folder, **changes):
    """Change fields of a description."""
    path = folder / "task_pack.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder, change, *, consistent=False):
    """Change tensors of a pack, and with `consistent` their fingerprint too."""
    path = folder / "task_pack.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    if consistent:
        describe(folder, tensors=fingerprint(tensors))


def refused(trunk, folder, match, error=ValueError, **options):
    with pytest.raises(error, match=match):
        trunk.load_task_pack(folder, **options)
    assert trunk.task_packs == {}


def test_another_trunk(pack, make_pair):
    other, _ = make_pair(seed=5)
    other.config.encoder_name_or_path = "someone/else"
    with pytest.raises(ValueError, match="another trunk") as caught:
        other.load_task_pack(pack)
    right = json.loads((pack / "task_pack.json").read_text())["trunk"]["fingerprint"]
    for part in ("someone/trunk", right[:12], "someone/else", other.encoder_fingerprint()[:12], "Load the trunk that"):
        assert part in str(caught.value)
    assert isinstance(other.load_task_pack(pack, check_fingerprint=False), MetaTransformerForClassification)


def test_the_same_trunk_in_another_type(pack, trunk):
    refused(
        trunk.bfloat16(), pack, r"This one is in bfloat16, that one in float32.*dtype=torch\.float32.*check_fingerp"
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_hidden_layers", 3, "num_hidden_layers is 3 here, but 2 in the pack"),
        ("hidden_act", "quick_gelu", "hidden_act is 'quick_gelu' here, but 'gelu'"),
        ("layer_norm_eps", 1e-6, "layer_norm_eps is 1e-06 here"),
        ("use_pre_layernorm", True, "use_pre_layernorm is True here"),
        ("layer_scale_init_value", 0.1, "layer_scale_init_value is True here, but False"),
    ],
)
def test_a_trunk_of_another_shape_also_without_fingerprint(field, value, message, pack, make_pair):
    refused(make_pair(**{field: value})[0], pack, message, check_fingerprint=False)


def test_a_trunk_that_trains(pack, trunk, make_on, tmp_path):
    trunk.unfreeze_encoder()
    refused(trunk, pack, r"not frozen.*freeze_encoder\(\)")
    for preset in ("none", "last_1", "layernorm"):
        trunk.freeze_encoder(preset)
        with pytest.raises(ValueError, match="leaves out the trunk's own weights, but .* train"):
            trunk.save_task_pack(tmp_path / "lost")
    assert not (tmp_path / "lost").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("task_pack.json", "is no task pack: it has no task_pack.json"),
        ("task_pack.safetensors", "lacks task_pack.safet"),
    ],
)
def test_a_missing_file(name, message, pack, trunk):
    (pack / name).unlink()
    refused(trunk, pack, message)


def test_a_tensor_that_was_changed(pack, trunk):
    rewrite(pack, lambda tensors: tensors["model.cls_token"].mul_(1.001))
    refused(trunk, pack, "not those that were saved with task_pack.json")


def test_a_file_that_was_cut(pack, trunk):
    path = pack / "task_pack.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(trunk, pack, "truncated, damaged or not in safetensors format")


def test_a_description_that_is_no_json(pack, trunk):
    (pack / "task_pack.json").write_text("{")
    refused(trunk, pack, "no valid JSON")


def test_tensors_of_other_code(pack, trunk):
    rewrite(pack, lambda tensors: tensors.update(extra=tensors.pop("model.cls_token")), consistent=True)
    refused(trunk, pack, r"'missing': \['model.cls_token'\], 'unexpected': \['extra'\].*another version of the code")


def test_tensors_of_another_shape(pack, trunk):
    rewrite(pack, lambda tensors: tensors.update({"model.cls_token": torch.zeros(1, 1, 8)}), consistent=True)
    refused(trunk, pack, r"'of another shape': \['model.cls_token'\]")


def test_a_newer_version(pack, trunk):
    describe(pack, version=2)
    refused(trunk, pack, "of version 2; this version of meta_transformer reads version 1")


def test_a_model_class_that_is_not_there(pack, trunk):
    describe(pack, architecture="MetaTransformerForDreams")
    refused(trunk, pack, "'MetaTransformerForDreams', which this version of meta_transformer does not have")


def test_a_whole_checkpoint_in_place_of_a_pack_and_the_reverse(pack, trunk, tmp_path):
    trunk.save_pretrained(tmp_path / "whole")
    refused(trunk, tmp_path / "whole", "is a whole checkpoint, not a task pack: load it by from_pretrained")
    with pytest.raises(ValueError, match="holds a whole checkpoint; give the task pack a folder or"):
        trunk.save_task_pack(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"is a task pack.*load_task_pack"):
        MetaTransformerForClassification.from_pretrained(pack)


def test_an_adapter_alone(trunk, make_on, tmp_path):
    from peft import LoraConfig

    model = make_on(trunk)
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    refused(trunk, tmp_path / "adapter", "an adapter alone, not a task pack: load it by load_adapter")


def test_an_unfinished_save(pack, trunk, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError), atomic_folder(pack) as staging:
        (staging / "task_pack.json").write_text("{}")
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError()))
    refused(trunk, pack, "was interrupted while its files were replaced")


def test_what_is_neither_a_folder_nor_a_repository(trunk, tmp_path):
    refused(trunk, tmp_path / "nowhere", "nowhere", error=OSError)
    refused(trunk, "someone/unheard-of", "someone/unheard-of", error=OSError)


def test_wrong_arguments(trunk, pack, tmp_path):
    refused(trunk, pack, r"no option \['revison'\]", error=TypeError, revison="main")
    for options, message in (
        ({"processor": "image"}, "processor must be"),
        ({"metrics": 0.5}, "metrics must be a dict"),
    ):
        with pytest.raises(TypeError, match=message):
            trunk.save_task_pack(tmp_path / "new", **options)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; give the name of a folder"):
        trunk.save_task_pack(tmp_path / "file")


def test_a_trunk_that_another_library_has_wrapped(trunk, pack):
    attention = trunk.model.encoder.layers[0].attention
    attention.forward = attention.forward  # as accelerate does where it moves weights between devices
    refused(trunk, pack, "spread over devices or wrapped: SelfAttention has another forward")


CUSTOM = """
import sys
sys.path.insert(0, "examples")
head = __import__("04_custom_head")
from meta_transformer import MetaTransformerConfig, MetaTransformerModel
options = {"num_hidden_layers": 1, "num_labels": 3, "modalities": ["image"]}
config = MetaTransformerConfig.tiny(**options)
model = head.MetaTransformerForOrdinalRegression(config)
model.save_task_pack(sys.argv[1] + "/pack")
trunk = MetaTransformerModel(MetaTransformerConfig.tiny(**options))
trunk.load_state_dict(model.model.state_dict())
trunk.save_pretrained(sys.argv[1] + "/trunk")
"""
LOAD = """
import sys
from meta_transformer import MetaTransformerModel
trunk = MetaTransformerModel.from_pretrained(sys.argv[1] + "/trunk")
try:
    trunk.load_task_pack(sys.argv[1] + "/pack")
except ValueError as error:
    print(error)
sys.path.insert(0, "examples")
__import__("04_custom_head")
print(type(trunk.load_task_pack(sys.argv[1] + "/pack")).__name__)
"""


@pytest.mark.slow
def test_a_head_from_outside_is_named_with_its_module_until_it_is_imported(tmp_path, pytestconfig):
    lines = []
    for code in (CUSTOM, LOAD):
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        lines += done.stdout.splitlines()
    assert "needs the head 'ordinal', which is not known here: import 04_custom_head before" in lines[0]
    assert lines[1:] == ["MetaTransformerForOrdinalRegression"]
