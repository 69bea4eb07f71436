#include "../kernels/panoptic_conv.h"

#include "common.h"

namespace i2ifast {

namespace {

const int32_t* list(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Int && t.is_contiguous(), name, ": expected contiguous int32");
  return static_cast<const int32_t*>(t.data_ptr());
}

// Rows of `image`, which is channels_last, or contiguous with nothing to tell the two apart.
PanopticRows params(const Tensor& image, const Tensor& rows) {
  STD_TORCH_CHECK(image.size(1) == 1 || image.size(2) * image.size(3) == 1 || channels_last(image), "expected a channels_last image");
  STD_TORCH_CHECK(rows.is_contiguous() && rows.scalar_type() == image.scalar_type(), "rows: expected contiguous, of the image's dtype");
  PanopticRows p{};
  p.dtype = dtype_of(image), p.width = image.size(1);
  return p;
}

template <class Kernel>
void launch(Kernel kernel, const PanopticRows& p, int64_t items, int64_t each) {
  torch::stable::parallel_for(0, items, grain(each), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace

void panoptic_gather(const Tensor& x, const Tensor& taps, const Tensor& columns) {
  PanopticRows p = params(x, columns);
  p.in = x.data_ptr(), p.index = list(taps, "taps"), p.out = columns.data_ptr();
  launch(I2IFAST_PICK(panoptic_gather), p, taps.numel(), p.width);
}

void panoptic_put(const Tensor& y, const Tensor& rows, const std::optional<Tensor>& bias, const Tensor& at, const Tensor& taps) {
  PanopticRows p = params(y, rows);
  if (bias) STD_TORCH_CHECK(bias->scalar_type() == y.scalar_type() && bias->is_contiguous(), "bias: expected contiguous, of y's dtype");
  p.in = rows.data_ptr(), p.bias = bias ? bias->data_ptr() : nullptr, p.at = list(at, "at"), p.index = list(taps, "taps");
  p.taps = taps.size(1), p.out = y.data_ptr();
  launch(I2IFAST_PICK(panoptic_put), p, at.numel(), p.width);
}

void panoptic_take(const Tensor& dy, const Tensor& at, const Tensor& taps, const Tensor& rows) {
  PanopticRows p = params(dy, rows);
  p.in = dy.data_ptr(), p.at = list(at, "at"), p.index = list(taps, "taps"), p.taps = taps.size(1), p.out = rows.data_ptr();
  launch(I2IFAST_PICK(panoptic_take), p, at.numel(), p.width);
}

void panoptic_add(const Tensor& dx, const Tensor& columns, const Tensor& taps) {
  PanopticRows p{};
  p.dtype = dtype_of(columns), p.width = dx.size(1), p.taps = taps.size(1), p.windows = taps.size(0);
  STD_TORCH_CHECK(dx.scalar_type() == ScalarType::Float && columns.is_contiguous(), "expected float32 dx, contiguous columns");
  p.in = columns.data_ptr(), p.index = list(taps, "taps"), p.out = dx.data_ptr();
  int64_t blocks = ceil_div(p.width, kPanopticBlock);
  launch(I2IFAST_PICK(panoptic_add), p, blocks, taps.numel() * kPanopticBlock);
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("panoptic_gather(Tensor x, Tensor taps, Tensor(a!) columns) -> ()");
  m.def("panoptic_put(Tensor(a!) y, Tensor rows, Tensor? bias, Tensor at, Tensor taps) -> ()");
  m.def("panoptic_take(Tensor dy, Tensor at, Tensor taps, Tensor(a!) rows) -> ()");
  m.def("panoptic_add(Tensor(a!) dx, Tensor columns, Tensor taps) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("panoptic_gather", TORCH_BOX(&panoptic_gather));
  m.impl("panoptic_put", TORCH_BOX(&panoptic_put));
  m.impl("panoptic_take", TORCH_BOX(&panoptic_take));
  m.impl("panoptic_add", TORCH_BOX(&panoptic_add));
}

}  // namespace i2ifast
