"""Commands and loops over folders of JPEG files, in processes of their own, which are watched meanwhile."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy
import pyarrow.parquet
from harness import machine
from harness.measure import python_of

from contestants.processing_inputs import jpeg, photograph
from contestants.weights import weights_folder


SIZES = [(256, 256), (333, 500), (480, 640), (640, 480), (1024, 768)]
DIFFERENT = 500
CAPTION_TOKENS = 20
COMPARED = 16  # vectors
SAMPLE_SECONDS = 1.0

OURS = "from open_clip_transformers.cli import main; main()"
# Each prints, last of all, the seconds of the clock and of processors that count. Its arguments are the folders of
# the model and of the images, the output and the number of processes.
LOOP = """
import glob, json, os, sys, time, numpy, torch
from PIL import Image
MODEL, IMAGES, OUTPUT, WORKERS = *sys.argv[1:4], int(sys.argv[4])
FILES = sorted(glob.glob(IMAGES + "/*.jpg"))
def processors():
    return sum(os.times()[:4])
{load}
start, cpu = time.perf_counter(), processors()
with torch.inference_mode():
    {loop}
    {save}
print(json.dumps({{"seconds": time.perf_counter() - start, "cpu_seconds": processors() - cpu}}))
"""
OPEN_CLIP = """
import open_clip
class Images(torch.utils.data.Dataset):
    def __init__(self, transform):
        self.transform = transform
    def __len__(self):
        return len(FILES)
    def __getitem__(self, index):
        return self.transform(Image.open(FILES[index]))
model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{MODEL}")
model.eval()
def batches():
    return torch.utils.data.DataLoader(Images(transform), batch_size=64, num_workers=WORKERS)
"""
TRANSFORMERS = """
from transformers import pipeline
"""
BLIP = """
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor
special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
small = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
small = small if "-reduced" in MODEL else {}
config = BlipConfig(vision_config={"image_size": 224, **small}, text_config={"encoder_hidden_size": 768, **small})
vocabulary = {word: index for index, word in enumerate(special + [f"w{index}" for index in range(30519)])}
processor = BlipProcessor(BlipImageProcessor(size={"height": 224, "width": 224}), BertTokenizer(vocab=vocabulary))
pipe = pipeline("image-text-to-text", model=BlipForConditionalGeneration(config).eval(), processor=processor)
settings = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS}
"""
VECTORS = "numpy.save(OUTPUT, torch.nn.functional.normalize(torch.cat(found), dim=-1).numpy())"
TEXTS = "open(OUTPUT, 'w').write(chr(10).join(found))"
LOOPS = {
    ("open_clip", "embed"): LOOP.format(
        load=OPEN_CLIP, loop="found = [model.encode_image(batch) for batch in batches()]", save=VECTORS
    ),
    ("open_clip", "caption"): LOOP.format(
        load=OPEN_CLIP,
        loop="found = [open_clip.decode(row) for batch in batches() for row in model.generate("
        "batch, generation_type='top_k', top_k=1, seq_len=TOKENS + 1, min_seq_len=TOKENS)]",
        save=TEXTS,
    ),
    ("transformers", "embed"): LOOP.format(
        load=TRANSFORMERS
        + """
