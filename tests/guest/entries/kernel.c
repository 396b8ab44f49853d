// SPDX-License-Identifier: GPL-2.0-or-later
// A kernel of 32 bits that tells on COM1 what its loader has told it, a word key=value each, and ends by
// debug-exit: 16 when what it was told holds.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DEBUG_EXIT 0xf4
#define COM1 0x3f8

static bool good = true;
uint32_t marker_symbol = 42;  // found by its name in the symbols that the loader keeps

static void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }

static void text(const char* words) {
    while (*words) out8(COM1, (uint8_t)*words++);
}

static void number(const char* key, uint32_t value) {
    char digits[11];
    unsigned at = sizeof digits - 1;
    digits[at] = 0;
    do digits[--at] = (char)('0' + value % 10);
    while (value /= 10);
    text(key);
    text("=");
    text(digits + at);
    text("\n");
}

static void string(const char* key, uint32_t address) {
    text(key);
    text("='");
    text((const char*)address);
    text("'\n");
}

static void expect(bool holds, const char* what) {
    if (holds) return;
    good = false;
    text("WRONG: ");
    text(what);
    text("\n");
}

static bool same(const char* left, const char* right, unsigned length) {
    while (length--)
        if (*left++ != *right++) return false;
    return true;
}

__attribute__((unused)) static void rsdp(uint32_t address) {
    const uint8_t* bytes = (const uint8_t*)address;
    uint8_t old = 0, all = 0;
    for (unsigned i = 0; i < 36; i++) {
        if (i < 20) old = (uint8_t)(old + bytes[i]);
        all = (uint8_t)(all + bytes[i]);
    }
    expect(same((const char*)bytes, "RSD PTR ", 8) && !old && !all, "the RSDP");
    number("rsdp_revision", bytes[15]);
}

static void module(uint32_t start, uint32_t end, uint32_t words) {
    string("module", words);
    string("content", start);
    expect((start & 4095) == 0 && end > start, "a module's place");
    number("module_bytes", end - start);
}

static void ram(uint32_t low, uint32_t high, uint32_t bytes, uint32_t kind) {
    if (kind == 1 && !high && low == 0x100000) number("extended_kib", bytes >> 10);
}

#if ENTRY_KIND == 1
static void told(uint32_t magic, const uint32_t* info) {
    expect(magic == 0x2badb002, "the magic number");
    expect((info[0] & 0x124d) == 0x124d, "the flags");
    number("lower_kib", info[1]);
    string("cmdline", info[4]);
    for (unsigned i = 0; i < info[5]; i++) {
        const uint32_t* row = (const uint32_t*)(info[6] + 16 * i);
        module(row[0], row[1], row[2]);
    }
    for (uint32_t at = info[12]; at < info[12] + info[11]; at += *(uint32_t*)at + 4) {
        const uint32_t* row = (const uint32_t*)at;
        ram(row[1], row[2], row[3], row[5]);
    }
    number("framebuffer", info[22]);
    number("columns", info[25]);
    number("kind", ((const uint8_t*)info)[109]);
}
#elif ENTRY_KIND == 2
struct section {
    uint32_t name, type, flags, address, offset, size, link, info, align, entry_size;
};

static void sections(const uint32_t* tag) {
    const struct section* table = (const struct section*)(tag + 5);
    expect(tag[3] == sizeof *table, "the size of a section header");
    number("sections", tag[2]);
    const char* names = (const char*)table[tag[4]].address;
    for (uint32_t i = 0; i < tag[2]; i++) {
        if (table[i].type != 2) continue;  // symbols
        expect(same(names + table[i].name, ".symtab", 8), "the name of the symbols' section");
        const char* strings = (const char*)table[table[i].link].address;
        for (uint32_t at = 0; at < table[i].size; at += table[i].entry_size) {
            const uint32_t* symbol = (const uint32_t*)(table[i].address + at);
            if (same(strings + symbol[0], "marker_symbol", 14)) number("marker", *(uint32_t*)symbol[1]);
        }
    }
}

static void told(uint32_t magic, const uint32_t* info) {
    expect(magic == 0x36d76289, "the magic number");
    expect(((uint32_t)info & 7) == 0 && info[1] == 0, "the information's place");
    uint32_t at = (uint32_t)info + 8, seen = 0;
    for (const uint32_t* tag = (const uint32_t*)at; tag[0]; tag = (const uint32_t*)at) {
        seen |= 1u << tag[0];
        if (tag[0] == 1) string("cmdline", at + 8);
        if (tag[0] == 2) string("loader", at + 8);
        if (tag[0] == 3) module(tag[2], tag[3], at + 16);
        if (tag[0] == 4) number("lower_kib", tag[2]);
        if (tag[0] == 6)
            for (uint32_t row = at + 16; row < at + tag[1]; row += tag[2])
                ram(((uint32_t*)row)[0], ((uint32_t*)row)[1], ((uint32_t*)row)[2], ((uint32_t*)row)[4]);
        if (tag[0] == 8) {
            number("framebuffer", tag[2]);
            number("columns", tag[5]);
            number("kind", ((const uint8_t*)tag)[29]);
        }
        if (tag[0] == 9) sections(tag);
        if (tag[0] == 15) rsdp(at + 8);
        if (tag[0] == 21) number("base", tag[2]);
        at += (tag[1] + 7) & ~7u;
    }
    number("tags", seen);
    expect(at + 8 - (uint32_t)info == info[0], "the total size");
}
#else
static void told(uint32_t magic, const uint32_t* info) {
    (void)magic;
    expect(info[0] == 0x336ec578 && info[1] == 1, "the magic number");
    string("cmdline", info[6]);
    for (unsigned i = 0; i < info[3]; i++) {
        const uint32_t* row = (const uint32_t*)(info[4] + 32 * i);
        module(row[0], row[0] + row[2], row[4]);
    }
    rsdp(info[8]);
    for (unsigned i = 0; i < info[12]; i++) {
        const uint32_t* row = (const uint32_t*)(info[10] + 24 * i);
        ram(row[0], row[1], row[2], row[4]);
    }
}
#endif

void kernel_main(uint32_t magic, const uint32_t* info) {
    uint32_t flags, cr0;
    __asm__ volatile("pushf; pop %0" : "=r"(flags));
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    expect(!(flags & 0x200) && (cr0 & 0x80000001) == 1, "protected mode, without paging and interrupts");
    number("crtc", *(volatile uint16_t*)0x463);
    told(magic, info);
    __asm__ volatile("outl %0, %1" ::"a"(good ? 16 : 1), "Nd"((uint16_t)DEBUG_EXIT));
}
