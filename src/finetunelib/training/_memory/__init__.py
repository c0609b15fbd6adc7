"""What takes memory in a training run, and how to need less of it."""
