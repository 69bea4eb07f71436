#include "modulate_table.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

constexpr int64_t kRun = 128;  // pixels summed in float32 before they go into the float64 row

constexpr float kZeros[kBlock] = {};

// A row of x - mean + strength * noise, which takes the place of x with means of 0. In this order noise is not rounded to the digits of a
// large mean.
template <class T>
inline const float* centred(const ModulateTable& p, const T* __restrict x, const float* __restrict mean, int64_t c0, int64_t n, float noise,
                            float* __restrict scratch) {
  const float* strength = p.strength + c0;
  for (int64_t c = 0; c < n; ++c) scratch[c] = load(x[c]) - mean[c] + strength[c] * noise;
  return scratch;
}

// As row_accumulate, and adds xhat, dz * noise and xhat * noise to three more rows.
template <class T>
inline void row_accumulate_noise(const T* __restrict dy, const float* __restrict x, const float* __restrict rstd,
                                 const float* __restrict gamma, const float* __restrict beta, float (*__restrict sums)[kBlock], int64_t n,
                                 float slope, float noise) {
  for (int64_t c = 0; c < n; ++c) {
    float xhat = x[c] * rstd[c];
    float z = xhat * (1 + gamma[c]) + beta[c];
    float dz = z > 0 ? load(dy[c]) : load(dy[c]) * slope;
    sums[0][c] += dz * xhat;
    sums[1][c] += dz;
    sums[2][c] += xhat;
    sums[3][c] += dz * noise;
    sums[4][c] += xhat * noise;
  }
}

template <class T, bool Noisy>
void forward(const ModulateTable& p, int64_t begin, int64_t end) {
  int64_t scale = p.upsample ? 2 : 1, width = p.w * scale, height = p.h * scale, row = 2 * p.c * p.outputs;
  float scratch[kBlock];
  for (int64_t r = begin; r < end; ++r) {
    int64_t sample = r / height, y = r % height;
    const T* x = static_cast<const T*>(p.x) + (sample * p.h + y / scale) * p.w * p.c;
    const float *mean = p.mean + (p.per_sample ? sample * p.c : 0), *rstd = p.rstd + (p.per_sample ? sample * p.c : 0);
    for (int64_t i = 0; i < width; ++i) {
      const float* table = p.table + p.patches[r * width + i] * row;
      if (!Noisy) {
        for (int k = 0; k < p.outputs; ++k)
          row_forward<1>(x + i / scale * p.c, mean, rstd, table + 2 * k * p.c, table + (2 * k + 1) * p.c,
                         static_cast<T*>(p.y[k]) + (r * width + i) * p.c, p.c, p.slope[k]);
        continue;
      }
      for (int64_t c = 0; c < p.c; c += kBlock) {
        int64_t n = p.c - c < kBlock ? p.c - c : kBlock;
        row_forward<1>(centred(p, x + i / scale * p.c + c, mean + c, c, n, p.noise[r * width + i], scratch), kZeros, rstd + c, table + c,
                       table + p.c + c, static_cast<T*>(p.y[0]) + (r * width + i) * p.c + c, n, p.slope[0]);
      }
    }
  }
}

