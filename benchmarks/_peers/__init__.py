"""The trainers that are compared, with one small interface."""
