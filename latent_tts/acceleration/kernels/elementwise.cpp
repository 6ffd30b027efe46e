// Activations, and the norm of rows. A value's result does not depend on where it lies, as it does where a library computes the last few values of a
// thread's share in another way than the rest.

#include "vectors.h"

#include <cmath>

namespace {

// x / (1 + e^-x).
inline vec silu(vec x) { return x / (1.0f + exponential(-x)); }

// GELU in its tanh form, x / 2 (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + e^(-2u)).
inline vec tanh_gelu(vec x) { return x / (1.0f + exponential(-1.5957691216f * (x + 0.044715f * x * x * x))); }

// GELU itself, x / 2 (1 + erf(x / sqrt(2))), with erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
inline vec erf_gelu(vec x) {
  const vec z = (x < 0.0f ? -x : x) * 0.70710678f;
  const vec t = 1.0f / (1.0f + 0.3275911f * z);
  vec tail = t * 1.061405429f - 1.453152027f;
  tail = tail * t + 1.421413741f;
  tail = tail * t - 0.284496736f;
  tail = tail * t + 0.254829592f;
  tail = 0.5f * tail * t * exponential(-z * z);  // (1 - erf(z)) / 2
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

template <vec function(vec), typename T>
void apply(const T* x, T* y, int64_t size) {
  constexpr int64_t CHUNK = 4096;
#pragma omp parallel for schedule(static)
  for (int64_t begin = 0; begin < size; begin += CHUNK) {
    const int64_t end = begin + CHUNK < size ? begin + CHUNK : size;
    int64_t i = begin;
    for (; i + LANES <= end; i += LANES) store(y + i, function(load(x + i)));
    if (i < end) {
      T rest[LANES] = {};
      memcpy(rest, x + i, (end - i) * sizeof(T));
      store(rest, function(load(rest)));
      memcpy(y + i, rest, (end - i) * sizeof(T));
    }
  }
}

// y = weight x / sqrt(mean(x^2) + epsilon), rounded to the type before and after the weight, as transformers does it.
template <typename T>
void rms_norm(const T* x, const T* weight, T* y, int64_t rows, int64_t width, float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const T* from = x + r * width;
    T* to = y + r * width;
    vec squares = {};
    for (int64_t d = 0; d < width; d += LANES) squares += load(from + d) * load(from + d);
    const float scale = 1.0f / std::sqrt(sum_of(squares) / width + epsilon);
    for (int64_t d = 0; d < width; d += LANES) {
      store(to + d, load(from + d) * scale);
      store(to + d, load(weight + d) * load(to + d));
    }
  }
}

}  // namespace

extern "C" void float32_rms_norm(const float* x, const float* weight, float* y, int64_t rows, int64_t width, float epsilon) {
  rms_norm(x, weight, y, rows, width, epsilon);
}
extern "C" void bfloat16_rms_norm(const uint16_t* x, const uint16_t* weight, uint16_t* y, int64_t rows, int64_t width, float epsilon) {
  rms_norm(x, weight, y, rows, width, epsilon);
}
extern "C" void float32_tanh_gelu(const float* x, float* y, int64_t size) { apply<tanh_gelu>(x, y, size); }
extern "C" void float32_erf_gelu(const float* x, float* y, int64_t size) { apply<erf_gelu>(x, y, size); }
extern "C" void float32_silu(const float* x, float* y, int64_t size) { apply<silu>(x, y, size); }
extern "C" void bfloat16_tanh_gelu(const uint16_t* x, uint16_t* y, int64_t size) { apply<tanh_gelu>(x, y, size); }
extern "C" void bfloat16_erf_gelu(const uint16_t* x, uint16_t* y, int64_t size) { apply<erf_gelu>(x, y, size); }
extern "C" void bfloat16_silu(const uint16_t* x, uint16_t* y, int64_t size) { apply<silu>(x, y, size); }
