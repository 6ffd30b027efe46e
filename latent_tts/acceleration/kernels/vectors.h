// Vectors of float in the widest form that the machine has, and the exponential function on them.
//
// GCC's and Clang's vector extensions, so that one source serves AVX2 and AVX-512.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int ROWS = 8;  // a tile of 8 rows by 3 vectors of columns: 24 sums, which the 32 registers hold with room to spare
#else
constexpr int LANES = 8;
constexpr int ROWS = 4;  // 12 sums of 16 registers
#endif
constexpr int VECTORS = 3;
constexpr int WIDTH = VECTORS * LANES;  // columns of a panel of weights

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef float loose_vec __attribute__((vector_size(LANES * 4), aligned(4)));  // anywhere in memory
typedef uint16_t loose_half __attribute__((vector_size(LANES * 2), aligned(2)));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));

// float32 and bfloat16 (the upper half of a float32) are read to float32, and rounded to the nearest even when written.
static inline vec load(const float* from) { return *(const loose_vec*)from; }
static inline vec load(const uint16_t* from) {
  return (vec)(__builtin_convertvector(*(const loose_half*)from, uvec) << 16);
}
static inline void store(float* to, vec value) { *(loose_vec*)to = value; }
static inline void store(uint16_t* to, vec value) {
  const uvec bits = (uvec)value, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const uvec kept = value == value ? rounded : bits | 0x400000;  // a NaN must not round to infinity
  *(loose_half*)to = __builtin_convertvector(kept >> 16, loose_half);
}

static inline float to_float(float value) { return value; }
static inline float to_float(uint16_t value) {
  const uint32_t bits = (uint32_t)value << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

static inline float sum_of(vec values) {
  float parts[LANES];
  store(parts, values);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) parts[i] += parts[i + half];
  return parts[0];
}

// e^x to about 1e-7 of itself: 2^n e^f with |f| <= ln(2) / 2 and a Taylor polynomial of e^f. Below -87 it is e^-87.
static inline vec exponential(vec x) {
  constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  x = x < -87.0f ? vec{} - 87.0f : x;
  x = x > 88.0f ? vec{} + 88.0f : x;
  const vec shifted = x * 1.44269504f + to_integer;
  const vec n = shifted - to_integer;
  const vec f = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts, the first of few bits
  vec power = vec{} + 1.0f / 5040;
  power = power * f + 1.0f / 720;
  power = power * f + 1.0f / 120;
  power = power * f + 1.0f / 24;
  power = power * f + 1.0f / 6;
  power = power * f + 0.5f;
  power = power * f + 1.0f;
  power = power * f + 1.0f;
  return (vec)((ivec)power + (((ivec)shifted - 0x4b400000) << 23));  // 0x4b400000: the bits of to_integer
}
