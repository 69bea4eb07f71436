// y = clamp(act(x + b) * gain), act(z) = z if z > 0 else slope * z, and its gradient with the sums that are the bias's, in both layouts.
#pragma once
#include "isa.h"

namespace i2ifast {

constexpr int64_t kBiasActRows = 128;  // channels_last: pixels whose sums are taken in float32 before they are merged in float64

struct BiasAct {
  DType dtype;
  bool channels_last;
  int64_t c;
  int64_t rows, pixels;  // channels_last: pixels of the batch, of C values each; else: planes of `pixels` values each
  float slope, gain, clamp;
  const void *x, *dy;
  const float* b;
  void *y, *dx;
  float* partial;  // sums of dx: channels_last [ceil(rows / kBiasActRows), C]; else [rows]
};

// Items: runs of kBiasActRows pixels (channels_last) or planes.
I2IFAST_DECLARE(void, bias_act_forward, (const BiasAct& p, int64_t begin, int64_t end))
I2IFAST_DECLARE(void, bias_act_gradient, (const BiasAct& p, int64_t begin, int64_t end))

}  // namespace i2ifast
