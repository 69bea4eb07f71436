// One source, several instruction sets: every CPU kernel file is compiled once per set with -DISA=<name> and puts its functions
// into namespace i2ifast::<name>. PICK(f) is the f of the best set this processor has; I2IFAST_ISA=base|avx2|avx512 lowers it.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace i2ifast {

enum class DType { f32, bf16 };

#if defined(__x86_64__)
enum class Isa { base, avx2, avx512 };

inline Isa isa() {
  static const Isa chosen = [] {
    Isa best = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512dq")
                   ? Isa::avx512
                   : (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? Isa::avx2 : Isa::base);
    const char* wanted = std::getenv("I2IFAST_ISA");
    if (wanted && !std::strcmp(wanted, "base")) best = Isa::base;
    if (wanted && !std::strcmp(wanted, "avx2") && best == Isa::avx512) best = Isa::avx2;
    return best;
  }();
  return chosen;
}

#define I2IFAST_DECLARE(result, name, arguments) \
  namespace base {                               \
  result name arguments;                         \
  }                                              \
  namespace avx2 {                               \
  result name arguments;                         \
  }                                              \
  namespace avx512 {                             \
  result name arguments;                         \
  }
#define I2IFAST_PICK(name)                                        \
  (i2ifast::isa() == i2ifast::Isa::avx512 ? i2ifast::avx512::name \
   : i2ifast::isa() == i2ifast::Isa::avx2 ? i2ifast::avx2::name   \
                                          : i2ifast::base::name)
#else
#define I2IFAST_DECLARE(result, name, arguments) \
  namespace base {                               \
  result name arguments;                         \
  }
#define I2IFAST_PICK(name) (i2ifast::base::name)
#endif

}  // namespace i2ifast
