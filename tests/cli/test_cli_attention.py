"""`open-clip-transformers attention`: what it draws, where, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bright_patch_coca import bright_patch_coca
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoModel, AutoProcessor

from examples.digits.digits_data import CELL, held_out_pictures
from open_clip_transformers import (
    CoCaProcessor,
    OpenClipImageProcessorPil,
    OpenClipTokenizer,
    convert_open_clip_checkpoint,
    word_attention,
)
from open_clip_transformers.cli.heat_maps import (
    GAP,
    LINE,
    PANEL,
    SCALE,
    HeatMap,
    draw_heat,
    draw_maps,
    seen_box,
    spread,
    wrapped,
)


CHECKPOINT = Path(__file__).resolve().parents[2] / "examples" / "digits" / "open_clip_checkpoint"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "coca-digits"
    convert_open_clip_checkpoint(CHECKPOINT, folder, verify="none")
    return folder


def panel(sheet: Image.Image, index: int, size: tuple[int, int] = (PANEL, PANEL), columns: int = 3) -> np.ndarray:
    """The pixels of a panel, (height, width, 3), as integers."""
    left = GAP + index % columns * (max(size[0], PANEL * 3 // 4) + GAP)
    # Below a title and labels of a line each.
    top = GAP + LINE + GAP + index // columns * (LINE + size[1] + SCALE + GAP) + LINE
    return np.asarray(sheet.crop((left, top, left + size[0], top + size[1]))).astype(int)


def test_attention_draws_every_word_of_a_caption(run, digits, tmp_path):
    picture = held_out_pictures(2)[1]
    picture.image.save(tmp_path / "image.png")
    result = run("attention", digits, tmp_path / "image.png", "-o", tmp_path / "sheet.png")
    assert result.stdout == f"{tmp_path / 'image.png'}\t{picture.caption}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.png", "sheet.png"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet.load()
    panels = 1 + len(picture.caption.split())
    rows = -(-panels // 3)
    assert (sheet.format, sheet.mode) == ("PNG", "RGB")
    assert sheet.size == (GAP + 3 * (PANEL + GAP), GAP + LINE + GAP + rows * (LINE + PANEL + SCALE + GAP))
    assert (panel(sheet, 0) == np.asarray(picture.image.resize((PANEL, PANEL), Image.Resampling.BICUBIC))).all()


def test_captioner_looks_at_the_digit_that_it_names(digits):
    model = AutoModel.from_pretrained(digits, attn_implementation="eager").eval()
    processor = AutoProcessor.from_pretrained(digits)
    pictures = [picture for picture in held_out_pictures(120) if len(picture.digits) == 1]
    pixel_values = processor(images=[picture.image for picture in pictures], return_tensors="pt").pixel_values
    words = word_attention(model, processor.tokenizer, pixel_values, model.generate(pixel_values=pixel_values))
    right = []
    for picture, maps in zip(pictures, words):
        cells = torch.from_numpy(np.array(picture.image.convert("L"))).float().unfold(0, CELL, CELL)
        brightest = cells.unfold(1, CELL, CELL).mean((-1, -2)).argmax()
        right.append(bool(maps[3][1].argmax() == brightest))  # a single COLOUR DIGIT
    assert len(right) > 20 and np.mean(right) >= 0.9


# How the processor brings a picture of 96 x 48 pixels to 3 x 3 patches -> left, top, right and bottom of one of them.
PATCHES = {"shortest": (56, 16, 72, 32), "longest": (64, 8, 96, 40), "squash": (64, 32, 96, 48)}


@pytest.mark.parametrize(("mode", "patch"), PATCHES.items(), ids=PATCHES)
def test_attention_draws_heat_on_the_bright_patch_of_the_picture(run, tmp_path, mode, patch):
    image_processor = OpenClipImageProcessorPil(
        size={"height": 24, "width": 24}, resize_mode=mode, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    model = bright_patch_coca()
    tokenizer = OpenClipTokenizer(model_max_length=model.config.text_config.max_position_embeddings)
    model.save_pretrained(tmp_path / "model")
    CoCaProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(tmp_path / "model")
    picture = Image.new("RGB", (96, 48))
    picture.paste((200, 200, 200), patch)
    picture.save(tmp_path / "image.png")
    run("attention", tmp_path / "model", tmp_path / "image.png", "-o", tmp_path / "sheet.png", "--max-new-tokens", 5)
    with Image.open(tmp_path / "sheet.png") as sheet:
        green = panel(sheet, 1, (PANEL, PANEL // 2))[..., 1]
    # The hottest colour is the brightest, too.
    hottest = np.argwhere(green >= green.max() - 2) * 96 / PANEL
    left, top, right, bottom = patch
    assert ((hottest >= (top - 1, left - 1)) & (hottest <= (bottom + 1, right + 1))).all()
    assert green.max() > 230


@pytest.mark.parametrize(
    ("settings", "size", "box", "shape"),
    [
        ({"resize_mode": "shortest"}, (96, 48), (24, 0, 72, 48), (24, 24)),
        ({"resize_mode": "longest"}, (96, 48), (0, -24, 96, 72), (24, 24)),
        ({"resize_mode": "squash"}, (96, 48), (0, 0, 96, 48), (24, 24)),
        ({"do_resize": False}, (96, 48), (36, 12, 60, 36), (24, 24)),
        ({"do_resize": False}, (12, 16), (-6, -4, 18, 20), (24, 24)),
        ({"do_center_crop": False}, (96, 48), (0, 0, 96, 48), (24, 48)),
    ],
    ids=["shortest", "longest", "squash", "crop_alone", "padding_alone", "no_crop"],
)
def test_seen_box_is_what_the_processor_shows(settings, size, box, shape):
    image_processor = OpenClipImageProcessorPil(size={"height": 24, "width": 24}, **settings)
    assert seen_box(image_processor, size) == (pytest.approx(box), shape)
    pixels = image_processor(Image.new("RGB", size), return_tensors="pt").pixel_values
    assert pixels.shape[-2:] == shape


def test_heat_is_spread_over_its_box_and_the_rest_is_dark():
    heat = np.array([[0.0, 0.0], [0.0, 1.0]])
    values, inside = spread(heat, (10, -5, 30, 15), (40, 20))
    assert values.shape == inside.shape == (20, 40)
    assert inside[:15, 10:30].all() and inside.sum() == 15 * 20
    assert values[14, 29] == 1.0 and values[0, 10] == 0.0 and values[~inside].max() == 0.0
    drawn = np.asarray(draw_heat(Image.new("RGB", (40, 20), (100, 100, 100)), heat, (10, -5, 30, 15)))
    assert (drawn[18, 5] == 35).all() and (drawn[0, 11] == 100).all()
    assert drawn[14, 29, 0] > 200 and drawn[14, 29, 2] < 170


@pytest.mark.parametrize("kind", ["clip", "siglip", "coca"])
def test_attention_draws_the_similarity_of_texts(run, converted, images, tmp_path, kind):
    texts = ["a cat", "a very long text that does not fit above its panel"]
    options = [option for text in texts for option in ("--text", text)]
    result = run("attention", converted(kind), images[0], "-o", tmp_path / "sheet.PNG", *options)
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[:2] for row in rows] == [[str(images[0]), text] for text in texts]
    assert all(-1 <= float(row[2]) <= 1 for row in rows)
    with Image.open(tmp_path / "sheet.PNG") as sheet, Image.open(images[0]) as image:
        height = round(image.height * PANEL / max(image.size))
        title = len(wrapped(str(images[0]), ImageFont.load_default(18), sheet.width - 2 * GAP))
        assert sheet.height == GAP + title * LINE + GAP + 2 * LINE + height + SCALE + GAP


def test_sheet_has_the_whole_title_and_the_values_of_its_colours(monkeypatch):
    written = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda pen, place, text, **_: written.append(text))
    words = " ".join(f"word{index}" for index in range(80))
    maps = [HeatMap("w" * 99, np.array([[0.0, 0.03125]]), 0.0), HeatMap("so", np.array([[-0.25, 0.5]]), -0.25)]
    sheet = draw_maps(Image.new("L", (64, 32)), maps, (0, 0, 64, 32), words, unit="cosine")
    scales = ["0", "cosine", "0.0312", "-0.25", "cosine", "0.5"]
    assert [text for text in written if text in scales] == scales
    lines = [text for text in written if text not in scales]
    assert " ".join(line for line in lines if line.startswith("word")) == words
    assert "".join(line for line in lines if set(line) == {"w"}) == "w" * 99 and "so" in lines
    font = ImageFont.load_default(18)
    assert all(font.getlength(line) <= (PANEL if "word" not in line else sheet.width - 2 * GAP) for line in lines)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("clip", [], "writes no captions: give --text"),
        ("clip", ["--text", " "], "--text is empty"),
        ("clip", ["--text", "cat", "--font", "missing.ttf"], "--font missing.ttf: there is no such file"),
        ("coca", ["--max-new-tokens", 99], "--max-new-tokens 99 does not fit"),
    ],
    ids=["clip_without_text", "empty_text", "font", "too_long"],
)
def test_attention_refuses_what_cannot_work(run, converted, images, tmp_path, kind, options, message):
    result = run("attention", converted(kind), images[0], "-o", tmp_path / "sheet.png", *options, exit_code=2)
    assert message in result.stderr
    assert not (tmp_path / "sheet.png").exists()


def test_attention_says_what_is_wrong_with_its_files(run, clip, broken, images, tmp_path):
    arguments = ("attention", clip, images[0], "--text", "cat", "-o")
    assert "must end in .png" in run(*arguments, tmp_path / "sheet.jpg", exit_code=2).stderr
    assert "not a folder that exists" in run(*arguments, tmp_path / "no" / "sheet.png", exit_code=2).stderr
    result = run("attention", clip, broken[0], "--text", "cat", "-o", tmp_path / "sheet.png", exit_code=1)
    assert result.stderr.startswith("Error: ")
    assert not list(tmp_path.glob("*sheet*"))
