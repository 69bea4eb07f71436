// y = act((x - mean) * rstd * (1 + gamma) + beta) with a table row per pixel, its dx, and the gradient of the table.
// Images are moved 16 bytes at a time; a table row is read again only where the index changes, and then mostly from L1.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "modulate_table_cuda.h"

namespace i2ifast::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = 1 << 16;  // of grid-stride loops
constexpr int kChannels = 8;             // that a thread takes for its pixels in contiguous images

template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
  T v[N];
};

// Of 2 to 16 bytes. Stored by an intrinsic, because the compiler splits plain stores of them into their elements.
template <int Bytes>
using Word =
    std::conditional_t<Bytes == 16, uint4, std::conditional_t<Bytes == 8, uint2, std::conditional_t<Bytes == 4, uint32_t, uint16_t>>>;

template <int N, typename T>
__device__ void load(const T* from, float (&to)[N]) {
  const auto raw = *reinterpret_cast<const Vector<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = static_cast<float>(raw.v[i]);
}

template <int N, typename T>
__device__ void store(T* to, const float (&from)[N]) {
  constexpr int kEach = sizeof(T) * N < 16 ? N : 16 / sizeof(T);
#pragma unroll
  for (int first = 0; first < N; first += kEach) {
    Vector<T, kEach> raw;
#pragma unroll
    for (int i = 0; i < kEach; ++i) raw.v[i] = static_cast<T>(from[first + i]);
    Word<sizeof(raw)> word;
    memcpy(&word, &raw, sizeof(raw));
    __stwb(reinterpret_cast<Word<sizeof(raw)>*>(to + first), word);
  }
}

__device__ float activate(float z, float slope) { return z > 0 ? z : z * slope; }

// V values (1 + gamma, beta) of output o in row d, from channel c.
template <int V>
__device__ void load_row(const ModulateTable& p, int64_t d, int o, int64_t c, float (&scale)[V], float (&beta)[V]) {
  const float* row = p.table + (d * p.outputs + o) * 2 * p.c + c;
  load(row, scale);
  load(row + p.c, beta);
#pragma unroll
  for (int i = 0; i < V; ++i) scale[i] += 1;
}

__device__ void normalise_gradient(const ModulateTable& p, int64_t statistic, float rstd, float xhat, float& g) {
  const int64_t groups = p.per_sample ? p.n : 1;
  g = rstd * (g - p.means[statistic] - xhat * p.means[groups * p.c + statistic]);
}

// channels_last: a thread takes V channels of four pixels of y, consecutive ones or, upsampling, the four of one pixel of x.
template <typename T, int V, bool UP, bool DX>
__global__ void __launch_bounds__(kThreads, DX ? 0 : 4) nhwc(ModulateTable p) {
  constexpr int X = UP ? 1 : 4;
  const uint32_t hw = p.h * p.w, quads = UP ? hw : (hw + 3) / 4, width = p.w;
  const auto* x = static_cast<const T*>(p.x);
  for (uint32_t item = blockIdx.x * blockDim.y + threadIdx.y; item < p.n * quads; item += gridDim.x * blockDim.y) {
    const uint32_t sample = item / quads, quad = item % quads;
    const int64_t x_first = int64_t(sample) * hw + (UP ? quad : quad * 4);
    const int64_t y_base = int64_t(sample) * hw * (UP ? 4 : 1);
    int64_t pixel[4];
    int row[4];
    bool ok[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      ok[k] = UP || quad * 4 + k < hw;
      pixel[k] = y_base + (UP ? int64_t(quad / width * 2 + k / 2) * 2 * width + quad % width * 2 + k % 2 : int64_t(quad) * 4 + k);
      row[k] = ok[k] ? p.patches[pixel[k]] : 0;
    }
    for (int64_t c = threadIdx.x * V; c < p.c; c += blockDim.x * V) {
      const int64_t statistic = (p.per_sample ? sample * p.c : 0) + c;
      float xhat[X][V], g[X][V], mean[V], rstd[V];
#pragma unroll
      for (int k = 0; k < X; ++k)
        if (ok[k]) load(x + (x_first + k) * p.c + c, xhat[k]);
      load(p.mean + statistic, mean);
      load(p.rstd + statistic, rstd);
#pragma unroll
      for (int k = 0; k < X; ++k)
#pragma unroll
        for (int i = 0; i < V; ++i) xhat[k][i] = (xhat[k][i] - mean[i]) * rstd[i], g[k][i] = 0;
#pragma unroll 1
      for (int o = 0; o < p.outputs; ++o) {
        float scale[V], beta[V], value[V];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (!ok[k]) break;
          if (k == 0 || row[k] != row[k - 1]) load_row(p, row[k], o, c, scale, beta);
          if constexpr (DX) load(static_cast<const T*>(p.dy[o]) + pixel[k] * p.c + c, value);
#pragma unroll
          for (int i = 0; i < V; ++i) {
            const float z = xhat[UP ? 0 : k][i] * scale[i] + beta[i];
            if constexpr (DX)
              g[UP ? 0 : k][i] += (z > 0 ? value[i] : value[i] * p.slope[o]) * scale[i];
            else
              value[i] = activate(z, p.slope[o]);
          }
          if constexpr (!DX) store(static_cast<T*>(p.y[o]) + pixel[k] * p.c + c, value);
        }
      }
      if constexpr (DX) {
#pragma unroll
        for (int k = 0; k < X; ++k) {
          if (!ok[k]) break;
#pragma unroll
          for (int i = 0; i < V; ++i) normalise_gradient(p, statistic + i, rstd[i], xhat[k][i], g[k][i]);
          store(static_cast<T*>(p.dx) + (x_first + k) * p.c + c, g[k]);
        }
      }
    }
  }
}

