// Decoding of codes of four bits in the registers of the target processor. For any bits the same addresses are read and
// written, see decode.h.

#pragma once

#include <vector>

#include "decode.h"

namespace {

// Decoder of `STEP` codes in `VECTORS` vectors, where ``position`` is the place of a weight. Registers suffice for the
// sums of `ROWS` rows.
template <int STEP> struct Codes;

// Products with inputs in fp32.
struct Fp32Products {
  typedef float Input;
  typedef f32x16 Vector;
  static f32x16 add_products(f32x16 sum, Vector weights, const Input* inputs) { return sum + weights * load(inputs); }
};

#if defined(__AVX512F__)
// Returns the numbers of the codes in the lowest four bits of each lane.
inline f32x16 look_up(__m512i codes, uint16_t kept = 0xffff) {
  const __m512 numbers = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  return (f32x16)_mm512_maskz_permutexvar_ps(kept, codes, numbers);
}

template <> struct Codes<32> : Fp32Products {
  static constexpr int VECTORS = 2, ROWS = 4;
  static int position(int i) { return i; }

  // Moves the codes of ``low`` to lanes 0 to 7, and those of ``high`` to lanes 8 to 15.
  static __m512i spread(uint32_t low, uint32_t high) {
    const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i words = _mm512_mask_set1_epi32(_mm512_set1_epi32(int(low)), 0xff00, int(high));
    return _mm512_srlv_epi32(words, shifts);
  }
  static void dense(const uint8_t* from, Vector* weights) {
    uint32_t words[4];
    std::memcpy(words, from, sizeof words);
    weights[0] = look_up(spread(words[0], words[1]));
    weights[1] = look_up(spread(words[2], words[3]));
  }
  static void sparse(const uint8_t* from, const uint8_t* bits, Vector* weights) {
    uint32_t words[2];
    uint16_t kept[2];
    std::memcpy(words, from, sizeof words);
    std::memcpy(kept, bits, sizeof kept);
    for (int i = 0; i < 2; ++i)
      weights[i] = look_up(_mm512_maskz_expand_epi32(kept[i], spread(words[i], 0)), kept[i]);
  }
};

#if defined(__AVX512VBMI2__)
// Sixty-four codes, one in each byte, whose upper half has other bits.
inline __m512i dense_bytes(const uint8_t* from) {
  const __m512i pairs = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)from));
  return _mm512_or_si512(pairs, _mm512_slli_epi16(pairs, 4));
}
inline __m512i sparse_bytes(const uint8_t* from, const uint8_t* bits) {
  uint64_t kept;
  std::memcpy(&kept, bits, sizeof kept);
  const __m256i pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)from));
  const __m512i codes = _mm512_castsi256_si512(_mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4)));
  return _mm512_mask_expand_epi8(_mm512_set1_epi8(8), kept, codes);
}

// Each vector has every fourth weight.
template <> struct Codes<64> : Fp32Products {
  static constexpr int VECTORS = 4, ROWS = 4;
  static int position(int i) { return i % 4 * 16 + i / 4; }

  static void split(__m512i codes, Vector* weights) {
    weights[0] = look_up(codes);
    weights[1] = look_up(_mm512_srli_epi32(codes, 8));
    weights[2] = look_up(_mm512_srli_epi32(codes, 16));
    weights[3] = look_up(_mm512_srli_epi32(codes, 24));
  }
  static void dense(const uint8_t* from, Vector* weights) { split(dense_bytes(from), weights); }
  static void sparse(const uint8_t* from, const uint8_t* bits, Vector* weights) {
    split(sparse_bytes(from, bits), weights);
  }
};
#endif

#if defined(__AVX512VBMI2__) && defined(__AVX512BF16__)
// The same for inputs in bf16, in which codes are exact: each vector has every second weight.
struct Bf16Codes {
  typedef uint16_t Input;
  typedef __m512i Vector;
  static constexpr int VECTORS = 2, ROWS = 8;
  static int position(int i) { return i % 2 * 32 + i / 2; }

