"""Memory of a worker: resident memory of its process, or what torch allocated on the GPU; all in bytes."""

import contextlib
import sys
from pathlib import Path


def current(device: str) -> int:
    """What is held now."""
    if device != "cpu":
        import torch

        return torch.cuda.memory_allocated()
    return _status("VmRSS") or _high_water()


def peak(device: str) -> int:
    """The most since `reset_peak`; since the process started where the system does not let it be reset."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") or _high_water()


def reset_peak(device: str):
    """Lets `peak` start from what is held now, where the system can."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    # Linux: 5 resets the high-water mark of resident memory (proc(5)).
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int | None:
    """A figure of Linux' /proc/self/status."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _high_water() -> int:
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
