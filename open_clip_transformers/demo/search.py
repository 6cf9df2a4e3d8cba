"""Search among embedded images, of which those in one folder are shown."""

from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from ..cli.data import model_fingerprint
from ..configuration.errors import UserError
from ..datasets.search import EmbeddedData, Hit


THUMBNAIL = (512, 512)


class Picture(NamedTuple):
    """An image that was found, with its cosine; shown or not."""

    name: str
    score: float
    picture: Image.Image | None


class ImageSearch:
    """Images of an output of `embed`.

    Args:
        address: the output.
        model: the folder or Hub id that searches, which must be the one that embedded.
        revision: branch, tag or commit of the Hub repository.
        folder: what is found is shown where it is a file in here.

    Raises:
        UserError: it is no such output, one of another model, or there is no such folder.
    """

    def __init__(self, address: str, model: str, revision: str | None, folder: str | Path | None):
        self.data = EmbeddedData(address)
        if model_fingerprint(model, revision) != self.data.manifest["settings"]["model"]:
            raise UserError(
                f"{address} was embedded by another model than {model}, {self.data.manifest['notes']['model']}: "
                "embeddings of two models cannot be compared."
            )
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"{folder}: there is no such folder of images.")
        self.folder = None if folder is None else Path(folder).resolve()

    def nearest(self, query: torch.Tensor, count: int) -> list[Picture]:
        """Find the images nearest to `query` (projection_dim,), the nearest first."""
        hits = self.data.nearest(query.cpu().numpy(), count)
        return [Picture(Path(hit.key).name, hit.score, self._picture(hit)) for hit in hits]

    def _picture(self, hit: Hit) -> Image.Image | None:
        files = self.data.manifest["shards"][hit.shard]["source"] == "files"
        if self.folder is None or not files or not Path(hit.key).resolve().is_relative_to(self.folder):
            return None
        try:
            picture = self.data.image(hit).convert("RGB")
        except OSError:  # it is gone, or damaged by now
            return None
        picture.thumbnail(THUMBNAIL)
        return picture
