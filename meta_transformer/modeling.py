"""The models: tokenizers in front of the shared trunk, and a head behind it.

    raw tensors -> tokenizers -> [class token, segment, segment, ...] -> encoder -> head -> loss and prediction

`MetaTransformerModel` ends at the encoder. `MetaTransformerForTask` adds the head named by `head_name`; the model class
of every task is in `tasks.py`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs, install_all_output_capturing_hooks

from .checkpoints.loading import LoadingMixin
from .checkpoints.sharing import SharingMixin
from .checkpoints.task_packs import TaskPackMixin
from .configuration import MetaTransformerConfig
from .encoder import MetaTransformerEncoder
from .encoder.attention import SelfAttention
from .encoder.layer import MetaTransformerLayer
from .encoder.lora import init_lora
from .execution import block_numbers, make_exchange, make_merging, make_packing, through_all_weights
from .freezing import FreezingMixin
from .fusion import AbsentTokens, ModalityEmbeddings, align, count_samples, drop_modalities, fill_absent, join
from .heads.metrics import TaskMetrics
from .registry import HEADS, MODALITIES
from .sequence import TokenSequence
from .summary import ParameterSummary

__all__ = [
    "MetaTransformerForTask",
    "MetaTransformerModel",
    "MetaTransformerOutput",
    "MetaTransformerPreTrainedModel",
]

# What a forward takes beside the modalities' own tensors.
FORWARD_OPTIONS = frozenset(TransformersKwargs.__annotations__) | {"return_dict"}


@dataclass
class MetaTransformerOutput(BaseModelOutputWithPooling):
    """Output of `MetaTransformerModel`.

    Attributes:
        last_hidden_state: Encoded tokens, `(batch, 1 + tokens, hidden)`, the class token first; with late fusion, that
            of each modality.
        pooler_output: One vector for each sample, `(batch, hidden)`; see `config.pooling`. With late fusion, of class
            tokens the mean.
        attention_mask: `(batch, 1 + tokens)` boolean, true for real tokens; `None` when nothing is padded.
        hidden_states: On request, the input of the first block and the output of each.
        attentions: On request and with eager attention, `(batch, heads, 1 + tokens, 1 + tokens)` for each block.
    """

    attention_mask: Tensor | None = None


class MetaTransformerPreTrainedModel(FreezingMixin, LoadingMixin, SharingMixin, TaskPackMixin, PreTrainedModel):
    """What all models share: initialisation, freezing, fingerprint, loading and saving."""

    config: MetaTransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MetaTransformerLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": MetaTransformerLayer, "attentions": SelfAttention}
    model_tags = ["meta-transformer"]

    def __init__(self, config: MetaTransformerConfig) -> None:
        super().__init__(config)
        self.main_input_name = MODALITIES[next(iter(config.modalities))].model_input_names[0]
        self.input_modalities = list(config.modalities)
        _advertise_inputs(type(self).forward)

    def post_init(self) -> None:
        super().post_init()
        self._add_configured_lora()  # the magnitudes of DoRA follow from the initialised weights
        self._apply_freezing()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module's own weights; weights that were loaded are never touched.

        Linear, convolution, embedding and norm layers: transformers' defaults. Everything that holds bare parameters or
        buffers: its own `init_parameters`.
        """
        if self.config.lora is not None and init_lora(module, self.config.lora):
            return
        super()._init_weights(module)
        initialize = getattr(module, "init_parameters", None)
        if initialize is not None:
            initialize(self.config.initializer_range)

    def parameter_summary(self) -> ParameterSummary:
        """How many parameters of each part train and how many are frozen; print it for a table."""
        return ParameterSummary.of(self, prefix=f"{self.base_model_prefix}.")

    def floating_point_ops(self, inputs: dict[str, Any], exclude_embeddings: bool = True) -> int:
        """0: how many tokens a batch makes is known to its tokenizers alone, so `Trainer` shows no such figure."""
        return 0


