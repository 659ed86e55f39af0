// Decoding of packed weights, 32 at a time, in the registers of the target processor. For any bits the same addresses
// are read and written: bits that do not keep two of four only give wrong numbers.

#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "packed.h"

namespace {

// 32 decoded weights. Each decoder has its own order of weights, to which `position` maps the inputs.
struct Decoded { f32x16 first, second; };

// Positions of a group's two values by its four bits; at most the last for the first value, at least the first for the
// second one.
inline int first_position(uint32_t bits) { return __builtin_ctz(bits | 8); }
inline int second_position(uint32_t bits) { return 31 - __builtin_clz((bits & 15) | 1); }

#if defined(__AVX512F__)
template <typename T>
struct Decoder {
  static int position(int i) { return i; }
  static __m512 to_f32(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static __m512 load_sixteen(const float* from) { return _mm512_loadu_ps(from); }
  static __m512 load_sixteen(const uint16_t* from) { return to_f32(_mm256_loadu_si256((const __m256i*)from)); }
  static __m512 load_eight(const float* from) { return _mm512_castps256_ps512(_mm256_loadu_ps(from)); }
  static __m512 load_eight(const uint16_t* from) {
    return to_f32(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)from)));
  }
  // An expanding load would read as many numbers as there are bits, and so beyond the values.
  static f32x16 expand(const T* from, uint32_t bits) { return (f32x16)_mm512_maskz_expand_ps(bits, load_eight(from)); }
  static Decoded dense(const T* from) { return {(f32x16)load_sixteen(from), (f32x16)load_sixteen(from + 16)}; }
  static Decoded sparse(const T* from, uint32_t bits) {
    return {expand(from, bits & 0xffff), expand(from + 8, bits >> 16)};
  }
};

#if defined(__AVX512VBMI2__)
// The first vector has the weights at even positions, the second those at odd ones: a shift and a mask convert them.
template <> struct Decoder<uint16_t> {
  static int position(int i) { return i % 2 * 16 + i / 2; }
  static Decoded split(__m512i weights) {
    return {(f32x16)_mm512_castsi512_ps(_mm512_slli_epi32(weights, 16)),
            (f32x16)_mm512_castsi512_ps(_mm512_and_si512(weights, _mm512_set1_epi32(int(0xffff0000))))};
  }
  static Decoded dense(const uint16_t* from) { return split(_mm512_loadu_si512(from)); }
  static Decoded sparse(const uint16_t* from, uint32_t bits) {
    return split(_mm512_maskz_expand_epi16(bits, _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)from))));
  }
};
#endif

#elif defined(__AVX2__)
// For each byte of bits, the index of the value, of four, for each of eight weights; -1 for a weight that is zero.
struct GatherIndices {
  alignas(32) int32_t value[256][8];
  GatherIndices() {
    for (int byte = 0; byte < 256; ++byte)
      for (int i = 0, next = 0; i < 8; ++i) value[byte][i] = byte >> i & 1 ? next++ : -1;
  }
};
const GatherIndices gather_indices;

inline f32x16 join(__m256 low, __m256 high) {
  f32x16 v;
  std::memcpy(&v, &low, 32);
  std::memcpy((char*)&v + 32, &high, 32);
  return v;
}

template <typename T>
struct Decoder {
  static int position(int i) { return i; }
  static __m256 to_f32(__m128i halves) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static __m256 load_eight(const float* from) { return _mm256_loadu_ps(from); }
  static __m256 load_eight(const uint16_t* from) { return to_f32(_mm_loadu_si128((const __m128i*)from)); }
  static __m256 load_four(const float* from) { return _mm256_castps128_ps256(_mm_loadu_ps(from)); }
  static __m256 load_four(const uint16_t* from) { return to_f32(_mm_loadl_epi64((const __m128i*)from)); }
  static __m256 expand(const T* from, uint32_t byte) {
    const __m256i indices = _mm256_load_si256((const __m256i*)gather_indices.value[byte]);
    const __m256 gathered = _mm256_permutevar8x32_ps(load_four(from), indices);
    return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(indices, 31)), gathered);
  }
  static Decoded dense(const T* from) {
    return {join(load_eight(from), load_eight(from + 8)), join(load_eight(from + 16), load_eight(from + 24))};
  }
  static Decoded sparse(const T* from, uint32_t bits) {
    return {join(expand(from, bits & 255), expand(from + 4, bits >> 8 & 255)),
            join(expand(from + 8, bits >> 16 & 255), expand(from + 12, bits >> 24))};
  }
};

