"""The generated model card: what it says is so, and its snippet runs."""

import re
import runpy
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerModel,
    MetaTransformerProcessor,
)
from meta_transformer.checkpoints.model_card import generate_card, is_generated, merge_cards
from meta_transformer.processors.image import ImageProcessor
from meta_transformer.processors.tabular import TabularProcessor
from meta_transformer.registry import MODALITIES, Registry


def snippet(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


@pytest.mark.parametrize("modality", MODALITIES.names())
def test_the_snippet_of_a_saved_card_runs_on_the_saved_folder(modality, make_pair, tmp_path, monkeypatch, capsys):
    model, processor = make_pair(modality, num_labels=5)
    model.save_pretrained(tmp_path / "my model", processor=processor)
    (tmp_path / "snippet.py").write_text(snippet((tmp_path / "my model" / "README.md").read_text()))
    monkeypatch.chdir(tmp_path)
    loaded = runpy.run_path("snippet.py")
    assert "'logits': (2, 5)" in capsys.readouterr().out
    assert loaded["model"].encoder_fingerprint() == model.encoder_fingerprint()
    assert loaded["processor"].to_dict() == processor.to_dict()


@pytest.mark.parametrize("modality", ["image", "tabular"])
def test_the_snippet_makes_samples_as_the_processor_was_set_and_fitted(modality, tmp_path, monkeypatch):
    table = pd.DataFrame({"weight": [1.0, 2.0, 3.0], "colour": ["red", "blue", "red"]})
    parts = {"image": ImageProcessor(num_channels=7), "tabular": TabularProcessor().fit(table)}
    processor = MetaTransformerProcessor(**{modality: parts[modality]})
    model = MetaTransformerModel(MetaTransformerConfig.tiny(modalities=processor.tokenizer_configs()))
    (tmp_path / "snippet.py").write_text(snippet(str(generate_card(model, "saved", processor=processor))))
    model.save_pretrained(tmp_path / "saved", processor=processor)
    monkeypatch.chdir(tmp_path)
    assert runpy.run_path("snippet.py")["output"].pooler_output.shape == (2, 192)


def test_the_snippet_has_one_call_for_each_modality_that_the_processor_takes(make_pair):
    _, processor = make_pair("image")
    model = MetaTransformerModel(MetaTransformerConfig.tiny(modalities=["image", "audio"]))
    assert re.findall(r"batch = processor\((\w+)=", snippet(str(generate_card(model, "x", processor=processor)))) == [
        "image"
    ]
    assert re.findall(r"batch = processor\((\w+)=", snippet(str(generate_card(model, "x")))) == ["audio", "image"]


def test_the_snippet_imports_what_is_defined_outside_the_package(make_pair):
    model, processor = make_pair()
    outside = type("Mine", (MetaTransformerForClassification,), {"__module__": "my_package.models"})
    model.__class__ = outside
    text = snippet(str(generate_card(model, "x", processor=processor)))
    assert text.startswith("import meta_transformer\n")
    assert "\nimport my_package.models  # the model class Mine\n" in text
    assert 'model = my_package.models.Mine.from_pretrained("x")' in text


def test_the_metadata_says_what_the_hub_asks_for(make_pair):
    model, processor = make_pair(encoder_name_or_path="timm/vit_base_patch16_clip_224.laion2b")
    card = generate_card(
        model, "x", processor=processor, metrics={"accuracy": 0.5}, license="apache-2.0", tags=["digits", "image"]
    )
    assert ModelCard(str(card)).data.to_dict() == {
        "library_name": "meta_transformer",
        "license": "apache-2.0",
        "base_model": "timm/vit_base_patch16_clip_224.laion2b",
        "pipeline_tag": "image-classification",
        "metrics": ["accuracy"],
        "tags": ["meta-transformer", "image", "digits"],
    }


@pytest.mark.parametrize(
    ("model_class", "modalities", "expected"),
    [
        (MetaTransformerForClassification, ["audio"], "audio-classification"),
        (MetaTransformerForClassification, ["image", "audio"], None),
        (MetaTransformerModel, ["image"], "image-feature-extraction"),
        (MetaTransformerModel, ["audio"], None),
    ],
)
def test_the_pipeline_tag_is_the_hubs_word_or_absent(model_class, modalities, expected):
    with torch.device("meta"):
        model = model_class(MetaTransformerConfig.tiny(modalities=modalities))
    assert generate_card(model, "x").data.pipeline_tag == expected


def test_a_local_encoder_is_no_base_model_and_its_path_stays_private(make_pair, tmp_path):
    model, _ = make_pair(encoder_name_or_path=str(tmp_path / "weights.pth"))
    card = generate_card(model, "x")
    assert card.data.base_model is None
    assert "`weights.pth`, a local checkpoint" in card.text
    assert str(tmp_path) not in str(card)


def test_an_existing_folder_is_not_taken_for_a_hub_name(make_pair, tmp_path, monkeypatch):
    (tmp_path / "outputs" / "encoder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert generate_card(make_pair(encoder_name_or_path="outputs/encoder")[0], "x").data.base_model is None


def test_the_encoder_section_names_fingerprint_and_freezing(make_pair):
    model, _ = make_pair()
    assert f"| Fingerprint | `{model.encoder_fingerprint()}` |" in generate_card(model, "x").text
    assert "| Trained | no, frozen |" in generate_card(model, "x").text
    model.unfreeze_encoder()
    assert "| Trained | yes, with the rest |" in generate_card(model, "x").text


def test_the_parameter_table_adds_up_to_the_model(make_pair):
    model, _ = make_pair()
    rows = re.findall(
        r"^\| (`[\w.]+`|\*\*all\*\*) \| ([\d,]+) \| ([\d,]+) \|$", generate_card(model, "x").text, re.MULTILINE
    )
    counts = {name: (int(trainable.replace(",", "")), int(frozen.replace(",", ""))) for name, trainable, frozen in rows}
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    assert counts.pop("**all**") == (trainable, frozen)
    assert tuple(map(sum, zip(*counts.values(), strict=True))) == (trainable, frozen)


def test_labels_are_listed_where_they_have_names(make_pair):
    assert (
        "3 labels: `cat`, `dog`, `o wl`."
        in generate_card(make_pair(id2label={0: "cat", 1: "dog", 2: "o`wl"})[0], "x").text
    )
    assert "labels:" not in generate_card(make_pair(num_labels=3)[0], "x").text
    many = {index: f"class {index}" for index in range(1000)}
    assert "`class 39` and 960 more." in generate_card(make_pair(id2label=many)[0], "x").text


def test_results_are_a_table_of_formatted_values(make_pair):
    metrics = {"accuracy": np.float32(0.123456), "samples": 12345, "loss": torch.tensor(2.0), "a|b": "good\nenough"}
    text = generate_card(make_pair()[0], "x", metrics=metrics).text
    for row in ("| accuracy | 0.1235 |", "| samples | 12,345 |", "| loss | 2 |", r"| a\|b | good enough |"):
        assert row in text
    assert "## Results" not in generate_card(make_pair()[0], "x").text


@pytest.mark.parametrize("metrics", [["accuracy"], {"accuracy": [0.1, 0.2]}, {1: 0.5}])
def test_metrics_of_a_wrong_type_are_refused(metrics, make_pair):
    with pytest.raises(TypeError, match="metrics"):
        generate_card(make_pair()[0], "x", metrics=metrics)


def test_weights_that_are_elsewhere_are_neither_hashed_nor_counted(make_pair):
    """As in sharded training: the model holds pieces, `state_dict` may hold the whole or not even the trunk."""
    model, _ = make_pair()
    whole, fingerprint = dict(model.state_dict()), model.encoder_fingerprint()
    sharded, _ = make_pair(seed=1)
    for parameter in sharded.parameters():
        parameter.data = parameter.data.new_empty(0)
    text = generate_card(sharded, "x", state_dict=whole).text
    assert fingerprint in text
    assert "## Parameters" not in text
    head = {name: tensor for name, tensor in whole.items() if name.startswith("head.")}
    assert "Fingerprint" not in generate_card(model, "x", state_dict=head).text


def test_a_persons_card_is_kept_and_ours_replaced(make_pair):
    card = generate_card(make_pair()[0], "x")
    assert merge_cards("---\nlicense: mit\n---\n\n# My model\n", card) is None
    assert merge_cards("no metadata at all", card) is None
    assert merge_cards("---\n: [\n---\nbroken", card) is None
    assert merge_cards(str(generate_card(make_pair(seed=1)[0], "y")), card) == str(card)
    claimed = "\n".join(line for line in str(card).splitlines() if not line.startswith("<!-- Generated"))
    assert merge_cards(claimed, card) is None


def test_metadata_that_a_person_chose_is_taken_over(make_pair):
    merged = merge_cards(
        "---\nlicense: mit\ntags:\n- mine\n---\n", generate_card(make_pair()[0], "x", license="apache-2.0")
    )
    data = ModelCard(merged).data
    assert (data.license, data.tags, data.library_name) == (
        "mit",
        ["meta-transformer", "image", "mine"],
        "meta_transformer",
    )
    assert is_generated(merged)


def test_a_modality_from_outside_is_imported(make_pair, monkeypatch):
    model, processor = make_pair("image")
    outside = Registry("modality")
    entry = MODALITIES["image"]
    tokenizer_class = type("WindTokenizer", (entry.tokenizer_class,), {"__module__": "wind_package"})
    outside.add(type(entry)("image", entry.processor_class, tokenizer_class))
    monkeypatch.setattr(sys.modules["meta_transformer.checkpoints.model_card"], "MODALITIES", outside)
    assert "import wind_package  # the modality 'image'" in snippet(str(generate_card(model, "x", processor=processor)))
