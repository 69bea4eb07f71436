// Convolutions of channels_last float32 maps by tiles of 4x4 or 3x3 products (Lavin and Gray, Fast Algorithms for Convolutional Neural
// Networks, 2016): 3x3 kernels as F(2x2, 3x3), 16 products instead of 36; 4x4 kernels as four of 2x2, each by F(3x3, 2x2), 16
// instead of 36, or F(2x2, 2x2), 9 instead of 16, whichever covers the map in fewer. With stride 2 the four read the even and odd
// rows and columns, with stride 1 they are shifted by two pixels; the adjoint of stride 2 (a transposed convolution) writes even and
// odd ones. A 3x3 kernel of stride 2 is a 4x4 one whose last taps are 0, and so are 15 of 64 products, which are not made.
//   y = A^T [(G w G^T) . (B^T d B)] A      dw = G^T [(B^T d B) . (A dy A^T)] G      dx: y of dy, with w turned over
#pragma once
#include "isa.h"

namespace i2ifast {

constexpr int64_t kOutputs = 64;   // output channels of a block
constexpr int64_t kLanes = 16;     // channels of a vector
constexpr int64_t kRows = 6;       // rows of a product whose sums stay in registers, with kOutputs columns
constexpr int64_t kDepth = 64;     // rows of a block of the transformed weight
constexpr int64_t kChannels = 48;  // channels of a block of the weight's gradient
constexpr int64_t kSkew = 16;      // floats between rows and planes, which else fall on the same places in the caches

enum class Padding { zeros, replicate, reflect };

// A map seen as phases * phases maps, of which pixel i is pixel step * i + shift * phase + first of it, in rows and in columns.
struct View {
  const float* data;
  int64_t n, h, w, c, phases, step, shift, first;
};

struct Winograd {
  int64_t kernel;          // of the weight
  int64_t taps, window;    // of the small kernels, and of the tiles that are read, in a row: 3 and 4, 2 and 4, or 2 and 3
  View read, written;      // written.data is read where gradients of weights are made of it
  int64_t grid_h, grid_w;  // pixels of each map of `written`
  Padding padding;
  // The weight [.., .., kernel, kernel]: strides, and the row (column) at_zero + by_tap * tap + by_phase * phase that a tap of a
  // phase takes. A gradient has it too.
  const float* weight;
  int64_t by_read, by_written, by_row, by_column, at_zero, by_tap, by_phase;
  const float *packed, *bias;  // transformed weight, and bias of the written channels; may be null
  float* y;
  int64_t first, tiles;  // the tiles that are done at a time
  float* v;              // transformed tiles that are read, [products(), tiles, row()]
  int64_t parts;         // forward: items that share a block of outputs; gradient: items that share the products
  // Gradient of the weight:
  float *e, *du,
      *dweight;  // transformed tiles of dy by blocks of outputs; products [block of both, products(), kChannels, 64]; may be null
  bool last;     // no tiles come after these

  int64_t depth() const { return read.phases * read.phases * read.c; }
  int64_t outputs() const { return written.phases * written.phases * written.c; }
  int64_t blocks() const { return outputs() / kOutputs; }
  int64_t side() const { return window + 1 - taps; }  // pixels of a tile that are written, in a row
  int64_t products() const { return window * window; }
  int64_t across() const { return (grid_w + side() - 1) / side(); }
  int64_t down() const { return (grid_h + side() - 1) / side(); }
  int64_t all_tiles() const { return read.n * down() * across(); }
  int64_t row() const { return depth() + kSkew; }  // of v
  int64_t plane() const { return tiles * row() + kSkew; }
  int64_t output_plane() const { return tiles * kOutputs + kSkew; }                // of e
  int64_t channel_blocks() const { return (read.c + kChannels - 1) / kChannels; }  // of a phase
  int64_t gradient_blocks() const { return read.phases * read.phases * channel_blocks() * blocks(); }
};

constexpr int64_t kWeightPlane = kDepth * kOutputs + kSkew;
constexpr int64_t kGradientPlane = kChannels * kOutputs;
// Floats of a block of outputs in packed.
inline int64_t winograd_block(const Winograd& p) { return (p.depth() + kDepth - 1) / kDepth * p.products() * kWeightPlane; }
// Of the products of one part, and what each caller of winograd_products needs.
inline int64_t winograd_plane(const Winograd& p) { return ((p.tiles + p.parts - 1) / p.parts + kRows) * kOutputs + kSkew; }
inline int64_t winograd_scratch(const Winograd& p) { return p.products() * (winograd_plane(p) + kWeightPlane); }

I2IFAST_DECLARE(void, winograd_weight, (const Winograd& p, float* u, int64_t begin, int64_t end))          // blocks of 64 outputs
I2IFAST_DECLARE(void, winograd_read, (const Winograd& p, int64_t begin, int64_t end))                      // tiles after `first`
I2IFAST_DECLARE(void, winograd_products, (const Winograd& p, float* scratch, int64_t begin, int64_t end))  // blocks of outputs x parts
I2IFAST_DECLARE(void, winograd_read_gradient, (const Winograd& p, int64_t begin, int64_t end))             // tiles after `first`
I2IFAST_DECLARE(void, winograd_gradient, (const Winograd& p, int64_t begin, int64_t end))                  // gradient_blocks() x parts
I2IFAST_DECLARE(void, winograd_dweight, (const Winograd& p, int64_t begin, int64_t end))                   // gradient_blocks()

}  // namespace i2ifast
