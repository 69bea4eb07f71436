// The passes of spectral normalisation over a weight matrix; csrc/spectral_weight.cpp normalises the vectors between them.
#pragma once
#include "isa.h"

namespace i2ifast {

constexpr int64_t kSpectralColumns = 64;  // columns are dealt out in multiples: no sum depends on the number of threads

struct Matrix {
  const float* data;
  int64_t rows, columns;
};

// out[c] = sum over r of u[r] * w[r, c], for columns [begin, end).
I2IFAST_DECLARE(void, spectral_columns, (const Matrix& w, const float* u, float* out, int64_t begin, int64_t end))
// out[r] = sum over c of w[r, c] * v[c], for rows [begin, end); v has `stride` between the rows it multiplies: 0 for one vector.
I2IFAST_DECLARE(void, spectral_rows, (const Matrix& w, const float* v, int64_t stride, double* out, int64_t begin, int64_t end))
// y = w / sigma for rows [begin, end).
I2IFAST_DECLARE(void, spectral_divide, (const Matrix& w, float sigma, float* y, int64_t begin, int64_t end))
// dw[r, c] = (dy[r, c] - along * u[r] * v[c]) / sigma for rows [begin, end).
I2IFAST_DECLARE(void, spectral_gradient,
                (const Matrix& dy, const float* u, const float* v, float along, float sigma, float* dw, int64_t begin, int64_t end))

}  // namespace i2ifast
