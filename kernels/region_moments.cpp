#include "region_moments.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

constexpr int64_t kRun = 128;  // pixels summed in float32 before they are merged in float64: they stay in L1 between the two passes

// One thread owns a range of channels for all pixels: no two threads meet in a region, and the order of summation does not depend on how
// many threads there are.
template <class T>
void channels(const RegionMoments& p, double* seen, int64_t c0, int64_t n) {
  std::memset(seen, 0, p.regions * sizeof(double));
  float sum[kBlock], rest[kBlock], squares[kBlock];
  for (int64_t i = 0, next; i < p.pixels; i = next) {
    int32_t id = p.ids[i];
    for (next = i + 1; next < p.pixels && next < i + kRun && p.ids[next] == id;) ++next;
    int64_t count = next - i;
    const T* x = static_cast<const T*>(p.x) + i * p.c + c0;
    std::memset(sum, 0, sizeof(sum));
    std::memset(rest, 0, sizeof(rest));
    std::memset(squares, 0, sizeof(squares));
    // Around the first value, then around the mean so found: neither a large mean nor a large first value costs the sums their low bits.
    for (int64_t j = 1; j < count; ++j)
      for (int64_t c = 0; c < n; ++c) sum[c] += load(x[j * p.c + c]) - load(x[c]);
    float share = 1.0f / count;
    for (int64_t c = 0; c < n; ++c) sum[c] = load(x[c]) + sum[c] * share;
    for (int64_t j = 0; j < count; ++j)
      for (int64_t c = 0; c < n; ++c) {
        float d = load(x[j * p.c + c]) - sum[c];
        rest[c] += d;
        squares[c] += d * d;
      }
    double before = seen[id], part = count / (before + count), *mean = p.mean + id * p.c + c0, *m2 = p.m2 + id * p.c + c0;
    seen[id] += count;
    for (int64_t c = 0; c < n; ++c) {
      double left = rest[c] * static_cast<double>(share), d = sum[c] + left - mean[c];
      mean[c] += d * part;
      m2[c] += squares[c] - left * rest[c] + d * d * before * part;
    }
  }
}

}  // namespace

void region_moments(const RegionMoments& p, double* seen, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; c += kBlock) {
    int64_t n = end - c < kBlock ? end - c : kBlock;
    p.dtype == DType::f32 ? channels<float>(p, seen, c, n) : channels<bf16>(p, seen, c, n);
  }
}

}  // namespace ISA
}  // namespace i2ifast
