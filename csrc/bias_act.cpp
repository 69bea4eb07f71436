#include "../kernels/bias_act.h"

#include "common.h"

namespace i2ifast {

namespace {

// Few channels are no vector: in channels_last several pixels are taken as one of more channels, with the biases repeated in `tiled`.
constexpr int64_t kVector = 64;

BiasAct params(const Tensor& x, const Tensor& b, int64_t act, double alpha, double gain, double clamp, std::vector<float>& tiled) {
  STD_TORCH_CHECK(act == 0, "only piecewise linear activations have a kernel here");
  STD_TORCH_CHECK(b.numel() == x.size(1), "b: expected one value per channel");
  BiasAct p{};
  p.dtype = dtype_of(x), p.c = x.size(1);
  int64_t pixels = x.size(2) * x.size(3);
  p.channels_last = pixels == 1 || channels_last(x);  // of one pixel a sample, both layouts are the same
  p.rows = x.size(0) * (p.channels_last ? pixels : p.c), p.pixels = pixels;
  p.slope = static_cast<float>(alpha), p.gain = static_cast<float>(gain), p.clamp = static_cast<float>(clamp);
  p.x = x.data_ptr(), p.b = floats(b, "b");
  if (p.channels_last && p.c < kVector) {
    while (p.c < kVector && p.rows % 2 == 0) p.c *= 2, p.rows /= 2;
    for (int64_t i = 0; i < p.c; ++i) tiled.push_back(p.b[i % x.size(1)]);
    p.b = tiled.data();
  }
  return p;
}

int64_t items(const BiasAct& p) { return p.channels_last ? ceil_div(p.rows, kBiasActRows) : p.rows; }

template <class Kernel>
void launch(Kernel kernel, const BiasAct& p) {
  torch::stable::parallel_for(0, items(p), grain(p.channels_last ? kBiasActRows * p.c : p.pixels),
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace

void bias_act(const Tensor& x, const Tensor& b, int64_t act, double alpha, double gain, double clamp, const Tensor& y) {
  std::vector<float> tiled;
  BiasAct p = params(x, b, act, alpha, gain, clamp, tiled);
  p.y = output(y);
  launch(I2IFAST_PICK(bias_act_forward), p);
}

void bias_act_backward(const Tensor& dy, const Tensor& x, const Tensor& b, int64_t act, double alpha, double gain, double clamp,
                       const Tensor& dx, const Tensor& db) {
  std::vector<float> tiled;
  BiasAct p = params(x, b, act, alpha, gain, clamp, tiled);
  p.dy = dy.data_ptr(), p.dx = output(dx);
  std::vector<float> partial(items(p) * (p.channels_last ? p.c : 1));
  p.partial = partial.data();
  launch(I2IFAST_PICK(bias_act_gradient), p);
  const int64_t channels = db.numel();
  std::vector<double> sum(channels, 0.0);
  for (size_t i = 0; i < partial.size(); ++i) sum[i % channels] += partial[i];
  float* out = mutable_floats(db, "db");
  for (int64_t c = 0; c < channels; ++c) out[c] = static_cast<float>(sum[c]);
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("bias_act(Tensor x, Tensor b, int act, float alpha, float gain, float clamp, Tensor(a!) y) -> ()");
  m.def(
      "bias_act_backward(Tensor dy, Tensor x, Tensor b, int act, float alpha, float gain, float clamp, Tensor(a!) dx, Tensor(b!) db) -> "
      "()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("bias_act", TORCH_BOX(&bias_act));
  m.impl("bias_act_backward", TORCH_BOX(&bias_act_backward));
}

}  // namespace i2ifast
