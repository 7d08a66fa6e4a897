// The operations of backend.py, fused for CPUs: noise is made in registers where it is used and is never written to
// memory. Bit for bit what the plain tensor operations give (tests compare them), so compile without contraction of
// multiply and add; only low_rank sums in another order. The layout of rows is described at the head of values.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int kBlocks = 16;  // blocks of four words in a row

struct Address {  // of all elements of one tensor in one generation
  uint32_t parameter, generation, key0, key1;
};

enum Distribution { kGaussian, kUniform, kRademacher };

// Elements in a row.
constexpr int row_size(int distribution) {
  return 4 * kBlocks * (distribution == kGaussian ? 2 : distribution == kUniform ? 1 : 32);
}

// 64-bit lanes of which only the lower halves count: a product of two such lanes needs no unpacking.
#if defined(__AVX512F__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef uint64_t Lanes __attribute__((vector_size(8 * kLanes)));

// The whole product of the lower halves.
inline Lanes multiply(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Lanes>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Lanes>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// Philox4x32-10 for the blocks of consecutive rows.
template <int rows>
inline void philox(const Address& address, uint64_t row, uint32_t member, uint32_t words[][4][kBlocks]) {
  constexpr int kOfRow = kBlocks / kLanes, kVectors = rows * kOfRow;
  const Lanes zero = {};
  const Lanes multiplier0 = zero + 0xD2511F53u, multiplier1 = zero + 0xCD9E8D57u;
  Lanes x0[kVectors], x1[kVectors], x2[kVectors], x3[kVectors];
  for (int v = 0; v < kVectors; v++) {
    for (int i = 0; i < kLanes; i++) x0[v][i] = row * kBlocks + v * kLanes + i;
    x1[v] = zero + address.parameter;
    x2[v] = zero + address.generation;
    x3[v] = zero + member;
  }
  uint32_t key0 = address.key0, key1 = address.key1;
  for (int round = 0; round < 10; round++) {
    for (int v = 0; v < kVectors; v++) {
      const Lanes product0 = multiply(x0[v], multiplier0), product1 = multiply(x2[v], multiplier1);
      x0[v] = (product1 >> 32) ^ x1[v] ^ (zero + key0);
      x1[v] = product1;
      x2[v] = (product0 >> 32) ^ x3[v] ^ (zero + key1);
      x3[v] = product0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (int v = 0; v < kVectors; v++)
    for (int i = 0; i < kLanes; i++) {
      uint32_t(*of_row)[kBlocks] = words[v / kOfRow];
      const int block = v % kOfRow * kLanes + i;
      of_row[0][block] = static_cast<uint32_t>(x0[v][i]);
      of_row[1][block] = static_cast<uint32_t>(x1[v][i]);
      of_row[2][block] = static_cast<uint32_t>(x2[v][i]);
      of_row[3][block] = static_cast<uint32_t>(x3[v][i]);
    }
}

constexpr int kSlices = 1 << 15, kSegments = 32;  // of the normal distribution; see normal.py

#if defined(__AVX512F__)
// The magnitudes of 16 normal values, by their polynomials: 15 bits of each lane choose the slice.
inline __m512 magnitudes(__m512i lanes, const float* coefficients) {
  const __m512i slice = _mm512_and_si512(lanes, _mm512_set1_epi32(kSlices - 1));
  const __m512i tail = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_set1_epi32(kSlices), slice)));
  const __m512i segment = _mm512_srli_epi32(tail, 22);  // of which only five bits count
  const __m512i mantissa = _mm512_and_si512(tail, _mm512_set1_epi32(0x007FFFFF));
  const __m512 t = _mm512_castsi512_ps(_mm512_or_si512(mantissa, _mm512_set1_epi32(0x3F800000)));
  const auto coefficient = [&](int power) {
    const float* of_power = coefficients + power * kSegments;
    return _mm512_permutex2var_ps(_mm512_loadu_ps(of_power), segment, _mm512_loadu_ps(of_power + kSegments / 2));
  };
  __m512 value = coefficient(3);
  for (int power = 2; power >= 0; power--) value = _mm512_add_ps(_mm512_mul_ps(value, t), coefficient(power));
  return value;
}
#endif

