"""The callback interface, and the context that callbacks receive."""
