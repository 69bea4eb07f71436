// out[d] = sum of rows[index[i]] for i in offsets[d] .. offsets[d + 1] - 1.
#pragma once
#include "isa.h"

namespace i2ifast {

struct GatherSum {
  DType dtype;
  const void* rows;
  const int32_t *offsets, *index;
  void* out;
  int64_t width, stride;  // stride: from one row of out to the next
};

I2IFAST_DECLARE(void, gather_sum_rows, (const GatherSum& p, int64_t begin, int64_t end))  // rows of out

}  // namespace i2ifast
