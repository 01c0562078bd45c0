// Vectors of float32 as wide as the machine's registers, by the vector extensions of GCC and Clang, and the few
// functions of them that the kernels need. Everything here keeps NaN.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16;  // lanes
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t H __attribute__((vector_size(2 * W)));

struct bfloat16 {
  uint16_t bits;
};

static inline V splat(float x) { return V{} + x; }
static inline V select(I mask, V yes, V no) { return mask ? yes : no; }

static inline float to_float(float x) { return x; }
static inline float to_float(bfloat16 x) {
  uint32_t bits = uint32_t{x.bits} << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// W values from memory; of `count` < W the rest are 0.
static inline V load(const float* p, int count = W) {
  V x{};
  if (count == W) {
    std::memcpy(&x, p, sizeof x);
  } else {
    std::memcpy(&x, p, 4 * count);
  }
  return x;
}

static inline V load(const bfloat16* p, int count = W) {
  H half{};
  if (count == W) {
    std::memcpy(&half, p, sizeof half);
  } else {
    std::memcpy(&half, p, 2 * count);
  }
  return (V)(__builtin_convertvector(half, U) << 16);
}

static inline void store(float* p, V x, int count = W) {
  if (count == W) {
    std::memcpy(p, &x, sizeof x);
  } else {
    std::memcpy(p, &x, 4 * count);
  }
}

static inline void store(bfloat16* p, V x, int count = W) {  // rounds to nearest, ties to even
  U bits = (U)x;
  U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = (U)((I)(x == x) ? (I)rounded : I{} + 0x7fc0);
  H half = __builtin_convertvector(rounded, H);
  std::memcpy(p, &half, 2 * count);
}

// x to the nearest integer, for |x| < 2^22.
static inline V nearest(V x) {
#if defined(__AVX512F__)
  return (V)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  V magic = splat(12582912.f);
  V shifted = x + magic;
  asm("" : "+m"(shifted));  // or the compiler might simplify
  return shifted - magic;
#endif
}

// p * 2^r for an integer r; overflows to infinity, underflows to 0.
static inline V scale(V p, V r) {
#if defined(__AVX512F__)
  return (V)_mm512_scalef_ps((__m512)p, (__m512)r);
#else
  r = select(r < splat(-252.f), splat(-252.f), r);
  r = select(r > splat(254.f), splat(254.f), r);
  I whole = __builtin_convertvector(select(r == r, r, V{}), I);
  I half = whole >> 1;
  return p * (V)((half + 127) << 23) * (V)((whole - half + 127) << 23);
#endif
}

// 2^x. Exactly 1 at 0, as steps of no effect need; otherwise within 1.5 units in the last place.
static inline V exp2(V x) {
#if !defined(__AVX512F__)
  x = select(x < splat(-300.f), splat(-300.f), x);
  x = select(x > splat(300.f), splat(300.f), x);
#endif
  V r = nearest(x);
  V f = x - r;
  V p = splat(1.535336188e-4f);
  p = p * f + splat(1.339887440e-3f);
  p = p * f + splat(9.618437358e-3f);
  p = p * f + splat(5.550332471e-2f);
  p = p * f + splat(2.402264791e-1f);
  p = p * f + splat(6.931472029e-1f);
  p = p * f + splat(1.f);
  return scale(p, r);
}

// e^x, its argument reduced in two parts: as exact for large |x|.
static inline V exp(V x) {
  x = select(x < splat(-200.f), splat(-200.f), x);
  x = select(x > splat(200.f), splat(200.f), x);
  V r = nearest(x * splat(1.44269504f));
  V f = x - r * splat(0.693359375f);
  f = f - r * splat(-2.12194440e-4f);
  V p = splat(1.9875691500e-4f);
  p = p * f + splat(1.3981999507e-3f);
  p = p * f + splat(8.3334519073e-3f);
  p = p * f + splat(4.1665795894e-2f);
  p = p * f + splat(1.6666665459e-1f);
  p = p * f + splat(5.0000001201e-1f);
  p = p * f * f + f + splat(1.f);
  return scale(p, r);
}

static inline V sigmoid(V x) {
  V e = exp(select(x > V{}, -x, x));  // e^-|x|
  return select(x > V{}, splat(1.f), e) / (splat(1.f) + e);
}

// log(1 + e^x), to the last places for x far below 0 too.
static inline V softplus(V x) {
  V e = exp(select(x > V{}, -x, x));
  V s = e / (splat(2.f) + e);  // log(1 + e) = 2 atanh(s), 0 <= s <= 1/3
  V q = s * s;
  V p = splat(2.f / 15);
  p = p * q + splat(2.f / 13);
  p = p * q + splat(2.f / 11);
  p = p * q + splat(2.f / 9);
  p = p * q + splat(2.f / 7);
  p = p * q + splat(2.f / 5);
  p = p * q + splat(2.f / 3);
  p = p * q + splat(2.f);
  return select(x > V{}, x, V{}) + p * s;
}

static inline float sum(V x) {  // of the lanes, in pairs
  float lanes[W];
  std::memcpy(lanes, &x, sizeof x);
  for (int half = W / 2; half; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}
