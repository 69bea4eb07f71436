// Runs CUDA kernels on the CPU, for their numbers only: blocks one after another, the threads of a block as coroutines that give
// way at __syncthreads. One-dimensional grids, two-dimensional blocks.
#pragma once
#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <vector>

#undef __shared__
#define __shared__ static
#define __launch_bounds__(...)

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static ucontext_t scheduler, *current;
static std::function<void()> thread_body;

using std::min;
template <typename T>
void __stwb(T* to, T value) {
  *to = value;
}
inline void __syncthreads() { swapcontext(current, &scheduler); }

template <typename Kernel, typename... Arguments>
void launch_on_cpu(dim3 grid, dim3 block, Kernel kernel, Arguments... arguments) {
  const unsigned count = block.x * block.y;
  static std::vector<char> stacks(1024 << 15);
  static std::vector<ucontext_t> threads(1024);
  std::vector<char> done(count);
  gridDim = grid, blockDim = block;
  thread_body = [&] {
    kernel(arguments...);
    done[threadIdx.y * blockDim.x + threadIdx.x] = 1;
  };
  for (unsigned b = 0; b < grid.x; ++b) {
    blockIdx = {b, 0, 0};
    std::fill(done.begin(), done.end(), 0);
    for (unsigned i = 0; i < count; ++i) {
      getcontext(&threads[i]);
      threads[i].uc_stack = {stacks.data() + (size_t(i) << 15), 0, 1 << 15};
      threads[i].uc_link = &scheduler;
      makecontext(&threads[i], +[] { thread_body(); }, 0);
    }
    while (std::count(done.begin(), done.end(), 0))
      for (unsigned i = 0; i < count; ++i)
        if (!done[i]) {
          threadIdx = {i % block.x, i / block.x, 0};
          current = &threads[i];
          swapcontext(&scheduler, current);
        }
  }
}
