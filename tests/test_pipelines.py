"""transformers' `pipeline` with our models, as after `import meta_transformer`."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerForTask,
    MetaTransformerProcessor,
    register_head,
)
from meta_transformer.heads.classification import ClassificationHead
from meta_transformer.pipelines import MetaTransformerPipeline, register_pipelines
from meta_transformer.processors.image import ImageProcessor
from meta_transformer.registry import HEADS, MODALITIES

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
NAMES = {0: "cat", 1: "dog", 2: "owl"}


def save(folder: Path, head: str, processors: dict[str, Any], **options: Any) -> str:
    """A model with lively random weights and its processor, in a folder."""
    processor = MetaTransformerProcessor(**processors)
    settings = {**TINY, "modalities": processor.tokenizer_configs(), "id2label": NAMES, **options}
    torch.manual_seed(0)
    model_class = next(each for each in MetaTransformerForTask.__subclasses__() if each.head_name == head)
    model = model_class(MetaTransformerConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder, processor=processor)
    return str(folder)


def expected(folder: str, samples: list[Any], modality: str, **options: Any) -> list[Any]:
    """What model and processor give without a pipeline, for each sample alone."""
    config = MetaTransformerConfig.from_pretrained(folder)
    model_class = next(each for each in MetaTransformerForTask.__subclasses__() if each.head_name in config.heads)
    model, processor = model_class.from_pretrained(folder), MetaTransformerProcessor.from_pretrained(folder)
    with torch.no_grad():
        return [model.post_process(model(**processor([{modality: sample}])), **options)[0] for sample in samples]


def pictures(count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + 8 * i, 40 - 4 * i, 3), dtype=np.uint8) for i in range(count)]


def clips(count: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(-0.5, 0.5, 4000 + 3000 * i).astype(np.float32) for i in range(count)]
    return [{"array": each, "sampling_rate": 16_000} for each in arrays]


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("audio"), "classification", {"audio": True})


def assert_same(found: Any, other: Any) -> None:
    """Equal labels, and scores to 1e-5."""
    assert [each["label"] for each in found] == [each["label"] for each in other]
    assert [each["score"] for each in found] == pytest.approx([each["score"] for each in other], abs=1e-5)


def test_a_folder_and_the_name_of_the_task_are_enough(audio: str) -> None:
    pipe = pipeline("audio-classification", model=audio)
    assert_same(pipe(clips(1)[0]), expected(audio, clips(1), "audio")[0])


@pytest.mark.parametrize(("modality", "samples"), [("image", pictures(1)), ("video", None), ("text", ["a b c"])])
def test_every_task_of_transformers_answers_for_its_modality(modality: str, samples: Any, tmp_path: Path) -> None:
    samples = samples or list(MODALITIES[modality].processor_class().dummy_samples(1))
    folder = save(tmp_path, "classification", {modality: True})
    answer = pipeline(f"{modality}-classification", model=folder)(samples[0])
    assert_same(answer, expected(folder, samples, modality)[0][: len(answer)])


def test_a_modality_without_a_task_in_transformers_has_one_of_its_own(tmp_path: Path) -> None:
    folder = save(tmp_path, "classification", {"point_cloud": True})
    cloud = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    answer = pipeline("point-cloud-classification", model=folder)(cloud)
    assert_same(answer, expected(folder, [cloud], "point_cloud")[0])


def test_every_modality_and_head_has_a_task() -> None:
    names = {f"{modality}-{head}".replace("_", "-") for modality in MODALITIES.names() for head in HEADS.names()}
    assert names <= set(PIPELINE_REGISTRY.get_supported_tasks())


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_an_answer_does_not_depend_on_its_neighbours(audio: str, batch_size: int) -> None:
    """Clips of different length: transformers' own batching would pad them without a mask."""
    answers = pipeline("audio-classification", model=audio)(clips(), batch_size=batch_size)
    for found, alone in zip(answers, expected(audio, clips(), "audio"), strict=True):
        assert_same(found, alone)


