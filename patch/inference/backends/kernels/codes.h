// Decoding of codes of four bits, times the scale of their group, in the registers of the target processor. For any
// bits the same addresses are read and written, see decode.h.

#pragma once

#include "decode.h"

namespace {

#if defined(__AVX512F__)
// The sixteen values that a code can have, which are looked up by the lowest four bits of each lane.
struct CodeTable {
  __m512 values;
  explicit CodeTable(float scale)
      : values(_mm512_mul_ps(_mm512_set1_ps(scale),
                             _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7))) {}
  f32x16 operator[](__m512i codes) const { return (f32x16)_mm512_permutexvar_ps(codes, values); }
};
#endif

// Decoder of `STEP` codes in vectors of sixteen weights. ``position`` is the place of a weight in the vectors.
template <int STEP> struct Codes;

#if defined(__AVX512F__)
template <> struct Codes<32> {
  static constexpr int VECTORS = 2;
  static int position(int i) { return i; }
  CodeTable table;
  explicit Codes(float scale) : table(scale) {}

  // Moves the codes of ``low`` to lanes 0 to 7, and those of ``high`` to lanes 8 to 15.
  static __m512i spread(uint32_t low, uint32_t high) {
    const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i words = _mm512_mask_set1_epi32(_mm512_set1_epi32(int(low)), 0xff00, int(high));
    return _mm512_srlv_epi32(words, shifts);
  }
  void dense(const uint8_t* from, f32x16* weights) const {
    uint32_t words[4];
    std::memcpy(words, from, sizeof words);
    weights[0] = table[spread(words[0], words[1])];
    weights[1] = table[spread(words[2], words[3])];
  }
  void sparse(const uint8_t* from, const uint8_t* bits, f32x16* weights) const {
    uint32_t words[2];
    uint16_t kept[2];
    std::memcpy(words, from, sizeof words);
    std::memcpy(kept, bits, sizeof kept);
    for (int i = 0; i < 2; ++i) {
      const __m512i codes = _mm512_maskz_expand_epi32(kept[i], spread(words[i], 0));
      weights[i] = (f32x16)_mm512_maskz_permutexvar_ps(kept[i], codes, table.values);
    }
  }
};

#if defined(__AVX512VBMI2__)
// Four codes are in a lane, one in each byte, whose upper half is ignored. Each vector has every fourth weight.
template <> struct Codes<64> {
  static constexpr int VECTORS = 4;
  static int position(int i) { return i % 4 * 16 + i / 4; }
  CodeTable table;
  explicit Codes(float scale) : table(scale) {}

  void split(__m512i codes, f32x16* weights) const {
    weights[0] = table[codes];
    weights[1] = table[_mm512_srli_epi32(codes, 8)];
    weights[2] = table[_mm512_srli_epi32(codes, 16)];
    weights[3] = table[_mm512_srli_epi32(codes, 24)];
  }
  void dense(const uint8_t* from, f32x16* weights) const {
    const __m512i pairs = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)from));
    split(_mm512_or_si512(pairs, _mm512_slli_epi16(pairs, 4)), weights);
  }
  void sparse(const uint8_t* from, const uint8_t* bits, f32x16* weights) const {
    uint64_t kept;
    std::memcpy(&kept, bits, sizeof kept);
    const __m256i pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)from));
    const __m512i codes = _mm512_castsi256_si512(_mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4)));
    split(_mm512_mask_expand_epi8(_mm512_set1_epi8(8), kept, codes), weights);
  }
};
#endif

#elif defined(__AVX2__)
// For each byte of bits, the shift that moves the code of each of eight weights to the highest bits; one that leaves
// nothing for a weight that is zero.
struct CodeShifts {
  alignas(32) int32_t value[256][8];
  CodeShifts() {
    for (int byte = 0; byte < 256; ++byte)
      for (int i = 0, next = 0; i < 8; ++i) value[byte][i] = byte >> i & 1 ? 28 - 4 * next++ : 32;
  }
};
const CodeShifts code_shifts;

template <> struct Codes<32> {
  static constexpr int VECTORS = 2;
  static int position(int i) { return i; }
  __m256 scale;
  explicit Codes(float value) : scale(_mm256_set1_ps(value)) {}

  // Decodes eight codes, whose sign is in their highest bit.
  __m256 shifted(uint32_t codes, __m256i shifts) const {
    const __m256i high = _mm256_sllv_epi32(_mm256_set1_epi32(int(codes)), shifts);
    return _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_srai_epi32(high, 28)));
  }
  void dense(const uint8_t* from, f32x16* weights) const {
    const __m256i shifts = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
    uint32_t words[4];
    std::memcpy(words, from, sizeof words);
    for (int i = 0; i < 2; ++i)
      weights[i] = join(shifted(words[2 * i] ^ 0x88888888, shifts), shifted(words[2 * i + 1] ^ 0x88888888, shifts));
  }
  __m256 expand(uint32_t codes, uint8_t byte) const {
    return shifted(codes ^ 0x8888, _mm256_load_si256((const __m256i*)code_shifts.value[byte]));
  }
  void sparse(const uint8_t* from, const uint8_t* bits, f32x16* weights) const {
    uint16_t words[4];
    std::memcpy(words, from, sizeof words);
    for (int i = 0; i < 2; ++i)
      weights[i] = join(expand(words[2 * i], bits[2 * i]), expand(words[2 * i + 1], bits[2 * i + 1]));
  }
};

