#include "panoptic_upsample.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

template <class T>
void rows_forward(const PanopticUpsample& p, int64_t begin, int64_t end) {
  const T* in = static_cast<const T*>(p.in);
  T* out = static_cast<T*>(p.out);
  for (int64_t i = begin; i < end; ++i)
    if (p.source[i] < 0)
      std::memset(out + i * p.c, 0, p.c * sizeof(T));
    else
      std::memcpy(out + i * p.c, in + (i / p.copied * p.pixels + p.source[i]) * p.c, p.c * sizeof(T));
}

template <class T>
void planes_forward(const PanopticUpsample& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const int32_t* __restrict source = p.source + item / p.c * p.copied;
    const T* __restrict in = static_cast<const T*>(p.in) + item * p.pixels;
    T* __restrict out = static_cast<T*>(p.out) + item * p.copied;
    for (int64_t i = 0; i < p.copied; ++i) {
      float v = load(in[source[i] < 0 ? 0 : source[i]]);
      store(out + i, source[i] < 0 ? 0 : v);
    }
  }
}

// Columns summed at a time: they stay in registers over the whole list.
template <class T, int64_t Columns>
void sum_columns(const PanopticUpsample& p, int64_t q, int64_t c) {
  const T* in = static_cast<const T*>(p.in) + c;
  T* out = static_cast<T*>(p.out) + q * p.c + c;
  float sum[Columns] = {};
  for (int64_t i = p.offsets[q]; i < p.offsets[q + 1]; ++i)
    for (int64_t j = 0; j < Columns; ++j) sum[j] += load(in[p.copies[i] * p.c + j]);
  for (int64_t j = 0; j < Columns; ++j) store(out + j, sum[j]);
}

template <class T>
void rows_dx(const PanopticUpsample& p, int64_t begin, int64_t end) {
  for (int64_t q = begin; q < end; ++q) {
    int64_t c = 0;
    for (; c + 64 <= p.c; c += 64) sum_columns<T, 64>(p, q, c);
    for (; c + 16 <= p.c; c += 16) sum_columns<T, 16>(p, q, c);
    for (; c < p.c; ++c) sum_columns<T, 1>(p, q, c);
  }
}

template <class T>
void planes_dx(const PanopticUpsample& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    int64_t sample = item / p.c;
    const int32_t* offsets = p.offsets + sample * p.pixels;
    // Copies are numbered through the batch.
    const T* in = static_cast<const T*>(p.in) + (item - sample) * p.copied;
    T* out = static_cast<T*>(p.out) + item * p.pixels;
    for (int64_t q = 0; q < p.pixels; ++q) {
      float sum = 0;
      for (int64_t i = offsets[q]; i < offsets[q + 1]; ++i) sum += load(in[p.copies[i]]);
      store(out + q, sum);
    }
  }
}

}  // namespace

void panoptic_upsample(const PanopticUpsample& p, int64_t begin, int64_t end) {
  if (p.channels_last)
    p.dtype == DType::f32 ? rows_forward<float>(p, begin, end) : rows_forward<bf16>(p, begin, end);
  else
    p.dtype == DType::f32 ? planes_forward<float>(p, begin, end) : planes_forward<bf16>(p, begin, end);
}

void panoptic_upsample_dx(const PanopticUpsample& p, int64_t begin, int64_t end) {
  if (p.channels_last)
    p.dtype == DType::f32 ? rows_dx<float>(p, begin, end) : rows_dx<bf16>(p, begin, end);
  else
    p.dtype == DType::f32 ? planes_dx<float>(p, begin, end) : planes_dx<bf16>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
