"""One optimizer step: gradients, precision, optimizer and schedule."""
