// SPDX-License-Identifier: GPL-2.0-or-later
// COM1 by polling, the command line, checks, and the way out through the debug-exit port.
#include <stdarg.h>

#include "guest.h"

#define COM1 0x3f8
#define LSR_THRE 0x20

extern uint32_t multiboot_info;
uint32_t failures;
static volatile uint32_t console_lock;

struct line {
    char text[512];
    unsigned length;
};

static void put(struct line* line, char c) {
    if (line->length < sizeof line->text) line->text[line->length++] = c;
}

static void put_number(struct line* line, uint64_t value, unsigned base, bool negative) {
    char digits[24];
    unsigned n = 0;
    do digits[n++] = "0123456789abcdef"[value % base];
    while (value /= base);
    if (negative) put(line, '-');
    while (n) put(line, digits[--n]);
}

static void format_line(struct line* line, const char* format, va_list arguments) {
    for (; *format; format++) {
        if (*format != '%') {
            put(line, *format);
            continue;
        }
        bool wide = *++format == 'l';
        if (wide) format++;
        if (*format == 's') {
            for (const char* s = va_arg(arguments, const char*); *s; s++) put(line, *s);
        } else if (*format == 'c') {
            put(line, (char)va_arg(arguments, int));
        } else if (*format == 'd') {
            int64_t value = wide ? va_arg(arguments, int64_t) : va_arg(arguments, int);
            put_number(line, value < 0 ? -(uint64_t)value : (uint64_t)value, 10, value < 0);
        } else {
            uint64_t value = wide ? va_arg(arguments, uint64_t) : va_arg(arguments, unsigned);
            put_number(line, value, *format == 'x' ? 16 : 10, false);
        }
    }
}

// Interrupts stay off while the lock is held: a handler may print too.
static void emit(const struct line* line) {
    uint64_t flags = read_flags();
    interrupts_off();
    while (__atomic_exchange_n(&console_lock, 1, __ATOMIC_ACQUIRE)) pause();
    for (unsigned i = 0; i < line->length; i++) {
        while (!(in8(COM1 + 5) & LSR_THRE)) pause();
        out8(COM1, (uint8_t)line->text[i]);
    }
    __atomic_store_n(&console_lock, 0, __ATOMIC_RELEASE);
    if (flags & 0x200) interrupts_on();
}

void print(const char* format, ...) {
    struct line line = {.length = 0};
    va_list arguments;
    va_start(arguments, format);
    format_line(&line, format, arguments);
    va_end(arguments);
    emit(&line);
}

bool check(bool good, const char* format, ...) {
    if (good) return true;
    struct line line = {.length = 0};
    for (const char* s = "FAIL "; *s; s++) put(&line, *s);
    va_list arguments;
    va_start(arguments, format);
    format_line(&line, format, arguments);
    va_end(arguments);
    put(&line, '\n');
    if (__atomic_add_fetch(&failures, 1, __ATOMIC_SEQ_CST) <= 60) emit(&line);
    return false;
}

void debug_exit(uint32_t value) {
    out32(0xf4, value);
    for (;;) __asm__ volatile("cli; hlt");
}

void finish(void) {
    print("RESULT %s failures=%u\n", failures ? "failed" : "ok", failures);
    debug_exit(failures ? 1 : 16);
}

static const char* find_option(const char* name) {
    const uint32_t* info = (const uint32_t*)(uint64_t)multiboot_info;
    if (!info || !(info[0] & 4)) return NULL;
    const char* at = (const char*)(uint64_t)info[4];
    while (*at) {
        const char* n = name;
        while (*n && *at == *n) at++, n++;
        if (!*n && (*at == '=' || *at == ' ' || !*at)) return at;
        while (*at && *at != ' ') at++;
        while (*at == ' ') at++;
    }
    return NULL;
}

bool option(const char* name) { return find_option(name) != NULL; }

uint64_t option_number(const char* name, uint64_t otherwise) {
    const char* at = find_option(name);
    if (!at || *at != '=') return otherwise;
    uint64_t value = 0;
    while (*++at >= '0' && *at <= '9') value = value * 10 + (uint64_t)(*at - '0');
    return value;
}

void* memset(void* to, int value, size_t length) {
    void* at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(length) : "a"(value) : "memory");
    return to;
}

void* memcpy(void* to, const void* from, size_t length) {
    void* at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(length)::"memory");
    return to;
}

int memcmp(const void* left, const void* right, size_t length) {
    const uint8_t *a = left, *b = right;
    for (; length; a++, b++, length--)
        if (*a != *b) return *a - *b;
    return 0;
}
