"""Processes that import, load and encode, timed as a whole or in part."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from contestants.weights import weights_folder


@dataclass(frozen=True)
class Code:
    """Python code of a process.

    imports: imports, and does no more.
    help: prints the help of the command line, or imports what that is compared with.
    process: loads the model of `FOLDER`, imports included.
    modules: imports everything that `load` needs.
    load: makes `model` of `FOLDER`.
    encode: makes features of `pixel_values` and `input_ids`.
    form: of the weights in the folder.
    """

    imports: str
    help: str
    process: str
    modules: str
    load: str
    encode: str
    form: str


FEATURES = "model.get_image_features(pixel_values), model.get_text_features(input_ids)"
HELP = (
    "import sys; from open_clip_transformers.cli import main; sys.argv = ['open-clip-transformers', '--help']; main()"
)
CODE = {
    "ours": Code(
        imports="import transformers, open_clip_transformers",
        help=HELP,
        process="import open_clip_transformers; from transformers import AutoModel; AutoModel.from_pretrained(FOLDER)",
        modules="from open_clip_transformers import OpenClipModel",
        load="model = OpenClipModel.from_pretrained(FOLDER)",
        encode=FEATURES,
        form="ours",
    ),
    "transformers": Code(
        imports="import transformers",
        help="import transformers",
        process="from transformers import AutoModel; AutoModel.from_pretrained(FOLDER)",
        modules="from transformers import CLIPModel",
        load="model = CLIPModel.from_pretrained(FOLDER)",
        encode=FEATURES,
        form="transformers",
    ),
    "open_clip": Code(
        imports="import open_clip",
        help="import open_clip",
        process="import open_clip; open_clip.create_model(f'local-dir:{FOLDER}')",
        modules="import open_clip",
        load="model = open_clip.create_model(f'local-dir:{FOLDER}').eval()",
        encode="model.encode_image(pixel_values), model.encode_text(input_ids)",
        form="open_clip",
    ),
}
# Both print, last of all, the seconds that count, 0 for those of the whole process, and the bytes at most.
WHOLE = """
import sys
FOLDER = sys.argv[2]
try:
    {source}
finally:
    from harness import machine
    print(0, machine.memory("cpu")[1])
"""
PART = """
import json, sys, time, torch
from contestants.model_inputs import input_ids, pixel_values
from harness import machine
{modules}
settings, FOLDER = json.loads(sys.argv[1]), sys.argv[2]
pixel_values, input_ids = pixel_values(settings), input_ids(settings)
before = machine.memory("cpu")[0]
machine.reset_peak_memory("cpu")
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
print(seconds, machine.memory("cpu")[1] - before)
"""


class Process:
    """Start a process for each sample."""

    def __init__(self, code: Code, settings: dict, folder: Path):
        self.peak = 0
        task, path = settings["task"], ""
        if task in ("process", "load", "encode"):
            path = str(weights_folder(code.form, settings, folder))
        if task in ("load", "encode"):
            work = code.load if task == "load" else f"{code.load}\nwith torch.inference_mode(): {code.encode}"
            source = PART.format(modules=code.modules, work=work)
        else:
            source = WHOLE.format(source={"import": code.imports, "help": code.help, "process": code.process}[task])
        inputs = json.dumps({**settings, "batch": 1, "dtype": "float32"})
        self.command = [sys.executable, "-c", source, inputs, path]

    def timed_run(self) -> float:
        start = time.perf_counter()
        done = subprocess.run(self.command, capture_output=True, text=True)
        whole = time.perf_counter() - start
        if done.returncode:
            raise OSError(f"The process failed:\n{done.stderr}")
        part, peak = map(float, done.stdout.splitlines()[-1].split())
        self.peak = max(self.peak, int(peak))
        return part or whole

    def peak_bytes(self) -> int:
        return self.peak


CONTESTANTS = {name: partial(Process, code) for name, code in CODE.items()}
