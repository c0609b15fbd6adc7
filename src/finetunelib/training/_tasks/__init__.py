"""Tasks: how the loss of a batch is computed, and the checks of the first batch."""