// 16 words to 32 normal values: the lower halves of the words, then the upper ones. The 16th bit is the sign.
inline void normal(const uint32_t* words, const float* table, float* values) {
#if defined(__AVX512F__)
  const __m512i word = _mm512_loadu_si512(words), sign = _mm512_set1_epi32(INT32_MIN);
  const __m512i low = _mm512_castps_si512(magnitudes(word, table + kSlices));
  const __m512i high = _mm512_castps_si512(magnitudes(_mm512_srli_epi32(word, 16), table + kSlices));
  _mm512_storeu_si512(values, _mm512_or_si512(low, _mm512_and_si512(_mm512_slli_epi32(word, 16), sign)));
  _mm512_storeu_si512(values + kBlocks, _mm512_or_si512(high, _mm512_and_si512(word, sign)));
#else
  for (int i = 0; i < kBlocks; i++) {
    uint32_t low, high;
    std::memcpy(&low, &table[words[i] & 0x7FFF], 4);
    std::memcpy(&high, &table[(words[i] >> 16) & 0x7FFF], 4);
    low |= (words[i] & 0x8000u) << 16;
    high |= words[i] & 0x80000000u;
    std::memcpy(&values[i], &low, 4);
    std::memcpy(&values[kBlocks + i], &high, 4);
  }
#endif
}

// Consecutive rows of values.
template <int distribution, int rows>
inline void make_rows(const Address& address, uint64_t row, uint32_t member, const float* table, float* values) {
  alignas(64) uint32_t words[rows][4][kBlocks];
  philox<rows>(address, row, member, words);
  for (int r = 0; r < rows; r++)
    for (int w = 0; w < 4; w++) {
      const uint32_t* word = words[r][w];
      float* to = values + r * row_size(distribution) + w * (row_size(distribution) / 4);
      if (distribution == kGaussian) {
        normal(word, table, to);
      } else if (distribution == kUniform) {
        for (int i = 0; i < kBlocks; i++) to[i] = static_cast<float>(word[i] >> 8) * 0x1p-24f;
      } else {
        for (int bit = 0; bit < 32; bit++)
          for (int i = 0; i < kBlocks; i++)
            to[16 * bit + i] = static_cast<float>(static_cast<int32_t>((word[i] >> bit) & 1) * 2 - 1);
      }
    }
}

// Rows that are made at once: a product waits for the one before it, so two rows take hardly longer than one. A row of
// signs is so long that this does not matter.
constexpr int together(int distribution) { return distribution == kRademacher ? 1 : 2; }

// The rows that are made at once, with mean 0 and variance 1.
template <int distribution>
inline void make_noise(const Address& address, uint64_t row, uint32_t member, const float* table, float* values) {
  constexpr int rows = together(distribution);
  make_rows<distribution, rows>(address, row, member, table, values);
  if (distribution == kUniform)
    for (int i = 0; i < rows * row_size(kUniform); i++) values[i] = (values[i] - 0.5f) * 3.46410161513775458705f;
}

struct Float32 {
  using Storage = float;
  static float load(float value) { return value; }
  static float store(float value) { return value; }
};

struct BFloat16 {
  using Storage = uint16_t;
  static float load(uint16_t value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
  }
  static uint16_t store(float value) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t rounded = static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    return value != value ? 0x7FC0 : rounded;
  }
};

