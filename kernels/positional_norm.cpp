#include "positional_norm.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

// Kernels see kPixels pixels of a sample at a time: value c of pixel i lies at i * row + c * plane, its gamma at i * map_row + c * plane
// and its beta `to_beta` behind it. One of row and plane is 1.
template <class T>
struct Block {
  const T *x, *dy, *gamma, *beta;
  T *y, *dx, *dgamma, *dbeta;
  int64_t count, row, map_row, plane;
  Block(const PositionalNorm& p, int64_t item) {
    int64_t items = (p.pixels + kPixels - 1) / kPixels, sample = item / items, first = item % items * kPixels;
    count = p.pixels - first < kPixels ? p.pixels - first : kPixels;
    row = p.channels_last ? p.c : 1, map_row = p.channels_last ? 2 * p.c : 1, plane = p.channels_last ? 1 : p.pixels;
    int64_t at = sample * p.c * p.pixels + first * row, map = sample * 2 * p.c * p.pixels + first * map_row;
    int64_t to_beta = p.c * plane;
    x = static_cast<const T*>(p.x) + at, dy = static_cast<const T*>(p.dy) + at;
    y = static_cast<T*>(p.y) + at, dx = static_cast<T*>(p.dx) + at;
    gamma = static_cast<const T*>(p.gamma_beta) + map, beta = gamma + to_beta;
    dgamma = static_cast<T*>(p.d_gamma_beta) + map, dbeta = dgamma + to_beta;
  }
};

// A pixel's deviations are (x - centre) - offset: the centre is its mean up to rounding, the offset is that rounding.
inline float rstd_of(float squares, float rest, int64_t c, float eps) {
  float var = (squares - rest * rest / c) / (c > 1 ? c - 1 : 1);
  return 1 / __builtin_sqrtf((var < 0 ? 0 : var) + eps);
}

template <bool Dense, class T>
inline float scale_of(const T* gamma, int64_t at) {
  return Dense ? 1 + load(gamma[at]) : 1;
}
template <bool Dense, class T>
inline float shift_of(const T* beta, int64_t at) {
  return Dense ? load(beta[at]) : 0;
}

// channels_last: pixel by pixel, along its row. Sums are made in lanes, so that they vectorise.
template <class Value>
inline float sum_of(int64_t n, Value value) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += value(i + l);
  for (int64_t l = 0; i + l < n; ++l) lanes[l] += value(i + l);
  for (int64_t half = kLanes / 2; half; half /= 2)
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

template <bool Dense, bool Backward, class T>
void rows(const PositionalNorm& p, const Block<T>& b) {
  int64_t n = p.c;
  for (int64_t i = 0; i < b.count; ++i) {
    const T *__restrict x = b.x + i * b.row, *__restrict gamma = b.gamma + i * b.map_row, *__restrict beta = b.beta + i * b.map_row;
    float guess = load(x[0]), centre = guess + sum_of(n, [=](int64_t c) { return load(x[c]) - guess; }) / n;
    float rest = sum_of(n, [=](int64_t c) { return load(x[c]) - centre; });
    float squares = sum_of(n, [=](int64_t c) { return (load(x[c]) - centre) * (load(x[c]) - centre); });
    float offset = rest / n, rstd = rstd_of(squares, rest, n, p.eps), slope = p.slope;
    auto xhat = [=](int64_t c) { return (load(x[c]) - centre - offset) * rstd; };
    auto z = [=](int64_t c) { return xhat(c) * scale_of<Dense>(gamma, c) + shift_of<Dense>(beta, c); };
    if (!Backward) {
      T* __restrict y = b.y + i * b.row;
      for (int64_t c = 0; c < n; ++c) store(y + c, act(z(c), slope));
      continue;
    }
    const T* __restrict dy = b.dy + i * b.row;
    auto dz = [=](int64_t c) { return z(c) > 0 ? load(dy[c]) : load(dy[c]) * slope; };
    auto g = [=](int64_t c) { return dz(c) * scale_of<Dense>(gamma, c); };
    if (Dense) {
      T *__restrict dgamma = b.dgamma + i * b.map_row, *__restrict dbeta = b.dbeta + i * b.map_row;
      for (int64_t c = 0; c < n; ++c) store(dgamma + c, dz(c) * xhat(c)), store(dbeta + c, dz(c));
    }
    float mean = sum_of(n, g) / n, along = sum_of(n, [=](int64_t c) { return g(c) * xhat(c); }) / (n > 1 ? n - 1 : 1);
    T* __restrict dx = b.dx + i * b.row;
    for (int64_t c = 0; c < n; ++c) store(dx + c, rstd * (g(c) - mean - xhat(c) * along));
  }
}

// contiguous: all pixels of the block at once, plane by plane.
struct Pixels {
  float centre[kPixels] = {}, offset[kPixels] = {}, rstd[kPixels] = {}, mean[kPixels] = {}, along[kPixels] = {};
};

template <class T>
inline void add_deviations(const T* __restrict x, const T* __restrict guess, float* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += load(x[i]) - load(guess[i]);
}

