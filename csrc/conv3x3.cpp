#include "../kernels/conv3x3.h"

#include "common.h"

namespace i2ifast {

namespace {

Conv3x3 params(const Tensor& x, int64_t outputs, int64_t padding) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "expected float32");
  Conv3x3 p{};
  p.n = x.size(0), p.h = x.size(2), p.w = x.size(3), p.c = x.size(1), p.outputs = outputs;
  STD_TORCH_CHECK(padding >= 0 && padding <= 2, "expected padding 0 (zeros), 1 (replicate) or 2 (reflect)");
  p.padding = static_cast<Padding>(padding);
  STD_TORCH_CHECK(p.c % 16 == 0 && outputs % kOutputs == 0, "expected multiples of 16 input and 64 output channels");
  p.x = static_cast<const float*>(x.data_ptr());
  return p;
}

constexpr int64_t kSuperblock = 8 * kTiles;  // tiles whose transforms exist at a time for the gradient of the weight

}  // namespace

void conv3x3_weight(const Tensor& weight, bool adjoint, const Tensor& u) {
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float && u.scalar_type() == ScalarType::Float, "expected float32");
  Conv3x3Weight p{static_cast<const float*>(weight.data_ptr()),
                  weight.size(0),
                  weight.size(1),
                  {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)},
                  adjoint,
                  mutable_floats(u, "u")};
  auto kernel = I2IFAST_PICK(conv3x3_weight);
  STD_TORCH_CHECK((adjoint ? p.outputs : p.c) % 16 == 0 && (adjoint ? p.c : p.outputs) % kOutputs == 0, "expected multiples of 16 and 64");
  torch::stable::parallel_for(0, p.outputs * p.c / (16 * kOutputs), 1, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void conv3x3(const Tensor& x, const Tensor& u, const std::optional<Tensor>& bias, int64_t padding, const Tensor& y) {
  Conv3x3 p = params(x, y.size(1), padding);
  p.u = floats(u, "u"), p.bias = bias ? floats(*bias, "bias") : nullptr, p.y = static_cast<float*>(output(y));
  int64_t blocks = ceil_div(conv3x3_tiles(p), kTiles), threads = torch::stable::get_num_threads();
  // Few tiles: threads share them and take different output channels, so that each reads its part of the weight only.
  p.split = blocks >= 4 * threads ? 1 : threads;
  auto kernel = I2IFAST_PICK(conv3x3_forward);
  torch::stable::parallel_for(0, blocks * p.split, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(conv3x3_scratch(p));
    kernel(p, scratch.data(), begin, end);
  });
}

// dw is [O, C, 3, 3] in channels_last.
void conv3x3_dweight(const Tensor& x, const Tensor& dy, int64_t padding, const Tensor& dw) {
  Conv3x3 p = params(x, dy.size(1), padding);
  p.dy = static_cast<const float*>(dy.data_ptr());
  int64_t tiles = conv3x3_tiles(p), most = tiles < kSuperblock ? tiles : kSuperblock;
  std::vector<float> v(16 * most * p.c), e(16 * most * p.outputs);
  Tensor du = torch::stable::new_empty(dw, {16, p.c, p.outputs});
  p.v = v.data(), p.e = e.data(), p.du = mutable_floats(du, "du");
  std::memset(p.du, 0, du.numel() * sizeof(float));
  auto transforms = I2IFAST_PICK(conv3x3_transforms);
  auto products = I2IFAST_PICK(conv3x3_products);
  for (p.first = 0; p.first < tiles; p.first += most) {
    p.tiles = tiles - p.first < most ? tiles - p.first : most;
    torch::stable::parallel_for(0, p.tiles, 8, [&](int64_t begin, int64_t end) { transforms(p, begin, end); });
    torch::stable::parallel_for(0, 16 * p.outputs / kOutputs, 1, [&](int64_t begin, int64_t end) { products(p, begin, end); });
  }
  auto kernel = I2IFAST_PICK(conv3x3_dweight);
  float* out = static_cast<float*>(output(dw));
  torch::stable::parallel_for(0, p.outputs * p.c / (16 * kOutputs), 1, [&](int64_t begin, int64_t end) { kernel(p, out, begin, end); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("conv3x3_weight(Tensor weight, bool adjoint, Tensor(a!) u) -> ()");
  m.def("conv3x3(Tensor x, Tensor u, Tensor? bias, int padding, Tensor(a!) y) -> ()");
  m.def("conv3x3_dweight(Tensor x, Tensor dy, int padding, Tensor(a!) dw) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("conv3x3_weight", TORCH_BOX(&conv3x3_weight));
  m.impl("conv3x3", TORCH_BOX(&conv3x3));
  m.impl("conv3x3_dweight", TORCH_BOX(&conv3x3_dweight));
}

}  // namespace i2ifast
