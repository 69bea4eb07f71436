// Rows of channels_last images in the order of lists: what windows of an id map show, and where their results go.
#pragma once
#include "isa.h"

namespace i2ifast {

constexpr int64_t kPanopticBlock = 16;

struct PanopticRows {
  DType dtype;
  int64_t width, taps, windows;  // elements of a row; taps of a window; windows
  const void *in, *bias;
  const int32_t *at, *index;  // pixel of each window [B]; pixel that each of its taps shows or -1, [B, taps]
  void* out;
};

// Items: entries of index.
I2IFAST_DECLARE(void, panoptic_gather, (const PanopticRows& p, int64_t begin, int64_t end))  // out[i] = in[index[i]], or 0
// Items: windows b.
I2IFAST_DECLARE(void, panoptic_put, (const PanopticRows& p, int64_t begin, int64_t end))   // out[at[b]] = in[b] * ratio + bias
I2IFAST_DECLARE(void, panoptic_take, (const PanopticRows& p, int64_t begin, int64_t end))  // out[b] = in[at[b]] * ratio
// Items: blocks of kPanopticBlock elements of a row, so that each sum has one order for any number of threads. `out` is float32.
I2IFAST_DECLARE(void, panoptic_add, (const PanopticRows& p, int64_t begin, int64_t end))  // out[index[i]] += in[i]

}  // namespace i2ifast
