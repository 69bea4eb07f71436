// Normalisation of every pixel over its channels and modulation by dense maps, in both layouts.
#pragma once
#include "isa.h"

namespace i2ifast {

constexpr int64_t kPixels = 64;  // of an item

struct PositionalNorm {
  DType dtype;
  bool channels_last;
  int64_t n, c, pixels;
  float eps, slope;
  const void *x, *dy;
  const void* gamma_beta;  // gamma, beta [N, 2C, H, W] of x's dtype and layout; null: both are 0
  void *y, *dx, *d_gamma_beta;
};

// Items: kPixels pixels of one sample.
I2IFAST_DECLARE(void, positional_norm_forward, (const PositionalNorm& p, int64_t begin, int64_t end))
I2IFAST_DECLARE(void, positional_norm_backward, (const PositionalNorm& p, int64_t begin, int64_t end))

}  // namespace i2ifast
