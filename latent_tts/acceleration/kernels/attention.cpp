// Attention of rollouts to the prompt that they share and to what each of them has thought and written itself.
//
// For every query one softmax over both parts. Queries are taken in chunks that share a prefix and a head of keys:
//
//   1. scores against the prefix, as a product with the keys in columns (all queries of the chunk read the same keys)
//   2. scores against the query's own suffix, key by key
//   3. softmax
//   4. the mean of the prefix's values, as a product again, and of the suffix's, added to it
//
// And attention of prompts to themselves, causal, in the same way.
//
// All of it in float32, whatever the tensors are stored in. Every sum runs in one order that depends on neither the other
// queries nor the padding, so that a row's output is that of the row alone, to the bit.

#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr int64_t CHUNK = 32;  // queries at a time
constexpr float HIDDEN = -INFINITY;  // score of a key that a query must not see

struct Shape {
  int64_t groups, members, key_heads, queries_per_key, positions, width;  // P, G, H', H / H', Q, hd
  int64_t prefix_length, prefix_stride;  // of values, and of keys, which are padded to whole vectors
  int64_t slots, used;  // of a suffix: room for, and hold something; the running pass's positions are the last of them
  int64_t row_stride, head_stride, position_stride;  // of the queries, in elements

  int64_t rows_per_member() const { return queries_per_key * positions; }
  int64_t queries() const { return members * rows_per_member(); }  // that share keys
};

// Where a query stands.
struct Place {
  int64_t row, head, position;
};

