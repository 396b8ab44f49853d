// SPDX-License-Identifier: GPL-2.0-or-later
// Stories about the guest's MXCSR: where sticky flags are merged, dropped and left alone, and which exception
// is raised where. Prints one line a story, "ok" or "FAILED"; exit status 1 if any failed.
#include <setjmp.h>
#include <signal.h>

#include "tcg/internals.h"

#include "tcg/x86/float.h"

enum { CODE = 0x10000, DATA = 0x20000, PAGE = 4096, XM = 19, GP = 13 };
enum { PRECISION = 0x20, DIVIDE = 0x04, DEFAULT = 0x1f80, STATUS_AT = 0x800, AREA_AT = 0x400 };
enum { OSFXSR = 1 << 9, OSXMMEXCPT = 1 << 10, OSXSAVE = 1 << 18 };

// rbx points to DATA: 0 and 4: MXCSR values to load; 8, 16: doubles 1 and 3; 24: zero; STATUS_AT: where
// STMXCSR writes.
#define SNIPPET(name, text)                                                      \
    __asm__(".pushsection .text\nsnippet_" #name ":\n\t" text "\nsnippet_" #name \
            "_end:\n\tnop\n.popsection");                                        \
    extern const uint8_t snippet_##name[], snippet_##name##_end[];

#define LOAD_CLEAN "ldmxcsr (%rbx)\n\t"
#define INEXACT "movsd 8(%rbx), %xmm0\n\tdivsd 16(%rbx), %xmm0\n\t"
#define BY_ZERO "movsd 8(%rbx), %xmm0\n\tdivsd 24(%rbx), %xmm0\n\t"
#define ALL_FEATURES "mov $3, %eax\n\txor %edx, %edx\n\t"
#define STATUS "\n\tstmxcsr 0x800(%rbx)"

SNIPPET(sticky, LOAD_CLEAN INEXACT "stmxcsr 0x804(%rbx)\n\t" BY_ZERO STATUS)
SNIPPET(reload, LOAD_CLEAN INEXACT LOAD_CLEAN STATUS)
SNIPPET(unread, LOAD_CLEAN INEXACT)
SNIPPET(xsave, LOAD_CLEAN INEXACT ALL_FEATURES "xsave 0x400(%rbx)")
SNIPPET(xsaveopt, LOAD_CLEAN INEXACT ALL_FEATURES "xsaveopt 0x400(%rbx)")
SNIPPET(xrstor, LOAD_CLEAN ALL_FEATURES "xsave 0x400(%rbx)\n\t" INEXACT "xrstor 0x400(%rbx)" STATUS)
SNIPPET(reserved, LOAD_CLEAN INEXACT "movl $0x11f80, 4(%rbx)\n\tldmxcsr 4(%rbx)" STATUS)
SNIPPET(reserved_xrstor, LOAD_CLEAN ALL_FEATURES "xsave 0x400(%rbx)\n\tmovl $0x11f80, 0x418(%rbx)\n\t" INEXACT
                                                 "xrstor 0x400(%rbx)" STATUS)
#define UP_IN_AREA "movl $0x5f80, 0x418(%rbx)\n\t"
SNIPPET(xrstor_up,
        LOAD_CLEAN ALL_FEATURES "xsave 0x400(%rbx)\n\t" UP_IN_AREA "xrstor 0x400(%rbx)\n\t" INEXACT)
SNIPPET(unmasked, "movl $0x1d80, 4(%rbx)\n\tldmxcsr 4(%rbx)\n\t" BY_ZERO STATUS)
SNIPPET(xsave_askew, LOAD_CLEAN "xsave 1(%rbx)")
SNIPPET(xsaveopt_askew, LOAD_CLEAN "xsaveopt 1(%rbx)")
SNIPPET(xrstor_askew, LOAD_CLEAN "xrstor 1(%rbx)")
static uint8_t data[2 * PAGE] __attribute__((aligned(PAGE)));
static unsigned raised, failures;
static uint64_t raised_rip;

static void on_interrupt(uc_engine* uc, uint32_t vector, void* opaque) {
    (void)opaque;
    raised = vector;
    uc_reg_read(uc, UC_X86_REG_RIP, &raised_rip);
    uc_emu_stop(uc);
}

static uint32_t word(unsigned at) {
    uint32_t value;
    memcpy(&value, data + at, 4);
    return value;
}

static void expect(const char* story, bool holds) {
    printf("%s: %s\n", holds ? "ok" : "FAILED", story);
    failures += !holds;
}

