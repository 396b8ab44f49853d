// SPDX-License-Identifier: GPL-2.0-or-later
// One translator: everything of the rest of the machine that touches Unicorn goes through this header.
//
// The functions are compiled once for each target of the engine, and are local to it. Code outside of the
// target calls them through the target's table, struct cm_engine_functions, at the end of this file.
//
// An engine belongs to one vCPU and is used by that vCPU's thread alone, except for the two functions marked
// «any thread». It owns its code cache and its software TLB; guest RAM is the machine's and is mapped in.
// Functions return 0 or a negative CM_E* and fill `error` where they take one.
#ifndef COREMESH_TCG_ENGINE_H
#define COREMESH_TCG_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/state_entry.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cm_engine cm_engine;

// Why the engine came back from cm_engine_run().
enum cm_exit {
    CM_EXIT_LEFT = 0,      // the service callback asked to leave
    CM_EXIT_HALT = 1,      // HLT (or MWAIT): the vCPU sleeps until it has work
    CM_EXIT_SHUTDOWN = 2,  // triple fault
    CM_EXIT_ABORT = 3,     // a state that the engine cannot go on from: cm_engine_abort_text
};

// What the service callback wants the engine to do; bits.
enum cm_service {
    CM_SERVICE_LEAVE = 1,      // return from cm_engine_run() with CM_EXIT_LEFT
    CM_SERVICE_DROP_LAST = 2,  // translated code was invalidated: do not chain from the last block
    CM_SERVICE_PENDING = 4,    // an interrupt or NMI waits, deliverable or not
};

// A locked operation on memory. Those with a result give the bytes that were there before.
enum cm_operation {
    CM_OPERATION_COMPARE_SWAP,
    CM_OPERATION_EXCHANGE,
    CM_OPERATION_ADD,
    CM_OPERATION_AND,
    CM_OPERATION_OR,
    CM_OPERATION_XOR,
};

// What a vCPU is for its engine, whatever the architecture. All are called on the vCPU's thread. `opaque` is
// the first argument of each.
struct cm_vcpu_ops {
    // At a block head after a kick, and whenever control is in the main loop: drain the mailbox, and say
    // whether an interrupt waits.
    unsigned (*service)(void* opaque);
    uint64_t (*mmio_read)(void* opaque, uint64_t gpa, unsigned size);
    void (*mmio_write)(void* opaque, uint64_t gpa, unsigned size, uint64_t value);
    // Called before the bytes of RAM page `ram_page` (number of the 4 KiB page in the RAM file) are read for
    // translation. True when the page mixes code with hot data, so that its blocks must check themselves.
    bool (*begin_translation)(void* opaque, uint64_t ram_page);
    void (*pause)(void* opaque);
    // Stop every other vCPU around a locked access that crosses a page (SDM vol. 3A 9.1.2.2: bus lock). The
    // two RAM pages stay with this host until the end; UINT64_MAX for what is no RAM.
    void (*exclusive_begin)(void* opaque, uint64_t first_page, uint64_t second_page);
    void (*exclusive_end)(void* opaque);
    // Only where RAM is shared with other hosts, and this one may not write the page now: a locked operation
    // within one page, of `size` bytes at `ram_offset`. True: it was executed where the page is, and `*old`
    // is what it found. False: do it here. All values are little-endian and 16 bytes wide.
    bool (*transact)(void* opaque, enum cm_operation operation, uint64_t ram_offset, unsigned size,
                     const void* operand, const void* expected, void* old);
};

// Bytes [gpa, gpa + bytes) of guest-physical memory are at `offset` of the RAM file. Multiples of 4096.
struct cm_ram_region {
    uint64_t gpa, bytes, offset;
    bool rom;  // executed and read like RAM; what the guest writes is dropped
    // What the guest writes goes to `mmio_write` instead: it is stored to other bytes than are read.
    bool stores_elsewhere;
};

