"""The heap: freed blocks stay, until they are given back."""

import subprocess
import sys

import pytest

CODE = """
import ctypes, resource
from xft.memory import keep_heap_warm, release_memory
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
BYTES = 24 << 20
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(BYTES)
    ctypes.memset(block, 1, BYTES)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
keep_heap_warm()
faults()
warm = faults()
release_memory()
print(BYTES // resource.getpagesize(), warm, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_a_freed_block_is_used_again_without_faults_until_memory_is_released() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    pages, warm, released = map(int, done.stdout.split())
    assert warm < pages / 10
    assert released > pages / 2
