"""Processors, one file per modality: raw data in, padded tensors out. On the CPU, without weights."""
