// Both `modulate` (dense maps) and `modulate_style` (a vector per sample): one parameter block, one set of kernels.
#include "../kernels/modulate.h"

#include "common.h"

namespace i2ifast {

namespace {

Modulate params(const Tensor& x, const Tensor& gamma_beta, const Tensor& mean, const Tensor& rstd, double slope, bool dense) {
  Modulate p{};
  p.dtype = dtype_of(x), p.channels_last = channels_last(x), p.per_sample = mean.size(0) > 1, p.dense = dense;
  p.n = x.size(0), p.c = x.size(1), p.pixels = x.size(2) * x.size(3);
  p.slope = static_cast<float>(slope);
  p.x = x.data_ptr();
  if (dense) STD_TORCH_CHECK(gamma_beta.scalar_type() == x.scalar_type(), "gamma_beta: dtype differs from x");
  p.gamma_beta = dense ? gamma_beta.data_ptr() : floats(gamma_beta, "style");
  p.mean = floats(mean, "mean"), p.rstd = floats(rstd, "rstd");
  p.pieces = ceil_div(p.pixels, kPiece);
  return p;
}

template <class Kernel>
void launch(Kernel kernel, const Modulate& p) {
  int64_t items = p.channels_last ? p.n * p.pieces : p.n * p.c;
  torch::stable::parallel_for(0, items, grain(p.channels_last ? kPiece * p.c : p.pixels),
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

// Sums of pieces in their order, in float64: out [2, groups, C] from partial [2, N * pieces, C].
void merge(const Modulate& p, const std::vector<float>& partial, int64_t groups, float* out) {
  int64_t rows = p.channels_last ? p.n * p.pieces : p.n, each = rows / groups;
  for (int64_t which = 0; which < 2; ++which)
    for (int64_t g = 0; g < groups; ++g) {
      std::vector<double> sum(p.c, 0.0);
      for (int64_t r = g * each; r < (g + 1) * each; ++r)
        for (int64_t c = 0; c < p.c; ++c) sum[c] += partial[(which * rows + r) * p.c + c];
      for (int64_t c = 0; c < p.c; ++c) out[(which * groups + g) * p.c + c] = static_cast<float>(sum[c]);
    }
}

void forward(const Tensor& x, const Tensor& gamma_beta, const Tensor& mean, const Tensor& rstd, double slope, const Tensor& y, bool dense) {
  Modulate p = params(x, gamma_beta, mean, rstd, slope, dense);
  p.y = output(y);
  launch(I2IFAST_PICK(modulate_forward), p);
}

std::vector<float> partial_sums(Modulate& p) {
  std::vector<float> partial(2 * p.n * p.c * (p.channels_last ? p.pieces : 1));
  p.partial = partial.data();
  launch(I2IFAST_PICK(modulate_sums), p);
  return partial;
}

void dx_of(const Tensor& dy, const Tensor& x, const Tensor& gamma_beta, const Tensor& mean, const Tensor& rstd, const Tensor& means,
           double slope, const Tensor& dx, bool dense) {
  Modulate p = params(x, gamma_beta, mean, rstd, slope, dense);
  p.dy = dy.data_ptr(), p.means = floats(means, "means"), p.dx = output(dx);
  launch(I2IFAST_PICK(modulate_dx), p);
}

}  // namespace

void modulate(const Tensor& x, const Tensor& gamma_beta, const Tensor& mean, const Tensor& rstd, double slope, const Tensor& y) {
  forward(x, gamma_beta, mean, rstd, slope, y, true);
}

void modulate_sums(const Tensor& dy, const Tensor& x, const Tensor& gamma_beta, const Tensor& mean, const Tensor& rstd, double slope,
                   const Tensor& d_gamma_beta, const Tensor& sums) {
  Modulate p = params(x, gamma_beta, mean, rstd, slope, true);
  p.dy = dy.data_ptr(), p.d_gamma_beta = output(d_gamma_beta);
  merge(p, partial_sums(p), mean.size(0), mutable_floats(sums, "sums"));
}

void modulate_dx(const Tensor& dy, const Tensor& x, const Tensor& gamma_beta, const Tensor& mean, const Tensor& rstd, const Tensor& means,
                 double slope, const Tensor& dx) {
  dx_of(dy, x, gamma_beta, mean, rstd, means, slope, dx, true);
}

void modulate_style(const Tensor& x, const Tensor& style, const Tensor& mean, const Tensor& rstd, double slope, const Tensor& y) {
  forward(x, style, mean, rstd, slope, y, false);
}

void modulate_style_sums(const Tensor& dy, const Tensor& x, const Tensor& style, const Tensor& mean, const Tensor& rstd, double slope,
                         const Tensor& dstyle) {
  Modulate p = params(x, style, mean, rstd, slope, false);
  p.dy = dy.data_ptr();
  std::vector<float> sums(2 * p.n * p.c);  // dz, then dz * xhat; a row of dstyle is dgamma, then dbeta
  merge(p, partial_sums(p), p.n, sums.data());
  float* out = mutable_floats(dstyle, "dstyle");
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t c = 0; c < p.c; ++c) {
      out[n * 2 * p.c + c] = sums[(p.n + n) * p.c + c];
      out[n * 2 * p.c + p.c + c] = sums[n * p.c + c];
    }
}

void modulate_style_dx(const Tensor& dy, const Tensor& x, const Tensor& style, const Tensor& mean, const Tensor& rstd, const Tensor& means,
                       double slope, const Tensor& dx) {
  dx_of(dy, x, style, mean, rstd, means, slope, dx, false);
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("modulate(Tensor x, Tensor gamma_beta, Tensor mean, Tensor rstd, float slope, Tensor(a!) y) -> ()");
  m.def(
      "modulate_sums(Tensor dy, Tensor x, Tensor gamma_beta, Tensor mean, Tensor rstd, float slope, Tensor(a!) d_gamma_beta, "
      "Tensor(b!) sums) -> ()");
  m.def(
      "modulate_dx(Tensor dy, Tensor x, Tensor gamma_beta, Tensor mean, Tensor rstd, Tensor means, float slope, Tensor(a!) dx) -> "
      "()");
  m.def("modulate_style(Tensor x, Tensor style, Tensor mean, Tensor rstd, float slope, Tensor(a!) y) -> ()");
  m.def("modulate_style_sums(Tensor dy, Tensor x, Tensor style, Tensor mean, Tensor rstd, float slope, Tensor(a!) dstyle) -> ()");
  m.def(
      "modulate_style_dx(Tensor dy, Tensor x, Tensor style, Tensor mean, Tensor rstd, Tensor means, float slope, Tensor(a!) dx) -> "
      "()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("modulate", TORCH_BOX(&modulate));
  m.impl("modulate_sums", TORCH_BOX(&modulate_sums));
  m.impl("modulate_dx", TORCH_BOX(&modulate_dx));
  m.impl("modulate_style", TORCH_BOX(&modulate_style));
  m.impl("modulate_style_sums", TORCH_BOX(&modulate_style_sums));
  m.impl("modulate_style_dx", TORCH_BOX(&modulate_style_dx));
}

}  // namespace i2ifast
