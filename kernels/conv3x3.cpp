#include "conv3x3.h"

namespace i2ifast {
namespace ISA {
namespace {

constexpr int64_t kVector = 16;
typedef float vec __attribute__((vector_size(kVector * 4), aligned(4)));

#define LOAD(p) (*reinterpret_cast<const vec*>(p))
#define STORE(p, v) (*reinterpret_cast<vec*>(p) = (v))

struct Tile {
  int64_t n, y, x;  // of its first output pixel
  Tile(const Conv3x3& p, int64_t index) {
    int64_t across = (p.w + 1) / 2, down = (p.h + 1) / 2;
    n = index / (across * down), y = index / across % down * 2, x = index % across * 2;
  }
};

// The row (column) of the image that is seen at `i`, in the image or next to it; -1 for zeros. Further outside, any: it is not used.
inline int64_t seen(int64_t i, int64_t size, Padding padding) {
  if (i >= 0 && i < size) return i;
  if (padding == Padding::zeros) return -1;
  if (padding == Padding::replicate) return i < 0 ? 0 : size - 1;
  int64_t mirrored = i < 0 ? -i : 2 * size - 2 - i;
  return mirrored < 0 ? 0 : mirrored;
}

// B^T d B of one tile, d the 4x4 input pixels around it: 16 rows of C, `step` apart.
void transform_input(const Conv3x3& p, const Tile& t, float* v, int64_t step) {
  for (int64_t c = 0; c < p.c; c += kVector) {
    vec d[4][4], r[4][4];
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t j = 0; j < 4; ++j) {
        int64_t y = seen(t.y + i - 1, p.h, p.padding), x = seen(t.x + j - 1, p.w, p.padding);
        d[i][j] = y >= 0 && x >= 0 ? LOAD(p.x + ((t.n * p.h + y) * p.w + x) * p.c + c) : vec{};
      }
    for (int64_t j = 0; j < 4; ++j) {
      r[0][j] = d[0][j] - d[2][j];
      r[1][j] = d[1][j] + d[2][j];
      r[2][j] = d[2][j] - d[1][j];
      r[3][j] = d[1][j] - d[3][j];
    }
    for (int64_t i = 0; i < 4; ++i) {
      float* out = v + i * 4 * step + c;
      STORE(out, r[i][0] - r[i][2]);
      STORE(out + step, r[i][1] + r[i][2]);
      STORE(out + 2 * step, r[i][2] - r[i][1]);
      STORE(out + 3 * step, r[i][1] - r[i][3]);
    }
  }
}

// y of one tile and 64 output channels: A^T m A + bias, m being 16 rows of 64.
void transform_output(const Conv3x3& p, const Tile& t, const float* m, int64_t first) {
  for (int64_t o = 0; o < kOutputs; o += kVector) {
    vec s[2][4], bias = p.bias ? LOAD(p.bias + first + o) : vec{};
    for (int64_t j = 0; j < 4; ++j) {
      vec column[4];
      for (int64_t i = 0; i < 4; ++i) column[i] = LOAD(m + (i * 4 + j) * kTiles * kOutputs + o);
      s[0][j] = column[0] + column[1] + column[2];
      s[1][j] = column[1] - column[2] - column[3];
    }
    for (int64_t i = 0; i < 2 && t.y + i < p.h; ++i) {
      float* out = p.y + ((t.n * p.h + t.y + i) * p.w + t.x) * p.outputs + first + o;
      STORE(out, s[i][0] + s[i][1] + s[i][2] + bias);
      if (t.x + 1 < p.w) STORE(out + p.outputs, s[i][1] - s[i][2] - s[i][3] + bias);
    }
  }
}

// A dy A^T of one tile: 16 rows of `outputs`, `step` apart. Adjoint of transform_output.
void transform_gradient(const Conv3x3& p, const Tile& t, float* e, int64_t step) {
  for (int64_t o = 0; o < p.outputs; o += kVector) {
    vec d[2][2];
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t j = 0; j < 2; ++j) {
        bool inside = t.y + i < p.h && t.x + j < p.w;
        d[i][j] = inside ? LOAD(p.dy + ((t.n * p.h + t.y + i) * p.w + t.x + j) * p.outputs + o) : vec{};
      }
    vec r[4][2];
    for (int64_t j = 0; j < 2; ++j) r[0][j] = d[0][j], r[1][j] = d[0][j] + d[1][j], r[2][j] = d[0][j] - d[1][j], r[3][j] = -d[1][j];
    for (int64_t i = 0; i < 4; ++i) {
      float* out = e + i * 4 * step + o;
      STORE(out, r[i][0]);
      STORE(out + step, r[i][0] + r[i][1]);
      STORE(out + 2 * step, r[i][0] - r[i][1]);
      STORE(out + 3 * step, -r[i][1]);
    }
  }
}

constexpr int64_t kChannels = 256;  // summed in registers before they are added to the channels before: shorter chains round less

// m[6][64] (+)= a[6][depth] * b[depth][64]: 24 accumulators stay in registers.
template <bool Add>
void multiply(const float* __restrict a, int64_t a_row, int64_t a_column, const float* __restrict b, int64_t b_row, int64_t depth,
              float* __restrict m, int64_t m_row) {
  constexpr int64_t kColumns = kOutputs / kVector;
  vec sum[kRows][kColumns] = {};
  for (int64_t k = 0; k < depth; ++k) {
    vec row[kColumns];
    for (int64_t j = 0; j < kColumns; ++j) row[j] = LOAD(b + k * b_row + j * kVector);
    for (int64_t i = 0; i < kRows; ++i) {
      float factor = a[i * a_row + k * a_column];
      for (int64_t j = 0; j < kColumns; ++j) sum[i][j] += factor * row[j];
    }
  }
  for (int64_t i = 0; i < kRows; ++i)
    for (int64_t j = 0; j < kColumns; ++j) {
      float* out = m + i * m_row + j * kVector;
      if (Add)
        STORE(out, LOAD(out) + sum[i][j]);
      else
        STORE(out, sum[i][j]);
    }
}

}  // namespace

