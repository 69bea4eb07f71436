#include "../kernels/modulate_region.h"

#include "common.h"

namespace i2ifast {

namespace {

ModulateRegion params(const Tensor& x, const Tensor& ids, const std::optional<Tensor>& maps, const Tensor& rows, int64_t parts,
                      double slope) {
  STD_TORCH_CHECK(channels_last(x) || x.size(1) == 1 || x.size(2) * x.size(3) == 1, "x: expected channels_last");
  STD_TORCH_CHECK(ids.scalar_type() == ScalarType::Int && ids.is_contiguous(), "ids: expected contiguous int32");
  STD_TORCH_CHECK(rows.size(1) == parts * x.size(1), "rows: wrong width");
  ModulateRegion p{};
  p.dtype = dtype_of(x);
  p.samples = x.size(0), p.pixels = x.size(2) * x.size(3), p.c = x.size(1), p.width = rows.size(1);
  p.slope = static_cast<float>(slope);
  p.x = x.data_ptr();
  p.ids = static_cast<const int32_t*>(ids.data_ptr());
  p.maps = maps ? floats(*maps, "maps") : nullptr;
  p.rows = floats(rows, "rows");
  return p;
}

}  // namespace

void modulate_region(const Tensor& x, const Tensor& ids, const std::optional<Tensor>& maps, const Tensor& rows, double slope,
                     const Tensor& y) {
  ModulateRegion p = params(x, ids, maps, rows, 4, slope);
  p.y = output(y);
  auto kernel = I2IFAST_PICK(modulate_region_forward);
  torch::stable::parallel_for(0, p.samples * p.pixels, grain(p.c), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void modulate_region_sums(const Tensor& dy, const Tensor& x, const Tensor& ids, const std::optional<Tensor>& maps, const Tensor& rows,
                          double slope, const Tensor& sums) {
  ModulateRegion p = params(x, ids, maps, rows, 4, slope);
  p.dy = dy.data_ptr();
  std::vector<double> totals(sums.numel());
  p.sums = totals.data();
  auto kernel = I2IFAST_PICK(modulate_region_sums);
  // Whole cache lines of channels per thread.
  torch::stable::parallel_for(0, ceil_div(p.c, 16), grain(p.samples * p.pixels * 16),
                              [&](int64_t begin, int64_t end) { kernel(p, begin * 16, end * 16 < p.c ? end * 16 : p.c); });
  float* out = mutable_floats(sums, "sums");
  for (size_t i = 0; i < totals.size(); ++i) out[i] = static_cast<float>(totals[i]);
}

void modulate_region_dx(const Tensor& dy, const Tensor& x, const Tensor& ids, const std::optional<Tensor>& maps, const Tensor& rows,
                        double slope, const Tensor& dx, const std::optional<Tensor>& dmaps) {
  ModulateRegion p = params(x, ids, maps, rows, 6, slope);
  p.dy = dy.data_ptr(), p.dx = output(dx);
  p.dmaps = dmaps ? mutable_floats(*dmaps, "dmaps") : nullptr;
  auto kernel = I2IFAST_PICK(modulate_region_dx);
  torch::stable::parallel_for(0, p.samples * p.pixels, grain(p.c), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("modulate_region(Tensor x, Tensor ids, Tensor? maps, Tensor rows, float slope, Tensor(a!) y) -> ()");
  m.def("modulate_region_sums(Tensor dy, Tensor x, Tensor ids, Tensor? maps, Tensor rows, float slope, Tensor(a!) sums) -> ()");
  m.def(
      "modulate_region_dx(Tensor dy, Tensor x, Tensor ids, Tensor? maps, Tensor rows, float slope, Tensor(a!) dx, Tensor(b!)? dmaps) -> "
      "()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("modulate_region", TORCH_BOX(&modulate_region));
  m.impl("modulate_region_sums", TORCH_BOX(&modulate_region_sums));
  m.impl("modulate_region_dx", TORCH_BOX(&modulate_region_dx));
}

}  // namespace i2ifast
