// SPDX-License-Identifier: GPL-2.0-or-later
// Runs blocks on the bare processor. usage: native FILE; a line on stdin runs the batch that is in FILE
// (struct batch), a line on stdout says how it went: "done", or how the child ended.
//
// A child runs them, so that nothing a block does reaches further. It never returns to its main function
// between two blocks: each ends in a signal, whose handler notes the saved context and writes the next
// block's state over it. What sigreturn loads is then a whole processor state, with no instruction of ours
// after it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "block.h"
#include "segment_reads.h"

#define VECTOR_SYSCALL 0x100  // stands for a system call: the child may make none but its own

static struct batch* batch;
static uint32_t current, running;
static ucontext_t home;
static struct _libc_fpstate home_float;
static uint64_t home_fs, home_gs;
static uint8_t stack[1 << 17] __attribute__((aligned(64)));

static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static void load_segments(uint16_t data, uint64_t fs, uint64_t gs) {
    __asm__ volatile("mov %w0, %%ds\n\tmov %w0, %%es\n\tmov %w1, %%fs\n\tmov %w1, %%gs" ::"r"((uint32_t)data),
                     "r"(0));
    __asm__ volatile("wrfsbase %0" ::"r"(fs));
    __asm__ volatile("wrgsbase %0" ::"r"(gs));
}

// The extended state lies behind the image of FXSAVE; its first word says which parts are not as at reset.
static void set_float(ucontext_t* context, const void* image) {
    uint8_t* state = (uint8_t*)context->uc_mcontext.fpregs;
    memcpy(state, image, 416);
    uint64_t parts = 3;
    memcpy(state + 512, &parts, sizeof parts);
}

static void load(ucontext_t* context) {
    const struct block* block = &batch->block[current];
    struct outcome* out = &batch->outcome[current];
    memset(out, 0, sizeof *out);
    greg_t* gregs = context->uc_mcontext.gregs;
    for (unsigned number = 0; number < 16; number++) gregs[order[number]] = (greg_t)block->gpr[number];
    gregs[REG_RIP] = (greg_t)block->rip;
    gregs[REG_EFL] = (greg_t)block->rflags;
    gregs[REG_CSGSFS] = (greg_t)(block->cs | (uint64_t)SELECTOR_DATA << 48);
    set_float(context, block->fxsave);
    load_segments(block->cs == SELECTOR_CODE32 ? SELECTOR_DATA : 0, block->fs_base, block->gs_base);
}

static void go_home(ucontext_t* context) {
    memcpy(context->uc_mcontext.gregs, home.uc_mcontext.gregs, sizeof home.uc_mcontext.gregs);
    set_float(context, &home_float);
    load_segments(0, home_fs, home_gs);
    running = 0;
}

// No header function that could use thread-local storage: FS is the block's.
static void __attribute__((used)) on_signal(int signal, siginfo_t* info, ucontext_t* context) {
    (void)info;
    greg_t* gregs = context->uc_mcontext.gregs;
    if (!running) {
        memcpy(home.uc_mcontext.gregs, gregs, sizeof home.uc_mcontext.gregs);
        memcpy(&home_float, context->uc_mcontext.fpregs, sizeof home_float);
        home_fs = read_fs(), home_gs = read_gs();
        home.uc_mcontext.gregs[REG_RIP] = gregs[REG_RIP];
        running = 1;
        load(context);
        return;
    }
    struct outcome* out = &batch->outcome[current];
    for (unsigned number = 0; number < 16; number++) out->gpr[number] = (uint64_t)gregs[order[number]];
    out->rip = (uint64_t)gregs[REG_RIP];
    out->rflags = (uint64_t)gregs[REG_EFL];
    out->vector = signal == SIGSYS ? VECTOR_SYSCALL : (uint64_t)gregs[REG_TRAPNO];
    out->error = (uint64_t)gregs[REG_ERR];
    if (out->vector == 1 && note_step(out, out->gpr, out->rip, out->rflags)) return;
    out->cr2 = (uint64_t)gregs[REG_CR2];
    out->cs = (uint64_t)gregs[REG_CSGSFS] & 0xffff;
    out->ss = (uint64_t)gregs[REG_CSGSFS] >> 48;
    out->ds = read_ds_selector(), out->es = read_es_selector();
    out->fs = read_fs_selector(), out->gs = read_gs_selector();
    out->fs_base = read_fs(), out->gs_base = read_gs();
    memcpy(out->fxsave, context->uc_mcontext.fpregs, sizeof out->fxsave);
    note_changes((uint64_t*)DATA_BASE, (const uint64_t*)batch->image, out);
    batch->done = ++current;
    if (current < batch->count)
        load(context);
    else
        go_home(context);
}

