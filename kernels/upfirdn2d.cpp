#include "upfirdn2d.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

// out[i] (+)= sum over k < Taps of weight[k] * in[k][i].
template <int Taps, class T>
inline void combine(const T* const* in, const float* weight, float* __restrict out, int64_t n, bool add) {
  if (add)
    for (int64_t i = 0; i < n; ++i) {
      float sum = out[i];
      for (int k = 0; k < Taps; ++k) sum += weight[k] * load(in[k][i]);
      out[i] = sum;
    }
  else
    for (int64_t i = 0; i < n; ++i) {
      float sum = weight[0] * load(in[0][i]);
      for (int k = 1; k < Taps; ++k) sum += weight[k] * load(in[k][i]);
      out[i] = sum;
    }
}

template <class T>
inline void combine(const T* const* in, const float* weight, int64_t taps, float* out, int64_t n, bool add) {
  for (; taps > 4; taps -= 4, in += 4, weight += 4, add = true) combine<4>(in, weight, out, n, add);
  if (taps == 1) combine<1>(in, weight, out, n, add);
  if (taps == 2) combine<2>(in, weight, out, n, add);
  if (taps == 3) combine<3>(in, weight, out, n, add);
  if (taps == 4) combine<4>(in, weight, out, n, add);
}

constexpr int64_t kMostTaps = 64;  // of one phase, or rows of x that are added up at a time

// The column's sum of rows of x: columns `left`, `left` + 1, ... of the scratch row, zeros outside of x.
template <class T>
void add_rows(const Upfirdn2d& p, const float* column, int64_t image, int64_t at, float* row) {
  const int64_t c = p.channels, left = upfirdn2d_left(p), columns = upfirdn2d_columns(p);
  const int64_t from = left < 0 ? 0 : left, to = left + columns < p.x.in ? left + columns : p.x.in, n = (to - from) * c;
  if (n <= 0) {
    std::memset(row, 0, columns * c * sizeof(float));
    return;
  }
  std::memset(row, 0, (from - left) * c * sizeof(float));
  std::memset(row + (to - left) * c, 0, (left + columns - to) * c * sizeof(float));
  row += (from - left) * c;
  const T* in[kMostTaps];
  float weight[kMostTaps];
  int64_t taps = 0;
  bool add = false;
  for (int64_t k = p.y.phase(at), y = p.y.first(at); k < p.y.taps; k += p.y.up, ++y) {
    if (y < 0 || y >= p.y.in || column[k] == 0) continue;
    if (taps == kMostTaps) combine(in, weight, taps, row, n, add), add = true, taps = 0;
    in[taps] = static_cast<const T*>(p.in) + ((image * p.y.in + y) * p.x.in + from) * c;
    weight[taps++] = column[k];
  }
  if (taps)
    combine(in, weight, taps, row, n, add);
  else if (!add)
    std::memset(row, 0, n * sizeof(float));
}

// Phases outputs per Step inputs of a plane's row, for the usual factors: out[Phases * i + r] from in[Step * i + first[r] + ...].
template <int Phases, int Step, int Taps>
void run(const float* __restrict in, const int64_t* first, const float (*weight)[kMostTaps], float* __restrict out, int64_t n, bool add) {
  int64_t i = 0;
  for (; (i + 1) * Phases <= n; ++i)
    for (int r = 0; r < Phases; ++r) {
      float sum = add ? out[i * Phases + r] : 0;
      for (int k = 0; k < Taps; ++k) sum += weight[r][k] * in[Step * i + first[r] + k];
      out[i * Phases + r] = sum;
    }
  for (int64_t r = 0; i * Phases + r < n; ++r) {
    float sum = add ? out[i * Phases + r] : 0;
    for (int k = 0; k < Taps; ++k) sum += weight[r][k] * in[Step * i + first[r] + k];
    out[i * Phases + r] = sum;
  }
}

// The row of taps along the scratch row.
void add_taps(const Upfirdn2d& p, const float* taps, const float* row, float* out, bool add) {
  const Axis& a = p.x;
  const int64_t c = p.channels, left = upfirdn2d_left(p), reach = a.reach();
  auto gather = [&](int64_t at, float* weight) {
    for (int64_t k = 0; k < reach; ++k) weight[k] = a.phase(at) + k * a.up < a.taps ? taps[a.phase(at) + k * a.up] : 0;
  };
  if (a.up == a.down && reach <= kMostTaps) {  // every output has the same taps, next to those of the one before
    float weight[kMostTaps];
    const float* in[kMostTaps];
    gather(0, weight);
    for (int64_t k = 0; k < reach; ++k) in[k] = row + k * c;
    combine(in, weight, reach, out, a.out * c, add);
    return;
  }
  if (c == 1 && a.up + a.down == 3 && reach <= 4) {
    float weight[2][kMostTaps];
    int64_t first[2];
    for (int64_t r = 0; r < 2; ++r) gather(r, weight[r]), first[r] = a.first(r) - left;
    if (a.up == 2) {
      auto doubling = reach == 1 ? run<2, 1, 1> : reach == 2 ? run<2, 1, 2> : reach == 3 ? run<2, 1, 3> : run<2, 1, 4>;
      doubling(row, first, weight, out, a.out, add);
    } else {
      auto halving = reach == 1 ? run<1, 2, 1> : reach == 2 ? run<1, 2, 2> : reach == 3 ? run<1, 2, 3> : run<1, 2, 4>;
      halving(row, first, weight, out, a.out, add);
    }
    return;
  }
  for (int64_t at = 0; at < a.out; ++at) {
    float weight[4];
    const float* in[4];
    bool more = add;
    int64_t k = a.phase(at), x = a.first(at) - left;
    if (k >= a.taps && !add) std::memset(out + at * c, 0, c * sizeof(float));
    while (k < a.taps) {
      int64_t count = 0;
      for (; count < 4 && k < a.taps; ++count, k += a.up, ++x) weight[count] = taps[k], in[count] = row + x * c;
      combine(in, weight, count, out + at * c, c, more);
      more = true;
    }
  }
}

template <class T>
void rows_of(const Upfirdn2d& p, float* scratch, int64_t begin, int64_t end) {
  const int64_t n = p.x.out * p.channels;
  float* sums = scratch + upfirdn2d_columns(p) * p.channels;
  for (int64_t item = begin; item < end; ++item) {
    T* out = static_cast<T*>(p.out) + item * n;
    for (int64_t term = 0; term < p.terms; ++term) {
      add_rows<T>(p, p.columns + term * p.y.taps, item / p.y.out, item % p.y.out, scratch);
      add_taps(p, p.rows + term * p.x.taps, scratch, sums, term > 0);
    }
    for (int64_t i = 0; i < n; ++i) store(out + i, sums[i]);
  }
}

}  // namespace

void upfirdn2d(const Upfirdn2d& p, float* scratch, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? rows_of<float>(p, scratch, begin, end) : rows_of<bf16>(p, scratch, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
