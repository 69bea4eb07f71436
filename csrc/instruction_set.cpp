#include "common.h"

namespace i2ifast {

int64_t instruction_set() {
#if defined(__x86_64__)
  return static_cast<int64_t>(isa());
#else
  return 0;
#endif
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) { m.def("instruction_set() -> int"); }
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CompositeExplicitAutograd, m) { m.impl("instruction_set", TORCH_BOX(&instruction_set)); }

}  // namespace i2ifast