#if defined(__ARM_FP16_FORMAT_IEEE)
typedef __fp16 Half;
#elif defined(__FLT16_MAX__)
typedef _Float16 Half;
#else  // g++ before 12, for one
class Half {
 public:
  explicit Half(float value) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    float small;  // in units of 2^-24: the sum has no bits for less
    std::memcpy(&small, &magnitude, 4);
    small += 0.5f;
    uint32_t subnormal;
    std::memcpy(&subnormal, &small, 4);
    subnormal -= 0x3F000000u;
    uint32_t rounded = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1)) >> 13;
    if (magnitude < 0x38800000u) rounded = subnormal;
    if (magnitude >= 0x47800000u) rounded = magnitude > 0x7F800000u ? 0x7E00 : 0x7C00;
    bits_ = static_cast<uint16_t>(rounded | bits >> 31 << 15);
  }
  operator float() const {
    // Half's exponent in float's place is 112 too small: a multiplication corrects that, for subnormal numbers, too.
    const uint32_t bits = (bits_ & 0x7FFFu) << 13;
    float value;
    std::memcpy(&value, &bits, 4);
    value *= 0x1p112f;
    uint32_t result;
    std::memcpy(&result, &value, 4);
    if (bits >= 0x0F800000u) result |= 0x7F800000u;
    result |= static_cast<uint32_t>(bits_ & 0x8000u) << 16;
    std::memcpy(&value, &result, 4);
    return value;
  }

 private:
  uint16_t bits_;
};
#endif

struct Float16 {
  using Storage = Half;
  static float load(Half value) { return static_cast<float>(value); }
  static Half store(float value) { return static_cast<Half>(value); }
};

// Elements in the rows from `row` on that are made at once, of `count` rows in all.
template <int distribution>
inline int elements_at(int64_t row, int64_t count) {
  constexpr int rows = together(distribution);
  return row_size(distribution) * static_cast<int>(count - row < rows ? count - row : rows);
}

// Several tensors are divided into parts, each with as many threads as are free: many small tensors take hardly longer
// than one of their size.
constexpr int64_t kPart = 1 << 14;  // elements, whole rows of every kind

struct Part {
  int64_t tensor, start, stop;  // elements start <= offset < stop
};

inline std::vector<Part> parts_of(int64_t tensors, const int64_t* elements) {
  std::vector<Part> parts;
  for (int64_t tensor = 0; tensor < tensors; tensor++)
    for (int64_t start = 0; start < elements[tensor]; start += kPart)
      parts.push_back({tensor, start, std::min(start + kPart, elements[tensor])});
  return parts;
}

// Has the memory of `count` elements loaded, to be read or written to. There need be none.
template <bool write, class Storage>
inline void fetch(const Storage* elements, int count) {
#if defined(__GNUC__)
  for (int i = 0; i < count; i += 64 / static_cast<int>(sizeof(Storage))) __builtin_prefetch(elements + i, write);
#endif
}

// A tensor and its members: `center`, whose first element has the flat offset `first`, and where members are written,
// one every `stride` elements.
struct Members {
  Address address;
  int64_t first, stride;
  const void* center;
  void* out;
};

// out[d * each + m] = center + steps[d * each + m] * eps_d; the members of a direction share its noise.
template <int distribution, class Type>
void members(const float* table, int64_t number, const Members* tensors, const int64_t* elements, int64_t count,
             const int64_t* directions, const float* steps, int64_t each, int threads) {
  constexpr int size = together(distribution) * row_size(distribution);
  using Storage = typename Type::Storage;
  const std::vector<Part> parts = parts_of(number, elements);
  const int64_t of_all = static_cast<int64_t>(parts.size());
#pragma omp parallel for num_threads(threads) schedule(guided) if (threads > 1)
  for (int64_t i = 0; i < of_all * count; i++) {
    const Part& part = parts[i % of_all];
    const Members& tensor = tensors[part.tensor];
    const int64_t d = i / of_all;
    const uint32_t direction = static_cast<uint32_t>(directions[d]);
    for (int64_t start = part.start, here; start < part.stop; start += here) {
      alignas(64) float values[size];
      const Storage* from = static_cast<const Storage*>(tensor.center) + start;
      fetch<false>(from + size, size);  // while noise is made
      const int64_t offset = tensor.first + start, skipped = offset % row_size(distribution);
      make_noise<distribution>(tensor.address, offset / row_size(distribution), direction, table, values);
      here = std::min<int64_t>(part.stop - start, size - skipped);
      for (int64_t m = d * each; m < (d + 1) * each; m++) {
        Storage* to = static_cast<Storage*>(tensor.out) + m * tensor.stride + start;
        const float step = steps[m], *noise = values + skipped;
        for (int64_t j = 0; j < here; j++) {
          const float product = noise[j] * step;
          to[j] = Type::store(Type::load(from[j]) + product);
        }
      }
    }
  }
}