template <class T>
inline void add_squares(const T* __restrict x, const float* __restrict centre, float* __restrict rest, float* __restrict squares,
                        int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float d = load(x[i]) - centre[i];
    rest[i] += d;
    squares[i] += d * d;
  }
}

template <bool Dense, class T>
inline void plane_forward(const T* __restrict x, const T* __restrict gamma, const T* __restrict beta, const Pixels& s, T* __restrict y,
                          int64_t n, float slope) {
  for (int64_t i = 0; i < n; ++i) {
    float xhat = (load(x[i]) - s.centre[i] - s.offset[i]) * s.rstd[i];
    store(y + i, act(xhat * scale_of<Dense>(gamma, i) + shift_of<Dense>(beta, i), slope));
  }
}

template <bool Dense, class T>
inline void plane_sums(const T* __restrict dy, const T* __restrict x, const T* __restrict gamma, const T* __restrict beta, const Pixels& s,
                       T* __restrict dgamma, T* __restrict dbeta, float* __restrict mean, float* __restrict along, int64_t n,
                       float slope) {
  for (int64_t i = 0; i < n; ++i) {
    float xhat = (load(x[i]) - s.centre[i] - s.offset[i]) * s.rstd[i], scale = scale_of<Dense>(gamma, i), up = load(dy[i]);
    float dz = xhat * scale + shift_of<Dense>(beta, i) > 0 ? up : up * slope;
    if (Dense) store(dgamma + i, dz * xhat), store(dbeta + i, dz);
    mean[i] += dz * scale;
    along[i] += dz * scale * xhat;
  }
}

template <bool Dense, class T>
inline void plane_dx(const T* __restrict dy, const T* __restrict x, const T* __restrict gamma, const T* __restrict beta, const Pixels& s,
                     T* __restrict dx, int64_t n, float slope) {
  for (int64_t i = 0; i < n; ++i) {
    float xhat = (load(x[i]) - s.centre[i] - s.offset[i]) * s.rstd[i], scale = scale_of<Dense>(gamma, i), up = load(dy[i]);
    float dz = xhat * scale + shift_of<Dense>(beta, i) > 0 ? up : up * slope;
    store(dx + i, s.rstd[i] * (dz * scale - s.mean[i] - xhat * s.along[i]));
  }
}

template <bool Dense, bool Backward, class T>
void planes(const PositionalNorm& p, const Block<T>& b) {
  Pixels s;
  int64_t n = b.count, end = p.c * b.plane;
  for (int64_t at = 0; at < end; at += b.plane) add_deviations(b.x + at, b.x, s.centre, n);
  for (int64_t i = 0; i < n; ++i) s.centre[i] = load(b.x[i]) + s.centre[i] / p.c;
  for (int64_t at = 0; at < end; at += b.plane) add_squares(b.x + at, s.centre, s.offset, s.rstd, n);
  for (int64_t i = 0; i < n; ++i) s.rstd[i] = rstd_of(s.rstd[i], s.offset[i], p.c, p.eps), s.offset[i] /= p.c;
  if (!Backward) {
    for (int64_t at = 0; at < end; at += b.plane)
      plane_forward<Dense>(b.x + at, b.gamma + at, b.beta + at, s, b.y + at, n, p.slope);
    return;
  }
  float mean[kPixels] = {}, along[kPixels] = {};
  for (int64_t at = 0; at < end; at += b.plane)
    plane_sums<Dense>(b.dy + at, b.x + at, b.gamma + at, b.beta + at, s, b.dgamma + at, b.dbeta + at, mean, along, n, p.slope);
  for (int64_t i = 0; i < n; ++i) s.mean[i] = mean[i] / p.c, s.along[i] = along[i] / (p.c > 1 ? p.c - 1 : 1);
  for (int64_t at = 0; at < end; at += b.plane)
    plane_dx<Dense>(b.dy + at, b.x + at, b.gamma + at, b.beta + at, s, b.dx + at, n, p.slope);
}

template <bool Backward, bool Dense, class T>
void blocks(const PositionalNorm& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    Block<T> b(p, item);
    p.channels_last ? rows<Dense, Backward>(p, b) : planes<Dense, Backward>(p, b);
  }
}

template <bool Backward>
void any(const PositionalNorm& p, int64_t begin, int64_t end) {
  bool f32 = p.dtype == DType::f32;
  if (p.gamma_beta)
    f32 ? blocks<Backward, true, float>(p, begin, end) : blocks<Backward, true, bf16>(p, begin, end);
  else
    f32 ? blocks<Backward, false, float>(p, begin, end) : blocks<Backward, false, bf16>(p, begin, end);
}

}  // namespace

void positional_norm_forward(const PositionalNorm& p, int64_t begin, int64_t end) { any<false>(p, begin, end); }
void positional_norm_backward(const PositionalNorm& p, int64_t begin, int64_t end) { any<true>(p, begin, end); }

}  // namespace ISA
}  // namespace i2ifast
