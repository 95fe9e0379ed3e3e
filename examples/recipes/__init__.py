"""One file per modality: a real data set, how to read it, how to train on it, and what to compare with."""
