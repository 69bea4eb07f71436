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

// Columns summed at a time: they stay in registers over the whole list.
template <class T, int64_t Columns>
void add_columns(const PanopticRows& p, int64_t s, int64_t c) {
  T* __restrict out = static_cast<T*>(p.out) + p.sources[s] * p.width + c;
  const T* in = static_cast<const T*>(p.in) + c;
  float sum[Columns];
  for (int64_t j = 0; j < Columns; ++j) sum[j] = load(out[j]);
  for (int64_t i = p.offsets[s]; i < p.offsets[s + 1]; ++i) {
    const T* row = in + p.members[i] * p.width;
    for (int64_t j = 0; j < Columns; ++j) sum[j] += load(row[j]);
  }
  for (int64_t j = 0; j < Columns; ++j) store(out + j, sum[j]);
}

template <class T>
void add(const PanopticRows& p, int64_t begin, int64_t end) {
  for (int64_t s = begin; s < end; ++s) {
    int64_t c = 0;
    for (; c + 64 <= p.width; c += 64) add_columns<T, 64>(p, s, c);
    for (; c + 16 <= p.width; c += 16) add_columns<T, 16>(p, s, c);
    for (; c < p.width; ++c) add_columns<T, 1>(p, s, c);
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
