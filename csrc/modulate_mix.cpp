// `modulate_mix` and its two companions, which are each other's derivatives.
#include "../kernels/modulate_mix.h"

#include "common.h"

namespace i2ifast {

namespace {

void check_rows(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(channels_last(x) || x.size(1) == 1 || x.size(2) * x.size(3) == 1, name, ": expected channels_last");
}

const float* check_weights(const Tensor& t, const char* name) {
  check_rows(t, name);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, name, ": expected float32");
  return static_cast<const float*>(t.data_ptr());
}

ModulateMix params(const Tensor& u, const Tensor& v, int64_t k) {
  check_rows(u, "u"), check_rows(v, "v");
  STD_TORCH_CHECK(u.scalar_type() == v.scalar_type(), "v: dtype differs from u");
  ModulateMix p{};
  p.dtype = dtype_of(u), p.pixels = u.size(2) * u.size(3), p.c = u.size(1), p.k = k;
  p.u = u.data_ptr(), p.v = v.data_ptr();
  return p;
}

}  // namespace

void modulate_mix(const Tensor& x, const Tensor& weights, const Tensor& weights2, const Tensor& table, const Tensor& y) {
  ModulateMix p = params(x, x, weights.size(1));
  p.weights = check_weights(weights, "weights"), p.weights2 = check_weights(weights2, "weights2");
  p.table = floats(table, "table"), p.y = output(y);
  auto kernel = I2IFAST_PICK(mix_rows);
  torch::stable::parallel_for(0, x.size(0) * p.pixels, grain(p.c * p.k), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void mix_sums(const Tensor& u, const Tensor& v, const Tensor& weights, const Tensor& weights2, const Tensor& sums) {
  ModulateMix p = params(u, v, weights.size(1));
  p.weights = check_weights(weights, "weights"), p.weights2 = check_weights(weights2, "weights2");
  p.sums = mutable_floats(sums, "sums");
  auto kernel = I2IFAST_PICK(mix_sums);
  torch::stable::parallel_for(0, u.size(0) * ceil_div(p.c, kMixLanes), grain(p.pixels * p.k), [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(p.k * 2 * kMixLanes);
    kernel(p, scratch.data(), begin, end);
  });
}

void mix_dots(const Tensor& u, const Tensor& v, const Tensor& table, const Tensor& dots) {
  ModulateMix p = params(u, v, table.size(1));
  check_rows(dots, "dots");
  const float* rows = floats(table, "table");
  int64_t padded = ceil_div(p.k, kMixLanes) * kMixLanes;
  std::vector<float> transposed(u.size(0) * 2 * p.c * padded);
  for (int64_t n = 0; n < u.size(0); ++n)
    for (int64_t k = 0; k < p.k; ++k)
      for (int64_t c = 0; c < 2 * p.c; ++c) transposed[(n * 2 * p.c + c) * padded + k] = rows[(n * p.k + k) * 2 * p.c + c];
  p.table = transposed.data(), p.dots = static_cast<float*>(output(dots));
  auto kernel = I2IFAST_PICK(mix_dots);
  torch::stable::parallel_for(0, u.size(0) * p.pixels, grain(p.c * p.k), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("modulate_mix(Tensor x, Tensor weights, Tensor weights2, Tensor table, Tensor(a!) y) -> ()");
  m.def("mix_sums(Tensor u, Tensor v, Tensor weights, Tensor weights2, Tensor(a!) sums) -> ()");
  m.def("mix_dots(Tensor u, Tensor v, Tensor table, Tensor(a!) dots) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("modulate_mix", TORCH_BOX(&modulate_mix));
  m.impl("mix_sums", TORCH_BOX(&mix_sums));
  m.impl("mix_dots", TORCH_BOX(&mix_dots));
}

}  // namespace i2ifast
