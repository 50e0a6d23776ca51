"""The parts of ``benchmarks/conditions.py``: changed frames, changed backbones, and what the runs say."""
