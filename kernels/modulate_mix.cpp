#include "modulate_mix.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

constexpr int64_t kRun = 128;   // pixels summed in float32 before they go into float64
constexpr int64_t kPixels = 4;  // pixels, or rows of the table, that share a load of the other

// Sixteen lanes that the compiler keeps in registers, whatever the instruction set makes of them.
typedef float Lanes __attribute__((vector_size(kMixLanes * sizeof(float))));

inline void get_all(const float* p, Lanes& v) { std::memcpy(&v, p, sizeof(v)); }
inline void get_all(const bf16* p, Lanes& v) {
  for (int64_t l = 0; l < kMixLanes; ++l) v[l] = load(p[l]);
}
inline void put_all(float* p, const Lanes& v) { std::memcpy(p, &v, sizeof(v)); }
inline void put_all(bf16* p, const Lanes& v) {
  for (int64_t l = 0; l < kMixLanes; ++l) store(p + l, v[l]);
}

// The first n lanes; zeros behind them.
template <class T>
inline void get(const T* p, int64_t n, Lanes& v) {
  if (n == kMixLanes) return get_all(p, v);
  T full[kMixLanes] = {};
  std::memcpy(full, p, n * sizeof(T));
  get_all(full, v);
}
template <class T>
inline void put(T* p, int64_t n, const Lanes& v) {
  if (n == kMixLanes) return put_all(p, v);
  T full[kMixLanes];
  put_all(full, v);
  std::memcpy(p, full, n * sizeof(T));
}

// Calls f(c, count) for each 16 channels, and for what is left of them.
template <class F>
inline void each_lanes(int64_t n, F f) {
  int64_t c = 0;
  for (; c + kMixLanes <= n; c += kMixLanes) f(c, kMixLanes);
  if (c < n) f(c, n - c);
}

// P pixels of one sample.
template <class T, int P>
void mix(const ModulateMix& p, int64_t at) {
  const float *weights = p.weights + at * p.k, *weights2 = p.weights2 + at * p.k, *table = p.table + at / p.pixels * p.k * 2 * p.c;
  each_lanes(p.c, [&](int64_t c, int64_t n) {
    Lanes scale[P] = {}, shift[P] = {};
    for (int64_t k = 0; k < p.k; ++k) {
      Lanes a, b;
      get(table + k * 2 * p.c + c, n, a), get(table + k * 2 * p.c + p.c + c, n, b);
      for (int q = 0; q < P; ++q) {
        scale[q] += weights[q * p.k + k] * a;
        shift[q] += weights2[q * p.k + k] * b;
      }
    }
    for (int q = 0; q < P; ++q) {
      Lanes x;
      get(static_cast<const T*>(p.u) + (at + q) * p.c + c, n, x);
      put(static_cast<T*>(p.y) + (at + q) * p.c + c, n, x * scale[q] + shift[q]);
    }
  });
}

