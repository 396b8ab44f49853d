// SPDX-License-Identifier: GPL-2.0-or-later
// What the x86 files of this folder give to engine.c and translate.c.
#ifndef COREMESH_TCG_X86_PLATFORM_H
#define COREMESH_TCG_X86_PLATFORM_H

#include <stdbool.h>
#include <stdint.h>

struct cm_engine;
struct CPUX86State;
struct TCGContext;
struct uc_struct;

// RFLAGS bits that CPUX86State.eflags holds itself; arithmetic flags and DF live in other words of it.
#define CM_SYSTEM_FLAGS ((int)~(CC_O | CC_S | CC_Z | CC_A | CC_P | CC_C | DF_MASK))

void cm_exceptions_attach(struct cm_engine* engine);
void cm_canonical_attach(struct cm_engine* engine);
void cm_code_address_attach(struct cm_engine* engine);
// Puts our instructions before the engine's (translator.h). False: no memory.
bool cm_translator_attach(struct cm_engine* engine);
// Puts our answer to misaligned accesses in place of the engine's (accesses.c).
void cm_accesses_attach(struct cm_engine* engine);
// What differs in the engine from what translator.h declares of it, or NULL.
const char* cm_translator_selfcheck(struct uc_struct* uc);

// Takes the processor's features from the machine's CPUID, so that an instruction that is not announced is
// #UD.
void cm_platform_attach(struct cm_engine* engine);
// What reset leaves in registers that the engine's own reset does not know.
void cm_platform_reset(struct cm_engine* engine);
// What the block that was translated last contains: the passes below look for what concerns them.
enum { CM_CALLS = 1, CM_LOCKS = 2, CM_LOADS_TABLES = 4 };
unsigned cm_block_contents(const struct cm_engine* engine);
// The bits that the guest may set in CR4.
uint64_t cm_settable_cr4(const struct CPUX86State* env);
// In a block between translation and code generation: LGDT and LIDT refuse a base that is not canonical.
void cm_check_table_bases(struct TCGContext* tcg);
// In a block between translation and code generation: helpers that read RFLAGS find what computes them.
void cm_store_condition_codes(struct TCGContext* tcg);
// In a block between translation and code generation: memory operands as wide as the instruction has them.
void cm_narrow_operands(struct TCGContext* tcg);

// SDM vol. 1, 3.3.7.1, with 48 bits of linear address.
static inline bool cm_is_canonical(uint64_t address) {
    int64_t top = (int64_t)address >> 47;
    return top == 0 || top == -1;
}

#endif