#else
template <> struct Codes<32> {
  static constexpr int VECTORS = 2;
  static int position(int i) { return i; }
  float scale;
  explicit Codes(float value) : scale(value) {}

  void dense(const uint8_t* from, f32x16* weights) const {
    alignas(64) float numbers[32];
    for (int i = 0; i < 16; ++i) {
      numbers[2 * i] = scale * float(int(from[i] & 15) - 8);
      numbers[2 * i + 1] = scale * float(int(from[i] >> 4) - 8);
    }
    weights[0] = load(numbers), weights[1] = load(numbers + 16);
  }
  void sparse(const uint8_t* from, const uint8_t* bits, f32x16* weights) const {
    alignas(64) float numbers[32] = {};
    for (int group = 0; group < 8; ++group) {
      const unsigned kept = bits[group / 2] >> group % 2 * 4 & 15;
      numbers[4 * group + first_position(kept)] = scale * float(int(from[group] & 15) - 8);
      numbers[4 * group + second_position(kept)] = scale * float(int(from[group] >> 4) - 8);
    }
    weights[0] = load(numbers), weights[1] = load(numbers + 16);
  }
};
#endif

// Number of codes that are decoded at a time, if both a tile and a group have a multiple of it.
#if defined(__AVX512VBMI2__)
constexpr int LONG_STEP = 64;
#else
constexpr int LONG_STEP = 32;
#endif
inline bool in_steps(const Packed& a, int step) { return a.width % step == 0 && a.group_size % step == 0; }

// A row of a tile: its codes, its bits (null for a dense tile), its scales, the group of its first column, and the
// columns left in that group.
struct CodeRow {
  const uint8_t *codes, *bits;
  const float* scales;
  int64_t group, left;

  CodeRow(const Packed& a, int64_t tile_row, int64_t column, int64_t row) {
    const int64_t tile = tile_row * a.tile_columns + column, first = row * a.width;
    const bool full = a.dense[tile];
    codes = static_cast<const uint8_t*>(a.values) + a.offsets[tile] + first / (full ? 2 : 4);
    bits = full ? nullptr : a.bits + a.offsets[a.tile_rows * a.tile_columns + tile];
    scales = a.scales + (tile_row * a.height + row) * a.groups;
    group = column * a.width / a.group_size;
    left = (group + 1) * a.group_size - column * a.width;
  }
};

// Calls a function for each part of a row of a tile that is in one group: its scale, its first column and its end.
template <typename Each>
inline __attribute__((always_inline)) void for_each_group(const Packed& a, const CodeRow& row, Each each) {
  const float* scale = row.scales + row.group;
  for (int64_t from = 0, end = std::min(row.left, a.width); from < a.width;
       from = end, end = std::min(end + a.group_size, a.width))
    each(*scale++, from, end);
}

// Unpacks a row of a tile, whose first group of four has the index ``four`` in the tile.
template <typename T>
void unpack_codes_in_steps(const Packed& a, const CodeRow& row, int64_t four, T* to) {
  for_each_group(a, row, [&](float scale, int64_t i, int64_t end) {
    const Codes<STEP> decoder(scale);
    for (; i < end; i += STEP) {
      f32x16 weights[2];
      if (row.bits) decoder.sparse(row.codes + i / 4, row.bits + four / 2 + i / 8, weights);
      else decoder.dense(row.codes + i / 2, weights);
      store_f32<LANES>(to + i, weights[0]);
      store_f32<LANES>(to + i + LANES, weights[1]);
    }
  });
}

template <typename T>
void unpack_codes_one_by_one(const Packed& a, const CodeRow& row, int64_t four, T* to) {
  const auto decode = [&](int64_t code, int64_t column) {
    const float scale = row.scales[row.group + (column + a.group_size - row.left) / a.group_size];
    round_to(to + column, scale * float(int(row.codes[code / 2] >> code % 2 * 4 & 15) - 8));
  };
  if (!row.bits) {
    for (int64_t i = 0; i < a.width; ++i) decode(i, i);
    return;
  }
  std::fill_n(to, a.width, T(0));
  for (int64_t i = 0; i < a.width / 4; ++i, ++four) {
    const unsigned kept = row.bits[four / 2] >> four % 2 * 4 & 15;
    decode(2 * i, 4 * i + first_position(kept));
    decode(2 * i + 1, 4 * i + second_position(kept));
  }
}

// Unpacks rows of tiles from ``first`` up to ``last``.
template <typename T>
void unpack_codes(const Packed& a, int64_t first, int64_t last, T* to) {
  const int64_t columns = a.tile_columns * a.width;
#pragma omp parallel for num_threads(a.threads) schedule(static) collapse(2)
  for (int64_t tile_row = first; tile_row < last; ++tile_row)
    for (int64_t column = 0; column < a.tile_columns; ++column) {
      T* out = to + (tile_row - first) * a.height * columns + column * a.width;
      for (int64_t row = 0; row < a.height; ++row, out += columns) {
        const CodeRow codes(a, tile_row, column, row);
        if (in_steps(a, STEP)) unpack_codes_in_steps(a, codes, row * a.width / 4, out);
        else unpack_codes_one_by_one(a, codes, row * a.width / 4, out);
      }
    }
}

}  // namespace
