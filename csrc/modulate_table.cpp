#include "../kernels/modulate_table.h"

#include "common.h"

namespace i2ifast {

namespace {

void copy_down(const std::vector<double>& from, float* to) {
  for (size_t i = 0; i < from.size(); ++i) to[i] = static_cast<float>(from[i]);
}

using Optional = std::optional<Tensor>;

ModulateTable params(const Tensor& x, const Tensor& table, const Tensor& patches, const Optional& scales, const Optional& noise,
                     const Optional& strength, const Tensor& mean, const Tensor& rstd, double slope, std::optional<double> slope2,
                     bool upsample) {
  STD_TORCH_CHECK(channels_last(x) || x.size(1) == 1 || x.size(2) * x.size(3) == 1, "x: expected channels_last");
  STD_TORCH_CHECK(patches.scalar_type() == ScalarType::Int && patches.is_contiguous(), "patches: expected contiguous int32");
  ModulateTable p{};
  p.dtype = dtype_of(x);
  p.n = x.size(0), p.c = x.size(1), p.h = x.size(2), p.w = x.size(3);
  p.per_sample = mean.size(0) > 1, p.upsample = upsample;
  p.outputs = slope2 ? 2 : 1;
  p.slope[0] = static_cast<float>(slope), p.slope[1] = static_cast<float>(slope2.value_or(1));
  p.x = x.data_ptr();
  p.table = floats(table, "table"), p.mean = floats(mean, "mean"), p.rstd = floats(rstd, "rstd");
  p.patches = static_cast<const int32_t*>(patches.data_ptr());
  p.scales = scales ? floats(*scales, "scales") : nullptr;
  if (noise) {
    STD_TORCH_CHECK(strength && !slope2 && !scales && noise->numel() == patches.numel() && strength->numel() == p.c,
                    "noise: expected [N, H, W], and one y without scales");
    p.noise = floats(*noise, "noise"), p.strength = floats(*strength, "strength");
  }
  return p;
}

}  // namespace

void modulate_table(const Tensor& x, const Tensor& table, const Tensor& patches, const Optional& scales, const Optional& noise,
                    const Optional& strength, const Tensor& mean, const Tensor& rstd, double slope, std::optional<double> slope2,
                    bool upsample, const Tensor& y, const Optional& y2) {
  ModulateTable p = params(x, table, patches, scales, noise, strength, mean, rstd, slope, slope2, upsample);
  p.y[0] = output(y), p.y[1] = y2 ? output(*y2) : nullptr;
  auto kernel = I2IFAST_PICK(modulate_table_forward);
  torch::stable::parallel_for(0, y.size(0) * y.size(2), grain(y.size(3) * p.c), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void modulate_table_sums(const Tensor& dy, const Optional& dy2, const Tensor& x, const Tensor& table, const Tensor& patches,
                         const Optional& scales, const Optional& noise, const Optional& strength, const Tensor& mean, const Tensor& rstd,
                         double slope, std::optional<double> slope2, bool upsample, const Tensor& dtable, const Tensor& sums) {
  ModulateTable p = params(x, table, patches, scales, noise, strength, mean, rstd, slope, slope2, upsample);
  p.dy[0] = dy.data_ptr(), p.dy[1] = dy2 ? dy2->data_ptr() : nullptr;
  std::vector<double> rows(dtable.numel()), totals(sums.numel());
  p.dtable = rows.data(), p.sums = totals.data();
  auto kernel = I2IFAST_PICK(modulate_table_sums);
  // Whole cache lines of channels per thread.
  int64_t lines = ceil_div(p.c, 16);
  torch::stable::parallel_for(0, lines, grain(dy.numel() / lines),
                              [&](int64_t begin, int64_t end) { kernel(p, begin * 16, end * 16 < p.c ? end * 16 : p.c); });
  copy_down(rows, mutable_floats(dtable, "dtable"));
  copy_down(totals, mutable_floats(sums, "sums"));
}

void modulate_table_dx(const Tensor& dy, const Optional& dy2, const Tensor& x, const Tensor& table, const Tensor& patches,
                       const Optional& scales, const Optional& noise, const Optional& strength, const Tensor& mean, const Tensor& rstd,
                       const Tensor& means, double slope, std::optional<double> slope2, bool upsample, const Tensor& dx,
                       const Optional& dscales) {
  ModulateTable p = params(x, table, patches, scales, noise, strength, mean, rstd, slope, slope2, upsample);
  p.dy[0] = dy.data_ptr(), p.dy[1] = dy2 ? dy2->data_ptr() : nullptr;
  p.means = floats(means, "means"), p.dx = output(dx);
  p.dscales = dscales ? mutable_floats(*dscales, "dscales") : nullptr;
  auto kernel = I2IFAST_PICK(modulate_table_dx);
  torch::stable::parallel_for(0, p.n * p.h, grain(p.w * p.c), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def(
      "modulate_table(Tensor x, Tensor table, Tensor patches, Tensor? scales, Tensor? noise, Tensor? strength, Tensor mean, Tensor rstd, "
      "float slope, float? slope2, bool upsample, Tensor(a!) y, Tensor(b!)? y2) -> ()");
  m.def(
      "modulate_table_sums(Tensor dy, Tensor? dy2, Tensor x, Tensor table, Tensor patches, Tensor? scales, Tensor? noise, Tensor? "
      "strength, Tensor mean, Tensor rstd, float slope, float? slope2, bool upsample, Tensor(a!) dtable, Tensor(b!) sums) -> ()");
  m.def(
      "modulate_table_dx(Tensor dy, Tensor? dy2, Tensor x, Tensor table, Tensor patches, Tensor? scales, Tensor? noise, Tensor? strength, "
      "Tensor mean, Tensor rstd, Tensor means, float slope, float? slope2, bool upsample, Tensor(a!) dx, Tensor(b!)? dscales) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("modulate_table", TORCH_BOX(&modulate_table));
  m.impl("modulate_table_sums", TORCH_BOX(&modulate_table_sums));
  m.impl("modulate_table_dx", TORCH_BOX(&modulate_table_dx));
}

}  // namespace i2ifast
