#include "modulate_table.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

constexpr int64_t kRun = 128;  // pixels summed in float32 before they go into the float64 row

constexpr float kZeros[kBlock] = {};

// What there is besides the table: a template argument, so that no loop pays for what others take.
enum class Extra { none, scales, noise };
template <Extra E>
struct With {};

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

// A row of x - mean + strength * noise, which takes the place of x with means of 0. In this order noise is not rounded to the digits of a
// large mean.
template <class T>
inline const float* centred(const ModulateTable& p, const T* __restrict x, const float* __restrict mean, int64_t c0, int64_t n, float noise,
                            float* __restrict scratch) {
  const float* strength = p.strength + c0;
  for (int64_t c = 0; c < n; ++c) scratch[c] = load(x[c]) - mean[c] + strength[c] * noise;
  return scratch;
}

// Sums of one output over a run of pixels of y that share a table row, for `n` <= kLanes channels: gradients of gamma and beta, and g; with
// noise also xhat, g * noise and xhat * noise.
struct Run {
  const ModulateTable& p;
  const float *mean, *rstd, *strength, *gamma, *beta;
  int64_t first, last, scale;  // pixels of a row of y, and how many of them are one of x
  int64_t at;                  // of that row among all pixels of y
  int k;
};

template <class T, Extra E>
inline void run_sums(const Run& r, const T* __restrict dy, const T* __restrict x, int64_t c0, int64_t n, float (*__restrict sums)[kLanes]) {
  float mean[kLanes] = {}, rstd[kLanes] = {}, gain[kLanes] = {}, beta[kLanes] = {}, strength[kLanes] = {};
  float dgamma[kLanes] = {}, dbeta[kLanes] = {}, g[kLanes] = {}, sum_x[kLanes] = {}, sum_gn[kLanes] = {}, sum_xn[kLanes] = {};
  for (int64_t c = 0; c < n; ++c)
    mean[c] = r.mean[c0 + c], rstd[c] = r.rstd[c0 + c], gain[c] = 1 + r.gamma[c0 + c], beta[c] = r.beta[c0 + c];
  for (int64_t c = 0; E == Extra::noise && c < n; ++c) strength[c] = r.strength[c0 + c];
  const float slope = r.p.slope[r.k];
  auto pixel = [&](int64_t j, int64_t lanes) {
    const T *from = x + j / r.scale * r.p.c + c0, *by = dy + j * r.p.c + c0;
    float s = 1, t = 1, noise = 0;
    if (E == Extra::scales) {
      Scale of(r.p, r.at + j, r.k);
      s = of.s, t = of.t;
    }
    if (E == Extra::noise) noise = r.p.noise[r.at + j];
    for (int64_t c = 0; c < lanes; ++c) {
      float centred = load(from[c]) - mean[c];
      if (E == Extra::noise) centred += strength[c] * noise;
      float xhat = centred * rstd[c];
      float dz = xhat * (gain[c] * s) + beta[c] * t > 0 ? load(by[c]) : load(by[c]) * slope;
      dgamma[c] += dz * xhat * s;
      dbeta[c] += dz * t;
      g[c] += dz * gain[c] * s;
      if (E != Extra::noise) continue;
      sum_x[c] += xhat;
      sum_gn[c] += dz * gain[c] * noise;
      sum_xn[c] += xhat * noise;
    }
  };
  if (n == kLanes)
    for (int64_t j = r.first; j < r.last; ++j) pixel(j, kLanes);
  else
    for (int64_t j = r.first; j < r.last; ++j) pixel(j, n);
  for (int64_t c = 0; c < kLanes; ++c) {
    sums[0][c] = dgamma[c], sums[1][c] = dbeta[c], sums[2][c] = g[c];
    if (E == Extra::noise) sums[3][c] = sum_x[c], sums[4][c] = sum_gn[c], sums[5][c] = sum_xn[c];
  }
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

template <class T, Extra E>
void forward(T, With<E>, const ModulateTable& p, int64_t begin, int64_t end) {
  int64_t scale = p.upsample ? 2 : 1, width = p.w * scale, height = p.h * scale, row = 2 * p.c * p.outputs;
  float scratch[kBlock];
  for (int64_t r = begin; r < end; ++r) {
    int64_t sample = r / height, y = r % height;
    const T* x = static_cast<const T*>(p.x) + (sample * p.h + y / scale) * p.w * p.c;
    const float *mean = p.mean + (p.per_sample ? sample * p.c : 0), *rstd = p.rstd + (p.per_sample ? sample * p.c : 0);
    for (int64_t i = 0; i < width; ++i) {
      const float* table = p.table + p.patches[r * width + i] * row;
      const T* from = x + i / scale * p.c;
      for (int k = 0; k < p.outputs; ++k) {
        const float *gamma = table + 2 * k * p.c, *beta = gamma + p.c;
        T* to = static_cast<T*>(p.y[k]) + (r * width + i) * p.c;
        if (E == Extra::scales)
          scaled_forward(from, mean, rstd, gamma, beta, Scale(p, r * width + i, k), to, p.c, p.slope[k]);
        else if (E == Extra::none)
          row_forward<1>(from, mean, rstd, gamma, beta, to, p.c, p.slope[k]);
        else
          for (int64_t c = 0; c < p.c; c += kBlock) {
            int64_t n = p.c - c < kBlock ? p.c - c : kBlock;
            row_forward<1>(centred(p, from + c, mean + c, c, n, p.noise[r * width + i], scratch), kZeros, rstd + c, gamma + c, beta + c,
                           to + c, n, p.slope[k]);
          }
      }
    }
  }
}

// One thread owns a range of channels for all pixels: no two threads meet in a table row, and the order of summation does not depend on how
// many threads there are.
template <class T, Extra E>
void sums(T, With<E>, const ModulateTable& p, int64_t c0, int64_t n) {
  int64_t scale = p.upsample ? 2 : 1, width = p.w * scale, height = p.h * scale, row = 2 * p.c * p.outputs;
  int64_t groups = p.per_sample ? p.n : 1;
  float sums[6][kLanes];
  for (int64_t sample = 0; sample < p.n; ++sample) {
    int64_t group = p.per_sample ? sample : 0;
    const float *mean = p.mean + group * p.c + c0, *rstd = p.rstd + group * p.c + c0;
    const float* strength = E == Extra::noise ? p.strength + c0 : nullptr;
    auto sum_of = [&](int64_t what) { return p.sums + (what * groups + group) * p.c + c0; };
    double *sum_g = sum_of(0), *sum_gx = sum_of(1);
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
          const Run run{p, mean, rstd, strength, gamma, beta, i, next, scale, first, k};
          double *row_gamma = p.dtable + patches[i] * row + 2 * k * p.c + c0, *row_beta = row_gamma + p.c;
          for (int64_t from = 0; from < n; from += kLanes) {
            const int64_t lanes = n - from < kLanes ? n - from : kLanes;
            run_sums<T, E>(run, dy, x, from, lanes, sums);
            for (int64_t lane = 0, c = from; lane < lanes; ++lane, ++c) {
              row_gamma[c] += sums[0][lane];
              row_beta[c] += sums[1][lane];
              sum_g[c] += sums[2][lane];
              sum_gx[c] += (1 + gamma[c]) * sums[0][lane];
              for (int what = 2; E == Extra::noise && what < 5; ++what) sum_of(what)[c] += sums[what + 1][lane];
            }
          }
        }
      }
    }
  }
}

