// SPDX-License-Identifier: GPL-2.0-or-later
// Guest SSE on host SSE: what a vCPU thread owes to the guest's MXCSR.
//
// While a vCPU runs translated code under the default controls (all exceptions masked, round to nearest, no
// FZ, no DAZ), each SSE instruction runs as the same instruction of the host, and the sticky flags (SDM vol.
// 1, 10.2.3) gather in the MXCSR of the vCPU's own thread. The guest's MXCSR is then
//
//     env->mxcsr | (flags of the thread's MXCSR)
//
// and the two are merged where the guest can look: STMXCSR, FXSAVE, XSAVE. Under any other controls an
// instruction takes a slower path, whose flags go to env->mxcsr at once; the thread's own controls are always
// the default ones.
//
// So arithmetic on doubles that is not the guest's, done on a vCPU thread (a device model in Python, libm),
// must stand between cm_float_leave() and cm_float_return(), or its flags become the guest's. All functions
// are called on the vCPU's own thread. On hosts that are not x86-64 the engine's own helpers are kept, and
// these do nothing.
#ifndef COREMESH_TCG_X86_FLOAT_H
#define COREMESH_TCG_X86_FLOAT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CPUX86State;

#if defined(__x86_64__)

// The vCPU's thread begins to run, or runs again after cm_float_sync(): all the flags are in env->mxcsr.
void cm_float_thread_enter(struct CPUX86State* env);

// Power-up or RESET: MXCSR = 1F80H. INIT leaves MXCSR alone (SDM vol. 3A, table 10-1) and needs no call.
void cm_float_reset(struct CPUX86State* env);

// Before the registers are read, or the thread parks: the flags of the thread's MXCSR join env->mxcsr.
void cm_float_sync(struct CPUX86State* env);

// After env->mxcsr was written from outside: the thread's flags, which belong to the old value, are dropped.
void cm_float_load(struct CPUX86State* env);

// Around host code that may compute with floating point: returns what cm_float_return() takes.
uint32_t cm_float_leave(void);
void cm_float_return(uint32_t saved);

#else

static inline void cm_float_thread_enter(struct CPUX86State* env) { (void)env; }
static inline void cm_float_reset(struct CPUX86State* env) { (void)env; }
static inline void cm_float_sync(struct CPUX86State* env) { (void)env; }
static inline void cm_float_load(struct CPUX86State* env) { (void)env; }
static inline uint32_t cm_float_leave(void) { return 0; }
static inline void cm_float_return(uint32_t saved) { (void)saved; }

#endif

#ifdef __cplusplus
}
#endif

#endif
