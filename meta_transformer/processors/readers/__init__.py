"""Readers of what processors are given: files of each kind, and the objects of other libraries, to plain arrays."""
