"""Tests of `finetunelib.export`. As a package, it comes before `benchmarks/export.py`."""