// Sums over `count` pixels of one sample of R rows of weights, for 16 channels.
template <class T, int R>
void sums(const ModulateMix& p, int64_t at, int64_t count, int64_t k, int64_t c, int64_t n, double* scratch) {
  const float *weights = p.weights + at * p.k + k, *weights2 = p.weights2 + at * p.k + k;
  const T *u = static_cast<const T*>(p.u) + at * p.c + c, *v = static_cast<const T*>(p.v) + at * p.c + c;
  Lanes sum[R] = {}, sum2[R] = {};
  for (int64_t i = 0; i < count; ++i) {
    Lanes one, product;
    get(u + i * p.c, n, one), get(v + i * p.c, n, product);
    product *= one;
    for (int r = 0; r < R; ++r) {
      sum[r] += weights[i * p.k + r] * product;
      sum2[r] += weights2[i * p.k + r] * one;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int64_t l = 0; l < kMixLanes; ++l) {
      scratch[((k + r) * 2) * kMixLanes + l] += sum[r][l];
      scratch[((k + r) * 2 + 1) * kMixLanes + l] += sum2[r][l];
    }
}

template <class T>
void sums(const ModulateMix& p, double* scratch, int64_t item) {
  int64_t blocks = (p.c + kMixLanes - 1) / kMixLanes, sample = item / blocks, c = item % blocks * kMixLanes;
  int64_t n = p.c - c < kMixLanes ? p.c - c : kMixLanes;
  std::memset(scratch, 0, p.k * 2 * kMixLanes * sizeof(double));
  for (int64_t i = 0; i < p.pixels; i += kRun) {
    int64_t count = p.pixels - i < kRun ? p.pixels - i : kRun, at = sample * p.pixels + i, k = 0;
    for (; k + 8 <= p.k; k += 8) sums<T, 8>(p, at, count, k, c, n, scratch);
    for (; k < p.k; ++k) sums<T, 1>(p, at, count, k, c, n, scratch);
  }
  for (int64_t k = 0; k < p.k; ++k)
    for (int64_t l = 0; l < n; ++l) {
      float* out = p.sums + (sample * p.k + k) * 2 * p.c + c + l;
      out[0] = static_cast<float>(scratch[k * 2 * kMixLanes + l]);
      out[p.c] = static_cast<float>(scratch[(k * 2 + 1) * kMixLanes + l]);
    }
}

// P pixels of one sample: lanes are rows of the table, which is transposed for it.
template <class T, int P>
void dots(const ModulateMix& p, int64_t at) {
  int64_t padded = (p.k + kMixLanes - 1) / kMixLanes * kMixLanes;
  const float *a = p.table + at / p.pixels * 2 * p.c * padded, *b = a + p.c * padded;
  const T *u = static_cast<const T*>(p.u) + at * p.c, *v = static_cast<const T*>(p.v) + at * p.c;
  each_lanes(p.k, [&](int64_t k, int64_t n) {
    Lanes dot[P] = {}, dot2[P] = {};
    for (int64_t c = 0; c < p.c; ++c) {
      Lanes row, row2;
      get_all(a + c * padded + k, row), get_all(b + c * padded + k, row2);
      for (int q = 0; q < P; ++q) {
        float one = load(u[q * p.c + c]);
        dot[q] += one * load(v[q * p.c + c]) * row;
        dot2[q] += one * row2;
      }
    }
    for (int q = 0; q < P; ++q) {
      float* out = p.dots + (at + q) * 2 * p.k + k;
      put(out, n, dot[q]);
      put(out + p.k, n, dot2[q]);
    }
  });
}

// Groups of pixels that are of one sample.
template <class F, class G>
void grouped(const ModulateMix& p, int64_t begin, int64_t end, F several, G single) {
  for (int64_t i = begin; i < end;) {
    int64_t last = (i / p.pixels + 1) * p.pixels;
    last = last < end ? last : end;
    for (; i + kPixels <= last; i += kPixels) several(i);
    for (; i < last; ++i) single(i);
  }
}

template <class T>
void mix_of(const ModulateMix& p, int64_t begin, int64_t end) {
  grouped(p, begin, end, [&](int64_t i) { mix<T, kPixels>(p, i); }, [&](int64_t i) { mix<T, 1>(p, i); });
}

template <class T>
void dots_of(const ModulateMix& p, int64_t begin, int64_t end) {
  grouped(p, begin, end, [&](int64_t i) { dots<T, kPixels>(p, i); }, [&](int64_t i) { dots<T, 1>(p, i); });
}

}  // namespace

void mix_rows(const ModulateMix& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? mix_of<float>(p, begin, end) : mix_of<bf16>(p, begin, end);
}

void mix_sums(const ModulateMix& p, double* scratch, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) p.dtype == DType::f32 ? sums<float>(p, scratch, item) : sums<bf16>(p, scratch, item);
}

void mix_dots(const ModulateMix& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? dots_of<float>(p, begin, end) : dots_of<bf16>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
