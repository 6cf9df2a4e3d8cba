"""Private memory and time of a conversion, beside the size of the checkpoint and the time to copy it.

    python benchmarks/conversion_memory.py coca_ViT-B-32 coca_ViT-L-14
    python benchmarks/conversion_memory.py ViT-bigG-14 --folder /a/disk/with/25GB

Results are added to those of other models, or replace those of the same.

Needs open_clip, which says what tensors an architecture has; their values are random. Every conversion runs in a
process of its own with `verify="structure"`: verification by outputs needs the model in memory, twice.

Private memory is what the process alone holds (`RssAnon` of Linux). What it maps of the checkpoint is the system's
cache of the file, and given back when memory is needed.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from open_clip_transformers.convert_scripts.architectures import get_architecture
from open_clip_transformers.convert_scripts.config_mapping import build_config
from open_clip_transformers.convert_scripts.open_clip_reference import build_open_clip_model
from open_clip_transformers.convert_scripts.write_safetensors import write_safetensors


FORMATS = ("safetensors", "pt")
ALLOWED_SHARE, ALLOWED_BASE = 0.15, 200e6
SAMPLE_SECONDS = 0.005
# Run in the measured process: waits for a line on standard input once everything is imported.
CHILD = """
import json, sys, time
sys.path.insert(0, {root!r})
from transformers.utils import logging
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
logging.disable_progress_bar()
print("ready", flush=True)
settings = json.loads(input())
start = time.perf_counter(), time.process_time()
convert_open_clip_checkpoint(**settings, verify="structure")
print(time.perf_counter() - start[0], time.process_time() - start[1], flush=True)
input()
"""


def random_tensors(layout: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Small random numbers in the shapes of `layout`, tensor by tensor."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in layout.items():
        yield name, torch.randn(tensor.shape, generator=generator, dtype=torch.float32) * 0.02


def make_safetensors(path: Path, model_name: str):
    """Writes a random checkpoint in fp32 for an architecture."""
    model_cfg = get_architecture(model_name)
    with torch.device("meta"):
        layout = dict(build_open_clip_model(model_cfg, build_config(model_cfg)).state_dict())
    layout = {name: tensor for name, tensor in layout.items() if name != "attn_mask"}
    write_safetensors(path, layout, random_tensors(layout))


def make_pt(path: Path, source: Path):
    """Writes a safetensors file of fp32 tensors as `torch.save` would, without holding it in memory."""
    content = np.memmap(source, np.uint8, "r")
    length = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:length].tobytes())
    header.pop("__metadata__")
    state_dict = {}
    for name, entry in header.items():
        start, end = (length + offset for offset in entry["data_offsets"])
        values = np.memmap(source, np.float32, "c", start, (end - start) // 4)
        state_dict[name] = torch.from_numpy(values).view(entry["shape"])
    torch.save(state_dict, path)


def forget(path: Path):
    """Writes a file to the disk and drops it from the system's cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def flush(folder: Path):
    """Waits until the files of a folder are on the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def private_memory(pid: int) -> int:
    """Bytes that a process alone holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def copy_seconds(source: Path, folder: Path) -> float:
    """Time to copy a file to the disk, from the disk."""
    forget(source)
    start = time.perf_counter()
    shutil.copy(source, folder / "copy")
    flush(folder)
    return time.perf_counter() - start


def convert(settings: dict) -> dict:
    """One conversion: seconds until it is on the disk, those of processors, and private bytes, before and more."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(root=str(Path(__file__).resolve().parents[1]))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        if child.stdout.readline() != "ready\n":
            raise OSError("The conversion could not be started.")
        before = peak = private_memory(child.pid)
        child.stdin.write(json.dumps(settings) + "\n")
        child.stdin.flush()
        os.set_blocking(child.stdout.fileno(), False)
        while not (line := child.stdout.readline()):
            peak = max(peak, private_memory(child.pid))
            if child.poll() is not None:
                raise OSError(f"The conversion failed: {settings}")
            time.sleep(SAMPLE_SECONDS)
        start = time.perf_counter()
        flush(Path(settings["output_dir"]))
        seconds, cpu_seconds = map(float, line.split())
        seconds += time.perf_counter() - start
        child.communicate("\n")
    return {"libraries": before, "conversion": peak - before, "seconds": seconds, "cpu_seconds": cpu_seconds}


def measure(model_name: str, source: Path, folder: Path, dtype: str | None) -> dict:
    """One conversion of a checkpoint, compared with copying it."""
    with tempfile.TemporaryDirectory(dir=folder) as target:
        copying = copy_seconds(source, Path(target))
    with tempfile.TemporaryDirectory(dir=folder) as target:
        forget(source)
        output = str(Path(target) / "converted")
        settings = {"source": str(source), "output_dir": output, "model_name": model_name, "dtype": dtype}
        measured = convert(settings)
    size = source.stat().st_size
    allowed = ALLOWED_SHARE * size + ALLOWED_BASE
    return {
        "model": model_name,
        "format": source.suffix.removeprefix("."),
        "dtype": dtype or "float32",
        "size": size,
        "allowed": allowed,
        "within": measured["conversion"] <= allowed,
        **measured,
        "copy_seconds": copying,
        "load": os.getloadavg()[0],
    }


def markdown(results: list[dict], machine: str) -> str:
    """The results as a page."""
    lines = [
        "# Memory and time of conversions",
        "",
        f"`benchmarks/conversion_memory.py` on {machine}. Random fp32 checkpoints, read from the disk and not its "
        "cache; every tensor that was written is compared with the checkpoint's, and the checkpoint is hashed. "
        "*Memory* is the most private memory that the conversion takes beside that of the imported libraries, "
        "*allowed* 15 % of the checkpoint and 200 MB. *Copy* is the time to copy the file; both times end when the "
        "output is on the disk. *CPU* is the processors' part of the time, *load* how many processes, ours included, "
        "wanted the machine.",
        "",
        "| Model | Source | Written as | Checkpoint | Memory | Allowed | Libraries | Time | CPU | Copy | Load |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results:
        cells = [row["model"], f"`.{row['format']}`", row["dtype"], f"{row['size'] / 1e9:.2f} GB"]
        cells += [f"{row[name] / 1e6:.0f} MB" for name in ("conversion", "allowed", "libraries")]
        cells += [f"{row[name]:.1f} s" for name in ("seconds", "cpu_seconds", "copy_seconds")]
        lines.append("| " + " | ".join([*cells, f"{row['load']:.1f}"]) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="open_clip's names of architectures")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="what to write")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS, help="what to convert from")
    parser.add_argument("--folder", type=Path, help="where to put files of twice a checkpoint's size")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    args = parser.parse_args()
    results = []
    for name in args.models:
        with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
            folder = Path(temporary)
            sources = {"safetensors": folder / "model.safetensors", "pt": folder / "model.pt"}
            make_safetensors(sources["safetensors"], name)
            for kind in args.formats:
                if kind == "pt":
                    make_pt(sources["pt"], sources["safetensors"])
                    sources["safetensors"].unlink()
                for dtype in args.dtypes:
                    results.append(measure(name, sources[kind], folder, dtype))
                    print(json.dumps(results[-1]), flush=True)
    machine = f"{os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}"
    args.output.mkdir(parents=True, exist_ok=True)
    record = args.output / "conversion_memory.json"
    earlier = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else []
    rows = {(row["model"], row["format"], row["dtype"]): row for row in [*earlier, *results]}
    results = sorted(rows.values(), key=lambda row: row["size"])
    record.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    record.with_suffix(".md").write_text(markdown(results, machine), encoding="utf-8")


if __name__ == "__main__":
    main()
