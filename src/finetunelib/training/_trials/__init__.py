"""Training steps of a Trainer that are undone: the model and everything else is restored."""
