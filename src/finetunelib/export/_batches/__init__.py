"""The batches that a file is compared on: samples, sizes, and the model's outputs for them."""
