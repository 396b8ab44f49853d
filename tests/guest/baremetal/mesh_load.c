// SPDX-License-Identifier: GPL-2.0-or-later
// What memory costs between hosts. Figures as key=value lines; the asker is the last host's first core, the
// holder core 0, which sleeps while the asker works alone.
//
// Options: cpus=N, hosts=N, mib=N (mesh.h); pages=N (default 256); ms=N (default 1000); and what to measure:
// fetch, sequential, add, exchange (times=N, default 40), fight, turns, independent, apart, faults; locked
// (times=N, default 4000), each kind of locked instruction on a page of host home=N.
#include "mesh.h"

#define DONE_VECTOR 0x52u
#define MOST 1024u

static struct barrier gate;
static uint32_t asker, pages;
static uint64_t target, span, end;

struct figures {
    volatile uint64_t value[MOST];
};
static struct figures* figures_of(uint32_t core) { return (struct figures*)(mesh_bulk(mesh_host_of[core])); }
static uint64_t data_page(uint32_t page) { return mesh_bulk(0) + 0x100000u + (uint64_t)page * PAGE; }

static uint64_t to_ns(uint64_t cycles) { return cycles * 1000 / (tsc_hz() / 1000000); }

// --- the asker works, core 0 sleeps

static void (*volatile errand)(void);
static volatile bool back;

static void on_done(struct trap_frame* frame) {
    (void)frame;
    back = true;
    lapic_eoi();
}

static void run_errand(uint32_t core) {
    if (core != asker) return;
    errand();
    lapic_send(core_apic_ids[0], ICR_ASSERT | DONE_VECTOR);
}

static void ask(void (*what)(void)) {
    errand = what;
    back = false;
    if (asker == 0) {
        what();
        return;
    }
    cores_post(run_errand, cores_running);
    interrupts_off();
    while (!back) {
        wait_for_interrupt();
        interrupts_off();
    }
    cores_join();
}

static void sort(volatile uint64_t* value, uint32_t count) {
    for (uint32_t step = count / 2; step; step /= 2)
        for (uint32_t i = step; i < count; i++)
            for (uint32_t at = i; at >= step && value[at - step] > value[at]; at -= step) {
                uint64_t spare = value[at];
                value[at] = value[at - step];
                value[at - step] = spare;
            }
}

static void report(const char* name) {
    volatile uint64_t* value = figures_of(asker)->value;
    sort(value, pages);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < pages; i++) sum += value[i];
    print("%s_median_ns=%lu\n%s_min_ns=%lu\n%s_mean_ns=%lu\n%s_p90_ns=%lu\n", name, to_ns(value[pages / 2]),
          name, to_ns(value[0]), name, to_ns(sum / pages), name, to_ns(value[pages * 9 / 10]));
}

// Core 0 makes the pages its own, full of numbers that do not compress.
static void fill(void) {
    uint64_t random = 88172645463325252ull + read_tsc();
    for (uint32_t page = 0; page < pages; page++)
        for (unsigned word = 0; word < 512; word++)
            *(volatile uint64_t*)(data_page(page) + word * 8) =
                option("zero") ? word == 7 : mesh_random(&random);
}

// In an order that no prefetch follows.
static uint32_t scattered(uint32_t i) { return (uint32_t)((uint64_t)i * 0x9e3779b1u % pages); }

static void each(unsigned how) {
    volatile uint64_t* value = figures_of(asker)->value;
    for (uint32_t i = 0; i < pages; i++) value[i] = 0;  // its own page is here before the clock runs
    for (uint32_t i = 0; i < pages; i++) {
        volatile uint64_t* at = (volatile uint64_t*)data_page(scattered(i));
        uint64_t from = read_tsc();
        if (how == 0) (void)*at;
        if (how == 1) *at = i;
        if (how == 2) __asm__ volatile("lock incq %0" : "+m"(*at)::"cc");
        value[i] = read_tsc() - from;
    }
}
static void read_each(void) { each(0); }
static void write_each(void) { each(1); }
static void add_each(void) { each(2); }

static void read_all(void) {
    uint64_t sum = 0, from = read_tsc();
    for (uint32_t page = 0; page < pages; page++)
        for (unsigned word = 0; word < 512; word++) sum += *(volatile uint64_t*)(data_page(page) + word * 8);
    figures_of(asker)->value[0] = read_tsc() - from;
    figures_of(asker)->value[1] = sum;
}

