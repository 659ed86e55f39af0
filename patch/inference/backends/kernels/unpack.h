// Unpacking of packed weights.

#pragma once

#include "readers.h"

namespace {

// A row of a sparse tile; its first group is group ``place`` of the tile.
template <typename T>
void expand_row(const T* values, const uint8_t* bits, int64_t place, int64_t width, T* to) {
  if (width % STEP == 0) {
    for (int64_t i = 0; i < width; i += STEP) {
      uint32_t word;
      std::memcpy(&word, bits + place / 2 + i / 8, sizeof word);
      ahead(values + 2 * place + i / 2, STEP / 2 * sizeof(T));
      expand(values + 2 * place + i / 2, word, to + i);
    }
    return;
  }
  std::fill_n(to, width, T(0));
  for (int64_t group = 0; group < width / 4; ++group, ++place) {
    const unsigned nibble = bits[place / 2] >> place % 2 * 4 & 15;
    to[4 * group + lower(nibble)] = values[2 * place];
    to[4 * group + upper(nibble)] = values[2 * place + 1];
  }
}

template <typename T>
void unpack(const Packed& a, int64_t first, int64_t last, T* to) {
  const int64_t tiles = a.tile_rows * a.tile_columns, columns = a.tile_columns * a.width;
#pragma omp parallel for num_threads(a.threads) schedule(static) collapse(2)
  for (int64_t tile_row = first; tile_row < last; ++tile_row)
    for (int64_t column = 0; column < a.tile_columns; ++column) {
      const int64_t tile = tile_row * a.tile_columns + column;
      const T* values = static_cast<const T*>(a.values) + a.starts[tile];
      const uint8_t* bits = a.bits + a.starts[tiles + tile];
      T* out = to + (tile_row - first) * a.height * columns + column * a.width;
      for (int64_t row = 0; row < a.height; ++row, out += columns)
        if (a.dense[tile]) std::memcpy(out, values + row * a.width, a.width * sizeof(T));
        else expand_row(values, bits, row * a.width / 4, a.width, out);
    }
}

}  // namespace
