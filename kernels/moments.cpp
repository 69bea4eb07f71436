#include "moments.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

template <class T>
void rows(const Moments& p, int64_t begin, int64_t end) {
  for (int64_t piece = begin; piece < end; ++piece) {
    int64_t first = piece % p.pieces * kMomentsPixels, count = p.pixels - first < kMomentsPixels ? p.pixels - first : kMomentsPixels;
    const T* x = static_cast<const T*>(p.x) + (piece / p.pieces * p.pixels + first) * p.c;
    for (int64_t c0 = 0; c0 < p.c; c0 += kBlock) {
      int64_t n = p.c - c0 < kBlock ? p.c - c0 : kBlock;
      double *mean = p.mean + piece * p.c + c0, *m2 = p.m2 + piece * p.c + c0;
      // The first value is taken off before summing, then the mean so found before summing again: neither a large mean nor a large
      // first value costs the sums their low bits.
      const T* guess = x + c0;
      float sum[kBlock] = {}, rest[kBlock] = {}, squares[kBlock] = {};
      for (int64_t i = 0; i < count; ++i)
        for (int64_t c = 0; c < n; ++c) sum[c] += load(x[i * p.c + c0 + c]) - load(guess[c]);
      for (int64_t c = 0; c < n; ++c) sum[c] = load(guess[c]) + sum[c] / count;
      for (int64_t i = 0; i < count; ++i)
        for (int64_t c = 0; c < n; ++c) {
          float d = load(x[i * p.c + c0 + c]) - sum[c];
          rest[c] += d;
          squares[c] += d * d;
        }
      for (int64_t c = 0; c < n; ++c) {
        mean[c] = sum[c] + static_cast<double>(rest[c]) / count;
        m2[c] = squares[c] - static_cast<double>(rest[c]) * rest[c] / count;
      }
    }
  }
}

inline double add(const vec* sums, int64_t count) {
  float lanes[kLanes];
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) std::memcpy(lanes, sums + i, sizeof(lanes)), sum += add_lanes(lanes);
  return sum;
}

constexpr int64_t kChains = 4;  // vectors summed side by side, so that one addition need not wait for the last

// A run of a plane, at most kMomentsPixels * 32 values.
template <class T>
void run(const T* x, int64_t count, double* mean, double* m2) {
  constexpr int64_t kStep = kChains * kLanes;
  float guess = load(x[0]);
  vec sums[kChains] = {}, rest[kChains] = {}, squares[kChains] = {};
  int64_t whole = count / kStep * kStep;
  for (int64_t i = 0; i < whole; i += kStep)
    for (int64_t j = 0; j < kChains; ++j) {
      vec v;
      load_lanes(x + i + j * kLanes, v);
      sums[j] += v - guess;
    }
  double total = add(sums, kChains);
  for (int64_t i = whole; i < count; ++i) total += load(x[i]) - guess;
  float centre = static_cast<float>(guess + total / count);
  for (int64_t i = 0; i < whole; i += kStep)
    for (int64_t j = 0; j < kChains; ++j) {
      vec d;
      load_lanes(x + i + j * kLanes, d);
      d -= centre;
      rest[j] += d;
      squares[j] += d * d;
    }
  double left = add(rest, kChains), square = add(squares, kChains);
  for (int64_t i = whole; i < count; ++i) {
    float d = load(x[i]) - centre;
    left += d, square += d * d;
  }
  *mean = centre + left / count;
  *m2 = square - left * left / count;
}

template <class T>
void planes(const Moments& p, int64_t begin, int64_t end) {
  int64_t size = (p.pixels + p.pieces - 1) / p.pieces;
  for (int64_t plane = begin; plane < end; ++plane)
    for (int64_t piece = 0; piece < p.pieces; ++piece) {
      int64_t first = piece * size, count = p.pixels - first < size ? p.pixels - first : size;
      int64_t at = (plane / p.c * p.pieces + piece) * p.c + plane % p.c;
      if (count > 0)
        run(static_cast<const T*>(p.x) + plane * p.pixels + first, count, p.mean + at, p.m2 + at);
      else
        p.mean[at] = p.m2[at] = 0;
    }
}

}  // namespace

void moments_pieces(const Moments& p, int64_t begin, int64_t end) {
  if (p.channels_last)
    p.dtype == DType::f32 ? rows<float>(p, begin, end) : rows<bf16>(p, begin, end);
  else
    p.dtype == DType::f32 ? planes<float>(p, begin, end) : planes<bf16>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
