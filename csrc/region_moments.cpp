#include "../kernels/region_moments.h"

#include "common.h"

namespace i2ifast {

void region_moments(const Tensor& x, const Tensor& ids, const Tensor& count, const Tensor& mean, const Tensor& low, const Tensor& var) {
  STD_TORCH_CHECK(channels_last(x) || x.size(1) == 1 || x.size(2) * x.size(3) == 1, "x: expected channels_last");
  STD_TORCH_CHECK(ids.scalar_type() == ScalarType::Int && ids.is_contiguous(), "ids: expected contiguous int32");
  int64_t c = x.size(1), regions = mean.size(0);
  std::vector<double> means(regions * c), m2s(regions * c);
  RegionMoments p{
      dtype_of(x), x.size(0) * x.size(2) * x.size(3), c, regions, x.data_ptr(), static_cast<const int32_t*>(ids.data_ptr()), means.data(),
      m2s.data()};
  auto kernel = I2IFAST_PICK(region_moments);
  // Whole cache lines of channels per thread.
  int64_t lines = ceil_div(c, 16);
  torch::stable::parallel_for(0, lines, grain(p.pixels * 16), [&](int64_t begin, int64_t end) {
    std::vector<double> seen(regions);
    kernel(p, seen.data(), begin * 16, end * 16 < c ? end * 16 : c);
  });

  std::vector<int64_t> counts(regions);
  for (int64_t i = 0; i < p.pixels; ++i) ++counts[p.ids[i]];
  float *out_count = mutable_floats(count, "count"), *out_mean = mutable_floats(mean, "mean"), *out_low = mutable_floats(low, "low"),
        *out_var = mutable_floats(var, "var");
  for (int64_t r = 0; r < regions; ++r) out_count[r] = static_cast<float>(counts[r]);
  for (int64_t i = 0; i < regions * c; ++i) {
    int64_t pixels = counts[i / c];
    out_mean[i] = static_cast<float>(means[i]);
    out_low[i] = static_cast<float>(means[i] - out_mean[i]);
    out_var[i] = static_cast<float>(m2s[i] / (pixels > 0 ? pixels : 1));
  }
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("region_moments(Tensor x, Tensor ids, Tensor(a!) count, Tensor(b!) mean, Tensor(c!) low, Tensor(d!) var) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) { m.impl("region_moments", TORCH_BOX(&region_moments)); }

}  // namespace i2ifast
