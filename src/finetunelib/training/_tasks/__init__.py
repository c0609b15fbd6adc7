"""What is done with a batch, and the checks of the first one."""
