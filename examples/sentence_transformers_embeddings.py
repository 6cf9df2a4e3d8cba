"""Embed images and texts with sentence-transformers, compare with the model itself, save and load again.

    python examples/sentence_transformers_embeddings.py [FOLDER]

FOLDER is a converted model, dual or CoCa; by default the digits checkpoint is converted. Needs
sentence-transformers >= 5.4, which takes images too.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from digits.digits_data import held_out_pictures
from digits.model_folder import model_folder
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor


def largest_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def load(folder: Path) -> SentenceTransformer:
    """The folder as it is: sentence-transformers reads from the model's methods what it embeds."""
    return SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})


@torch.no_grad()
def model_embeddings(folder: Path, images: list, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings by transformers alone: (images, projection_dim) and (texts, projection_dim), not normalised."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    image_features = model.get_image_features(**processor(images=images, return_tensors="pt"))
    text_features = model.get_text_features(**processor(text=texts, return_tensors="pt", padding=True))
    return image_features.pooler_output, text_features.pooler_output


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Runs the example.

    Returns:
        The relative differences of sentence-transformers' image and text embeddings from the model's, the same of a
        saved and reloaded one from the first, and the share of pictures whose own caption is nearest.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="converted model (default: the digits checkpoint)")
    parser.add_argument("--images", type=int, default=20, help="held-out pictures to embed (default: 20)")
    args = parser.parse_args(arguments)

    pictures = held_out_pictures(args.images)
    images, texts = [picture.image for picture in pictures], [picture.caption for picture in pictures]
    with model_folder(args.folder) as folder, tempfile.TemporaryDirectory() as saved:
        embedder = load(folder)
        image_embeds = embedder.encode(images, convert_to_tensor=True)
        text_embeds = embedder.encode(texts, convert_to_tensor=True)
        expected_image_embeds, expected_text_embeds = model_embeddings(folder, images, texts)

        embedder.save(saved)
        again = load(Path(saved))
        reloaded = torch.cat([again.encode(inputs, convert_to_tensor=True) for inputs in (images, texts)])

    nearest = embedder.similarity(image_embeds, text_embeds).argmax(dim=1)
    results = {
        "image_difference": largest_difference(image_embeds, expected_image_embeds),
        "text_difference": largest_difference(text_embeds, expected_text_embeds),
        "reloaded_difference": largest_difference(reloaded, torch.cat([image_embeds, text_embeds])),
        "matched": sum(texts[found] == text for found, text in zip(nearest, texts)) / len(texts),
    }
    print(f"Embeddings of {len(images)} images and texts, {image_embeds.shape[1]} dimensions")
    print(f"Relative difference from get_image_features {results['image_difference']:.1e}")
    print(f"Relative difference from get_text_features  {results['text_difference']:.1e}")
    print(f"After saving and loading                    {results['reloaded_difference']:.1e}")
    print(f"Pictures whose own caption is the nearest   {results['matched']:.1%}")
    return results


if __name__ == "__main__":
    main()
