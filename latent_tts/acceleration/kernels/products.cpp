// y (R, N) = x (R, K) times a matrix of weights (K, N) that is stored in panels, plus bias (N).
//
// The weights of a panel lie in the order in which they are used, so that they stream from memory, once for all rows, with the
// next ones fetched meanwhile. A row's sums run over k in one order, whatever the other rows are: what a row gets does not
// depend on the batch, to the bit.
//
//   float32    panels of WIDTH columns, (K, WIDTH) each, one after the other; the last one is narrower where N asks for it
//   bfloat16   panels of 32 columns, (K / 32, 2, 16, 16, 2) each: for every 32 values of k two blocks of 16 columns, in each of
//              them k in pairs, as the tiles of AMX take them. Sums are in float32.

#include "vectors.h"

extern "C" int omp_get_max_threads();

namespace {

// Tasks of a product: every panel, and where those are too few for the threads, some of the rows at a time.
struct Tasks {
  int64_t panels, parts, rows;  // rows: of a part

  Tasks(int64_t R, int64_t N, int64_t width, int64_t tile) : panels((N + width - 1) / width) {
    const int64_t wanted = 4 * omp_get_max_threads(), most = (R + tile - 1) / tile;
    parts = panels >= wanted || omp_get_max_threads() == 1 ? 1 : (wanted + panels - 1) / panels;
    parts = parts < most ? parts : most;
    rows = (R + parts - 1) / parts;
    rows = (rows + tile - 1) / tile * tile;
  }

  int64_t size() const { return panels * parts; }
  int64_t first_row(int64_t task) const { return task % parts * rows; }
  int64_t num_rows(int64_t task, int64_t R) const {
    const int64_t left = R - first_row(task);
    return left < 0 ? 0 : left < rows ? left : rows;
  }
};

// Values of k that are summed at a time: 49 KB of a panel, which stay in the cache while all rows pass, and short
// sums, which are added to the others when they are done, lose less to rounding than one long one.
constexpr int64_t DEPTH = 256;

// Weights that come next, asked for while others are worked with: every tile of rows asks for its share of them, a little in
// every step, since the processor by itself looks ahead less far than memory is away.
class Ahead {
 public:
  // Share number `part` of `parts` of the bytes from `begin` on, in `steps` steps.
  Ahead(const void* begin, int64_t bytes, int64_t part, int64_t parts, int64_t steps)
      : next((const char*)begin + bytes * part / parts), lines(steps ? (bytes / parts + steps * LINE - 1) / (steps * LINE) : 0) {}

  inline void fetch() {
    for (int64_t i = 0; i < lines; i++, next += LINE) __builtin_prefetch(next, 0, 2);
  }

 private:
  static constexpr int64_t LINE = 64;
  const char* next;
  int64_t lines;
};

// Adds the products over some values of k to `rows` rows of y, for columns in `vectors` vectors.
template <int rows, int vectors>
void add_tile(const float* __restrict x, int64_t K, const float* __restrict panel, int64_t depth, float* __restrict y, int64_t N,
              Ahead ahead) {
  vec sums[rows][vectors] = {};

  auto step = [&](int64_t k) __attribute__((always_inline)) {
    vec weights[vectors];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) weights[v] = load(panel + (k * vectors + v) * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
      for (int v = 0; v < vectors; v++) sums[r][v] += x[r * K + k] * weights[v];
  };
  int64_t k = 0;
  for (; k + 8 <= depth; k += 8) {
    ahead.fetch();
#pragma GCC unroll 8
    for (int64_t i = 0; i < 8; i++) step(k + i);
  }
  for (; k < depth; k++) step(k);

#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) store(y + r * N + v * LANES, load(y + r * N + v * LANES) + sums[r][v]);
}

template <int vectors>
void add_rows(int64_t rows, const float* x, int64_t K, const float* panel, int64_t depth, float* y, int64_t N, Ahead ahead) {
#define CASE(count) \
  case count: return add_tile<count, vectors>(x, K, panel, depth, y, N, ahead)
  switch (rows) {
    CASE(1); CASE(2); CASE(3); CASE(4);
#if defined(__AVX512F__)
    CASE(5); CASE(6); CASE(7); CASE(8);
#endif
  }
#undef CASE
}

// One panel of `vectors` vectors of columns against R rows.
template <int vectors>
void panel_product(const float* x, const float* panel, const float* bias, float* y, int64_t R, int64_t K, int64_t N) {
  for (int64_t r = 0; r < R; r++) {
    if (bias) memcpy(y + r * N, bias, vectors * LANES * sizeof(float));
    else memset(y + r * N, 0, vectors * LANES * sizeof(float));
  }
  for (int64_t k = 0; k < K; k += DEPTH) {
    const int64_t depth = K - k < DEPTH ? K - k : DEPTH;
    const float* here = panel + k * vectors * LANES;
    for (int64_t r = 0; r < R; r += ROWS) {
      const Ahead ahead(here + depth * vectors * LANES, depth * vectors * LANES * 4, r / ROWS, (R + ROWS - 1) / ROWS, depth / 8);
      add_rows<vectors>(R - r < ROWS ? R - r : ROWS, x + r * K + k, K, here, depth, y + r * N, N, ahead);
    }
  }
}

}  // namespace

extern "C" int lanes() { return LANES; }