// Both hosts write to all pages in turn, so that each write fetches a page.
static void exchange(void) {
    uint64_t turns = option_number("times", 40), from = read_tsc();
    for (uint64_t turn = 0; turn < turns; turn++) {
        for (uint32_t i = 0; i < pages; i++) *(volatile uint64_t*)data_page(scattered(i)) = turn;
        ask(write_each);
    }
    print("exchange_page_ns=%lu\n", to_ns((read_tsc() - from) / (2 * turns * pages)));
}

static uint64_t adds;
static void add_on(void) {
    uint64_t done = 0, stop = read_tsc() + span;
    while (read_tsc() < stop) {
        for (unsigned i = 0; i < 4; i++)
            __asm__ volatile("lock incq %0" : "+m"(*(volatile uint64_t*)target)::"cc");
        done += 4;
    }
    adds = done;
}

static uint64_t locked;
static void change_by_each(void) {
    volatile uint64_t* at = (volatile uint64_t*)target;
    uint64_t times = option_number("times", 4000);
    for (uint64_t i = 0; i < times; i++) {
        uint64_t value = i, expected = i;
        __asm__ volatile("lock addq %1, %0" : "+m"(*at) : "r"(i) : "cc");
        __asm__ volatile("lock andq %1, %0" : "+m"(*at) : "r"(i) : "cc");
        __asm__ volatile("lock orl %1, %0" : "+m"(*(volatile uint32_t*)at) : "r"((uint32_t)i) : "cc");
        __asm__ volatile("lock xorw %1, %0" : "+m"(*(volatile uint16_t*)at) : "r"((uint16_t)i) : "cc");
        __asm__ volatile("lock incb %0" : "+m"(*(volatile uint8_t*)at)::"cc");
        __asm__ volatile("lock xaddq %1, %0" : "+m"(*at), "+r"(value)::"cc");
        __asm__ volatile("xchgq %1, %0" : "+m"(*at), "+r"(value));
        __asm__ volatile("lock cmpxchgq %2, %0" : "+m"(*at), "+a"(expected) : "r"(value) : "cc");
        __asm__ volatile("lock btsq $3, %0" : "+m"(*at)::"cc");
        __asm__ volatile("lock btrq $3, %0" : "+m"(*at)::"cc");
        __asm__ volatile("lock btcq $3, %0" : "+m"(*at)::"cc");
        locked += 11;
    }
}

// --- both at once

// Everybody adds to one word.
static void fight(uint32_t core) {
    uint64_t done = 0;
    barrier_wait(&gate, cores_running);
    uint64_t stop = end;
    while (read_tsc() < stop) {
        __asm__ volatile("lock incq %0" : "+m"(*(volatile uint64_t*)target)::"cc");
        done++;
    }
    *(volatile uint64_t*)mesh_own(core) = done;
    barrier_wait(&gate, cores_running);
}

// Core 0 and the asker take turns: each waits for the other's store.
static void take_turns(uint32_t core) {
    volatile uint64_t* turn = (volatile uint64_t*)target;
    *(volatile uint64_t*)mesh_own(core) = 0;
    if (core != 0 && core != asker) return;
    uint64_t mine = core != 0, done = 0, stop = end;
    for (;;) {
        uint64_t now;
        while (((now = *turn) & 1) != mine && now != ~0ull && now != ~1ull) pause();
        if (now >= ~1ull) break;
        if (core == 0 && read_tsc() > stop) {
            *turn = ~0ull;
            break;
        }
        *turn = now + 1;
        done++;
    }
    *(volatile uint64_t*)mesh_own(core) = done;
}

// Arithmetic and memory of its own: what a program does that shares nothing.
static void independent(uint32_t core) {
    volatile uint64_t* own =
        (volatile uint64_t*)(mesh_bulk(mesh_host_of[core]) + 0x8000u + core % 32 * 0x8000u);
    for (unsigned i = 0; i < 0x1000; i++) own[i] = i;
    barrier_wait(&gate, cores_running);
    uint64_t done = 0, stop = end, sum = 1;
    while (read_tsc() < stop) {
        for (unsigned i = 0; i < 1000; i++) {
            sum = sum * 6364136223846793005ull + own[sum >> 52];
            own[i & 0xfff] = sum;
        }
        done++;
    }
    *(volatile uint64_t*)mesh_own(core) = done;
    barrier_wait(&gate, cores_running);
}

