"""transformers' `pipeline` for our models: raw samples in, answers in the words of its pipelines out.

A pipeline of transformers expects an image processor, a feature extractor or a tokenizer; a model of ours has one
processor for all its modalities. So one class of our own answers, under transformers' names of tasks where it has the
task (`"audio-classification"`), and else under the modality and the head (`"point-cloud-classification"`).
"""

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from types import GeneratorType
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import ModelOutput

from .checkpoints.foreign.files import HUB_OPTIONS
from .heads.token_classification import PADDED
from .modeling import MetaTransformerForTask, MetaTransformerPreTrainedModel
from .processing import MetaTransformerProcessor
from .registry import HEADS, MODALITIES

__all__ = ["MetaTransformerPipeline", "register_pipelines"]


class _Task(NamedTuple):
    """What the name of a task says: whose samples come without a dict, and the head; `None` where it leaves it open."""

    modality: str | None = None
    head: str | None = None


_FEATURES = "features"  # in place of a head: what leaves the trunk
_ANY = "meta-transformer"
_SHARED = {
    "audio-classification": _Task("audio", "classification"),
    "feature-extraction": _Task(None, _FEATURES),
    "image-classification": _Task("image", "classification"),
    "image-feature-extraction": _Task("image", _FEATURES),
    "image-segmentation": _Task("image", "segmentation"),
    "object-detection": _Task(None, "object_detection"),
    "text-classification": _Task("text", "classification"),
    "token-classification": _Task(None, "token_classification"),
    "video-classification": _Task("video", "classification"),
}
_TASKS: dict[str, _Task] = {_ANY: _Task(), **_SHARED}
# What transformers' pipelines load, and by which class.
_PARTS = {
    "tokenizer": "AutoTokenizer",
    "feature_extractor": "AutoFeatureExtractor",
    "image_processor": "AutoImageProcessor",
    "video_processor": "AutoVideoProcessor",
    "processor": "AutoProcessor",
}


class MetaTransformerPipeline(Pipeline):
    """Answers for samples of any modality, with any head or with none.

    A sample is what the modality's processor takes, or a dict by modality; a list, a table, a data set or a generator
    holds several, and a sample that is itself a list stands in a list of its own. Lists and tables give a list of
    answers, data sets and generators an iterator. Samples of a batch (`batch_size`) are padded together, with masks, so
    an answer does not depend on its neighbours.

    Options of a call, or of `pipeline(...)`: those of the head's `post_process`, such as `top_k` or `threshold`; those
    of the processor, such as `sampling_rate`; for features `pool` and `return_tensors`. Answers by head:

    - classification: `[{"label", "score"}]`, the 5 likeliest, or `top_k`; text, as in transformers, the likeliest;
    - object detection: `[{"score", "label", "box": {"xmin", "ymin", "xmax", "ymax"}}]` in pixels of the picture;
    - segmentation: `[{"score": None, "label", "mask"}]`, masks as PIL images of the picture's size;
    - token classification: `[{"entity", "score", "index"}]`, one for each node, point, id or step;
    - none: the encoded tokens `(1, tokens, hidden)` without padding, with `pool=True` the pooled vector;
    - any other: what `model.post_process` gives for the sample.

    Args:
        model: A model of this package; it is set to evaluation mode.
        processor: Its processor; by default that of the folder or repository that the model came from.
        options: As of transformers' `Pipeline`, and the options above.

    Raises:
        ValueError: The task needs another head than the model has, or a modality that the processor does not have.
    """

    _load_processor = None  # or it is found below
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False

    processor: MetaTransformerProcessor

    def __init__(
        self,
        model: MetaTransformerPreTrainedModel,
        *,
        processor: MetaTransformerProcessor | None = None,
        task: str = _ANY,
        **options: Any,
    ) -> None:
        for part in _PARTS:
            options.pop(part, None)  # found in the folder by one of transformers' classes
        if processor is None:
            if not model.name_or_path:
                raise ValueError("The model came from no folder, so none has its processor; give processor=....")
            processor = MetaTransformerProcessor.from_pretrained(model.name_or_path)
        self.modality, head = _TASKS.get(task or _ANY, _Task())
        self.head = None if head == _FEATURES or not isinstance(model, MetaTransformerForTask) else model.head
        _check(task, head, self.modality, model, processor)
        if self.modality is None and len(processor.processors) == 1:
            (self.modality,) = processor.processors
        super().__init__(model=model.eval(), processor=processor, task=task, **options)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Options by who takes them: the processor, the model, what reads the output."""
        if self.head is None:
            known: set[str] = {"pool", "return_tensors"}
        else:
            known = _keyword_names(self.head.post_process) | set(getattr(self.head.config, "tasks", None) or ())
        answering = {name: options.pop(name) for name in list(options) if name in known}
        return options, {}, answering

    def __call__(self, inputs: Any, *args: Any, **options: Any) -> Any:
        """Answer for one sample or for several; see the class."""
        several = _several(inputs)
        if isinstance(several, list) and not several:
            return []
        if self.task == "text-classification" and "top_k" not in {**self._postprocess_params, **options}:
            # As transformers: of each text the likeliest class alone, not in a list, unless the text came alone.
            answers = super().__call__(inputs if several is None else several, *args, top_k=1, **options)
            if several is None:
                return answers
            likeliest = (each[0] for each in answers)
            return list(likeliest) if isinstance(answers, list) else likeliest
        return super().__call__(inputs if several is None else several, *args, **options)

    def preprocess(self, input_: Any, **options: Any) -> dict[str, Any]:
        """A raw sample as a dict by modality; processors see it with the others of its batch, to pad them together."""
        own = self.processor.processors
        if isinstance(input_, Mapping) and input_ and all(name in own for name in input_):
            return dict(input_)
        if self.modality is None:
            raise ValueError(
                f"The model takes samples of {list(own)}; give each as a dict by modality, got {type(input_).__name__}."
            )
        return {self.modality: input_}

    def run_single(
        self,
        inputs: Any,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Any:
        return next(self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params))

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Batch by batch, samples processed in the workers; transformers' own would pad without masks."""
        dataset_class = PipelineDataset if isinstance(inputs, Sized) else PipelineIterator
        collate = partial(_process, self.processor, self._resized_modality(), preprocess_params)
        loader = torch.utils.data.DataLoader(
            dataset_class(inputs, self.preprocess, {}),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=collate,
        )
        for batch in loader:
            yield from self.postprocess(self.forward(batch, **forward_params), **postprocess_params)

    def _resized_modality(self) -> str | None:
        """The modality of the pictures on which answers lie, if its processor resizes them."""
        if self.head is None or not ({"target_sizes"} & _keyword_names(self.head.post_process)):
            return None
        resizing = [name for name, own in self.processor.processors.items() if getattr(own, "size", None)]
        if cropping := [name for name, own in self.processor.processors.items() if getattr(own, "crop_size", None)]:
            raise ValueError(
                f"The processor of {cropping} crops pictures, so {self.task!r} cannot say where on them its answers "
                "lie; set its crop_size to None."
            )
        return resizing[0] if resizing else None

    def _forward(self, input_tensors: dict[str, Any], **options: Any) -> dict[str, Any]:
        model = self.model.base_model if self.head is None else self.model
        return {"output": model(**input_tensors["tensors"]), "sizes": input_tensors["sizes"]}

    def postprocess(self, model_outputs: dict[str, Any], **options: Any) -> list[Any]:
        """An answer for each sample of a batch."""
        output = model_outputs["output"]
        if self.head is None:
            return _features(output, **options)
        if model_outputs["sizes"] is not None:
            options = {"target_sizes": model_outputs["sizes"], **options}
        found = self.head.post_process(output, **options)
        name = getattr(self.model, "head_name", "")
        return _WORDS[name](found, output, self) if name in _WORDS else found


