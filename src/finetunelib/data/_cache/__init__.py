"""Datasets whose samples are kept in memory while they are read for the first time."""
