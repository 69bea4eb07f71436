#include "channel_pool.h"

#include "elements.h"

namespace i2ifast {
namespace ISA {
namespace {

template <class T>
int64_t first_nan(const T* x, int64_t n) {
  for (int64_t c = 0; c < n; ++c)
    if (load(x[c]) != load(x[c])) return c;
  return n;
}

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Places __attribute__((vector_size(kLanes * sizeof(int32_t))));

constexpr Places kPlaces = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// One step of a reduction over lanes, by a rotation: afterwards every lane knows of twice as many.
template <int By>
inline void meet(Lanes& sum, Lanes& best, Places& at) {
  Lanes other = __builtin_shuffle(best, kPlaces + By);
  Places other_at = __builtin_shuffle(at, kPlaces + By);
  Places more = (other > best) | ((other == best) & (other_at < at));
  sum += __builtin_shuffle(sum, kPlaces + By);
  best = more ? other : best;
  at = more ? other_at : at;
}

template <class T>
void forward(const ChannelPool& p, int64_t begin, int64_t end) {
  float block[kLanes];
  for (int64_t i = begin; i < end; ++i) {
    const T* x = static_cast<const T*>(p.x) + i * p.c;
    Lanes sum = {}, best = Lanes{} - __builtin_inff();
    Places at = kPlaces;
    for (int64_t c = 0; c < p.c; c += kLanes) {
      Lanes v;
      if (c + kLanes <= p.c) {
        for (int64_t l = 0; l < kLanes; ++l) block[l] = load(x[c + l]);
        std::memcpy(&v, block, sizeof(v));
        sum += v;
      } else {  // what is not there adds nothing, and is no maximum
        Lanes rest = {};
        v = best;
        for (int64_t l = 0; c + l < p.c; ++l) rest[l] = v[l] = load(x[c + l]);
        sum += rest;
      }
      Places more = v > best;
      best = more ? v : best;
      at = more ? kPlaces + static_cast<int32_t>(c) : at;
    }
    meet<8>(sum, best, at), meet<4>(sum, best, at), meet<2>(sum, best, at), meet<1>(sum, best, at);
    float most = best[0];
    int64_t chosen = at[0];
    if (sum[0] != sum[0])  // perhaps by a NaN, which is the maximum then
      if (int64_t c = first_nan(x, p.c); c < p.c) most = load(x[c]), chosen = c;
    T* out = static_cast<T*>(p.pooled) + i + i / p.pixels * p.pixels;
    store(out, sum[0] / p.c);
    store(out + p.pixels, most);
    p.index[i] = static_cast<int32_t>(chosen);
  }
}

template <class T>
void backward(const ChannelPool& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const T* dpooled = static_cast<const T*>(p.pooled) + i + i / p.pixels * p.pixels;
    T* dx = static_cast<T*>(p.dx) + i * p.c;
    float share = load(dpooled[0]) / p.c;
    T value;
    store(&value, share);
    for (int64_t c = 0; c < p.c; ++c) dx[c] = value;
    store(dx + p.index[i], share + load(dpooled[p.pixels]));
  }
}

}  // namespace

void channel_pool(const ChannelPool& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? forward<float>(p, begin, end) : forward<bf16>(p, begin, end);
}

void channel_pool_backward(const ChannelPool& p, int64_t begin, int64_t end) {
  p.dtype == DType::f32 ? backward<float>(p, begin, end) : backward<bf16>(p, begin, end);
}

}  // namespace ISA
}  // namespace i2ifast
