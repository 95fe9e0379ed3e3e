"""`info`, `convert`, `push` and `pack`."""

import pandas as pd

from meta_transformer import MetaTransformerModel, MetaTransformerProcessor
from meta_transformer.registry import list_heads, list_modalities


def test_info_lists_what_there_is(run):
    said = run("info")
    assert [word for word in (*list_modalities(), *list_heads(), "audio", "lora") if word not in said] == []


def test_info_tells_what_a_model_is(run, trained):
    said = run(f"info {trained}")
    model = MetaTransformerModel.from_pretrained(trained)
    for word in (
        "MetaTransformerForClassification",
        "text",
        "cat, dog",
        model.encoder_fingerprint(),
        "model.safetensors",
    ):
        assert word in said


def test_a_pack_tells_its_trunk_and_predicts_on_it_as_the_model_does(run, trained, trunk, tmp_path):
    pack = tmp_path / "pack"
    run(f"pack {trained} {pack}")
    said = run(f"info {pack}")
    assert MetaTransformerModel.from_pretrained(trunk).encoder_fingerprint() in said
    run(f"predict {trained} meow woof -o {tmp_path / 'model.csv'}")
    run(f"predict {pack} meow woof --encoder {trunk} -o {tmp_path / 'pack.csv'}")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "pack.csv"), pd.read_csv(tmp_path / "model.csv"), atol=1e-5)


def test_a_pack_without_its_trunk_is_refused(run, trained, tmp_path):
    run(f"pack {trained} {tmp_path / 'pack'}")
    assert "--encoder" in run(f"predict {tmp_path / 'pack'} meow", code=1)


def test_convert_makes_a_folder_of_ours_with_the_same_weights(run, timm_folder, tmp_path):
    said = run(f"convert {timm_folder} {tmp_path / 'ours'}")
    expected = MetaTransformerModel.from_pretrained(timm_folder).encoder_fingerprint()
    assert expected in said
    assert MetaTransformerModel.from_pretrained(tmp_path / "ours").encoder_fingerprint() == expected
    assert list(MetaTransformerProcessor.from_pretrained(tmp_path / "ours").processors) == ["image"]


def test_a_folder_without_a_model_is_told(run, tmp_path):
    run(f"info {tmp_path}", code=1)
