#include "feature_matching.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

constexpr int64_t kSums = 64;  // partial sums of a run: a vector of signs is 64 bytes

struct Run {
  int64_t sample, at, count;
  Run(int64_t item, int64_t runs, int64_t size) {
    int64_t from = item % runs * kFeatureRun;
    sample = item / runs;
    at = sample * size + from;
    count = size - from < kFeatureRun ? size - from : kFeatureRun;
  }
};

template <class T, bool Signed>
void sums(const FeatureMatching& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const Run run(item, p.runs, p.size);
    const T* __restrict fake = static_cast<const T*>(p.fake) + run.at, * __restrict real = static_cast<const T*>(p.real) + run.at;
    int8_t* __restrict signs = Signed ? p.signs + run.at : nullptr;
    float sum[kSums] = {};
    int64_t i = 0;
    for (; i + kSums <= run.count; i += kSums) {
      for (int64_t l = 0; l < kSums; ++l) {
        float d = load(fake[i + l]) - load(real[i + l]);
        sum[l] += d < 0 ? -d : d;
      }
      if (Signed)
        for (int64_t l = 0; l < kSums; ++l) {
          float d = load(fake[i + l]) - load(real[i + l]);
          signs[i + l] = static_cast<int8_t>((d > 0) - (d < 0));
        }
    }
    double total = 0;
    for (int64_t l = 0; l < kSums; ++l) total += sum[l];
    for (; i < run.count; ++i) {
      float d = load(fake[i]) - load(real[i]);
      total += d < 0 ? -d : d;
      if (Signed) signs[i] = static_cast<int8_t>((d > 0) - (d < 0));
    }
    p.sums[item] = total;
  }
}

template <class T>
void gradient(const FeatureGradient& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const Run run(item, p.runs, p.size);
    T* __restrict dx = static_cast<T*>(p.dx) + run.at;
    if (run.sample >= p.samples) {
      std::memset(dx, 0, run.count * sizeof(T));
      continue;
    }
    const int8_t* __restrict signs = p.signs + run.at;
    const float scale = static_cast<float>(p.dy[run.sample] * p.weight);
    for (int64_t i = 0; i < run.count; ++i) store(dx + i, scale * signs[i]);
  }
}

}  // namespace

void feature_sums(const FeatureMatching& p, int64_t begin, int64_t end) {
  bool f32 = p.dtype == DType::f32;
  if (p.signs)
    f32 ? sums<float, true>(p, begin, end) : sums<bf16, true>(p, begin, end);
  else
    f32 ? sums<float, false>(p, begin, end) : sums<bf16, false>(p, begin, end);
}

void feature_gradient(const FeatureGradient& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? gradient<float>(p, begin, end) : gradient<bf16>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
