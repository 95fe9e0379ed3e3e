"""Models as graphs without Python: tokenizers, trunk and head in one file of `torch.export` or of ONNX.

The batch and the sizes that differ from sample to sample, such as lengths of clips and texts or height and width of
pictures, stay open. What a graph takes beside its tensors is fixed: masks are inputs if the batch that it is made from
has them, so make it from samples of different length. Pictures of one batch must be of one size, as the positions of
others are made one picture at a time.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from .checkpoints.atomic import atomic_folder, refuse_unfinished
from .configuration import MetaTransformerConfig
from .extras import needs
from .modeling import MetaTransformerForTask, MetaTransformerPreTrainedModel

if TYPE_CHECKING:
    from transformers import ProcessorMixin

__all__ = ["OnnxModel", "export_onnx", "export_program"]

_ONNX = "model.onnx"
_PROGRAM = "model.pt2"


def export_program(
    model: MetaTransformerPreTrainedModel,
    batch: Mapping[str, Any],
    folder: str | PathLike | None = None,
    *,
    processor: "ProcessorMixin | None" = None,
) -> ExportedProgram:
    """Make a program of `torch.export`; `program.module()(**batch)` runs it.

    Args:
        model: It is exported in evaluation mode.
        batch: Of the processor, two samples or more, of different length if those of use are.
        folder: Where to write `model.pt2`, with the configuration and the processor; all of them or none. Read only
            programs that you trust: `torch.export.load` may unpickle what it finds in them.
        processor: The processor to save beside it.

    Returns:
        The program.

    Raises:
        ValueError: The model or the batch cannot be exported, such as pictures of different sizes in one batch.
    """
    program, _ = _trace(model, batch)
    if folder is not None:
        with atomic_folder(folder) as staging:
            torch.export.save(program, staging / _PROGRAM)
            _save_rest(model, processor, staging)
    return program


def export_onnx(
    model: MetaTransformerPreTrainedModel,
    batch: Mapping[str, Any],
    folder: str | PathLike,
    *,
    processor: "ProcessorMixin | None" = None,
) -> Path:
    """Write `model.onnx`, with the configuration and the processor: all of them or none.

    Inputs have the names of the model's tensors, outputs those of its output; those inside others are joined by dots.

    Args:
        model: As of `export_program`, and so are `batch` and `processor`. Its weights must be float32.
        folder: Where to write, made if absent.

    Returns:
        The path of the file.

    Raises:
        ValueError: As of `export_program`; or an operation has no counterpart in ONNX.
        ImportError: The packages of ONNX are not there.
    """
    with needs("onnx and onnxscript to export", "export"):
        import onnx  # noqa: F401

        from .onnx_operators import TRANSLATIONS
    program, names = _trace(model, batch)
    try:
        with torch.no_grad():
            onnx_program: Any = torch.onnx.export(
                program, output_names=names, dynamo=True, verbose=False, custom_translation_table=TRANSLATIONS
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"ONNX cannot express this model: {_reason(error)}. Use export_program.") from error
    with atomic_folder(folder, [f"{_ONNX}.data"]) as staging:
        onnx_program.save(staging / _ONNX)
        _save_rest(model, processor, staging)
    return Path(folder) / _ONNX


def _trace(model: MetaTransformerPreTrainedModel, batch: Mapping[str, Any]) -> tuple[ExportedProgram, list[str]]:
    """The program, and the names of its outputs."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor) and name != "labels"}
    if not tensors:
        raise ValueError(f"batch holds no tensor, got {list(batch)}; give a batch that the processor made.")
    if sparse := [name for name in tensors if name.endswith("_samples")]:
        raise ValueError(f"batch has {sparse}: a graph takes samples that all have the same modalities, one of each.")
    if len(next(iter(tensors.values()))) == 1:  # a size of 1 would be taken for a constant
        tensors = {name: torch.cat([value, value]) for name, value in tensors.items()}
    shapes = {
        name: {0: Dim("batch"), **dict.fromkeys(range(1, value.dim()), Dim.AUTO)} for name, value in tensors.items()
    }
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(**tensors, return_dict=True)
            # Strict: Python's own len() would make constants of sizes.
            program = torch.export.export(model, (), tensors, dynamic_shapes=shapes, strict=True)
    except Exception as error:  # of many kinds
        raise ValueError(
            f"This model cannot be exported with this batch: {_reason(error)}. Give samples that are all there, and "
            "pictures of one size."
        ) from error
    finally:
        model.train(training)
    leaves, _ = pytree.tree_flatten_with_path(dict(output))
    return program, [_dotted(path) for path, leaf in leaves if isinstance(leaf, Tensor)]


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _dotted(path: Any) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def _save_rest(model: MetaTransformerPreTrainedModel, processor: "ProcessorMixin | None", folder: Path) -> None:
    config = MetaTransformerConfig.from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)


