"""Samples with any subset of modalities: joining, dropping, filling, and the ways of fusion, on a small model."""

from contextlib import nullcontext

import pytest
import torch
from torch.testing import assert_close

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerForRetrieval,
    MetaTransformerForSegmentation,
    MetaTransformerModel,
)
from meta_transformer.execution import block_numbers, make_packing
from meta_transformer.fusion import align, drop_modalities, fill_absent
from meta_transformer.heads.pooling import Pooling
from meta_transformer.sequence import SeriesLayout, TokenSequence

FUSIONS = ["early", "concat", "gated", "attention", "bottleneck"]
TRUNK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def config(**options) -> MetaTransformerConfig:
    return MetaTransformerConfig(**{**TRUNK, "modalities": ["image", "audio", "text"], **options})


def lively(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def make_model(**options) -> MetaTransformerForClassification:
    torch.manual_seed(0)
    return lively(MetaTransformerForClassification(config(**options)))


def raw() -> dict[str, torch.Tensor]:
    """Rows: three images, two clips, two texts."""
    random = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(3, 3, 32, 32, generator=random),
        "input_features": torch.randn(2, 32, 128, generator=random),
        "input_ids": torch.randint(0, 200, (2, 5), generator=random),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }


# The rows of each modality by sample: image and text; audio alone; two images; all three.
SAMPLES = [{"image": [0], "text": [0]}, {"audio": [0]}, {"image": [1, 2]}, {"image": [0], "audio": [1], "text": [1]}]
OWNERS = {"image": ["pixel_values"], "audio": ["input_features"], "text": ["input_ids", "attention_mask"]}


