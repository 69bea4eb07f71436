// Mean and centred second moment of pieces of x; csrc/moments.cpp merges them.
#pragma once
#include "isa.h"

namespace i2ifast {

constexpr int64_t kMomentsPixels = 128;  // pixels of a piece: a block of its channels stays in L1 between the two passes

struct Moments {
  const void* x;
  DType dtype;
  bool channels_last;
  int64_t n, c, pixels;
  int64_t pieces;                 // per sample
  double *mean, *m2;              // [N, pieces, C]: mean of the piece, sum of squares around it. A float32 mean of 1e4 is off by 5e-4
  const float *noise, *strength;  // [N, H, W] and [C]: of x + strength * noise; null for x alone
};

I2IFAST_DECLARE(void, moments_pieces, (const Moments& p, int64_t begin, int64_t end))  // channels_last: pieces of all samples; else planes

}  // namespace i2ifast
