// uint8 frames to the pixel values of two vision towers: turn, resize (Lanczos), centre crop scaled up again, two
// normalisations. One frame at a time in buffers that stay in the cache. The crop repeats the float32 operations of the
// torch twin in their order, and the build forbids fused multiply-adds; normalising looks up the twin's own results.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int64_t CHANNELS = 3;

// Weights of the old pixels in one new one: `count` of them from `first`, at `weights + place * widest`.
struct Taps {
  const int64_t *first, *count;
  const float *weights;
  int64_t widest;
};

// Between which pixels each sampled place lies, and how far.
struct Places {
  const int64_t *below, *above;
  const float *weight;
};

struct Shape {
  int64_t height, width, size;
};

uint8_t rounded(float x) { return static_cast<uint8_t>(std::min(std::max(std::nearbyint(x), 0.0f), 255.0f)); }

void turn(const uint8_t *frame, int64_t pixels, uint8_t *turned) {
  for (int64_t i = 0; i < pixels; ++i)
    for (int64_t c = 0; c < CHANNELS; ++c) turned[i * CHANNELS + c] = frame[(pixels - 1 - i) * CHANNELS + c];
}

void resize(const uint8_t *frame, const Shape &shape, const Taps &rows, const Taps &columns, float *row,
            uint8_t *resized) {
  const int64_t wide = shape.width * CHANNELS;
  for (int64_t y = 0; y < shape.size; ++y) {
    std::fill(row, row + wide, 0.0f);
    for (int64_t k = 0; k < rows.count[y]; ++k) {
      const uint8_t *old = frame + (rows.first[y] + k) * wide;
      const float weight = rows.weights[y * rows.widest + k];
#pragma omp simd
      for (int64_t x = 0; x < wide; ++x) row[x] += weight * static_cast<float>(old[x]);
    }
    for (int64_t x = 0; x < shape.size; ++x) {
      const float *from = row + columns.first[x] * CHANNELS, *weights = columns.weights + x * columns.widest;
      float sum[CHANNELS] = {0.0f, 0.0f, 0.0f};
      for (int64_t k = 0; k < columns.count[x]; ++k)
        for (int64_t c = 0; c < CHANNELS; ++c) sum[c] += weights[k] * from[k * CHANNELS + c];
      for (int64_t c = 0; c < CHANNELS; ++c) resized[(y * shape.size + x) * CHANNELS + c] = rounded(sum[c]);
    }
  }
}

// One row of the frame, sampled at the places between its columns.
void sample_columns(const uint8_t *from, int64_t size, const Places &at, const float *shares, float *row) {
  for (int64_t x = 0; x < size; ++x) {
    const uint8_t *left = from + at.below[x] * CHANNELS, *right = from + at.above[x] * CHANNELS;
    for (int64_t c = 0; c < CHANNELS; ++c) {
      const float first = shares[left[c]], second = shares[right[c]];
      row[x * CHANNELS + c] = first + (second - first) * at.weight[x];
    }
  }
}

void crop(const uint8_t *frame, int64_t size, const Places &at, const float *shares, float *rows, uint8_t *cropped) {
  const int64_t wide = size * CHANNELS;
  float *upper = rows, *lower = rows + wide;
  int64_t upper_row = -1, lower_row = -1;
  for (int64_t y = 0; y < size; ++y) {
    if (at.below[y] == lower_row) {  // the next place often lies between the next two rows
      std::swap(upper, lower);
      std::swap(upper_row, lower_row);
    }
    if (at.below[y] != upper_row) sample_columns(frame + (upper_row = at.below[y]) * wide, size, at, shares, upper);
    if (at.above[y] != lower_row) sample_columns(frame + (lower_row = at.above[y]) * wide, size, at, shares, lower);
    const float weight = at.weight[y];
    uint8_t *out = cropped + y * wide;
#pragma omp simd
    for (int64_t x = 0; x < wide; ++x) {
      const float between = upper[x] + (lower[x] - upper[x]) * weight;
      const float bounded = between < 0.0f ? 0.0f : (between > 1.0f ? 1.0f : between);
      out[x] = static_cast<uint8_t>(static_cast<int32_t>(bounded * 255.5f));
    }
  }
}

// table: 256 values of each of the six channels.
void normalize(const uint8_t *frame, int64_t pixels, const float *table, float *values) {
  for (int64_t c = 0; c < 2 * CHANNELS; ++c) {
    const float *of_channel = table + c * 256;
    const uint8_t *from = frame + c % CHANNELS;
    for (int64_t i = 0; i < pixels; ++i) values[c * pixels + i] = of_channel[from[i * CHANNELS]];
  }
}

}  // namespace

extern "C" {

// row_taps, column_taps: null where the frames have the size. places: null without a crop. shares: k / 255.
void process_images(const uint8_t *frames, int64_t num_frames, int64_t height, int64_t width, int64_t size, bool turns,
                    const int64_t *row_first, const int64_t *row_count, const float *row_weights, int64_t row_widest,
                    const int64_t *column_first, const int64_t *column_count, const float *column_weights,
                    int64_t column_widest, const int64_t *below, const int64_t *above, const float *weight,
                    const float *shares, const float *table, float *values, int64_t threads) {
  const Shape shape{height, width, size};
  const Taps rows{row_first, row_count, row_weights, row_widest};
  const Taps columns{column_first, column_count, column_weights, column_widest};
  const Places places{below, above, weight};
  const int64_t pixels = size * size;
#pragma omp parallel num_threads(threads)
  {
    std::vector<uint8_t> turned(turns ? height * width * CHANNELS : 0), first(pixels * CHANNELS),
        second(pixels * CHANNELS);
    std::vector<float> scratch(CHANNELS * std::max(width, 2 * size));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < num_frames; ++i) {
      const uint8_t *frame = frames + i * height * width * CHANNELS;
      if (turns) {
        turn(frame, height * width, turned.data());
        frame = turned.data();
      }
      if (row_first != nullptr) {
        resize(frame, shape, rows, columns, scratch.data(), first.data());
        frame = first.data();
      }
      if (below != nullptr) {
        crop(frame, size, places, shares, scratch.data(), second.data());
        frame = second.data();
      }
      normalize(frame, pixels, table, values + i * 2 * CHANNELS * pixels);
    }
  }
}

}  // extern "C"