// contiguous: a thread takes V consecutive pixels of x, and theirs of y, for kChannels channels. V divides a row if UP, else a plane.
template <typename T, int V, bool UP, bool DX>
__global__ void __launch_bounds__(kThreads) nchw(ModulateTable p) {
  constexpr int R = UP ? 2 : 1, Y = V * R;  // rows of y, and pixels in each
  const int64_t hw = p.h * p.w;
  const uint32_t groups = hw / V, chunks = (p.c + kChannels - 1) / kChannels, width = p.w;  // divided by, so 32 bits
  for (uint32_t item = blockIdx.x * kThreads + threadIdx.x; item < p.n * chunks * groups; item += gridDim.x * kThreads) {
    const uint32_t sample = item / groups / chunks, first = item % groups * V;
    const int64_t y_first = UP ? first / width * 4 * p.w + first % width * 2 : first;
    const int64_t y_plane = hw * R * R;
    int row[R][Y];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const auto ids = *reinterpret_cast<const Vector<int, Y>*>(p.patches + sample * y_plane + y_first + r * 2 * p.w);
#pragma unroll
      for (int i = 0; i < Y; ++i) row[r][i] = ids.v[i];
    }
    int64_t c = int64_t(item / groups % chunks) * kChannels;
    const int64_t end = min(c + kChannels, p.c);
#pragma unroll 1
    for (; c < end; ++c) {
      const int64_t statistic = (p.per_sample ? sample * p.c : 0) + c;
      const float mean = p.mean[statistic], rstd = p.rstd[statistic];
      float xhat[V], g[V];
      load(static_cast<const T*>(p.x) + (sample * p.c + c) * hw + first, xhat);
#pragma unroll
      for (int i = 0; i < V; ++i) xhat[i] = (xhat[i] - mean) * rstd, g[i] = 0;
#pragma unroll 1
      for (int o = 0; o < p.outputs; ++o) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int64_t at = (sample * p.c + c) * y_plane + y_first + r * 2 * p.w;
          float value[Y];
          if constexpr (DX) load(static_cast<const T*>(p.dy[o]) + at, value);
#pragma unroll
          for (int i = 0; i < Y; ++i) {
            float scale[1], beta[1];
            load_row(p, row[r][i], o, c, scale, beta);
            const float z = xhat[i / R] * scale[0] + beta[0];
            if constexpr (DX)
              g[i / R] += (z > 0 ? value[i] : value[i] * p.slope[o]) * scale[0];
            else
              value[i] = activate(z, p.slope[o]);
          }
          if constexpr (!DX) store(static_cast<T*>(p.y[o]) + at, value);
        }
      }
      if constexpr (DX) {
#pragma unroll
        for (int i = 0; i < V; ++i) normalise_gradient(p, statistic, rstd, xhat[i], g[i]);
        store(static_cast<T*>(p.dx) + (sample * p.c + c) * hw + first, g);
      }
    }
  }
}

// Rows of a list of members: by offsets, or, without, of `length` members each.
struct Rows {
  const int32_t* offsets;
  int64_t length, count;
  __device__ int64_t begin(int64_t d) const { return offsets ? offsets[d] : d * length; }
  __device__ int64_t at(int64_t member) const {  // d with begin(d) <= member < begin(d + 1)
    int64_t low = 0, high = count;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (begin(middle) <= member ? low : high) = middle;
    }
    return low;
  }
};