from transformers import AutoImageProcessor, CLIPVisionModelWithProjection
model, processor = CLIPVisionModelWithProjection.from_pretrained(MODEL), AutoImageProcessor.from_pretrained(MODEL)
pipe = pipeline("image-feature-extraction", model=model, image_processor=processor)
""",
        loop="found = [row if row.ndim == 2 else row[None] for row in pipe("
        "FILES, batch_size=64, num_workers=WORKERS, return_tensors=True)]",
        save=VECTORS,
    ),
    ("transformers", "caption"): LOOP.format(
        load=TRANSFORMERS + BLIP,
        loop="found = [row['generated_text'] for file in FILES for row in pipe("
        "[file], text=[''], generate_kwargs=settings)]",
        save=TEXTS,
    ),
}


def images_folder(settings: dict, folder: Path) -> Path:
    """Return the folder of the JPEG files; the first call makes it."""
    path = folder / f"jpegs-{settings['count']}"
    if path.exists():
        return path
    originals, unfinished = folder / "jpegs", path.with_name(f"{path.name}.unfinished")
    originals.mkdir(exist_ok=True)
    unfinished.mkdir()
    for index in range(settings["count"]):
        original = originals / f"{index % DIFFERENT:03d}.jpg"
        if not original.exists():
            original.write_bytes(jpeg(photograph(*SIZES[index % len(SIZES)], index)))
        os.link(original, unfinished / f"{index:06d}.jpg")
    unfinished.rename(path)
    return path


class Command:
    """Work through the files in a process for each sample, to an output that is new each time."""

    def __init__(self, settings: dict, folder: Path):
        self.settings, self.folder = settings, folder
        self.images = images_folder(settings, folder)
        self.peak, self.report, self.made = 0, {}, None

    def command(self, output: Path) -> list[str]:
        raise NotImplementedError

    def timed_run(self) -> float:
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            output = Path(temporary) / "out"
            command = self.command(output)
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            with child, machine.sampled(partial(proportional_memory, child.pid), SAMPLE_SECONDS) as sizes:
                stdout, stderr = child.communicate()
            if child.returncode:
                raise OSError(f"The process failed:\n{stderr[-2000:]}")
            self.peak = max(self.peak, *sizes)
            self.report = json.loads(stdout.splitlines()[-1])
            self.made = self.read(output)
        return self.report["seconds"]

    def read(self, output: Path) -> list | None:
        """Read the first vectors."""
        return None

    def outputs(self) -> list | None:
        return self.made

    def peak_bytes(self) -> int:
        return self.peak

    def figures(self) -> dict:
        seconds = self.report["seconds"]
        return {"images/s": self.settings["count"] / seconds, "cores": self.report["cpu_seconds"] / seconds}


class Ours(Command):
    def __init__(self, settings: dict, folder: Path, actors: int = 0):
        super().__init__(settings, folder)
        self.model, self.actors = weights_folder("ours", settings, folder), actors

    def command(self, output: Path) -> list[str]:
        shards = -(-self.settings["count"] // max(1, 2 * self.actors))
        engine = ["--engine", "ray", "--actors", str(self.actors), "--shard-size", str(min(shards, 1000))]
        length = ["--max-new-tokens", str(CAPTION_TOKENS)]
        return [
            *(sys.executable, "-c", OURS, self.settings["command"], str(self.model), str(self.images)),
            *("-o", f"{output}/", "--json", *(engine if self.actors else [])),
            *(length if self.settings["command"] == "caption" else []),
        ]

    def read(self, output: Path) -> list | None:
        summary = self.report
        summary["cpu_seconds"] = summary["cores_busy"] * summary["cores"] * summary["seconds"]
        if self.settings["command"] == "caption":
            return None
        table = pyarrow.parquet.read_table(sorted(output.glob("*.parquet"))[0], columns=["embedding"])
        return table["embedding"].to_pylist()[:COMPARED]

    def figures(self) -> dict:
        processors = {f"{name}, share of processors": share for name, share in self.report["cpu_time"].items()}
        waits = {f"{name}, share of waiting": share for name, share in self.report["time"].items()}
        return {**super().figures(), "model busy": self.report["model_busy"], **processors, **waits}


class Loop(Command):
    def __init__(self, peer: str, form: str, settings: dict, folder: Path):
        super().__init__(settings, folder)
        captions = settings["command"] == "caption"
        self.python = python_of("captioning") if captions and peer == "open_clip" else sys.executable
        self.source = f"TOKENS = {CAPTION_TOKENS}\n" + LOOPS[peer, settings["command"]]
        # transformers has no CoCa: its captioner is made where it is used.
        self.model = weights_folder("open_clip" if captions else form, settings, folder)

    def command(self, output: Path) -> list[str]:
        arguments = [str(self.model), str(self.images), str(output), str(self.settings["threads"])]
        return [self.python, "-c", self.source, *arguments]

    def read(self, output: Path) -> list | None:
        if self.settings["command"] == "caption":
            return None
        return numpy.load(output.with_suffix(".npy"), mmap_mode="r")[:COMPARED].tolist()


def processes_below(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for known in found:
        with suppress(OSError):
            for task in Path(f"/proc/{known}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def proportional_memory(pid: int) -> int:
    """Sum up the proportional set sizes of a process and its descendants, in bytes."""
    total = 0
    for process in processes_below(pid):
        with suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


CONTESTANTS = {
    "ours": Ours,
    "ours_ray": partial(Ours, actors=1),
    "ours_ray_2": partial(Ours, actors=2),
    "open_clip": partial(Loop, "open_clip", "open_clip"),
    "transformers": partial(Loop, "transformers", "transformers"),
}
