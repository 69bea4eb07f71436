#include "winograd.h"

namespace i2ifast {
namespace ISA {
namespace {

typedef float vec __attribute__((vector_size(kLanes * 4), aligned(4)));
typedef int32_t lanes __attribute__((vector_size(kLanes * 4)));

#define LOAD(p) (*reinterpret_cast<const vec*>(p))
#define STORE(p, v) (*reinterpret_cast<vec*>(p) = (v))
#define KIND(function) (p.taps == 3 ? function<3, 4> : p.window == 4 ? function<2, 4> : function<2, 3>)

struct Tile {
  int64_t n, y, x;  // of its first output pixel
  Tile(const Winograd& p, int64_t index) {
    int64_t across = p.across(), down = p.down();
    n = index / (across * down), y = index / across % down * p.side(), x = index % across * p.side();
  }
};

// The row (column) of the map that is seen at `i`, in it or next to it; -1 for zeros. Further outside, any: it is not used.
inline int64_t seen(int64_t i, int64_t size, Padding padding) {
  if (i >= 0 && i < size) return i;
  if (padding == Padding::zeros) return -1;
  if (padding == Padding::replicate) return i < 0 ? 0 : size - 1;
  int64_t mirrored = i < 0 ? -i : 2 * size - 2 - i;
  return mirrored < 0 ? 0 : mirrored;
}

// B^T d.
template <int64_t Window>
inline void differences(const vec d[Window], vec v[Window]) {
  if (Window == 4)
    v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[1] - d[Window - 1];
  else
    v[0] = d[0] - d[1], v[1] = d[1], v[2] = d[1] - d[2];
}

// B^T d B of one tile, d its window in each phase: a row of depth() for each product, a plane apart.
template <int64_t Taps, int64_t Window>
void transform_read(const Winograd& p, const Tile& t, float* v) {
  const View& map = p.read;
  int64_t plane = p.plane();
  for (int64_t phase = 0; phase < map.phases * map.phases; ++phase, v += map.c) {
    const float* pixel[Window][Window];
    for (int64_t i = 0; i < Window; ++i)
      for (int64_t j = 0; j < Window; ++j) {
        int64_t y = seen(map.step * (t.y + i) + map.shift * (phase / map.phases) + map.first, map.h, p.padding);
        int64_t x = seen(map.step * (t.x + j) + map.shift * (phase % map.phases) + map.first, map.w, p.padding);
        pixel[i][j] = y >= 0 && x >= 0 ? map.data + ((t.n * map.h + y) * map.w + x) * map.c : nullptr;
      }
    for (int64_t c = 0; c < map.c; c += kLanes) {
      vec r[Window][Window];
      for (int64_t j = 0; j < Window; ++j) {
        vec column[Window];
        for (int64_t i = 0; i < Window; ++i) column[i] = pixel[i][j] ? LOAD(pixel[i][j] + c) : vec{};
        differences<Window>(column, r[j]);
      }
      for (int64_t i = 0; i < Window; ++i) {
        vec row[Window], out[Window];
        for (int64_t j = 0; j < Window; ++j) row[j] = r[j][i];
        differences<Window>(row, out);
        for (int64_t j = 0; j < Window; ++j) STORE(v + (i * Window + j) * plane + c, out[j]);
      }
    }
  }
}

// A^T m.
template <int64_t Taps, int64_t Window>
inline void back(const vec m[Window], vec y[Window + 1 - Taps]) {
  constexpr int64_t last = Window - Taps;
  if (Window == 3) {
    y[0] = m[0] + m[1], y[1] = m[1] - m[2];
  } else {
    vec sum = m[1] + m[2], difference = m[1] - m[2];
    y[0] = m[0] + sum;
    y[1] = Taps == 3 ? difference - m[Window - 1] : difference;
    if (Taps == 2) y[last] = sum - m[Window - 1];
  }
}

// A y, its adjoint.
template <int64_t Taps, int64_t Window>
inline void forth(const vec y[Window + 1 - Taps], vec m[Window]) {
  constexpr int64_t last = Window - Taps;
  if (Window == 3) {
    m[0] = y[0], m[1] = y[0] + y[1], m[2] = -y[1];
  } else {
    vec even = Taps == 2 ? y[0] + y[last] : y[0];
    m[0] = y[0], m[1] = even + y[1], m[2] = even - y[1], m[Window - 1] = -y[last];
  }
}

// Where pixel (i, j) of a tile lies in a phase of the written map; -1 outside of it.
inline int64_t place(const Winograd& p, const Tile& t, int64_t phase, int64_t i, int64_t j) {
  const View& map = p.written;
  if (t.y + i >= p.grid_h || t.x + j >= p.grid_w) return -1;
  int64_t y = map.step * (t.y + i) + map.shift * (phase / map.phases) + map.first;
  int64_t x = map.step * (t.x + j) + map.shift * (phase % map.phases) + map.first;
  return y >= 0 && y < map.h && x >= 0 && x < map.w ? ((t.n * map.h + y) * map.w + x) * map.c : -1;
}

// The outputs of one tile in a block of channels: A^T m A + bias, m being rows of 64, `plane` apart.
template <int64_t Taps, int64_t Window>
void transform_written(const Winograd& p, const Tile& t, const float* m, int64_t plane, int64_t block) {
  constexpr int64_t side = Window + 1 - Taps;
  int64_t at[side][side] = {}, known = -1;  // of a phase
  for (int64_t o = 0; o < kOutputs; o += kLanes) {
    int64_t phase = (block * kOutputs + o) / p.written.c, channel = (block * kOutputs + o) % p.written.c;
    if (phase != known)
      for (int64_t i = 0; i < side; ++i)
        for (int64_t j = 0; j < side; ++j) at[i][j] = place(p, t, phase, i, j);
    known = phase;
    vec s[Window][side], bias = p.bias ? LOAD(p.bias + channel) : vec{};
    for (int64_t j = 0; j < Window; ++j) {
      vec column[Window];
      for (int64_t i = 0; i < Window; ++i) column[i] = LOAD(m + (i * Window + j) * plane + o);
      back<Taps, Window>(column, s[j]);
    }
    for (int64_t i = 0; i < side; ++i) {
      vec row[Window], y[side];
      for (int64_t j = 0; j < Window; ++j) row[j] = s[j][i];
      back<Taps, Window>(row, y);
      for (int64_t j = 0; j < side; ++j)
        if (at[i][j] >= 0) STORE(p.y + at[i][j] + channel, y[j] + bias);
    }
  }
}

// A dy A^T of one tile: for each block of 64 channels as many rows. Adjoint of transform_written.
template <int64_t Taps, int64_t Window>
void transform_gradient(const Winograd& p, const Tile& t, float* e) {
  constexpr int64_t side = Window + 1 - Taps;
  int64_t plane = p.output_plane(), at[side][side];
  for (int64_t i = 0; i < side; ++i)
    for (int64_t j = 0; j < side; ++j) at[i][j] = place(p, t, 0, i, j);
  for (int64_t block = 0; block < p.blocks(); ++block, e += Window * Window * plane)
    for (int64_t o = 0; o < kOutputs; o += kLanes) {
      vec r[side][Window];
      for (int64_t j = 0; j < side; ++j) {
        vec column[side];
        for (int64_t i = 0; i < side; ++i) column[i] = at[i][j] >= 0 ? LOAD(p.written.data + at[i][j] + block * kOutputs + o) : vec{};
        forth<Taps, Window>(column, r[j]);
      }
      for (int64_t i = 0; i < Window; ++i) {
        vec row[side], m[Window];
        for (int64_t j = 0; j < side; ++j) row[j] = r[j][i];
        forth<Taps, Window>(row, m);
        for (int64_t j = 0; j < Window; ++j) STORE(e + (Window * i + j) * plane + o, m[j]);
      }
    }
}

// m[Rows][64] (+)= a[Rows][depth] * b[depth][64]: the sums stay in registers.
template <bool Add, int64_t Rows>
void multiply(const float* __restrict a, int64_t a_row, int64_t a_column, const float* __restrict b, int64_t depth, float* __restrict m) {
  constexpr int64_t kColumns = kOutputs / kLanes;
  vec sum[Rows][kColumns] = {};
  for (int64_t k = 0; k < depth; ++k) {
    vec row[kColumns];
    for (int64_t j = 0; j < kColumns; ++j) row[j] = LOAD(b + k * kOutputs + j * kLanes);
    for (int64_t i = 0; i < Rows; ++i) {
      float factor = a[i * a_row + k * a_column];
      for (int64_t j = 0; j < kColumns; ++j) sum[i][j] += factor * row[j];
    }
  }
  for (int64_t i = 0; i < Rows; ++i)
    for (int64_t j = 0; j < kColumns; ++j) {
      float* out = m + i * kOutputs + j * kLanes;
      if (Add)
        STORE(out, LOAD(out) + sum[i][j]);
      else
        STORE(out, sum[i][j]);
    }
}

// Exchange the off-diagonal halves of every 2 Step x 2 Step block; of all steps, 16 rows of 16 lanes are transposed.
template <int Step>
inline void exchange(vec* r) {
  lanes upper, lower;
  for (int i = 0; i < kLanes; ++i) upper[i] = i & Step ? 16 + (i ^ Step) : i, lower[i] = i & Step ? 16 + i : i ^ Step;
  for (int i = 0; i < kLanes; ++i)
    if (!(i & Step)) {
      vec a = r[i], b = r[i + Step];
      r[i] = __builtin_shuffle(a, b, upper), r[i + Step] = __builtin_shuffle(a, b, lower);
    }
}

inline void transpose(vec* r) { exchange<8>(r), exchange<4>(r), exchange<2>(r), exchange<1>(r); }

// G w.
template <int64_t Taps, int64_t Window>
inline void spread(const vec w[Taps], vec u[Window]) {
  if (Window == 3) {
    u[0] = w[0], u[1] = w[0] + w[1], u[2] = w[1];
  } else {
    vec even = 0.5f * (Taps == 3 ? w[0] + w[Taps - 1] : w[0]), odd = 0.5f * w[1];
    u[0] = w[0], u[1] = even + odd, u[2] = even - odd, u[Window - 1] = w[Taps - 1];
  }
}

// G^T u, its adjoint.
template <int64_t Taps, int64_t Window>
inline void gather(const vec u[Window], vec w[Taps]) {
  if (Window == 3) {
    w[0] = u[0] + u[1], w[1] = u[1] + u[2];
  } else {
    vec even = 0.5f * (u[1] + u[2]), odd = 0.5f * (u[1] - u[2]);
    w[0] = u[0] + even, w[1] = Taps == 3 ? odd : odd + u[Window - 1];
    if (Taps == 3) w[Taps - 1] = even + u[Window - 1];
  }
}

// Where a tap of a phase of the small kernels lies in the weight; -1 if it is one of the zeros that make a 3x3 kernel a 4x4 one.
inline int64_t tap_of(const Winograd& p, int64_t phase, int64_t phases, int64_t tap) {
  int64_t row = p.at_zero + p.by_tap * (tap / p.taps) + p.by_phase * (phase / phases);
  int64_t column = p.at_zero + p.by_tap * (tap % p.taps) + p.by_phase * (phase % phases);
  return row < p.kernel && column < p.kernel ? row * p.by_row + column * p.by_column : -1;
}

// Whether product k of a phase is with zeros only: a line of the small kernel has one tap, the first (the last in the adjoint), and
// the product is that of the other alone.
inline bool idle(const Winograd& p, int64_t phase, int64_t k) {
  if (p.kernel == 4 || p.taps == 3) return false;
  int64_t phases = p.read.phases * p.written.phases, without = p.by_tap > 0 ? p.window - 1 : 0;
  return (phase / phases == 1 && k / p.window == without) || (phase % phases == 1 && k % p.window == without);
}

// G w G^T of 16 read channels from `d` on and a block of outputs.
template <int64_t Taps, int64_t Window>
void transform_weight(const Winograd& p, int64_t d, int64_t block, float* u) {
  constexpr int64_t kColumns = kOutputs / kLanes;
  vec w[Taps * Taps][kLanes][kColumns];  // outputs innermost
  const float* from[Taps * Taps][kColumns];
  for (int64_t o = 0; o < kColumns; ++o) {
    int64_t output = block * kOutputs + o * kLanes, phase = d / p.read.c + output / p.written.c;  // one of them is 0
    const float* channels = p.weight + d % p.read.c * p.by_read + output % p.written.c * p.by_written;
    for (int64_t tap = 0; tap < Taps * Taps; ++tap) {
      int64_t place = tap_of(p, phase, p.read.phases * p.written.phases, tap);
      from[tap][o] = place < 0 ? nullptr : channels + place;
      for (int64_t c = 0; place < 0 && c < kLanes; ++c) w[tap][c][o] = vec{};
    }
  }
  if (p.by_written == 1) {
    for (int64_t c = 0; c < kLanes; ++c)
      for (int64_t tap = 0; tap < Taps * Taps; ++tap)
        for (int64_t o = 0; o < kColumns; ++o)
          if (from[tap][o]) w[tap][c][o] = LOAD(from[tap][o] + c * p.by_read);
  } else {
    for (int64_t o = 0; o < kColumns; ++o)
      for (int64_t tap = 0; tap < Taps * Taps; ++tap) {
        if (!from[tap][o]) continue;
        vec rows[kLanes];
        if (p.by_read == 1) {
          for (int64_t i = 0; i < kLanes; ++i) rows[i] = LOAD(from[tap][o] + i * p.by_written);
          transpose(rows);
        } else {
          float* row = reinterpret_cast<float*>(rows);
          for (int64_t i = 0; i < kLanes; ++i)
            for (int64_t c = 0; c < kLanes; ++c) row[c * kLanes + i] = from[tap][o][i * p.by_written + c * p.by_read];
        }
        for (int64_t c = 0; c < kLanes; ++c) w[tap][c][o] = rows[c];
      }
  }
  for (int64_t c = 0; c < kLanes; ++c)
    for (int64_t o = 0; o < kColumns; ++o) {
      vec r[Taps][Window];
      for (int64_t j = 0; j < Taps; ++j) {
        vec column[Taps];
        for (int64_t i = 0; i < Taps; ++i) column[i] = w[i * Taps + j][c][o];
        spread<Taps, Window>(column, r[j]);
      }
      for (int64_t i = 0; i < Window; ++i) {
        vec row[Taps], spreads[Window];
        for (int64_t j = 0; j < Taps; ++j) row[j] = r[j][i];
        spread<Taps, Window>(row, spreads);
        for (int64_t j = 0; j < Window; ++j) STORE(u + (Window * i + j) * kWeightPlane + c * kOutputs + o * kLanes, spreads[j]);
      }
    }
}

void transform_weights(const Winograd& p, int64_t d, int64_t rows, int64_t block, float* u) {
  for (int64_t row = 0; row < rows; row += kLanes) KIND(transform_weight)(p, d + row, block, u + row * kOutputs);
}

// dw of `count` read channels from `d` on and a block of outputs: G^T du G, du being [products()][kChannels][64].
template <int64_t Taps, int64_t Window>
void transform_products(const Winograd& p, const float* du, int64_t d, int64_t count, int64_t block) {
  int64_t phase = d / p.read.c;
  vec w[Taps * Taps][kLanes];
  for (int64_t c = 0; c < count; c += kLanes)
    for (int64_t o = 0; o < kOutputs; o += kLanes) {
      for (int64_t i = 0; i < kLanes; ++i) {
        const float* u = du + (c + i) * kOutputs + o;
        vec r[Window][Taps];
        for (int64_t j = 0; j < Window; ++j) {
          vec column[Window];
          for (int64_t k = 0; k < Window; ++k) column[k] = LOAD(u + (Window * k + j) * kGradientPlane);
          gather<Taps, Window>(column, r[j]);
        }
        for (int64_t k = 0; k < Taps; ++k) {
          vec row[Window], taps[Taps];
          for (int64_t j = 0; j < Window; ++j) row[j] = r[j][k];
          gather<Taps, Window>(row, taps);
          for (int64_t j = 0; j < Taps; ++j) w[k * Taps + j][i] = taps[j];
        }
      }
      float* out = p.dweight + (d % p.read.c + c) * p.by_read + (block * kOutputs + o) * p.by_written;
      for (int64_t tap = 0; tap < Taps * Taps; ++tap) {
        int64_t place = tap_of(p, phase, p.read.phases, tap);
        if (place < 0) continue;
        transpose(w[tap]);
        for (int64_t i = 0; i < kLanes; ++i) STORE(out + place + i * p.by_written, w[tap][i]);
      }
    }
}

}  // namespace

void winograd_weight(const Winograd& p, float* u, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block)
    for (int64_t d = 0; d < p.depth(); d += kDepth, u += p.products() * kWeightPlane)
      transform_weights(p, d, p.depth() - d < kDepth ? p.depth() - d : kDepth, block, u);
}

void winograd_read(const Winograd& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) KIND(transform_read)(p, Tile(p, p.first + i), p.v + i * p.row());
}

