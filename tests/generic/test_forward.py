"""What the outputs of every head on every modality do and do not depend on."""

import pytest
import torch
from torch.testing import assert_close

from meta_transformer import MetaTransformerModel

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def test_two_runs_give_the_same(case):
    model, batch = case.model(attention_dropout=0.3, drop_path_rate=0.3), case.batch()
    assert_close(model(**batch).to_tuple(), model(**batch).to_tuple(), rtol=0, atol=0)


def test_a_sample_does_not_depend_on_its_batch(case):
    model, batch = case.lively_model(), case.batch()
    together = model.model(**batch, output_hidden_states=True)
    for index, row in enumerate(case.rows()):
        alone = model.model(**row, output_hidden_states=True)
        keep = slice(None) if together.attention_mask is None else together.attention_mask[index]
        for whole, single in zip(together.hidden_states, alone.hidden_states, strict=True):
            assert_close(whole[index][keep], single[0], **TOLERANCE)
        single = case.prediction(model(**row))[0]
        assert_close(case.cut(case.prediction(model(**batch))[index], single), single, **TOLERANCE)


def word(name):
    return name.split("_")[0]


def padding(batch):
    """For each tensor its masks, inverted and with axes to fit it.

    A mask belongs to the tensors that begin with its own word, as `node_mask` does, or to all if there is none; it has
    their first axes, or their last ones.
    """
    masks = {name: ~value for name, value in batch.items() if value.dtype == torch.bool}
    values = {name: value for name, value in batch.items() if name not in masks}
    for name, mask in masks.items():
        own = [each for each in values if word(each) == word(name)] or list(values)
        for value in own:
            missing = [1] * (values[value].dim() - mask.dim())
            first = values[value].shape[: mask.dim()] == mask.shape
            yield value, mask.view(*mask.shape, *missing) if first else mask.view(len(mask), *missing, *mask.shape[1:])


@torch.no_grad()
@pytest.mark.parametrize(("garbage", "packing"), [(float("nan"), False), (1e30, "auto")])
def test_garbage_where_a_mask_is_false_changes_nothing(case, garbage, packing):
    model, batch = case.lively_model(packing=packing), case.batch()
    spoilt, places = dict(batch), 0
    for name, mask in padding(batch):
        spoilt[name] = spoilt[name].masked_fill(mask, garbage if batch[name].is_floating_point() else 10**9)
        places += int(mask.sum())
    assert places > 0
    found, expected = model.model(**spoilt), model.model(**batch)
    keep = slice(None) if expected.attention_mask is None else expected.attention_mask
    assert_close(found.last_hidden_state[keep], expected.last_hidden_state[keep], rtol=0, atol=0)
    assert_close(case.prediction(model(**spoilt)), case.prediction(model(**batch)), rtol=0, atol=0)


def test_a_batch_may_be_shuffled(case):
    model, batch = case.lively_model(), case.batch()
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {name: value[order] for name, value in batch.items()}
    assert_close(case.prediction(model(**shuffled)), case.prediction(model(**batch))[order], **TOLERANCE)


def test_outputs_depend_on_the_input(case):
    model = case.model()
    outputs = case.prediction(model(**case.batch()))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4


def test_eager_attention_equals_sdpa(case):
    model, batch = case.lively_model(), case.batch()
    model.set_attn_implementation("sdpa")
    sdpa = case.prediction(model(**batch))
    model.set_attn_implementation("eager")
    assert_close(case.prediction(model(**batch)), sdpa, **TOLERANCE)


def test_hidden_states_and_attentions_on_request(case):
    model, batch = case.model(attn_implementation="eager"), case.batch()
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    tokens = model.model(**batch).last_hidden_state.shape[1]
    assert [tuple(state.shape) for state in output.hidden_states] == [(4, tokens, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(4, 4, tokens, tokens)] * 2
    model.config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == 3


def test_a_tuple_holds_what_the_output_holds(case):
    model, batch = case.model(), case.batch()
    for part in (model, model.model):
        assert_close(part(**batch, return_dict=False), part(**batch).to_tuple())


def test_float64_inputs_are_taken(case):
    model, batch = case.lively_model(), case.batch()
    double = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    assert_close(case.prediction(model(**double)), case.prediction(model(**batch)), **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_close(case, dtype):
    model, batch = case.model(), case.batch()
    full = case.prediction(model(**batch))
    half = case.prediction(model.to(dtype)(**batch))
    assert half.dtype in (dtype, torch.float32)  # some predictions need more digits than half precision has
    assert_close(half.float(), full, rtol=0.1, atol=0.1 * full.abs().max().item())


def test_features_are_one_vector_a_sample_without_gradient(case):
    model, batch = case.model(), case.batch()
    for pooling in ("cls", "mean"):
        model.config.pooling = pooling
        features = model.get_features(**batch)
        assert features.shape == (4, 32)
        assert not features.requires_grad


def test_a_modality_embedding_of_zero_changes_nothing(case):
    model, batch = case.model(), case.batch()
    before = case.prediction(model(**batch))
    assert model.model.modality_embeddings[case.modality].abs().max() == 0
    with torch.no_grad():
        model.model.modality_embeddings[case.modality].normal_()
    assert (case.prediction(model(**batch)) - before).abs().max() > 1e-4


def test_inputs_of_a_modality_without_tokenizer_are_refused(case):
    model = MetaTransformerModel(case.config())
    other = next(name for name in ("pixel_values", "input_features") if name not in case.batch())
    with pytest.raises(ValueError, match="no tokenizer"):
        model(**{other: torch.zeros(1, 3, 32, 32)})
