// Rule `paper` of models/decoding/paper.py in one sweep: the three products, the weights and the argmax, without ever
// holding [positions, V].
//
// A panel, a vector of up to 16 positions, goes through three passes over the items, and up to eight panels through the
// first one together, so that a tile of a table, read from memory for one of them, is in the caches for the others:
//   1. product   logits of the three decoders, tile by tile; while a tile is in the first caches, its share of the
//                running maximum, of sum exp(l) and of sum exp(l) l (log-sum-exp and entropy)
//   2. JSD       sum p ln(p / m) + q ln(q / m), which needs the normalisers of pass 1
//   3. argmax    of (1 + alpha) l_T + beta (l_M - l_S), which needs the weights of passes 1 and 2
// Passes 2 and 3 are repeated over the target domain alone where the global argmax fell into it; the normalisers of
// that local step come from pass 1, which keeps its sums per segment: before, inside and after the target domain.
//
// Lanes are positions: an element of a vector register belongs to one position throughout, every sum runs over the
// items in one fixed order, and nothing is ever added across lanes. A position's bits therefore depend neither on its
// neighbours nor on how positions are grouped or shared among threads.
//
// Vectors are those of lanes.hpp.
//
// Layouts: tables [V][D] row-major as they come; hidden states of a panel transposed, [D][lanes]; logits [V][lanes].

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "lanes.hpp"

namespace {

// Items multiplied at once, a register for each: enough to hide a multiply-add's latency, few enough that they, those
// read ahead and the hidden states stay in the first cache.
constexpr int GROUP = 8;
// Items of a tile: 96 rows of a table of width 128 are 48 KiB. A multiple of GROUP.
constexpr int64_t TILE = 96;
// Panels that share one reading of the tables: as many as find room in SCRATCH_BYTES per thread. One alone would wait
// for memory, eight no longer do.
constexpr int64_t FEWEST_PANELS = 2, MOST_PANELS = 8;
constexpr std::size_t SCRATCH_BYTES = 96 << 20;
constexpr int LINE = 16;  // floats of a cache line
// Scratch starts on a huge page, where the system has them.
constexpr std::size_t ALIGNMENT = 1 << 21;
// Stands for "no item yet" as a maximum: far below every logit, yet finite, so that 0 * (NOTHING - l) is 0, not NaN.
constexpr float NOTHING = -1e30f;

typedef Floats StoredFloats __attribute__((may_alias));  // memory that is written as float and read as vectors

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

// e^x for x <= 0; of NaN next to nothing.
inline Floats exponential(Floats x) {
    return exponential_above_lowest(larger(x, all(LOWEST_EXPONENT)));
}

// ln x for normal x > 0 within 2 units in the last place.
inline Floats logarithm(Floats x) {
    const Ints half_root = Ints{} + 0x3f3504f3;  // bits of sqrt(1/2): the mantissa is taken from [sqrt(1/2), sqrt(2))
    const Ints exponent = ((Ints)x - half_root) >> 23;
    const Floats f = (Floats)((Ints)x - (exponent << 23)) - 1.0f;
    const Floats e = __builtin_convertvector(exponent, Floats);
    const Floats square = f * f;
    Floats p = f * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    p = p * f * square + e * -2.12194440e-4f - square * 0.5f;
    return f + p + e * 0.693359375f;
}

// Sums over a set of items relative to their largest logit, per lane.
struct Sums {
    Floats largest = all(NOTHING);
    Floats mass = Floats{};    // sum exp(l - largest)
    Floats moment = Floats{};  // sum exp(l - largest) (l - largest); the target expert's only

    void rebase(Floats next) {
        const Floats shift = largest - next, scale = exponential(shift);
        moment = scale * (moment + shift * mass);
        mass = scale * mass;
        largest = next;
    }

    void add(Sums other) {
        const Floats next = larger(largest, other.largest);
        rebase(next);
        other.rebase(next);
        mass += other.mass;
        moment += other.moment;
    }
};

struct Best {
    Floats score = all(-INFINITY);
    Floats second = all(-INFINITY);
    Ints item = Ints{};
};

// Positions of one source domain after those of another: group g ends before position group_stops[g], and its source
// expert's table is source_tables[g].
struct Call {
    const float* hidden[3];  // of target expert, base and source experts, [N][D] each
    const float *target_table, *base_table;  // [V][D] each
    const float* const* source_tables;
    const int64_t* group_stops;
    int64_t num_groups, width, num_tokens, first, last;
    int64_t* tokens;
    float *alpha, *beta, *score, *margin;
};

// Positions start .. start + rows - 1, all of one group.
struct Slot {
    int64_t start, rows, group;
};

struct Span {
    int64_t start, stop;  // items start .. stop - 1
    int64_t size() const { return stop - start; }
};

// A vector of positions.
class Panel {
  public:
    // *scratch*: room for scratch_floats(call).
    Panel(const Call& call, float* scratch) : call_(call) {
        for (int part = 0; part < 3; ++part) {
            logits_[part] = reinterpret_cast<StoredFloats*>(scratch + part * call.num_tokens * LANES);
            hidden_[part] = scratch + (3 * call.num_tokens + part * call.width) * LANES;
        }
    }

