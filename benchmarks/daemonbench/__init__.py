"""What the parts of benchmarks/daemon.py share."""
