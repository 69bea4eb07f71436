#include "../kernels/winograd.h"

#include "common.h"

namespace i2ifast {

namespace {

constexpr int64_t kTiles = 48, kFewest = 3 * kTiles, kMost = 8 * kTiles;  // tiles that are transformed at a time, ...
constexpr int64_t kTransformed = 2 << 20;                                 // ... and floats that they are to be

View view(const Tensor& map) {
  STD_TORCH_CHECK(map.scalar_type() == ScalarType::Float, "expected float32");
  return {static_cast<const float*>(map.data_ptr()), map.size(0), map.size(2), map.size(3), map.size(1), 1, 1, 0, 0};
}

// The convolution of `read` to `written` by weight [O, C, k, k], or its adjoint, from a map of O channels to one of C.
Winograd params(const View& read, const View& written, const Tensor& weight, bool adjoint, int64_t stride, int64_t pad) {
  Winograd p{};
  int64_t kernel = weight.size(2);
  STD_TORCH_CHECK((kernel == 3 && stride == 1 && pad == 1) || ((kernel == 4 || (kernel == 3 && stride == 2)) && pad >= 0 && pad <= 3),
                  "expected a kernel of 3, stride 1 and padding 1, or one of 4 or of 3 and stride 2 with padding 0 to 3");
  STD_TORCH_CHECK(stride == 1 || stride == 2, "expected stride 1 or 2");
  p.kernel = kernel, p.taps = kernel == 3 && stride == 1 ? 3 : 2;
  p.read = read, p.written = written;
  p.grid_h = written.h, p.grid_w = written.w;
  if (p.taps == 3) {
    p.read.first = -1;
    p.at_zero = adjoint ? 2 : 0, p.by_tap = adjoint ? -1 : 1, p.by_phase = 0;
  } else if (stride == 1) {
    p.read.phases = 2, p.read.shift = 2, p.read.first = adjoint ? pad - 3 : -pad;
    p.at_zero = adjoint ? 3 : 0, p.by_tap = adjoint ? -1 : 1, p.by_phase = adjoint ? -2 : 2;
  } else {
    View& large = adjoint ? p.written : p.read;
    large.phases = 2, large.step = 2, large.shift = 1, large.first = -pad;
    p.at_zero = adjoint ? 2 : 0, p.by_tap = adjoint ? -2 : 2, p.by_phase = 1;
    if (adjoint) p.read.first = -1, p.grid_h = (written.h - 1 + pad) / 2 + 1, p.grid_w = (written.w - 1 + pad) / 2 + 1;
  }
  auto cost = [&](int64_t window) { return p.window = window, p.down() * p.across() * p.products(); };
  p.window = p.taps == 3 || cost(4) <= cost(3) ? 4 : 3;
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float, "expected float32");
  p.weight = static_cast<const float*>(weight.data_ptr());
  p.by_read = weight.stride(adjoint ? 0 : 1), p.by_written = weight.stride(adjoint ? 1 : 0);
  p.by_row = weight.stride(2), p.by_column = weight.stride(3);
  STD_TORCH_CHECK(weight.size(adjoint ? 0 : 1) == read.c && weight.size(adjoint ? 1 : 0) == written.c, "weight does not fit the maps");
  STD_TORCH_CHECK(read.c % kLanes == 0 && written.c % kLanes == 0 && p.outputs() % kOutputs == 0,
                  "expected multiples of 16 channels read and 64 written");
  return p;
}

// Tiles done at a time. Sums over tiles are to be the same for any number of threads: these have 1.
int64_t some_tiles(const Winograd& p, int64_t threads) {
  int64_t fit = kTransformed / (p.products() * p.depth()) / kTiles * kTiles;
  fit = fit < kFewest ? kFewest : fit > kMost ? kMost : fit;
  fit = fit < threads * kTiles ? threads * kTiles : fit;
  return p.all_tiles() < fit ? p.all_tiles() : fit;
}

}  // namespace

// Of 3x3 kernels.
void winograd_weight(const Tensor& weight, const Tensor& u) {
  View read{}, written{};
  read.phases = written.phases = 1, read.c = weight.size(1), written.c = weight.size(0);
  Winograd p = params(read, written, weight, false, 1, 1);
  float* out = mutable_floats(u, "u");
  STD_TORCH_CHECK(weight.size(2) == 3 && u.numel() == p.blocks() * winograd_block(p), "expected a 3x3 kernel and ",
                  p.blocks() * winograd_block(p), " elements of u");
  auto kernel = I2IFAST_PICK(winograd_weight);
  torch::stable::parallel_for(0, p.blocks(), 1,
                              [&](int64_t begin, int64_t end) { kernel(p, out + begin * winograd_block(p), begin, end); });
}

