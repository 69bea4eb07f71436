// i2ifast_cuda::*: validates, fills the parameters of kernels/modulate_table_cuda.h, launches on the current stream of x's device.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../kernels/modulate_table_cuda.h"
#include "common.h"

namespace i2ifast {

namespace {

using Optional = std::optional<Tensor>;

void check(cudaError_t error) { STD_TORCH_CHECK(error == cudaSuccess, "modulate_table: ", cudaGetErrorString(error)); }

bool is_channels_last(const Tensor& t, const char* name) {
  if (t.is_contiguous()) return false;
  int64_t expected = 1;
  for (int64_t dim : {1, 3, 2, 0}) {
    STD_TORCH_CHECK(t.size(dim) == 1 || t.stride(dim) == expected, name, ": neither contiguous nor channels_last");
    expected *= t.size(dim);
  }
  return true;
}

cuda::Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return cuda::Type::f32;
    case ScalarType::BFloat16:
      return cuda::Type::bf16;
    case ScalarType::Half:
      return cuda::Type::f16;
    default:
      STD_TORCH_CHECK(false, "x: expected float32, bfloat16 or float16");
  }
}

// One call: its device made current, its stream, its parameters and the tensors behind them.
class Call {
 public:
  cuda::ModulateTable p{};
  cudaStream_t stream = nullptr;

  // The layout is that of y (or dy): that of x tells nothing where x is 1x1.
  Call(const Tensor& x, const Tensor& y, const Tensor& table, const Tensor& patches, const Tensor& mean, const Tensor& rstd, double slope,
       std::optional<double> slope2, bool upsample)
      : guard_(x.get_device_index()), x_(x) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
    STD_TORCH_CHECK(patches.scalar_type() == ScalarType::Int && patches.is_contiguous(), "patches: expected contiguous int32");
    STD_TORCH_CHECK(patches.numel() < (int64_t(1) << 31), "patches: ", patches.numel(), " pixels, at most 2^31 - 1");
    p.type = type_of(x);
    p.channels_last = is_channels_last(y, "y"), p.upsample = upsample, p.per_sample = mean.size(0) > 1;
    p.outputs = slope2 ? 2 : 1;
    p.n = x.size(0), p.c = x.size(1), p.h = x.size(2), p.w = x.size(3), p.rows = table.size(0);
    STD_TORCH_CHECK(table.size(1) == 2 * p.c * p.outputs, "table: ", table.size(1), " columns, expected ", 2 * p.c * p.outputs);
    p.slope[0] = static_cast<float>(slope), p.slope[1] = static_cast<float>(slope2.value_or(1));
    p.x = image(x, "x");
    p.table = numbers(table, "table"), p.mean = numbers(mean, "mean"), p.rstd = numbers(rstd, "rstd");
    p.patches = static_cast<const int32_t*>(aligned(patches));
  }

  // Data of a tensor with the type and layout of y.
  const void* image(const Tensor& t, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == x_.scalar_type() && t.get_device_index() == x_.get_device_index(), name,
                    ": type or device not of x");
    const bool either = t.size(1) == 1 || t.size(2) * t.size(3) == 1;
    STD_TORCH_CHECK(either || is_channels_last(t, name) == p.channels_last, name, ": layout differs from that of y");
    return aligned(t);
  }
  void* output(const Tensor& t, const char* name) {
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0, name, ": not 16-byte aligned");
    return const_cast<void*>(image(t, name));
  }
  const float* numbers(const Tensor& t, const char* name) {
    floats(t, name);
    return static_cast<const float*>(aligned(t));
  }
  Tensor scratch(std::initializer_list<int64_t> sizes) { return torch::stable::new_empty(x_, sizes, ScalarType::Float); }

 private:
  // Slices may begin anywhere, kernels read 16 bytes at a time.
  const void* aligned(const Tensor& t) {
    kept_.push_back(reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 ? torch::stable::clone(t) : t);
    return kept_.back().data_ptr();
  }

  torch::stable::accelerator::DeviceGuard guard_;
  Tensor x_;
  std::vector<Tensor> kept_;
};

// Pixels sorted by index, stably, as (order, offsets).
std::pair<Tensor, Tensor> sort_pixels(const Tensor& patches, int64_t rows, cudaStream_t stream) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(torch::stable::flatten(patches)),
                                    torch::stable::detail::from(std::optional<bool>(true)), torch::stable::detail::from(int64_t(0)),
                                    torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  const auto sorted = torch::stable::detail::to<Tensor>(stack[0]), order = torch::stable::detail::to<Tensor>(stack[1]);
  const Tensor offsets = torch::stable::new_empty(patches, {rows + 1});
  check(cuda::segment_offsets(static_cast<const int32_t*>(sorted.data_ptr()), sorted.numel(), rows,
                              static_cast<int32_t*>(offsets.data_ptr()), stream));
  return {torch::stable::to(order, ScalarType::Int), offsets};
}

}  // namespace

