// Upsample by zeros, pad, filter, downsample, in both layouts, one output row at a time. A filter is a sum of products of a column and a
// row (one of them if it is separable): the column adds up rows of x in a scratch row, along which the row of taps then runs.
#pragma once
#include "isa.h"

namespace i2ifast {

struct Axis {
  int64_t in, out, up, down, pad, taps;
  // Output `at` reads inputs from first() on, every tap from phase() on in steps of `up`; `reach` taps at most.
  int64_t origin(int64_t at) const { return at * down - pad; }
  int64_t phase(int64_t at) const { return ((-origin(at)) % up + up) % up; }
  int64_t first(int64_t at) const { return (origin(at) + phase(at)) / up; }
  int64_t reach() const { return (taps + up - 1) / up; }
};

struct Upfirdn2d {
  DType dtype;
  int64_t images, channels;  // channels_last: samples, of C values a pixel; else: planes, of 1
  Axis x, y;
  int64_t terms;
  const float *columns, *rows;  // [terms, taps] of each axis, in the order of correlation
  const void* in;
  void* out;
};

inline int64_t upfirdn2d_left(const Upfirdn2d& p) { return p.x.first(0); }
inline int64_t upfirdn2d_columns(const Upfirdn2d& p) { return p.x.first(p.x.out - 1) + p.x.reach() - upfirdn2d_left(p); }
inline int64_t upfirdn2d_scratch(const Upfirdn2d& p) { return (upfirdn2d_columns(p) + p.x.out) * p.channels; }  // floats for each caller

// Items: output rows of all images.
I2IFAST_DECLARE(void, upfirdn2d, (const Upfirdn2d& p, float* scratch, int64_t begin, int64_t end))

}  // namespace i2ifast
