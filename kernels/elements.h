// The formula y = act((x - mean) * rstd * (Base + gamma) + beta), Base = 1 (maps, tables) or 0 (styles, whose gamma is the scale), on a row
// of channels (channels_last: statistics and modulation vary along the row) and on a run of a plane (contiguous: they are scalars, or gamma
// and beta maps). Included by kernel files only.
#pragma once
#include "isa.h"

namespace i2ifast {
namespace ISA {
namespace {

struct bf16 {
  uint16_t bits;
};

inline float load(float v) { return v; }
inline float load(bf16 v) {
  uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline void store(float* p, float v) { *p = v; }
inline void store(bf16* p, float v) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  p->bits = static_cast<uint16_t>(v != v ? 0x7fc0 : rounded);
}

inline float act(float z, float slope) { return z > 0 ? z : z * slope; }

template <int Base, class X, class T, class G>
inline void row_forward(const X* __restrict x, const float* __restrict mean, const float* __restrict rstd, const G* __restrict gamma,
                        const G* __restrict beta, T* __restrict y, int64_t n, float slope) {
  for (int64_t c = 0; c < n; ++c) {
    float xhat = (load(x[c]) - mean[c]) * rstd[c];
    store(y + c, act(xhat * (Base + load(gamma[c])) + load(beta[c]), slope));
  }
}

// Adds dz * xhat and dz, the gradients of gamma and beta, to two rows.
template <int Base, class T, class G>
inline void row_accumulate(const T* __restrict dy, const T* __restrict x, const float* __restrict mean, const float* __restrict rstd,
                           const G* __restrict gamma, const G* __restrict beta, float* __restrict dgamma, float* __restrict dbeta,
                           int64_t n, float slope) {
  for (int64_t c = 0; c < n; ++c) {
    float xhat = (load(x[c]) - mean[c]) * rstd[c];
    float z = xhat * (Base + load(gamma[c])) + load(beta[c]);
    float dz = z > 0 ? load(dy[c]) : load(dy[c]) * slope;
    dgamma[c] += dz * xhat;
    dbeta[c] += dz;
  }
}

// Adds g = dL/dxhat = dz * (1 + gamma) to a row.
template <int Base, class X, class T, class G>
inline void row_gradient(const T* __restrict dy, const X* __restrict x, const float* __restrict mean, const float* __restrict rstd,
                         const G* __restrict gamma, const G* __restrict beta, float* __restrict g, int64_t n, float slope) {
  for (int64_t c = 0; c < n; ++c) {
    float scale = Base + load(gamma[c]);
    float z = (load(x[c]) - mean[c]) * rstd[c] * scale + load(beta[c]);
    g[c] += (z > 0 ? load(dy[c]) : load(dy[c]) * slope) * scale;
  }
}

// dx = rstd * (g - mean(g) - xhat * mean(g * xhat)).
template <class X, class T>
inline void row_dx(const float* __restrict g, const X* __restrict x, const float* __restrict mean, const float* __restrict rstd,
                   const float* __restrict mean_g, const float* __restrict mean_gx, T* __restrict dx, int64_t n) {
  for (int64_t c = 0; c < n; ++c) {
    float xhat = (load(x[c]) - mean[c]) * rstd[c];
    store(dx + c, rstd[c] * (g[c] - mean_g[c] - xhat * mean_gx[c]));
  }
}

constexpr int64_t kLanes = 16;   // partial sums of a plane's run, so that it vectorises
constexpr int64_t kBlock = 128;  // channels that a row kernel handles at a time: its scratch rows stay in L1

typedef float vec __attribute__((vector_size(kLanes * 4), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(kLanes * 2), aligned(2)));
typedef uint32_t words __attribute__((vector_size(kLanes * 4)));

// By reference: how a vector is returned depends on the instruction set.
inline void load_lanes(const float* p, vec& v) { v = *reinterpret_cast<const vec*>(p); }
inline void load_lanes(const bf16* p, vec& v) {
  words bits = __builtin_convertvector(*reinterpret_cast<const halves*>(p), words) << 16;
  std::memcpy(&v, &bits, sizeof(v));
}
inline void store_lanes(float* p, const vec& v) { *reinterpret_cast<vec*>(p) = v; }

inline double add_lanes(const float* lanes) {
  double sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

}  // namespace
}  // namespace ISA
}  // namespace i2ifast
