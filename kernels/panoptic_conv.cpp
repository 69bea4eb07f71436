#include "panoptic_conv.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

// Taps of window b over those that count.
float ratio(const PanopticRows& p, int64_t b) {
  int64_t count = 0;
  for (int64_t t = 0; t < p.taps; ++t) count += p.index[b * p.taps + t] >= 0;
  return static_cast<float>(p.taps) / static_cast<float>(count);
}

template <class T>
void gather(const PanopticRows& p, int64_t begin, int64_t end) {
  const T* in = static_cast<const T*>(p.in);
  T* out = static_cast<T*>(p.out);
  for (int64_t i = begin; i < end; ++i)
    if (p.index[i] < 0)
      std::memset(out + i * p.width, 0, p.width * sizeof(T));
    else
      std::memcpy(out + i * p.width, in + p.index[i] * p.width, p.width * sizeof(T));
}

template <class T>
void put(const PanopticRows& p, int64_t begin, int64_t end) {
  const T* bias = static_cast<const T*>(p.bias);
  for (int64_t b = begin; b < end; ++b) {
    const T* __restrict in = static_cast<const T*>(p.in) + b * p.width;
    T* __restrict out = static_cast<T*>(p.out) + p.at[b] * p.width;
    float factor = ratio(p, b);
    for (int64_t c = 0; c < p.width; ++c) store(out + c, load(in[c]) * factor + (bias ? load(bias[c]) : 0));
  }
}

template <class T>
void take(const PanopticRows& p, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const T* __restrict in = static_cast<const T*>(p.in) + p.at[b] * p.width;
    T* __restrict out = static_cast<T*>(p.out) + b * p.width;
    float factor = ratio(p, b);
    for (int64_t c = 0; c < p.width; ++c) store(out + c, load(in[c]) * factor);
  }
}

template <class T>
void add(const PanopticRows& p, int64_t begin, int64_t end) {
  int64_t first = begin * kPanopticBlock, last = end * kPanopticBlock < p.width ? end * kPanopticBlock : p.width;
  for (int64_t i = 0; i < p.windows * p.taps; ++i) {
    if (p.index[i] < 0) continue;
    const T* __restrict in = static_cast<const T*>(p.in) + i * p.width;
    float* __restrict out = static_cast<float*>(p.out) + p.index[i] * p.width;
    for (int64_t c = first; c < last; ++c) out[c] += load(in[c]);
  }
}

}  // namespace

void panoptic_gather(const PanopticRows& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? gather<float>(p, begin, end) : gather<bf16>(p, begin, end);
}

void panoptic_put(const PanopticRows& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? put<float>(p, begin, end) : put<bf16>(p, begin, end);
}

void panoptic_take(const PanopticRows& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? take<float>(p, begin, end) : take<bf16>(p, begin, end);
}

void panoptic_add(const PanopticRows& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? add<float>(p, begin, end) : add<bf16>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
