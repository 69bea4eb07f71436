#include "../kernels/positional_norm.h"

#include "common.h"

namespace i2ifast {

using Optional = std::optional<Tensor>;

namespace {

PositionalNorm params(const Tensor& x, const Optional& gamma_beta, double eps, double slope) {
  if (gamma_beta) STD_TORCH_CHECK(gamma_beta->scalar_type() == x.scalar_type(), "gamma_beta: dtype differs from x");
  PositionalNorm p{};
  p.dtype = dtype_of(x), p.channels_last = channels_last(x);
  p.n = x.size(0), p.c = x.size(1), p.pixels = x.size(2) * x.size(3);
  p.eps = static_cast<float>(eps), p.slope = static_cast<float>(slope);
  p.x = x.data_ptr(), p.gamma_beta = gamma_beta ? gamma_beta->data_ptr() : nullptr;
  return p;
}

template <class Kernel>
void launch(Kernel kernel, const PositionalNorm& p) {
  torch::stable::parallel_for(0, p.n * ceil_div(p.pixels, kPixels), grain(kPixels * p.c),
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace

void positional_norm(const Tensor& x, const Optional& gamma_beta, double eps, double slope, const Tensor& y) {
  PositionalNorm p = params(x, gamma_beta, eps, slope);
  p.y = output(y);
  launch(I2IFAST_PICK(positional_norm_forward), p);
}

void positional_norm_backward(const Tensor& dy, const Tensor& x, const Optional& gamma_beta, double eps, double slope, const Tensor& dx,
                              const Tensor& d_gamma_beta) {
  PositionalNorm p = params(x, gamma_beta, eps, slope);
  p.dy = dy.data_ptr(), p.dx = output(dx), p.d_gamma_beta = output(d_gamma_beta);
  launch(I2IFAST_PICK(positional_norm_backward), p);
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("positional_norm(Tensor x, Tensor? gamma_beta, float eps, float slope, Tensor(a!) y) -> ()");
  m.def(
      "positional_norm_backward(Tensor dy, Tensor x, Tensor? gamma_beta, float eps, float slope, Tensor(a!) dx, "
      "Tensor(b!) d_gamma_beta) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("positional_norm", TORCH_BOX(&positional_norm));
  m.impl("positional_norm_backward", TORCH_BOX(&positional_norm_backward));
}

}  // namespace i2ifast
