// Logits of a tile -> softmax weights relative to the largest logit so far, in place, in two passes over a row that is
// in the first cache: the largest logit; then exponential, sum and storing.
//
// One row at a time, lanes are its columns. The sum runs over lanes and then across them in one fixed order, so a row's
// bits depend neither on other rows nor on how rows are shared among threads. NaN stays NaN.
//
// Vectors are those of lanes.hpp.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "lanes.hpp"

namespace {

// Fewer rows than this are done before a thread has started.
constexpr int64_t ROWS_PER_THREAD = 64;

typedef uint32_t Bits __attribute__((vector_size(LANES * sizeof(float))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

// e^x for x <= 0; NaN of NaN.
inline Floats exponential(Floats x) {
    return exponential_above_lowest(x < LOWEST_EXPONENT ? all(LOWEST_EXPONENT) : x);
}

inline float exponential(float x) { return exponential(all(x))[0]; }

inline Floats load(const float* from) {
    Floats loaded;
    std::memcpy(&loaded, from, sizeof loaded);
    return loaded;
}

inline void store(Floats value, float* to) { std::memcpy(to, &value, sizeof value); }

// bfloat16 is the upper half of a float; storing rounds to the nearest, ties to even.
inline Floats load(const uint16_t* from) {
    Halves loaded;
    std::memcpy(&loaded, from, sizeof loaded);
    return (Floats)(__builtin_convertvector(loaded, Bits) << 16);
}

inline void store(Floats value, uint16_t* to) {
    const Bits bits = (Bits)value;
    const Halves rounded = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
    std::memcpy(to, &rounded, sizeof rounded);
}

// The last columns of a row, fewer than LANES, with *fill* beyond them.
template <typename Element>
inline void with_tail(Element* tail, int64_t size, float fill, Floats& values) {
    Element padded[LANES];
    store(all(fill), padded);
    std::copy(tail, tail + size, padded);
    values = load(padded);
}

template <typename Element>
void weigh_row(Element* row, int64_t columns, float& largest, float& mass) {
    const int64_t whole = columns - columns % LANES, rest = columns - whole;
    Floats last;
    with_tail(row + whole, rest, -INFINITY, last);
    Floats most = last;
    for (int64_t column = 0; column < whole; column += LANES) {
        const Floats logits = load(row + column);
        most = logits > most ? logits : most;
    }
    float next = largest;
    for (int lane = 0; lane < LANES; ++lane) next = std::max(next, most[lane]);
    Floats sums = Floats{};
    for (int64_t column = 0; column < whole; column += LANES) {
        const Floats weights = exponential(load(row + column) - next);
        sums += weights;
        store(weights, row + column);
    }
    float sum = mass * exponential(largest - next);
    if (rest > 0) {
        const Floats weights = exponential(last - next);
        Element kept[LANES];
        store(weights, kept);
        std::copy(kept, kept + rest, row + whole);
        for (int64_t lane = 0; lane < rest; ++lane) sum += weights[lane];
    }
    for (int lane = 0; lane < LANES; ++lane) sum += sums[lane];
    largest = next;
    mass = sum;
}

template <typename Element>
void weigh(Element* logits, int64_t rows, int64_t columns, float* largest, float* mass, int64_t num_threads) {
    const auto work = [=](int64_t start, int64_t stop) {
        for (int64_t row = start; row < stop; ++row)
            weigh_row(logits + row * columns, columns, largest[row], mass[row]);
    };
    const int64_t num_parts = std::max<int64_t>(1, std::min(num_threads, rows / ROWS_PER_THREAD));
    std::vector<std::thread> threads;
    for (int64_t part = 1; part < num_parts; ++part)
        threads.emplace_back(work, rows * part / num_parts, rows * (part + 1) / num_parts);
    work(0, rows / num_parts);
    for (auto& thread : threads) thread.join();
}

}  // namespace

// logits [rows][columns] become weights; largest and mass [rows] hold what earlier tiles left and take this one in.
extern "C" void taesar_weigh_float32(
    float* logits, int64_t rows, int64_t columns, float* largest, float* mass, int64_t num_threads) {
    weigh(logits, rows, columns, largest, mass, num_threads);
}

extern "C" void taesar_weigh_bfloat16(
    uint16_t* logits, int64_t rows, int64_t columns, float* largest, float* mass, int64_t num_threads) {
    weigh(logits, rows, columns, largest, mass, num_threads);
}
