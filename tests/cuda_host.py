"""CUDA C++ compiled by a C++ compiler for processors, with a few definitions in place of CUDA's; its arithmetic is the same."""

import ctypes
import shutil
import subprocess
import threading

import numpy as np

COMPILER = shutil.which("g++") or shutil.which("clang++")

SHIM = """
#include <cmath>
#include <pthread.h>
using std::cos; using std::exp; using std::expm1; using std::log; using std::sin; using std::sqrt;
#define __device__ static inline
#define __global__
#define __shared__ static
static pthread_barrier_t barrier;
extern "C" void expect(unsigned int threads) { pthread_barrier_init(&barrier, nullptr, threads); }
extern "C" void meet() { pthread_barrier_wait(&barrier); }
#define __syncthreads() meet()
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
    library = ctypes.CDLL(str(folder / "k.so"))
    library.meets = "__syncthreads" in source
    return library


def run(library, name, grid, block, arguments):
    """A kernel of one axis: one thread after the other, and at once where they wait for each other."""
    function = getattr(library, name)
    given = [_argument(a) for a in arguments]
    if library.meets:
        _at_once(library, function, grid, block, given)
        return
    for b in range(grid[0]):
        for t in range(block[0]):
            library.place(b, t, block[0])
            function(*given)


def _at_once(library, function, grid, block, given):
    """One block after the other, a thread for each of its threads: what they share is one memory, as in a block."""
    library.expect(block[0])

    def thread(t):
        for b in range(grid[0]):
            library.place(b, t, block[0])
            function(*given)
            library.meet()

    threads = [threading.Thread(target=thread, args=(t,)) for t in range(block[0])]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


_NUMBERS = {
    np.uint64: ctypes.c_uint64, np.int64: ctypes.c_int64, np.uint32: ctypes.c_uint32, np.int32: ctypes.c_int32,
    np.float32: ctypes.c_float, np.float64: ctypes.c_double,
}  # fmt: skip


def _argument(a):
    return ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else _NUMBERS[type(a)](a)
