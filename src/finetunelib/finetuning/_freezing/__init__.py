"""Freezing parts of a model, and proving that they stayed frozen."""
