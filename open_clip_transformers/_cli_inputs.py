"""Finding and reading what the commands work on: images in files, folders, patterns and URLs, and lines of text."""

import glob
import os
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image

from ._cli_messages import Failures, UsageError


# What folders and patterns are searched for. A file that is named itself may end in anything.
IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
URL_TIMEOUT = 30  # seconds without an answer
URL_SAFE = "!#$%&'()*+,/:;=?@[]~"


def find_images(arguments: Iterable[str], failures: Failures) -> list[str]:
    """The paths and URLs of all images that `arguments` stand for, in their order.

    Args:
        arguments: each a file; a folder, searched with its subfolders in alphabetical order; a pattern such as
            `"scans/**/*.png"`; an http(s) URL; or `-` for lines of these on stdin.
        failures: gets the arguments that stand for nothing.

    Raises:
        UsageError: no image at all.
    """
    arguments = list(arguments)
    names = []
    for argument in arguments:
        lines = sys.stdin.read().splitlines() if argument == "-" else [argument]
        for line in lines:
            try:
                names += _find(line)
            except OSError as error:
                failures.add(line, error)
    if arguments and not names:
        raise UsageError("There is no image to work on: give files, folders, patterns or URLs of images.")
    return names


def _find(argument: str) -> list[str]:
    if is_url(argument):
        return [argument]
    path = os.path.expanduser(argument)
    if os.path.isdir(path):
        if found := list(_images_in(path)):
            return found
        raise OSError("no images in this folder")
    # A file may have a name that reads like a pattern.
    if os.path.exists(path):
        return [path]
    if not glob.has_magic(path):
        raise OSError("no such file or folder")
    matches = sorted(glob.glob(path, recursive=True))
    if found := [match for match in matches if _is_image_file(match)]:
        return found
    raise OSError(f"{len(matches)} matches, none of them an image file" if matches else "nothing matches this pattern")


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def _is_image_file(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(path)


def _images_in(folder: str) -> Iterator[str]:
    """Image files in `folder` and below, without hidden ones."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (os.path.join(parent, name) for name in sorted(files) if not name.startswith("."))
        yield from filter(_is_image_file, paths)


def read_image(name: str) -> Image.Image:
    """The image at a path or URL, as open_clip sees it: in its own colour mode, and not turned as EXIF data may say.

    Raises:
        OSError: it cannot be read, or is not an image. Damaged files make Pillow raise other exceptions as well.
    """
    with _open_url(name) if is_url(name) else Image.open(name) as image:
        image.load()
        return image


def _open_url(url: str) -> Image.Image:
    # A URL may be given as people write it, with spaces and letters of any script. Some servers turn urllib's own name
    # away.
    headers = {"User-Agent": "open-clip-transformers"}
    request = urllib.request.Request(urllib.parse.quote(url, safe=URL_SAFE), headers=headers)
    with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as response:
        return Image.open(BytesIO(response.read()))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold anything, without white space at their ends.

    Raises:
        UsageError: it cannot be read as UTF-8, or holds nothing.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}") from error
    if lines := [line for line in lines if line]:
        return lines
    raise UsageError(f"{path} holds no text: expected one entry a line.")
