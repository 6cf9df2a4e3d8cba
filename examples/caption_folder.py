"""Caption the images of a folder: other processes read them while the model writes, in compiled steps if wanted.

    python examples/caption_folder.py IMAGES [FOLDER] [--compile]

IMAGES is searched with its subfolders; FOLDER is a converted CoCa, by default the digits checkpoint, converted now.
`open-clip-transformers caption` does the same, leaves out what cannot be read, and takes URLs.
"""

import argparse
from pathlib import Path

import torch
from digits.model_folder import model_folder
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import AutoProcessor
from transformers.image_processing_utils import BaseImageProcessor

from open_clip_transformers import CoCaForConditionalGeneration


SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class ImageFolder(Dataset):
    """The images below a folder, in the order of their names, ready for the model."""

    def __init__(self, folder: Path, image_processor: BaseImageProcessor):
        self.files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
        with Image.open(self.files[index]) as image:
            pixel_values = self.image_processor(image, return_tensors="pt").pixel_values
        return str(self.files[index]), pixel_values[0]


def main(arguments: list[str] | None = None) -> dict[str, str]:
    """Runs the example, and returns the caption of each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("folder", type=Path, nargs="?", help="converted CoCa (default: the digits checkpoint)")
    parser.add_argument("--batch-size", type=int, default=16, help="images at a time (default: 16)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images (default: 2)")
    parser.add_argument("--compile", action="store_true", help="compile the step that writes a token")
    args = parser.parse_args(arguments)

    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    with model_folder(args.folder) as folder:
        processor = AutoProcessor.from_pretrained(folder)
        model = CoCaForConditionalGeneration.from_pretrained(folder).to(device)
    settings = {}
    if args.compile:
        model.compile(mode="reduce-overhead" if device.type == "cuda" else None)
        settings["cache_implementation"] = "static"

    captions = {}
    dataset = ImageFolder(args.images, processor.image_processor)
    for names, pixel_values in DataLoader(dataset, batch_size=args.batch_size, num_workers=args.workers):
        if args.compile:  # the last batch is as large as the others, for which the model was compiled
            pixel_values = pixel_values[torch.arange(args.batch_size) % len(pixel_values)]
        tokens = model.generate(pixel_values=pixel_values.to(device, model.dtype), **settings)
        texts = processor.batch_decode(tokens, skip_special_tokens=True)
        for name, text in zip(names, texts):
            print(f"{name}\t{text}")
            captions[name] = text
    return captions


if __name__ == "__main__":
    main()
