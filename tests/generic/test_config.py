"""Configurations of every modality and head."""

import pytest

from meta_transformer import MetaTransformerConfig


def test_survives_json(case, tmp_path):
    config = case.config(heads=[case.head], id2label={0: "a", 1: "b", 2: "c"})
    config.save_pretrained(tmp_path)
    loaded = MetaTransformerConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.modalities == config.modalities
    assert type(loaded.heads[case.head]) is type(config.heads[case.head])


def test_refuses_an_unknown_option_of_a_tokenizer(modality_case):
    with pytest.raises(ValueError, match="no option"):
        MetaTransformerConfig(modalities={modality_case.modality: {"no_such_option": 1}})


def test_refuses_an_unknown_option_of_a_head(case):
    with pytest.raises(ValueError, match="no option"):
        case.config(heads={case.head: {"no_such_option": 1}})


def test_modalities_given_while_loading_replace_the_saved_ones(modality_case, tmp_path):
    MetaTransformerConfig(modalities=["image"]).save_pretrained(tmp_path)
    loaded = MetaTransformerConfig.from_pretrained(tmp_path, modalities=[modality_case.modality])
    assert list(loaded.modalities) == [modality_case.modality]
