// SPDX-License-Identifier: GPL-2.0-or-later
// IN and OUT: permission, then the machine's bus.
#include "tcg/x86/engine.h"
#include "translator.h"

// SDM vol. 1 19.5.2: above IOPL, and always in virtual-8086 mode, each port needs its bit clear in the TSS.
static void check_permission(CPUX86State* env, uint32_t port, unsigned size, uintptr_t ra) {
    if (!(env->cr[0] & CR0_PE_MASK)) return;
    unsigned cpl = env->hflags & HF_CPL_MASK, iopl = env->eflags >> IOPL_SHIFT & 3;
    if (!(env->eflags & VM_MASK) && cpl <= iopl) return;
    const unsigned available_32bit_tss = 9, busy = 2, type_mask = 0xf, map_base_at = 0x66;
    bool has_map = (env->tr.flags & DESC_P_MASK) &&
                   ((env->tr.flags >> DESC_TYPE_SHIFT & type_mask & ~busy) == available_32bit_tss) &&
                   env->tr.limit >= map_base_at + 1;
    if (has_map) {
        uint32_t byte =
            cpu_lduw_mmuidx_ra(env, env->tr.base + map_base_at, cpu_mmu_index_kernel(env), ra) + port / 8;
        // Two bytes are always read, so that a range over a byte's end needs no second access.
        if (byte + 1 <= env->tr.limit) {
            uint32_t bits =
                cpu_lduw_mmuidx_ra(env, env->tr.base + byte, cpu_mmu_index_kernel(env), ra) >> (port & 7);
            if ((bits & ((1u << size) - 1)) == 0) return;
        }
    }
    raise_exception_err_ra(env, EXCP0D_GPF, 0, ra);
}

void cm_check_string_port(CPUX86State* env, target_ulong address, union cm_operands in) {
    (void)address;
    const unsigned size = !(in.opcode & 1) ? 1 : in.operand_bytes == 2 ? 2 : 4;
    check_permission(env, (uint16_t)env->regs[R_EDX], size, GETPC());
}

static uint32_t port_read(struct uc_struct* uc, uint32_t port, unsigned size, uintptr_t ra) {
    struct cm_engine* engine = cm_engine_of(uc);
    check_permission(engine->env, port & 0xffff, size, ra);
    return engine->core_ops->port_read(engine->core, port & 0xffff, size);
}

static void port_write(struct uc_struct* uc, uint32_t port, unsigned size, uint32_t value, uintptr_t ra) {
    struct cm_engine* engine = cm_engine_of(uc);
    check_permission(engine->env, port & 0xffff, size, ra);
    engine->core_ops->port_write(engine->core, port & 0xffff, size, value);
}

#define PORT_ACCESS(letter, T, size)                                                             \
    T CM_WRAP(cpu_in##letter)(struct uc_struct * uc, uint32_t port, uintptr_t ra) {              \
        CM_HIT(cpu_in##letter);                                                                  \
        return (T)port_read(uc, port, size, ra);                                                 \
    }                                                                                            \
    void CM_WRAP(cpu_out##letter)(struct uc_struct * uc, uint32_t port, T value, uintptr_t ra) { \
        CM_HIT(cpu_out##letter);                                                                 \
        port_write(uc, port, size, value, ra);                                                   \
    }

PORT_ACCESS(b, uint8_t, 1)
PORT_ACCESS(w, uint16_t, 2)
PORT_ACCESS(l, uint32_t, 4)