// The regions, at most CM_RAM_REGIONS, share no address and cover the file from its beginning on once. Behind
// that may be bytes that cm_engine_steer can show.
struct cm_ram_layout {
    uint8_t* guest_view;  // base of the mapping that engines read and write
    uint64_t size;        // bytes of the file
    const struct cm_ram_region* regions;
    unsigned count;
    // Where RAM is shared with other hosts: a byte for each page of the file, which other threads change.
    // Locked operations on a page without CM_PAGE_WRITABLE ask `transact` first. NULL: RAM of this host
    // alone.
    const uint8_t* access;
};
enum { CM_RAM_REGIONS = 64, CM_PAGE_WRITABLE = 2 };

// Counted by the engine's thread without locks; read by others at any time (a torn read is not possible).
// A row is a name, a unit and what is counted (base/counters.hpp).
#define CM_ENGINE_COUNTERS(X)                                                                   \
    X(translations, "blocks", "blocks of guest code translated")                                \
    X(exits_exception, "times", "exceptions delivered to the guest")                            \
    X(interrupts, "times", "interrupts delivered to the guest")                                 \
    X(checked_block_misses, "times", "blocks on a mixed page found changed when they were run") \
    X(self_restarts, "times", "stores into the page of the running block that ended the block") \
    X(pauses, "times", "PAUSE instructions")                                                    \
    X(atomics_1, "operations", "locked operations on 1 byte")                                   \
    X(atomics_2, "operations", "locked operations on 2 bytes")                                  \
    X(atomics_4, "operations", "locked operations on 4 bytes")                                  \
    X(atomics_8, "operations", "locked operations on 8 bytes")                                  \
    X(atomics_16, "operations", "locked operations on 16 bytes")                                \
    X(atomics_misaligned, "operations", "of these, misaligned ones")                            \
    X(atomics_crossing, "operations", "of these, over two pages: all other vCPUs were stopped") \
    X(atomics_long_way, "operations",                                                           \
      "of these, not done at once: CMPXCHG8B and 16B, a page that this host may not write or "  \
      "that was not in the TLB, two pages, devices")

struct cm_engine_counters {
#define CM_ENGINE_COUNTER(name, unit, text) uint64_t name;
    CM_ENGINE_COUNTERS(CM_ENGINE_COUNTER)
#undef CM_ENGINE_COUNTER
};

// Checks the layout of the linked library against the headers this was built with. NULL, or what differs.
const char* cm_engine_selfcheck(void);

// `core_ops`, with `core` as first argument, is what the guest's architecture asks for beside `ops`: its type
// is in the engine.h of the target's folder.
cm_engine* cm_engine_open(const struct cm_vcpu_ops* ops, void* opaque, const void* core_ops, void* core,
                          const struct cm_ram_layout* ram, unsigned code_buffer_bytes, char* error,
                          size_t error_size);
void cm_engine_close(cm_engine*);

// Runs guest code until one of cm_exit.
enum cm_exit cm_engine_run(cm_engine*);
const char* cm_engine_abort_text(const cm_engine*);

// Any thread. Makes the engine call `service` at its next block head. Async-signal-safe; a few stores.
void cm_engine_kick(cm_engine*);
// Any thread (counters are single words).
const struct cm_engine_counters* cm_engine_counters_of(const cm_engine*);
size_t cm_engine_code_bytes(const cm_engine*);

// Drops the blocks translated from a page of RAM. On the engine's thread, outside translated code.
void cm_engine_invalidate_page(cm_engine*, uint64_t ram_page);
// Drops all translated code.
void cm_engine_drop_all_code(cm_engine*);
// From now on the addresses of each of `regions` lead where it says; the engine was opened with regions of
// the same addresses. On the engine's thread, also within an access to a device: blocks are found by their
// page in the file, so that the next block head, if it is looked up anew, is the right one.
void cm_engine_steer(cm_engine*, const struct cm_ram_region* regions, unsigned count);
// Once, first thing on the thread that will run the engine.
void cm_engine_enter_thread(cm_engine*);
// In a signal handler on that thread that will be left by a jump: the kernel gave it floating-point controls
// of its own, and the guest's come back.
void cm_engine_interrupted(void* ucontext);
// On that thread, before another one may look: what the thread's own registers hold of the guest (sticky
// flags of MXCSR) joins the engine's state.
void cm_engine_sync_thread(cm_engine*);

