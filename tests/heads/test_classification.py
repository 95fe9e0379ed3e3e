"""The classification head against scikit-learn's and torch's losses."""

import pytest
import torch
from scipy.special import expit, softmax
from sklearn.metrics import log_loss
from torch.testing import assert_close

from meta_transformer import MetaTransformerConfig, TokenSequence
from meta_transformer.heads.classification import ClassificationHead, ClassificationHeadConfig

TOKENS = torch.randn(6, 5, 32)
SINGLE = torch.tensor([0, 3, 1, 2, 3, 0])
MULTI = (torch.rand(6, 4) > 0.5).float()


def head(**options):
    own = {key: options.pop(key) for key in ("pooling", "dropout", "label_smoothing") if key in options}
    torch.manual_seed(0)
    config = MetaTransformerConfig(hidden_size=32, num_attention_heads=4, num_labels=4, **options)
    return ClassificationHead(ClassificationHeadConfig(**own), config).eval()


def test_single_label_loss_equals_scikit_learn():
    output = head()(TokenSequence(TOKENS), SINGLE)
    probabilities = softmax(output.logits.double().detach().numpy(), axis=1)
    assert output.loss.item() == pytest.approx(log_loss(SINGLE, probabilities, labels=range(4)), rel=1e-5)


def test_multi_label_loss_equals_scikit_learn():
    output = head()(TokenSequence(TOKENS), MULTI)
    probabilities = expit(output.logits.double().detach().numpy())
    expected = sum(log_loss(MULTI[:, k], probabilities[:, k], labels=[0, 1]) for k in range(4)) / 4
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_equals_torch(smoothing):
    output = head(label_smoothing=smoothing)(TokenSequence(TOKENS), SINGLE)
    assert_close(output.loss, torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(output.logits, SINGLE))
    output = head(label_smoothing=smoothing)(TokenSequence(TOKENS), MULTI)
    smooth = MULTI * (1 - smoothing) + 0.5 * smoothing
    assert_close(output.loss, torch.nn.BCEWithLogitsLoss()(output.logits, smooth))


def test_unknown_labels_do_not_count():
    made, labels = head(), SINGLE.clone()
    labels[3:] = -100
    assert_close(made(TokenSequence(TOKENS), labels).loss, made(TokenSequence(TOKENS[:3]), SINGLE[:3]).loss)
    assert made(TokenSequence(TOKENS), torch.full((6,), -100)).loss == 0


@pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single", "multi"])
def test_uneven_parts_of_a_batch_sum_to_its_loss(labels):
    made = head()
    whole = made(TokenSequence(TOKENS), labels).loss
    parts = [made(TokenSequence(TOKENS[part]), labels[part], labels.numel()).loss for part in (slice(2), slice(2, 6))]
    assert_close(sum(parts), whole)


@pytest.mark.parametrize("pooling", ["cls", "mean", "attention"])
def test_padding_has_no_influence(pooling):
    made = head(pooling=pooling)
    prefix, mask = TokenSequence(TOKENS[:, :1]), torch.ones(6, 4, dtype=torch.bool)
    mask[:, 2:] = False
    padded = TokenSequence.concatenate(prefix, {"a": TokenSequence(TOKENS[:, 1:], mask)}.items())
    alone = TokenSequence.concatenate(prefix, {"a": TokenSequence(TOKENS[:, 1:3])}.items())
    assert_close(made(padded).logits, made(alone).logits)


def test_attention_pooling_equals_torch():
    pooling = head(pooling="attention").pooling
    torch.nn.init.normal_(pooling.query)
    reference = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([torch.eye(32), pooling.key.weight, pooling.value.weight]))
        reference.in_proj_bias.copy_(torch.cat([torch.zeros(32), pooling.key.bias, pooling.value.bias]))
        reference.out_proj.weight.copy_(torch.eye(32))
        reference.out_proj.bias.zero_()
    expected, _ = reference(pooling.query.expand(6, 1, 32), TOKENS, TOKENS)
    assert_close(pooling(TokenSequence(TOKENS)), expected[:, 0])


def test_dropout_acts_in_training_only():
    made = head(dropout=0.5)
    assert_close(made(TokenSequence(TOKENS)).logits, made(TokenSequence(TOKENS)).logits)
    made.train()
    assert (made(TokenSequence(TOKENS)).logits - made(TokenSequence(TOKENS)).logits).abs().max() > 0


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (torch.tensor([0, 1, 2, 3, 4, 0]), {}, r"labels must lie in 0..3, got 4"),
        (torch.tensor([0, -1, 2, 3, 1, 0]), {}, r"labels must lie in 0..3, got -1"),
        (torch.tensor([0, 1]), {}, r"must have shape \(6,\), got \(2,\)"),
        (torch.full((6, 4), 2.0), {}, r"labels must lie in 0..1, got 2"),
        (torch.full((6, 4), float("nan")), {}, "labels must lie in 0..1, got nan"),
        (torch.zeros(6, 3), {}, r"must have shape \(6, 4\), got \(6, 3\)"),
        (MULTI, {"problem_type": "single_label_classification"}, r"must have shape \(6,\)"),
        (SINGLE, {"problem_type": "multi_label_classification"}, r"must have shape \(6, 4\)"),
    ],
)
def test_bad_labels_are_refused(labels, options, message):
    with pytest.raises(ValueError, match=message):
        head(**options)(TokenSequence(TOKENS), labels)


def test_bad_options_are_refused():
    with pytest.raises(Exception, match="label_smoothing must be at least 0 and below 1, got 1.0"):
        head(label_smoothing=1.0)
    with pytest.raises(Exception, match="pooling"):
        head(pooling="max")
    with pytest.raises(ValueError, match="regression"):
        head(problem_type="regression")
