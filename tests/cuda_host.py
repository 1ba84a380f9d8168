"""CUDA C++ compiled by a C++ compiler for processors, with a few definitions in place of CUDA's; its arithmetic is the same."""

import ctypes
import shutil
import subprocess

import numpy as np

COMPILER = shutil.which("g++") or shutil.which("clang++")

SHIM = """
#include <cmath>
using std::cos; using std::log; using std::sin; using std::sqrt;
#define __device__ static inline
#define __global__
struct Index { unsigned int x; };
static thread_local Index blockIdx, threadIdx, blockDim;
typedef unsigned long long Word;
static inline Word __umul64hi(Word a, Word b) { return (Word)(((unsigned __int128)a * b) >> 64); }
extern "C" void place(unsigned int block, unsigned int thread, unsigned int size) { blockIdx.x = block; threadIdx.x = thread; blockDim.x = size; }
"""


def compiled(source, folder):
    """The library of a source."""
    (folder / "k.cpp").write_text(SHIM + source)
    subprocess.run(
        [COMPILER, "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o", folder / "k.so", folder / "k.cpp"], check=True, timeout=600
    )
    return ctypes.CDLL(str(folder / "k.so"))


def run(library, name, grid, block, arguments):
    """A kernel of one axis, one thread after the other."""
    function = getattr(library, name)
    given = [_argument(a) for a in arguments]
    for b in range(grid[0]):
        for t in range(block[0]):
            library.place(b, t, block[0])
            function(*given)


_NUMBERS = {
    np.uint64: ctypes.c_uint64, np.int64: ctypes.c_int64, np.uint32: ctypes.c_uint32, np.float32: ctypes.c_float, np.float64: ctypes.c_double,
}  # fmt: skip


def _argument(a):
    return ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else _NUMBERS[type(a)](a)