inline int64_t padded(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

// rows x vectors of `out` (+)= left (rows, depth) times right (depth, vectors), both read as they lie.
template <int rows, int vectors, typename T>
inline void tile(const float* left, int64_t left_stride, const T* right, int64_t right_stride, int64_t depth, float* out,
                 int64_t out_stride) {
  vec sums[rows][vectors] = {};
  for (int64_t k = 0; k < depth; k++) {
    vec values[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) values[v] = load(right + k * right_stride + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) sums[r][v] += left[r * left_stride + k] * values[v];
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) store(out + r * out_stride + v * LANES, sums[r][v]);
}

template <int vectors, typename T>
inline void tiles(int64_t rows, const float* left, int64_t left_stride, const T* right, int64_t right_stride, int64_t depth,
                  float* out, int64_t out_stride) {
  int64_t r = 0;
  for (; r + ROWS <= rows; r += ROWS)
    tile<ROWS, vectors>(left + r * left_stride, left_stride, right, right_stride, depth, out + r * out_stride, out_stride);
  for (; r < rows; r++) tile<1, vectors>(left + r * left_stride, left_stride, right, right_stride, depth, out + r * out_stride, out_stride);
}

// out (rows, columns) = left (rows, depth) times right (depth, columns); columns in whole vectors.
template <typename T>
void product(int64_t rows, int64_t columns, int64_t depth, const float* left, int64_t left_stride, const T* right,
             int64_t right_stride, float* out, int64_t out_stride) {
  int64_t c = 0;
  for (; c + 3 * LANES <= columns; c += 3 * LANES) tiles<3>(rows, left, left_stride, right + c, right_stride, depth, out + c, out_stride);
  for (; c + 2 * LANES <= columns; c += 2 * LANES) tiles<2>(rows, left, left_stride, right + c, right_stride, depth, out + c, out_stride);
  for (; c < columns; c += LANES) tiles<1>(rows, left, left_stride, right + c, right_stride, depth, out + c, out_stride);
}

template <typename T>
inline float dot(const float* left, const T* right, int64_t width) {
  vec sum = {};
  for (int64_t d = 0; d < width; d += LANES) sum += load(left + d) * load(right + d);
  return sum_of(sum);
}

// Replaces scores, `size` of whole vectors, by the weights that softmax makes of them.
inline void softmax(float* scores, int64_t size) {
  vec most = load(scores);
  for (int64_t i = LANES; i < size; i += LANES) {
    const vec here = load(scores + i);
    most = here > most ? here : most;
  }
  float largest = most[0];
  for (int i = 1; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
  vec sum = {};
  for (int64_t i = 0; i < size; i += LANES) {
    const vec here = load(scores + i);
    const vec power = here == HIDDEN ? vec{} : exponential(here - largest);
    store(scores + i, power);
    sum += power;
  }
  const float scale = 1.0f / sum_of(sum);
  for (int64_t i = 0; i < size; i += LANES) store(scores + i, load(scores + i) * scale);
}

// to (width) = from (width) times a number.
template <typename From, typename To>
inline void scale_row(const From* from, float factor, int64_t width, To* to) {
  for (int64_t d = 0; d < width; d += LANES) store(to + d, load(from + d) * factor);
}

// One chunk of queries, from `first` on, of one group and one head of keys (`head` counts the heads of all groups).
template <typename T>
class Chunk {
 public:
  Chunk(const Shape& shape, float scaling)
      : shape(shape), scaling(scaling), query(CHUNK * shape.width), mean(CHUNK * shape.width),
        scores(CHUNK * (shape.prefix_stride + padded(shape.used))) {}

  void attend(int64_t head, int64_t first, const T* queries, const T* prefix_keys, const T* prefix_values, int64_t prefix_length,
              const T* suffix_keys, const T* suffix_values, const uint8_t* valid, T* out) {
    const int64_t width = shape.width, rows = std::min(CHUNK, shape.queries() - first);
    const int64_t prefix = padded(prefix_length), columns = prefix + padded(shape.used);
    for (int64_t r = 0; r < rows; r++) {
      const Place at = place(head, first + r);
      const T* from = queries + at.row * shape.row_stride + at.head * shape.head_stride + at.position * shape.position_stride;
      scale_row(from, scaling, width, &query[r * width]);
    }
    product(rows, prefix, width, query.data(), width, prefix_keys + head * width * shape.prefix_stride, shape.prefix_stride,
            scores.data(), columns);
    for (int64_t r = 0; r < rows; r++) {
      const Place at = place(head, first + r);
      float* own = &scores[r * columns];
      std::fill(own + prefix_length, own + prefix, HIDDEN);
      score_suffix(at, &query[r * width], suffix(suffix_keys, head, at), valid ? valid + at.row * shape.used : nullptr, own + prefix);
      softmax(own, columns);
    }
    product(rows, width, prefix_length, scores.data(), columns, prefix_values + head * shape.prefix_length * width, width,
            mean.data(), width);
    for (int64_t r = 0; r < rows; r++) {
      const Place at = place(head, first + r);
      const int64_t heads = shape.key_heads * shape.queries_per_key;
      add_suffix(at, &scores[r * columns + prefix], suffix(suffix_values, head, at), &mean[r * width],
                 out + ((at.row * shape.positions + at.position) * heads + at.head) * width);
    }
  }

 private:
  Place place(int64_t head, int64_t query) const {
    const int64_t group = head / shape.key_heads, member = query / shape.rows_per_member(), key_head = head % shape.key_heads;
    return {group * shape.members + member,
            key_head * shape.queries_per_key + query / shape.positions % shape.queries_per_key, query % shape.positions};
  }

  const T* suffix(const T* buffer, int64_t head, const Place& at) const {
    return buffer + (head * shape.members + at.row % shape.members) * shape.slots * shape.width;
  }

  int64_t slot(const Place& at) const { return shape.used - shape.positions + at.position; }  // the query's own

  void score_suffix(const Place& at, const float* query, const T* keys, const uint8_t* valid, float* scores) const {
    for (int64_t s = 0; s < padded(shape.used); s++) {
      // A position that only waits sees itself, or its softmax would be over nothing; nobody reads what it computes.
      const bool seen = s == slot(at) || (s < slot(at) && (!valid || valid[s]));
      scores[s] = seen ? dot(query, keys + s * shape.width, shape.width) : HIDDEN;
    }
  }

  void add_suffix(const Place& at, const float* weights, const T* values, const float* mean, T* out) const {
    for (int64_t d = 0; d < shape.width; d += LANES) {
      vec sum = load(mean + d);
      for (int64_t s = 0; s <= slot(at); s++) sum += weights[s] * load(values + s * shape.width + d);
      store(out + d, sum);
    }
  }

  const Shape& shape;
  const float scaling;
  std::vector<float> query, mean, scores;  // (CHUNK, hd), (CHUNK, hd), (CHUNK, prefix and suffix)
};

template <typename T>
void attend(const Shape& shape, float scaling, const T* queries, const T* prefix_keys, const T* prefix_values,
            const int64_t* prefix_lengths, const T* suffix_keys, const T* suffix_values, const uint8_t* valid, T* out) {
  const int64_t chunks = (shape.queries() + CHUNK - 1) / CHUNK;
#pragma omp parallel
  {
    Chunk<T> chunk(shape, scaling);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < shape.groups * shape.key_heads * chunks; task++) {
      const int64_t head = task / chunks;
      chunk.attend(head, task % chunks * CHUNK, queries, prefix_keys, prefix_values, prefix_lengths[head / shape.key_heads],
                   suffix_keys, suffix_values, valid, out);
    }
  }
}

// The positions of one prompt in one head of keys, which see themselves and those before them.
template <typename T>
class Prompt {
 public:
  explicit Prompt(const Shape& shape)
      : shape(shape), stride(padded(shape.positions)), columns(shape.width * stride), query(CHUNK * shape.width),
        mean(CHUNK * shape.width), scores(CHUNK * stride) {}

  // keys and values: (L, hd).
  void enter(const T* keys, const T* values) {
    for (int64_t l = 0; l < shape.positions; l++)
      for (int64_t d = 0; d < shape.width; d++) columns[d * stride + l] = to_float(keys[l * shape.width + d]);
    this->values = values;
  }

  // Queries of one of the heads that read these keys, from position `first` on, a chunk of them; positions of `out` are `out_stride`
  // apart.
  void attend(int64_t first, float scaling, const T* queries, T* out, int64_t out_stride) {
    const int64_t width = shape.width, rows = std::min(CHUNK, shape.positions - first), seen = first + rows;
    for (int64_t r = 0; r < rows; r++)
      scale_row(queries + (first + r) * shape.position_stride, scaling, width, &query[r * width]);
    product(rows, padded(seen), width, query.data(), width, columns.data(), stride, scores.data(), stride);
    for (int64_t r = 0; r < rows; r++) {
      float* own = &scores[r * stride];
      std::fill(own + first + r + 1, own + padded(seen), HIDDEN);
      softmax(own, padded(seen));
    }
    product(rows, width, seen, scores.data(), stride, values, width, mean.data(), width);
    for (int64_t r = 0; r < rows; r++) scale_row(&mean[r * width], 1.0f, width, out + (first + r) * out_stride);
  }

 private:
  const Shape& shape;
  const int64_t stride;
  std::vector<float> columns, query, mean, scores;  // (hd, L), (CHUNK, hd), (CHUNK, hd), (CHUNK, L), L padded
  const T* values = nullptr;
};

// Queries (P, H, L, hd) in any layout with a dense last axis, keys and values (P, H', L, hd), out (P, L, H, hd).
template <typename T>
void attend_causally(const Shape& shape, float scaling, const T* queries, const T* keys, const T* values, T* out) {
  const int64_t size = shape.positions * shape.width, heads = shape.key_heads * shape.queries_per_key;
#pragma omp parallel
  {
    Prompt<T> prompt(shape);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < shape.groups * shape.key_heads; task++) {
      const int64_t row = task / shape.key_heads, key_head = task % shape.key_heads;
      prompt.enter(keys + task * size, values + task * size);
      for (int64_t head = key_head * shape.queries_per_key; head < (key_head + 1) * shape.queries_per_key; head++)
        for (int64_t first = 0; first < shape.positions; first += CHUNK)
          prompt.attend(first, scaling, queries + row * shape.row_stride + head * shape.head_stride,
                        out + row * size * heads + head * shape.width, heads * shape.width);
    }
  }
}

}  // namespace