    static int64_t scratch_floats(const Call& call) { return 3 * (call.num_tokens + call.width) * LANES; }

    void take(Slot slot) {
        slot_ = slot;
        for (int part = 0; part < 3; ++part)
            for (int64_t k = 0; k < call_.width; ++k)
                for (int64_t row = 0; row < LANES; ++row)
                    hidden_[part][k * LANES + row] =
                        row < slot.rows ? call_.hidden[part][(slot.start + row) * call_.width + k] : 0.0f;
        for (auto& segment : sums_) std::fill(segment, segment + 3, Sums{});
    }

    // Pass 1 over one tile of one segment, for one decoder: 0 target expert, 1 base, 2 source expert.
    void project(int segment, int part, Span items) {
        const float* tables[3] = {call_.target_table, call_.base_table, call_.source_tables[slot_.group]};
        const float* table = tables[part];
        int64_t item = items.start;
        for (; item + GROUP <= items.stop; item += GROUP) products<GROUP>(part, table, item);
        for (; item < items.stop; ++item) products<1>(part, table, item);
        accumulate(part, items, sums_[segment][part]);
    }

    // Passes 2 and 3, once pass 1 has seen every item.
    void finish() const {
        const Span domain{call_.first, call_.last + 1};
        Sums whole[3];
        for (int part = 0; part < 3; ++part)
            for (const auto& segment : sums_) whole[part].add(segment[part]);
        bool any = false;
        const Step global = step({1, call_.num_tokens}, whole);
        for (int64_t row = 0; row < slot_.rows; ++row) {
            const int64_t item = global.best.item[row];
            const bool convertible = domain.start <= item && item < domain.stop;
            any |= convertible;
            write(row, global, convertible ? item : 0);
        }
        if (!any) return;
        const Step local = step(domain, sums_[1]);
        for (int64_t row = 0; row < slot_.rows; ++row)
            if (call_.tokens[slot_.start + row]) write(row, local, local.best.item[row]);
    }

  private:
    struct Step {
        Floats alpha, beta;
        Best best;
    };

    // COUNT items x LANES positions, each element one chain of multiply-adds over the width.
    template <int COUNT>
    void products(int part, const float* table, int64_t item) {
        const int64_t width = call_.width;
        const float* rows = table + item * width;
        const StoredFloats* hidden = reinterpret_cast<const StoredFloats*>(hidden_[part]);
        Floats sum[COUNT] = {};
        for (int64_t k = 0; k < width; ++k) {
            const Floats states = hidden[k];
            // The next COUNT items, as many bytes a turn: reading COUNT rows abreast defeats the processor's own guess.
            for (int ahead = 0; ahead < COUNT; ahead += LINE) __builtin_prefetch(rows + (width + k) * COUNT + ahead);
            for (int i = 0; i < COUNT; ++i) sum[i] += states * rows[i * width + k];
        }
        for (int i = 0; i < COUNT; ++i) logits_[part][item + i] = sum[i];
    }

    void accumulate(int part, Span items, Sums& sums) {
        Floats largest = sums.largest;
        for (int64_t item = items.start; item < items.stop; ++item) largest = larger(largest, logits_[part][item]);
        sums.rebase(largest);
        Floats mass = Floats{}, moment = Floats{};
        if (part == 0) {
            for (int64_t item = items.start; item < items.stop; ++item) {
                const Floats below = logits_[part][item] - largest, weight = exponential(below);
                mass += weight;
                moment += weight * below;
            }
        } else {
            for (int64_t item = items.start; item < items.stop; ++item)
                mass += exponential(logits_[part][item] - largest);
        }
        sums.mass += mass;
        sums.moment += moment;
    }

    // Passes 2 and 3 over one candidate set, given its sums.
    Step step(Span items, const Sums (&sums)[3]) const {
        Step step;
        step.alpha = confidence(items, sums[0]);
        step.beta = agreement(items, sums[1], sums[2]);
        step.best = search(items, step.alpha, step.beta);
        return step;
    }

