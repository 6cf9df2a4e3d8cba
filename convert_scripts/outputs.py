"""Files and folders that are there once they are whole.

A folder is written under another name, beside its place or in the empty folder that is there, and locked meanwhile; a
file in such a folder. What a killed process left under that name has no lock, and is swept by the next one that writes
to the same place.
"""

import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .common import ConversionError, user_path


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# The end of the name of a folder that is being written, and a file in it that nobody else would put there.
UNFINISHED = ".open_clip_transformers"
MARKER = ".unfinished"
# The file by which a folder is known as a model's, and which comes last.
CONFIG_NAME = "config.json"
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Let signals that end the process raise `SystemExit` in here, so that what is half written can be removed.

    Signals that somebody handles or ignores are left to them.
    """
    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in _SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, _frame):
    signal.signal(number, signal.SIG_IGN)  # while cleaning up
    raise SystemExit(128 + number)


def write_files(folder: Path, files: Mapping[str, str]):
    """Write text files in their order, each so that it is there as a whole or as it was before."""
    for name, content in files.items():
        with written_whole(folder / name) as temporary:
            temporary.write_bytes(content.encode())


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, in a folder beside `path`, whose file moves there once it is whole.

    Raises:
        ConversionError: another process is writing `path`.
        OSError: there is no folder to write to, or it cannot be written.
    """
    folder = path.with_name(f".{path.name}{UNFINISHED}")
    with ending_cleanly(), _claimed(folder, path):
        try:
            yield folder / path.name
            (folder / path.name).replace(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_output(output: Path):
    """Raise `ConversionError` where no new folder can be written to `output`, or another process is writing it."""
    place = _resolved(output)
    unfinished = _unfinished(place)
    parent = next(path for path in (place, *place.parents) if path.exists())
    if place.exists() and not (place.is_dir() and {*os.listdir(place)} <= {unfinished.name}):
        raise ConversionError(f"{output} exists and is not an empty folder: give another output, or move it away.")
    if not parent.is_dir():
        raise ConversionError(f"{output} cannot be written: {parent} is not a folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConversionError(f"{output} cannot be written: {parent} is a folder that cannot be written to.")
    if os.path.lexists(unfinished):
        with _locked(unfinished, output):
            pass


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder of another name that becomes `output` at the end, or vanishes where anything fails.

    Raises:
        ConversionError: `output` is a file, a folder that holds something, or being written by another process.
    """
    check_output(output)
    place = _resolved(output)
    folder = _unfinished(place)
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    with ending_cleanly(), _claimed(folder, output, parents=True):
        try:
            yield folder
            (folder / MARKER).unlink()
            if folder.parent == place:
                _move_up(folder)
            else:
                folder.rename(place)
        except BaseException:  # an interrupt leaves nothing behind either
            shutil.rmtree(folder, ignore_errors=True)
            for parent in new_parents:
                with suppress(OSError):  # somebody else may have put something there
                    parent.rmdir()
            raise


def _resolved(output: Path) -> Path:
    """The place that `output` means: an absolute path without links."""
    try:
        return user_path(output).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, or a name that no file can have
        raise ConversionError(f"{output} cannot be written: {error}") from error


def _unfinished(place: Path) -> Path:
    """The folder to write to. In a folder that is there, which may be where a shell stands, or a mounted disk."""
    return (place if place.is_dir() else place.parent) / f".{place.name}{UNFINISHED}"


@contextmanager
def _claimed(folder: Path, output: Path, parents: bool = False) -> Iterator[None]:
    """Make `folder`, or empty what a killed process left of it, and keep it locked in here."""
    if parents:
        folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir()
    with _locked(folder, output):
        for path in folder.iterdir():
            _remove(path)
        try:
            (folder / MARKER).write_text("Of open_clip_transformers, which writes here, or was killed as it did.\n")
        except OSError:  # no space left
            shutil.rmtree(folder, ignore_errors=True)
            raise
        yield


@contextmanager
def _locked(folder: Path, output: Path) -> Iterator[None]:
    """Lock a folder that is ours in here. The lock ends with the process, however that ends.

    Raises:
        ConversionError: another process holds it, or it is nothing of ours.
    """
    with ExitStack() as stack:
        try:
            is_free = fcntl is not None and _lock(folder, stack)
        except (BlockingIOError, FileNotFoundError) as error:
            raise ConversionError(
                f"{output} is being written by another process: wait for it, or give another output."
            ) from error
        except NotADirectoryError:  # a file, or a link
            is_free = False
        names = os.listdir(folder) if folder.is_dir() else [folder.name]
        if names and not (is_free and MARKER in names):
            raise ConversionError(
                f"{output} cannot be written: {folder} is in the way. Move it away, if no other process is writing it."
            )
        yield


def _lock(folder: Path, stack: ExitStack) -> bool:
    """Whether `folder` can be locked at all; it then is, until `stack` ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False
    if not os.path.samestat(os.fstat(descriptor), os.stat(folder)):
        raise FileNotFoundError(folder)  # its writer has just finished
    return True


def _move_up(folder: Path):
    """Move what is in `folder` to its parent, all or nothing, and remove it."""
    moved = []
    try:
        for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG_NAME):
            moved.append(path.rename(folder.parent / path.name))
        folder.rmdir()
    except BaseException:
        for path in moved:
            _remove(path)
        raise


def _remove(path: Path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
