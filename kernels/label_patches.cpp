// Distinct windows and vectors of label maps: a hash table of rows of words, fed only where the map changes.
#include "label_patches.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace i2ifast {
namespace {

// Rows of `width` words, numbered by first appearance. Open addressing over the row numbers.
class Distinct {
 public:
  Distinct(int64_t width, int hash_bits)
      : width_(width), keep_(hash_bits >= 64 ? ~0ull : (1ull << hash_bits) - 1), factors_(width), slots_(1024) {
    uint64_t state = 0;
    for (uint64_t& factor : factors_) factor = mix(state += 0x9e3779b97f4a7c15ull) | 1;
  }

  int32_t size() const { return static_cast<int32_t>(hashes_.size()); }
  std::vector<int32_t> take_rows() { return std::move(rows_); }

  int32_t add(const int32_t* row) {
    const uint64_t hash = this->hash(row);
    const uint32_t tag = static_cast<uint32_t>(hash >> 32);
    size_t at = hash & (slots_.size() - 1);
    for (; slots_[at].row >= 0; at = (at + 1) & (slots_.size() - 1))
      if (slots_[at].tag == tag && equal(row, rows_.data() + slots_[at].row * width_)) return slots_[at].row;
    slots_[at] = {tag, size()};
    hashes_.push_back(hash);
    rows_.insert(rows_.end(), row, row + width_);
    if (2 * hashes_.size() > slots_.size()) grow();
    return size() - 1;
  }

 private:
  struct Slot {
    uint32_t tag = 0;
    int32_t row = -1;
  };

  static uint64_t mix(uint64_t h) {
    h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93ull;
    h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93ull;
    return h ^ (h >> 32);
  }

  uint64_t hash(const int32_t* row) const {
    uint64_t sum = 0;
    for (int64_t i = 0; i < width_; ++i) sum += static_cast<uint32_t>(row[i]) * factors_[i];
    return mix(sum) & keep_;
  }

  bool equal(const int32_t* a, const int32_t* b) const { return std::equal(a, a + width_, b); }

  void grow() {
    slots_.assign(4 * slots_.size(), Slot());
    for (int32_t row = 0; row < size(); ++row) {
      size_t at = hashes_[row] & (slots_.size() - 1);
      while (slots_[at].row >= 0) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = {static_cast<uint32_t>(hashes_[row] >> 32), row};
    }
  }

  int64_t width_;
  uint64_t keep_;
  std::vector<uint64_t> factors_, hashes_;
  std::vector<Slot> slots_;  // a power of two of them
  std::vector<int32_t> rows_;
};

}  // namespace

std::vector<int32_t> label_patches(const int32_t* ids, const LabelWindows& w, int hash_bits, int32_t* patches) {
  const int64_t padded = w.width + 2 * w.padding;
  std::vector<int32_t> band(w.kernel * padded), window(w.kernel * w.kernel);
  std::vector<uint8_t> same(padded);  // the column of the band equals the one to its left
  Distinct distinct(w.kernel * w.kernel, hash_bits);
  for (int64_t n = 0; n < w.images; ++n) {
    for (int64_t oy = 0; oy < w.out_height(); ++oy) {
      std::fill(band.begin(), band.end(), -1);
      std::fill(same.begin() + 1, same.end(), 1);
      for (int64_t i = 0; i < w.kernel; ++i) {
        const int64_t y = oy * w.stride - w.padding + i;
        int32_t* row = band.data() + i * padded;
        if (y < 0 || y >= w.height) continue;
        std::copy_n(ids + (n * w.height + y) * w.width, w.width, row + w.padding);
        for (int64_t x = 1; x < padded; ++x) same[x] &= row[x] == row[x - 1];
      }
      int64_t changed = 0;  // the last column, of those seen, that differs from the one to its left
      int32_t patch = -1;
      for (int64_t ox = 0, seen = 0; ox < w.out_width();) {
        const int64_t end = ox * w.stride + w.kernel;
        for (; seen < end; ++seen)
          if (!same[seen]) changed = seen;
        if (changed > (ox - 1) * w.stride) {
          for (int64_t i = 0; i < w.kernel; ++i)
            std::copy_n(band.data() + i * padded + ox * w.stride, w.kernel, window.data() + i * w.kernel);
          patch = distinct.add(window.data());
          *patches++ = patch;
          ++ox;
        } else {  // this window equals the one before, and so do all that end before the next change
          const void* next = std::memchr(same.data() + end, 0, padded - end);
          const int64_t until = next ? static_cast<const uint8_t*>(next) - same.data() : padded;
          const int64_t count = (until - w.kernel) / w.stride + 1 - ox;
          patches = std::fill_n(patches, count, patch);
          ox += count;
        }
      }
    }
  }
  return distinct.take_rows();
}

