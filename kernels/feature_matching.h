// Sums of |fake - real| over samples of a layer, and the gradient of fake from the signs that were kept.
#pragma once
#include "isa.h"

namespace i2ifast {

constexpr int64_t kFeatureRun = 1 << 13;  // elements of an item, whose sum is taken in float32 before it is merged in float64

struct FeatureMatching {
  DType dtype;
  int64_t size, runs;  // elements of a sample, and ceil(size / kFeatureRun)
  const void *fake, *real;
  int8_t* signs;  // of fake - real; null where nobody asks for them
  double* sums;   // [N * runs]
};

struct FeatureGradient {
  DType dtype;
  int64_t size, runs, samples;  // samples behind these get zeros
  const int8_t* signs;
  const float* dy;  // [samples]
  double weight;
  void* dx;
};

// Items: runs, of one sample each.
I2IFAST_DECLARE(void, feature_sums, (const FeatureMatching& p, int64_t begin, int64_t end))
I2IFAST_DECLARE(void, feature_gradient, (const FeatureGradient& p, int64_t begin, int64_t end))

}  // namespace i2ifast