extern "C" void float32_attention(const Shape* shape, float scaling, const float* queries, const float* prefix_keys,
                                  const float* prefix_values, const int64_t* prefix_lengths, const float* suffix_keys,
                                  const float* suffix_values, const uint8_t* valid, float* out) {
  attend(*shape, scaling, queries, prefix_keys, prefix_values, prefix_lengths, suffix_keys, suffix_values, valid, out);
}

extern "C" void bfloat16_attention(const Shape* shape, float scaling, const uint16_t* queries, const uint16_t* prefix_keys,
                                   const uint16_t* prefix_values, const int64_t* prefix_lengths, const uint16_t* suffix_keys,
                                   const uint16_t* suffix_values, const uint8_t* valid, uint16_t* out) {
  attend(*shape, scaling, queries, prefix_keys, prefix_values, prefix_lengths, suffix_keys, suffix_values, valid, out);
}

extern "C" void float32_causal_attention(const Shape* shape, float scaling, const float* queries, const float* keys,
                                         const float* values, float* out) {
  attend_causally(*shape, scaling, queries, keys, values, out);
}

extern "C" void bfloat16_causal_attention(const Shape* shape, float scaling, const uint16_t* queries, const uint16_t* keys,
                                          const uint16_t* values, uint16_t* out) {
  attend_causally(*shape, scaling, queries, keys, values, out);
}