static uc_engine* engine;
static CPUX86State* env;

static uc_err run(const uint8_t* from, const uint8_t* to, uint64_t cr4_bits) {
    static const double numbers[] = {1.0, 3.0, 0.0};
    uint64_t rbx = DATA, cr4;
    uint32_t clean = DEFAULT;
    memset(data, 0, sizeof(data));
    memcpy(data, &clean, 4);
    memcpy(data + 8, numbers, sizeof(numbers));
    raised = 0, raised_rip = 0;
    env->old_exception = -1;  // nothing is being delivered: the hook takes the place of the guest's handlers
    uc_reg_read(engine, UC_X86_REG_CR4, &cr4);
    cr4 = (cr4 & ~(uint64_t)(OSFXSR | OSXMMEXCPT | OSXSAVE)) | cr4_bits;
    uc_reg_write(engine, UC_X86_REG_CR4, &cr4);
    uc_mem_write(engine, CODE, from, to - from);
    uc_ctl_remove_cache(engine, CODE, CODE + PAGE);
    uc_reg_write(engine, UC_X86_REG_RBX, &rbx);
    return uc_emu_start(engine, CODE, CODE + (to - from), 0, 0);
}

#define RUN(name) run(snippet_##name, snippet_##name##_end, OSFXSR | OSXMMEXCPT | OSXSAVE)

static void flags_are_merged_where_the_guest_looks(void) {
    expect("STMXCSR shows the flags of the division before it",
           RUN(sticky) == UC_ERR_OK && word(0x804) == (DEFAULT | PRECISION));
    expect("and they stay while others join them", word(STATUS_AT) == (DEFAULT | PRECISION | DIVIDE));
    expect("XSAVE shows them", RUN(xsave) == UC_ERR_OK && word(AREA_AT + 24) == (DEFAULT | PRECISION));
    expect("XSAVEOPT shows them", RUN(xsaveopt) == UC_ERR_OK && word(AREA_AT + 24) == (DEFAULT | PRECISION));
}

static void flags_are_dropped_with_the_value_they_belong_to(void) {
    expect("LDMXCSR of a clean value clears them", RUN(reload) == UC_ERR_OK && word(STATUS_AT) == DEFAULT);
    expect("XRSTOR of a clean area clears them", RUN(xrstor) == UC_ERR_OK && word(STATUS_AT) == DEFAULT);
}

static void controls_come_with_the_value(void) {
    const uint64_t third_rounded_up = 0x3fd5555555555556;
    RUN(xrstor_up);
    expect("XRSTOR of round-up rounds up", env->xmm_regs[0].ZMM_Q(0) == third_rounded_up);
    uint32_t saved = cm_float_leave(), own;
    __asm__ volatile("stmxcsr %0" : "=m"(own));
    cm_float_return(saved);
    expect("but not for host arithmetic between leave and return", own == DEFAULT);
    env->mxcsr = 0x5f80;
    cm_float_load(env);
    __asm__ volatile("stmxcsr %0" : "=m"(own));
    expect("cm_float_load brings the controls of a value from outside", own == 0x5f80);
    cm_float_reset(env);
    __asm__ volatile("stmxcsr %0" : "=m"(own));
    expect("and reset the default ones", own == DEFAULT);
}

static void the_machine_can_read_and_write_mxcsr(void) {
    RUN(unread);
    expect("flags that the guest has not looked at live in the thread", env->mxcsr == DEFAULT);
    uint32_t saved = cm_float_leave();
    volatile double one = 1, three = 3, third = one / three;
    (void)third;
    cm_float_return(saved);
    cm_float_sync(env);
    expect("cm_float_sync merges them", env->mxcsr == (DEFAULT | PRECISION));
    env->mxcsr = DEFAULT;
    cm_float_load(env);
    cm_float_sync(env);
    expect("cm_float_load drops them for a value from outside", env->mxcsr == DEFAULT);
    third = one / three;
    cm_float_thread_enter(env);
    cm_float_sync(env);
    expect("a thread that begins brings no flags of its own", env->mxcsr == DEFAULT);
    saved = cm_float_leave();
    third = one / three;
    cm_float_return(saved);
    cm_float_sync(env);
    expect("host arithmetic between leave and return is not seen", env->mxcsr == DEFAULT);
    RUN(unread);
    cm_float_reset(env);
    cm_float_sync(env);
    expect("reset gives 1F80H", env->mxcsr == DEFAULT);
}

static sigjmp_buf engine_loop;
static bool takes_it_up;

