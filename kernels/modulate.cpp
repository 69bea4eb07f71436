#include "modulate.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

// channels_last: one item is a piece of kPiece pixels. M is the type of gamma and beta: T (dense) or float (style).
template <class T, class M>
struct Piece {
  int64_t first, count, sample, group, step;  // step: from one pixel's modulation to the next one's
  const M* gamma_beta;
  Piece(const Modulate& p, int64_t item) {
    sample = item / p.pieces;
    int64_t from = item % p.pieces * kPiece;
    count = p.pixels - from < kPiece ? p.pixels - from : kPiece;
    first = sample * p.pixels + from;
    group = p.per_sample ? sample : 0;
    step = p.dense ? 2 * p.c : 0;
    gamma_beta = static_cast<const M*>(p.gamma_beta) + (p.dense ? first : sample) * 2 * p.c;
  }
};

template <int Base, class T, class M>
void rows_forward(const Modulate& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    Piece<T, M> s(p, item);
    for (int64_t i = 0; i < s.count; ++i)
      row_forward<Base>(static_cast<const T*>(p.x) + (s.first + i) * p.c, p.mean + s.group * p.c, p.rstd + s.group * p.c,
                        s.gamma_beta + i * s.step, s.gamma_beta + i * s.step + p.c, static_cast<T*>(p.y) + (s.first + i) * p.c, p.c,
                        p.slope);
  }
}

// Writes the gradients of gamma and beta, and adds g and g * xhat to two rows.
template <class T>
inline void row_sums(const T* __restrict dy, const T* __restrict x, const float* __restrict mean, const float* __restrict rstd,
                     const T* __restrict gamma, const T* __restrict beta, T* __restrict dgamma, T* __restrict dbeta,
                     float* __restrict sum_g, float* __restrict sum_gx, int64_t n, float slope) {
  for (int64_t c = 0; c < n; ++c) {
    float xhat = (load(x[c]) - mean[c]) * rstd[c], scale = 1 + load(gamma[c]), z = xhat * scale + load(beta[c]);
    float up = load(dy[c]), dz = z > 0 ? up : up * slope;
    store(dgamma + c, dz * xhat);
    store(dbeta + c, dz);
    sum_g[c] += dz * scale;
    sum_gx[c] += dz * scale * xhat;
  }
}

template <class T>
void rows_sums_dense(const Modulate& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    Piece<T, T> s(p, item);
    const float *mean = p.mean + s.group * p.c, *rstd = p.rstd + s.group * p.c;
    float *sum_g = p.partial + item * p.c, *sum_gx = sum_g + p.n * p.pieces * p.c;
    std::memset(sum_g, 0, p.c * sizeof(float));
    std::memset(sum_gx, 0, p.c * sizeof(float));
    for (int64_t i = 0; i < s.count; ++i) {
      const T* gamma = s.gamma_beta + i * s.step;
      T* dgamma = static_cast<T*>(p.d_gamma_beta) + (s.first + i) * 2 * p.c;
      row_sums(static_cast<const T*>(p.dy) + (s.first + i) * p.c, static_cast<const T*>(p.x) + (s.first + i) * p.c, mean, rstd, gamma,
               gamma + p.c, dgamma, dgamma + p.c, sum_g, sum_gx, p.c, p.slope);
    }
  }
}

// Channels, by vectors, whose parameters stay in registers for kRun pixels: few enough that memory is still read in order.
constexpr int64_t kWide = 2, kStep = kWide * kLanes, kRun = 16;

struct Wide {
  vec mean[kWide], rstd[kWide], scale[kWide], shift[kWide];
  Wide(const float* at_mean, const float* at_rstd, const float* at_scale, const float* at_shift) {
    for (int64_t i = 0; i < kWide; ++i) {
      load_lanes(at_mean + i * kLanes, mean[i]), load_lanes(at_rstd + i * kLanes, rstd[i]);
      load_lanes(at_scale + i * kLanes, scale[i]), load_lanes(at_shift + i * kLanes, shift[i]);
    }
  }
  template <class T>
  void gradient(const T* x, const T* dy, int64_t i, float slope, vec& xhat, vec& dz) const {
    load_lanes(x + i * kLanes, xhat), load_lanes(dy + i * kLanes, dz);
    xhat = (xhat - mean[i]) * rstd[i];
    dz = xhat * scale[i] + shift[i] > 0 ? dz : dz * slope;
  }
};

