#include "../kernels/upfirdn2d.h"

#include <cmath>

#include "common.h"

namespace i2ifast {

namespace {

// A filter [fh, fw] as a sum of columns times rows: one if that is exact to rounding, else one for each of its rows.
struct Factors {
  std::vector<float> columns, rows;
  int64_t terms;

  Factors(const float* f, int64_t fh, int64_t fw, bool flip, double gain) : columns(fh), rows(fw), terms(1) {
    auto at = [&](int64_t y, int64_t x) { return flip ? f[y * fw + x] : f[(fh - 1 - y) * fw + fw - 1 - x]; };
    int64_t py = 0, px = 0;
    for (int64_t y = 0; y < fh; ++y)
      for (int64_t x = 0; x < fw; ++x)
        if (std::abs(at(y, x)) > std::abs(at(py, px))) py = y, px = x;
    float pivot = at(py, px);
    for (int64_t y = 0; y < fh; ++y) columns[y] = pivot == 0 ? 0 : at(y, px) / pivot;
    bool separable = true;
    for (int64_t y = 0; y < fh; ++y)
      for (int64_t x = 0; x < fw; ++x) separable &= std::abs(columns[y] * at(py, x) - at(y, x)) <= 2e-7f * std::abs(pivot);
    if (separable) {
      for (int64_t x = 0; x < fw; ++x) rows[x] = static_cast<float>(at(py, x) * gain);
      return;
    }
    terms = fh;
    columns.assign(fh * fh, 0.0f);
    rows.resize(fh * fw);
    for (int64_t y = 0; y < fh; ++y) {
      columns[y * fh + y] = 1;
      for (int64_t x = 0; x < fw; ++x) rows[y * fw + x] = static_cast<float>(at(y, x) * gain);
    }
  }
};

}  // namespace

void upfirdn2d(const Tensor& x, const Tensor& f, std::vector<int64_t> up, std::vector<int64_t> down, std::vector<int64_t> padding,
               bool flip, double gain, const Tensor& y) {
  STD_TORCH_CHECK(up.size() == 2 && down.size() == 2 && padding.size() == 4, "expected two factors and four paddings");
  Upfirdn2d p{};
  bool last = channels_last(x) || channels_last(y);  // one of the two may be of both layouts
  p.dtype = dtype_of(x), p.channels = last ? x.size(1) : 1, p.images = last ? x.size(0) : x.size(0) * x.size(1);
  p.x = {x.size(3), y.size(3), up[0], down[0], padding[0], f.size(1)};
  p.y = {x.size(2), y.size(2), up[1], down[1], padding[2], f.size(0)};
  Factors factors(floats(f, "f"), p.y.taps, p.x.taps, flip, gain);
  p.left = p.x.first(0), p.columns = p.x.first(p.x.out - 1) + p.x.reach() - p.left;
  p.terms = factors.terms, p.column_taps = factors.columns.data(), p.row_taps = factors.rows.data();
  p.in = x.data_ptr(), p.out = output(y);
  auto kernel = I2IFAST_PICK(upfirdn2d);
  torch::stable::parallel_for(0, p.images * p.y.out, grain(p.x.out * p.channels), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(upfirdn2d_scratch(p));
    kernel(p, scratch.data(), begin, end);
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("upfirdn2d(Tensor x, Tensor f, int[] up, int[] down, int[] padding, bool flip, float gain, Tensor(a!) y) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) { m.impl("upfirdn2d", TORCH_BOX(&upfirdn2d)); }

}  // namespace i2ifast