def batch(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    rows, inputs = raw(), {}
    for modality, names in OWNERS.items():
        chosen = [(number, row) for number, sample in enumerate(samples) for row in sample.get(modality, [])]
        if chosen:
            inputs[f"{modality}_samples"] = torch.tensor([number for number, _ in chosen])
            inputs |= {name: rows[name][[row for _, row in chosen]] for name in names}
    return inputs


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("absent_tokens", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_sample_of_a_mixed_batch_equals_the_sample_alone(fusion, absent_tokens, packing):
    model = make_model(fusion=fusion, absent_tokens=absent_tokens, packing=packing)
    together = model(**batch(SAMPLES))
    for number, sample in enumerate(SAMPLES):
        assert_close(model(**batch([sample])).logits[0], together.logits[number], **TOLERANCE)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_order_and_neighbours_change_nothing(fusion):
    model = make_model(fusion=fusion)
    expected = model(**batch(SAMPLES)).logits
    for order in ([3, 1, 0, 2], [2, 0], [1, 3]):
        assert_close(model(**batch([SAMPLES[each] for each in order])).logits, expected[order], **TOLERANCE)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_packed_and_padded_execution_give_the_same_gradients(fusion):
    gradients = []
    for packing in (True, False):
        model = make_model(fusion=fusion, packing=packing, freeze_encoder=False, absent_tokens=True)
        model(**batch(SAMPLES), labels=torch.tensor([0, 1, 1, 0])).loss.backward()
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_of_a_mixed_batch_are_those_of_its_samples(fusion):
    model, labels = make_model(fusion=fusion), torch.tensor([0, 1, 1, 0])

    def gradients():
        found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
        model.zero_grad()
        return found

    model(**batch(SAMPLES), labels=labels).loss.backward()
    together = gradients()
    for sample, label in zip(SAMPLES, labels, strict=True):
        (model(**batch([sample]), labels=label[None]).loss / 4).backward()
    for name, gradient in gradients().items():
        assert_close(together[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_all_modalities_of_a_sample_have_an_effect(fusion):
    model = make_model(fusion=fusion)
    expected = model(**batch(SAMPLES)).logits[3]
    for modality in SAMPLES[3]:
        fewer = {name: rows for name, rows in SAMPLES[3].items() if name != modality}
        assert (model(**batch([fewer])).logits[0] - expected).abs().max() > 1e-4


def test_without_numbers_of_samples_the_result_is_that_of_numbers_in_order():
    model, inputs = make_model(), raw()
    pair = {name: inputs[name][:2] for name in ("pixel_values", "input_features")}
    numbered = {**pair, "image_samples": torch.arange(2), "audio_samples": torch.arange(2)}
    assert_close(model(**numbered).logits, model(**pair).logits, **TOLERANCE)


def test_one_modality_alone_is_the_same_early_and_late():
    early, late = make_model(), make_model(fusion="gated")
    late.load_state_dict(early.state_dict(), strict=False)
    images = {"pixel_values": raw()["pixel_values"]}
    assert_close(late.model(**images).last_hidden_state, early.model(**images).last_hidden_state, **TOLERANCE)


def test_late_fusion_keeps_modalities_apart_and_bottlenecks_let_them_exchange():
    images = raw()["pixel_values"][:2]
    for fusion, apart in (("gated", True), ("bottleneck", False), ("early", False)):
        model = make_model(fusion=fusion).model
        found = []
        for clips in (raw()["input_features"], raw()["input_features"] + 1):
            sequence = model.tokenize(pixel_values=images, input_features=clips)
            columns = next(segment.columns for segment in sequence.segments if segment.modality == "image")
            found.append(model.encode(sequence).last_hidden_state[:, columns])
        assert ((found[0] - found[1]).abs().max() < 1e-6) == apart


def test_bottleneck_tokens_are_shared_from_their_layer_on_only():
    images, clips = raw()["pixel_values"][:2], raw()["input_features"]
    model = make_model(fusion="bottleneck", bottleneck_layer=1).model
    states = []
    for each in (clips, clips + 1):
        output = model(pixel_values=images, input_features=each, output_hidden_states=True)
        states.append(output.hidden_states)
    sequence = model.tokenize(pixel_values=images, input_features=clips)
    image = next(segment.columns for segment in sequence.segments if segment.modality == "image")
    assert_close(states[0][1][:, image], states[1][1][:, image], **TOLERANCE)
    assert_close(states[0][2][:, image], states[1][2][:, image], **TOLERANCE)  # the last exchange is behind it


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_way_of_fusion_is_saved_and_loaded(fusion, tmp_path):
    model = make_model(fusion=fusion, absent_tokens=True, modality_dropout=0.2)
    model.save_pretrained(tmp_path)
    loaded = MetaTransformerForClassification.from_pretrained(tmp_path)
    assert_close(loaded(**batch(SAMPLES)).logits, model(**batch(SAMPLES)).logits, rtol=0, atol=0)


@pytest.mark.parametrize("pooling", ["cls", "mean", "attention"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_heads_pool_in_every_way_of_fusion(fusion, pooling):
    model = make_model(fusion=fusion, heads={"classification": {"pooling": pooling}})
    together = model(**batch(SAMPLES)).logits
    assert_close(model(**batch(SAMPLES[1:2])).logits[0], together[1], **TOLERANCE)
    assert together.isfinite().all()


@pytest.mark.parametrize("fusion", ["early", "gated"])
def test_a_head_may_read_one_modality(fusion):
    samples = [SAMPLES[0], SAMPLES[3]]
    model = make_model(fusion=fusion, heads={"classification": {"pooling": "mean", "modalities": ["text"]}})
    output = model.model(**batch(samples))
    sequence = model.model.tokenize(**batch(samples))
    text = next(segment.columns for segment in sequence.segments if segment.modality == "text")
    tokens, mask = output.last_hidden_state[:, text], sequence.mask[:, text]
    mean = torch.stack([row[own].mean(dim=0) for row, own in zip(tokens, mask, strict=True)])
    read = model.head.read(sequence.replace_embeddings(output.last_hidden_state))
    assert_close(read.mean(), mean)
    with pytest.raises(ValueError, match=r"reads 'text', which the samples \[1\]"):
        model(**batch(SAMPLES[:2]))
    with pytest.raises(ValueError, match=r"reads \['text'\], but the batch has \['audio'\]"):
        model(**batch(SAMPLES[1:2]))


def test_gated_fusion_starts_as_the_mean():
    torch.manual_seed(0)
    model = MetaTransformerForClassification(config(fusion="gated")).eval()
    sequence = model.model.tokenize(**batch(SAMPLES[3:]))
    encoded = sequence.replace_embeddings(model.model.encode(sequence).last_hidden_state)
    vectors = [torch.nn.functional.layer_norm(encoded.embeddings[0, place], (32,)) for place in encoded.class_tokens]
    assert_close(model.head.pooling(encoded)[0], torch.stack(vectors).mean(dim=0))


def test_modality_dropout_leaves_each_sample_at_least_one_and_drops_at_its_rate():
    parts = {name: [TokenSequence(torch.ones(4000, 1, 2))] for name in "abc"}
    torch.manual_seed(0)
    dropped = drop_modalities(parts, 0.3)
    kept = torch.stack([own[0].present for own in dropped.values()])
    assert kept.any(dim=0).all()
    # A sample that would lose all, 0.3 ** 3 of them, keeps one of three.
    assert abs(kept.float().mean().item() - (0.7 + 0.027 / 3)) < 0.01
    assert_close(dropped["a"][0].mask[:, 0], kept[0])


def test_modality_dropout_acts_in_training_alone():
    model = make_model(modality_dropout=0.9)
    expected = model(**batch(SAMPLES)).logits
    assert_close(model(**batch(SAMPLES)).logits, expected, rtol=0, atol=0)
    model.train()
    assert any((model(**batch(SAMPLES)).logits - expected).abs().max() > 1e-4 for _ in range(5))


def test_a_learned_token_stands_for_what_is_absent():
    filled = fill_absent({}, [("a", torch.tensor([1.0, 2.0]))], 3)["a"][0]
    assert filled.embeddings.tolist() == [[[1.0, 2.0]]] * 3
    model = make_model(absent_tokens=True)
    model(**batch(SAMPLES), labels=torch.tensor([0, 1, 1, 0])).loss.backward()
    assert all(token.grad.abs().max() > 0 for token in model.model.absent_tokens.values())


def test_rows_are_aligned_to_their_samples():
    part = TokenSequence(torch.arange(4.0)[:, None, None], torch.tensor([[True], [True], [True], [False]]))
    slots = align(part, torch.tensor([2, 0, 2, 2]), 4)
    rows = [slot.embeddings[:, 0, 0].masked_fill(~slot.mask[:, 0], -1).tolist() for slot in slots]
    assert rows == [[1, -1, 0, -1], [-1, -1, 2, -1], [-1, -1, -1, -1]]
    assert [slot.present.tolist() for slot in slots] == [
        [True, False, True, False],
        [False, False, True, False],
        [False, False, True, False],
    ]


def test_layouts_follow_their_rows():
    series = torch.arange(6.0).view(2, 3, 1)
    layout = SeriesLayout(
        (1, 1), (3,), (3,), loc=torch.tensor([[1.0], [2.0]]), scale=torch.ones(2, 1), values=series,
        observed=series > 0, lengths=torch.tensor([3, 2]),
    )  # fmt: skip
    (slot,) = align(TokenSequence(torch.zeros(2, 1, 4), layout=layout), torch.tensor([1, 0]), 2)
    assert slot.layout.loc.tolist() == [[2.0], [1.0]]
    assert slot.layout.lengths.tolist() == [2, 3]
    assert slot.layout.shape == (1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_samples": torch.tensor([0, 2, 2]), "audio_samples": torch.tensor([0, 3])}, r"samples \[1\] of 4"),
        ({"image_samples": torch.tensor([0, 1])}, "image_samples must be 3 integers"),
        ({"image_samples": torch.tensor([0, 1, -1])}, "image_samples must be 3 integers"),
        ({"image_samples": torch.tensor([0.0, 1.0, 2.0])}, "image_samples must be 3 integers"),
        ({"image_samples": torch.tensor([0, 1, 2])}, "image_samples names sample 2, but the batch has 2"),
    ],
)
def test_bad_numbers_of_samples_are_refused(changes, message):
    inputs = {name: raw()[name] for name in ("pixel_values", "input_features")}
    with pytest.raises(ValueError, match=message):
        make_model()(**inputs, **changes)


def test_a_modality_without_rows_is_refused():
    inputs = {"input_features": raw()["input_features"], "pixel_values": raw()["pixel_values"][:0]}
    with pytest.raises(ValueError, match="'image' has no rows; leave out its inputs"):
        make_model()(**inputs, image_samples=torch.tensor([], dtype=torch.long))


def test_numbers_of_samples_of_a_modality_that_the_model_lacks_are_refused():
    with pytest.raises(ValueError, match="'imu_samples' of modality 'imu'"):
        make_model()(pixel_values=raw()["pixel_values"], imu_samples=torch.arange(3))


def test_labels_fewer_than_samples_are_refused():
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        make_model()(**batch(SAMPLES), labels=torch.tensor([0, 1]))


def test_attention_weights_are_had_padded_alone():
    model = MetaTransformerModel(config(attn_implementation="eager"))
    assert len(model(**batch(SAMPLES), output_attentions=True).attentions) == 2
    model.config.packing = True
    with pytest.raises(ValueError, match="packing to 'auto'"):
        model(**batch(SAMPLES), output_attentions=True)


def test_flash_attention_keeps_modalities_apart_packed_alone():
    for fusion, refused in (("gated", True), ("bottleneck", True), ("early", False)):
        model = make_model(fusion=fusion, packing=False).model
        sequence = model.tokenize(**batch(SAMPLES))
        model.config._attn_implementation = "flash_attention_2"
        blocks = block_numbers(sequence)
        with pytest.raises(ValueError, match="runs packed alone") if refused else nullcontext():
            assert make_packing(sequence, blocks, model.config, attentions=False) is None
        model.config.packing = "auto"
        assert make_packing(sequence, blocks, model.config, attentions=False) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "average"}, "fusion"),
        ({"packing": "always"}, "packing"),
        ({"modality_dropout": 1.0}, "modality_dropout is a probability below 1"),
        ({"num_bottleneck_tokens": 0}, "num_bottleneck_tokens must be at least 1"),
        ({"bottleneck_layer": 2}, "bottleneck_layer must be one of the 2 blocks"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(Exception, match=message):
        config(**options)


def test_a_pooling_that_does_not_know_fusion_refuses_several_class_tokens():
    sequence = make_model(fusion="gated").model.tokenize(**batch(SAMPLES))
    with pytest.raises(ValueError, match="make_pooling"):
        Pooling("cls", 32, 4)(sequence)


def test_modality_dropout_is_refused_where_the_head_needs_what_it_takes_away():
    with pytest.raises(ValueError, match="modality_dropout is 0.3, but the head 'segmentation' needs"):
        MetaTransformerForSegmentation(config(modality_dropout=0.3))
    with pytest.raises(ValueError, match="the head 'classification' needs"):
        make_model(modality_dropout=0.3, heads={"classification": {"modalities": ["image"]}})
    MetaTransformerForSegmentation(config(modality_dropout=0.3, modalities=["image"]))  # which is never taken away


def test_retrieval_without_a_modality_has_no_embedding_of_it():
    with pytest.raises(ValueError, match="absent_tokens"):
        MetaTransformerForRetrieval(config(absent_tokens=True))


def test_hidden_states_of_chosen_layers_alone_are_those_of_all():
    model = make_model().model
    every = model(**batch(SAMPLES), output_hidden_states=True).hidden_states
    chosen = model(**batch(SAMPLES), output_hidden_states=[-1]).hidden_states
    assert [state is None for state in chosen] == [True, True, False]
    assert_close(chosen[-1], every[-1], rtol=0, atol=0)