void winograd_products(const Winograd& p, float* scratch, int64_t begin, int64_t end) {
  int64_t depth = p.depth(), plane = winograd_plane(p), products = p.products();
  float *m = scratch, *own = scratch + products * plane;
  for (int64_t item = begin; item < end; ++item) {
    int64_t block = item / p.parts, part = item % p.parts;
    int64_t first = p.tiles * part / p.parts, count = p.tiles * (part + 1) / p.parts - first;
    for (int64_t d = 0; d < depth; d += kDepth) {
      int64_t rows = depth - d < kDepth ? depth - d : kDepth;
      const float* u = p.packed ? p.packed + block * winograd_block(p) + d / kDepth * products * kWeightPlane : own;
      if (!p.packed) transform_weights(p, d, rows, block, own);
      // A block of rows or of outputs that is of several phases has products of all.
      int64_t phase = (p.read.c % kDepth ? 0 : d / p.read.c) + (p.written.c % kOutputs ? 0 : block * kOutputs / p.written.c);
      for (int64_t k = 0; k < products; ++k) {
        bool none = idle(p, phase, k);
        if (none && d == 0) std::memset(m + k * plane, 0, count * kOutputs * sizeof(float));
        for (int64_t i = 0; i < count && !none; i += kRows)  // rows past `count` are made of what lies there, and not read
          (d ? multiply<true, kRows> : multiply<false, kRows>)(p.v + k * p.plane() + (first + i) * p.row() + d, p.row(), 1,
                                                               u + k * kWeightPlane, rows, m + k * plane + i * kOutputs);
      }
    }
    for (int64_t i = 0; i < count; ++i) KIND(transform_written)(p, Tile(p, p.first + first + i), m + i * kOutputs, plane, block);
  }
}

