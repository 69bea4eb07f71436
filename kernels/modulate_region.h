// Modulation by rows looked up with an index per pixel, and by a factor and an offset of the pixel itself, channels_last:
// t = (x - mean) * rstd * scale + shift, z = t * (1 + gamma) + beta, with (mean, rstd, scale, shift) from the row and (gamma, beta) from
// the maps.
#pragma once
#include "isa.h"

namespace i2ifast {

struct ModulateRegion {
  DType dtype;
  int64_t samples, pixels, c, width;  // pixels of a sample; width of a row
  float slope;
  const void *x, *dy;
  const int32_t* ids;
  const float* maps;  // [N, 2, HW] or null
  const float* rows;  // [R, 4C]: mean, rstd, scale, shift; for dx [R, 6C]: also the means of dt * xhat and dt
  double* sums;       // [R, 2C]: of dt * xhat and dt
  void *y, *dx;       // dx = rstd * scale * (dt - mean(dt) - xhat * mean(dt * xhat))
  float* dmaps;
};

I2IFAST_DECLARE(void, modulate_region_forward, (const ModulateRegion& p, int64_t begin, int64_t end))  // pixels of the batch
I2IFAST_DECLARE(void, modulate_region_sums, (const ModulateRegion& p, int64_t begin, int64_t end))     // channels
I2IFAST_DECLARE(void, modulate_region_dx, (const ModulateRegion& p, int64_t begin, int64_t end))       // pixels of the batch

}  // namespace i2ifast
