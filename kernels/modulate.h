// Modulation by dense maps (gamma and beta as large as x, stacked along channels) or by a vector per sample, in both layouts.
#pragma once
#include "isa.h"

namespace i2ifast {

constexpr int64_t kPiece = 128;  // channels_last: pixels whose sums are taken in float32 before they are merged in float64

struct Modulate {
  DType dtype;
  bool channels_last, per_sample, dense;
  int64_t n, c, pixels;
  float slope;
  const void *x, *dy;
  const void* gamma_beta;  // dense: gamma, beta [N, 2C, H, W] of x's dtype and layout; else scale, shift float32 [N, 2C]
  const float *mean, *rstd, *means;
  void *y, *dx, *d_gamma_beta;
  // Dense: sums of g and g * xhat; style: of dz and dz * xhat. channels_last: [2, N * pieces, C]; else [2, N, C].
  float* partial;
  int64_t pieces;  // channels_last: ceil(pixels / kPiece) per sample
};

// Items: rows of kPiece pixels (channels_last) or planes.
I2IFAST_DECLARE(void, modulate_forward, (const Modulate& p, int64_t begin, int64_t end))
I2IFAST_DECLARE(void, modulate_sums, (const Modulate& p, int64_t begin, int64_t end))
I2IFAST_DECLARE(void, modulate_dx, (const Modulate& p, int64_t begin, int64_t end))

}  // namespace i2ifast
