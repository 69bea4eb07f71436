// CPU kernels of label plans: distinct windows, distinct channel vectors, bags.
#include "../kernels/label_patches.h"

#include <algorithm>
#include <initializer_list>
#include <tuple>

#include "common.h"

namespace {

using i2ifast::ScalarType;
using i2ifast::Tensor;
using Pair = std::tuple<Tensor, Tensor>;

void check(const Tensor& t, int64_t dim, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(t.dim() == dim && t.scalar_type() == dtype && t.is_contiguous(), name, ": expected contiguous ",
                  dtype == ScalarType::Int ? "int32" : "float32", " of ", dim, " dimensions");
}

const int32_t* words(const Tensor& t) { return static_cast<const int32_t*>(t.const_data_ptr()); }
int32_t* output(const Tensor& t) { return static_cast<int32_t*>(t.mutable_data_ptr()); }

Tensor from_words(const std::vector<int32_t>& words, const Tensor& like, std::initializer_list<int64_t> shape) {
  Tensor t = torch::stable::new_empty(like, shape);
  std::copy(words.begin(), words.end(), output(t));
  return t;
}

Pair label_patches(Tensor ids, int64_t kernel, int64_t stride, int64_t padding, int64_t hash_bits) {
  check(ids, 3, ScalarType::Int, "ids");
  const i2ifast::LabelWindows w{ids.size(0), ids.size(1), ids.size(2), kernel, stride, padding};
  Tensor patches = torch::stable::new_empty(ids, {w.images, w.out_height(), w.out_width()});
  const auto windows = i2ifast::label_patches(words(ids), w, static_cast<int>(hash_bits), output(patches));
  const int64_t taps = kernel * kernel;
  return {patches, from_words(windows, ids, {static_cast<int64_t>(windows.size()) / taps, taps})};
}

// An empty `values` [0, C] says that there are more than `limit` distinct vectors.
Pair label_vectors(Tensor x, int64_t limit, int64_t hash_bits) {
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == ScalarType::Float, "x: expected float32 of 4 dimensions");
  const int64_t channels = x.size(1), pixels = x.size(2) * x.size(3);
  Tensor symbols = torch::stable::new_empty(x, {x.size(0), x.size(2), x.size(3)}, ScalarType::Int);
  std::vector<int32_t> values;
  if (i2ifast::channels_last(x))
    i2ifast::label_rows(words(x), channels, x.size(0) * pixels, limit, static_cast<int>(hash_bits), output(symbols), values);
  else
    i2ifast::label_vectors(words(x), x.size(0), channels, pixels, limit, static_cast<int>(hash_bits), output(symbols), values);
  return {symbols, from_words(values, x, {static_cast<int64_t>(values.size()) / channels, channels})};
}

Pair label_bags(Tensor neighbours) {
  check(neighbours, 2, ScalarType::Int, "neighbours");
  const int64_t rows = neighbours.size(0), taps = neighbours.size(1);
  Tensor offsets = torch::stable::new_empty(neighbours, {rows + 1});
  const auto index = i2ifast::label_bags(words(neighbours), rows, taps, output(offsets));
  return {offsets, from_words(index, neighbours, {static_cast<int64_t>(index.size())})};
}

Pair label_transpose(Tensor offsets, Tensor index, int64_t rows) {
  check(offsets, 1, ScalarType::Int, "offsets");
  check(index, 1, ScalarType::Int, "index");
  STD_TORCH_CHECK(words(offsets)[offsets.size(0) - 1] == index.size(0), "offsets do not end at the length of index");
  const int32_t* members = words(index);
  STD_TORCH_CHECK(std::all_of(members, members + index.size(0), [=](int32_t i) { return 0 <= i && i < rows; }), "index: expected 0..",
                  rows - 1);
  Tensor transposed_offsets = torch::stable::new_empty(offsets, {rows + 1});
  Tensor transposed_index = torch::stable::new_empty(index, {index.size(0)});
  i2ifast::label_transpose(words(offsets), offsets.size(0) - 1, members, rows, output(transposed_offsets), output(transposed_index));
  return {transposed_offsets, transposed_index};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def("label_patches(Tensor ids, int kernel, int stride, int padding, int hash_bits=64) -> (Tensor, Tensor)");
  m.def("label_vectors(Tensor x, int limit, int hash_bits=64) -> (Tensor, Tensor)");
  m.def("label_bags(Tensor neighbours) -> (Tensor, Tensor)");
  m.def("label_transpose(Tensor offsets, Tensor index, int rows) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("label_patches", TORCH_BOX(&label_patches));
  m.impl("label_vectors", TORCH_BOX(&label_vectors));
  m.impl("label_bags", TORCH_BOX(&label_bags));
  m.impl("label_transpose", TORCH_BOX(&label_transpose));
}