template <class T>
void rows_sums_style(const Modulate& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    Piece<T, float> s(p, item);
    const float *mean = p.mean + s.group * p.c, *rstd = p.rstd + s.group * p.c, *scale = s.gamma_beta, *shift = scale + p.c;
    float *sum_dz = p.partial + item * p.c, *sum_dzx = sum_dz + p.n * p.pieces * p.c;
    std::memset(sum_dz, 0, p.c * sizeof(float));
    std::memset(sum_dzx, 0, p.c * sizeof(float));
    for (int64_t first = 0; first < s.count; first += kRun) {
      int64_t count = s.count - first < kRun ? s.count - first : kRun, start = (s.first + first) * p.c, c = 0;
      const T *x = static_cast<const T*>(p.x) + start, *dy = static_cast<const T*>(p.dy) + start;
      for (; c + kStep <= p.c; c += kStep) {
        const Wide wide(mean + c, rstd + c, scale + c, shift + c);
        vec sum[kWide], sum_x[kWide], xhat, dz;
        for (int64_t i = 0; i < kWide; ++i) load_lanes(sum_dz + c + i * kLanes, sum[i]), load_lanes(sum_dzx + c + i * kLanes, sum_x[i]);
        for (int64_t at = c; at < count * p.c; at += p.c)
          for (int64_t i = 0; i < kWide; ++i) {
            wide.gradient(x + at, dy + at, i, p.slope, xhat, dz);
            sum[i] += dz;
            sum_x[i] += dz * xhat;
          }
        for (int64_t i = 0; i < kWide; ++i) store_lanes(sum_dz + c + i * kLanes, sum[i]), store_lanes(sum_dzx + c + i * kLanes, sum_x[i]);
      }
      for (int64_t at = c; at < count * p.c && c < p.c; at += p.c)
        row_accumulate<0>(dy + at, x + at, mean + c, rstd + c, scale + c, shift + c, sum_dzx + c, sum_dz + c, p.c - c, p.slope);
    }
  }
}

template <class T>
void rows_dx_dense(const Modulate& p, int64_t begin, int64_t end) {
  int64_t groups = p.per_sample ? p.n : 1;
  float g[kBlock];
  for (int64_t item = begin; item < end; ++item) {
    Piece<T, T> s(p, item);
    const float *mean = p.mean + s.group * p.c, *rstd = p.rstd + s.group * p.c, *mean_g = p.means + s.group * p.c,
                *mean_gx = mean_g + groups * p.c;
    for (int64_t i = 0; i < s.count; ++i)
      for (int64_t c = 0; c < p.c; c += kBlock) {
        int64_t n = p.c - c < kBlock ? p.c - c : kBlock, at = (s.first + i) * p.c + c;
        const T* x = static_cast<const T*>(p.x) + at;
        const T* gamma = s.gamma_beta + i * s.step + c;
        std::memset(g, 0, sizeof(g));
        row_gradient<1>(static_cast<const T*>(p.dy) + at, x, mean + c, rstd + c, gamma, gamma + p.c, g, n, p.slope);
        row_dx(g, x, mean + c, rstd + c, mean_g + c, mean_gx + c, static_cast<T*>(p.dx) + at, n);
      }
  }
}

// A row at once: blocks of channels, whose stores are followed by loads at a distance of 4096 bytes, take twice as long.
template <class T>
void row_dx_style(const T* __restrict dy, const T* __restrict x, const float* __restrict mean, const float* __restrict rstd,
                  const float* __restrict scale, const float* __restrict shift, const float* __restrict mean_g,
                  const float* __restrict mean_gx, T* __restrict dx, int64_t n, float slope) {
  for (int64_t c = 0; c < n; ++c) {
    float xhat = (load(x[c]) - mean[c]) * rstd[c];
    float dz = xhat * scale[c] + shift[c] > 0 ? load(dy[c]) : load(dy[c]) * slope;
    store(dx + c, rstd[c] * (dz * scale[c] - mean_g[c] - xhat * mean_gx[c]));
  }
}