  static f32x16 add_products(f32x16 sum, Vector weights, const Input* inputs) {
    return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)_mm512_loadu_si512(inputs));
  }
  // Of each index five bits count, of which the highest is any.
  static Vector look_up(__m512i codes) {
    const __m256i half = _mm256_setr_epi16(int16_t(0xc100), int16_t(0xc0e0), int16_t(0xc0c0), int16_t(0xc0a0),
                                           int16_t(0xc080), int16_t(0xc040), int16_t(0xc000), int16_t(0xbf80), 0, 0x3f80,
                                           0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0);
    return _mm512_permutexvar_epi16(codes, _mm512_broadcast_i64x4(half));
  }
  static void split(__m512i codes, Vector* weights) {
    weights[0] = look_up(codes);
    weights[1] = look_up(_mm512_srli_epi16(codes, 8));
  }
  static void dense(const uint8_t* from, Vector* weights) { split(dense_bytes(from), weights); }
  static void sparse(const uint8_t* from, const uint8_t* bits, Vector* weights) {
    split(sparse_bytes(from, bits), weights);
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

template <> struct Codes<32> : Fp32Products {
  static constexpr int VECTORS = 2, ROWS = 1;
  static int position(int i) { return i; }

  // Decodes eight codes, whose sign is in their highest bit.
  static __m256 shifted(uint32_t codes, __m256i shifts) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sllv_epi32(_mm256_set1_epi32(int(codes)), shifts), 28));
  }
  static void dense(const uint8_t* from, Vector* weights) {
    const __m256i shifts = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
    uint32_t words[4];
    std::memcpy(words, from, sizeof words);
    for (int i = 0; i < 2; ++i)
      weights[i] = join(shifted(words[2 * i] ^ 0x88888888, shifts), shifted(words[2 * i + 1] ^ 0x88888888, shifts));
  }
  static __m256 expand(uint32_t codes, uint8_t byte) {
    return shifted(codes ^ 0x8888, _mm256_load_si256((const __m256i*)code_shifts.value[byte]));
  }
  static void sparse(const uint8_t* from, const uint8_t* bits, Vector* weights) {
    uint16_t words[4];
    std::memcpy(words, from, sizeof words);
    for (int i = 0; i < 2; ++i)
      weights[i] = join(expand(words[2 * i], bits[2 * i]), expand(words[2 * i + 1], bits[2 * i + 1]));
  }
};

#else
template <> struct Codes<32> : Fp32Products {
  static constexpr int VECTORS = 2, ROWS = 1;
  static int position(int i) { return i; }

  static void dense(const uint8_t* from, Vector* weights) {
    alignas(64) float numbers[32];
    for (int i = 0; i < 16; ++i) {
      numbers[2 * i] = float(int(from[i] & 15) - 8);
      numbers[2 * i + 1] = float(int(from[i] >> 4) - 8);
    }
    weights[0] = load(numbers), weights[1] = load(numbers + 16);
  }
  static void sparse(const uint8_t* from, const uint8_t* bits, Vector* weights) {
    alignas(64) float numbers[32] = {};
    for (int group = 0; group < 8; ++group) {
      const unsigned kept = bits[group / 2] >> group % 2 * 4 & 15;
      numbers[4 * group + first_position(kept)] = float(int(from[group] & 15) - 8);
      numbers[4 * group + second_position(kept)] = float(int(from[group] >> 4) - 8);
    }
    weights[0] = load(numbers), weights[1] = load(numbers + 16);
  }
};
#endif

inline bool in_steps(const Packed& a, int step) { return a.width % step == 0 && a.group_size % step == 0; }

// A row of a tile of codes, with the scales of its groups; no bits if it is dense.
struct CodeRow {
  const uint8_t *codes, *bits;
  const float* scales;
  // Columns of the tile, of a group, and of the first group that are in the tile; bytes of codes and bits of a row.
  int64_t width, group_size, first_columns, code_bytes, bit_bytes, groups;

