// Products of the rows of an image, channels_last, with soft weights per pixel and a table of K rows (A, B) per sample.
#pragma once
#include "isa.h"

namespace i2ifast {

struct ModulateMix {
  DType dtype;
  int64_t pixels, c, k;             // of a sample
  const void *u, *v;                // [N, pixels, C]; mix: u is x
  const float *weights, *weights2;  // [N, pixels, K]
  const float* table;               // mix: [N, K, 2C]; dots: [N, 2, C, padded K], zeros behind K
  void* y;                          // mix: u * (weights A) + weights2 B
  float* sums;                      // [N, K, 2C]: of weights u v and weights2 u
  float* dots;                      // [N, pixels, 2K]: u v A^T, u B^T
};

constexpr int64_t kMixLanes = 16;

// mix, dots: pixels of the batch; sums: items are 16 channels of a sample, `scratch` [K, 2, 16] of the caller's own.
I2IFAST_DECLARE(void, mix_rows, (const ModulateMix& p, int64_t begin, int64_t end))
I2IFAST_DECLARE(void, mix_sums, (const ModulateMix& p, double* scratch, int64_t begin, int64_t end))
I2IFAST_DECLARE(void, mix_dots, (const ModulateMix& p, int64_t begin, int64_t end))

}  // namespace i2ifast