void winograd_read_gradient(const Winograd& p, int64_t begin, int64_t end) {
  winograd_read(p, begin, end);
  for (int64_t i = begin; i < end; ++i) KIND(transform_gradient)(p, Tile(p, p.first + i), p.e + i * kOutputs);
}

void winograd_gradient(const Winograd& p, int64_t begin, int64_t end) {
  constexpr int64_t kRun = 64;  // tiles summed in registers before they are added to what came before
  float own[16 * kGradientPlane];
  int64_t products = p.products();
  for (int64_t item = begin; item < end; ++item) {
    int64_t place = item / p.parts, part = item % p.parts, block = place % p.blocks(), group = place / p.blocks();
    int64_t from = group % p.channel_blocks() * kChannels, d = group / p.channel_blocks() * p.read.c + from;
    int64_t count = p.read.c - from < kChannels ? p.read.c - from : kChannels;
    float* du = p.du ? p.du + place * products * kGradientPlane : own;
    for (int64_t k = products * part / p.parts; k < products * (part + 1) / p.parts; ++k) {
      float* sums = du + k * kGradientPlane;
      if (p.first == 0) std::memset(sums, 0, kGradientPlane * sizeof(float));
      const float *v = p.v + k * p.plane() + d, *e = p.e + (block * products + k) * p.output_plane();
      for (int64_t i = 0; i < p.tiles && !idle(p, d / p.read.c, k); i += kRun) {
        int64_t run = p.tiles - i < kRun ? p.tiles - i : kRun;
        const float *a = v + i * p.row(), *b = e + i * kOutputs;
        int64_t c = 0;
        for (; c + kRows <= count; c += kRows) multiply<true, kRows>(a + c, 1, p.row(), b, run, sums + c * kOutputs);
        for (; c < count; c += 2) multiply<true, 2>(a + c, 1, p.row(), b, run, sums + c * kOutputs);
      }
    }
    if (p.last && p.parts == 1) KIND(transform_products)(p, du, d, count, block);
  }
}

void winograd_dweight(const Winograd& p, int64_t begin, int64_t end) {
  for (int64_t place = begin; place < end; ++place) {
    int64_t block = place % p.blocks(), group = place / p.blocks(), from = group % p.channel_blocks() * kChannels;
    int64_t count = p.read.c - from < kChannels ? p.read.c - from : kChannels;
    KIND(transform_products)(p, p.du + place * p.products() * kGradientPlane, group / p.channel_blocks() * p.read.c + from, count, block);
  }
}

}  // namespace ISA
}  // namespace i2ifast
