"""Find the images of a data set whose embeddings are nearest to a vector."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ..configuration.errors import UserError
from .extras import import_extra
from .images import read_image
from .outputs import FORMATS, Output
from .shards import Fields, find_shards


if TYPE_CHECKING:
    import numpy
    from PIL import Image

EXACT_UP_TO = 1_000_000  # vectors
CONNECTIVITY, EXPANSION = 32, 256  # of the graph; more finds more, and takes longer


class Hit(NamedTuple):
    """An image that was found, with the cosine of its embedding and what was searched for."""

    score: float
    shard: str
    key: str


class EmbeddedData:
    """The embeddings in an output.

    Args:
        address: the output.

    Raises:
        UserError: it is no output, or one without embeddings.
    """

    def __init__(self, address: str):
        manifest = Output(address, ()).read_manifest()
        if manifest is None or manifest["settings"]["command"] != "embed":
            raise UserError(f"{address} holds no embeddings: expected a folder that `embed` wrote.")
        self.manifest = manifest
        settings = manifest["settings"]
        columns = ("text_embedding", "embedding") if settings["text_column"] else ("embedding",)
        self.output = FORMATS[settings["format"]](address, columns)
        shards = manifest["shards"].items()
        self.shards = [(name, entry["index"]) for name, entry in shards if self.output.has(name, entry["index"])]
        self.unfinished = len(shards) - len(self.shards)

    def __iter__(self) -> "Iterator[tuple[str, list[str], numpy.ndarray]]":
        """Read name, keys, and vectors (keys, projection_dim) of the shards that are finished."""
        for name, index in self.shards:
            yield name, *self.output.embeddings(name, index)

    def nearest(self, query: "numpy.ndarray", k: int) -> list[Hit]:
        """Find the `k` vectors nearest to `query` (projection_dim,), all of length 1; exactly, where they are few."""
        if sum(self.output.count(*shard) for shard in self.shards) > EXACT_UP_TO:
            return self._nearest_by_index(query, k)
        return self._nearest_of_all(query, k)

    def _nearest_of_all(self, query: "numpy.ndarray", k: int) -> list[Hit]:
        import numpy

        best: list[Hit] = []
        for name, keys, vectors in self:
            scores = vectors.astype("float32") @ query
            top = numpy.argsort(-scores, kind="stable")[:k]
            # Of equal scores the earlier one.
            best = sorted([*best, *(Hit(float(scores[row]), name, keys[row]) for row in top)], key=_score)[:k]
        return best

    def _nearest_by_index(self, query: "numpy.ndarray", k: int) -> list[Hit]:
        index = self._load_index(len(query))
        matches = index.search(query, k)
        rows = {int(key): 1 - float(distance) for key, distance in zip(matches.keys, matches.distances)}
        hits, start = [], 0
        for shard in self.shards:  # of which those with a hit are read
            num_rows, errors = self.output.found(*shard)
            end = start + num_rows - len(errors)
            if here := [row for row in rows if start <= row < end]:
                keys, _ = self.output.embeddings(*shard)
                hits += [Hit(rows[row], shard[0], keys[row - start]) for row in here]
            start = end
        return sorted(hits, key=_score)

    def _load_index(self, dim: int):
        """Load the graph of all vectors, which lies beside them; make it where there is none of these files."""
        usearch = import_extra("usearch.index", "search")
        import numpy

        versions = self.output.versions()
        files = [file for shard in self.shards for file in self.output.files(*shard)]
        digest = hashlib.sha256(repr([(file, versions[file]) for file in files]).encode()).hexdigest()[:16]
        file = f"_index-{digest}.usearch"
        index = usearch.Index(
            ndim=dim,
            metric="ip",
            dtype="f16",
            connectivity=CONNECTIVITY,
            expansion_add=EXPANSION,
            expansion_search=EXPANSION,
        )
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, file)
            if self.output.exists(file):
                self.output.get(file, local)
                index.load(local)
                return index
            for _, keys, vectors in self:
                index.add(numpy.arange(len(index), len(index) + len(keys)), vectors.astype("float32"))
            index.save(local)
            with open(local, "rb") as saved:
                self.output.put(file, saved.read())
        return index

    def image(self, hit: Hit) -> "Image.Image":
        """Read the image that was found from where it was embedded.

        Raises:
            OSError: it is not there any more.
        """
        entry = self.manifest["shards"][hit.shard]
        if entry["source"] == "files":
            return read_image(hit.key)
        settings = self.manifest["settings"]
        fields = Fields(**{name: settings[name] for name in vars(Fields())} | {"columns": ()})
        shards = find_shards([entry["source"]], fields, self.manifest["notes"]["shard_size"], _raise)
        for shard in shards:
            if shard.identity == entry["data"]:
                for sample in shard:
                    if sample.key == hit.key and sample.image is not None:
                        return read_image(sample.image)
        raise OSError(f"{entry['source']} does not hold {hit.key} any more")


def _score(hit: Hit) -> float:
    return -hit.score


def _raise(argument: str, error: Exception):
    raise error
