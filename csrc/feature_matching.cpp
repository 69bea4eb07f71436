#include "../kernels/feature_matching.h"

#include "common.h"

namespace i2ifast {

namespace {

int64_t sample_size(const Tensor& x) { return x.size(0) > 0 ? x.numel() / x.size(0) : 0; }

int8_t* signs_of(const Tensor& signs) {
  STD_TORCH_CHECK(signs.scalar_type() == ScalarType::Char && signs.is_contiguous(), "signs: expected contiguous int8");
  return static_cast<int8_t*>(signs.data_ptr());
}

}  // namespace

// Layers one after the other, in every list and in signs; a pair of them has one layout. Empty signs: none are wanted.
void feature_matching(const std::vector<Tensor> fake, const std::vector<Tensor> real, const std::vector<double> weights,
                      const Tensor& distances, const Tensor& signs) {
  std::vector<double> total(distances.numel(), 0.0);
  int8_t* sign = signs.numel() > 0 ? signs_of(signs) : nullptr;
  for (size_t layer = 0; layer < fake.size(); ++layer) {
    const Tensor &x = fake[layer], &y = real[layer];
    STD_TORCH_CHECK(x.scalar_type() == y.scalar_type() && x.numel() == y.numel(), "fake and real differ in dtype or size");
    FeatureMatching p{};
    p.dtype = dtype_of(x), p.size = sample_size(x), p.runs = ceil_div(p.size, kFeatureRun);
    p.fake = x.data_ptr(), p.real = y.data_ptr(), p.signs = sign;
    std::vector<double> sums(x.size(0) * p.runs);
    p.sums = sums.data();
    auto kernel = I2IFAST_PICK(feature_sums);
    torch::stable::parallel_for(0, sums.size(), grain(kFeatureRun), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
    for (size_t item = 0; item < sums.size(); ++item) total[item / p.runs] += sums[item] * (weights[layer] / p.size);
    if (sign) sign += x.numel();
  }
  float* out = mutable_floats(distances, "distances");
  for (size_t n = 0; n < total.size(); ++n) out[n] = static_cast<float>(total[n]);
}

// dx has at least as many samples as dy [N]; those behind N get zeros.
void feature_matching_backward(const Tensor& dy, const Tensor& signs, const std::vector<double> weights, const std::vector<Tensor> dx) {
  const int8_t* sign = signs_of(signs);
  for (size_t layer = 0; layer < dx.size(); ++layer) {
    FeatureGradient p{};
    p.dtype = dtype_of(dx[layer]), p.size = sample_size(dx[layer]), p.runs = ceil_div(p.size, kFeatureRun);
    p.samples = dy.numel(), p.dy = floats(dy, "dy"), p.signs = sign, p.weight = weights[layer] / p.size;
    p.dx = output(dx[layer]);
    auto kernel = I2IFAST_PICK(feature_gradient);
    torch::stable::parallel_for(0, dx[layer].size(0) * p.runs, grain(kFeatureRun),
                                [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
    sign += p.samples * p.size;
  }
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("feature_matching(Tensor[] fake, Tensor[] real, float[] weights, Tensor(a!) distances, Tensor(b!) signs) -> ()");
  m.def("feature_matching_backward(Tensor dy, Tensor signs, float[] weights, Tensor(a!)[] dx) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("feature_matching", TORCH_BOX(&feature_matching));
  m.impl("feature_matching_backward", TORCH_BOX(&feature_matching_backward));
}

}  // namespace i2ifast
