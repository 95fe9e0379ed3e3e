"""Graphs without Python: as the model to 1e-4 at other batch sizes and lengths than those that they were made from."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from meta_transformer import MetaTransformerConfig, MetaTransformerForTask, MetaTransformerProcessor
from meta_transformer.export import OnnxModel, export_onnx, export_program
from meta_transformer.registry import HEADS, MODALITIES

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's own exporter

# Of pictures, those of one batch must have one size, which differs from batch to batch.
OF_ONE_SIZE = ("image", "infrared", "xray", "video")
# Each head on a modality that it accepts.
HEAD_CASES = [
    ("graph", "token_classification"),
    ("image", "object_detection"),
    ("image", "segmentation"),
    ("imu", "token_classification"),
    ("point_cloud", "token_classification"),
    ("tabular", "regression"),
    ("text", "multi_task"),
    ("text", "retrieval"),
    ("time_series", "forecasting"),
]
CASES = [(name, "classification") for name in MODALITIES.names()] + HEAD_CASES


def fit(modality: str) -> MetaTransformerProcessor:
    processor_class = MODALITIES[modality].processor_class
    processor = processor_class()
    processor.fit(processor.dummy_samples(16), **processor_class.dummy_call_kwargs)
    return MetaTransformerProcessor(**{modality: processor})


def make_batch(processor: MetaTransformerProcessor, count: int, seed: int) -> dict[str, torch.Tensor]:
    (modality,) = processor.processors
    own = processor.processors[modality]
    samples, options = own.dummy_samples(count, seed), type(own).dummy_call_kwargs
    if modality in OF_ONE_SIZE:
        samples = [samples[0]] * count
    return dict(processor(**{modality: samples}, **options))


def make_model(processor: MetaTransformerProcessor, head: str, **options: Any) -> MetaTransformerForTask:
    """A model in which every weight matters, with options of its tokenizer."""
    torch.manual_seed(0)
    heads = {head: HEADS[head].head_class.dummy_config()}
    modalities = {name: {**config, **options} for name, config in processor.tokenizer_configs().items()}
    config = MetaTransformerConfig(**TINY, modalities=modalities, heads=heads)
    model = next(each for each in MetaTransformerForTask.__subclasses__() if each.head_name == head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.function(values)


def tensors(output: Any) -> list[torch.Tensor]:
    return [each for each in tree_leaves(dict(output)) if isinstance(each, torch.Tensor)]


def assert_equal_outputs(graph: Any, model: Any, processor: MetaTransformerProcessor) -> None:
    """On batches that the graph was not made from."""
    for count, seed in ((1, 1), (5, 2), (2, 3)):
        batch = make_batch(processor, count, seed)
        with torch.no_grad():
            expected = tensors(model(**batch))
        found = tensors(graph(**batch))
        assert len(found) == len(expected)
        for each, other in zip(found, expected, strict=True):
            torch.testing.assert_close(each, other, rtol=1e-4, atol=1e-4, check_dtype=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, MetaTransformerProcessor]:
    """A folder, and the model and processor that were exported to it."""
    folder = tmp_path_factory.mktemp("onnx")
    processor = fit("tabular")
    model = make_model(processor, "classification")
    export_onnx(model, make_batch(processor, 3, 0), folder, processor=processor)
    return folder, model, processor


def test_the_graph_gives_what_the_model_gives(exported: Any) -> None:
    folder, model, processor = exported
    assert_equal_outputs(OnnxModel.from_pretrained(folder), model, processor)


def test_inputs_and_outputs_have_the_models_names(exported: Any) -> None:
    session = OnnxModel.from_pretrained(exported[0]).session
    assert {each.name for each in session.get_inputs()} <= set(MODALITIES["tabular"].model_input_names)
    assert [each.name for each in session.get_outputs()] == ["logits"]


def test_the_folder_has_what_serving_needs(exported: Any) -> None:
    folder, model, processor = exported
    graph, again = OnnxModel.from_pretrained(folder), MetaTransformerProcessor.from_pretrained(folder)
    batch = again(tabular=processor.tabular.dummy_samples(2))
    with torch.no_grad():
        expected = model.post_process(model(**batch))
    for found, row in zip(graph.post_process(graph(**batch)), expected, strict=True):
        assert [each["label"] for each in found] == [each["label"] for each in row]
        assert [each["score"] for each in found] == pytest.approx([each["score"] for each in row], abs=1e-5)


def test_what_the_graph_does_not_take_is_refused(exported: Any) -> None:
    graph = OnnxModel.from_pretrained(exported[0])
    with pytest.raises(ValueError, match=r"does not take \['pixel_values'\]"):
        graph(pixel_values=np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(ValueError, match="needs .*'numerical_features'"):
        graph()


def test_a_folder_without_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write it with export_onnx"):
        OnnxModel.from_pretrained(tmp_path)


def test_what_cannot_be_exported_leaves_no_file(tmp_path: Path) -> None:
    processor = fit("image")
    ragged = dict(processor(image=processor.image.dummy_samples(3)))
    with pytest.raises(ValueError, match="pictures of one size"):
        export_onnx(make_model(processor, "classification"), ragged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_operation_that_onnx_lacks_is_refused(tmp_path: Path) -> None:
    def negate(values: torch.Tensor) -> torch.Tensor:
        return -values

    operator = torch.library.custom_op("tests::negate", negate, mutates_args=())
    operator.register_fake(torch.empty_like)
    processor = fit("tabular")
    model = make_model(processor, "classification")
    model.head.dropout = Apply(operator)
    with pytest.raises(ValueError, match=r"ONNX cannot express this model: .*export_program"):
        export_onnx(model, make_batch(processor, 3, 0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_batch_that_lacks_modalities_is_refused() -> None:
    processor = fit("tabular")
    batch = {**make_batch(processor, 2, 0), "tabular_samples": torch.tensor([0, 2])}
    with pytest.raises(ValueError, match="all have the same modalities"):
        export_program(make_model(processor, "classification"), batch)


@pytest.mark.slow
@pytest.mark.parametrize(("modality", "head"), CASES, ids=lambda word: word)
def test_every_modality_and_head_runs_under_onnxruntime(modality: str, head: str, tmp_path: Path) -> None:
    processor = fit(modality)
    model = make_model(processor, head)
    export_onnx(model, make_batch(processor, 3, 0), tmp_path, processor=processor)
    assert_equal_outputs(OnnxModel.from_pretrained(tmp_path), model, processor)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modality", "options", "size", "other"),
    [
        ("audio", {}, (54, 128), (3, 128)),  # shorter than a patch
        ("image", {"image_size": 32}, (3, 32, 32), (3, 16, 64)),  # of as many patches as the table of positions
        ("time_series", {}, (37, 3), (2, 3)),  # shorter than a patch
        ("video", {"image_size": 32}, (4, 3, 32, 32), (3, 3, 48, 32)),  # of half a tubelet
    ],
)
def test_no_rule_for_sizes_is_fixed_in_a_graph(
    modality: str, options: dict[str, Any], size: tuple[int, ...], other: tuple[int, ...], tmp_path: Path
) -> None:
    name, model = MODALITIES[modality].model_input_names[0], make_model(fit(modality), "classification", **options)
    export_onnx(model, {name: torch.randn(2, *size)}, tmp_path)
    values = torch.randn(2, *other)
    with torch.no_grad():
        expected = model(**{name: values}).logits
    found = OnnxModel.from_pretrained(tmp_path)(**{name: values})["logits"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modality", "size", "other"),
    [("image", (3, 32, 32), (3, 48, 64)), ("video", (4, 3, 32, 32), (3, 3, 48, 32))],
)
def test_a_program_made_at_the_size_of_the_positions_takes_others(
    modality: str, size: tuple[int, ...], other: tuple[int, ...]
) -> None:
    name, model = MODALITIES[modality].model_input_names[0], make_model(fit(modality), "classification", image_size=32)
    program = export_program(model, {name: torch.randn(2, *size)}).module()
    values = torch.randn(3, *other)
    with torch.no_grad():
        torch.testing.assert_close(program(**{name: values}).logits, model(**{name: values}).logits)


@pytest.mark.slow
def test_a_saved_program_gives_what_the_model_gives(tmp_path: Path) -> None:
    processor = fit("point_cloud")
    model = make_model(processor, "classification")
    export_program(model, make_batch(processor, 3, 0), tmp_path, processor=processor)
    names = zipfile.ZipFile(tmp_path / "model.pt2").namelist()
    assert not [name for name in names if name.endswith((".pkl", ".py"))]
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count, seed in ((2, 1), (5, 2)):
        batch = make_batch(processor, count, seed)
        with torch.no_grad():
            torch.testing.assert_close(program(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-4)
