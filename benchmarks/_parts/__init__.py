"""The parts of the comparison: each measures one kind of work with all trainers."""