class MetaTransformerModel(MetaTransformerPreTrainedModel):
    """Tokenizers and the shared trunk.

    Call it with the tensors that the processor makes, each under its own name. A sample's modalities come together as
    `config.fusion` says, by default as one sequence behind the class token. Samples of a batch may have different ones.

    Args:
        config: The modalities of `config.modalities` get a tokenizer each.
    """

    def __init__(self, config: MetaTransformerConfig) -> None:
        super().__init__(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.tokenizers = nn.ModuleDict(
            {
                name: MODALITIES[name].tokenizer_class(tokenizer_config, config.hidden_size)
                for name, tokenizer_config in config.modalities.items()
            }
        )
        self.modality_embeddings = ModalityEmbeddings(config)
        self.absent_tokens = AbsentTokens(config) if config.absent_tokens else None
        self.bottleneck_tokens = None
        if config.fusion == "bottleneck":
            self.bottleneck_tokens = nn.Parameter(torch.zeros(1, config.num_bottleneck_tokens, config.hidden_size))
        self.encoder = MetaTransformerEncoder(config)
        self.input_names = {name: MODALITIES[name].model_input_names for name in config.modalities}
        self.post_init()

    def init_parameters(self, std: float) -> None:
        init.trunc_normal_(self.cls_token, std=std)
        if self.bottleneck_tokens is not None:
            init.trunc_normal_(self.bottleneck_tokens, std=std)

    def tokenize(self, **inputs: Tensor | None) -> TokenSequence:
        """Turn tensors into one sequence of tokens per sample, the class token first.

        Args:
            inputs: The tensors of one or more modalities by name; `None` counts as absent. Where not every sample has
                exactly one of a modality, `<modality>_samples`, `(rows,)`, says which sample each row belongs to.

        Returns:
            Tokens `(batch, 1 + tokens, hidden)` with a segment for each modality present, several of a modality of
            which a sample has several; a class token for each of them, unless `config.fusion` is `"early"`.

        Raises:
            ValueError: No input, inputs of a modality without tokenizer here, batches of different size, or a sample
                without any modality.
        """
        parts: dict[str, TokenSequence] = {}
        samples: dict[str, Tensor | None] = {}
        for modality, names in self.input_names.items():
            owners = inputs.pop(MODALITIES[modality].samples_name, None)
            present = {name: inputs.pop(name) for name in names if name in inputs}
            exact = MODALITIES[modality].tokenizer_class.full_precision_inputs
            present = {
                name: value if name in exact else self._cast(value)
                for name, value in present.items()
                if value is not None
            }
            if not present:
                continue
            part = self.tokenizers[modality](**present)
            if part.embeddings.shape[-1] != self.config.hidden_size:
                raise ValueError(
                    f"The tokenizer of {modality!r} makes tokens of width {part.embeddings.shape[-1]}, but the encoder "
                    f"takes {self.config.hidden_size}; build the tokenizer with the encoder's hidden_size."
                )
            parts[modality] = part.replace_embeddings(part.embeddings + self.modality_embeddings[modality])
            samples[modality] = owners
        self._check_inputs(parts, inputs)
        count = count_samples(parts, samples)
        slots = {modality: align(part, samples[modality], count) for modality, part in parts.items()}
        if self.training and self.config.modality_dropout:
            slots = drop_modalities(slots, self.config.modality_dropout)
        if self.absent_tokens is not None:
            slots = fill_absent(slots, self.absent_tokens.items(), count)
        return join(self.cls_token, slots, self.config.fusion, self.bottleneck_tokens)

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self.cls_token.dtype) if value.is_floating_point() else value

    def _check_inputs(self, parts: dict[str, TokenSequence], rest: dict[str, Any]) -> None:
        for name in (name for name, value in rest.items() if value is not None):
            owner = next((entry.name for entry in MODALITIES if name in entry.all_input_names), None)
            known = [name for modality in self.input_names for name in MODALITIES[modality].all_input_names]
            if owner is None:
                raise TypeError(f"Unknown model input {name!r}. This model takes {known}.")
            raise ValueError(
                f"Got {name!r} of modality {owner!r}, for which this model has no tokenizer; it has "
                f"{list(self.input_names)}. Name {owner!r} in config.modalities."
            )
        if not parts:
            raise ValueError(f"No sample has any modality. Give the inputs of at least one of {self.input_names}.")

    @can_return_tuple
    def encode(self, sequence: TokenSequence, **kwargs: Any) -> MetaTransformerOutput:
        """Run the trunk on tokens.

        Args:
            sequence: From `tokenize`.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, or what the attention function takes.

        Returns:
            The encoded tokens and their pooled form.
        """
        blocks = block_numbers(sequence)
        attentions = kwargs.get("output_attentions", self.config.output_attentions)
        merging = None if self.training else make_merging(sequence, self.config, kwargs)
        packing = None
        if merging is None:
            packing = make_packing(sequence, blocks, self.config, attentions=bool(attentions))
        kwargs |= {"merging": merging, "exchange": make_exchange(sequence, packing, self.config), "return_dict": True}
        if packing is None:
            output = self._run(sequence.embeddings, sequence.mask, blocks=blocks, **kwargs)
        else:
            output = self._run(packing.pack(sequence.embeddings), packing=packing, **kwargs)
            output.last_hidden_state = packing.unpack(output.last_hidden_state)
            if output.hidden_states:
                output.hidden_states = tuple(
                    None if state is None else packing.unpack(state) for state in output.hidden_states
                )
        output.attention_mask = sequence.mask
        output.pooler_output = self.pool(sequence.replace_embeddings(output.last_hidden_state))
        return output

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def _run(self, tokens: Tensor, mask: Tensor | None = None, **kwargs: Any) -> MetaTransformerOutput:
        return MetaTransformerOutput(last_hidden_state=self.encoder(tokens, mask, **kwargs))

    def pool(self, sequence: TokenSequence) -> Tensor:
        """One vector for each sample of encoded tokens, `(batch, hidden)`, as `config.pooling` says."""
        if self.config.pooling == "mean":
            return sequence.mean()
        if not sequence.blocks:
            return sequence.embeddings[:, 0]
        own = sequence.class_tokens
        mask = None if sequence.mask is None else sequence.mask[:, own]
        return TokenSequence(sequence.embeddings[:, own], mask).mean()

    def forward(self, **inputs: Any) -> MetaTransformerOutput | tuple:
        """Encode a batch.

        Args:
            inputs: The tensors that `MetaTransformerProcessor` makes, and the options of `encode`.

        Returns:
            The output of `encode`.
        """
        options = _pop_options(inputs)
        return self.encode(self.tokenize(**inputs), **options)

    @torch.no_grad()
    def get_features(self, **inputs: Any) -> Tensor:
        """One vector for each sample, `(batch, hidden)`, without gradients; arguments as of `forward`."""
        return self(**{**inputs, "return_dict": True}).pooler_output


