"""What a measurement ran on, and how much memory it took."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path


def describe_hardware() -> str:
    """One line: processor, usable cores, memory, torch version and threads (and GPU), Python."""
    import torch

    from streamdrop.tracking.threads import cores

    parts = [
        f"{_cpu_name()}, {cores()} cores",
        f"torch {torch.__version__} with {torch.get_num_threads()} threads",
        f"Python {platform.python_version()}",
        platform.system(),
    ]
    if torch.cuda.is_available():
        parts.insert(1, torch.cuda.get_device_name())
    return "; ".join(parts)


def reset_peak_memory() -> None:
    """Count the peak from here on, where the system can (Linux); elsewhere the peak is that of the whole process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Most resident memory of this process since ``reset_peak_memory``, in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Hardware")):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or platform.machine()