template <class T>
void rows_dx_style(const Modulate& p, int64_t begin, int64_t end) {
  int64_t groups = p.per_sample ? p.n : 1;
  for (int64_t item = begin; item < end; ++item) {
    Piece<T, float> s(p, item);
    const float *mean_g = p.means + s.group * p.c, *mean_gx = mean_g + groups * p.c;
    for (int64_t i = s.first; i < s.first + s.count; ++i)
      row_dx_style(static_cast<const T*>(p.dy) + i * p.c, static_cast<const T*>(p.x) + i * p.c, p.mean + s.group * p.c,
                   p.rstd + s.group * p.c, s.gamma_beta, s.gamma_beta + p.c, mean_g, mean_gx, static_cast<T*>(p.dx) + i * p.c, p.c,
                   p.slope);
  }
}

// contiguous: one item is a plane, whose statistics (and modulation, without dense maps) are scalars.
template <class T>
struct Plane {
  float mean, rstd, mean_g, mean_gx;
  const T *x, *dy;
  // Dense maps, or one value of each read with step 0.
  const T *gamma, *beta;
  float style_scale, style_shift;
  int64_t at;
  Plane(const Modulate& p, int64_t item) {
    int64_t sample = item / p.c, c = item % p.c, group = (p.per_sample ? sample * p.c : 0) + c;
    at = item * p.pixels;
    mean = p.mean[group], rstd = p.rstd[group];
    mean_g = p.means ? p.means[group] : 0, mean_gx = p.means ? p.means[(p.per_sample ? p.n : 1) * p.c + group] : 0;
    x = static_cast<const T*>(p.x) + at, dy = static_cast<const T*>(p.dy) + at;
    int64_t map = sample * 2 * p.c + c;
    gamma = p.dense ? static_cast<const T*>(p.gamma_beta) + map * p.pixels : nullptr, beta = p.dense ? gamma + p.c * p.pixels : nullptr;
    style_scale = p.dense ? 0 : static_cast<const float*>(p.gamma_beta)[map],
    style_shift = p.dense ? 0 : static_cast<const float*>(p.gamma_beta)[map + p.c];
  }
  template <bool Dense>
  float scale(int64_t i) const {
    return Dense ? 1 + load(gamma[i]) : style_scale;
  }
  template <bool Dense>
  float shift(int64_t i) const {
    return Dense ? load(beta[i]) : style_shift;
  }
  float xhat(int64_t i) const { return (load(x[i]) - mean) * rstd; }
  template <bool Dense>
  float dz(int64_t i, float slope) const {
    return xhat(i) * scale<Dense>(i) + shift<Dense>(i) > 0 ? load(dy[i]) : load(dy[i]) * slope;
  }
};

template <class T, bool Dense>
void planes_forward(const Modulate& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const Plane<T> s(p, item);
    T* __restrict y = static_cast<T*>(p.y) + s.at;
    for (int64_t i = 0; i < p.pixels; ++i) store(y + i, act(s.xhat(i) * s.template scale<Dense>(i) + s.template shift<Dense>(i), p.slope));
  }
}

// `n` values of a plane, a multiple of Lanes: writes the gradients of gamma and beta of dense maps, and adds g and g * xhat to lanes.
template <class T, bool Dense, int Lanes>
inline void run_sums(const T* __restrict dy, const T* __restrict x, const T* __restrict gamma, const T* __restrict beta,
                     T* __restrict dgamma, T* __restrict dbeta, float* __restrict sum, float* __restrict sum_x, int64_t n,
                     const Plane<T>& plane, float slope) {
  const float mean = plane.mean, rstd = plane.rstd, style_scale = plane.style_scale, style_shift = plane.style_shift;
  for (int64_t i = 0; i < n; i += Lanes)
    for (int64_t lane = 0; lane < Lanes; ++lane) {
      float xhat = (load(x[i + lane]) - mean) * rstd, scale = Dense ? 1 + load(gamma[i + lane]) : style_scale;
      float z = xhat * scale + (Dense ? load(beta[i + lane]) : style_shift), up = load(dy[i + lane]), dz = z > 0 ? up : up * slope;
      if (Dense) store(dgamma + i + lane, dz * xhat), store(dbeta + i + lane, dz);
      float g = Dense ? dz * scale : dz;
      sum[lane] += g;
      sum_x[lane] += g * xhat;
    }
}

