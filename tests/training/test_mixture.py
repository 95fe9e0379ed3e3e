"""Mixtures of data sets: rows, and batches drawn by temperature."""

import datasets
import numpy as np
import pytest
from scipy.stats import chisquare

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerForMultiTask
from meta_transformer.training import TaskMixture, TemperatureBatchSampler

SIZES = {"large": 1000, "middle": 100, "small": 10}


def rows(count: int, **more) -> list[dict]:
    return [{"text": str(index), "labels": index, **more} for index in range(count)]


@pytest.fixture
def mixture() -> TaskMixture:
    return TaskMixture({task: rows(size) for task, size in SIZES.items()})


def tasks_of_batches(mixture: TaskMixture, sampler) -> list[str]:
    found = [
        {task for task, numbers in mixture.ranges.items() for each in batch if each in numbers} for batch in sampler
    ]
    assert all(len(tasks) == 1 for tasks in found)
    return [tasks.pop() for tasks in found]


def test_a_mixture_has_all_rows_with_their_labels_by_task() -> None:
    series = datasets.Dataset.from_list([{"text": "a", "label": 3}, {"text": "b", "label": 4}])
    mixture = TaskMixture({"first": rows(2), "second": series})
    assert [mixture[index] for index in range(len(mixture))] == [
        {"text": "0", "labels": {"first": 0}},
        {"text": "1", "labels": {"first": 1}},
        {"text": "a", "labels": {"second": 3}},
        {"text": "b", "labels": {"second": 4}},
    ]
    assert mixture[-1] == mixture[3]
    assert list(mixture.part("second")) == [mixture[2], mixture[3]]
    with pytest.raises(IndexError):
        mixture[4]


def test_a_mixture_leaves_the_rows_of_its_data_sets_as_they_are() -> None:
    own = rows(1)
    TaskMixture({"first": own})[0]
    assert own == rows(1)


def test_mixtures_that_make_no_sense_are_refused() -> None:
    model = MetaTransformerForMultiTask(
        MetaTransformerConfig.tiny(
            num_hidden_layers=1, modalities=["text"], heads={"multi_task": {"tasks": {"a": {"head": "regression"}}}}
        )
    )
    assert len(TaskMixture({"a": rows(2)}, model)) == 2
    with pytest.raises(ValueError, match=r"tasks \['b'\], which the model has not; it has \['a'\]"):
        TaskMixture({"a": rows(2), "b": rows(2)}, model)
    with pytest.raises(TypeError, match="several tasks"):
        TaskMixture({"a": rows(2)}, MetaTransformerForClassification(model.config))
    with pytest.raises(ValueError, match="at least one task"):
        TaskMixture({})
    with pytest.raises(ValueError, match="task 'b' is empty"):
        TaskMixture({"a": rows(2), "b": []})
    with pytest.raises(TypeError, match="task 'a' must give rows by number"):
        TaskMixture({"a": iter(rows(2))})
    with pytest.raises(ValueError, match=r"task 'a' has the keys \['text'\], but no label"):
        TaskMixture({"a": [{"text": "x"}]})[0]


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, [1000, 100, 10]),
        ({"temperature": 2}, [1000**0.5, 100**0.5, 10**0.5]),
        ({"temperature": 1 / 0.3}, [1000**0.3, 100**0.3, 10**0.3]),
        ({"temperature": float("inf")}, [1, 1, 1]),
        ({"size_limit": 50}, [50, 50, 10]),
        ({"size_limit": 200, "temperature": 2}, [200**0.5, 100**0.5, 10**0.5]),
    ],
    ids=str,
)
def test_tasks_come_as_often_as_the_closed_form_says(mixture, options, weights) -> None:
    expected = np.array(weights) / sum(weights)
    sampler = TemperatureBatchSampler(mixture, 4, num_batches=5000, **options)
    np.testing.assert_allclose(list(sampler.rates.values()), expected)
    found = tasks_of_batches(mixture, sampler)
    assert chisquare([found.count(task) for task in SIZES], 5000 * expected).pvalue > 0.01


@pytest.mark.parametrize("size", [1, 3, 10, 64, {"large": 64, "middle": 7, "small": 3}], ids=str)
def test_every_sample_comes_once_before_any_comes_again_over_all_epochs(mixture, size) -> None:
    sampler = TemperatureBatchSampler(mixture, size, temperature=4, num_batches=150)
    given: dict[str, list[int]] = {task: [] for task in SIZES}
    for epoch in range(6):
        sampler.set_epoch(epoch)
        for batch in sampler:
            task = next(task for task, numbers in mixture.ranges.items() if batch[0] in numbers)
            given[task] += batch
    assert len(given["small"]) > 3 * SIZES["small"], "the premise: several passes"
    for task, numbers in mixture.ranges.items():
        passes = [given[task][start : start + len(numbers)] for start in range(0, len(given[task]), len(numbers))]
        assert all(sorted(each) == list(numbers) for each in passes[:-1])
        assert len(set(passes[-1])) == len(passes[-1])
        assert len(passes) < 3 or passes[0] != passes[1], "a new order"


def test_batches_follow_from_seed_and_epoch_alone(mixture) -> None:
    def batches(seed: int, epoch: int) -> list[list[int]]:
        sampler = TemperatureBatchSampler(mixture, 8, temperature=2, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(0, 2) == batches(0, 2)
    assert batches(0, 2) != batches(0, 1)
    assert batches(0, 2) != batches(1, 2)
    used = TemperatureBatchSampler(mixture, 8, temperature=2)
    list(used)  # another epoch first
    used.set_epoch(2)
    assert list(used) == batches(0, 2)


@pytest.mark.parametrize("temperature", [1, 3, float("inf")])
def test_an_epoch_has_as_many_samples_as_the_mixture_on_average(mixture, temperature) -> None:
    sampler = TemperatureBatchSampler(mixture, {"large": 16, "middle": 8, "small": 5}, temperature=temperature)
    counts = []
    for epoch in range(60):
        sampler.set_epoch(epoch)
        counts.append(sum(map(len, sampler)))
        assert len(list(sampler)) == len(sampler)
    assert np.mean(counts) == pytest.approx(len(mixture), rel=0.03)


def test_short_batches_can_be_left_out(mixture) -> None:
    sizes = {"large": 64, "middle": 64, "small": 10}
    lengths = {len(batch) for batch in TemperatureBatchSampler(mixture, sizes, temperature=9, num_batches=200)}
    assert lengths == {64, 1000 % 64, 100 % 64, 10}
    dropped = TemperatureBatchSampler(mixture, sizes, temperature=9, num_batches=200, drop_last=True)
    assert {len(batch) for batch in dropped} == {64, 10}
    with pytest.raises(ValueError, match=r"leaves nothing of tasks \['small'\]"):
        TemperatureBatchSampler(mixture, 64, drop_last=True)


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (0, {}, "batch_size must be at least 1, got 0"),
        ({"large": 4}, {}, "batch_size must name the tasks"),
        (4, {"temperature": 0}, "temperature must be above 0"),
        (4, {"temperature": float("nan")}, "temperature must be above 0"),
        (4, {"size_limit": 0}, "size_limit must be at least 1"),
        (4, {"num_batches": 0}, "num_batches at least 1"),
        (4, {"seed": -1}, "seed must be at least 0"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(mixture, size, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        TemperatureBatchSampler(mixture, size, **options)
