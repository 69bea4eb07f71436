// The torch-free contract of label plans: distinct windows and vectors of maps, and bags, lists of rows to add up.
//
// Equality is decided by comparing words with the first one of the kind, never by a hash, so every result is exact.
// `hash_bits` < 64 only forces hash collisions, for tests.
#pragma once

#include <cstdint>
#include <vector>

namespace i2ifast {

struct LabelWindows {
  int64_t images, height, width;    // shape of the ids
  int64_t kernel, stride, padding;  // of the square windows, as of a convolution

  int64_t out_height() const { return (height + 2 * padding - kernel) / stride + 1; }
  int64_t out_width() const { return (width + 2 * padding - kernel) / stride + 1; }
};

// Number of the window at every output position, by first appearance in raster order, into
// patches [images, out_height, out_width]. Returns the distinct windows [D, kernel * kernel], -1 for taps outside.
std::vector<int32_t> label_patches(const int32_t* ids, const LabelWindows& windows, int hash_bits, int32_t* patches);

// Number of the channel vector at every pixel of x [images, channels, pixels] (words of 32 bits), by first appearance:
// symbols [images, pixels]; appends the distinct vectors [S, channels] to `values`. False, early, if S exceeds `limit`.
bool label_vectors(const int32_t* x, int64_t images, int64_t channels, int64_t pixels, int64_t limit, int hash_bits, int32_t* symbols,
                   std::vector<int32_t>& values);

// The same of x [pixels, channels].
bool label_rows(const int32_t* x, int64_t channels, int64_t pixels, int64_t limit, int hash_bits, int32_t* symbols,
                std::vector<int32_t>& values);

// Bag d holds neighbours[d, tap] * taps + tap for every neighbour that is not negative.
// Writes offsets [rows + 1], returns the index.
std::vector<int32_t> label_bags(const int32_t* neighbours, int64_t rows, int64_t taps, int32_t* offsets);

// Bag r of the transpose holds, in increasing order, every d (as often) as r is in bag d.
// Writes transposed_offsets [rows + 1] and transposed_index [offsets[bags]].
void label_transpose(const int32_t* offsets, int64_t bags, const int32_t* index, int64_t rows, int32_t* transposed_offsets,
                     int32_t* transposed_index);

}  // namespace i2ifast
