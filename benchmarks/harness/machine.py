"""The machine: what it is, how much memory a process of it takes, and how fast it is at most."""

import contextlib
import importlib.metadata
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path


PACKAGES = (
    "torch torchvision torchao transformers tokenizers huggingface_hub safetensors open_clip_torch timm flash_attn"
)
# Flags of /proc/cpuinfo, beside what torch chooses its own kernels by.
INSTRUCTIONS = {"amx_tile": "AMX", "avx512_bf16": "AVX512-BF16", "avx512_vnni": "AVX512-VNNI"}
# Bytes of a buffer, and sizes and dtypes of matrices.
WORK = {
    "cpu": (256 * 2**20, (2048, 3072), ("float32", "bfloat16")),
    "cuda": (4 * 2**30, (8192,), ("float32", "bfloat16", "float16")),
}
QUICK_BYTES, QUICK_SIZES = 2**20, (128,)


def describe(device: str) -> dict:
    """The machine that this process runs on."""
    import torch

    processor = _fields("/proc/cpuinfo")
    flags = processor.get("flags", "").split()
    extensions = [name for flag, name in INSTRUCTIONS.items() if flag in flags]
    return {
        "processor": processor.get("model name", platform.processor() or platform.machine()),
        "instruction_set": [torch.backends.cpu.get_cpu_capability(), *extensions],
        "cores": available_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else None,
    }


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of Python and of those of `PACKAGES` that this environment has."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES.split(), "Pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def synchronize(device: str):
    """Wait for the GPU."""
    if device != "cpu":
        import torch

        torch.accelerator.synchronize()


def memory(device: str) -> tuple[int | None, int | None]:
    """Bytes that this process holds, and held at most since `reset_peak_memory`: resident, or of torch on the GPU."""
    if device != "cpu":
        import torch

        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    status = _fields("/proc/self/status")
    return tuple(int(status[name].split()[0]) * 1024 if name in status else None for name in ("VmRSS", "VmHWM"))


def reset_peak_memory(device: str):
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    # Linux: 5 resets the high-water mark of resident memory (proc(5)).
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def ceilings(device: str, quick: bool) -> dict[str, float]:
    """Operations per second as "matmul_<dtype>" and bytes per second as "bandwidth", the best of several calls."""
    import torch

    def seconds(operation: Callable[[], object]) -> float:
        operation()
        best, calls, start = float("inf"), 0, time.perf_counter()
        while calls < 3 or (time.perf_counter() - start < 1 and not quick):
            synchronize(device)
            before = time.perf_counter()
            operation()
            synchronize(device)
            best, calls = min(best, time.perf_counter() - before), calls + 1
        return best

    buffer_bytes, sizes, dtypes = WORK[device]
    if quick:
        buffer_bytes, sizes = QUICK_BYTES, QUICK_SIZES
    rates: dict[str, float] = {}
    for dtype in dtypes:
        for size in sizes:
            left, right = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
            best = seconds(partial(torch.mm, left, right))
            if device == "cpu" and torch.backends.mkldnn.is_available():
                # On some processors faster than what torch calls.
                arguments = left, right, None, "none", [], ""
                best = min(best, seconds(partial(torch.ops.mkldnn._linear_pointwise, *arguments)))
            rates[f"matmul_{dtype}"] = max(2 * size**3 / best, rates.get(f"matmul_{dtype}", 0.0))
    source = torch.ones(buffer_bytes // 4, device=device)
    target = torch.empty_like(source)
    # A copy reads and writes, a product reads both; a sum reads once.
    moves = [(2, lambda: target.copy_(source)), (1, source.sum), (2, lambda: source @ target)]
    rates["bandwidth"] = max(times * buffer_bytes / seconds(operation) for times, operation in moves)
    return rates


def _fields(path: str) -> dict[str, str]:
    """The first value of each `name: value` line of a file of Linux; none elsewhere."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields


@contextlib.contextmanager
def sampled(measure: Callable[[], int], seconds: float) -> Iterator[list[int]]:
    """Collect what `measure()` returns, once before the body and then every so many seconds while it runs."""
    values, stop = [measure()], threading.Event()

    def watch():
        while not stop.wait(seconds):
            values.append(measure())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield values
    finally:
        stop.set()
        thread.join()
