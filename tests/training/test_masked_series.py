"""Hiding steps and scoring by their reconstruction, on a model that has learned sine waves."""

import numpy as np
import pytest
import torch

from meta_transformer import MetaTransformerConfig, MetaTransformerForForecasting
from meta_transformer.training import anomaly_scores, hide_steps

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


def waves(count: int, seed: int) -> torch.Tensor:
    """Sines of different phase `(count, 48, 2)`, of period 12."""
    phases = torch.rand(count, 1, 2, generator=torch.Generator().manual_seed(seed)) * 6.28
    return 10 + 3 * torch.sin(torch.arange(48)[:, None] * 6.2832 / 12 + phases)


@pytest.fixture(scope="module")
def trained() -> MetaTransformerForForecasting:
    torch.manual_seed(0)
    tokenizer = {"patch_length": 12, "stride": 6, "level_features": False}
    head = {"objective": "reconstruction", "patch_length": 12}
    config = MetaTransformerConfig(**SHAPE, modalities={"time_series": tokenizer}, heads={"forecasting": head})
    model = MetaTransformerForForecasting(config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    random = np.random.default_rng(0)
    for step in range(150):
        values = waves(32, step)
        pairs = [hide_steps(each.numpy(), 0.25, run=3, random=random) for each in values]
        hidden, labels = (torch.tensor(np.stack(part), dtype=torch.float32) for part in zip(*pairs, strict=True))
        model(past_values=hidden, past_observed_mask=~hidden.isnan(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_hidden_steps_are_labels_and_nothing_else_is() -> None:
    values = np.arange(2000.0).reshape(1000, 2)
    values[3, 1] = np.nan
    hidden, labels = hide_steps(values, 0.3, run=5, random=np.random.default_rng(0))
    assert (np.isnan(hidden) != np.isnan(labels)).sum() == 1999  # but for what was missing before
    np.testing.assert_array_equal(np.fmax(hidden, labels), values)
    assert np.isnan(hidden).mean() == pytest.approx(0.3, abs=0.06)
    runs = np.isnan(hidden[5:]).reshape(-1, 5, 2)
    assert (runs == runs[:, :1]).all()


@torch.no_grad()
def test_gaps_are_filled_far_better_than_by_lines(trained) -> None:
    values, seen = waves(8, seed=999), torch.ones(8, 48, 2, dtype=torch.bool)
    seen[:, 20:26] = False
    output = trained(past_values=values.masked_fill(~seen, 0), past_observed_mask=seen)
    error = (output.imputed - values)[:, 20:26].square().mean()
    line = torch.stack([torch.lerp(values[:, 19], values[:, 26], (step + 1) / 7) for step in range(6)], dim=1)
    assert error < 0.2 * (line - values[:, 20:26]).square().mean()


def test_what_was_planted_has_the_highest_score(trained) -> None:
    values = waves(8, seed=77)
    places = torch.arange(8) * 5 + 4
    values[torch.arange(8), places] += 6
    scores = anomaly_scores(trained, values, run=3)
    assert scores.shape == (8, 48)
    assert (scores.argmax(dim=1) - places).abs().max() == 0


def test_the_score_is_an_error_in_units_of_the_variance_while_the_step_is_hidden(trained) -> None:
    values = waves(1, seed=5)
    values[0, 10, 0] += 2
    scores = anomaly_scores(trained, values, folds=48)
    seen = torch.ones_like(values, dtype=torch.bool)
    seen[0, 10] = False
    with torch.no_grad():
        rebuilt = trained(past_values=values, past_observed_mask=seen).logits
    expected = ((rebuilt - values)[0, 10].square() / values[0].var(dim=0, correction=0)).mean()
    torch.testing.assert_close(scores[0, 10], expected)


def test_steps_without_any_value_have_no_score(trained) -> None:
    values, seen = waves(2, seed=6), torch.ones(2, 48, 2, dtype=torch.bool)
    seen[0, 7], seen[1, 40:] = False, False
    scores = anomaly_scores(trained, values, seen, past_mask=torch.arange(48) < torch.tensor([[48], [40]]))
    assert torch.equal(scores.isnan(), ~seen.any(dim=2))


@pytest.mark.parametrize(("share", "run"), [(0.0, 1), (1.0, 1), (0.5, 0)])
def test_bad_shares_are_refused(share: float, run: int) -> None:
    with pytest.raises(ValueError, match="share lie between 0 and 1"):
        hide_steps(np.zeros((5, 1)), share, run=run)


def test_a_model_that_forecasts_gives_no_scores(trained) -> None:
    model = MetaTransformerForForecasting(MetaTransformerConfig(**SHAPE, modalities=["time_series"]))
    with pytest.raises(ValueError, match="objective 'reconstruction'"):
        anomaly_scores(model, torch.zeros(1, 20, 1))
    with pytest.raises(ValueError, match="2 folds or more"):
        anomaly_scores(trained, torch.zeros(1, 20, 1), folds=1)
