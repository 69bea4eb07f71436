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

// A rest that fills no vector costs as much as several that do.
inline int64_t whole(int64_t n) { return (n + 31) / 32 * 32; }

constexpr int64_t kMostTaps = 64;   // of one phase, or rows of x that are added up at a time
constexpr int64_t kMostPhases = 4;  // that are worked out once and not for every output

// The taps of an axis that meet pixels: output period * i + r reads inputs step * i + first[r] + 0, 1, ..., reach - 1.
struct Phases {
  int64_t period, step, reach, first[kMostPhases];
  float weight[kMostPhases][kMostTaps];
  bool known;

  Phases(const Axis& a, const float* taps) : period(a.up), step(a.down), reach(a.reach()) {
    for (int64_t i = 2; i <= period; ++i)
      while (period % i == 0 && step % i == 0) period /= i, step /= i;
    known = period <= kMostPhases && reach <= kMostTaps;
    for (int64_t r = 0; known && r < period; ++r) {
      first[r] = a.first(r);
      for (int64_t k = 0, tap = a.phase(r); k < reach; ++k, tap += a.up) weight[r][k] = tap < a.taps ? taps[tap] : 0;
    }
  }
};

// The column's sum of rows of x: columns `left`, `left` + 1, ... of the scratch row, zeros outside of x.
template <class T>
void add_rows(const Upfirdn2d& p, const float* column, int64_t image, int64_t at, float* row) {
  const int64_t c = p.channels, left = p.left, columns = p.columns;
  const int64_t from = left < 0 ? 0 : left, to = left + columns < p.x.in ? left + columns : p.x.in, n = (to - from) * c;
  if (n <= 0) {
    std::memset(row, 0, columns * c * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < (from - left) * c; ++i) row[i] = 0;
  float* values = row + (from - left) * c;
  const T* in[kMostTaps];
  float weight[kMostTaps];
  int64_t taps = 0;
  bool add = false;
  for (int64_t k = p.y.phase(at), y = p.y.first(at); k < p.y.taps; k += p.y.up, ++y) {
    if (y < 0 || y >= p.y.in || column[k] == 0) continue;
    if (taps == kMostTaps) combine(in, weight, taps, values, n, add), add = true, taps = 0;
    in[taps] = static_cast<const T*>(p.in) + ((image * p.y.in + y) * p.x.in + from) * c;
    weight[taps++] = column[k];
  }
  if (taps) {
    // Where x goes on, so does the loop: what it writes behind the row is set to zero next.
    const T* end = static_cast<const T*>(p.in) + p.images * p.y.in * p.x.in * c;
    combine(in, weight, taps, values, end - in[taps - 1] >= whole(n) ? whole(n) : n, add);
  } else if (!add) {
    std::memset(values, 0, n * sizeof(float));
  }
  for (int64_t i = (to - left) * c; i < columns * c; ++i) row[i] = 0;
}

// A plane's row, for the usual factors: outputs Period * i + r from inputs Step * i + first[r] + ...
template <int Period, int Step, int Taps>
void run(const Phases& p, const float* __restrict in, float* __restrict out, int64_t n, bool add) {
  for (int64_t i = 0; i < n / Period; ++i)
    for (int r = 0; r < Period; ++r) {
      float sum = add ? out[i * Period + r] : 0;
      for (int k = 0; k < Taps; ++k) sum += p.weight[r][k] * in[Step * i + p.first[r] + k];
      out[i * Period + r] = sum;
    }
}

// The row of taps along the scratch row.
void add_taps(const Upfirdn2d& p, const Phases& phases, const float* taps, const float* row, float* out, bool add) {
  const Axis& a = p.x;
  const int64_t c = p.channels, left = p.left, reach = phases.reach;
  const float* in[kMostTaps];
  if (phases.known && phases.period == 1 && phases.step == 1) {  // the taps move by one pixel with every output
    for (int64_t k = 0; k < reach; ++k) in[k] = row + k * c;
    combine(in, phases.weight[0], reach, out, c == 1 ? whole(a.out) : a.out * c, add);
    return;
  }
  if (phases.known && c == 1 && phases.period + phases.step == 3 && reach <= 4) {
    auto doubling = reach == 1 ? run<2, 1, 1> : reach == 2 ? run<2, 1, 2> : reach == 3 ? run<2, 1, 3> : run<2, 1, 4>;
    auto halving = reach == 1 ? run<1, 2, 1> : reach == 2 ? run<1, 2, 2> : reach == 3 ? run<1, 2, 3> : run<1, 2, 4>;
    (phases.period == 2 ? doubling : halving)(phases, row - left, out, whole(a.out), add);
    return;
  }
  if (phases.known) {
    for (int64_t at = 0, i = 0; at < a.out; ++i)
      for (int64_t r = 0; r < phases.period && at < a.out; ++r, ++at) {
        for (int64_t k = 0; k < reach; ++k) in[k] = row + (phases.step * i + phases.first[r] - left + k) * c;
        combine(in, phases.weight[r], reach, out + at * c, c, add);
      }
    return;
  }
  for (int64_t at = 0; at < a.out; ++at) {
    bool more = add;
    for (int64_t k = a.phase(at), x = a.first(at) - left; k < a.taps; k += a.up, ++x, more = true) {
      const float* pixel = row + x * c;
      combine<1>(&pixel, taps + k, out + at * c, c, more);
    }
    if (!more) std::memset(out + at * c, 0, c * sizeof(float));
  }
}

// Where sums may be written at once: loops over pixels of several channels write no more than the row.
inline float* direct(float* out) { return out; }
inline float* direct(bf16*) { return nullptr; }

template <class T>
void rows_of(const Upfirdn2d& p, float* scratch, int64_t begin, int64_t end) {
  const int64_t n = p.x.out * p.channels;
  float* spare = scratch + p.columns * p.channels + kUpfirdn2dAir;
  Phases first(p.x, p.row_taps);
  T* out = static_cast<T*>(p.out) + begin * n;
  int64_t image = begin / p.y.out, at = begin % p.y.out;
  for (int64_t item = begin; item < end; ++item, out += n) {
    float* sums = p.channels > 1 && direct(out) ? direct(out) : spare;
    for (int64_t term = 0; term < p.terms; ++term) {
      add_rows<T>(p, p.column_taps + term * p.y.taps, image, at, scratch);
      const float* taps = p.row_taps + term * p.x.taps;
      if (term == 0)
        add_taps(p, first, taps, scratch, sums, false);
      else
        add_taps(p, Phases(p.x, taps), taps, scratch, sums, true);
    }
    if (sums == spare)
      for (int64_t i = 0; i < n; ++i) store(out + i, spare[i]);
    if (++at == p.y.out) at = 0, ++image;
  }
}

}  // namespace

void upfirdn2d(const Upfirdn2d& p, float* scratch, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? rows_of<float>(p, scratch, begin, end) : rows_of<bf16>(p, scratch, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