// The same for some rows of a matrix: out[m, i] = member m's row chosen[i].
template <int distribution, class Type>
void chosen_rows(const Address& address, const float* table, int64_t width, int64_t number, const int64_t* chosen,
                 const void* center, void* out, int64_t count, const int64_t* directions, const float* steps,
                 int64_t each, int threads) {
  using Storage = typename Type::Storage;
  std::vector<Members> rows;
  for (int64_t i = 0; i < number; i++)
    rows.push_back({address, chosen[i] * width, number * width, static_cast<const Storage*>(center) + chosen[i] * width,
                    static_cast<Storage*>(out) + i * width});
  const std::vector<int64_t> elements(number, width);
  members<distribution, Type>(table, number, rows.data(), elements.data(), count, directions, steps, each, threads);
}

template <int distribution>
void sum(const Address& address, const float* table, int64_t first, int64_t count, const int64_t* directions,
         const float* weights, int64_t number, float* total, int threads) {
  constexpr int size = row_size(distribution), rows = together(distribution);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 32) if (threads > 1)
  for (int64_t row = 0; row < count; row += rows) {
    alignas(64) float values[rows * size];
    const int elements = elements_at<distribution>(row, count);
    float* to = total + row * size;
    for (int64_t d = 0; d < number; d++) {  // one by one, in this order
      make_noise<distribution>(address, first + row, static_cast<uint32_t>(directions[d]), table, values);
      for (int i = 0; i < elements; i++) {
        const float product = values[i] * weights[d];
        to[i] = to[i] + product;
      }
    }
  }
}

template <int distribution>
void draw(const Address& address, const float* table, int64_t first, int64_t count, const int64_t* directions,
          int64_t number, float* out, int threads) {
  constexpr int size = row_size(distribution), rows = together(distribution);
  const int64_t steps = (count + rows - 1) / rows;
#pragma omp parallel for num_threads(threads) collapse(2) schedule(dynamic, 32) if (threads > 1)
  for (int64_t d = 0; d < number; d++)
    for (int64_t step = 0; step < steps; step++) {
      const int64_t row = step * rows;
      const uint32_t direction = static_cast<uint32_t>(directions[d]);
      float* to = out + (d * count + row) * size;
      if (count - row >= rows)
        make_rows<distribution, rows>(address, first + row, direction, table, to);
      else
        make_rows<distribution, 1>(address, first + row, direction, table, to);
    }
}

// Rounds to one of the two neighbours, to the nearer one with the higher probability; see rounding.py. `random` has 16
// bits: a uniform number in units of 2^-16.
inline float round_away(float value, uint32_t random, int dropped) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + (random >> (16 - dropped))) & ~((1u << dropped) - 1);
  const uint32_t result = (bits & 0x7F800000u) == 0x7F800000u ? bits : rounded;
  std::memcpy(&value, &result, 4);
  return value;
}

inline float round_to(BFloat16, float value, uint32_t random) { return round_away(value, random, 16); }

inline float round_to(Float16, float value, uint32_t random) {
  // Below 2^-14 float16 is a fixed grid of step 2^-24, not a shorter mantissa.
  const float steps = value * 0x1p24f, whole = std::trunc(steps);
  const float away = static_cast<float>(random) * 0x1p-16f < std::fabs(steps - whole) ? 1.0f : 0.0f;
  const float subnormal = (whole + std::copysign(away, steps)) * 0x1p-24f;
  return std::fabs(value) < 0x1p-14f ? subnormal : round_away(value, random, 13);
}