void conv3x3_weight(const Conv3x3Weight& p, int64_t begin, int64_t end) {
  // Of u: inputs are the channels of the map it is applied to.
  int64_t inputs = p.adjoint ? p.outputs : p.c, outputs = p.adjoint ? p.c : p.outputs, blocks = outputs / kOutputs;
  int64_t by_input = p.stride[p.adjoint ? 0 : 1], by_output = p.stride[p.adjoint ? 1 : 0], step = blocks * inputs * kOutputs;
  float w[kVector][9][kOutputs];  // a block turned so that outputs are innermost
  for (int64_t item = begin; item < end; ++item) {
    int64_t first = item / blocks * kVector, block = item % blocks;
    const float* weight = p.weight + first * by_input + block * kOutputs * by_output;
    for (int64_t tap = 0; tap < 9; ++tap) {
      int64_t from = p.adjoint ? 8 - tap : tap;
      const float* taken = weight + from / 3 * p.stride[2] + from % 3 * p.stride[3];
      if (by_input < by_output)
        for (int64_t o = 0; o < kOutputs; ++o)
          for (int64_t c = 0; c < kVector; ++c) w[c][tap][o] = taken[o * by_output + c * by_input];
      else
        for (int64_t c = 0; c < kVector; ++c)
          for (int64_t o = 0; o < kOutputs; ++o) w[c][tap][o] = taken[o * by_output + c * by_input];
    }
    for (int64_t c = 0; c < kVector; ++c) {
      float r[4][3][kOutputs];
      for (int64_t j = 0; j < 3; ++j)
        for (int64_t o = 0; o < kOutputs; ++o) {
          float even = 0.5f * (w[c][j][o] + w[c][6 + j][o]), odd = 0.5f * w[c][3 + j][o];
          r[0][j][o] = w[c][j][o], r[1][j][o] = even + odd, r[2][j][o] = even - odd, r[3][j][o] = w[c][6 + j][o];
        }
      for (int64_t i = 0; i < 4; ++i) {
        float* u = p.u + 4 * i * step + (block * inputs + first + c) * kOutputs;
        for (int64_t o = 0; o < kOutputs; ++o) {
          float even = 0.5f * (r[i][0][o] + r[i][2][o]), odd = 0.5f * r[i][1][o];
          u[o] = r[i][0][o], u[step + o] = even + odd, u[2 * step + o] = even - odd, u[3 * step + o] = r[i][2][o];
        }
      }
    }
  }
}

