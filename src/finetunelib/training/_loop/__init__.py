"""The training loop: epochs, validation, limits, signals."""
