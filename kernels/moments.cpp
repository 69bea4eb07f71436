#include "moments.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

template <class T, bool Noisy>
void rows(const Moments& p, int64_t begin, int64_t end) {
  for (int64_t piece = begin; piece < end; ++piece) {
    int64_t first = piece % p.pieces * kMomentsPixels, count = p.pixels - first < kMomentsPixels ? p.pixels - first : kMomentsPixels;
    const T* x = static_cast<const T*>(p.x) + (piece / p.pieces * p.pixels + first) * p.c;
    const float* noise = Noisy ? p.noise + piece / p.pieces * p.pixels + first : nullptr;
    for (int64_t c0 = 0; c0 < p.c; c0 += kBlock) {
      int64_t n = p.c - c0 < kBlock ? p.c - c0 : kBlock;
      double *mean = p.mean + piece * p.c + c0, *m2 = p.m2 + piece * p.c + c0;
      // The first value is taken off before summing, then the mean so found before summing again: neither a large mean nor a large
      // first value costs the sums their low bits.
      const T* guess = x + c0;
      auto difference = [&](int64_t i, int64_t c, float from) {
        float d = load(x[i * p.c + c0 + c]) - from;
        return Noisy ? d + p.strength[c0 + c] * noise[i] : d;
      };
      float sum[kBlock] = {}, rest[kBlock] = {}, squares[kBlock] = {};
      for (int64_t i = 0; i < count; ++i)
        for (int64_t c = 0; c < n; ++c) sum[c] += difference(i, c, load(guess[c]));
      for (int64_t c = 0; c < n; ++c) sum[c] = load(guess[c]) + sum[c] / count;
      for (int64_t i = 0; i < count; ++i)
        for (int64_t c = 0; c < n; ++c) {
          float d = difference(i, c, sum[c]);
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

// A run of a plane, at most kMomentsPixels * 32 values.
template <class Difference>
void run(float guess, Difference difference, int64_t count, double* mean, double* m2) {
  float sums[kLanes] = {}, rest[kLanes] = {}, squares[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) sums[l] += difference(i + l, guess);
  for (; i < count; ++i) sums[i % kLanes] += difference(i, guess);
  float centre = static_cast<float>(guess + add_lanes(sums) / count);
  auto one = [&](int64_t at, int64_t lane) {
    float d = difference(at, centre);
    rest[lane] += d;
    squares[lane] += d * d;
  };
  for (i = 0; i + kLanes <= count; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) one(i + l, l);
  for (; i < count; ++i) one(i, i % kLanes);
  double left = add_lanes(rest);
  *mean = centre + left / count;
  *m2 = add_lanes(squares) - left * left / count;
}

template <class T, bool Noisy>
void planes(const Moments& p, int64_t begin, int64_t end) {
  int64_t size = (p.pixels + p.pieces - 1) / p.pieces;
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* x = static_cast<const T*>(p.x) + plane * p.pixels;
    const float* noise = Noisy ? p.noise + plane / p.c * p.pixels : nullptr;
    float strength = Noisy ? p.strength[plane % p.c] : 0;
    for (int64_t piece = 0; piece < p.pieces; ++piece) {
      int64_t first = piece * size, count = p.pixels - first < size ? p.pixels - first : size;
      int64_t at = (plane / p.c * p.pieces + piece) * p.c + plane % p.c;
      auto difference = [&](int64_t i, float from) {
        float d = load(x[first + i]) - from;
        return Noisy ? d + strength * noise[first + i] : d;
      };
      if (count > 0)
        run(load(x[first]), difference, count, p.mean + at, p.m2 + at);
      else
        p.mean[at] = p.m2[at] = 0;
    }
  }
}

template <class T>
void pieces(const Moments& p, int64_t begin, int64_t end) {
  if (p.channels_last)
    p.noise ? rows<T, true>(p, begin, end) : rows<T, false>(p, begin, end);
  else
    p.noise ? planes<T, true>(p, begin, end) : planes<T, false>(p, begin, end);
}

}  // namespace

void moments_pieces(const Moments& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? pieces<float>(p, begin, end) : pieces<bf16>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
