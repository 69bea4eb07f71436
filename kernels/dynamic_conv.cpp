#include "dynamic_conv.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Weights may be `Step` apart: 9 where the taps of a channel are adjacent.
template <int Step, class T>
inline void add_products(const T* __restrict a, const T* __restrict b, float* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += load(a[i]) * load(b[i * Step]);
}

// y[p] = sum of x[p + t] w[t][p]. Its adjoint, dx[p] = sum of dy[p + t] w[8 - t][p + t], has the weight of where it reads.
template <class T, bool Adjoint, int Step>
void rows_sum(const DynamicConv& p, int64_t begin, int64_t end) {
  const T* source = static_cast<const T*>(Adjoint ? p.dy : p.x);
  for (int64_t item = begin; item < end; ++item) {
    int64_t sample = item / p.h, i = item % p.h;
    const T* image = source + sample * p.h * p.w * p.c;
    const T* weight = static_cast<const T*>(p.weight) + sample * p.sample;
    for (int64_t j = 0; j < p.w; ++j)
      for (int64_t c = 0; c < p.c; c += kBlock) {
        int64_t n = least(p.c - c, kBlock);
        float sum[kBlock] = {};
        for (int64_t t = 0; t < 9; ++t) {
          int64_t row = i + t / 3 - 1, column = j + t % 3 - 1, there = row * p.w + column;
          if (row < 0 || row >= p.h || column < 0 || column >= p.w) continue;
          const T* w = weight + (Adjoint ? (8 - t) * p.tap + there * p.pixel : t * p.tap + (i * p.w + j) * p.pixel) + c * Step;
          add_products<Step>(image + there * p.c + c, w, sum, n);
        }
        T* out = static_cast<T*>(p.out) + (item * p.w + j) * p.c + c;
        for (int64_t k = 0; k < n; ++k) store(out + k, sum[k]);
      }
  }
}

template <class T, bool Adjoint>
void planes_sum(const DynamicConv& p, int64_t begin, int64_t end) {
  constexpr int64_t kRun = 512;
  for (int64_t item = begin; item < end; ++item) {
    const T* plane = static_cast<const T*>(Adjoint ? p.dy : p.x) + item * p.h * p.w;
    const T* weight = static_cast<const T*>(p.weight) + item / p.c * p.sample + item % p.c * p.channel;
    for (int64_t i = 0; i < p.h; ++i)
      for (int64_t j = 0; j < p.w; j += kRun) {
        int64_t n = least(p.w - j, kRun);
        float sum[kRun] = {};
        for (int64_t t = 0; t < 9; ++t) {
          int64_t row = i + t / 3 - 1, shift = t % 3 - 1;
          if (row < 0 || row >= p.h) continue;
          int64_t first = most(j, -shift), last = least(j + n, p.w - shift), there = row * p.w + shift;
          const T* w = weight + (Adjoint ? (8 - t) * p.tap + there : t * p.tap + i * p.w);
          if (first < last) add_products<1>(plane + there + first, w + first, sum + first - j, last - first);
        }
        T* out = static_cast<T*>(p.out) + (item * p.h + i) * p.w + j;
        for (int64_t k = 0; k < n; ++k) store(out + k, sum[k]);
      }
  }
}

template <int Step, class T>
inline void products(const T* __restrict a, const T* __restrict b, T* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(out + i * Step, load(a[i]) * load(b[i]));
}

template <int Step, class T>
inline void zeros(T* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(out + i * Step, 0.0f);
}

template <class T, int Step>
void rows_dweight(const DynamicConv& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    int64_t sample = item / p.h, i = item % p.h;
    const T* image = static_cast<const T*>(p.x) + sample * p.h * p.w * p.c;
    for (int64_t j = 0; j < p.w; ++j) {
      const T* dy = static_cast<const T*>(p.dy) + (item * p.w + j) * p.c;
      T* out = static_cast<T*>(p.out) + sample * p.sample + (i * p.w + j) * p.pixel;
      for (int64_t t = 0; t < 9; ++t) {
        int64_t row = i + t / 3 - 1, column = j + t % 3 - 1;
        if (row < 0 || row >= p.h || column < 0 || column >= p.w)
          zeros<Step>(out + t * p.tap, p.c);
        else
          products<Step>(image + (row * p.w + column) * p.c, dy, out + t * p.tap, p.c);
      }
    }
  }
}

template <class T>
void planes_dweight(const DynamicConv& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const T *plane = static_cast<const T*>(p.x) + item * p.h * p.w, *dy = static_cast<const T*>(p.dy) + item * p.h * p.w;
    T* weight = static_cast<T*>(p.out) + item / p.c * p.sample + item % p.c * p.channel;
    for (int64_t i = 0; i < p.h; ++i)
      for (int64_t t = 0; t < 9; ++t) {
        int64_t row = i + t / 3 - 1, shift = t % 3 - 1;
        bool inside = row >= 0 && row < p.h;
        int64_t first = inside ? most(0, -shift) : p.w, last = inside ? most(first, least(p.w, p.w - shift)) : p.w;
        T* out = weight + t * p.tap + i * p.w;
        zeros<1>(out, first);
        if (first < last) products<1>(plane + row * p.w + shift + first, dy + i * p.w + first, out + first, last - first);
        zeros<1>(out + last, p.w - last);
      }
  }
}

template <bool Adjoint, class T>
void sum(const DynamicConv& p, int64_t begin, int64_t end) {
  if (!p.channels_last)
    planes_sum<T, Adjoint>(p, begin, end);
  else
    p.channel == 1 ? rows_sum<T, Adjoint, 1>(p, begin, end) : rows_sum<T, Adjoint, 9>(p, begin, end);
}

template <class T>
void dweight(const DynamicConv& p, int64_t begin, int64_t end) {
  if (!p.channels_last)
    planes_dweight<T>(p, begin, end);
  else
    p.channel == 1 ? rows_dweight<T, 1>(p, begin, end) : rows_dweight<T, 9>(p, begin, end);
}

}  // namespace

void dynamic_conv_forward(const DynamicConv& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? sum<false, float>(p, begin, end) : sum<false, bf16>(p, begin, end);
}

void dynamic_conv_dx(const DynamicConv& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? sum<true, float>(p, begin, end) : sum<true, bf16>(p, begin, end);
}

void dynamic_conv_dweight(const DynamicConv& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? dweight<float>(p, begin, end) : dweight<bf16>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
