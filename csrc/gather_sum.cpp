#include "../kernels/gather_sum.h"

#include "common.h"

namespace i2ifast {

void gather_sum(const Tensor& rows, const Tensor& offsets, const Tensor& index, const Tensor& out) {
  STD_TORCH_CHECK(rows.is_contiguous() && out.stride(1) == 1 && offsets.is_contiguous() && index.is_contiguous(),
                  "expected contiguous tensors, and contiguous rows of out");
  STD_TORCH_CHECK(offsets.scalar_type() == ScalarType::Int && index.scalar_type() == ScalarType::Int, "expected int32 lists");
  GatherSum p{dtype_of(rows),
              rows.data_ptr(),
              static_cast<const int32_t*>(offsets.data_ptr()),
              static_cast<const int32_t*>(index.data_ptr()),
              output(out),
              rows.size(1),
              out.stride(0)};
  int64_t count = out.size(0);
  auto kernel = I2IFAST_PICK(gather_sum_rows);
  torch::stable::parallel_for(0, count, grain(count > 0 ? index.numel() * p.width / count : 1),
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) { m.def("gather_sum(Tensor rows, Tensor offsets, Tensor index, Tensor(a!) out) -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) { m.impl("gather_sum", TORCH_BOX(&gather_sum)); }

}  // namespace i2ifast
