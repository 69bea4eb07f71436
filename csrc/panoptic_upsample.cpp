#include "../kernels/panoptic_upsample.h"

#include "common.h"

namespace i2ifast {

namespace {

const int32_t* list(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Int && t.is_contiguous(), name, ": expected contiguous int32");
  return static_cast<const int32_t*>(t.data_ptr());
}

// `small` and `large` have one layout; planes of a single pixel or a single channel lie the same in both.
PanopticUpsample params(const Tensor& small, const Tensor& large) {
  STD_TORCH_CHECK(small.scalar_type() == large.scalar_type(), "expected one dtype");
  PanopticUpsample p{};
  p.dtype = dtype_of(small), p.channels_last = channels_last(large);
  bool points = small.size(2) * small.size(3) == 1;
  STD_TORCH_CHECK(p.channels_last ? points || channels_last(small) : small.is_contiguous(), "expected one layout");
  p.n = small.size(0), p.c = small.size(1), p.pixels = small.size(2) * small.size(3), p.copied = large.size(2) * large.size(3);
  return p;
}

template <class Kernel>
void launch(Kernel kernel, const PanopticUpsample& p, int64_t pixels) {
  int64_t items = p.n * (p.channels_last ? pixels : p.c);
  torch::stable::parallel_for(0, items, grain(p.n * p.c * p.copied / items), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace

void panoptic_upsample(const Tensor& x, const Tensor& source, const Tensor& y) {
  PanopticUpsample p = params(x, y);
  p.source = list(source, "source"), p.in = x.data_ptr(), p.out = output(y);
  launch(I2IFAST_PICK(panoptic_upsample), p, p.copied);
}

void panoptic_upsample_dx(const Tensor& dy, const Tensor& offsets, const Tensor& copies, const Tensor& dx) {
  PanopticUpsample p = params(dx, dy);
  p.offsets = list(offsets, "offsets"), p.copies = list(copies, "copies"), p.in = dy.data_ptr(), p.out = output(dx);
  launch(I2IFAST_PICK(panoptic_upsample_dx), p, p.pixels);
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("panoptic_upsample(Tensor x, Tensor source, Tensor(a!) y) -> ()");
  m.def("panoptic_upsample_dx(Tensor dy, Tensor offsets, Tensor copies, Tensor(a!) dx) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("panoptic_upsample", TORCH_BOX(&panoptic_upsample));
  m.impl("panoptic_upsample_dx", TORCH_BOX(&panoptic_upsample_dx));
}

}  // namespace i2ifast
