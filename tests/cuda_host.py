"""CUDA C++ compiled by a C++ compiler for processors, with a few definitions in place of CUDA's; its arithmetic is the same."""

import ctypes
import re
import shutil
import subprocess

import numpy as np

COMPILER = shutil.which("g++") or shutil.which("clang++")

SHIM = """
#include <cmath>
#include <ucontext.h>
using std::cos; using std::exp; using std::expm1; using std::log; using std::sin; using std::sqrt;
#define __device__ static inline
#define __global__
#define __shared__ static
#define __launch_bounds__(n)
struct Index { unsigned int x; };
static thread_local Index blockIdx, threadIdx, blockDim;
typedef unsigned long long Word;
static inline Word __umul64hi(Word a, Word b) { return (Word)(((unsigned __int128)a * b) >> 64); }
extern "C" void place(unsigned int block, unsigned int thread, unsigned int size) { blockIdx.x = block; threadIdx.x = thread; blockDim.x = size; }

// The threads of a block are fibers: each runs until it waits for the others.
static ucontext_t scheduler, fibers[1024];
static char stacks[1024 * 32768];
static bool left[1024];
static void (*body)(void *);
static void *given;
static void fiber() { body(given); left[threadIdx.x] = false; }
template <typename F> static void call(void *f) { (*(F *)f)(); }
static void __syncthreads() { const unsigned int t = threadIdx.x; swapcontext(&fibers[t], &scheduler); }
// Threads of a warp shuffle together: what they hold is laid out, then read.
template <typename V> static V __shfl_xor_sync(unsigned int, V v, int mask) {
    static V slots[1024];
    slots[threadIdx.x] = v;
    __syncthreads();
    const V other = slots[threadIdx.x ^ mask];
    __syncthreads();
    return other;
}
static Word atomicAdd(Word *to, Word more) { const Word before = *to; *to += more; return before; }
static Word atomicCAS(Word *at, Word from, Word to) { const Word before = *at; if (before == from) *at = to; return before; }
static void run_block(unsigned int block, unsigned int size) {
    for (unsigned int t = 0; t < size; t++) {
        getcontext(&fibers[t]);
        fibers[t].uc_stack.ss_sp = &stacks[t * 32768]; fibers[t].uc_stack.ss_size = 32768; fibers[t].uc_link = &scheduler;
        makecontext(&fibers[t], fiber, 0);
        left[t] = true;
    }
    for (bool any = true; any;) {
        any = false;
        for (unsigned int t = 0; t < size; t++)
            if (left[t]) { place(block, t, size); swapcontext(&scheduler, &fibers[t]); any = any || left[t]; }
    }
}
template <typename F> static void run_blocks(unsigned int blocks, unsigned int size, F f) {
    body = call<F>; given = &f;
    for (unsigned int b = 0; b < blocks; b++) run_block(b, size);
}
"""

_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\w+\) )?(\w+)\(([^)]*)\)')


def _wrapper(found):
    """A function that runs all blocks of a kernel."""
    name, parameters = found[1], found[2]
    names = ", ".join(re.findall(r"\w+", p)[-1] for p in parameters.split(","))
    head = f'extern "C" void {name}_blocks(unsigned int blocks, unsigned int size, {parameters})'
    return f"{head} {{ run_blocks(blocks, size, [&] {{ {name}({names}); }}); }}\n"


def compiled(source, folder):
    """The library of a source."""
    wrappers = "".join(map(_wrapper, _KERNEL.finditer(source)))
    (folder / "k.cpp").write_text(f"{SHIM}{source}\n{wrappers}")
    subprocess.run(
        [COMPILER, "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o", folder / "k.so", folder / "k.cpp"], check=True, timeout=600
    )
    return ctypes.CDLL(str(folder / "k.so"))


def run(library, name, grid, block, arguments):
    """A kernel of one axis, one block after the other."""
    getattr(library, f"{name}_blocks")(ctypes.c_uint32(grid[0]), ctypes.c_uint32(block[0]), *map(_argument, arguments))


_NUMBERS = {
    np.uint64: ctypes.c_uint64, np.int64: ctypes.c_int64, np.uint32: ctypes.c_uint32, np.int32: ctypes.c_int32,
    np.float32: ctypes.c_float, np.float64: ctypes.c_double,
}  # fmt: skip


def _argument(a):
    return ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else _NUMBERS[type(a)](a)