def _check(
    task: str,
    head: str | None,
    modality: str | None,
    model: MetaTransformerPreTrainedModel,
    processor: MetaTransformerProcessor,
) -> None:
    """Refuse a task that is not the model's, before weights that were never trained answer."""
    saved = model.config.architectures or [type(model).__name__]
    own = getattr(model, "head_name", None)
    if head not in (None, _FEATURES) and (own != head or type(model).__name__ not in saved):
        raise ValueError(f"{task!r} needs the head {head!r}, but the model is a {saved[0]}; choose the task that fits.")
    if modality is not None and modality not in processor.processors:
        raise ValueError(
            f"{task!r} is for samples of {modality!r}, but the model takes {list(processor.processors)}; choose the "
            f"task that fits, or {_ANY!r}, which takes any."
        )


def _keyword_names(function: Callable) -> set[str]:
    return {each.name for each in inspect.signature(function).parameters.values() if each.kind == each.KEYWORD_ONLY}


def _several(inputs: Any) -> Any:
    """Several samples as transformers' pipelines know them, a list, a data set or a generator; `None` for one."""
    if isinstance(inputs, list | GeneratorType | torch.utils.data.Dataset):
        return inputs
    if hasattr(inputs, "to_dict") and hasattr(inputs, "columns"):
        return inputs.to_dict("records")  # a table of pandas
    if type(inputs).__module__.startswith("datasets."):
        return (each for each in inputs)
    return None


