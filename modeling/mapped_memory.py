"""Gives back the memory of weights that lie in a mapped file, which is where safetensors leaves them on the CPU."""

import ctypes
import mmap
from pathlib import Path

import torch


# Linux has a 64-bit entry here for each page. Its three highest bits (Documentation/admin-guide/mm/pagemap.rst): in
# memory, in swap, of a file or shared. A page of a file that was written to is a private copy, and has lost the last.
PAGEMAP = Path("/proc/self/pagemap")
ENTRY_BYTES = 8
IN_FILE = 0b101


def is_in_file(start: int, end: int) -> bool:
    """Whether all memory between two addresses, starts of pages, is what is in a file.

    Not where a page is absent: emulators of other processors answer for addresses that are not the program's.
    """
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
    return bool((states == IN_FILE).all())


def give_back(tensor: torch.Tensor):
    """Gives the memory of a tensor that lies in a file to the system; whoever reads it next gets it from the file.

    That of others stays, and that of tensors of which anything was written to, or is not in memory now. None may be
    written to meanwhile.

    Args:
        tensor: of any shape, dtype and device, usually one that was just read.
    """
    if not (tensor.is_cpu and tensor.is_contiguous()):
        return
    # Pages that it shares with its neighbours are left alone.
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end and is_in_file(start, end):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
