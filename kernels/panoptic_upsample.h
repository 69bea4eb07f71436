// y[n,c,p] = x[n,c,source[n,p]], 0 where source is -1, and its adjoint, in both layouts.
#pragma once
#include "isa.h"

namespace i2ifast {

struct PanopticUpsample {
  DType dtype;
  bool channels_last;
  int64_t n, c, pixels, copied;     // pixels of x, and of y
  const int32_t* source;            // [N, copied]
  const int32_t *offsets, *copies;  // of pixel q of the batch: copies[offsets[q]:offsets[q + 1]], numbered through the batch
  const void* in;
  void* out;
};

// Items: pixels of the output (channels_last) or its planes.
I2IFAST_DECLARE(void, panoptic_upsample, (const PanopticUpsample& p, int64_t begin, int64_t end))
I2IFAST_DECLARE(void, panoptic_upsample_dx, (const PanopticUpsample& p, int64_t begin, int64_t end))

}  // namespace i2ifast
