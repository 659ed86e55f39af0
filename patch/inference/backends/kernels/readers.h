// Weights of a packed row, 32 at a time, in the registers of the target processor. Whatever the bits
// are, the same addresses are read and written: bits that do not keep two of four only give wrong numbers.

#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "packed.h"

namespace {

// Prefetch distance in bytes into the second cache for tiles that meet many inputs.
constexpr int LATER = 32768;

// A step of weights as two vectors. Each type has its own order of weights, which `place` applies to the inputs.
struct Step { vf first, second; };

template <typename T> struct Reader;

// Places in a group of its two values, of which the first is not the last place, and the second not the first one.
inline int lower(uint32_t bits) { return __builtin_ctz(bits | 8); }
inline int upper(uint32_t bits) { return 31 - __builtin_clz((bits & 15) | 1); }

template <typename T>
struct Scalar {
  static int place(int i) { return i; }
  static Step dense(const T* from) {
    alignas(64) float all[STEP];
    for (int i = 0; i < STEP; ++i) all[i] = wide(from[i]);
    return {load(all), load(all + 16)};
  }
  static Step sparse(const T* from, uint32_t bits) {
    alignas(64) float all[STEP] = {};
    for (int group = 0; group < STEP / 4; ++group, bits >>= 4) {
      all[4 * group + lower(bits)] = wide(from[2 * group]);
      all[4 * group + upper(bits)] = wide(from[2 * group + 1]);
    }
    return {load(all), load(all + 16)};
  }
};

#if defined(__AVX512F__)
inline vf as(__m512 v) { return (vf)v; }
inline __m512 widened(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

template <> struct Reader<float> {
  static int place(int i) { return i; }
  // Not the load that expands: it reads as many numbers as there are bits.
  static vf expanded(const float* from, uint32_t bits) {
    return as(_mm512_maskz_expand_ps(bits, _mm512_castps256_ps512(_mm256_loadu_ps(from))));
  }
  static Step dense(const float* from) { return {load(from), load(from + 16)}; }
  static Step sparse(const float* from, uint32_t bits) {
    return {expanded(from, bits & 0xffff), expanded(from + 8, bits >> 16)};
  }
};

#if defined(__AVX512VBMI2__)
// Weights at even places, and those at odd ones: a shift and a mask widen them.
template <> struct Reader<uint16_t> {
  static int place(int i) { return i % 2 * 16 + i / 2; }
  static Step apart(__m512i all) {
    return {as(_mm512_castsi512_ps(_mm512_slli_epi32(all, 16))),
            as(_mm512_castsi512_ps(_mm512_and_si512(all, _mm512_set1_epi32(int(0xffff0000)))))};
  }
  static Step dense(const uint16_t* from) { return apart(_mm512_loadu_si512(from)); }
  static Step sparse(const uint16_t* from, uint32_t bits) {
    return apart(_mm512_maskz_expand_epi16(bits, _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)from))));
  }
};
#else
template <> struct Reader<uint16_t> {
  static int place(int i) { return i; }
  static vf expanded(const uint16_t* from, uint32_t bits) {
    const __m256i halves = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)from));
    return as(_mm512_maskz_expand_ps(bits, widened(halves)));
  }
  static Step dense(const uint16_t* from) {
    return {as(widened(_mm256_loadu_si256((const __m256i*)from))),
            as(widened(_mm256_loadu_si256((const __m256i*)(from + 16))))};
  }
  static Step sparse(const uint16_t* from, uint32_t bits) {
    return {expanded(from, bits & 0xffff), expanded(from + 8, bits >> 16)};
  }
};
#endif

#elif defined(__AVX2__)
// For each byte of bits: which of four values each of eight weights is, or none (a lane that is zeroed).
struct Places {
  alignas(32) int32_t value[256][8];
  Places() {
    for (int byte = 0; byte < 256; ++byte)
      for (int i = 0, next = 0; i < 8; ++i) value[byte][i] = byte >> i & 1 ? next++ : -1;
  }
};
const Places places;

template <typename T>
struct Eights {
  static int place(int i) { return i; }
  static __m256 widened(__m128i halves) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static __m256 eight(const float* from) { return _mm256_loadu_ps(from); }
  static __m256 eight(const uint16_t* from) { return widened(_mm_loadu_si128((const __m128i*)from)); }
  static __m256 four(const float* from) { return _mm256_castps128_ps256(_mm_loadu_ps(from)); }
  static __m256 four(const uint16_t* from) { return widened(_mm_loadl_epi64((const __m128i*)from)); }
  static __m256 expanded(const T* from, uint32_t byte) {
    const __m256i which = _mm256_load_si256((const __m256i*)places.value[byte]);
    const __m256 moved = _mm256_permutevar8x32_ps(four(from), which);
    return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(which, 31)), moved);
  }
  static vf both(__m256 low, __m256 high) {
    vf v;
    std::memcpy(&v, &low, 32);
    std::memcpy((char*)&v + 32, &high, 32);
    return v;
  }
  static Step dense(const T* from) {
    return {both(eight(from), eight(from + 8)), both(eight(from + 16), eight(from + 24))};
  }
  static Step sparse(const T* from, uint32_t bits) {
    return {both(expanded(from, bits & 255), expanded(from + 4, bits >> 8 & 255)),
            both(expanded(from + 8, bits >> 16 & 255), expanded(from + 12, bits >> 24))};
  }
};
template <> struct Reader<float> : Eights<float> {};
template <> struct Reader<uint16_t> : Eights<uint16_t> {};

#else
template <> struct Reader<float> : Scalar<float> {};
template <> struct Reader<uint16_t> : Scalar<uint16_t> {};
#endif

// 32 unpacked weights.
inline void expand(const float* from, uint32_t bits, float* to) {
  const Step w = Reader<float>::sparse(from, bits);
  store(to, w.first);
  store(to + 16, w.second);
}
inline void expand(const uint16_t* from, uint32_t bits, uint16_t* to) {
#if defined(__AVX512VBMI2__)
  const __m512i values = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)from));
  _mm512_storeu_si512(to, _mm512_maskz_expand_epi16(bits, values));
#else
  const Step w = Reader<uint16_t>::sparse(from, bits);
  const vh first = __builtin_convertvector((vu)w.first >> 16, vh);
  const vh second = __builtin_convertvector((vu)w.second >> 16, vh);
  std::memcpy(to, &first, sizeof first);
  std::memcpy(to + 16, &second, sizeof second);
#endif
}

}  // namespace