void conv3x3_forward(const Conv3x3& p, float* scratch, int64_t begin, int64_t end) {
  float *v = scratch, *m = scratch + 16 * kTiles * p.c;
  int64_t tiles = conv3x3_tiles(p), blocks = p.outputs / kOutputs, transformed = -1;
  for (int64_t item = begin; item < end; ++item) {
    int64_t first = item / p.split * kTiles, part = item % p.split, count = tiles - first < kTiles ? tiles - first : kTiles;
    if (transformed != first)
      for (int64_t i = 0; i < count; ++i) transform_input(p, Tile(p, first + i), v + i * p.c, kTiles * p.c);
    transformed = first;
    for (int64_t block = blocks * part / p.split; block < blocks * (part + 1) / p.split; ++block) {
      for (int64_t k = 0; k < 16; ++k)
        for (int64_t i = 0; i < count; i += kRows)  // rows past `count` are made of what lies there, and not read
          for (int64_t c = 0; c < p.c; c += kChannels) {
            const float *a = v + (k * kTiles + i) * p.c + c, *b = p.u + ((k * blocks + block) * p.c + c) * kOutputs;
            int64_t depth = p.c - c < kChannels ? p.c - c : kChannels;
            (c ? multiply<true> : multiply<false>)(a, p.c, 1, b, kOutputs, depth, m + (k * kTiles + i) * kOutputs, kOutputs);
          }
      for (int64_t i = 0; i < count; ++i) transform_output(p, Tile(p, first + i), m + i * kOutputs, block * kOutputs);
    }
  }
}

void conv3x3_transforms(const Conv3x3& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    Tile tile(p, p.first + i);
    transform_input(p, tile, p.v + i * p.c, p.tiles * p.c);
    transform_gradient(p, tile, p.e + i * p.outputs, p.tiles * p.outputs);
  }
}

void conv3x3_products(const Conv3x3& p, int64_t begin, int64_t end) {
  constexpr int64_t kRun = 64;  // tiles summed in registers before they are added to what came before
  int64_t blocks = p.outputs / kOutputs;
  float sum[kRows * kOutputs];
  for (int64_t item = begin; item < end; ++item) {
    int64_t k = item / blocks, first = item % blocks * kOutputs;
    const float *v = p.v + k * p.tiles * p.c, *e = p.e + k * p.tiles * p.outputs + first;
    for (int64_t c = 0; c < p.c; c += kRows) {
      int64_t rows = p.c - c < kRows ? p.c - c : kRows, from = c + rows - kRows;  // the last rows are done with some before them
      std::memset(sum, 0, sizeof(sum));
      for (int64_t i = 0; i < p.tiles; i += kRun)
        multiply<true>(v + i * p.c + from, 1, p.c, e + i * p.outputs, p.outputs, p.tiles - i < kRun ? p.tiles - i : kRun, sum, kOutputs);
      for (int64_t row = kRows - rows; row < kRows; ++row) {
        float* du = p.du + (k * p.c + from + row) * p.outputs + first;
        for (int64_t o = 0; o < kOutputs; ++o) du[o] += sum[row * kOutputs + o];
      }
    }
  }
}

// dw [O, 3, 3, C] = G^T du G.
void conv3x3_dweight(const Conv3x3& p, float* dw, int64_t begin, int64_t end) {
  int64_t blocks = p.outputs / kOutputs, step = p.c * p.outputs;
  float w[9][kOutputs][kVector];
  for (int64_t item = begin; item < end; ++item) {
    int64_t first = item / blocks * kVector, o0 = item % blocks * kOutputs;
    for (int64_t c = 0; c < kVector; ++c) {
      const float* du = p.du + (first + c) * p.outputs + o0;
      float r[3][4][kOutputs];
      for (int64_t j = 0; j < 4; ++j)
        for (int64_t o = 0; o < kOutputs; ++o) {
          const float* d = du + j * step + o;
          float even = 0.5f * (d[4 * step] + d[8 * step]), odd = 0.5f * (d[4 * step] - d[8 * step]);
          r[0][j][o] = d[0] + even, r[1][j][o] = odd, r[2][j][o] = even + d[12 * step];
        }
      for (int64_t i = 0; i < 3; ++i)
        for (int64_t o = 0; o < kOutputs; ++o) {
          float even = 0.5f * (r[i][1][o] + r[i][2][o]);
          w[3 * i][o][c] = r[i][0][o] + even;
          w[3 * i + 1][o][c] = 0.5f * (r[i][1][o] - r[i][2][o]);
          w[3 * i + 2][o][c] = even + r[i][3][o];
        }
    }
    for (int64_t o = 0; o < kOutputs; ++o)
      for (int64_t tap = 0; tap < 9; ++tap) std::memcpy(dw + ((o0 + o) * 9 + tap) * p.c + first, w[tap][o], sizeof(w[tap][o]));
  }
}

}  // namespace ISA
}  // namespace i2ifast