inline float round_to(Float32, float value, uint32_t) { return value; }

constexpr int kRoundingRow = 8 * kBlocks;        // elements that one row of words rounds: two values a word
constexpr int kRoundingRows = 2 * kRoundingRow;  // and two rows, which are made at once
constexpr int kUnit = row_size(kRademacher);     // elements that are whole rows of every kind

// The random numbers of 16 bits that round up to 256 elements.
inline void rounding_numbers(const Address& address, uint64_t row, uint32_t* random) {
  alignas(64) uint32_t words[2][4][kBlocks];
  philox<2>(address, row, 0, words);
  for (int w = 0; w < 8; w++) {
    const uint32_t* word = words[w / 4][w % 4];
    for (int i = 0; i < kBlocks; i++) random[32 * w + i] = word[i] & 0xFFFF;
    for (int i = 0; i < kBlocks; i++) random[32 * w + kBlocks + i] = word[i] >> 16;
  }
}

// center += step for up to 256 elements, rounded where there is something to round.
template <class Type>
inline void move_rows(const Address& address, uint64_t row, typename Type::Storage* center, const float* step,
                      int count) {
  if constexpr (std::is_same<Type, Float32>::value) {
    // A center that is not to move keeps its sign of zero. Compilers vectorise the choice between the bits; of a choice
    // between the numbers they make a jump over the sum.
    for (int i = 0; i < count; i++) {
      const float from = Type::load(center[i]), to = from + step[i];
      uint32_t before, after;
      std::memcpy(&before, &from, 4);
      std::memcpy(&after, &to, 4);
      const uint32_t moves = -static_cast<uint32_t>(step[i] != 0), bits = before ^ ((before ^ after) & moves);
      std::memcpy(&center[i], &bits, 4);
    }
    return;
  }
  alignas(64) uint32_t random[kRoundingRows];
  rounding_numbers(address, row, random);
  for (int i = 0; i < count; i++) {
    const auto from = center[i], moved = Type::store(round_to(Type(), Type::load(from) + step[i], random[i]));
    center[i] = step[i] == 0 ? from : moved;
  }
}

template <class Type>
void move(const Address& address, int64_t first, int64_t elements, void* center, const float* step, int threads) {
  typename Type::Storage* to = static_cast<typename Type::Storage*>(center);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 32) if (threads > 1)
  for (int64_t start = 0; start < elements; start += kRoundingRows) {
    const int64_t left = elements - start;
    const int count = left < kRoundingRows ? static_cast<int>(left) : kRoundingRows;
    move_rows<Type>(address, first + start / kRoundingRow, to + start, step + start, count);
  }
}

// What draws a tensor back to where it began; `anchor` is null if nothing does. See pull.py.
struct Pull {
  const void* anchor;
  float decay, keep, threshold;
};

// move_rows, drawn back. Returns the squared norm of center - anchor.
template <class Type>
inline float pull_rows(const Address& address, uint64_t row, typename Type::Storage* center,
                       const typename Type::Storage* anchor, const float* step, int count, const Pull& pull) {
  alignas(64) uint32_t random[kRoundingRows];
  if (!std::is_same<Type, Float32>::value) rounding_numbers(address, row, random);
  float square = 0;
#pragma omp simd reduction(+ : square)
  for (int i = 0; i < count; i++) {
    const float from = Type::load(center[i]), home = Type::load(anchor[i]);
    const float decayed = from * pull.decay, stepped = step[i] - decayed, before = (from - home) + stepped;
    const float magnitude = std::fabs(before) - pull.threshold;
    const float away = (magnitude <= 0 ? 0.0f : std::copysign(magnitude, before)) * pull.keep;
    const uint32_t bits = std::is_same<Type, Float32>::value ? 0 : random[i];
    const auto moved = Type::store(round_to(Type(), home + away, bits));
    const float way = Type::load(moved) - home;  // 0 where away is: rounding leaves what the type holds
    square += way * way;
    center[i] = away == 0 ? anchor[i] : moved;
  }
  return square;
}

