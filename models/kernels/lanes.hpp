// What the kernels share: a vector register as LANES floats, and the exponential of one.
//
// Plain GNU vector extensions, no intrinsics. Tested as GCC compiles it for AVX-512 and AVX2.

#pragma once

#include <cstdint>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(float))));

inline Floats all(float value) { return value - Floats{}; }

// Where the exponential of a float is next to nothing; kernels cut off below it, each with its own answer to NaN.
constexpr float LOWEST_EXPONENT = -88.0f;

// e^x for LOWEST_EXPONENT <= x <= 0 within 2 units in the last place; exactly 1 at 0, 0 below -87.7, NaN of NaN.
inline Floats exponential_above_lowest(Floats x) {
    const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    const Floats shifted = x * 1.44269504088896341f + rounder;
    const Floats n = shifted - rounder;
    const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (Floats)(((Ints)shifted << 23) + (127 << 23));
}

}  // namespace