class OnnxModel:
    """An exported model under onnxruntime: call it with the processor's batch.

    Args:
        session: Of onnxruntime.
        config: Of the model.
    """

    def __init__(self, session: Any, config: MetaTransformerConfig) -> None:
        self.session, self.config = session, config
        self._head: MetaTransformerForTask | None = None

    @classmethod
    def from_pretrained(cls, folder: str | PathLike, **options: Any) -> "OnnxModel":
        """Load what `export_onnx` wrote.

        Args:
            folder: The folder.
            options: Of `onnxruntime.InferenceSession`, such as `providers`.

        Raises:
            ValueError: There is no `model.onnx`, or a save into the folder was interrupted.
            ImportError: onnxruntime is not there.
        """
        refuse_unfinished(folder)
        path = Path(folder) / _ONNX
        if not path.is_file():
            raise ValueError(f"{folder} holds no {_ONNX}; write it with export_onnx.")
        with needs("onnxruntime to run exported models", "export"):
            import onnxruntime
        session = onnxruntime.InferenceSession(str(path), **options)
        return cls(session, MetaTransformerConfig.from_pretrained(folder))

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """Run the graph.

        Args:
            inputs: Tensors or arrays by name. Masks that the batch lacks, because nothing is padded, are made.

        Returns:
            Tensors by name, as in the model's output.

        Raises:
            ValueError: A tensor that the graph does not take, or one that it needs is missing.
        """
        wanted = {each.name: each for each in self.session.get_inputs()}
        given = {name: torch.as_tensor(value) for name, value in inputs.items() if value is not None}
        given.pop("labels", None)
        if unknown := sorted(set(given) - set(wanted)):
            raise ValueError(
                f"The graph does not take {unknown}, but {sorted(wanted)}: the batch that it was exported from had no "
                "such tensor. Export it again from samples that differ in length."
            )
        sizes = {
            side: given[name].shape[axis]
            for name in given
            for axis, side in enumerate(wanted[name].shape)
            if isinstance(side, str)
        }
        for name, each in wanted.items():
            shape = [sizes.get(side, side) for side in each.shape]
            if name not in given and each.type == "tensor(bool)" and all(str(side).isdigit() for side in shape):
                given[name] = torch.ones([int(side) for side in shape], dtype=torch.bool)
        if missing := sorted(set(wanted) - set(given)):
            raise ValueError(f"The graph needs {missing} as well; give a batch of the modalities that it was made for.")
        found = self.session.run(None, {name: value.numpy() for name, value in given.items()})
        output: dict[str, Any] = {}
        for each, value in zip(self.session.get_outputs(), found, strict=True):
            *path, name = each.name.split(".")
            part = output
            for key in path:
                part = part.setdefault(key, {})
            part[name] = torch.from_numpy(value)
        return output

    def post_process(self, output: dict[str, Any], **options: Any) -> list[Any]:
        """As of the model's method."""
        if self._head is None:
            names = {each.__name__: each for each in MetaTransformerForTask.__subclasses__()}
            with torch.device("meta"):  # a head without weights
                self._head = names[(self.config.architectures or [""])[0]](self.config)
        output_class: Any = _Output
        return self._head.post_process(output_class(output), **options)


class _Output(dict):
    """A dict whose entries are attributes too, as those of a `ModelOutput`."""

    __getattr__ = dict.get
