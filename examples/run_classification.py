"""Fine-tune on your own samples of any modality: classes, or numbers with `--task regression`.

    python examples/run_classification.py --data clips/ --modality audio --output_dir outputs/clips
    python examples/run_classification.py --data house_prices.csv --modality tabular --task regression --label price
    python examples/run_classification.py settings.yaml

`--data` is a folder `<class>/<file>` or `<split>/<class>/<file>`; a CSV, TSV or Parquet file with the columns path,
label and, if need be, split; a table whose rows are the samples (`tabular`, columns of `text`, `smiles` of `graph`); or
the name of a set of `datasets`. Without splits 15 % are drawn for validation and 15 % for test.

A tokenizer and a head are trained in front of and behind a frozen trunk: `--encoder` names a pretrained one. The best
epoch on validation data is measured once on test data. The same command goes on where a run was killed. `--output_dir`
gets the model with its processor and card, and `all_results.json`.
"""

from dataclasses import dataclass, field
from typing import Any

from run_shared import DataArguments, ModelArguments, build, limited, start, train

from meta_transformer import MetaTransformerProcessor
from meta_transformer.cli.building import label_options
from meta_transformer.cli.defaults import defaults_for
from meta_transformer.training.splits import read_source


@dataclass
class ClassificationArguments(DataArguments):
    """What the samples and their labels are."""

    modality: str = field(default="image", metadata={"help": "What the samples are, such as audio."})
    task: str = field(default="classification", metadata={"choices": ["classification", "regression"]})
    label: str | None = field(
        default=None, metadata={"help": "Column of the label; of regression several, with commas."}
    )
    column: str | None = field(default=None, metadata={"help": "Column of the samples."})
    class_weights: str | None = field(
        default=None, metadata={"help": "balanced: rare classes count more.", "choices": ["balanced"]}
    )


def prepare(
    model_arguments: ModelArguments, data: ClassificationArguments, seed: int
) -> tuple[Any, MetaTransformerProcessor, dict[str, Any]]:
    """The model, its processor, and the splits."""
    source = read_source(data.data, data.modality, task=data.task, label=data.label, column=data.column, seed=seed)
    source.splits = limited(source.splits, data, seed)
    defaults = defaults_for(data.modality, data.task, source, 0, 0)
    head = label_options(data.task, source, data.class_weights == "balanced")
    sources, settings = {data.modality: source}, {data.modality: defaults}
    model, processor = build(model_arguments, data.task, sources, settings, head=head, id2label=source.id2label)
    return model, processor, source.splits


def main() -> None:
    model_arguments, data, arguments = start(__doc__, ClassificationArguments, metric="accuracy")
    if data.task == "regression" and arguments.metric_for_best_model == "accuracy":
        arguments.metric_for_best_model, arguments.greater_is_better = "rmse", False
    model, processor, splits = prepare(model_arguments, data, arguments.seed)
    train(model, processor, splits, arguments, model_arguments.call)


if __name__ == "__main__":
    main()
