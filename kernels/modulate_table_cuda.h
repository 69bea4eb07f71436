// CUDA launchers of modulate_table. A table row is (gamma, beta) per output; outputs share a read of x. Every pointer is 16-byte aligned.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace i2ifast::cuda {

enum class Type { f32, bf16, f16 };

struct ModulateTable {
  Type type;
  bool channels_last, upsample, per_sample;
  int outputs;         // 1 or 2
  int64_t n, c, h, w;  // of x; patches, y and dy are 2h x 2w if upsample
  int64_t rows;        // of table
  float slope[2];
  const void* x;
  const float *table, *mean, *rstd;
  const int32_t* patches;
  const void* dy[2];
  void* y[2];
  const float* means;  // [2, G, C]: of g and g * xhat
  void* dx;
};

// y from x.
cudaError_t modulate_table_forward(const ModulateTable& p, cudaStream_t stream);
// dx from dy, x and means.
cudaError_t modulate_table_dx(const ModulateTable& p, cudaStream_t stream);

// Sums over segments of a list of y's pixels. A program sums at most kSegment of them; what lies behind a multiple of kSegment goes
// to `partials` first: partial_rows(pixels) rows as wide as `out`.
constexpr int64_t kSegment = 64;
inline int64_t partial_rows(int64_t pixels) { return pixels > 0 ? (pixels - 1) / kSegment : 0; }

// From channels_last dy and x: dtable [D, 2CK], row d from pixels order[offsets[d]:offsets[d+1]], or, without order and offsets,
// the sums [N, 2, C] of g and g * xhat over each sample.
cudaError_t modulate_table_segments(const ModulateTable& p, const int32_t* order, const int32_t* offsets, float* partials, float* out,
                                    cudaStream_t stream);
// sums [chunks, 2, C] of g and g * xhat, over chunks of the rows of dtable: g = dz * (1 + gamma).
cudaError_t modulate_table_row_sums(const ModulateTable& p, const float* dtable, int64_t chunks, float* sums, cudaStream_t stream);
// offsets [D+1]: where each index begins in `sorted`.
cudaError_t segment_offsets(const int32_t* sorted, int64_t pixels, int64_t rows, int32_t* offsets, cudaStream_t stream);

}  // namespace i2ifast::cuda
