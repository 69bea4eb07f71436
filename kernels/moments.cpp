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

inline double add(const vec* sums, int64_t count) {
  float lanes[kLanes];
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) std::memcpy(lanes, sums + i, sizeof(lanes)), sum += add_lanes(lanes);
  return sum;
}

constexpr int64_t kChains = 4;  // vectors summed side by side, so that one addition need not wait for the last

// A run of a plane, at most kMomentsPixels * 32 values.
template <class T, bool Noisy>
void run(const T* x, const float* noise, float strength, int64_t count, double* mean, double* m2) {
  constexpr int64_t kStep = kChains * kLanes;
  auto difference = [&](int64_t i, float from) { return load(x[i]) - from + (Noisy ? strength * noise[i] : 0); };
  auto differences = [&](int64_t i, float from, vec& d) {
    load_lanes(x + i, d);
    d -= from;
    if (!Noisy) return;
    vec n;
    load_lanes(noise + i, n);
    d += strength * n;
  };
  float guess = load(x[0]);
  vec sums[kChains] = {}, rest[kChains] = {}, squares[kChains] = {};
  int64_t whole = count / kStep * kStep;
  for (int64_t i = 0; i < whole; i += kStep)
    for (int64_t j = 0; j < kChains; ++j) {
      vec d;
      differences(i + j * kLanes, guess, d);
      sums[j] += d;
    }
  double total = add(sums, kChains);
  for (int64_t i = whole; i < count; ++i) total += difference(i, guess);
  float centre = static_cast<float>(guess + total / count);
  for (int64_t i = 0; i < whole; i += kStep)
    for (int64_t j = 0; j < kChains; ++j) {
      vec d;
      differences(i + j * kLanes, centre, d);
      rest[j] += d;
      squares[j] += d * d;
    }
  double left = add(rest, kChains), square = add(squares, kChains);
  for (int64_t i = whole; i < count; ++i) {
    float d = difference(i, centre);
    left += d, square += d * d;
  }
  *mean = centre + left / count;
  *m2 = square - left * left / count;
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
      if (count > 0)
        run<T, Noisy>(x + first, noise + (Noisy ? first : 0), strength, count, p.mean + at, p.m2 + at);
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
