"""Heads, one file per task: encoded tokens in, prediction and loss out. Trained with the task."""
