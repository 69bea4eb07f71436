#include "../kernels/moments.h"

#include "common.h"

namespace i2ifast {

void moments(const Tensor& x, bool per_sample, const Tensor& mean, const Tensor& var, const std::optional<Tensor>& noise,
             const std::optional<Tensor>& strength) {
  Moments p{x.data_ptr(), dtype_of(x), channels_last(x), x.size(0), x.size(1), x.size(2) * x.size(3), 0,
            nullptr,      nullptr,     nullptr,          nullptr};
  if (noise) {
    STD_TORCH_CHECK(strength && noise->numel() == p.n * p.pixels && strength->numel() == p.c,
                    "noise: expected [N, H, W] and its strength [C]");
    p.noise = floats(*noise, "noise"), p.strength = floats(*strength, "strength");
  }
  // Short pieces summed in float32, merged in float64: as exact for 2^24 values as for 2^7.
  int64_t size = p.channels_last ? kMomentsPixels : kMomentsPixels * 32;
  p.pieces = ceil_div(p.pixels, size);
  std::vector<double> means(p.n * p.pieces * p.c), m2s(means.size());
  p.mean = means.data(), p.m2 = m2s.data();
  int64_t items = p.channels_last ? p.n * p.pieces : p.n * p.c;
  auto kernel = I2IFAST_PICK(moments_pieces);
  torch::stable::parallel_for(0, items, grain(p.n * p.c * p.pixels / items), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });

  if (!p.channels_last) size = ceil_div(p.pixels, p.pieces);
  int64_t groups = per_sample ? p.n : 1, samples = per_sample ? 1 : p.n;
  float *out_mean = mutable_floats(mean, "mean"), *out_var = mutable_floats(var, "var");
  double total = static_cast<double>(samples * p.pixels);
  torch::stable::parallel_for(0, groups * p.c, grain(samples * p.pieces), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      int64_t group = item / p.c, c = item % p.c, first = group * samples * p.pieces;
      auto count = [&](int64_t i) {
        int64_t left = p.pixels - i % p.pieces * size;
        return static_cast<double>(left < 0 ? 0 : left < size ? left : size);
      };
      double sum = 0, m2 = 0;
      for (int64_t i = 0; i < samples * p.pieces; ++i) sum += count(i) * means[(first + i) * p.c + c];
      double centre = sum / total;
      for (int64_t i = 0; i < samples * p.pieces; ++i) {
        double d = means[(first + i) * p.c + c] - centre;
        m2 += m2s[(first + i) * p.c + c] + count(i) * d * d;
      }
      out_mean[item] = static_cast<float>(centre);
      out_var[item] = static_cast<float>(m2 / total);
    }
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("moments(Tensor x, bool per_sample, Tensor(a!) mean, Tensor(b!) var, Tensor? noise=None, Tensor? strength=None) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) { m.impl("moments", TORCH_BOX(&moments)); }

}  // namespace i2ifast
