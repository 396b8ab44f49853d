// SPDX-License-Identifier: GPL-2.0-or-later
// Guest SSE on host SSE: what a vCPU thread owes to the guest's MXCSR.
//
// While a vCPU runs translated code, each SSE instruction runs as the same instruction of the host. The MXCSR
// of the vCPU's own thread then has the guest's rounding, FZ and DAZ, every exception masked, and gathers the
// sticky flags (SDM vol. 1, 10.2.3). The guest's MXCSR is
//
//     env->mxcsr | (flags of the thread's MXCSR)
//
// and the two are merged where the guest can look: STMXCSR, FXSAVE, XSAVE. With an exception unmasked,
// instructions take a slower path that looks at the flags after each, and raises #XM.
//
// So host code that computes with floating point on a vCPU thread (a device model in Python, libm) must stand
// between cm_float_leave() and cm_float_return(): its flags would become the guest's, and the guest's
// rounding its own. A signal handler begins with a default MXCSR. One that does not return, but jumps into
// the engine's loop, must first call cm_float_interrupted().
//
// x87 has its own contract (x87.h): an empty stack, the control word of always, and sticky flags that the
// same two calls keep apart.
//
// All functions are called on the vCPU's own thread. On hosts that are not x86-64 the engine's own helpers
// are kept, and these do nothing.
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

// Around host code that may compute with floating point: default controls until cm_float_return() of what
// this returns.
uint32_t cm_float_leave(void);
void cm_float_return(uint32_t saved);

// In a signal handler, with its third argument: takes up the MXCSR of the code that the signal interrupted.
void cm_float_interrupted(const void* ucontext);

#else

static inline void cm_float_thread_enter(struct CPUX86State* env) { (void)env; }
static inline void cm_float_reset(struct CPUX86State* env) { (void)env; }
static inline void cm_float_sync(struct CPUX86State* env) { (void)env; }
static inline void cm_float_load(struct CPUX86State* env) { (void)env; }
static inline uint32_t cm_float_leave(void) { return 0; }
static inline void cm_float_return(uint32_t saved) { (void)saved; }
static inline void cm_float_interrupted(const void* ucontext) { (void)ucontext; }

#endif

#ifdef __cplusplus
}
#endif

#endif