static void count_up(uint32_t core) {
    volatile uint64_t* mine = (volatile uint64_t*)(target + core % 512 * 8);
    uint64_t done = 0, stop = end;
    barrier_wait(&gate, cores_running);
    while (read_tsc() < stop) {
        for (unsigned i = 0; i < 16; i++) *mine = *mine + 1;
        done += 16;
    }
    *(volatile uint64_t*)mesh_own(core) = done;
    barrier_wait(&gate, cores_running);
}

static void together(void (*job)(uint32_t), const char* name) {
    *(volatile uint64_t*)target = 0;
    end = read_tsc() + span + tsc_hz() / 20;  // the job reaches the others first
    cores_run(job, cores_running);
    uint64_t sum = 0;
    for (uint32_t core = 0; core < cores_running; core++) {
        uint64_t done = *(volatile uint64_t*)mesh_own(core);
        sum += done;
        print("%s_core_%u=%lu\n", name, core, done);
    }
    print("%s_total=%lu\n%s_ms=%lu\n", name, sum, name, to_ns(span + tsc_hz() / 20) / 1000000);
}

// A store into a page that holds translated code: what the host's fault costs, each time in another page.
static void store_to_code(void) {
    static const uint8_t code[6] = {0xb8, 1, 0, 0, 0, 0xc3};  // mov eax, 1; ret
    volatile uint64_t* value = figures_of(0)->value;
    for (uint32_t page = 0; page < pages; page++) {
        memcpy((void*)data_page(page), code, sizeof code);
        __asm__ volatile("" ::: "memory");
        ((uint32_t(*)(void))data_page(page))();
    }
    for (uint32_t page = 0; page < pages; page++) {
        uint64_t from = read_tsc();
        *(volatile uint8_t*)(data_page(page) + 1) = 2;
        value[page] = read_tsc() - from;
    }
    asker = 0;
    report("fault");
}

void guest_main(void) {
    cores_start();
    mesh_begin();
    trap_handlers[DONE_VECTOR] = on_done;
    asker = mesh_core_of(mesh_hosts - 1, 0);
    if (asker == 0 && cores_running > 1) asker = 1;
    pages = (uint32_t)option_number("pages", 256);
    if (pages > 512) pages = 512;
    span = tsc_hz() / 1000 * option_number("ms", 1000);
    target = mesh_shared(0, 80) + 0x40;
    if (option("fetch")) {
        fill();
        ask(read_each);
        report("read");
        ask(write_each);
        report("upgrade");
        fill();
        ask(write_each);
        report("write");
    }
    if (option("sequential")) {
        fill();
        ask(read_all);
        print("sequential_page_ns=%lu\n", to_ns(figures_of(asker)->value[0] / pages));
    }
    if (option("exchange")) {
        fill();
        exchange();
    }
    if (option("add")) {
        fill();
        ask(add_each);
        report("add");
        *(volatile uint64_t*)target = 0;
        ask(add_on);
        print("adds=%lu\nadds_ms=%lu\n", adds, to_ns(span) / 1000000);
        check(*(volatile uint64_t*)target == adds, "%lu of %lu additions", *(volatile uint64_t*)target, adds);
    }
    if (option("locked")) {
        target = mesh_shared((uint32_t)option_number("home", 0), 80) + 0x40;
        ask(change_by_each);
        print("locked=%lu\n", locked);
    }
    if (option("fight")) {
        together(fight, "fight");
        uint64_t sum = 0;
        for (uint32_t core = 0; core < cores_running; core++) sum += *(volatile uint64_t*)mesh_own(core);
        check(*(volatile uint64_t*)target == sum, "%lu of %lu additions", *(volatile uint64_t*)target, sum);
    }
    if (option("turns")) together(take_turns, "turns");
    if (option("independent")) together(independent, "independent");
    if (option("faults")) store_to_code();
    if (option("apart")) together(count_up, "apart");
    finish();
}
