#include "spectral_weight.h"

namespace i2ifast {
namespace ISA {
namespace {

constexpr int64_t kSums = 64;  // partial sums of a dot product: enough in flight to hide the latency of an addition

double dot(const float* __restrict a, const float* __restrict b, int64_t n) {
  float sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (int64_t l = 0; l < kSums; ++l) sums[l] += a[i + l] * b[i + l];
  double sum = 0;
  for (int64_t l = 0; l < kSums; ++l) sum += sums[l];
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

void spectral_columns(const Matrix& w, const float* u, float* out, int64_t begin, int64_t end) {
  float* __restrict t = out;
  for (int64_t c = begin; c < end; ++c) t[c] = 0;
  int64_t r = 0;
  for (; r + 4 <= w.rows; r += 4) {
    const float *a = w.data + r * w.columns, *b = a + w.columns, *d = b + w.columns, *e = d + w.columns;
    for (int64_t c = begin; c < end; ++c) t[c] += (u[r] * a[c] + u[r + 1] * b[c]) + (u[r + 2] * d[c] + u[r + 3] * e[c]);
  }
  for (; r < w.rows; ++r)
    for (int64_t c = begin; c < end; ++c) t[c] += u[r] * w.data[r * w.columns + c];
}

void spectral_rows(const Matrix& w, const float* v, int64_t stride, double* out, int64_t begin, int64_t end) {
  // Against the order of the pass before: what that one read last is still cached.
  for (int64_t r = end - 1; r >= begin; --r) out[r] = dot(w.data + r * w.columns, v + r * stride, w.columns);
}

void spectral_divide(const Matrix& w, float sigma, float* y, int64_t begin, int64_t end) {
  const float* __restrict from = w.data;
  float* __restrict to = y;
  for (int64_t i = begin * w.columns; i < end * w.columns; ++i) to[i] = from[i] / sigma;
}

void spectral_gradient(const Matrix& dy, const float* u, const float* v, float along, float sigma, float* dw, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* __restrict from = dy.data + r * dy.columns;
    float* __restrict to = dw + r * dy.columns;
    float scale = 1 / sigma, share = along * u[r] / sigma;
    for (int64_t c = 0; c < dy.columns; ++c) to[c] = from[c] * scale - share * v[c];
  }
}

}  // namespace ISA
}  // namespace i2ifast
