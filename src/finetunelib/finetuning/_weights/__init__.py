"""Reading and writing weights files, and reporting what was loaded."""