def _process(
    processor: MetaTransformerProcessor, resized: str | None, options: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Tensors of the samples of a batch, and height and width of their pictures if the processor changes these."""
    sizes = None
    if resized is not None:
        own = processor.processors[resized]
        unchanged: Any = type(own).from_dict({**own.to_dict(), "size": None})
        whole = MetaTransformerProcessor(**{resized: unchanged})
        pictures = ([{resized: row[resized]}] for row in rows)
        sizes = [tuple(next(iter(whole(each, **options).values())).shape[-2:]) for each in pictures]
    return {"tensors": dict(processor(rows, **options)), "sizes": sizes}


def _features(output: ModelOutput, pool: bool = False, return_tensors: bool = False) -> list[Any]:
    if pool:
        rows = list(output["pooler_output"].unsqueeze(1))
    else:
        tokens, mask = output["last_hidden_state"], output.get("attention_mask")
        rows = [each[None] if mask is None else each[mask[row].bool()][None] for row, each in enumerate(tokens)]
    return rows if return_tensors else [row.float().tolist() for row in rows]


def _boxes(found: list[dict[str, Any]], output: ModelOutput, pipe: MetaTransformerPipeline) -> list[Any]:
    corners = ("xmin", "ymin", "xmax", "ymax")
    return [
        [
            {"score": score, "label": label, "box": dict(zip(corners, box, strict=True))}
            for score, label, box in zip(
                each["scores"].tolist(), each["labels"], each["boxes"].int().tolist(), strict=True
            )
        ]
        for each in found
    ]


def _masks(found: list[Any], output: ModelOutput, pipe: MetaTransformerPipeline) -> list[Any]:
    from PIL import Image

    names: Any = pipe.model.config.id2label
    answers = []
    for each in found:
        classes = each["classes"] if isinstance(each, dict) else each
        present = [int(number) for number in np.unique(classes)]
        masks = (Image.fromarray(((classes == number) * 255).astype(np.uint8)) for number in present)
        answers.append(
            [{"score": None, "label": names[number], "mask": mask} for number, mask in zip(present, masks, strict=True)]
        )
    return answers


def _entities(found: list[list[str]], output: ModelOutput, pipe: MetaTransformerPipeline) -> list[Any]:
    answers = []
    for names, logits in zip(found, output["logits"].float(), strict=True):
        scores: Tensor = logits[(logits != PADDED).any(dim=1)].softmax(dim=1).amax(dim=1)
        answers.append(
            [
                {"entity": name, "score": score, "index": index}
                for index, (name, score) in enumerate(zip(names, scores.tolist(), strict=True))
            ]
        )
    return answers


_WORDS: dict[str, Callable[[list[Any], ModelOutput, MetaTransformerPipeline], list[Any]]] = {
    "object_detection": _boxes,
    "segmentation": _masks,
    "token_classification": _entities,
}


@dataclass(frozen=True)
class _Switch:
    """What stands in transformers' registry for a task of its own: our class for our models, theirs for all others.

    Attributes:
        theirs: Their class, or where it is, as the registry has it; it is imported when a pipeline is made.
    """

    theirs: Any

    def resolve(self) -> Any:
        return pkgutil.resolve_name(self.theirs) if isinstance(self.theirs, str) else self.theirs

    def __getattr__(self, name: str) -> Any:
        """The flags of their class, except that what it must load may be absent: our models do not have it."""
        value = getattr(self.resolve(), name)
        return None if name.startswith("_load_") and value else value

    def __call__(self, *, model: Any, **options: Any) -> Pipeline:
        theirs = self.resolve()
        if isinstance(model, MetaTransformerPreTrainedModel):
            by_hand = not (model.name_or_path or options.get("processor")) and any(map(options.get, _PARTS))
            return theirs(model=model, **options) if by_hand else MetaTransformerPipeline(model, **options)
        for part, auto_class in _PARTS.items():
            if getattr(theirs, f"_load_{part}") and options.get(part) is None:  # it failed, and now it does so aloud
                options[part] = getattr(transformers, auto_class).from_pretrained(model.name_or_path)
        return theirs(model=model, **options)


class _SavedModel:
    """The model of a checkpoint, of the class that saved it."""

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> Any:
        """As of the class that the configuration names."""
        hub = {each: options[each] for each in HUB_OPTIONS if each in options}
        config = AutoConfig.from_pretrained(name, **hub)
        queue: list[type[Any]] = [MetaTransformerPreTrainedModel]
        found: dict[str, Any] = {}
        while queue:
            each = queue.pop()
            found[each.__name__] = each
            queue += each.__subclasses__()
        known = [found[each] for each in config.architectures or () if each in found]
        return (known[0] if known else AutoModel).from_pretrained(name, **options)


def register_pipelines() -> None:
    """Make transformers' `pipeline` know the tasks of all registered modalities and heads.

    Importing the package does it; call it again after a modality or a head of your own was registered. Without,
    `"meta-transformer"` answers for it.
    """
    tasks = PIPELINE_REGISTRY.supported_tasks
    for name in _SHARED:
        if name in tasks and not isinstance(tasks[name]["impl"], _Switch):
            tasks[name]["impl"] = _Switch(tasks[name]["impl"])
    for modality in MODALITIES.names():
        for head in [*HEADS.names(), "feature_extraction"]:
            task = _Task(modality, _FEATURES if head == "feature_extraction" else head)
            _TASKS.setdefault(f"{modality}-{head}".replace("_", "-"), task)
    for name in _TASKS:
        own = {"impl": MetaTransformerPipeline, "pt": (_SavedModel,), "type": "multimodal"}
        tasks.setdefault(name, own)