class MetaTransformerForTask(MetaTransformerPreTrainedModel):
    """The model with one head behind it. A subclass names the head.

    Args:
        config: `config.heads[head_name]` holds the head's options, if any.
    """

    head_name: ClassVar[str]

    def __init__(self, config: MetaTransformerConfig) -> None:
        super().__init__(config)
        head = HEADS[self.head_name]
        self.model = MetaTransformerModel(config)
        self.head = head.head_class(config.heads.setdefault(self.head_name, head.config_class()), config)
        if config.modality_dropout and len(config.modalities) > 1 and self.head.needs_modalities:
            raise ValueError(
                f"modality_dropout is {config.modality_dropout}, but the head {self.head_name!r} needs the modalities "
                "that it would take away; set it to 0."
            )
        if self.head.reads_hidden_states:
            install_all_output_capturing_hooks(self.model)  # else under a lock, which does not compile
        self.post_init()

    @can_return_tuple
    def forward(
        self, *, labels: Any = None, num_items_in_batch: Tensor | int | None = None, **inputs: Any
    ) -> ModelOutput:
        """Predict, and compute the loss where there are labels.

        Args:
            labels: As the head takes them.
            num_items_in_batch: Set by `Trainer` when it accumulates gradients: how many labels the loss is a mean over.
            inputs: As of `MetaTransformerModel.forward`, and those that the head takes itself.

        Returns:
            The head's output: `loss` first, then its predictions. Hidden states and attentions on request, by part
            where a head has several parts of a sample encoded.
        """
        own = {name: inputs.pop(name) for name in self.head.model_input_names if inputs.get(name) is not None}
        shown = ["attentions"]
        if inputs.get("output_hidden_states", self.config.output_hidden_states):
            shown.append("hidden_states")
        parts, encoded = self.encode_parts(**inputs)
        output = self.predict(parts, labels, num_items_in_batch, **own)
        if output.get("loss") is not None:
            output["loss"] = through_all_weights(self, output["loss"])
        for name in shown:
            traces = {part: each[name] for part, each in encoded.items() if each.get(name) is not None}
            if traces:
                output[name] = traces if len(traces) > 1 else next(iter(traces.values()))
        return output

    def predict(
        self,
        parts: dict[str, TokenSequence],
        labels: Any = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Tensor,
    ) -> ModelOutput:
        """The head's output from the encoded tokens of `encode_parts`; what else arrives is as of `forward`."""
        read = {name: self.head.read(part) for name, part in parts.items()}
        return self.head(read[""] if self.head.joins_modalities else read, labels, num_items_in_batch, **inputs)

    def encode_parts(self, **inputs: Any) -> tuple[dict[str, TokenSequence], dict[str, MetaTransformerOutput]]:
        """Tokenize and encode what the head reads.

        Args:
            inputs: As of `MetaTransformerModel.forward`.

        Returns:
            By part, as of `TaskHead.parts`, the encoded tokens, with hidden states where the head reads them; and what
            the trunk gave, once for parts that are the same.
        """
        options = {**_pop_options(inputs), "return_dict": True}
        if self.head.reads_hidden_states:
            options["output_hidden_states"] = True
        inputs = {name: value for name, value in inputs.items() if name not in self.head.model_input_names}
        parts = self.head.parts(self.model.tokenize(**inputs))
        outputs: dict[str, MetaTransformerOutput] = {}
        encoded: dict[str, TokenSequence] = {}
        for name, part in parts.items():
            twin = next((other for other in outputs if parts[other] is part), name)
            if twin == name:
                outputs[name] = self.model.encode(part, **options)
            states = tuple(outputs[twin].get("hidden_states") or ())
            encoded[name] = replace(part, embeddings=outputs[twin].last_hidden_state, hidden_states=states)
        return encoded, outputs

    def metrics(self) -> TaskMetrics:
        """The task's usual metrics, for `Trainer(compute_metrics=model.metrics())`."""
        return self.head.metrics()

    def post_process(self, output: ModelOutput, **options: Any) -> list[Any]:
        """From an output to what users work with, one for each sample; options as of the head's `post_process`."""
        return self.head.post_process(output, **options)

    def get_features(self, **inputs: Any) -> Tensor:
        """As `MetaTransformerModel.get_features`."""
        return self.model.get_features(**inputs)


def _pop_options(inputs: dict[str, Any]) -> dict[str, Any]:
    """Take out of the arguments of a forward what is no tensor of a modality."""
    return {name: inputs.pop(name) for name in list(inputs) if name in FORWARD_OPTIONS}


def _advertise_inputs(forward: Callable) -> None:
    """Give a forward that takes `**inputs` the signature that names the inputs of all registered modalities.

    `Trainer` and pipelines read signatures to tell model inputs from other columns. The modalities are an open set, so
    the signature cannot be written down; it follows the registry.
    """
    forward.__dict__.pop("__signature__", None)  # that of an earlier registry
    own = inspect.signature(forward).parameters
    first, *others, rest = own.values()
    if rest.kind is not inspect.Parameter.VAR_KEYWORD:
        return  # a subclass that names its inputs itself
    names = dict.fromkeys(name for entry in (*MODALITIES, *HEADS) for name in entry.all_input_names if name not in own)
    keyword = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
    positional = [each for each in others if each.kind is not inspect.Parameter.KEYWORD_ONLY]
    others = [each for each in others if each.kind is inspect.Parameter.KEYWORD_ONLY]
    vars(forward)["__signature__"] = inspect.Signature([first, *positional, *keyword, *others, rest])