#else
template <typename T>
struct Decoder {
  static int position(int i) { return i; }
  static Decoded dense(const T* from) {
    alignas(64) float weights[STEP];
    for (int i = 0; i < STEP; ++i) weights[i] = to_f32(from[i]);
    return {load(weights), load(weights + 16)};
  }
  static Decoded sparse(const T* from, uint32_t bits) {
    alignas(64) float weights[STEP] = {};
    for (int group = 0; group < STEP / 4; ++group, bits >>= 4) {
      weights[4 * group + first_position(bits)] = to_f32(from[2 * group]);
      weights[4 * group + second_position(bits)] = to_f32(from[2 * group + 1]);
    }
    return {load(weights), load(weights + 16)};
  }
};
#endif

// Writes 32 decoded weights.
inline void decode(const float* from, uint32_t bits, float* to) {
  const Decoded w = Decoder<float>::sparse(from, bits);
  store(to, w.first);
  store(to + 16, w.second);
}
inline void decode(const uint16_t* from, uint32_t bits, uint16_t* to) {
#if defined(__AVX512VBMI2__)
  const __m512i values = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)from));
  _mm512_storeu_si512(to, _mm512_maskz_expand_epi16(bits, values));
#else
  const Decoded w = Decoder<uint16_t>::sparse(from, bits);
  const u16x16 first = __builtin_convertvector((u32x16)w.first >> 16, u16x16);
  const u16x16 second = __builtin_convertvector((u32x16)w.second >> 16, u16x16);
  std::memcpy(to, &first, sizeof first);
  std::memcpy(to + 16, &second, sizeof second);
#endif
}

// Unpacks a row of a sparse tile, whose first group has the index ``group`` in the tile.
template <typename T>
void unpack_row(const T* values, const uint8_t* bits, int64_t group, int64_t width, T* to) {
  if (width % STEP == 0) {
    for (int64_t i = 0; i < width; i += STEP) {
      uint32_t word;
      std::memcpy(&word, bits + group / 2 + i / 8, sizeof word);
      prefetch_ahead(values + 2 * group + i / 2, STEP / 2 * sizeof(T));
      decode(values + 2 * group + i / 2, word, to + i);
    }
    return;
  }
  std::fill_n(to, width, T(0));
  for (int64_t i = 0; i < width / 4; ++i, ++group) {
    const unsigned nibble = bits[group / 2] >> group % 2 * 4 & 15;
    to[4 * i + first_position(nibble)] = values[2 * group];
    to[4 * i + second_position(nibble)] = values[2 * group + 1];
  }
}

// Unpacks rows of tiles from ``first`` up to ``last``.
template <typename T>
void unpack(const Packed& a, int64_t first, int64_t last, T* to) {
  const int64_t tiles = a.tile_rows * a.tile_columns, columns = a.tile_columns * a.width;
#pragma omp parallel for num_threads(a.threads) schedule(static) collapse(2)
  for (int64_t tile_row = first; tile_row < last; ++tile_row)
    for (int64_t column = 0; column < a.tile_columns; ++column) {
      const int64_t tile = tile_row * a.tile_columns + column;
      const T* values = static_cast<const T*>(a.values) + a.offsets[tile];
      const uint8_t* bits = a.bits + a.offsets[tiles + tile];
      T* out = to + (tile_row - first) * a.height * columns + column * a.width;
      for (int64_t row = 0; row < a.height; ++row, out += columns)
        if (a.dense[tile]) std::memcpy(out, values + row * a.width, a.width * sizeof(T));
        else unpack_row(values, bits, row * a.width / 4, a.width, out);
    }
}

}  // namespace
