"""What was measured on: the machine, and the versions of the libraries of an environment."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path


PACKAGES = (
    "torch",
    "torchvision",
    "torchao",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "open_clip_torch",
    "timm",
    "flash_attn",
    "Pillow",
)


def describe(device: str, threads: int) -> dict:
    """The machine, without its GPU: a dict that is equal where results may stand in one table."""
    return {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "threads": threads,
    }


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of Python and of those of `PACKAGES` that this environment has."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def gpu_name() -> str | None:
    """The GPU that torch uses, if any."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def commit(root: Path) -> str:
    """The commit of a checkout, and whether files other than results differ from it; empty where it is unknown."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short=10", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_gb() -> int | None:
    if sys.platform == "win32":
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