class Clips(Dataset):
    """Clips as a data set of torch."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return clips()[index]


@pytest.mark.parametrize("make", [lambda: (each for each in clips()), Clips], ids=["generator", "data set"])
def test_generators_and_data_sets_are_answered_one_after_the_other(audio: str, make: Any) -> None:
    answers = pipeline("audio-classification", model=audio, batch_size=2)(make())
    assert iter(answers) is iter(answers), "the premise: an iterator, not a list"
    assert [each[0]["label"] for each in answers] == [each[0]["label"] for each in expected(audio, clips(), "audio")]


def test_a_generator_is_read_no_further_than_asked(audio: str) -> None:
    def endless() -> Any:
        while True:
            yield clips(1)[0]

    answers = pipeline("audio-classification", model=audio)(endless())
    assert len([next(answers) for _ in range(3)]) == 3


def test_workers_process_samples(audio: str) -> None:
    pipe = pipeline("audio-classification", model=audio)
    assert pipe(clips(), num_workers=1, batch_size=2) == pipe(clips(), batch_size=2)


def test_top_k_is_an_option_of_the_call_and_of_the_pipeline(audio: str) -> None:
    assert len(pipeline("audio-classification", model=audio, top_k=1)(clips(1)[0])) == 1
    assert len(pipeline("audio-classification", model=audio, top_k=1)(clips(1)[0], top_k=2)) == 2


def test_options_of_the_processor_reach_it(audio: str) -> None:
    pipe = pipeline("audio-classification", model=audio)
    clip = clips(1)[0]
    assert_same(pipe(clip["array"], sampling_rate=16_000), pipe(clip))


def test_an_unknown_option_is_refused(audio: str) -> None:
    with pytest.raises(ValueError, match="'colour' is no modality, nor an argument"):
        pipeline("audio-classification", model=audio)(clips(1)[0], colour=1)


def test_text_gives_the_likeliest_class_as_transformers_does(tmp_path: Path) -> None:
    pipe = pipeline("text-classification", model=save(tmp_path, "classification", {"text": True}))
    alone = pipe("one")
    assert [each.keys() for each in alone] == [{"label", "score"}]
    assert pipe(["one", "two"])[0] == pytest.approx(alone[0])
    assert [len(each) for each in pipe(["one", "two"], top_k=None)] == [3, 3]


def test_model_and_processor_may_be_objects(audio: str) -> None:
    model = MetaTransformerForClassification.from_pretrained(audio)
    processor = MetaTransformerProcessor.from_pretrained(audio)
    answer = pipeline("audio-classification", model=model, processor=processor)(clips(1)[0])
    assert_same(answer, MetaTransformerPipeline(model)(clips(1)[0]))


def test_a_new_model_without_processor_is_refused() -> None:
    model = MetaTransformerForClassification(MetaTransformerConfig(**TINY, modalities=["audio"]))
    with pytest.raises(ValueError, match="give processor="):
        pipeline("audio-classification", model=model)


def test_samples_of_several_modalities_are_dicts(tmp_path: Path) -> None:
    folder = save(tmp_path, "classification", {"image": True, "text": True})
    pipe = pipeline("meta-transformer", model=folder)
    both, alone = pipe([{"image": pictures(1)[0], "text": "a"}, {"text": "a"}], batch_size=2)
    assert both[0]["score"] != pytest.approx(alone[0]["score"], abs=1e-4)
    with pytest.raises(ValueError, match=r"samples of \['image', 'text'\]; give each as a dict"):
        pipe("a")
    assert_same(pipeline("text-classification", model=folder, top_k=3)("a"), alone)


def test_a_table_is_answered_row_by_row(tmp_path: Path) -> None:
    import pandas as pd

    table = pd.DataFrame({"width": [1.0, 2.0, 3.0, 4.0], "kind": ["a", "b", "a", "b"]})
    processor = MODALITIES["tabular"].processor_class().fit(table)
    folder = save(tmp_path, "regression", {"tabular": processor})
    pipe = pipeline("tabular-regression", model=folder)
    answers = pipe(table, batch_size=4)
    assert answers[0] == pytest.approx(pipe({"width": 1.0, "kind": "a"}), abs=1e-5)
    assert len(answers) == 4


@pytest.mark.parametrize("size", [None, 16, [24, 16]])
def test_boxes_lie_on_the_picture_that_came_in(size: Any, tmp_path: Path) -> None:
    folder = save(tmp_path, "object_detection", {"image": ImageProcessor(size=size)})
    samples = pictures()
    answers = pipeline("object-detection", model=folder, threshold=0.0)(samples, batch_size=3)
    sizes = [each.shape[:2] for each in samples]
    for sample, answer, area in zip(samples, answers, sizes, strict=True):
        (alone,) = expected(folder, [sample], "image", threshold=0.0, target_sizes=[area])
        assert [each["box"] for each in answer] == [
            dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)) for box in alone["boxes"].int().tolist()
        ]
        assert [each["label"] for each in answer] == alone["labels"]


def test_masks_have_the_size_of_the_picture_and_cover_it_once(tmp_path: Path) -> None:
    folder = save(tmp_path, "segmentation", {"image": ImageProcessor(size=16)})
    answers = pipeline("image-segmentation", model=folder)(pictures(), batch_size=2)
    for picture, answer in zip(pictures(), answers, strict=True):
        total = sum(np.asarray(each["mask"]).astype(int) for each in answer)
        assert total.shape == picture.shape[:2]
        assert (total == 255).all()
        assert {each["label"] for each in answer} <= set(NAMES.values())


def test_a_processor_that_crops_cannot_say_where_answers_lie(tmp_path: Path) -> None:
    folder = save(tmp_path, "segmentation", {"image": ImageProcessor(size=16, crop_size=8)})
    with pytest.raises(ValueError, match="set its crop_size to None"):
        pipeline("image-segmentation", model=folder)(pictures(1)[0])


def test_every_place_of_a_sample_gets_an_entity(tmp_path: Path) -> None:
    folder = save(tmp_path, "token_classification", {"text": True})
    samples = ["a longer text", "short"]
    answers = pipeline("token-classification", model=folder)(samples, batch_size=2)
    assert [[each["entity"] for each in answer] for answer in answers] == expected(folder, samples, "text")
    assert all(1 / 3 - 1e-6 <= each["score"] <= 1 for answer in answers for each in answer)


@pytest.mark.parametrize("task", ["feature-extraction", "audio-feature-extraction"])
def test_features_are_those_of_the_trunk_without_padding(task: str, audio: str) -> None:
    pipe = pipeline(task, model=audio)
    tokens = pipe(clips(), batch_size=3, return_tensors=True)
    pooled = pipe(clips(), batch_size=3, pool=True)
    model = MetaTransformerForClassification.from_pretrained(audio)
    processor = MetaTransformerProcessor.from_pretrained(audio)
    for clip, found, vector in zip(clips(), tokens, pooled, strict=True):
        with torch.no_grad():
            alone = model.base_model(**processor(audio=[clip]))
        torch.testing.assert_close(found, alone.last_hidden_state, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.tensor(vector), alone.pooler_output, rtol=0, atol=1e-5)


def test_a_task_that_is_not_the_models_is_refused(audio: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="samples of 'image', but the model takes"):
        pipeline("image-classification", model=audio)
    regression = save(tmp_path, "regression", {"audio": True})
    with pytest.raises(ValueError, match="needs the head 'classification', but the model is a MetaTransformerForReg"):
        pipeline("audio-classification", model=regression)


def test_half_precision_is_an_option(audio: str) -> None:
    pipe = pipeline("audio-classification", model=audio, dtype=torch.bfloat16)
    assert pipe.model.dtype == torch.bfloat16
    answer = {each["label"]: each["score"] for each in pipe(clips(1)[0])}
    exact = {each["label"]: each["score"] for each in expected(audio, clips(1), "audio")[0]}
    assert answer == pytest.approx(exact, abs=0.05)


@pytest.mark.gpu
def test_answers_on_the_gpu_are_those_of_the_cpu(audio: str) -> None:
    found = pipeline("audio-classification", model=audio, device="cuda")(clips(), batch_size=3)
    for each, other in zip(found, pipeline("audio-classification", model=audio, device="cpu")(clips()), strict=True):
        assert [own["score"] for own in each] == pytest.approx([own["score"] for own in other], abs=1e-3)


def test_models_of_transformers_get_the_pipelines_of_transformers(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
    from transformers.pipelines import ImageClassificationPipeline

    config = ViTConfig(image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(OSError, match="preprocessor_config"):
        pipeline("image-classification", model=str(tmp_path))
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    pipe = pipeline("image-classification", model=str(tmp_path))
    assert type(pipe) is ImageClassificationPipeline


def test_a_head_of_ones_own_has_a_task_too() -> None:
    before = copy.copy(PIPELINE_REGISTRY.supported_tasks)
    register_head("grading", head_class=type("GradingHead", (ClassificationHead,), {}))
    try:
        register_pipelines()
        assert set(PIPELINE_REGISTRY.supported_tasks) - set(before) == {
            f"{modality}-grading".replace("_", "-") for modality in MODALITIES.names()
        }
    finally:
        HEADS.remove("grading")
        for name in set(PIPELINE_REGISTRY.supported_tasks) - set(before):
            del PIPELINE_REGISTRY.supported_tasks[name]


def test_files_are_read_by_our_readers(audio: str, tmp_path: Path) -> None:
    """The audio pipeline of transformers needs ffmpeg for them."""
    import soundfile

    clip = clips(1)[0]
    soundfile.write(tmp_path / "clip.wav", clip["array"], clip["sampling_rate"], subtype="FLOAT")
    pipe = pipeline("audio-classification", model=audio)
    assert_same(pipe(str(tmp_path / "clip.wav")), pipe(clip))
