"""The arguments of an export: names, dynamic axes, preprocessing, and their checks."""
