#include "../kernels/dynamic_conv.h"

#include "common.h"

namespace i2ifast {

namespace {

DynamicConv params(const Tensor& x, const Tensor& weight, bool last) {
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "weight: dtype differs from x");
  STD_TORCH_CHECK(weight.dim() == 5 && weight.size(2) == 9, "weight: expected [N, C, 9, H, W]");
  DynamicConv p{};
  p.dtype = dtype_of(x), p.channels_last = last;
  p.n = x.size(0), p.c = x.size(1), p.h = x.size(2), p.w = x.size(3);
  p.sample = weight.stride(0), p.channel = weight.stride(1), p.tap = weight.stride(2), p.pixel = weight.stride(4);
  bool in_runs = last ? p.channel == 1 || p.channel == 9 : p.pixel == 1;
  STD_TORCH_CHECK(in_runs && weight.stride(3) == p.w * p.pixel, "weight: not in runs of the layout of x");
  return p;
}

template <class Kernel>
void launch(Kernel kernel, const DynamicConv& p) {
  int64_t items = p.n * (p.channels_last ? p.h : p.c);
  torch::stable::parallel_for(0, items, grain(9 * p.w * (p.channels_last ? p.c : p.h)),
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace

void dynamic_conv(const Tensor& x, const Tensor& weight, const Tensor& y) {
  DynamicConv p = params(x, weight, channels_last(x));
  p.x = x.data_ptr(), p.weight = weight.data_ptr(), p.out = output(y);
  launch(I2IFAST_PICK(dynamic_conv_forward), p);
}

void dynamic_conv_dx(const Tensor& dy, const Tensor& weight, const Tensor& dx) {
  DynamicConv p = params(dy, weight, channels_last(dy));
  p.dy = dy.data_ptr(), p.weight = weight.data_ptr(), p.out = output(dx);
  launch(I2IFAST_PICK(dynamic_conv_dx), p);
}

void dynamic_conv_dweight(const Tensor& x, const Tensor& dy, const Tensor& dweight) {
  DynamicConv p = params(x, dweight, channels_last(x));
  p.x = x.data_ptr(), p.dy = dy.data_ptr(), p.out = output(dweight);
  launch(I2IFAST_PICK(dynamic_conv_dweight), p);
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("dynamic_conv(Tensor x, Tensor weight, Tensor(a!) y) -> ()");
  m.def("dynamic_conv_dx(Tensor dy, Tensor weight, Tensor(a!) dx) -> ()");
  m.def("dynamic_conv_dweight(Tensor x, Tensor dy, Tensor(a!) dweight) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("dynamic_conv", TORCH_BOX(&dynamic_conv));
  m.impl("dynamic_conv_dx", TORCH_BOX(&dynamic_conv_dx));
  m.impl("dynamic_conv_dweight", TORCH_BOX(&dynamic_conv_dweight));
}

}  // namespace i2ifast
