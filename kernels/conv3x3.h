// 3x3 convolution, stride 1, padding 1, channels_last float32, as Winograd's F(2x2, 3x3): 16 products per 2x2 outputs and
// channel pair instead of 36 (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016).
//   y = A^T [(G w G^T) . (B^T d B)] A      dw = G^T [(B^T d B) . (A dy A^T)] G      dx: y of dy, with w flipped and transposed
#pragma once
#include "isa.h"

namespace i2ifast {

constexpr int64_t kTiles = 48;    // 2x2 output tiles that are transformed, multiplied and transformed back at a time
constexpr int64_t kOutputs = 64;  // output channels of a block
constexpr int64_t kRows = 6;      // rows of a product whose sums stay in registers, with kOutputs columns

enum class Padding { zeros, replicate, reflect };

struct Conv3x3 {
  int64_t n, h, w, c, outputs;
  Padding padding;
  const float *x, *dy, *bias;  // bias may be null
  float* y;
  const float* u;  // transformed weight [16, outputs / 64, C, 64]
  int64_t split;   // forward: the blocks of output channels are dealt out to so many items
  // Gradient of the weight, for `tiles` tiles from `first` on at a time:
  int64_t first, tiles;
  float *v, *e;  // transformed x [16, tiles, C] and dy [16, tiles, outputs]
  float* du;     // [16, C, outputs], added to
};

struct Conv3x3Weight {
  const float* weight;  // [outputs, C, 3, 3] of any strides
  int64_t outputs, c, stride[4];
  bool adjoint;  // flip the taps and exchange the channels: the weight that makes dx of dy
  float* u;
};

inline int64_t conv3x3_tiles(const Conv3x3& p) { return p.n * ((p.h + 1) / 2) * ((p.w + 1) / 2); }
inline int64_t conv3x3_scratch(const Conv3x3& p) { return 16 * kTiles * (p.c + kOutputs); }  // floats for each caller

I2IFAST_DECLARE(void, conv3x3_weight, (const Conv3x3Weight& p, int64_t begin, int64_t end))             // blocks of 16 inputs x 64 outputs
I2IFAST_DECLARE(void, conv3x3_forward, (const Conv3x3& p, float* scratch, int64_t begin, int64_t end))  // blocks of tiles x split
I2IFAST_DECLARE(void, conv3x3_transforms, (const Conv3x3& p, int64_t begin, int64_t end))               // tiles after `first`
I2IFAST_DECLARE(void, conv3x3_products, (const Conv3x3& p, int64_t begin, int64_t end))                 // 16 x blocks of outputs
I2IFAST_DECLARE(void, conv3x3_dweight, (const Conv3x3& p, float* dw, int64_t begin, int64_t end))       // blocks of 16 x 64 of dw

}  // namespace i2ifast
