"""A modality of your own, here absorption spectra of any length: one processor, one tokenizer, one registration."""

import numpy as np
import torch
from transformers import BatchFeature, set_seed

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerProcessor,
    TokenSequence,
    register_modality,
)
from meta_transformer.processors.base import ModalityProcessor
from meta_transformer.tokenizers.base import ModalityTokenizer


class SpectrumProcessor(ModalityProcessor):
    """Spectra `(wavelengths,)` in, `spectra` `(batch, wavelengths)` out, padded with NaN."""

    def __call__(self, samples, *, return_tensors="pt"):
        longest = max(len(sample) for sample in samples)
        padded = [np.pad(np.float32(s), (0, longest - len(s)), constant_values=np.nan) for s in samples]
        return BatchFeature({"spectra": np.stack(padded)}, tensor_type=return_tensors)


class SpectrumTokenizer(ModalityTokenizer):
    """A token for every ten wavelengths, with a position learned for its place; up to 640 wavelengths."""

    def __init__(self, config, hidden_size):
        super().__init__(config, hidden_size)
        self.projection = torch.nn.Linear(10, hidden_size)
        self.positions = torch.nn.Embedding(64, hidden_size)

    def forward(self, spectra):
        patches = torch.nn.functional.pad(spectra, (0, -spectra.shape[1] % 10), value=torch.nan).unflatten(1, (-1, 10))
        positions = self.positions(torch.arange(patches.shape[1], device=spectra.device))
        return TokenSequence(self.projection(patches.nan_to_num()) + positions, mask=~patches.isnan().all(dim=2))


register_modality("spectrum", processor_class=SpectrumProcessor, tokenizer_class=SpectrumTokenizer)

if __name__ == "__main__":
    set_seed(0)
    labels = torch.arange(96) % 3  # three substances, made here: each absorbs at a wavelength of its own
    spectra = [np.exp(-((np.arange(np.random.randint(80, 99)) - 20 - 20 * y) ** 2) / 20) for y in labels.tolist()]
    spectra = [spectrum + np.random.normal(0, 0.1, spectrum.shape) for spectrum in spectra]
    processor = MetaTransformerProcessor(spectrum=True)
    model = MetaTransformerForClassification(MetaTransformerConfig.tiny(modalities=["spectrum"], num_labels=3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(15):
        model(**processor(spectrum=spectra[:64]), labels=labels[:64]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained("outputs/02_custom_modality", processor=processor)
    model = MetaTransformerForClassification.from_pretrained("outputs/02_custom_modality")
    processor = MetaTransformerProcessor.from_pretrained("outputs/02_custom_modality")
    accuracy = (model(**processor(spectrum=spectra[64:])).logits.argmax(-1) == labels[64:]).float().mean()
    print(f"Test accuracy after loading: {accuracy:.2f} (chance: 0.33)")
