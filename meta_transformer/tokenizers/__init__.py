"""Tokenizers, one file per modality: tensors in, `TokenSequence` out. Trained with the task."""
