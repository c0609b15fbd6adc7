"""What the user asked for: names, dynamic axes, preprocessing, and their checks."""
