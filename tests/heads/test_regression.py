"""The regression head: its losses against torch, its metrics against scikit-learn, and the way back to the units."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch.nn import functional
from torch.testing import assert_close
from transformers import EvalPrediction

from meta_transformer import MetaTransformerConfig, MetaTransformerForRegression, TokenSequence
from meta_transformer.heads.regression import RegressionHead, RegressionHeadConfig

TOKENS = torch.randn(6, 5, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)) * 30 + 2000


def head(num_targets: int = 2, **options) -> RegressionHead:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return RegressionHead(
        RegressionHeadConfig(num_targets=num_targets, **options), MetaTransformerConfig(**shape)
    ).eval()


@pytest.mark.parametrize(
    ("loss", "reference"),
    [("mse", functional.mse_loss), ("mae", functional.l1_loss), ("huber", functional.huber_loss)],
)
def test_the_loss_is_that_of_torch_on_standardised_targets(loss, reference) -> None:
    made = head(loss=loss)
    made.standardize(LABELS)
    output = made(TokenSequence(TOKENS), LABELS)
    mean, std = LABELS.mean(0), LABELS.std(0, correction=0)
    assert_close(output.loss, reference((output.logits - mean) / std, (LABELS - mean) / std), rtol=1e-4, atol=1e-4)


def test_the_gaussian_loss_is_the_negative_log_likelihood_but_for_a_constant() -> None:
    made = head(loss="gaussian_nll")
    labels = LABELS - 2000
    output = made(TokenSequence(TOKENS), labels)
    normal = torch.distributions.Normal(output.logits, output.variance.sqrt())
    expected = -normal.log_prob(labels).mean() - 0.5 * np.log(2 * np.pi)
    assert_close(output.loss, expected)


def test_the_gaussian_loss_finds_the_noise_of_the_targets() -> None:
    """All inputs are alike, so that the best that can be said is the mean and variance of the targets."""
    made = head(loss="gaussian_nll").train()
    targets = torch.randn(256, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 0.5]) + 7
    made.standardize(targets)
    sequence = TokenSequence(TOKENS[:1].expand(256, -1, -1))
    optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(300):
        made(sequence, targets).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    output = made(sequence)
    assert_close(output.logits[0], targets.mean(0), rtol=0.02, atol=0.02)
    assert_close(output.variance[0], targets.var(0), rtol=0.05, atol=0)


def test_the_loss_over_accumulated_batches_sums_to_that_of_the_whole() -> None:
    made = head()
    whole = made(TokenSequence(TOKENS), LABELS).loss
    parts = [
        made(TokenSequence(TOKENS[part]), LABELS[part], num_items_in_batch=LABELS.numel()).loss
        for part in (slice(0, 1), slice(1, 6))
    ]
    assert_close(sum(parts), whole)


def test_one_target_takes_labels_of_one_dimension() -> None:
    torch.manual_seed(0)
    model = MetaTransformerForRegression(MetaTransformerConfig.tiny(num_hidden_layers=1, modalities=["image"]))
    pixels = torch.rand(3, 3, 16, 16)
    labels = torch.tensor([1.0, 2.0, 3.0])
    assert_close(
        model(pixel_values=pixels, labels=labels).loss, model(pixel_values=pixels, labels=labels[:, None]).loss
    )


def test_large_levels_keep_their_digits_in_half_precision() -> None:
    made = head().bfloat16()
    made.standardize(LABELS)
    output = made(TokenSequence(TOKENS.bfloat16()))
    assert output.logits.dtype == torch.float32
    assert len(set(output.logits[:, 0].tolist())) == 6


def test_what_standardises_is_saved_with_the_model(tmp_path) -> None:
    config = MetaTransformerConfig.tiny(num_hidden_layers=1, modalities=["image"])
    model = MetaTransformerForRegression(config).eval()
    model.head.standardize([1999.5, 2010.25, 2004.0])
    model.save_pretrained(tmp_path)
    loaded = MetaTransformerForRegression.from_pretrained(tmp_path)
    pixels = torch.rand(3, 3, 16, 16)
    assert torch.equal(loaded(pixel_values=pixels).logits, model(pixel_values=pixels).logits)
    assert model(pixel_values=pixels).logits.min() > 1980
    assert loaded.config.heads["regression"].target_mean == [np.mean([1999.5, 2010.25, 2004.0])]


def test_a_constant_target_is_not_divided_by_zero() -> None:
    made = head()
    made.standardize(torch.tensor([[5.0, 1.0], [5.0, 2.0]]))
    assert made.config.target_std == [1.0, 0.5]


def test_metrics_equal_scikit_learn() -> None:
    random = np.random.default_rng(0)
    predictions, labels = random.normal(size=(2, 40, 1)).astype(np.float32)
    found = head(predictions.shape[1]).metrics()(EvalPrediction(predictions, labels))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(labels, predictions), rel=1e-5)
    assert found["mae"] == pytest.approx(mean_absolute_error(labels, predictions), rel=1e-5)
    assert found["r2"] == pytest.approx(r2_score(labels, predictions), rel=1e-4)


def test_metrics_of_several_targets_are_means_over_targets() -> None:
    random = np.random.default_rng(0)
    predictions, labels = random.normal(size=(2, 40, 2)).astype(np.float32) * np.array([1, 50], np.float32)
    found = head(predictions.shape[1]).metrics()(EvalPrediction(predictions, labels))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(labels, predictions), rel=1e-5)
    assert found["mae"] == pytest.approx(mean_absolute_error(labels, predictions), rel=1e-5)
    assert found["r2"] == pytest.approx(r2_score(labels, predictions), rel=1e-4)


def test_post_processing_names_the_targets() -> None:
    made = head(target_names=["height", "width"], loss="gaussian_nll")
    output = made(TokenSequence(TOKENS))
    first = made.post_process(output)[0]
    assert first["width"]["value"] == pytest.approx(output.logits[0, 1].item())
    assert first["height"]["std"] == pytest.approx(output.variance[0, 0].sqrt().item())
    assert list(head().post_process(head()(TokenSequence(TOKENS)))[0]) == ["target_0", "target_1"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:5], r"must have shape \(6, 2\), one number a target, got \(5, 2\)"),
        (LABELS[:, 0], r"must have shape \(6, 2\)"),
        (LABELS * torch.nan, "must be finite numbers, got nan"),
        (LABELS * torch.inf, "must be finite numbers, got inf"),
    ],
)
def test_bad_labels_are_refused(labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        head()(TokenSequence(TOKENS), labels)
    if labels.shape != LABELS[:5].shape:
        with pytest.raises(ValueError, match="labels must"):
            head().standardize(labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_targets": 0}, "num_targets must be at least 1, got 0"),
        ({"target_names": ["a", "b"]}, "target_names must be 1 names"),
        ({"loss": "l2"}, "loss"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"target_std": [0.0]}, "target_std must be positive"),
        ({"target_mean": [1.0, 2.0]}, "target_mean must be 1 finite numbers"),
    ],
)
def test_bad_options_are_refused(options, message) -> None:
    with pytest.raises(Exception, match=message):
        RegressionHeadConfig(**options)
