#include "modulate_table.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

constexpr int64_t kRun = 128;  // pixels summed in float32 before they go into the float64 row

// What multiplies 1 + gamma (s) and beta (t) of output k at a pixel of y.
struct Scale {
  float s, t;
  Scale(const ModulateTable& p, int64_t pixel, int k)
      : s(p.scales[2 * (pixel * p.outputs + k)]), t(p.scales[2 * (pixel * p.outputs + k) + 1]) {}
};

// The row functions of elements.h with a Scale.
template <class T>
inline void scaled_forward(const T* __restrict x, const float* __restrict mean, const float* __restrict rstd, const float* __restrict gamma,
                           const float* __restrict beta, Scale by, T* __restrict y, int64_t n, float slope) {
  for (int64_t c = 0; c < n; ++c) {
    float xhat = (load(x[c]) - mean[c]) * rstd[c];
    store(y + c, act(xhat * ((1 + gamma[c]) * by.s) + beta[c] * by.t, slope));
  }
}

// Sums of one output over a run of pixels of y that share a table row, for `n` <= kLanes channels: gradients of gamma and beta, and g.
struct Run {
  const ModulateTable& p;
  const float *mean, *rstd, *gamma, *beta;
  int64_t first, last, scale;  // pixels of a row of y, and how many of them are one of x
  int64_t at;                  // of that row among all pixels of y
  int k;
};

template <class T, bool Scaled>
inline void run_sums(const Run& r, const T* __restrict dy, const T* __restrict x, int64_t c0, int64_t n, float (*__restrict sums)[kLanes]) {
  float mean[kLanes] = {}, rstd[kLanes] = {}, gain[kLanes] = {}, beta[kLanes] = {};
  float dgamma[kLanes] = {}, dbeta[kLanes] = {}, g[kLanes] = {};
  for (int64_t c = 0; c < n; ++c)
    mean[c] = r.mean[c0 + c], rstd[c] = r.rstd[c0 + c], gain[c] = 1 + r.gamma[c0 + c], beta[c] = r.beta[c0 + c];
  const float slope = r.p.slope[r.k];
  auto pixel = [&](int64_t j, int64_t lanes) {
    const T *from = x + j / r.scale * r.p.c + c0, *by = dy + j * r.p.c + c0;
    float s = 1, t = 1;
    if (Scaled) {
      Scale of(r.p, r.at + j, r.k);
      s = of.s, t = of.t;
    }
    for (int64_t c = 0; c < lanes; ++c) {
      float xhat = (load(from[c]) - mean[c]) * rstd[c];
      float dz = xhat * (gain[c] * s) + beta[c] * t > 0 ? load(by[c]) : load(by[c]) * slope;
      dgamma[c] += dz * xhat * s;
      dbeta[c] += dz * t;
      g[c] += dz * gain[c] * s;
    }
  };
  if (n == kLanes)
    for (int64_t j = r.first; j < r.last; ++j) pixel(j, kLanes);
  else
    for (int64_t j = r.first; j < r.last; ++j) pixel(j, n);
  for (int64_t c = 0; c < kLanes; ++c) sums[0][c] = dgamma[c], sums[1][c] = dbeta[c], sums[2][c] = g[c];
}

// Adds g to a row, and the gradients of s and t to `lanes` [2][kLanes].
template <class T>
inline void scaled_gradient(const T* __restrict dy, const T* __restrict x, const float* __restrict mean, const float* __restrict rstd,
                            const float* __restrict gamma, const float* __restrict beta, Scale by, float* __restrict g,
                            float (*__restrict lanes)[kLanes], int64_t n, float slope) {
  auto one = [&](int64_t c, int64_t lane) {
    float xhat = (load(x[c]) - mean[c]) * rstd[c], scale = 1 + gamma[c];
    float z = xhat * (scale * by.s) + beta[c] * by.t;
    float dz = z > 0 ? load(dy[c]) : load(dy[c]) * slope;
    g[c] += dz * scale * by.s;
    lanes[0][lane] += dz * xhat * scale;
    lanes[1][lane] += dz * beta[c];
  };
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) one(c + lane, lane);
  for (; c < n; ++c) one(c, c % kLanes);
}

template <class T, bool Scaled>
void forward(const ModulateTable& p, int64_t begin, int64_t end) {
  int64_t scale = p.upsample ? 2 : 1, width = p.w * scale, height = p.h * scale, row = 2 * p.c * p.outputs;
  for (int64_t r = begin; r < end; ++r) {
    int64_t sample = r / height, y = r % height;
    const T* x = static_cast<const T*>(p.x) + (sample * p.h + y / scale) * p.w * p.c;
    const float *mean = p.mean + (p.per_sample ? sample * p.c : 0), *rstd = p.rstd + (p.per_sample ? sample * p.c : 0);
    for (int64_t i = 0; i < width; ++i) {
      const float* table = p.table + p.patches[r * width + i] * row;
      for (int k = 0; k < p.outputs; ++k) {
        const float *gamma = table + 2 * k * p.c, *beta = gamma + p.c;
        T* to = static_cast<T*>(p.y[k]) + (r * width + i) * p.c;
        if (Scaled)
          scaled_forward(x + i / scale * p.c, mean, rstd, gamma, beta, Scale(p, r * width + i, k), to, p.c, p.slope[k]);
        else
          row_forward<1>(x + i / scale * p.c, mean, rstd, gamma, beta, to, p.c, p.slope[k]);
      }
    }
  }
}

