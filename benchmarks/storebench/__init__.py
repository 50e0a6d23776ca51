"""The parts of ``benchmarks/store.py``: rivals, and a module per group of sections."""
