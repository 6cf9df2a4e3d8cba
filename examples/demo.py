"""Convert a small open_clip CoCa, caption held-out images of handwritten digits, and classify them.

    make demo

The checkpoint was trained by open_clip on real scans (digits/README.md). All of this works the same with any other
open_clip CoCa and with your own images.
"""

import argparse
import shutil
from pathlib import Path

from digits.digits_data import Picture, held_out_pictures
from PIL import Image, ImageDraw
from transformers import pipeline
from transformers.utils import logging

from open_clip_transformers import convert_open_clip_checkpoint


CHECKPOINT = Path(__file__).resolve().parent / "digits" / "open_clip_checkpoint"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder of an open_clip CoCa")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for all that is written")
    parser.add_argument("--images", type=int, default=200, help="held-out images to measure on (default: 200)")
    parser.add_argument("--shown", type=int, default=12, help="how many of them to show (default: 12)")
    parser.add_argument("--batch-size", type=int, default=32, help="images at a time (default: 32)")
    return parser.parse_args()


def print_table(pictures: list[Picture], captions: list[str], results: list[list[dict]]) -> None:
    """Print a line for each picture; `results` are the labels of each, best first."""
    width = max(len(text) for text in [*captions, *(picture.caption for picture in pictures)])
    print(f"{'image':8} {'truth':{width}} {'caption':{width}} {'top label':{width}} probability")
    for index, (picture, caption, (top, *_)) in enumerate(zip(pictures, captions, results)):
        print(f"{index:03}.png  {picture.caption:{width}} {caption:{width}} {top['label']:{width}} {top['score']:.3f}")


def draw_sheet(pictures: list[Picture], captions: list[str], columns: int = 4) -> Image.Image:
    """Draw the pictures, enlarged, with their captions below, and below wrong ones the truth."""
    cell, size = (310, 248), 192
    sheet = Image.new("RGB", (cell[0] * columns, cell[1] * -(-len(pictures) // columns)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, caption) in enumerate(zip(pictures, captions)):
        left, top = index % columns * cell[0], index // columns * cell[1]
        enlarged = picture.image.resize((size, size), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (left + (cell[0] - size) // 2, top + 8))
        lines = [(caption, "darkgreen")]
        if caption != picture.caption:
            lines = [(f"wrong: {caption}", "firebrick"), (f"truth: {picture.caption}", "black")]
        for row, (line, colour) in enumerate(lines):
            place = left + cell[0] / 2, top + size + 14 + 18 * row
            draw.text(place, line, colour, anchor="ma", font_size=13)
    return sheet


def main() -> None:
    args = parse_args()
    logging.set_verbosity_error()
    folder = args.output / "coca-digits"
    if folder.exists():
        shutil.rmtree(folder)  # of an earlier run: a conversion overwrites nothing

    print(convert_open_clip_checkpoint(args.checkpoint, folder))

    pictures = held_out_pictures(args.images)
    images = [picture.image for picture in pictures]
    truths = [picture.caption for picture in pictures]

    captioner = pipeline("image-to-text", model=str(folder))
    captions = [result[0]["generated_text"] for result in captioner(images, batch_size=args.batch_size)]

    shown = pictures[: args.shown]
    labels = sorted(set(truths))
    classifier = pipeline("zero-shot-image-classification", model=str(folder))
    results = classifier(images[: args.shown], candidate_labels=labels, hypothesis_template="{}")

    print(
        f"\n{len(shown)} of {len(pictures)} held-out images, captioned, and classified among {len(labels)} labels:\n"
    )
    print_table(shown, captions, results)
    right = sum(caption == truth for caption, truth in zip(captions, truths))
    print(f"\n{right} of {len(pictures)} captions are right, word for word ({right / len(pictures):.1%}).")

    image_folder, sheet = args.output / "images", args.output / "captions.png"
    image_folder.mkdir(exist_ok=True)
    for index, picture in enumerate(shown):
        picture.image.save(image_folder / f"{index:03}.png")
    draw_sheet(shown, captions).save(sheet)
    print(f"The images with their captions: {sheet}")
    print(f"Caption them again: .venv/bin/open-clip-transformers caption {folder} {image_folder}")
    print(f"Try it in the browser: .venv/bin/open-clip-transformers demo {folder} --examples {image_folder}")


if __name__ == "__main__":
    main()
