"""The summary of a model: a table of its modules."""
