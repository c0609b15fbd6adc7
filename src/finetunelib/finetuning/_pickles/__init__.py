"""Limits on the memory and time that files of `torch.save` take, checked before loading them."""
