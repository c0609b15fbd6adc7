"""Finding, describing and replacing the head of a model."""
