"""The table of the modules of a model."""