// One thread owns a range of channels for all pixels: no two threads meet in a table row, and the order of summation does not depend on how
// many threads there are.
template <class T, bool Scaled>
void sums(const ModulateTable& p, int64_t c0, int64_t n) {
  int64_t scale = p.upsample ? 2 : 1, width = p.w * scale, height = p.h * scale, row = 2 * p.c * p.outputs;
  int64_t groups = p.per_sample ? p.n : 1;
  float sums[3][kLanes];
  for (int64_t sample = 0; sample < p.n; ++sample) {
    int64_t group = p.per_sample ? sample : 0;
    const float *mean = p.mean + group * p.c + c0, *rstd = p.rstd + group * p.c + c0;
    double *sum_g = p.sums + group * p.c + c0, *sum_gx = p.sums + (groups + group) * p.c + c0;
    for (int64_t y = 0; y < height; ++y) {
      const int32_t* patches = p.patches + (sample * height + y) * width;
      const T* x = static_cast<const T*>(p.x) + (sample * p.h + y / scale) * p.w * p.c + c0;
      for (int64_t i = 0, next; i < width; i = next) {
        const float* table = p.table + patches[i] * row + c0;
        for (next = i + 1; next < width && next < i + kRun && patches[next] == patches[i];) ++next;
        for (int k = 0; k < p.outputs; ++k) {
          const int64_t first = (sample * height + y) * width;
          const T* dy = static_cast<const T*>(p.dy[k]) + first * p.c + c0;
          const float *gamma = table + 2 * k * p.c, *beta = gamma + p.c;
          const Run run{p, mean, rstd, gamma, beta, i, next, scale, first, k};
          double *row_gamma = p.dtable + patches[i] * row + 2 * k * p.c + c0, *row_beta = row_gamma + p.c;
          for (int64_t from = 0; from < n; from += kLanes) {
            const int64_t lanes = n - from < kLanes ? n - from : kLanes;
            run_sums<T, Scaled>(run, dy, x, from, lanes, sums);
            for (int64_t lane = 0, c = from; lane < lanes; ++lane, ++c) {
              row_gamma[c] += sums[0][lane];
              row_beta[c] += sums[1][lane];
              sum_g[c] += sums[2][lane];
              sum_gx[c] += (1 + gamma[c]) * sums[0][lane];
            }
          }
        }
      }
    }
  }
}

template <class T, bool Scaled>
void dx(const ModulateTable& p, int64_t begin, int64_t end) {
  int64_t scale = p.upsample ? 2 : 1, width = p.w * scale, row = 2 * p.c * p.outputs, groups = p.per_sample ? p.n : 1;
  float g[kBlock], lanes[8][2][kLanes];  // lanes of every pixel of y and output
  for (int64_t r = begin; r < end; ++r) {
    int64_t group = p.per_sample ? r / p.h : 0;
    const float *mean = p.mean + group * p.c, *rstd = p.rstd + group * p.c, *mean_g = p.means + group * p.c,
                *mean_gx = p.means + (groups + group) * p.c;
    for (int64_t i = 0; i < p.w; ++i) {
      const T* x = static_cast<const T*>(p.x) + (r * p.w + i) * p.c;
      if (Scaled) std::memset(lanes, 0, sizeof(lanes));
      for (int64_t c = 0; c < p.c; c += kBlock) {
        int64_t n = p.c - c < kBlock ? p.c - c : kBlock;
        std::memset(g, 0, sizeof(g));
        for (int64_t cell = 0; cell < scale * scale; ++cell) {
          int64_t at = (r * scale + cell / scale) * width + i * scale + cell % scale;
          const float* table = p.table + p.patches[at] * row + c;
          for (int k = 0; k < p.outputs; ++k) {
            const float *gamma = table + 2 * k * p.c, *beta = gamma + p.c;
            const T* dy = static_cast<const T*>(p.dy[k]) + at * p.c + c;
            if (Scaled)
              scaled_gradient(dy, x + c, mean + c, rstd + c, gamma, beta, Scale(p, at, k), g, lanes[2 * cell + k], n, p.slope[k]);
            else
              row_gradient<1>(dy, x + c, mean + c, rstd + c, gamma, beta, g, n, p.slope[k]);
          }
        }
        row_dx(g, x + c, mean + c, rstd + c, mean_g + c, mean_gx + c, static_cast<T*>(p.dx) + (r * p.w + i) * p.c + c, n);
      }
      for (int64_t cell = 0; Scaled && cell < scale * scale; ++cell)
        for (int k = 0; k < p.outputs; ++k)
          for (int which = 0; which < 2; ++which) {
            int64_t at = (r * scale + cell / scale) * width + i * scale + cell % scale;
            p.dscales[2 * (at * p.outputs + k) + which] = static_cast<float>(add_lanes(lanes[2 * cell + k][which]));
          }
    }
  }
}

}  // namespace

void modulate_table_forward(const ModulateTable& p, int64_t begin, int64_t end) {
  if (p.scales)
    p.dtype == DType::f32 ? forward<float, true>(p, begin, end) : forward<bf16, true>(p, begin, end);
  else
    p.dtype == DType::f32 ? forward<float, false>(p, begin, end) : forward<bf16, false>(p, begin, end);
}

void modulate_table_sums(const ModulateTable& p, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; c += kBlock) {
    int64_t n = end - c < kBlock ? end - c : kBlock;
    if (p.scales)
      p.dtype == DType::f32 ? sums<float, true>(p, c, n) : sums<bf16, true>(p, c, n);
    else
      p.dtype == DType::f32 ? sums<float, false>(p, c, n) : sums<bf16, false>(p, c, n);
  }
}

void modulate_table_dx(const ModulateTable& p, int64_t begin, int64_t end) {
  if (p.scales)
    p.dtype == DType::f32 ? dx<float, true>(p, begin, end) : dx<bf16, true>(p, begin, end);
  else
    p.dtype == DType::f32 ? dx<float, false>(p, begin, end) : dx<bf16, false>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
