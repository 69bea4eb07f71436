// Modulation by table rows, channels_last. K = 1 or 2 outputs share a read of x; a table row is (gamma, beta) per output. With scales (s,
// t) per pixel of y and output, 1 + gamma is multiplied by s and beta by t. With noise per pixel of y, strength * noise is added to x.
#pragma once
#include "isa.h"

namespace i2ifast {

struct ModulateTable {
  DType dtype;
  int64_t n, c, h, w;  // of x
  bool per_sample, upsample;
  int outputs;
  float slope[2];
  const void* x;
  const float *table, *mean, *rstd;
  const int32_t* patches;         // [N, H, W], x2 if upsample
  const float* scales;            // [N, H, W, 2K], x2 if upsample, or null
  const float *noise, *strength;  // like patches, and [C]: x + strength * noise is normalised; null for x alone, with K = 2 or scales
  const void* dy[2];
  void* y[2];
  double* dtable;      // [D, 2CK]
  double* sums;        // [2, G, C]: of g and g * xhat; with noise [5, G, C]: also of xhat, g * noise and xhat * noise
  const float* means;  // sums over their counts
  void* dx;
  float* dscales;  // like scales
};

I2IFAST_DECLARE(void, modulate_table_forward, (const ModulateTable& p, int64_t begin, int64_t end))  // rows of y
I2IFAST_DECLARE(void, modulate_table_sums, (const ModulateTable& p, int64_t begin, int64_t end))     // channels
I2IFAST_DECLARE(void, modulate_table_dx, (const ModulateTable& p, int64_t begin, int64_t end))       // rows of x

}  // namespace i2ifast