template <class T, bool Dense>
void planes_sums(const Modulate& p, int64_t begin, int64_t end) {
  constexpr int64_t kRun = kPiece * kLanes;  // values summed in float32 before they are merged in float64
  for (int64_t item = begin; item < end; ++item) {
    const Plane<T> s(p, item);
    int64_t map = (item / p.c * 2 * p.c + item % p.c) * p.pixels;
    T *dgamma = static_cast<T*>(p.d_gamma_beta) + (Dense ? map : 0), *dbeta = dgamma + (Dense ? p.c * p.pixels : 0);
    double total = 0, total_x = 0;
    for (int64_t first = 0; first < p.pixels; first += kRun) {
      int64_t left = p.pixels - first < kRun ? p.pixels - first : kRun, whole = left / kLanes * kLanes, at = first + whole;
      float sum[kLanes] = {}, sum_x[kLanes] = {};
      run_sums<T, Dense, kLanes>(s.dy + first, s.x + first, s.gamma + first, s.beta + first, dgamma + first, dbeta + first, sum, sum_x,
                                 whole, s, p.slope);
      run_sums<T, Dense, 1>(s.dy + at, s.x + at, s.gamma + at, s.beta + at, dgamma + at, dbeta + at, sum, sum_x, left - whole, s, p.slope);
      total += add_lanes(sum), total_x += add_lanes(sum_x);
    }
    p.partial[item] = static_cast<float>(total);
    p.partial[p.n * p.c + item] = static_cast<float>(total_x);
  }
}

template <class T, bool Dense>
void planes_dx(const Modulate& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const Plane<T> s(p, item);
    T* __restrict dx = static_cast<T*>(p.dx) + s.at;
    for (int64_t i = 0; i < p.pixels; ++i) {
      float g = s.template dz<Dense>(i, p.slope) * s.template scale<Dense>(i);
      store(dx + i, s.rstd * (g - s.mean_g - s.xhat(i) * s.mean_gx));
    }
  }
}

}  // namespace

void modulate_forward(const Modulate& p, int64_t begin, int64_t end) {
  bool f32 = p.dtype == DType::f32;
  if (p.channels_last && p.dense)
    f32 ? rows_forward<1, float, float>(p, begin, end) : rows_forward<1, bf16, bf16>(p, begin, end);
  else if (p.channels_last)
    f32 ? rows_forward<0, float, float>(p, begin, end) : rows_forward<0, bf16, float>(p, begin, end);
  else if (p.dense)
    f32 ? planes_forward<float, true>(p, begin, end) : planes_forward<bf16, true>(p, begin, end);
  else
    f32 ? planes_forward<float, false>(p, begin, end) : planes_forward<bf16, false>(p, begin, end);
}

void modulate_sums(const Modulate& p, int64_t begin, int64_t end) {
  bool f32 = p.dtype == DType::f32;
  if (p.channels_last && p.dense)
    f32 ? rows_sums_dense<float>(p, begin, end) : rows_sums_dense<bf16>(p, begin, end);
  else if (p.channels_last)
    f32 ? rows_sums_style<float>(p, begin, end) : rows_sums_style<bf16>(p, begin, end);
  else if (p.dense)
    f32 ? planes_sums<float, true>(p, begin, end) : planes_sums<bf16, true>(p, begin, end);
  else
    f32 ? planes_sums<float, false>(p, begin, end) : planes_sums<bf16, false>(p, begin, end);
}

void modulate_dx(const Modulate& p, int64_t begin, int64_t end) {
  bool f32 = p.dtype == DType::f32;
  if (p.channels_last && p.dense)
    f32 ? rows_dx_dense<float>(p, begin, end) : rows_dx_dense<bf16>(p, begin, end);
  else if (p.channels_last)
    f32 ? rows_dx_style<float>(p, begin, end) : rows_dx_style<bf16>(p, begin, end);
  else if (p.dense)
    f32 ? planes_dx<float, true>(p, begin, end) : planes_dx<bf16, true>(p, begin, end);
  else
    f32 ? planes_dx<float, false>(p, begin, end) : planes_dx<bf16, false>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