void winograd(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& packed, const std::optional<Tensor>& bias, bool adjoint,
              int64_t stride, int64_t pad, int64_t padding, const Tensor& y) {
  Winograd p = params(view(x), view(y), weight, adjoint, stride, pad);
  STD_TORCH_CHECK(padding >= 0 && padding <= 2, "expected padding 0 (zeros), 1 (replicate) or 2 (reflect)");
  p.padding = static_cast<Padding>(padding);
  p.packed = packed ? floats(*packed, "packed") : nullptr, p.bias = bias ? floats(*bias, "bias") : nullptr;
  p.y = static_cast<float*>(output(y));
  int64_t threads = torch::stable::get_num_threads(), all = p.all_tiles(), most = some_tiles(p, threads);
  auto v = scratch(p.products() * (most * p.row() + kSkew) + kRows * p.row());
  p.v = v.get();
  auto read = I2IFAST_PICK(winograd_read);
  auto products = I2IFAST_PICK(winograd_products);
  for (p.first = 0; p.first < all; p.first += most) {
    p.tiles = all - p.first < most ? all - p.first : most;
    p.parts = p.blocks() >= threads ? 1 : ceil_div(threads, p.blocks());
    torch::stable::parallel_for(0, p.tiles, 8, [&](int64_t begin, int64_t end) { read(p, begin, end); });
    torch::stable::parallel_for(0, p.blocks() * p.parts, 1, [&](int64_t begin, int64_t end) {
      auto own = scratch(winograd_scratch(p));
      products(p, own.get(), begin, end);
    });
  }
}

// dweight is [O, C, k, k] in channels_last.
void winograd_dweight(const Tensor& x, const Tensor& dy, int64_t stride, int64_t pad, int64_t padding, const Tensor& dweight) {
  Winograd p = params(view(x), view(dy), dweight, false, stride, pad);
  STD_TORCH_CHECK(dweight.stride(1) == 1, "dweight: expected channels_last");
  p.padding = static_cast<Padding>(padding);
  p.dweight = static_cast<float*>(output(dweight));
  int64_t threads = torch::stable::get_num_threads(), all = p.all_tiles(), most = some_tiles(p, 1);
  auto v = scratch(p.products() * (most * p.row() + kSkew)), e = scratch(p.products() * p.blocks() * (most * kOutputs + kSkew));
  p.v = v.get(), p.e = e.get();
  p.parts = p.gradient_blocks() >= 2 * threads ? 1 : p.gradient_blocks() * 3 >= 2 * threads ? 3 : p.products();
  auto du = scratch(all > most || p.parts > 1 ? p.gradient_blocks() * p.products() * kGradientPlane : 0);
  p.du = all > most || p.parts > 1 ? du.get() : nullptr;
  auto read = I2IFAST_PICK(winograd_read_gradient);
  auto gradient = I2IFAST_PICK(winograd_gradient);
  for (p.first = 0; p.first < all; p.first += most) {
    p.tiles = all - p.first < most ? all - p.first : most, p.last = p.first + most >= all;
    torch::stable::parallel_for(0, p.tiles, 8, [&](int64_t begin, int64_t end) { read(p, begin, end); });
    torch::stable::parallel_for(0, p.gradient_blocks() * p.parts, 1, [&](int64_t begin, int64_t end) { gradient(p, begin, end); });
  }
  auto kernel = I2IFAST_PICK(winograd_dweight);
  if (p.parts > 1) torch::stable::parallel_for(0, p.gradient_blocks(), 1, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("winograd_weight(Tensor weight, Tensor(a!) u) -> ()");
  m.def(
      "winograd(Tensor x, Tensor weight, Tensor? packed, Tensor? bias, bool adjoint, int stride, int pad, int padding, Tensor(a!) y) -> "
      "()");
  m.def("winograd_dweight(Tensor x, Tensor dy, int stride, int pad, int padding, Tensor(a!) dweight) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("winograd_weight", TORCH_BOX(&winograd_weight));
  m.impl("winograd", TORCH_BOX(&winograd));
  m.impl("winograd_dweight", TORCH_BOX(&winograd_dweight));
}

}  // namespace i2ifast
