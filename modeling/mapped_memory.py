"""Gives back the memory of weights that lie in a mapped file, which is where safetensors leaves them on the CPU."""

import ctypes
import mmap
from pathlib import Path

import torch


# Linux has a 64-bit entry here for each page. Its three highest bits (Documentation/admin-guide/mm/pagemap.rst): in
# memory, in swap, of a file or shared. A page of a file that was written to is a private copy, and has lost the last.
PAGEMAP = Path("/proc/self/pagemap")
ENTRY_BYTES = 8
ABSENT, IN_FILE = 0b000, 0b101


def is_in_file(start: int, end: int) -> bool:
    """Whether all pages from one address to another can be had again: they are what is in a file, or not in memory."""
    length = (end - start) // mmap.PAGESIZE * ENTRY_BYTES
    try:
        with PAGEMAP.open("rb") as pagemap:
            pagemap.seek(start // mmap.PAGESIZE * ENTRY_BYTES)
            entries = bytearray(pagemap.read(length))
    except OSError:
        return False
    if len(entries) < length:
        return False
    states = torch.frombuffer(entries, dtype=torch.int64) >> 61 & 0b111
    return bool(((states == IN_FILE) | (states == ABSENT)).all())


def give_back(tensor: torch.Tensor):
    """Gives the memory of a tensor that lies in a file to the system; whoever reads it next gets it from the file.

    That of others stays, and that of tensors that were written to. None may be written to meanwhile.
    """
    if not tensor.is_cpu:
        return
    # Pages that it shares with its neighbours are left alone.
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end and is_in_file(start, end):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
