"""The callback interface, the context that callbacks receive, and how hooks are called."""