template <class Type>
void pull(const Address& address, int64_t first, int64_t elements, void* center, const float* step, const Pull& pull,
          double* square, int threads) {
  typename Type::Storage* to = static_cast<typename Type::Storage*>(center);
  const typename Type::Storage* anchor = static_cast<const typename Type::Storage*>(pull.anchor);
  std::vector<double> of_parts((elements + kRoundingRows - 1) / kRoundingRows);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 32) if (threads > 1)
  for (int64_t start = 0; start < elements; start += kRoundingRows) {
    const int64_t left = elements - start;
    const int count = left < kRoundingRows ? static_cast<int>(left) : kRoundingRows;
    of_parts[start / kRoundingRows] = pull_rows<Type>(address, first + start / kRoundingRow, to + start, anchor + start,
                                                      step + start, count, pull);
  }
  *square = 0;
  for (const double part : of_parts) *square += part;
}

// A tensor that is moved: center += coefficient * sum_d weight_d eps_d.
struct Moved {
  Address noise, rounding;
  void* center;
  float coefficient;
  Pull pull;
};

// Moves tensors in one pass. Returns the squared norm of each one's sum, and of its way from where it is drawn back to.
template <int distribution, class Type>
void update(const float* table, int64_t number, const Moved* tensors, const int64_t* elements, int64_t count,
            const int64_t* directions, const float* weights, double* squares, double* away, int threads) {
  constexpr int rows = together(distribution), size = rows * row_size(distribution);
  using Storage = typename Type::Storage;
  const std::vector<Part> parts = parts_of(number, elements);
  std::vector<double> of_parts(parts.size()), away_of_parts(parts.size());
#pragma omp parallel for num_threads(threads) schedule(guided) if (threads > 1)
  for (size_t i = 0; i < parts.size(); i++) {
    const Part& part = parts[i];
    const Moved& tensor = tensors[part.tensor];
    for (int64_t first = part.start; first < part.stop; first += kUnit) {
      const int all = static_cast<int>(std::min<int64_t>(part.stop - first, kUnit));
      Storage* to = static_cast<Storage*>(tensor.center) + first;
      const Storage* anchor = tensor.pull.anchor ? static_cast<const Storage*>(tensor.pull.anchor) + first : nullptr;
      alignas(64) float total[kUnit] = {}, values[size];
      for (int64_t d = 0; d < count; d++)
        for (int start = 0; start < all; start += size) {
          if (d == 0) fetch<true>(to + kUnit + start, size);  // while noise is made
          if (d == 0 && anchor) fetch<false>(anchor + kUnit + start, size);
          const int64_t row = (first + start) / row_size(distribution);
          make_noise<distribution>(tensor.noise, row, static_cast<uint32_t>(directions[d]), table, values);
          for (int j = 0; j < size; j++) {
            const float product = values[j] * weights[d];
            total[start + j] = total[start + j] + product;
          }
        }
      for (int start = 0; start < all; start += kRoundingRows) {
        const int here = std::min(all - start, kRoundingRows);
        float* sum = total + start;
        float square = 0;
#pragma omp simd reduction(+ : square)
        for (int j = 0; j < here; j++) square += sum[j] * sum[j];
        of_parts[i] += square;
        for (int j = 0; j < here; j++) sum[j] = sum[j] * tensor.coefficient;
        const uint64_t row = (first + start) / kRoundingRow;
        if (anchor)
          away_of_parts[i] += pull_rows<Type>(tensor.rounding, row, to + start, anchor + start, sum, here, tensor.pull);
        else
          move_rows<Type>(tensor.rounding, row, to + start, sum, here);
      }
    }
  }
  for (int64_t tensor = 0; tensor < number; tensor++) squares[tensor] = away[tensor] = 0;
  for (size_t i = 0; i < parts.size(); i++) {
    squares[parts[i].tensor] += of_parts[i];
    away[parts[i].tensor] += away_of_parts[i];
  }
}