    // alpha = 1 - H / ln X with H = ln Z - (sum e^l l) / Z, both relative to the largest logit.
    static Floats confidence(Span items, const Sums& sums) {
        if (items.size() == 1) return all(1.0f);
        Floats alpha;
        for (int lane = 0; lane < LANES; ++lane) {
            const double mass = sums.mass[lane];
            const double entropy = std::log(mass) - sums.moment[lane] / mass;
            alpha[lane] = static_cast<float>(clamped(1.0 - entropy / std::log(static_cast<double>(items.size()))));
        }
        return alpha;
    }

    // beta = 1 - JSD / ln 2, JSD = sum (p ln(p / m) + q ln(q / m)) / 2: no difference of large sums.
    Floats agreement(Span items, const Sums& base, const Sums& source) const {
        Floats log_base, log_source;
        for (int lane = 0; lane < LANES; ++lane) {
            log_base[lane] = std::log(base.mass[lane]);
            log_source[lane] = std::log(source.mass[lane]);
        }
        Floats sum = Floats{};
        for (int64_t tile = items.start; tile < items.stop; tile += TILE) {
            Floats part = Floats{};
            for (int64_t item = tile; item < std::min(tile + TILE, items.stop); ++item) {
                const Floats log_p = (logits_[1][item] - base.largest) - log_base;
                const Floats log_q = (logits_[2][item] - source.largest) - log_source;
                const Floats p = exponential(log_p), q = exponential(log_q);
                // Where both underflow, p and q are 0 and the logarithm need only be finite.
                const Floats log_mean = logarithm(larger((p + q) * 0.5f, all(FLT_MIN)));
                part += p * (log_p - log_mean) + q * (log_q - log_mean);
            }
            sum += part;
        }
        Floats beta;
        for (int lane = 0; lane < LANES; ++lane)
            beta[lane] = static_cast<float>(clamped(1.0 - 0.5 * sum[lane] / std::log(2.0)));
        return beta;
    }

    // Pass 3: best and second-best score; among equals the lowest item, for only a larger score replaces the best.
    Best search(Span items, Floats alpha, Floats beta) const {
        const Floats target_weight = alpha + 1.0f;
        Best best;
        for (int64_t item = items.start; item < items.stop; ++item) {
            const Floats score = target_weight * logits_[0][item] + beta * (logits_[1][item] - logits_[2][item]);
            best.second = larger(best.second, smaller(score, best.score));
            best.item = score > best.score ? Ints{} + static_cast<int32_t>(item) : best.item;
            best.score = larger(best.score, score);
        }
        return best;
    }

    void write(int64_t row, const Step& step, int64_t token) const {
        const int64_t position = slot_.start + row;
        call_.tokens[position] = token;
        call_.alpha[position] = step.alpha[row];
        call_.beta[position] = step.beta[row];
        call_.score[position] = step.best.score[row];
        call_.margin[position] = step.best.score[row] - step.best.second[row];
    }

    static double clamped(double weight) { return std::min(1.0, std::max(0.0, weight)); }

    const Call& call_;
    Slot slot_{};
    StoredFloats* logits_[3];
    float* hidden_[3];
    Sums sums_[3][3];  // segment, decoder
};

struct Piece {
    float* floats = nullptr;
    std::size_t bytes = 0;
};

constexpr int MOST_KEPT = 64;
std::mutex kept_lock;
Piece kept[MOST_KEPT];  // and num_kept, guarded by kept_lock
int num_kept = 0;

// Memory for one thread, kept from call to call: the system clears fresh pages, which took up to a quarter of a small
// call. As many pieces are kept as were in use at once, none of more than SCRATCH_BYTES: two panels take more beyond
// 262,144 items, and there clearing is little beside the work.
class Scratch {
  public:
    explicit Scratch(std::size_t bytes) {
        {
            const std::lock_guard<std::mutex> guard(kept_lock);
            if (num_kept > 0) piece_ = kept[--num_kept];
        }
        if (piece_.bytes >= bytes) return;
        std::free(piece_.floats);
        piece_.bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        piece_.floats = static_cast<float*>(std::aligned_alloc(ALIGNMENT, piece_.bytes));
        if (!piece_.floats) piece_.bytes = 0;
#if defined(__linux__)
        // 8 page faults instead of 3,700 for 15 MB
        if (piece_.floats) madvise(piece_.floats, piece_.bytes, MADV_HUGEPAGE);
#endif
    }