// Sums of dz * xhat and dz over the members of a row, in pieces that end at multiples of kSegment: item d < D is the first piece of
// row d, item D + b the one that begins at boundary b, of use if that is inside of a row. Without `order` the members are all pixels, a row
// is a sample, and the sums are of g and g * xhat over the outputs.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 4)
    segment_sums(ModulateTable p, const int32_t* order, Rows rows, int64_t items, float* partials, float* out) {
  const int64_t item = blockIdx.x * int64_t(blockDim.y) + threadIdx.y;
  if (item >= items) return;
  const int64_t boundary = (item - rows.count + 1) * kSegment;
  const int64_t d = item < rows.count ? item : rows.at(boundary), first = item < rows.count ? rows.begin(d) : boundary;
  const int64_t last = min(rows.begin(d + 1), (first / kSegment + 1) * kSegment);
  const int64_t width = (order ? p.outputs : 1) * 2 * p.c;
  const uint32_t y_width = p.upsample ? 2 * p.w : p.w, y_pixels = p.h * p.w * (p.upsample ? 4 : 1);  // divided by, so 32 bits
  float* to = item < rows.count ? out + d * width : partials + (item - rows.count) * width;
  for (int64_t c = threadIdx.x * V; c < p.c; c += blockDim.x * V) {
    float sum_x[V] = {}, sum[V] = {};
    for (int o = 0; o < p.outputs; ++o) {
      float scale[V], beta[V];
      if (order) load_row(p, d, o, c, scale, beta);
#pragma unroll 4
      for (int64_t m = first; m < last; ++m) {
        const uint32_t q = order ? order[m] : m;
        if (!order && (m == first || p.patches[m] != p.patches[m - 1])) load_row(p, p.patches[m], o, c, scale, beta);
        const int64_t pixel = p.upsample ? q / y_width / 2 * p.w + q % y_width / 2 : q;
        const int64_t statistic = (p.per_sample ? q / y_pixels * p.c : 0) + c;
        float x[V], dy[V], mean[V], rstd[V];
        load(static_cast<const T*>(p.x) + pixel * p.c + c, x);
        load(static_cast<const T*>(p.dy[o]) + int64_t(q) * p.c + c, dy);
        load(p.mean + statistic, mean);
        load(p.rstd + statistic, rstd);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const float xhat = (x[i] - mean[i]) * rstd[i];
          float dz = xhat * scale[i] + beta[i] > 0 ? dy[i] : dy[i] * p.slope[o];
          if (!order) dz *= scale[i];
          sum_x[i] += dz * xhat;
          sum[i] += dz;
        }
      }
      if (!order && o + 1 < p.outputs) continue;
      store(to + (order ? o * 2 * p.c : p.c) + c, sum_x);
      store(to + (order ? (o * 2 + 1) * p.c : 0) + c, sum);
#pragma unroll
      for (int i = 0; i < V; ++i) sum_x[i] = sum[i] = 0;
    }
  }
}

// Adds up the 32 values that the threads of a column hold; the first of them has the sum.
__device__ float add_column(float value) {
  __shared__ float values[32][33];
  values[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  for (int half = 16; half; half /= 2) {
    if (threadIdx.y < half) values[threadIdx.y][threadIdx.x] += values[threadIdx.y + half][threadIdx.x];
    __syncthreads();
  }
  return values[0][threadIdx.x];
}

// The first boundary inside of a row adds the pieces of all of them to the row's first piece.
__global__ void __launch_bounds__(1024) add_partials(const float* partials, Rows rows, int64_t width, float* out) {
  const uint32_t blocks = (width + 31) / 32;
  const int64_t boundary = blockIdx.x / blocks, k = blockIdx.x % blocks * 32 + threadIdx.x;
  const int64_t position = (boundary + 1) * kSegment, d = rows.at(position), start = rows.begin(d);
  if (start >= position || start < position - kSegment) return;
  const int64_t end = (rows.begin(d + 1) - 1) / kSegment;
  float total = 0;
  if (k < width)
    for (int64_t b = boundary + threadIdx.y; b < end; b += 32) total += partials[b * width + k];
  total = add_column(total);
  if (threadIdx.y == 0 && k < width) out[d * width + k] += total;
}

__global__ void __launch_bounds__(1024) row_sums(ModulateTable p, const float* dtable, int64_t chunk, float* sums) {
  const uint32_t blocks = (p.c + 31) / 32;
  const int64_t part = blockIdx.x / blocks, c = blockIdx.x % blocks * 32 + threadIdx.x;
  const int64_t end = min((part + 1) * chunk, p.rows) * p.outputs;
  float sum_g = 0, sum_gx = 0;
  if (c < p.c)
    for (int64_t r = part * chunk * p.outputs + threadIdx.y; r < end; r += 32) {
      const float scale = 1 + p.table[r * 2 * p.c + c];
      sum_gx += scale * dtable[r * 2 * p.c + c];
      sum_g += scale * dtable[(r * 2 + 1) * p.c + c];
    }
  sum_gx = add_column(sum_gx);
  __syncthreads();
  sum_g = add_column(sum_g);
  if (threadIdx.y == 0 && c < p.c) sums[part * 2 * p.c + c] = sum_g, sums[(part * 2 + 1) * p.c + c] = sum_gx;
}

__global__ void __launch_bounds__(kThreads) offsets_of(const int32_t* sorted, int64_t pixels, int64_t rows, int32_t* offsets) {
  const int64_t d = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (d > rows) return;
  int64_t low = 0, high = pixels;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sorted[middle] < d)
      low = middle + 1;
    else
      high = middle;
  }
  offsets[d] = static_cast<int32_t>(low);
}

