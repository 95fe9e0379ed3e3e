"""Imputation by the forecasting head: patches to steps, which labels count, what comes back."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close
from transformers import EvalPrediction

from meta_transformer import MetaTransformerConfig, MetaTransformerForForecasting
from meta_transformer.heads.series_decoders import overlap_mean

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PAST = torch.randn(4, 22, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 0.5]) + 20
SEEN = torch.rand(4, 22, 2, generator=torch.Generator().manual_seed(1)) > 0.25
NAN = float("nan")


def make(tokenizer: dict | None = None, **options) -> MetaTransformerForForecasting:
    torch.manual_seed(0)
    tokenizer = {"patch_length": 8, "stride": 3, **(tokenizer or {})}
    head = {"objective": "reconstruction", "patch_length": 8, **options}
    config = MetaTransformerConfig(
        **SHAPE, initializer_range=0.2, modalities={"time_series": tokenizer}, heads={"forecasting": head}
    )
    return MetaTransformerForForecasting(config).eval()


def test_steps_are_the_mean_of_the_patches_over_them() -> None:
    cells = torch.randn(2, 3, 5, 4, 2, generator=torch.Generator().manual_seed(0))
    real = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(2)) > 0.4
    found = overlap_mean(cells, real, stride=3, steps=15)
    for batch, group, step in np.ndindex(2, 3, 15):
        over = [
            cells[batch, group, patch, step - 3 * patch]
            for patch in range(5)
            if 0 <= step - 3 * patch < 4 and real[batch, group, patch]
        ]
        expected = torch.stack(over).mean(dim=0) if over else torch.zeros(2)
        assert_close(found[batch, group, step], expected)


def test_only_known_labels_count() -> None:
    model = make()
    labels = PAST.masked_fill(SEEN, NAN)
    labels[0, 0] = -100
    output = model(past_values=PAST, past_observed_mask=SEEN, labels=labels)
    count = SEEN.sum(dim=1, keepdim=True)
    mean = PAST.masked_fill(~SEEN, 0).sum(dim=1, keepdim=True) / count
    std = ((PAST - mean).square().masked_fill(~SEEN, 0).sum(dim=1, keepdim=True) / count).sqrt()
    known = ~SEEN
    known[0, 0] = False
    expected = functional.mse_loss(((output.logits - mean) / std)[known], ((PAST - mean) / std)[known])
    assert_close(output.loss, expected)
    output.loss.backward()
    assert model.head.decoder.weight.grad.isfinite().all()


def test_the_loss_over_accumulated_batches_sums_to_that_of_the_whole() -> None:
    model, labels = make(), PAST.masked_fill(SEEN, NAN)
    known = (~SEEN).sum()
    parts = [
        model(past_values=PAST[part], past_observed_mask=SEEN[part], labels=labels[part], num_items_in_batch=known).loss
        for part in (slice(0, 1), slice(1, 4))
    ]
    assert_close(sum(parts), model(past_values=PAST, past_observed_mask=SEEN, labels=labels).loss)


@torch.no_grad()
@pytest.mark.parametrize("form", ["channel_independent", "channel_mixing", "convolution"])
def test_a_series_is_rebuilt_the_same_alone_and_padded(form) -> None:
    mixed = None if form == "channel_independent" else 2
    length = 1 if form == "convolution" else 8
    model = make({"form": form, "num_channels": 2}, num_channels=mixed, patch_length=length, quantiles=[0.2, 0.5])
    lengths = [3, 11, 18, 22]
    mask = torch.arange(22) < torch.tensor(lengths)[:, None]
    spoilt = PAST.masked_fill(~(mask[:, :, None] & SEEN), NAN)
    together = model.post_process(model(past_values=spoilt, past_observed_mask=SEEN, past_mask=mask))
    for index, length in enumerate(lengths):
        part = (slice(index, index + 1), slice(0, length))
        alone = model.post_process(model(past_values=PAST[part], past_observed_mask=SEEN[part]))[0]["imputed"]
        assert together[index]["imputed"].shape == (length, 2)
        np.testing.assert_allclose(together[index]["imputed"], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_was_observed_is_left_as_it_was() -> None:
    model = make()
    output = model(past_values=PAST.masked_fill(~SEEN, NAN), past_observed_mask=SEEN)
    imputed = torch.stack([torch.from_numpy(each["imputed"]) for each in model.post_process(output)])
    assert_close(imputed[SEEN], PAST[SEEN])
    assert torch.equal(imputed[~SEEN], output.logits[~SEEN])


def test_labels_of_different_length_are_padded_with_what_does_not_count() -> None:
    labels = make().head.label_collator()([[[1.0], [NAN]], np.array([[2.0], [3.0], [4.0]])])
    assert labels.tolist() == [[[1], [-100], [-100]], [[2], [3], [4]]]


def test_metrics_leave_unknown_labels_out() -> None:
    labels = np.array([[[1.0], [NAN], [-100.0]], [[2.0], [3.0], [4.0]]], np.float32)
    predictions = np.zeros_like(labels)
    found = make().metrics()(EvalPrediction((predictions, predictions), labels))
    assert found == pytest.approx({"mse": (1 + 4 + 9 + 16) / 4, "mae": (1 + 2 + 3 + 4) / 4})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (PAST[:, :20], r"labels must have shape \(4, 22, 2\), \(batch, steps, channels\), got \(4, 20, 2\)"),
        (PAST * torch.inf, "must be finite numbers, got inf"),
    ],
)
def test_bad_labels_are_refused(labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()(past_values=PAST, labels=labels)


def test_a_tokenizer_of_other_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="patch_length is 16, but the tokenizer's is 8"):
        make(patch_length=16)(past_values=PAST)