template <class T, Extra E>
void dx(T, With<E>, const ModulateTable& p, int64_t begin, int64_t end) {
  int64_t scale = p.upsample ? 2 : 1, width = p.w * scale, row = 2 * p.c * p.outputs, groups = p.per_sample ? p.n : 1;
  float g[kBlock], scratch[kBlock], lanes[8][2][kLanes];  // lanes of every pixel of y and output
  for (int64_t r = begin; r < end; ++r) {
    int64_t group = p.per_sample ? r / p.h : 0;
    const float *mean = p.mean + group * p.c, *rstd = p.rstd + group * p.c, *mean_g = p.means + group * p.c,
                *mean_gx = p.means + (groups + group) * p.c;
    for (int64_t i = 0; i < p.w; ++i) {
      const T* x = static_cast<const T*>(p.x) + (r * p.w + i) * p.c;
      if (E == Extra::scales) std::memset(lanes, 0, sizeof(lanes));
      for (int64_t c = 0; c < p.c; c += kBlock) {
        int64_t n = p.c - c < kBlock ? p.c - c : kBlock;
        std::memset(g, 0, sizeof(g));
        float noise = 0;  // of all cells
        for (int64_t cell = 0; cell < scale * scale; ++cell) {
          int64_t at = (r * scale + cell / scale) * width + i * scale + cell % scale;
          const float* table = p.table + p.patches[at] * row + c;
          if (E == Extra::noise) noise += p.noise[at];
          for (int k = 0; k < p.outputs; ++k) {
            const float *gamma = table + 2 * k * p.c, *beta = gamma + p.c;
            const T* dy = static_cast<const T*>(p.dy[k]) + at * p.c + c;
            if (E == Extra::scales)
              scaled_gradient(dy, x + c, mean + c, rstd + c, gamma, beta, Scale(p, at, k), g, lanes[2 * cell + k], n, p.slope[k]);
            else if (E == Extra::none)
              row_gradient<1>(dy, x + c, mean + c, rstd + c, gamma, beta, g, n, p.slope[k]);
            else
              row_gradient<1>(dy, centred(p, x + c, mean + c, c, n, p.noise[at], scratch), kZeros, rstd + c, gamma, beta, g, n, p.slope[k]);
          }
        }
        T* out = static_cast<T*>(p.dx) + (r * p.w + i) * p.c + c;
        if (E == Extra::noise)
          row_dx(g, centred(p, x + c, mean + c, c, n, noise / (scale * scale), scratch), kZeros, rstd + c, mean_g + c, mean_gx + c, out, n);
        else
          row_dx(g, x + c, mean + c, rstd + c, mean_g + c, mean_gx + c, out, n);
      }
      for (int64_t cell = 0; E == Extra::scales && cell < scale * scale; ++cell)
        for (int k = 0; k < p.outputs; ++k)
          for (int which = 0; which < 2; ++which) {
            int64_t at = (r * scale + cell / scale) * width + i * scale + cell % scale;
            p.dscales[2 * (at * p.outputs + k) + which] = static_cast<float>(add_lanes(lanes[2 * cell + k][which]));
          }
    }
  }
}

// f(T(), With<E>()) for the element type and what there is.
template <class F>
void dispatch(const ModulateTable& p, F f) {
  auto with = [&](auto element) {
    if (p.scales)
      f(element, With<Extra::scales>());
    else if (p.noise)
      f(element, With<Extra::noise>());
    else
      f(element, With<Extra::none>());
  };
  p.dtype == DType::f32 ? with(float()) : with(bf16());
}

}  // namespace

void modulate_table_forward(const ModulateTable& p, int64_t begin, int64_t end) {
  dispatch(p, [&](auto element, auto extra) { forward(element, extra, p, begin, end); });
}

void modulate_table_sums(const ModulateTable& p, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; c += kBlock) {
    int64_t n = end - c < kBlock ? end - c : kBlock;
    dispatch(p, [&](auto element, auto extra) { sums(element, extra, p, c, n); });
  }
}

void modulate_table_dx(const ModulateTable& p, int64_t begin, int64_t end) {
  dispatch(p, [&](auto element, auto extra) { dx(element, extra, p, begin, end); });
}

}  // namespace ISA
}  // namespace i2ifast