// What the block set of AC, NT and ID is still set when its signal arrives, and sigreturn would keep the last
// two.
void signal_entry(int signal, siginfo_t* info, void* context);
__asm__(
    "signal_entry:\n"
    "\tpushfq\n"
    "\tandl $~0x244000, (%rsp)\n"
    "\tpopfq\n"
    "\tjmp on_signal\n");

static uint8_t* map_pages(int file, off_t offset, uint64_t address, unsigned pages) {
    void* mapped = mmap((void*)address, pages * 4096ul, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, file, offset);
    if (mapped != (void*)address) {
        puts("the addresses of the block's world are taken");
        _exit(2);
    }
    return mapped;
}

static void map_world(int file, uint64_t alias) {
    uint8_t* code = map_pages(file, 0, CODE_BASE + alias, CODE_PAGES);
    uint8_t* data = map_pages(file, CODE_PAGES * 4096, DATA_BASE + alias, DATA_PAGES);
    memcpy(code, batch->code, CODE_PAGES * 4096);
    memcpy(data, batch->image, DATA_PAGES * 4096);
    mprotect(code, CODE_PAGES * 4096, PROT_READ | PROT_EXEC);
    for (unsigned page = CODE_GAP - 1; page < CODE_PAGES; page += CODE_GAP) munmap(code + page * 4096, 4096);
    for (unsigned page = 0; page < DATA_PAGES; page++) {
        if (!(DATA_READABLE >> page & 1))
            munmap(data + page * 4096, 4096);
        else if (!(DATA_WRITABLE >> page & 1))
            mprotect(data + page * 4096, 4096, PROT_READ);
    }
}

// From here on the child returns from signals and exits. Any other system call comes from a block.
static void allow_nothing_else(void) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 2, 0),  // the block's world lies below 4 GiB
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ALIAS >> 32, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        _exit(3);
}

static void run_batch(void) {
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
    const struct rlimit no_core = {0, 0}, seconds = {2, 2};
    setrlimit(RLIMIT_CORE, &no_core);
    setrlimit(RLIMIT_CPU, &seconds);  // for a block without an end
    const int file = memfd_create("world", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (CODE_PAGES + DATA_PAGES) * 4096)) _exit(2);
    map_world(file, 0);
    map_world(file, ALIAS);
    stack_t alternative = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&alternative, NULL);
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
    action.sa_sigaction = signal_entry;
    sigfillset(&action.sa_mask);
    for (unsigned at = 0; at < sizeof signals / sizeof *signals; at++) sigaction(signals[at], &action, NULL);
    allow_nothing_else();
    current = 0;
    __asm__ volatile("int3" ::: "memory");  // to on_signal; comes back when the last block is done
    _exit(0);
}

int main(int count, char** words) {
    int file = count == 2 ? open(words[1], O_RDWR) : -1;
    if (file < 0) return fprintf(stderr, "usage: native FILE\n"), 2;
    batch = mmap(NULL, sizeof *batch, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (batch == MAP_FAILED) return perror("mmap"), 2;
    for (int letter; (letter = getchar()) != EOF;) {
        if (letter != '\n') continue;
        batch->done = 0;
        pid_t child = fork();
        if (child == 0) run_batch();
        int status = 0;
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
            puts("done");
        else
            printf("block %u: %s %d\n", batch->done, WIFSIGNALED(status) ? "signal" : "status",
                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        fflush(stdout);
    }
    return 0;
}