constexpr int kMaximalRank = 4;  // of low_rank; above it matrix products are as fast

// The scalar product.
template <class Type>
inline float dot(const typename Type::Storage* x, const float* y, int64_t count) {
  constexpr int kParts = 32;
  float parts[kParts] = {};
  int64_t i = 0;
  for (; i + kParts <= count; i += kParts)
    for (int j = 0; j < kParts; j++) parts[j] += Type::load(x[i + j]) * y[i + j];
  for (; i < count; i++) parts[i % kParts] += Type::load(x[i]) * y[i];
  for (int half = kParts / 2; half > 0; half /= 2)
    for (int j = 0; j < half; j++) parts[j] += parts[j + half];
  return parts[0];
}

// One row of outputs: bias + hidden A^T. The rank is known to the compiler, so that all is done in one pass.
template <class Type, int rank, bool with_bias>
inline void low_rank_row(const typename Type::Storage* bias, const float* hidden, const float* a, int64_t outputs,
                         typename Type::Storage* out) {
  for (int64_t i = 0; i < outputs; i++) {
    float total = hidden[0] * a[i];
    for (int k = 1; k < rank; k++) total += hidden[k] * a[k * outputs + i];
    out[i] = Type::store(with_bias ? total + Type::load(bias[i]) : total);
  }
}

template <class Type, int rank>
inline void low_rank_row(const typename Type::Storage* bias, const float* hidden, const float* a, int64_t outputs,
                         typename Type::Storage* out) {
  if (bias)
    low_rank_row<Type, rank, true>(bias, hidden, a, outputs, out);
  else
    low_rank_row<Type, rank, false>(bias, hidden, a, outputs, out);
}

// out = bias + (x B) A^T for each member: x [rows, inputs], B [rank, inputs], A [rank, outputs]. In float32 until it is
// stored. `bias` may be null; a stride of 0 gives all members the same.
template <class Type>
void low_rank(const void* bias, int64_t bias_stride, const void* x, int64_t x_stride, const float* b, const float* a,
              int64_t members, int64_t rows, int64_t inputs, int64_t outputs, int rank, void* out, int threads) {
  using Storage = typename Type::Storage;
#pragma omp parallel for num_threads(threads) collapse(2) schedule(static) if (threads > 1)
  for (int64_t m = 0; m < members; m++)
    for (int64_t row = 0; row < rows; row++) {
      const Storage* from = static_cast<const Storage*>(x) + m * x_stride + row * inputs;
      const Storage* add = bias ? static_cast<const Storage*>(bias) + m * bias_stride : nullptr;
      Storage* to = static_cast<Storage*>(out) + (m * rows + row) * outputs;
      const float* of_outputs = a + m * rank * outputs;
      float hidden[kMaximalRank];
      for (int k = 0; k < rank; k++) hidden[k] = dot<Type>(from, b + (m * rank + k) * inputs, inputs);
      switch (rank) {
        case 1: low_rank_row<Type, 1>(add, hidden, of_outputs, outputs, to); break;
        case 2: low_rank_row<Type, 2>(add, hidden, of_outputs, outputs, to); break;
        case 3: low_rank_row<Type, 3>(add, hidden, of_outputs, outputs, to); break;
        case 4: low_rank_row<Type, 4>(add, hidden, of_outputs, outputs, to); break;
      }
    }
}

template <class Function>
void with_distribution(int distribution, Function function) {
  if (distribution == kGaussian) function(std::integral_constant<int, kGaussian>());
  if (distribution == kUniform) function(std::integral_constant<int, kUniform>());
  if (distribution == kRademacher) function(std::integral_constant<int, kRademacher>());
}

}  // namespace

