// Upsample by zeros, pad, filter, downsample, in both layouts, one output row at a time. A filter is a sum of products of a column and a
// row (one of them if it is separable): the column adds up rows of x in a scratch row, along which the row of taps then runs.
#pragma once
#include "isa.h"

namespace i2ifast {

struct Axis {
  int64_t in, out, up, down, pad, taps;
  // Output `at` reads inputs from first() on, every tap from phase() on in steps of `up`; `reach` taps at most.
  int64_t phase(int64_t at) const {
    int64_t origin = at * down - pad;
    return up == 1 ? 0 : up == 2 ? origin & 1 : ((-origin) % up + up) % up;  // a division costs as much as a short row
  }
  int64_t first(int64_t at) const {
    int64_t origin = at * down - pad;
    return up == 1 ? origin : up == 2 ? (origin + (origin & 1)) / 2 : (origin + phase(at)) / up;
  }
  int64_t reach() const { return (taps + up - 1) / up; }
};

struct Upfirdn2d {
  DType dtype;
  int64_t images, channels;  // channels_last: samples, of C values a pixel; else: planes, of 1
  Axis x, y;
  int64_t left, columns;  // of a scratch row: the first column of x in it, which may be outside, and their number
  int64_t terms;
  const float *column_taps, *row_taps;  // [terms, taps] of each axis, in the order of correlation
  const void* in;
  void* out;
};

// Floats for each caller: two rows, with air for loops that run on to whole vectors.
constexpr int64_t kUpfirdn2dAir = 128;
inline int64_t upfirdn2d_scratch(const Upfirdn2d& p) { return (p.columns + p.x.out) * p.channels + 2 * kUpfirdn2dAir; }

// Items: output rows of all images.
I2IFAST_DECLARE(void, upfirdn2d, (const Upfirdn2d& p, float* scratch, int64_t begin, int64_t end))

}  // namespace i2ifast
