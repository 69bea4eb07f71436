// Mean and maximum over the channels of every pixel, channels_last.
#pragma once
#include "isa.h"

namespace i2ifast {

struct ChannelPool {
  DType dtype;
  int64_t pixels, c;  // pixels of a sample
  const void* x;      // [N, pixels, C]
  void* pooled;       // [N, 2, pixels]; its gradient in backward
  int32_t* index;     // [N, pixels]: the first channel that has the maximum
  void* dx;
};

I2IFAST_DECLARE(void, channel_pool, (const ChannelPool& p, int64_t begin, int64_t end))           // pixels of the batch
I2IFAST_DECLARE(void, channel_pool_backward, (const ChannelPool& p, int64_t begin, int64_t end))  // pixels of the batch

}  // namespace i2ifast