// Called in the signal handler of a write fault taken by the engine's own thread, at host instruction
// `host_pc`, after the page became writable: when the block that runs was translated from the page, it must
// not go on, since it may be stale now or with the next store (SDM vol. 3A 13.1.3; own_code.c). Then it does
// not return, or changes where `ucontext`, which the handler was given, goes on; otherwise it does nothing.
void cm_engine_self_write(cm_engine*, uintptr_t host_pc, uint64_t ram_offset, void* ucontext);

// The guest-virtual address of the instruction under way, for people: of an access that faulted at host
// instruction `host_pc`, or, with 0, of the locked operation that asks `transact` or has just done so. 0: not
// known. Called by the engine's own thread, also in the signal handler of such a fault.
uint64_t cm_engine_guest_pc(const cm_engine*, uintptr_t host_pc);
// Whether the host instruction is one of a locked operation of the guest. Any thread, async-signal-safe.
bool cm_engine_is_locked_operation(uintptr_t host_pc);

// Leaves the instruction under way without finishing it, for a machine that stops while an access of it waits
// for another host: from a callback, or from the signal handler of a fault taken by the engine's own thread.
// The engine calls `service` next. Does not return. Only to be followed by the end of the run: registers that
// the instruction had changed already stay changed.
void cm_engine_abandon(cm_engine*);

// ---- The whole architectural state, to be kept and taken up elsewhere (x86/saved_state.c). While the vCPU's
// thread waits at the gate or was not started; never the engine's own blob, which holds host pointers (U15).

// What the state consists of, in the order of its words; NULL behind the last.
const struct cm_state_entry* cm_engine_state_entry(size_t index);
// `words` has room for all of them.
void cm_engine_save(const cm_engine*, uint64_t* words);
// For an engine that has run nothing since it was opened. NULL, or the name of the entry that holds what no
// processor holds; nothing was changed then.
const char* cm_engine_load(cm_engine*, const uint64_t* words);

// Each member of the engine's CPU state, and what becomes of it when the state is saved and loaded: for a
// test that finds what was forgotten.
enum cm_member_role {
    CM_MEMBER_SAVED,    // the same bytes after a load
    CM_MEMBER_FIXED,    // the same in each engine of a machine, always
    CM_MEMBER_SCRATCH,  // without meaning between two instructions, or another form of what is saved
};
struct cm_state_member {
    const char* name;
    size_t offset, size;
    enum cm_member_role role;
};
const struct cm_state_member* cm_engine_state_members(size_t* members, size_t* size);
const uint8_t* cm_engine_state_image(const cm_engine*);

// Around code of the host's own on a vCPU's thread, where the floating-point controls and flags are the
// guest's: default ones until cm_engine_return_floats() of what this returned.
uint32_t cm_engine_leave_floats(void);
void cm_engine_return_floats(uint32_t saved);

struct cm_wrap_hit;
// Which replaced functions of the engine have run (wraps.h).
const struct cm_wrap_hit* cm_engine_wrap_hits(size_t* count);

// ---- A target's table. One name of the list is one function above: `open` is cm_engine_open.
#define CM_ENGINE_FUNCTIONS(X) \
    X(selfcheck)               \
    X(open)                    \
    X(close)                   \
    X(run)                     \
    X(abort_text)              \
    X(kick)                    \
    X(counters_of)             \
    X(code_bytes)              \
    X(invalidate_page)         \
    X(drop_all_code)           \
    X(steer)                   \
    X(enter_thread)            \
    X(interrupted)             \
    X(sync_thread)             \
    X(self_write)              \
    X(guest_pc)                \
    X(is_locked_operation)     \
    X(abandon)                 \
    X(state_entry)             \
    X(save)                    \
    X(load)                    \
    X(state_members)           \
    X(state_image)             \
    X(leave_floats)            \
    X(return_floats)           \
    X(wrap_hits)

// The member of a table, and its value, for a list such as the one above.
#define CM_ENGINE_FUNCTION(name) __typeof__(&cm_engine_##name) name;
#define CM_ENGINE_FUNCTION_VALUE(name) .name = cm_engine_##name,

struct cm_engine_functions {
    CM_ENGINE_FUNCTIONS(CM_ENGINE_FUNCTION)
};

#ifdef __cplusplus
}
#endif

#endif
