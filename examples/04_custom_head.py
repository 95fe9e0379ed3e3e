"""A head of your own, here ordinal regression: classes with an order, such as stages of a disease or school marks."""

import pandas as pd
import torch
from sklearn.datasets import load_diabetes
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from transformers import Trainer, TrainingArguments
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from meta_transformer import MetaTransformerConfig, MetaTransformerForTask, MetaTransformerProcessor, register_head
from meta_transformer.heads.base import TaskHead, count_labels
from meta_transformer.heads.late_fusion import make_pooling
from meta_transformer.heads.metrics import TaskMetrics, mean_of
from meta_transformer.training import DataCollatorForMetaTransformer


class OrdinalHead(TaskHead):
    """One score, and a threshold between each two grades (CORAL, Cao et al. 2020): is the grade above it?"""

    def __init__(self, config, model_config):
        super().__init__(config, model_config)
        self.grades = count_labels(model_config)
        self.pooling = make_pooling("mean", model_config)
        self.score = torch.nn.Linear(model_config.hidden_size, 1, bias=False)
        self.thresholds = torch.nn.Parameter(torch.zeros(self.grades - 1))

    def init_parameters(self, std):
        init.zeros_(self.thresholds)

    def forward(self, sequence, labels=None, num_items_in_batch=None):
        logits, loss = self.score(self.pooling(sequence)) + self.thresholds, None
        if labels is not None:
            above = one_hot(labels, self.grades).flip(1).cumsum(1).flip(1)[:, 1:]  # grade 2 of 4: 1, 1, 0
            loss = binary_cross_entropy_with_logits(logits.float(), above.float(), reduction="sum")
            loss = loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def metrics(self):
        distance = mean_of(lambda logits, labels: ((logits > 0).sum(dim=1) - labels).abs().float())
        return TaskMetrics({"mae": distance}, lambda logits, labels: (logits, labels))

    def dummy_labels(self, sequence):
        return (torch.arange(len(sequence.embeddings)) % self.grades).tolist()


register_head("ordinal", head_class=OrdinalHead)


class MetaTransformerForOrdinalRegression(MetaTransformerForTask):
    """Grades of samples of any modality."""

    head_name = "ordinal"


if __name__ == "__main__":
    data = load_diabetes(as_frame=True, scaled=False)  # 442 patients; how far the disease got within a year
    grades = pd.qcut(data.target, 4, labels=False).tolist()  # in four grades
    rows = [{"tabular": row, "labels": y} for row, y in zip(data.data.to_dict("records"), grades, strict=True)]
    processor = MetaTransformerProcessor(tabular=True)
    processor.tabular.fit(data.data[:342])
    config = MetaTransformerConfig.tiny(modalities=processor.tokenizer_configs(), num_labels=4)
    model = MetaTransformerForOrdinalRegression(config)
    arguments = TrainingArguments(
        "outputs/04_custom_head", num_train_epochs=10, learning_rate=1e-3, remove_unused_columns=False, report_to=[]
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows[:342],
        eval_dataset=rows[342:],
        data_collator=DataCollatorForMetaTransformer(processor),
        compute_metrics=model.metrics(),
    )
    trainer.train()
    constant = min(sum(abs(grade - y) for y in grades[342:]) / 100 for grade in range(4))
    print(f"Mean distance in grades: {trainer.evaluate()['eval_mae']:.2f} (best constant grade: {constant:.2f})")