static void jump_out(int signal_number, siginfo_t* info, void* context) {
    (void)signal_number, (void)info;
    if (takes_it_up) cm_float_interrupted(context);
    siglongjmp(engine_loop, 1);
}

static uint32_t mxcsr_after_a_jump_out_of_a_handler(bool taken_up) {
    struct sigaction action = {.sa_sigaction = jump_out, .sa_flags = SA_SIGINFO};
    uint32_t before = 0x5fa0, after;
    takes_it_up = taken_up;
    sigaction(SIGUSR1, &action, NULL);
    if (!sigsetjmp(engine_loop, 1)) {
        __asm__ volatile("ldmxcsr %0" : : "m"(before));
        raise(SIGUSR1);
    }
    __asm__ volatile("stmxcsr %0" : "=m"(after));
    cm_float_reset(env);
    return after;
}

static void a_handler_that_does_not_return_gives_back_what_it_interrupted(void) {
    expect("a jump out of a signal handler keeps rounding and flags with cm_float_interrupted",
           mxcsr_after_a_jump_out_of_a_handler(true) == 0x5fa0);
    expect("and loses them without", mxcsr_after_a_jump_out_of_a_handler(false) == DEFAULT);
}

static void reserved_bits_are_refused(void) {
    RUN(reserved);
    expect("LDMXCSR of a reserved bit is #GP", raised == GP && env->error_code == 0);
    cm_float_sync(env);
    expect("and leaves MXCSR as it was", env->mxcsr == (DEFAULT | PRECISION));
    RUN(reserved_xrstor);
    expect("XRSTOR of a reserved bit is #GP", raised == GP);
}

static void unmasked_exceptions_are_raised(void) {
    static const uint8_t divsd[] = {0xf2, 0x0f, 0x5e};
    RUN(unmasked);
    uint8_t at[3] = {0};
    uc_mem_read(engine, raised_rip, at, 3);
    expect("an unmasked division by zero is #XM", raised == XM);
    expect("at the division", !memcmp(at, divsd, 3));
    double kept;
    memcpy(&kept, &env->xmm_regs[0], 8);
    expect("with the destination as it was", kept == 1.0);
    expect("and the flag set", (env->mxcsr & 0x3f) == DIVIDE);
    uc_err error = run(snippet_unmasked, snippet_unmasked_end, OSFXSR);
    expect("without CR4.OSXMMEXCPT it is #UD", raised != XM && (raised == 6 || error == UC_ERR_INSN_INVALID));
}

#define FAULTS_IN_PLACE(name) (RUN(name) == UC_ERR_OK && raised == GP && raised_rip == CODE + 3)

// The engine finds the instruction by the helper's return address: a wrap that calls, where it must jump,
// loses it.
static void a_fault_in_the_engines_part_is_reported_in_its_place(void) {
    expect("a misaligned XSAVE is #GP at the XSAVE", FAULTS_IN_PLACE(xsave_askew));
    expect("a misaligned XSAVEOPT is #GP at the XSAVEOPT", FAULTS_IN_PLACE(xsaveopt_askew));
    expect("a misaligned XRSTOR is #GP at the XRSTOR", FAULTS_IN_PLACE(xrstor_askew));
}

int main(void) {
    uc_hook hook;
    if (uc_open(UC_ARCH_X86, UC_MODE_64, &engine) != UC_ERR_OK) return 2;
    uc_ctl_set_cpu_model(engine, UC_CPU_X86_HASWELL);
    uc_mem_map(engine, CODE, PAGE, UC_PROT_ALL);
    uc_mem_map_ptr(engine, DATA, sizeof(data), UC_PROT_ALL, data);
    uc_hook_add(engine, &hook, UC_HOOK_INTR, on_interrupt, NULL, 1, 0);
    env = engine->cpu->env_ptr;
    cm_float_thread_enter(env);
    flags_are_merged_where_the_guest_looks();
    flags_are_dropped_with_the_value_they_belong_to();
    controls_come_with_the_value();
    the_machine_can_read_and_write_mxcsr();
    a_handler_that_does_not_return_gives_back_what_it_interrupted();
    reserved_bits_are_refused();
    unmasked_exceptions_are_raised();
    a_fault_in_the_engines_part_is_reported_in_its_place();
    for (const struct cm_wrap_hit* hit = __start_cm_wrap_hits; hit < __stop_cm_wrap_hits; hit++)
        if (hit->hit) printf("hit: %s\n", hit->name);
    uc_close(engine);
    return failures != 0;
}
