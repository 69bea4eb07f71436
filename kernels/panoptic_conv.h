// Rows of channels_last images in the order of lists: what windows of an id map show, and where their results go.
#pragma once
#include "isa.h"

namespace i2ifast {

struct PanopticRows {
  DType dtype;
  int64_t width, taps;  // elements of a row; taps of a window
  const void *in, *bias;
  const int32_t *at, *index;  // pixel of each window [B]; pixel that each of its taps shows or -1, [B, taps]
  const int32_t *sources, *offsets, *members;
  void* out;
};

I2IFAST_DECLARE(void, panoptic_gather, (const PanopticRows& p, int64_t begin, int64_t end))  // out[i] = in[index[i]], or 0
I2IFAST_DECLARE(void, panoptic_put, (const PanopticRows& p, int64_t begin, int64_t end))     // out[at[b]] = in[b] * ratio + bias
I2IFAST_DECLARE(void, panoptic_take, (const PanopticRows& p, int64_t begin, int64_t end))    // out[b] = in[at[b]] * ratio
I2IFAST_DECLARE(void, panoptic_add, (const PanopticRows& p, int64_t begin, int64_t end))     // out[sources[s]] += sum of in[members]

}  // namespace i2ifast
