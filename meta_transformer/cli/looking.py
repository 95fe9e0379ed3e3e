"""What a model makes of one sample: its tokens in colours, the prediction, and the samples that are nearest."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..extras import needs
from ..processing import MetaTransformerProcessor
from ..sequence import GridLayout, PointLayout, Segment, TokenSequence
from ..training import DataCollatorForMetaTransformer
from .batches import device_of, read_batches, to_device
from .console import pairs, progress, say
from .models import load_task, only_modality
from .predicting import records_of, rows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Looker", "token_colours"]

_BATCH = 16
_ROW = 32  # tokens in a row, where they lie on no grid


@dataclass
class Looker:
    """A model, its processor, and samples to compare with.

    Attributes:
        name: What a person calls it.
        model: Of a task.
        processor: The model's.
        run: Settings of its training, empty if unknown.
        names: Of the samples of the gallery.
        features: Their embeddings, `(samples, hidden)`, of length 1.
    """

    name: str
    model: Any
    processor: MetaTransformerProcessor
    run: dict[str, Any]
    names: list[str]
    features: Tensor

    @classmethod
    def load(cls, name: str, gallery: str | None, encoder: str | None, limit: int) -> "Looker":
        """Load a model and embed its gallery.

        Args:
            name: Folder or repository of a model or a task pack.
            gallery: As `DATA` of `train`; by default what the model was trained on, if that is still there.
            encoder: Trunk of a task pack.
            limit: Most samples of the gallery, spread over all of it.

        Raises:
            ValueError: The gallery cannot be read.
        """
        model, processor, run = load_task(name, encoder)
        found = cls(Path(name).name, model, processor, run, [], torch.zeros(0, model.config.hidden_size))
        data = gallery or run.get("data")
        if limit and data is not None and (gallery or Path(data).exists()) and model.head_name != "forecasting":
            rows = rows_of([data], found.modality, run.get("column"), run.get("label"))
            found._embed(rows.select(np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int))))
        return found

    @property
    def modality(self) -> str:
        return only_modality(self.processor, self.run.get("modality"))

    @property
    def collator(self) -> DataCollatorForMetaTransformer:
        return DataCollatorForMetaTransformer(self.processor, pairs(self.run.get("call", []), "call"))

    def _embed(self, rows: Any) -> None:
        vectors, failed = [], 0
        with progress() as bar:
            task = bar.add_task(f"Gallery of {self.name}", total=len(rows))
            for numbers, batch, errors in read_batches(rows, self.collator, _BATCH):
                failed += len(errors)
                if batch is not None:
                    vectors.append(self.model.get_features(**to_device(batch, device_of(self.model))).float().cpu())
                    self.names += [rows.name(number) for number in numbers]
                bar.advance(task, len(numbers) + len(errors))
        if failed:
            say(f"{failed} of {len(rows)} samples of the gallery could not be read.")
        if vectors:
            self.features = functional.normalize(torch.cat(vectors), dim=-1)

    @torch.no_grad()
    def look(self, sample: str) -> tuple["Figure", list[dict[str, Any]], list[tuple[str, float]]]:
        """Look at one sample.

        Args:
            sample: A file; of text and graphs also the text itself. Of a table, the first row counts.

        Returns:
            The picture of its tokens; records of the prediction; names and cosine similarities of its neighbours, the
            nearest first.

        Raises:
            ValueError: It cannot be read.
        """
        row = rows_of([sample], self.modality, self.run.get("column"), self.run.get("label"))[0]
        batch = to_device(self.collator([row]), device_of(self.model))
        sequence = self.model.model.tokenize(**batch)
        encoded = sequence.replace_embeddings(self.model.model.encode(sequence).last_hidden_state)
        found = self.model.post_process(self.model(**batch))[0]
        records = list(records_of(Path(sample).name if Path(sample).is_file() else sample, found, self.processor))
        features = functional.normalize(self.model.get_features(**batch).float().cpu(), dim=-1)
        similarity, order = (self.features @ features[0]).sort(descending=True, stable=True)
        neighbours = [(self.names[place], value) for place, value in zip(order, similarity.tolist(), strict=True)]
        return draw_tokens(sequence, encoded), records, neighbours[:8]


def token_colours(tokens: Tensor) -> np.ndarray:
    """Colours of tokens by their first three principal components.

    Args:
        tokens: `(tokens, hidden)`.

    Returns:
        `(tokens, 3)` in 0..1: tokens that are alike have colours that are alike. Grey where all are equal.
    """
    centred = tokens.float() - tokens.float().mean(dim=0)
    rank = min(3, *centred.shape)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    components = functional.pad(centred @ directions[:rank].T, (0, 3 - rank))
    spread = components.abs().amax(dim=0).clamp(min=1e-6)
    return (0.5 + 0.5 * components / spread).clamp(0, 1).numpy()


def draw_tokens(sequence: TokenSequence, encoded: TokenSequence) -> "Figure":
    """Tokens of one sample in front of the trunk and behind it, where they lie in the sample if that is known."""
    with needs("matplotlib for pictures", "cli"):
        from matplotlib.figure import Figure
    segment = sequence.segments[0]
    figure = Figure(figsize=(8, 4), layout="constrained")
    for number, (title, own) in enumerate((("tokens", sequence), ("encoded", encoded)), start=1):
        real = slice(None) if own.mask is None else own.mask[0, segment.columns].bool().cpu()
        tokens = own.embeddings[0, segment.columns].detach().float().cpu()
        colours = np.ones((len(tokens), 3))
        colours[real] = token_colours(tokens[real])
        _draw(figure, number, segment, colours)
        figure.axes[-1].set_title(f"{int(torch.ones(len(tokens))[real].sum())} {title}", fontsize=10)
    return figure


def _draw(figure: Any, number: int, segment: Segment, colours: np.ndarray) -> None:
    layout = segment.layout
    if isinstance(layout, PointLayout):
        axes = figure.add_subplot(1, 2, number, projection="3d")
        centres = layout.stages[-1].centres[0].detach().float().cpu().numpy()
        axes.scatter(*centres.T, c=colours, s=30)
        return
    axes = figure.add_subplot(1, 2, number)
    shape = layout.shape if isinstance(layout, GridLayout) else ()
    if len(shape) == 3:  # moments, or groups of bands: one below the other
        shape = (shape[0] * shape[1], shape[2])
    if len(shape) != 2:
        shape = (-(-len(colours) // _ROW), min(_ROW, len(colours)))
    grid = np.ones((shape[0] * shape[1], 3))
    grid[: len(colours)] = colours
    axes.imshow(grid.reshape(*shape, 3), interpolation="nearest", aspect="equal" if min(shape) > 1 else "auto")
    axes.set_axis_off()