extern "C" void float32_product(const float* x, const float* panels, const float* bias, float* y, int64_t R, int64_t K, int64_t N) {
  const Tasks tasks(R, N, WIDTH, ROWS);
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < tasks.size(); task++) {
    const int64_t n = task / tasks.parts * WIDTH, r = tasks.first_row(task), rows = tasks.num_rows(task, R);
    const float* panel = panels + n * K;
    const float* b = bias ? bias + n : nullptr;
    switch ((N - n) / LANES) {
      case 1: panel_product<1>(x + r * K, panel, b, y + r * N + n, rows, K, N); break;
      case 2: panel_product<2>(x + r * K, panel, b, y + r * N + n, rows, K, N); break;
      default: panel_product<3>(x + r * K, panel, b, y + r * N + n, rows, K, N);
    }
  }
}

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

struct __attribute__((packed)) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3 hold sums (two blocks of rows by two of columns), 4 and 5 rows of x, 6 and 7 weights.
void shape_tiles(int64_t upper, int64_t lower) {
  TileShapes shapes;
  const int64_t rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
  for (int i = 0; i < 8; i++) {
    shapes.bytes[i] = rows[i] ? 64 : 0;
    shapes.rows[i] = rows[i];
  }
  _tile_loadconfig(&shapes);
}

// 16 columns of some rows: sums plus bias, rounded.
void write_block(const float* sums, int64_t rows, const uint16_t* bias, uint16_t* y, int64_t N) {
  const vec b = bias ? load(bias) : vec{};
  for (int64_t r = 0; r < rows; r++)
    _mm256_storeu_si256((__m256i*)(y + r * N), (__m256i)_mm512_cvtneps_pbh((__m512)(load(sums + 16 * r) + b)));
}

// Up to 32 rows against one panel of 16 * blocks columns.
template <int blocks>
void tile_product(const uint16_t* x, const uint16_t* panel, const uint16_t* bias, uint16_t* y, int64_t rows, int64_t K, int64_t N,
                  Ahead ahead) {
  const bool two = rows > 16;
  _tile_zero(0);
  if (blocks == 2) _tile_zero(1);
  if (two) {
    _tile_zero(2);
    if (blocks == 2) _tile_zero(3);
  }
  for (int64_t k = 0; k < K; k += 32, panel += 512 * blocks) {
    _tile_loadd(4, x + k, K * 2);
    _tile_loadd(6, panel, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (blocks == 2) {
      _tile_loadd(7, panel + 512, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (two) {
      _tile_loadd(5, x + 16 * K + k, K * 2);
      _tile_dpbf16ps(2, 5, 6);
      if (blocks == 2) _tile_dpbf16ps(3, 5, 7);
    }
    ahead.fetch();
  }
  alignas(64) float sums[4][256];
  _tile_stored(0, sums[0], 64);
  if (blocks == 2) _tile_stored(1, sums[1], 64);
  if (two) {
    _tile_stored(2, sums[2], 64);
    if (blocks == 2) _tile_stored(3, sums[3], 64);
  }
  for (int half = 0; half < (two ? 2 : 1); half++)
    for (int block = 0; block < blocks; block++)
      write_block(sums[2 * half + block], half ? rows - 16 : (two ? 16 : rows), bias ? bias + 16 * block : nullptr,
                  y + 16 * half * N + 16 * block, N);
}

template <int blocks>
void tile_panel(const uint16_t* x, const uint16_t* panel, const uint16_t* bias, uint16_t* y, int64_t R, int64_t K, int64_t N) {
  for (int64_t r = 0; r < R; r += 32) {
    const int64_t rows = R - r < 32 ? R - r : 32;
    if (rows < 32) shape_tiles(rows < 16 ? rows : 16, rows < 16 ? 0 : rows - 16);
    const Ahead ahead(panel + K * 16 * blocks, K * 32 * blocks, r / 32, (R + 31) / 32, K / 32);
    tile_product<blocks>(x + r * K, panel, bias, y + r * N, rows, K, N, ahead);
    if (rows < 32) shape_tiles(16, 16);
  }
}

}  // namespace

// A process may use tiles only after it has asked the system for them.
static const bool has_tiles = [] {
  constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}();

extern "C" int has_bfloat16_tiles() { return has_tiles; }

extern "C" void bfloat16_product(const uint16_t* x, const uint16_t* panels, const uint16_t* bias, uint16_t* y, int64_t R, int64_t K,
                                 int64_t N) {
  const Tasks tasks(R, N, 32, 32);
#pragma omp parallel
  {
    shape_tiles(16, 16);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < tasks.size(); task++) {
      const int64_t n = task / tasks.parts * 32, r = tasks.first_row(task), rows = tasks.num_rows(task, R);
      const uint16_t* b = bias ? bias + n : nullptr;
      if (N - n == 16) tile_panel<1>(x + r * K, panels + n * K, b, y + r * N + n, rows, K, N);
      else tile_panel<2>(x + r * K, panels + n * K, b, y + r * N + n, rows, K, N);
    }
    _tile_release();
  }
}

#else

extern "C" int has_bfloat16_tiles() { return 0; }

extern "C" void bfloat16_product(const uint16_t*, const uint16_t*, const uint16_t*, uint16_t*, int64_t, int64_t, int64_t) {}

#endif