    ~Scratch() {
        if (piece_.bytes > SCRATCH_BYTES) {
            std::free(piece_.floats);
        } else if (piece_.floats) {
            const std::lock_guard<std::mutex> guard(kept_lock);
            if (num_kept < MOST_KEPT) {
                kept[num_kept++] = piece_;
            } else {
                std::free(piece_.floats);
            }
        }
    }

    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    // Null where there was no memory.
    float* floats() const { return piece_.floats; }

  private:
    Piece piece_;
};

// One thread's share of the work: a few panels at a time, so that a tile of the tables, once in the caches, serves all.
void decide_share(const Call& call, const std::vector<Slot>& slots, std::vector<Panel>& panels,
                  std::atomic<int64_t>& next) {
    const int64_t num_slots = slots.size(), num_panels = panels.size();
    const Span segments[3] = {{1, call.first}, {call.first, call.last + 1}, {call.last + 1, call.num_tokens}};
    for (int64_t first; (first = next.fetch_add(num_panels)) < num_slots;) {
        const int64_t used = std::min(num_panels, num_slots - first);
        for (int64_t i = 0; i < used; ++i) panels[i].take(slots[first + i]);
        for (int segment = 0; segment < 3; ++segment)
            for (int64_t tile = segments[segment].start; tile < segments[segment].stop; tile += TILE) {
                const Span items{tile, std::min(tile + TILE, segments[segment].stop)};
                for (int part = 0; part < 3; ++part)
                    for (int64_t i = 0; i < used; ++i) panels[i].project(segment, part, items);
            }
        for (int64_t i = 0; i < used; ++i) panels[i].finish();
    }
}

// Positions in slots of up to LANES, none of two groups.
std::vector<Slot> slots_of(const Call& call) {
    std::vector<Slot> slots;
    int64_t start = 0;
    for (int64_t group = 0; group < call.num_groups; ++group)
        for (const int64_t stop = call.group_stops[group]; start < stop;) {
            slots.push_back({start, std::min<int64_t>(LANES, stop - start), group});
            start += slots.back().rows;
        }
    return slots;
}

bool decide_all(const Call& call, const std::vector<Slot>& slots, int64_t num_threads) {
    const int64_t num_slots = slots.size();
    const std::size_t panel_bytes = Panel::scratch_floats(call) * sizeof(float);
    num_threads = std::max<int64_t>(1, std::min(num_threads, num_slots));
    // As many panels as memory permits, then no more than share the work evenly.
    const int64_t most = std::clamp<int64_t>(SCRATCH_BYTES / panel_bytes, FEWEST_PANELS, MOST_PANELS);
    const int64_t turns = std::max<int64_t>(1, (num_slots + num_threads * most - 1) / (num_threads * most));
    const int64_t num_panels = std::max<int64_t>(1, (num_slots + num_threads * turns - 1) / (num_threads * turns));
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        std::vector<Panel> panels;
        const Scratch scratch(num_panels * panel_bytes);
        try {
            panels.reserve(num_panels);
        } catch (const std::bad_alloc&) {
            return;
        }
        if (!scratch.floats()) return;
        for (int64_t i = 0; i < num_panels; ++i)
            panels.emplace_back(call, scratch.floats() + i * Panel::scratch_floats(call));
        decide_share(call, slots, panels, next);
    };
    std::vector<std::thread> threads;
    try {
        for (int64_t i = 1; i < num_threads; ++i) threads.emplace_back(work);
    } catch (...) {
        // Fewer threads than asked for: those that started do all the work.
    }
    work();
    for (std::thread& thread : threads) thread.join();
    // A thread without memory leaves its share to the others; without any, nothing was begun.
    return next.load() >= num_slots;
}

}  // namespace

// Decides positions on num_threads threads; arguments as models.decoding.contrastive.decide takes them, arrays contiguous.
// Returns 0, or 1 when there was no memory.
extern "C" int taesar_decide_paper(const float* target_hidden, const float* base_hidden, const float* source_hidden,
                                   const float* target_table, const float* base_table,
                                   const float* const* source_tables, const int64_t* group_stops, int64_t num_groups,
                                   int64_t width, int64_t num_tokens, int64_t first, int64_t last, int64_t num_threads,
                                   int64_t* tokens, float* alpha, float* beta, float* score, float* margin) {
    const Call call{{target_hidden, base_hidden, source_hidden},
                    target_table,
                    base_table,
                    source_tables,
                    group_stops,
                    num_groups,
                    width,
                    num_tokens,
                    first,
                    last,
                    tokens,
                    alpha,
                    beta,
                    score,
                    margin};
    try {
        return decide_all(call, slots_of(call), num_threads) ? 0 : 1;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
