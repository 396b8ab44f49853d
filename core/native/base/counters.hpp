// SPDX-License-Identifier: GPL-2.0-or-later
// Counters that are declared once: from one list come the struct, its snapshot, the names that Python sees,
// and the table of COUNTERS.md.
//
// A list is a macro that takes a macro X, with one row X(name, unit, what is counted) for each counter. Of a
// list GATE_COUNTERS,
//
//   struct GateCounters { COREMESH_COUNTER_WORDS(GATE_COUNTERS) };   has plain words, for use under a lock,
//   struct GateAtomics { COREMESH_COUNTER_ATOMICS(GATE_COUNTERS) };  relaxed atomics, for any thread;
//   COREMESH_VISIT_COUNTERS(GateCounters, GATE_COUNTERS)             makes each_counter(counters, visit), and
//   COREMESH_READ_COUNTERS(GateCounters, GateAtomics, GATE_COUNTERS) read_counters(atomics);
//   COREMESH_SHARED_COUNTERS(Gate, GATE_COUNTERS)                    makes all four.
#pragma once

#include <atomic>
#include <cstdint>

namespace coremesh {

/// What a person is told of one number.
struct CounterFacts {
    const char* name;
    const char* unit;
    const char* text;
};

}  // namespace coremesh

#define COREMESH_COUNTER_WORD(name, unit, text) uint64_t name = 0;
#define COREMESH_COUNTER_ATOMIC(name, unit, text) std::atomic<uint64_t> name{0};
#define COREMESH_COUNTER_VISIT(name, unit, text) \
    visit(::coremesh::CounterFacts{#name, unit, text}, counters.name);
#define COREMESH_COUNTER_READ(name, unit, text) now.name = counters.name.load(std::memory_order_relaxed);

#define COREMESH_COUNTER_WORDS(LIST) LIST(COREMESH_COUNTER_WORD)
#define COREMESH_COUNTER_ATOMICS(LIST) LIST(COREMESH_COUNTER_ATOMIC)

/// visit(CounterFacts, value) for each counter, in the order of the list.
#define COREMESH_VISIT_COUNTERS(Words, LIST)                  \
    template <typename Visit>                                 \
    void each_counter(const Words& counters, Visit&& visit) { \
        LIST(COREMESH_COUNTER_VISIT)                          \
    }

/// A snapshot: each number is exact, they are not of one moment.
#define COREMESH_READ_COUNTERS(Words, Atomics, LIST)               \
    inline Words read_counters(const Atomics& counters) noexcept { \
        Words now;                                                 \
        LIST(COREMESH_COUNTER_READ)                                \
        return now;                                                \
    }

/// What several threads count, and its snapshot: structs NameAtomics and NameCounters.
#define COREMESH_SHARED_COUNTERS(Name, LIST)      \
    struct Name##Counters {                       \
        COREMESH_COUNTER_WORDS(LIST)              \
    };                                            \
    struct Name##Atomics {                        \
        COREMESH_COUNTER_ATOMICS(LIST)            \
    };                                            \
    COREMESH_VISIT_COUNTERS(Name##Counters, LIST) \
    COREMESH_READ_COUNTERS(Name##Counters, Name##Atomics, LIST)
