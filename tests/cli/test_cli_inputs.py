"""Finding and reading images and lines of text, without any model."""

import io

import numpy
import pytest
from PIL import Image

from open_clip_transformers._cli_inputs import find_images, read_image, read_lines
from open_clip_transformers._cli_messages import Failures, UsageError


def find(*arguments):
    failures = Failures()
    return find_images([str(argument) for argument in arguments], failures), failures.count


def test_find_images_keeps_the_order_of_the_arguments(images):
    first, second, *_ = images
    assert find(second, first, second) == ([str(second), str(first), str(second)], 0)


def test_find_images_searches_folders_with_their_subfolders(images):
    folder = images[0].parent
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("hidden")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "thumbnail.png").write_text("hidden")
    (folder / "empty.png").mkdir()
    assert find(folder) == ([str(image) for image in images], 0)


@pytest.mark.parametrize(
    ("pattern", "indices"),
    [("*.jpg", [1]), ("**/*", [0, 1, 2, 3, 4]), ("[ab].*", [0, 1]), ("**", [0, 1, 2, 3, 4])],
    ids=["suffix", "subfolders", "characters", "everything"],
)
def test_find_images_expands_patterns(images, pattern, indices):
    folder = images[0].parent
    (folder / "notes.txt").write_text("not an image")
    assert find(folder / pattern) == ([str(images[index]) for index in indices], 0)


def test_find_images_takes_a_file_whose_name_reads_like_a_pattern(images):
    image = images[0].rename(images[0].with_name("photo[1].png"))
    assert find(image) == ([str(image)], 0)


def test_find_images_takes_a_named_file_whatever_its_suffix(tmp_path):
    (tmp_path / "photo.dat").write_bytes(b"")
    assert find(tmp_path / "photo.dat") == ([str(tmp_path / "photo.dat")], 0)


def test_find_images_expands_the_home_folder(images, monkeypatch):
    monkeypatch.setenv("HOME", str(images[0].parent))
    assert find("~/a.png") == ([str(images[0])], 0)


def test_find_images_reads_names_from_stdin(images, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{images[1]}\n{images[0]}\nhttp://localhost/x.png\n"))
    assert find("-") == ([str(images[1]), str(images[0]), "http://localhost/x.png"], 0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.png", "no such file or folder"),
        ("*.gif", "nothing matches this pattern"),
        ("images/*.txt", "1 matches, none of them an image file"),
        ("empty", "no images in this folder"),
    ],
    ids=["path", "pattern", "pattern_of_other_files", "empty_folder"],
)
def test_find_images_reports_what_stands_for_nothing(images, tmp_path, capsys, name, reason):
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    assert find(tmp_path / name, images[0]) == ([str(images[0])], 1)
    assert capsys.readouterr().err == f"{tmp_path / name}: {reason}\n"


def test_find_images_without_any_image_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no image to work on"):
        find(tmp_path / "missing.png")


def test_read_image_does_not_turn_photos_as_open_clip_does_not(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    Image.new("RGB", (31, 17)).save(tmp_path / "photo.jpg", exif=exif)
    assert read_image(str(tmp_path / "photo.jpg")).size == (31, 17)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_read_image_keeps_the_mode(tmp_path, mode):
    """Processors convert to RGB after they have resized, as open_clip does."""
    Image.new(mode, (9, 7)).save(tmp_path / "image.png")
    assert read_image(str(tmp_path / "image.png")).mode == mode


def test_read_image_reads_urls(images, server):
    url = f"{server}/images/c with space.webp"
    assert numpy.array_equal(numpy.asarray(read_image(url)), numpy.asarray(Image.open(images[2])))


def test_read_image_reports_what_the_server_says(server):
    with pytest.raises(OSError, match="404"):
        read_image(f"{server}/missing.png")


def test_read_lines_skips_empty_ones(tmp_path):
    (tmp_path / "labels.txt").write_bytes("\ufeffcat\r\n\n  dog, small  \n".encode())
    assert read_lines(tmp_path / "labels.txt") == ["cat", "dog, small"]


@pytest.mark.parametrize("content", [None, b" \n\n", b"\xff\xfe\x00"], ids=["missing", "empty", "binary"])
def test_read_lines_without_text_is_a_usage_error(tmp_path, content):
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"labels\.txt"):
        read_lines(path)
