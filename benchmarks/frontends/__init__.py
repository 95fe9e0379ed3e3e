"""Measurements of what turns raw data into tokens, each beside a named peer."""
