// i2ifast._labels: the label kernels on NumPy arrays, without torch and without the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "../kernels/label_patches.h"

namespace py = pybind11;

namespace {

using Words = py::array_t<int32_t, py::array::c_style>;

void check_dim(const Words& a, py::ssize_t dim, const char* name) {
  if (a.ndim() != dim)
    throw py::value_error(std::string(name) + ": expected an array of " + std::to_string(dim) + " dimensions, got " +
                          std::to_string(a.ndim()));
}

Words from_words(const std::vector<int32_t>& words, std::vector<py::ssize_t> shape) {
  Words a(std::move(shape));
  std::copy(words.begin(), words.end(), a.mutable_data());
  return a;
}

std::pair<Words, Words> label_patches(const Words& ids, int64_t kernel, int64_t stride, int64_t padding, int hash_bits) {
  check_dim(ids, 3, "ids");
  const i2ifast::LabelWindows w{ids.shape(0), ids.shape(1), ids.shape(2), kernel, stride, padding};
  if (kernel < 1 || stride < 1 || padding < 0 || std::min(w.height, w.width) + 2 * padding < kernel)
    throw py::value_error("expected kernel and stride of 1 or more, and a kernel that fits the padded map");
  Words patches({w.images, w.out_height(), w.out_width()});
  const int32_t* from = ids.data();
  int32_t* to = patches.mutable_data();
  std::vector<int32_t> windows;
  {
    py::gil_scoped_release unlocked;
    windows = i2ifast::label_patches(from, w, hash_bits, to);
  }
  const py::ssize_t taps = kernel * kernel;
  return {patches, from_words(windows, {static_cast<py::ssize_t>(windows.size()) / taps, taps})};
}

std::pair<Words, Words> label_bags(const Words& neighbours) {
  check_dim(neighbours, 2, "neighbours");
  Words offsets(neighbours.shape(0) + 1);
  const int32_t* from = neighbours.data();
  const int64_t rows = neighbours.shape(0), taps = neighbours.shape(1);
  int32_t* to = offsets.mutable_data();
  std::vector<int32_t> index;
  {
    py::gil_scoped_release unlocked;
    index = i2ifast::label_bags(from, rows, taps, to);
  }
  return {offsets, from_words(index, {static_cast<py::ssize_t>(index.size())})};
}

std::pair<Words, Words> label_transpose(const Words& offsets, const Words& index, int64_t rows) {
  check_dim(offsets, 1, "offsets");
  check_dim(index, 1, "index");
  const int32_t* members = index.data();
  if (offsets.size() == 0 || offsets.data()[offsets.size() - 1] != index.size())
    throw py::value_error("offsets do not end at the length of index");
  if (!std::all_of(members, members + index.size(), [=](int32_t i) { return 0 <= i && i < rows; }))
    throw py::value_error("index: expected 0.." + std::to_string(rows - 1));
  Words transposed_offsets(rows + 1), transposed_index(index.size());
  const int32_t* from = offsets.data();
  const int64_t bags = offsets.size() - 1;
  int32_t *to_offsets = transposed_offsets.mutable_data(), *to_index = transposed_index.mutable_data();
  {
    py::gil_scoped_release unlocked;
    i2ifast::label_transpose(from, bags, members, rows, to_offsets, to_index);
  }
  return {transposed_offsets, transposed_index};
}

}  // namespace

PYBIND11_MODULE(_labels, m) {
  m.doc() = "Distinct windows of label maps and the lists made of them, on int32 NumPy arrays.";
  m.def("label_patches", &label_patches, py::arg("ids"), py::arg("kernel"), py::arg("stride") = 1, py::arg("padding") = 0,
        py::arg("hash_bits") = 64, "ids [N, H, W] -> (patches [N, Ho, Wo], neighbours [D, kernel * kernel])");
  m.def("label_bags", &label_bags, py::arg("neighbours"), "neighbours [D, T] -> (offsets [D+1], index [M])");
  m.def("label_transpose", &label_transpose, py::arg("offsets"), py::arg("index"), py::arg("rows"),
        "(offsets, index) of the transposed lists");
}
