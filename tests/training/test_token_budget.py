"""Batches by tokens: what the sampler gives, and how tokens are counted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.training import DataCollatorForMetaTransformer, TokenBudgetBatchSampler, count_tokens

LENGTHS = np.random.default_rng(0).lognormal(4, 0.7, size=600).astype(int).clip(1, 500)


def cost(lengths, padded):
    return max(lengths) * len(lengths) if padded else sum(lengths)


def fill(lengths, max_tokens, max_samples=None, padded=False):
    """Runs of a list of lengths, sample by sample."""
    batches = [[]]
    for length in lengths:
        together = [*batches[-1], length]
        if cost(together, padded) > max_tokens or (max_samples and len(together) > max_samples):
            batches.append([])
        batches[-1].append(length)
    return batches


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    max_tokens=st.integers(50, 200),
    max_samples=st.none() | st.integers(1, 5),
    bucket_size=st.integers(1, 20),
    padded=st.booleans(),
    epoch=st.integers(0, 10),
)
def test_every_sample_comes_once_in_as_many_batches_as_foretold_and_none_beyond_its_limits(
    lengths, max_tokens, max_samples, bucket_size, padded, epoch
):
    sampler = TokenBudgetBatchSampler(
        lengths, max_tokens, max_samples=max_samples, bucket_size=bucket_size, padded=padded
    )
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert cost([lengths[index] for index in batch], padded) <= max_tokens
        assert 1 <= len(batch) <= (max_samples or len(lengths))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("max_samples", [None, 7])
def test_without_shuffling_batches_are_those_of_a_loop_over_samples(padded, max_samples):
    sampler = TokenBudgetBatchSampler(LENGTHS, 900, max_samples=max_samples, shuffle=False, padded=padded)
    batches = list(sampler)
    assert [LENGTHS[batch].tolist() for batch in batches] == fill(LENGTHS.tolist(), 900, max_samples, padded)
    assert np.concatenate(batches).tolist() == list(range(len(LENGTHS)))


@pytest.mark.parametrize("padded", [False, True])
def test_one_pool_is_filled_as_a_loop_over_sorted_samples_fills_it(padded):
    sampler = TokenBudgetBatchSampler(LENGTHS, 900, bucket_size=len(LENGTHS), padded=padded)
    found = sorted(LENGTHS[batch].tolist() for batch in sampler)
    assert found == fill(sorted(LENGTHS.tolist()), 900, padded=padded)


def test_batches_follow_from_seed_and_epoch():
    def batches(seed, epoch):
        sampler = TokenBudgetBatchSampler(LENGTHS, 900, seed=seed, bucket_size=100)
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler)
        return list(sampler)

    assert batches(0, 3) == batches(0, 3)
    for other in (batches(0, 4), batches(1, 3)):
        assert len({frozenset(batch) for batch in batches(0, 3)} & {frozenset(batch) for batch in other}) < 10


def test_samples_of_a_pool_of_one_are_not_sorted():
    sampler = TokenBudgetBatchSampler(LENGTHS, 2000, bucket_size=1)
    assert np.mean([np.ptp(LENGTHS[batch]) for batch in sampler]) > 100


def padding(bucket_size, padded):
    """The share of padding in batches as long as their longest sample."""
    sampler = TokenBudgetBatchSampler(LENGTHS, 2000, bucket_size=bucket_size, padded=padded)
    size = sum(cost(LENGTHS[batch], padded=True) for batch in sampler)
    return 1 - LENGTHS.sum() / size


@pytest.mark.parametrize("padded", [False, True])
def test_batches_of_similar_lengths_pad_less(padded):
    assert padding(200, padded) < 0.4 * padding(1, padded)


def test_batches_come_in_random_order():
    sampler = TokenBudgetBatchSampler(LENGTHS, 900, bucket_size=len(LENGTHS))
    longest = [LENGTHS[batch].max() for batch in sampler]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.4


@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor], ids=["list", "numpy", "torch"])
def test_lengths_of_every_kind_give_the_same_batches(kind):
    assert list(TokenBudgetBatchSampler(kind(LENGTHS.tolist()), 900)) == list(TokenBudgetBatchSampler(LENGTHS, 900))


def test_a_plain_loop_gets_the_samples_of_each_batch():
    sampler = TokenBudgetBatchSampler(LENGTHS, 900)
    loader = DataLoader(range(len(LENGTHS)), batch_sampler=sampler, collate_fn=list)
    assert len(loader) == len(sampler)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert list(loader) == list(sampler)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([3, 9, 12, 10], 8), ValueError, r"Sample 2 has 12 tokens, more than max_tokens=8, and so have 3 of 4.*to 12"),
        (([], 8), ValueError, r"one number for each sample, got an array of shape \(0,\)"),
        (([[1, 2]], 8), ValueError, r"one number for each sample, got an array of shape \(1, 2\)"),
        (([1.0, 2.0], 8), TypeError, "integers, as count_tokens gives them, got float64"),
        (([True, False], 8), TypeError, "integers, as count_tokens gives them, got bool"),
        (([4, 0], 8), ValueError, "Sample 1 has 0 tokens, less than 1; leave out"),
        (([1], 0), ValueError, "max_tokens must be at least 1, got 0"),
        (([1], 8.0), TypeError, "max_tokens must be an integer, got 8.0"),
    ],
)
def test_lengths_and_budgets_that_make_no_batches_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        TokenBudgetBatchSampler(*arguments)


@pytest.mark.parametrize(("name", "least"), [("bucket_size", 1), ("max_samples", 1), ("seed", 0)])
def test_numbers_out_of_range_are_refused(name, least):
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        TokenBudgetBatchSampler([1], 8, **{name: least - 1})


@pytest.fixture
def texts():
    return [{"text": "m" * length, "labels": 0} for length in (3, 30, 1, 12, 7)]


@pytest.fixture
def model():
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    processor = MetaTransformerProcessor(text=True)
    torch.manual_seed(0)
    return MetaTransformerForClassification(MetaTransformerConfig(**shape, modalities=processor.tokenizer_configs()))


def test_the_tokens_of_a_sample_are_those_it_has_alone(model, texts):
    processor = MetaTransformerProcessor(text=True)
    alone = [model.model.tokenize(**processor(text=[row["text"]])).embeddings.shape[1] for row in texts]
    counts = count_tokens(model, texts, DataCollatorForMetaTransformer(processor), batch_size=2, progress=False)
    assert counts.tolist() == alone
    assert len(set(alone)) == 5


def test_counting_runs_neither_trunk_nor_dropout_and_leaves_the_mode_as_it_was(model, texts):
    model.train()
    before = {name: module.training for name, module in model.named_modules()}
    during = []
    model.model.encoder.register_forward_hook(lambda *_: pytest.fail("the trunk ran"))
    model.model.tokenizers["text"].register_forward_hook(lambda module, *_: during.append(module.training))
    collator = DataCollatorForMetaTransformer(MetaTransformerProcessor(text=True))
    count_tokens(model, texts, collator, progress=False)
    assert during == [False]
    assert {name: module.training for name, module in model.named_modules()} == before
    assert len(set(before.values())) == 2, "the premise: the frozen trunk is in another mode than the rest"


def test_counting_shows_its_progress_on_request(model, texts, capfd):
    collator = DataCollatorForMetaTransformer(MetaTransformerProcessor(text=True))
    count_tokens(model, texts, collator, progress=False)
    assert "Counting tokens" not in capfd.readouterr().err
    count_tokens(model, texts, collator)
    assert "Counting tokens" in capfd.readouterr().err


def test_a_model_of_another_package_is_refused(texts):
    with pytest.raises(TypeError, match="count_tokens needs a model of meta_transformer, got Linear"):
        count_tokens(nn.Linear(2, 2), texts, list)
