#include "../kernels/spectral_weight.h"

#include <algorithm>
#include <cmath>

#include "common.h"

namespace i2ifast {

namespace {

Matrix matrix(const Tensor& t, const Tensor& u, const Tensor& v, const char* name) {
  const float* data = floats(t, name);
  STD_TORCH_CHECK(t.numel() == u.numel() * v.numel(), name, ": expected as many elements as rows (those of u) times columns (of v)");
  return {data, u.numel(), v.numel()};
}

// t / max(|t|, eps)
template <class T>
void normalize(const T* t, int64_t n, double eps, float* out) {
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(t[i]) * t[i];
  double norm = std::max(std::sqrt(squares), eps);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(t[i] / norm);
}

template <class F>
void over_rows(const Matrix& w, F body) {
  torch::stable::parallel_for(0, w.rows, grain(w.columns), body);
}

}  // namespace

void spectral_weight(const Tensor& weight, const Tensor& u, const Tensor& v, int64_t iterations, double eps, const Tensor& y,
                     const Tensor& new_u, const Tensor& new_v, const Tensor& sigma) {
  Matrix w = matrix(weight, u, v, "weight");
  matrix(y, u, v, "y"), matrix(weight, new_u, new_v, "weight");
  float *left = mutable_floats(new_u, "new_u"), *right = mutable_floats(new_v, "new_v"), *out = mutable_floats(y, "y");
  std::copy_n(floats(u, "u"), w.rows, left);
  std::copy_n(floats(v, "v"), w.columns, right);
  std::vector<double> products(w.rows);

  auto columns = I2IFAST_PICK(spectral_columns);
  auto rows = I2IFAST_PICK(spectral_rows);
  auto divide = I2IFAST_PICK(spectral_divide);
  auto multiply = [&] { over_rows(w, [&](int64_t begin, int64_t end) { rows(w, right, 0, products.data(), begin, end); }); };
  for (int64_t i = 0; i < iterations; ++i) {
    int64_t blocks = ceil_div(w.columns, kSpectralColumns);
    torch::stable::parallel_for(0, blocks, grain(kSpectralColumns * w.rows), [&](int64_t begin, int64_t end) {
      columns(w, left, right, begin * kSpectralColumns, std::min(end * kSpectralColumns, w.columns));
    });
    normalize(right, w.columns, eps, right);
    multiply();
    normalize(products.data(), w.rows, eps, left);
  }
  if (iterations == 0) multiply();
  double norm = 0;
  for (int64_t r = 0; r < w.rows; ++r) norm += left[r] * products[r];
  *mutable_floats(sigma, "sigma") = static_cast<float>(norm);
  over_rows(w, [&](int64_t begin, int64_t end) { divide(w, static_cast<float>(norm), out, begin, end); });
}

void spectral_weight_backward(const Tensor& dy, const Tensor& weight, const Tensor& u, const Tensor& v, const Tensor& sigma,
                              const Tensor& dweight) {
  Matrix w = matrix(weight, u, v, "weight"), g = matrix(dy, u, v, "dy");
  matrix(dweight, u, v, "dweight");
  float norm = *floats(sigma, "sigma"), *out = mutable_floats(dweight, "dweight");
  std::vector<double> products(w.rows);
  auto rows = I2IFAST_PICK(spectral_rows);
  over_rows(w, [&](int64_t begin, int64_t end) { rows(g, w.data, w.columns, products.data(), begin, end); });
  double along = 0;
  for (double product : products) along += product;
  along /= norm;
  auto gradient = I2IFAST_PICK(spectral_gradient);
  over_rows(w, [&](int64_t begin, int64_t end) {
    gradient(g, floats(u, "u"), floats(v, "v"), static_cast<float>(along), norm, out, begin, end);
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(i2ifast_cpu, m) {
  m.def(
      "spectral_weight(Tensor weight, Tensor u, Tensor v, int iterations, float eps, Tensor(a!) y, Tensor(b!) new_u, Tensor(c!) new_v, "
      "Tensor(d!) sigma) -> ()");
  m.def("spectral_weight_backward(Tensor dy, Tensor weight, Tensor u, Tensor v, Tensor sigma, Tensor(a!) dweight) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(i2ifast_cpu, CPU, m) {
  m.impl("spectral_weight", TORCH_BOX(&spectral_weight));
  m.impl("spectral_weight_backward", TORCH_BOX(&spectral_weight_backward));
}

}  // namespace i2ifast