// Threads of a block: over vectors of channels, then over pixels or pieces.
dim3 block_of(int64_t vectors) {
  unsigned x = 1;
  while (x < vectors && x < 32) x *= 2;
  return {x, kThreads / x, 1};
}

template <typename F>
cudaError_t with_type(Type type, const F& launch) {
  if (type == Type::f32) launch(float());
  if (type == Type::bf16) launch(__nv_bfloat16());
  if (type == Type::f16) launch(__half());
  return cudaGetLastError();
}

template <typename T, bool UP, bool DX>
void launch_apply(ModulateTable p, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(T), X = UP ? V / 4 : V;  // eight indices with their offsets are what registers hold
  if (p.channels_last) {
    if (!p.per_sample) p.h *= p.n, p.n = 1;  // one long sample
    const bool wide = p.c % V == 0;
    const dim3 block = block_of(wide ? p.c / V : p.c);
    const int64_t items = p.n * (UP ? p.h * p.w : (p.h * p.w + 3) / 4);
    const int64_t blocks = std::min((items + block.y - 1) / block.y, kMaxBlocks);
    (wide ? nhwc<T, V, UP, DX> : nhwc<T, 1, UP, DX>)<<<blocks, block, 0, stream>>>(p);
  } else {
    const bool wide = (UP ? p.w : p.h * p.w) % X == 0;
    const int64_t items = p.n * ((p.c + kChannels - 1) / kChannels) * (p.h * p.w / (wide ? X : 1));
    const int64_t blocks = std::min((items + kThreads - 1) / kThreads, kMaxBlocks);
    (wide ? nchw<T, X, UP, DX> : nchw<T, 1, UP, DX>)<<<blocks, kThreads, 0, stream>>>(p);
  }
}

template <bool DX>
cudaError_t apply(const ModulateTable& p, cudaStream_t stream) {
  return with_type(p.type, [&](auto type) {
    p.upsample ? launch_apply<decltype(type), true, DX>(p, stream) : launch_apply<decltype(type), false, DX>(p, stream);
  });
}

}  // namespace

cudaError_t modulate_table_forward(const ModulateTable& p, cudaStream_t stream) { return apply<false>(p, stream); }

cudaError_t modulate_table_dx(const ModulateTable& p, cudaStream_t stream) { return apply<true>(p, stream); }

cudaError_t modulate_table_segments(const ModulateTable& p, const int32_t* order, const int32_t* offsets, float* partials, float* out,
                                    cudaStream_t stream) {
  const int64_t plane = p.h * p.w * (p.upsample ? 4 : 1), boundaries = partial_rows(p.n * plane);
  const Rows rows{offsets, plane, order ? p.rows : p.n};
  const int64_t items = rows.count + boundaries, width = (order ? p.outputs : 1) * 2 * p.c;
  const cudaError_t error = with_type(p.type, [&](auto type) {
    using T = decltype(type);
    constexpr int V = 16 / sizeof(T);
    const bool wide = p.c % V == 0;
    const dim3 block = block_of(wide ? p.c / V : p.c);
    const auto kernel = wide ? segment_sums<T, V> : segment_sums<T, 1>;
    kernel<<<(items + block.y - 1) / block.y, block, 0, stream>>>(p, order, rows, items, partials, out);
  });
  if (error != cudaSuccess || boundaries == 0) return error;
  add_partials<<<boundaries*((width + 31) / 32), dim3(32, 32), 0, stream>>>(partials, rows, width, out);
  return cudaGetLastError();
}

cudaError_t modulate_table_row_sums(const ModulateTable& p, const float* dtable, int64_t chunks, float* sums, cudaStream_t stream) {
  row_sums<<<chunks*((p.c + 31) / 32), dim3(32, 32), 0, stream>>>(p, dtable, (p.rows + chunks - 1) / chunks, sums);
  return cudaGetLastError();
}

cudaError_t segment_offsets(const int32_t* sorted, int64_t pixels, int64_t rows, int32_t* offsets, cudaStream_t stream) {
  offsets_of<<<rows / kThreads + 1, kThreads, 0, stream>>>(sorted, pixels, rows, offsets);
  return cudaGetLastError();
}

}  // namespace i2ifast::cuda
