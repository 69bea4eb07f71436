#include "bias_act.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

inline float value(const BiasAct& p, float z) { return act(z, p.slope) * p.gain; }

inline float clamped(const BiasAct& p, float y) { return y > p.clamp ? p.clamp : y < -p.clamp ? -p.clamp : y; }

inline float derivative(const BiasAct& p, float z) {
  float y = value(p, z), slope = z > 0 ? p.gain : p.gain * p.slope;
  return y > p.clamp || y < -p.clamp ? 0.0f : slope;
}

template <class T>
void rows_forward(const BiasAct& p, int64_t begin, int64_t end) {
  const float* __restrict b = p.b;
  int64_t last = end * kBiasActRows < p.rows ? end * kBiasActRows : p.rows;
  for (int64_t row = begin * kBiasActRows; row < last; ++row) {
    const T* __restrict x = static_cast<const T*>(p.x) + row * p.c;
    T* __restrict y = static_cast<T*>(p.y) + row * p.c;
    for (int64_t c = 0; c < p.c; ++c) store(y + c, clamped(p, value(p, load(x[c]) + b[c])));
  }
}

template <class T>
void rows_gradient(const BiasAct& p, int64_t begin, int64_t end) {
  const float* __restrict b = p.b;
  for (int64_t item = begin; item < end; ++item) {
    float* __restrict sum = p.partial + item * p.c;
    std::memset(sum, 0, p.c * sizeof(float));
    int64_t last = (item + 1) * kBiasActRows < p.rows ? (item + 1) * kBiasActRows : p.rows;
    for (int64_t row = item * kBiasActRows; row < last; ++row) {
      const T* __restrict x = static_cast<const T*>(p.x) + row * p.c, * __restrict dy = static_cast<const T*>(p.dy) + row * p.c;
      T* __restrict dx = static_cast<T*>(p.dx) + row * p.c;
      for (int64_t c = 0; c < p.c; ++c) {
        float dz = load(dy[c]) * derivative(p, load(x[c]) + b[c]);
        store(dx + c, dz);
        sum[c] += dz;
      }
    }
  }
}

template <class T>
void planes_forward(const BiasAct& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const T* __restrict x = static_cast<const T*>(p.x) + item * p.pixels;
    T* __restrict y = static_cast<T*>(p.y) + item * p.pixels;
    float b = p.b[item % p.c];
    for (int64_t i = 0; i < p.pixels; ++i) store(y + i, clamped(p, value(p, load(x[i]) + b)));
  }
}

template <class T>
void planes_gradient(const BiasAct& p, int64_t begin, int64_t end) {
  constexpr int64_t kRun = kBiasActRows * kLanes;  // values summed in float32 before they are merged in float64
  for (int64_t item = begin; item < end; ++item) {
    const T* __restrict x = static_cast<const T*>(p.x) + item * p.pixels, * __restrict dy = static_cast<const T*>(p.dy) + item * p.pixels;
    T* __restrict dx = static_cast<T*>(p.dx) + item * p.pixels;
    float b = p.b[item % p.c];
    double total = 0;
    for (int64_t first = 0; first < p.pixels; first += kRun) {
      int64_t last = first + kRun < p.pixels ? first + kRun : p.pixels, i = first;
      float sum[kLanes] = {};
      auto one = [&](int64_t at, int64_t lane) {
        float dz = load(dy[at]) * derivative(p, load(x[at]) + b);
        store(dx + at, dz);
        sum[lane] += dz;
      };
      for (; i + kLanes <= last; i += kLanes)
        for (int64_t lane = 0; lane < kLanes; ++lane) one(i + lane, lane);
      for (; i < last; ++i) one(i, i % kLanes);
      total += add_lanes(sum);
    }
    p.partial[item] = static_cast<float>(total);
  }
}

}  // namespace

void bias_act_forward(const BiasAct& p, int64_t begin, int64_t end) {
  bool f32 = p.dtype == DType::f32;
  if (p.channels_last)
    f32 ? rows_forward<float>(p, begin, end) : rows_forward<bf16>(p, begin, end);
  else
    f32 ? planes_forward<float>(p, begin, end) : planes_forward<bf16>(p, begin, end);
}

void bias_act_gradient(const BiasAct& p, int64_t begin, int64_t end) {
  bool f32 = p.dtype == DType::f32;
  if (p.channels_last)
    f32 ? rows_gradient<float>(p, begin, end) : rows_gradient<bf16>(p, begin, end);
  else
    f32 ? planes_gradient<float>(p, begin, end) : planes_gradient<bf16>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
