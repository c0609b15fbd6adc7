"""Running any model once: example inputs, their names, and the outputs."""
