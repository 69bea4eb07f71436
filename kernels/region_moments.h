// Count, mean and centred second moment of the pixels that share an index, channels_last.
#pragma once
#include "isa.h"

namespace i2ifast {

struct RegionMoments {
  DType dtype;
  int64_t pixels, c, regions;
  const void* x;       // [pixels, C]
  const int32_t* ids;  // [pixels]
  double *mean, *m2;   // [R, C], zeros before
};

// Channels. `seen`: [R] of the caller's own.
I2IFAST_DECLARE(void, region_moments, (const RegionMoments& p, double* seen, int64_t begin, int64_t end))

}  // namespace i2ifast