  CodeRow() = default;
  CodeRow(const Packed& a, int64_t tile_row, int64_t column, int64_t row)
      : width(a.width), group_size(a.group_size), bit_bytes(a.width / 8), groups(a.groups) {
    const int64_t tile = tile_row * a.tile_columns + column, group = column * width / group_size;
    const bool dense = a.dense[tile];
    code_bytes = dense ? width / 2 : width / 4;
    codes = static_cast<const uint8_t*>(a.values) + a.offsets[tile] + row * code_bytes;
    bits = dense ? nullptr : a.bits + a.offsets[a.tile_rows * a.tile_columns + tile] + row * width / 8;
    scales = a.scales + (tile_row * a.height + row) * groups + group;
    first_columns = std::min((group + 1) * group_size - column * width, width);
  }
  // Moves to a later row, if rows have whole bytes of bits.
  void advance(int64_t rows) {
    codes += rows * code_bytes, scales += rows * groups;
    if (bits) bits += rows * bit_bytes;
  }
  // Calls a function for each group of the row: the address of its scale, and its number of columns in the row.
  template <typename Each>
  inline __attribute__((always_inline)) void for_each_group(Each each) const {
    const float* scale = scales;
    for (int64_t left = width, columns = first_columns; left > 0; left -= columns, columns = std::min(left, group_size))
      each(scale++, columns);
  }
};

// Writes the numbers of an even number of codes, which are looked up.
template <typename T>
void decode_codes(const uint8_t* codes, int64_t count, float scale, T* to) {
  alignas(64) T numbers[16];
  store_f32<LANES>(numbers, scale * f32x16{-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7});
  int64_t i = 0;
#if defined(__AVX512BW__)
  if constexpr (sizeof(T) == sizeof(float)) {
    const __m512 table = _mm512_load_ps(numbers);
    for (; i + 16 <= count; i += 16) {
      uint32_t words[2];
      std::memcpy(words, codes + i / 2, sizeof words);
      _mm512_storeu_ps(to + i, _mm512_permutexvar_ps(Codes<32>::spread(words[0], words[1]), table));
    }
  } else {
    // The two codes of a byte move to the lowest bits of the halves of a lane; of the fifth bit any value will do.
    const __m512i table = _mm512_broadcast_i64x4(_mm256_load_si256((const __m256i*)numbers));
    for (; i + 32 <= count; i += 32) {
      const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(codes + i / 2)));
      const __m512i split = _mm512_or_si512(pairs, _mm512_slli_epi32(pairs, 12));
      _mm512_storeu_si512(to + i, _mm512_permutexvar_epi16(split, table));
    }
  }
#endif
  for (; i < count; i += 2) to[i] = numbers[codes[i / 2] & 15], to[i + 1] = numbers[codes[i / 2] >> 4];
}

// Rows of tiles of a weight of codes as a weight of numbers with the same bits; groups have a multiple of four columns.
template <typename T>
struct DecodedRows {
  Buffer values;
  std::vector<int64_t> offsets;
  Packed weight;

  // Reserves memory for up to ``most`` rows of tiles.
  DecodedRows(const Packed& a, int64_t most)
      : values(most * a.tile_columns * a.height * a.width * int64_t(sizeof(T)) / int64_t(sizeof(float))),
        offsets(2 * most * a.tile_columns),
        weight(a) {
    weight.values = values.data, weight.offsets = offsets.data(), weight.bf16 = sizeof(T) == sizeof(uint16_t);
  }

  // Decodes the rows of tiles from ``first`` up to ``last``.
  void decode(const Packed& a, int64_t first, int64_t last) {
    const int64_t before = first * a.tile_columns, tiles = (last - first) * a.tile_columns;
    weight.tile_rows = last - first, weight.dense = a.dense + before;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      offsets[tile] = 2 * (a.offsets[before + tile] - a.offsets[before]);
      offsets[tiles + tile] = a.offsets[a.tile_rows * a.tile_columns + before + tile];
    }
    T* const to = reinterpret_cast<T*>(values.data);
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t tile = 0; tile < tiles; ++tile) {
      CodeRow row(a, first + tile / a.tile_columns, tile % a.tile_columns, 0);
      const int64_t divisor = row.bits ? 2 : 1;
      T* out = to + offsets[tile];
      for (int64_t i = 0; i < a.height; ++i, row.codes += row.code_bytes, row.scales += row.groups) {
        const uint8_t* codes = row.codes;
        row.for_each_group([&](const float* scale, int64_t columns) {
          decode_codes(codes, columns / divisor, *scale, out);
          codes += columns / divisor / 2, out += columns / divisor;
        });
      }
    }
  }
};

}  // namespace
