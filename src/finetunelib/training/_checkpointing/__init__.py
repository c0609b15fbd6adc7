"""Writing, reading and checking checkpoints."""
