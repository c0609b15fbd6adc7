"""Running any model once: its inputs, guessed or given, and its outputs."""
