"""What the machine can do at most: matrix-multiply rates and memory bandwidth, measured, and the bounds they set."""

import time
from collections.abc import Callable, Iterable


SIZES = {"cpu": (2048, 3072), "cuda": (8192,)}
QUICK_SIZES = (128,)
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
BUFFER_BYTES = 256 * 2**20
CUDA_BUFFER_BYTES = 4 * 2**30
QUICK_BUFFER_BYTES = 2**20
# Each operation is repeated until it took this long, and at least so often; the best of all counts.
SECONDS = 1.0
QUICK_SECONDS = 0.0
REPEATS = 3


def measure(device: str = "cpu", quick: bool = False) -> dict[str, float]:
    """Operations per second as "matmul_<dtype>", bytes per second as "bandwidth"; needs torch."""
    import torch

    seconds = QUICK_SECONDS if quick else SECONDS
    rates = {}
    for name in DTYPES[device]:
        for size in QUICK_SIZES if quick else SIZES[device]:
            left, right = (torch.randn(size, size, device=device).to(getattr(torch, name)) for _ in range(2))
            product = torch.empty_like(left)
            operations = [lambda a=left, b=right, out=product: torch.mm(a, b, out=out)]
            if device == "cpu" and torch.backends.mkldnn.is_available():
                # On some processors faster than what `torch.mm` calls.
                operations.append(
                    lambda a=left, b=right: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
                )
            best = min(_best(operation, device, seconds) for operation in operations)
            rates[f"matmul_{name}"] = max(rates.get(f"matmul_{name}", 0.0), 2 * size**3 / best)
    size = QUICK_BUFFER_BYTES if quick else BUFFER_BYTES if device == "cpu" else CUDA_BUFFER_BYTES
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    # A copy reads and writes; the other two read alone.
    moves = [(2 * size, lambda: target.copy_(source)), (size, source.sum), (2 * size, lambda: source @ target)]
    rates["bandwidth"] = max(moved / _best(operation, device, seconds) for moved, operation in moves)
    return rates


def best_of(measured: Iterable[dict[str, float]]) -> dict[str, float]:
    """The highest of each rate."""
    best: dict[str, float] = {}
    for rates in measured:
        for name, rate in rates.items():
            best[name] = max(rate, best.get(name, 0.0))
    return best


def bound_seconds(steps: list[dict], rates: dict[str, float]) -> float | None:
    """The least seconds of `{"flops", "bytes", "dtype"}` steps that follow each other, in float32 by default.

    None without steps, or where the rate of a step was not measured.
    """
    total = 0.0
    for step in steps:
        rate, bandwidth = rates.get(f"matmul_{step.get('dtype', 'float32')}"), rates.get("bandwidth")
        flops, moved = step.get("flops", 0), step.get("bytes", 0)
        if (flops and not rate) or (moved and not bandwidth):
            return None
        total += max(flops / rate if flops else 0.0, moved / bandwidth if moved else 0.0)
    return total or None


def _best(operation: Callable[[], object], device: str, seconds: float) -> float:
    """Seconds of the fastest of several calls, after one that is not counted."""
    import torch

    synchronize = torch.accelerator.synchronize if device != "cpu" else lambda: None
    operation()
    synchronize()
    best, start, calls = float("inf"), time.perf_counter(), 0
    while calls < REPEATS or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        operation()
        synchronize()
        best = min(best, time.perf_counter() - before)
        calls += 1
    return best
