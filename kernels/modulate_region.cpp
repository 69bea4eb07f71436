#include "modulate_region.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

constexpr int64_t kRun = 128;  // pixels summed in float32 before they go into the float64 row

// What a pixel brings: its row of the table, and its own factor and offset.
struct Pixel {
  const float *mean, *rstd, *scale, *shift;
  float factor = 1, offset = 0;
  int64_t map = 0;  // of gamma in maps
  Pixel(const ModulateRegion& p, int64_t i) : mean(p.rows + p.ids[i] * p.width), rstd(mean + p.c), scale(rstd + p.c), shift(scale + p.c) {
    if (p.maps) {
      map = i + i / p.pixels * p.pixels;
      factor = 1 + p.maps[map], offset = p.maps[map + p.pixels];
    }
  }
};

template <class T>
void forward(const ModulateRegion& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Pixel s(p, i);
    const T* __restrict x = static_cast<const T*>(p.x) + i * p.c;
    T* __restrict y = static_cast<T*>(p.y) + i * p.c;
    for (int64_t c = 0; c < p.c; ++c)
      store(y + c, act(((load(x[c]) - s.mean[c]) * s.rstd[c] * s.scale[c] + s.shift[c]) * s.factor + s.offset, p.slope));
  }
}

// One thread owns a range of channels for all pixels: no two threads meet in a row, and the order of summation does not depend on how many
// threads there are.
template <class T>
void sums(const ModulateRegion& p, int64_t c0, int64_t n) {
  const float slope = p.slope;  // a local, else the choice of dz is no select and nothing vectorises
  float sum_x[kBlock], sum[kBlock];
  int64_t pixels = p.samples * p.pixels;
  for (int64_t i = 0, next; i < pixels; i = next) {
    std::memset(sum_x, 0, sizeof(sum_x));
    std::memset(sum, 0, sizeof(sum));
    for (next = i; next < pixels && next < i + kRun && p.ids[next] == p.ids[i]; ++next) {
      const Pixel s(p, next);
      const float *mean = s.mean + c0, *rstd = s.rstd + c0, *scale = s.scale + c0, *shift = s.shift + c0;
      const T *x = static_cast<const T*>(p.x) + next * p.c + c0, *dy = static_cast<const T*>(p.dy) + next * p.c + c0;
      for (int64_t c = 0; c < n; ++c) {
        float xhat = (load(x[c]) - mean[c]) * rstd[c], z = (xhat * scale[c] + shift[c]) * s.factor + s.offset;
        float dt = (z > 0 ? load(dy[c]) : load(dy[c]) * slope) * s.factor;
        sum_x[c] += dt * xhat;
        sum[c] += dt;
      }
    }
    double *row_x = p.sums + p.ids[i] * 2 * p.c + c0, *row = row_x + p.c;
    for (int64_t c = 0; c < n; ++c) {
      row_x[c] += sum_x[c];
      row[c] += sum[c];
    }
  }
}

template <class T, bool Maps>
void dx(const ModulateRegion& p, int64_t begin, int64_t end) {
  // Stored, so that dt is rounded as its mean is: what is left of it in a region of one pixel is nothing.
  const float slope = p.slope;
  float dt[kBlock];
  for (int64_t i = begin; i < end; ++i) {
    const Pixel s(p, i);
    const T *x = static_cast<const T*>(p.x) + i * p.c, *dy = static_cast<const T*>(p.dy) + i * p.c;
    float sum_t[kLanes] = {}, sum[kLanes] = {};
    for (int64_t c0 = 0; c0 < p.c; c0 += kBlock) {
      int64_t n = p.c - c0 < kBlock ? p.c - c0 : kBlock, c = 0;
      auto one = [&](int64_t c, int64_t lane) {
        float xhat = (load(x[c0 + c]) - s.mean[c0 + c]) * s.rstd[c0 + c], t = xhat * s.scale[c0 + c] + s.shift[c0 + c];
        float dz = t * s.factor + s.offset > 0 ? load(dy[c0 + c]) : load(dy[c0 + c]) * slope;
        dt[c] = dz * s.factor;
        if (Maps) sum_t[lane] += dz * t, sum[lane] += dz;
      };
      for (; c + kLanes <= n; c += kLanes)
        for (int64_t lane = 0; lane < kLanes; ++lane) one(c + lane, lane);
      for (; c < n; ++c) one(c, c % kLanes);
      const float *mean_dtx = s.shift + p.c + c0, *mean_dt = mean_dtx + p.c;
      T* dx = static_cast<T*>(p.dx) + i * p.c + c0;
      for (c = 0; c < n; ++c) {
        float rstd = s.rstd[c0 + c], xhat = (load(x[c0 + c]) - s.mean[c0 + c]) * rstd;
        store(dx + c, rstd * s.scale[c0 + c] * (dt[c] - mean_dt[c] - xhat * mean_dtx[c]));
      }
    }
    if (Maps) p.dmaps[s.map] = static_cast<float>(add_lanes(sum_t)), p.dmaps[s.map + p.pixels] = static_cast<float>(add_lanes(sum));
  }
}

}  // namespace

void modulate_region_forward(const ModulateRegion& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? forward<float>(p, begin, end) : forward<bf16>(p, begin, end);
}

void modulate_region_sums(const ModulateRegion& p, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; c += kBlock) {
    int64_t n = end - c < kBlock ? end - c : kBlock;
    p.dtype == DType::f32 ? sums<float>(p, c, n) : sums<bf16>(p, c, n);
  }
}

void modulate_region_dx(const ModulateRegion& p, int64_t begin, int64_t end) {
  if (p.dmaps)
    p.dtype == DType::f32 ? dx<float, true>(p, begin, end) : dx<bf16, true>(p, begin, end);
  else
    p.dtype == DType::f32 ? dx<float, false>(p, begin, end) : dx<bf16, false>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
