#include "gather_sum.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

constexpr int64_t AHEAD = 12;  // rows between one that is fetched into the cache and the one that is summed

// Columns summed at a time: they stay in registers over the whole list. Rows up to `end` are fetched before their turn.
template <class T, int64_t Columns>
void columns(const GatherSum& p, int64_t first, int64_t last, int64_t end, int64_t c, T* __restrict out) {
  float sum[Columns] = {};
  const T* rows = static_cast<const T*>(p.rows) + c;
  for (int64_t i = first; i < last; ++i) {
    if (Columns > 16 && i + AHEAD < end) {
      const char* later = reinterpret_cast<const char*>(rows + p.index[i + AHEAD] * p.width);
      for (size_t b = 0; b < Columns * sizeof(T); b += 64) __builtin_prefetch(later + b);
    }
    const T* row = rows + p.index[i] * p.width;
    for (int64_t j = 0; j < Columns; ++j) sum[j] += load(row[j]);
  }
  for (int64_t j = 0; j < Columns; ++j) store(out + c + j, sum[j]);
}

template <class T>
void rows(const GatherSum& p, int64_t begin, int64_t end) {
  for (int64_t d = begin; d < end; ++d) {
    T* out = static_cast<T*>(p.out) + d * p.stride;
    int64_t first = p.offsets[d], last = p.offsets[d + 1], c = 0;
    for (; c + 128 <= p.width; c += 128) columns<T, 128>(p, first, last, p.offsets[end], c, out);
    for (; c + 16 <= p.width; c += 16) columns<T, 16>(p, first, last, last, c, out);
    for (; c < p.width; ++c) columns<T, 1>(p, first, last, last, c, out);
  }
}

}  // namespace

void gather_sum_rows(const GatherSum& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? rows<float>(p, begin, end) : rows<bf16>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