void modulate_table(const Tensor& x, const Tensor& table, const Tensor& patches, const Tensor& mean, const Tensor& rstd, double slope,
                    std::optional<double> slope2, bool upsample, const Tensor& y, const Optional& y2) {
  Call call(x, y, table, patches, mean, rstd, slope, slope2, upsample);
  call.p.y[0] = call.output(y, "y"), call.p.y[1] = y2 ? call.output(*y2, "y2") : nullptr;
  check(cuda::modulate_table_forward(call.p, call.stream));
}

void modulate_table_sums(const Tensor& dy, const Optional& dy2, const Tensor& x, const Tensor& table, const Tensor& patches,
                         const Optional& order, const Optional& offsets, const Tensor& mean, const Tensor& rstd, double slope,
                         std::optional<double> slope2, bool upsample, const Tensor& dtable, const Tensor& sums) {
  // Pixels of one row are scattered: their channels had better lie side by side.
  const auto dense = [](const Tensor& t) { return torch::stable::contiguous(t, torch::headeronly::MemoryFormat::ChannelsLast); };
  const Tensor dy_dense = dense(dy);
  Call call(dense(x), dy_dense, table, patches, mean, rstd, slope, slope2, upsample);
  call.p.dy[0] = call.image(dy_dense, "dy"), call.p.dy[1] = dy2 ? call.image(dense(*dy2), "dy2") : nullptr;
  const bool sorted = order && offsets;
  const auto [by_row, starts] = sorted ? std::pair(*order, *offsets) : sort_pixels(patches, table.size(0), call.stream);
  STD_TORCH_CHECK(by_row.scalar_type() == ScalarType::Int && by_row.numel() == patches.numel(), "order: expected int32, one per pixel");
  STD_TORCH_CHECK(starts.scalar_type() == ScalarType::Int && starts.numel() == call.p.rows + 1,
                  "offsets: expected int32, one per row and one");
  const int64_t boundaries = cuda::partial_rows(patches.numel()), channels = call.p.c;
  const Tensor partials = call.scratch({boundaries, table.size(1)});
  auto* partial = mutable_floats(partials, "partials");
  auto* rows = mutable_floats(dtable, "dtable");
  check(cuda::modulate_table_segments(call.p, static_cast<const int32_t*>(by_row.data_ptr()),
                                      static_cast<const int32_t*>(starts.data_ptr()), partial, rows, call.stream));
  Tensor result = sums;
  if (call.p.per_sample) {
    const Tensor per_sample = call.scratch({call.p.n, 2, channels});
    check(cuda::modulate_table_segments(call.p, nullptr, nullptr, partial, mutable_floats(per_sample, "sums"), call.stream));
    torch::stable::copy_(result, torch::stable::transpose(per_sample, 0, 1));
  } else {
    // g = dz * (1 + gamma), and 1 + gamma is constant along a row.
    const int64_t chunks = std::min<int64_t>(128, ceil_div(call.p.rows, 64));
    const Tensor parts = call.scratch({chunks, 2, 1, channels});
    check(cuda::modulate_table_row_sums(call.p, rows, chunks, mutable_floats(parts, "sums"), call.stream));
    const int64_t first = 0;
    torch::stable::copy_(result, torch::stable::sum(parts, torch::headeronly::IntHeaderOnlyArrayRef(&first, 1)));
  }
}

void modulate_table_dx(const Tensor& dy, const Optional& dy2, const Tensor& x, const Tensor& table, const Tensor& patches,
                       const Tensor& mean, const Tensor& rstd, const Tensor& means, double slope, std::optional<double> slope2,
                       bool upsample, const Tensor& dx) {
  Call call(x, dy, table, patches, mean, rstd, slope, slope2, upsample);
  call.p.dy[0] = call.image(dy, "dy"), call.p.dy[1] = dy2 ? call.image(*dy2, "dy2") : nullptr;
  call.p.means = call.numbers(means, "means"), call.p.dx = call.output(dx, "dx");
  check(cuda::modulate_table_dx(call.p, call.stream));
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cuda, m) {
  m.def(
      "modulate_table(Tensor x, Tensor table, Tensor patches, Tensor mean, Tensor rstd, float slope, float? slope2, bool upsample, "
      "Tensor(a!) y, Tensor(b!)? y2) -> ()");
  m.def(
      "modulate_table_sums(Tensor dy, Tensor? dy2, Tensor x, Tensor table, Tensor patches, Tensor? order, Tensor? offsets, Tensor mean, "
      "Tensor rstd, float slope, float? slope2, bool upsample, Tensor(a!) dtable, Tensor(b!) sums) -> ()");
  m.def(
      "modulate_table_dx(Tensor dy, Tensor? dy2, Tensor x, Tensor table, Tensor patches, Tensor mean, Tensor rstd, Tensor means, float "
      "slope, float? slope2, bool upsample, Tensor(a!) dx) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cuda, CUDA, m) {
  m.impl("modulate_table", TORCH_BOX(&modulate_table));
  m.impl("modulate_table_sums", TORCH_BOX(&modulate_table_sums));
  m.impl("modulate_table_dx", TORCH_BOX(&modulate_table_dx));
}

}  // namespace i2ifast