// What Python calls. In draw, sum, move and pull `first` is the number of the row that the first element begins and `count` a
// number of rows; in the others `number` counts tensors or their rows, and `count` directions. dtypes are 0 for float32, 1 for
// bfloat16, 2 for float16. Tensors are in row-major order.
extern "C" {

void lightning_evo_draw(int distribution, const Address* address, const float* table, int64_t first, int64_t count,
                        const int64_t* directions, int64_t number, float* out, int threads) {
  with_distribution(distribution, [&](auto d) {
    draw<decltype(d)::value>(*address, table, first, count, directions, number, out, threads);
  });
}

void lightning_evo_members(int distribution, int dtype, const float* table, int64_t number, const Members* tensors,
                           const int64_t* elements, int64_t count, const int64_t* directions, const float* steps,
                           int64_t each, int threads) {
  with_distribution(distribution, [&](auto d) {
    const auto run = [&](auto type) {
      members<decltype(d)::value, decltype(type)>(table, number, tensors, elements, count, directions, steps, each,
                                                  threads);
    };
    if (dtype == 0) run(Float32());
    if (dtype == 1) run(BFloat16());
    if (dtype == 2) run(Float16());
  });
}

void lightning_evo_chosen_rows(int distribution, int dtype, const Address* address, const float* table, int64_t width,
                               int64_t number, const int64_t* chosen, const void* center, void* out, int64_t count,
                               const int64_t* directions, const float* steps, int64_t each, int threads) {
  with_distribution(distribution, [&](auto d) {
    const auto run = [&](auto type) {
      chosen_rows<decltype(d)::value, decltype(type)>(*address, table, width, number, chosen, center, out, count,
                                                      directions, steps, each, threads);
    };
    if (dtype == 0) run(Float32());
    if (dtype == 1) run(BFloat16());
    if (dtype == 2) run(Float16());
  });
}

void lightning_evo_sum(int distribution, const Address* address, const float* table, int64_t first, int64_t count,
                       const int64_t* directions, const float* weights, int64_t number, float* total, int threads) {
  with_distribution(distribution, [&](auto d) {
    sum<decltype(d)::value>(*address, table, first, count, directions, weights, number, total, threads);
  });
}

void lightning_evo_move(int dtype, const Address* address, int64_t first, int64_t elements, void* center,
                        const float* step, int threads) {
  if (dtype == 0) move<Float32>(*address, first, elements, center, step, threads);
  if (dtype == 1) move<BFloat16>(*address, first, elements, center, step, threads);
  if (dtype == 2) move<Float16>(*address, first, elements, center, step, threads);
}

void lightning_evo_pull(int dtype, const Address* address, int64_t first, int64_t elements, void* center,
                        const float* step, const Pull* with, double* square, int threads) {
  if (dtype == 0) pull<Float32>(*address, first, elements, center, step, *with, square, threads);
  if (dtype == 1) pull<BFloat16>(*address, first, elements, center, step, *with, square, threads);
  if (dtype == 2) pull<Float16>(*address, first, elements, center, step, *with, square, threads);
}

void lightning_evo_update(int distribution, int dtype, const float* table, int64_t number, const Moved* tensors,
                          const int64_t* elements, int64_t count, const int64_t* directions, const float* weights,
                          double* squares, double* away, int threads) {
  with_distribution(distribution, [&](auto d) {
    const auto run = [&](auto type) {
      update<decltype(d)::value, decltype(type)>(table, number, tensors, elements, count, directions, weights, squares,
                                                 away, threads);
    };
    if (dtype == 0) run(Float32());
    if (dtype == 1) run(BFloat16());
    if (dtype == 2) run(Float16());
  });
}

void lightning_evo_low_rank(int dtype, const void* bias, int64_t bias_stride, const void* x, int64_t x_stride,
                            const float* b, const float* a, int64_t members, int64_t rows, int64_t inputs,
                            int64_t outputs, int rank, void* out, int threads) {
  const auto run = [&](auto type) {
    low_rank<decltype(type)>(bias, bias_stride, x, x_stride, b, a, members, rows, inputs, outputs, rank, out, threads);
  };
  if (dtype == 0) run(Float32());
  if (dtype == 1) run(BFloat16());
  if (dtype == 2) run(Float16());
}

}  // extern "C"
