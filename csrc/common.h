// What every op of the CPU library shares: the stable-ABI tensor, its checks, and dtype and layout as kernels want them.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "../kernels/isa.h"

namespace i2ifast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::BFloat16, "expected float32 or bfloat16");
  return t.scalar_type() == ScalarType::Float ? DType::f32 : DType::bf16;
}

// x is dense, contiguous or channels_last; a tensor that is both counts as contiguous. Strides of size-1 dimensions mean nothing.
inline bool channels_last(const Tensor& x) {
  if (x.is_contiguous()) return false;
  int64_t c = x.size(1), w = x.size(3);
  auto lies = [&](int64_t dim, int64_t stride) { return x.size(dim) == 1 || x.stride(dim) == stride; };
  STD_TORCH_CHECK(lies(1, 1) && lies(3, c) && lies(2, c * w) && lies(0, c * w * x.size(2)), "x is neither contiguous nor channels_last");
  return true;
}

inline const float* floats(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous(), name, ": expected contiguous float32");
  return static_cast<const float*>(t.data_ptr());
}

// Memory that is about to be written. Much of it is fresh from the system: with huge pages, where it grants them, the first write to
// each of 512 pages costs one fault (a fifth of the time of a 512x512 generator went into faults).
inline void* about_to_write(void* data, uintptr_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = 4096, worthwhile = 4 << 20;
  uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  if (bytes >= worthwhile) madvise(reinterpret_cast<void*>(begin), (bytes - page) / page * page, MADV_HUGEPAGE);
#endif
  return data;
}

inline void* output(const Tensor& t) {
  uintptr_t bytes = t.numel() > 0 ? t.element_size() : 0;
  for (int64_t dim = 0; bytes > 0 && dim < t.dim(); ++dim) bytes += (t.size(dim) - 1) * t.stride(dim) * t.element_size();
  return about_to_write(t.data_ptr(), bytes);
}

struct Free {
  void operator()(float* p) const { std::free(p); }
};

// Room for as many floats, which hold anything.
inline std::unique_ptr<float, Free> scratch(int64_t floats) {
  constexpr int64_t line = 64, huge = 2 << 20;
  int64_t bytes = floats * 4, unit = bytes >= huge ? huge : line;
  bytes = (bytes + unit - 1) / unit * unit;
  return std::unique_ptr<float, Free>(static_cast<float*>(about_to_write(std::aligned_alloc(unit, bytes), bytes)));
}

inline float* mutable_floats(const Tensor& t, const char* name) {
  floats(t, name);
  return static_cast<float*>(output(t));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Enough work per thread that starting one pays.
constexpr int64_t kGrain = 1 << 14;
inline int64_t grain(int64_t elements_per_item) { return ceil_div(kGrain, elements_per_item > 0 ? elements_per_item : 1); }

}  // namespace i2ifast