// One thread owns a range of channels for all pixels: no two threads meet in a table row, and the order of summation does not depend on how
// many threads there are.
template <class T>
void sums(const ModulateTable& p, int64_t c0, int64_t n) {
  int64_t scale = p.upsample ? 2 : 1, width = p.w * scale, height = p.h * scale, row = 2 * p.c * p.outputs;
  int64_t groups = p.per_sample ? p.n : 1;
  float accumulated[5][kBlock], scratch[kBlock];
  for (int64_t sample = 0; sample < p.n; ++sample) {
    int64_t group = p.per_sample ? sample : 0;
    const float *mean = p.mean + group * p.c + c0, *rstd = p.rstd + group * p.c + c0;
    auto sum_of = [&](int64_t what) { return p.sums + (what * groups + group) * p.c + c0; };
    double *sum_g = sum_of(0), *sum_gx = sum_of(1);
    for (int64_t y = 0; y < height; ++y) {
      const int32_t* patches = p.patches + (sample * height + y) * width;
      const T* x = static_cast<const T*>(p.x) + (sample * p.h + y / scale) * p.w * p.c + c0;
      for (int64_t i = 0, next; i < width; i = next) {
        const float* table = p.table + patches[i] * row + c0;
        for (next = i + 1; next < width && next < i + kRun && patches[next] == patches[i];) ++next;
        std::memset(accumulated, 0, sizeof(accumulated));
        for (int k = 0; k < p.outputs; ++k) {
          const T* dy = static_cast<const T*>(p.dy[k]) + (sample * height + y) * width * p.c + c0;
          float *dgamma = accumulated[2 * k], *dbeta = accumulated[2 * k + 1];
          const float *gamma = table + 2 * k * p.c, *beta = gamma + p.c;
          for (int64_t j = i; j < next; ++j) {
            const T *dy_j = dy + j * p.c, *x_j = x + j / scale * p.c;
            float noise = p.noise ? p.noise[(sample * height + y) * width + j] : 0;
            if (p.noise)
              row_accumulate_noise(dy_j, centred(p, x_j, mean, c0, n, noise, scratch), rstd, gamma, beta, accumulated, n, p.slope[0],
                                   noise);
            else
              row_accumulate<1>(dy_j, x_j, mean, rstd, gamma, beta, dgamma, dbeta, n, p.slope[k]);
          }
          double *row_gamma = p.dtable + patches[i] * row + 2 * k * p.c + c0, *row_beta = row_gamma + p.c;
          for (int64_t c = 0; c < n; ++c) {
            row_gamma[c] += dgamma[c];
            row_beta[c] += dbeta[c];
            sum_g[c] += (1 + gamma[c]) * dbeta[c];
            sum_gx[c] += (1 + gamma[c]) * dgamma[c];
          }
          if (p.noise)
            for (int64_t c = 0; c < n; ++c) {
              sum_of(2)[c] += accumulated[2][c];
              sum_of(3)[c] += (1 + gamma[c]) * accumulated[3][c];
              sum_of(4)[c] += accumulated[4][c];
            }
        }
      }
    }
  }
}

template <class T>
void dx(const ModulateTable& p, int64_t begin, int64_t end) {
  int64_t scale = p.upsample ? 2 : 1, width = p.w * scale, row = 2 * p.c * p.outputs, groups = p.per_sample ? p.n : 1;
  float g[kBlock], scratch[kBlock];
  for (int64_t r = begin; r < end; ++r) {
    int64_t group = p.per_sample ? r / p.h : 0;
    const float *mean = p.mean + group * p.c, *rstd = p.rstd + group * p.c, *mean_g = p.means + group * p.c,
                *mean_gx = p.means + (groups + group) * p.c;
    for (int64_t i = 0; i < p.w; ++i) {
      const T* x = static_cast<const T*>(p.x) + (r * p.w + i) * p.c;
      for (int64_t c = 0; c < p.c; c += kBlock) {
        int64_t n = p.c - c < kBlock ? p.c - c : kBlock;
        std::memset(g, 0, sizeof(g));
        float noise = 0;
        for (int64_t cell = 0; cell < scale * scale; ++cell) {
          int64_t at = (r * scale + cell / scale) * width + i * scale + cell % scale;
          const float* table = p.table + p.patches[at] * row + c;
          if (p.noise) {
            noise += p.noise[at];
            row_gradient<1>(static_cast<const T*>(p.dy[0]) + at * p.c + c, centred(p, x + c, mean + c, c, n, p.noise[at], scratch), kZeros,
                            rstd + c, table, table + p.c, g, n, p.slope[0]);
            continue;
          }
          for (int k = 0; k < p.outputs; ++k)
            row_gradient<1>(static_cast<const T*>(p.dy[k]) + at * p.c + c, x + c, mean + c, rstd + c, table + 2 * k * p.c,
                            table + (2 * k + 1) * p.c, g, n, p.slope[k]);
        }
        T* out = static_cast<T*>(p.dx) + (r * p.w + i) * p.c + c;
        if (p.noise)
          row_dx(g, centred(p, x + c, mean + c, c, n, noise / (scale * scale), scratch), kZeros, rstd + c, mean_g + c, mean_gx + c, out, n);
        else
          row_dx(g, x + c, mean + c, rstd + c, mean_g + c, mean_gx + c, out, n);
      }
    }
  }
}

}  // namespace

void modulate_table_forward(const ModulateTable& p, int64_t begin, int64_t end) {
  if (p.noise)
    p.dtype == DType::f32 ? forward<float, true>(p, begin, end) : forward<bf16, true>(p, begin, end);
  else
    p.dtype == DType::f32 ? forward<float, false>(p, begin, end) : forward<bf16, false>(p, begin, end);
}

void modulate_table_sums(const ModulateTable& p, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; c += kBlock) {
    int64_t n = end - c < kBlock ? end - c : kBlock;
    p.dtype == DType::f32 ? sums<float>(p, c, n) : sums<bf16>(p, c, n);
  }
}

void modulate_table_dx(const ModulateTable& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? dx<float>(p, begin, end) : dx<bf16>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