bool label_rows(const int32_t* x, int64_t channels, int64_t pixels, int64_t limit, int hash_bits, int32_t* symbols,
                std::vector<int32_t>& values) {
  Distinct distinct(channels, hash_bits);
  for (int64_t p = 0; p < pixels; ++p, x += channels) {
    if (p && !std::memcmp(x, x - channels, channels * sizeof(*x))) {
      symbols[p] = symbols[p - 1];
    } else {
      symbols[p] = distinct.add(x);
      if (distinct.size() > limit) return false;
    }
  }
  values = distinct.take_rows();
  return true;
}

bool label_vectors(const int32_t* x, int64_t images, int64_t channels, int64_t pixels, int64_t limit, int hash_bits, int32_t* symbols,
                   std::vector<int32_t>& values) {
  constexpr int64_t block = 1024;  // of pixels: its vectors stay in cache between the two passes
  std::vector<int32_t> changed(block), vector(channels);
  Distinct distinct(channels, hash_bits);
  for (int64_t n = 0; n < images; ++n, x += channels * pixels) {
    int32_t symbol = -1;
    for (int64_t begin = 0; begin < pixels; begin += block) {
      const int64_t end = std::min(begin + block, pixels);
      std::fill(changed.begin(), changed.end(), 0);
      for (int64_t c = 0; c < channels; ++c) {
        const int32_t* plane = x + c * pixels;
        for (int64_t p = std::max<int64_t>(begin, 1); p < end; ++p) changed[p - begin] |= plane[p] ^ plane[p - 1];
      }
      for (int64_t p = begin; p < end; ++p) {
        if (p == 0 || changed[p - begin]) {
          for (int64_t c = 0; c < channels; ++c) vector[c] = x[c * pixels + p];
          symbol = distinct.add(vector.data());
          if (distinct.size() > limit) return false;
        }
        *symbols++ = symbol;
      }
    }
  }
  values = distinct.take_rows();
  return true;
}

std::vector<int32_t> label_bags(const int32_t* neighbours, int64_t rows, int64_t taps, int32_t* offsets) {
  std::vector<int32_t> index;
  index.reserve(rows * taps);
  *offsets++ = 0;
  for (int64_t d = 0; d < rows; ++d, neighbours += taps) {
    for (int64_t tap = 0; tap < taps; ++tap)
      if (neighbours[tap] >= 0) index.push_back(static_cast<int32_t>(neighbours[tap] * taps + tap));
    *offsets++ = static_cast<int32_t>(index.size());
  }
  return index;
}

void label_transpose(const int32_t* offsets, int64_t bags, const int32_t* index, int64_t rows, int32_t* transposed_offsets,
                     int32_t* transposed_index) {
  std::fill_n(transposed_offsets, rows + 1, 0);
  for (int64_t m = 0; m < offsets[bags]; ++m) ++transposed_offsets[index[m] + 1];
  for (int64_t r = 0; r < rows; ++r) transposed_offsets[r + 1] += transposed_offsets[r];
  std::vector<int32_t> next(transposed_offsets, transposed_offsets + rows);
  for (int64_t d = 0; d < bags; ++d)
    for (int64_t m = offsets[d]; m < offsets[d + 1]; ++m) transposed_index[next[index[m]]++] = static_cast<int32_t>(d);
}

}  // namespace i2ifast
