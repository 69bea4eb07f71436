#include "../kernels/channel_pool.h"

#include "common.h"

namespace i2ifast {

namespace {

ChannelPool params(const Tensor& x, const Tensor& pooled, const Tensor& index) {
  STD_TORCH_CHECK(channels_last(x) || x.size(1) == 1 || x.size(2) * x.size(3) == 1, "x: expected channels_last");
  STD_TORCH_CHECK(pooled.is_contiguous() && pooled.scalar_type() == x.scalar_type(), "pooled: expected contiguous, of x's dtype");
  STD_TORCH_CHECK(index.scalar_type() == ScalarType::Int && index.is_contiguous(), "index: expected contiguous int32");
  ChannelPool p{};
  p.dtype = dtype_of(x), p.pixels = x.size(2) * x.size(3), p.c = x.size(1);
  p.pooled = pooled.data_ptr(), p.index = static_cast<int32_t*>(index.data_ptr());
  return p;
}

}  // namespace

void channel_pool(const Tensor& x, const Tensor& pooled, const Tensor& index) {
  ChannelPool p = params(x, pooled, index);
  p.x = x.data_ptr();
  auto kernel = I2IFAST_PICK(channel_pool);
  torch::stable::parallel_for(0, index.numel(), grain(p.c), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void channel_pool_backward(const Tensor& dpooled, const Tensor& index, const Tensor& dx) {
  ChannelPool p = params(dx, dpooled, index);
  p.dx = output(dx);
  auto kernel = I2IFAST_PICK(channel_pool_backward);
  torch::stable::parallel_for(0, index.numel(), grain(p.c), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("channel_pool(Tensor x, Tensor(a!) pooled, Tensor(b!) index) -> ()");
  m.def("channel_pool_backward(Tensor dpooled, Tensor index, Tensor(a!) dx) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("channel_pool", TORCH_BOX(&channel_pool));
  m.impl("channel_pool_backward", TORCH_BOX(&channel_pool_backward));
}

}  // namespace i2ifast
