"""The update of the weights by the optimizer, with few calls around its arithmetic."""
