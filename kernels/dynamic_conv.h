// Convolution with a 3x3 kernel for every channel and pixel, zero padding: y, and its gradients, in both layouts.
#pragma once
#include "isa.h"

namespace i2ifast {

struct DynamicConv {
  DType dtype;
  bool channels_last;  // then the weight's channels are 1 or 9 apart, else its pixels are adjacent
  int64_t n, c, h, w;
  int64_t sample, channel, tap, pixel;  // strides of the weight [N, C, 9, HW]
  const void *x, *dy, *weight;
  void* out;  // y or dx, like x; or the gradient of the weight, in its strides
};

// Items: rows of an image (channels_last) or planes.
I2IFAST_DECLARE(void, dynamic_conv_forward, (const DynamicConv& p, int64_t begin, int64_t end))
I2IFAST_DECLARE(void, dynamic_conv_dx, (const DynamicConv& p, int64_t begin, int64_t end))
I2IFAST_DECLARE(void, dynamic_conv_dweight, (const DynamicConv& p, int64_t begin, int64_t end))

}  // namespace i2ifast
