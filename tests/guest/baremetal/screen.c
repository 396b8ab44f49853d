// SPDX-License-Identifier: GPL-2.0-or-later
// What a teaching kernel does: text at B8000h, the cursor by the CRT controller, keys by IRQ 1 through the
// 8259A pair and scan codes of set 1. It programs neither the keyboard controller nor a video mode.
#include "guest.h"

#define COLUMNS 80
#define ROWS 25
#define KEYBOARD_VECTOR 0x21
#define ESCAPE 0x01
#define LEFT_SHIFT 0x2a
#define BACKSPACE '\b'

static volatile uint16_t* const cells = (volatile uint16_t*)0xb8000;
static unsigned row, column;
static bool shift;

static void put_at(unsigned y, unsigned x, char character, uint8_t attribute) {
    cells[y * COLUMNS + x] = (uint16_t)(attribute << 8 | (uint8_t)character);
}

static void move_cursor(void) {
    unsigned cell = row * COLUMNS + column;
    out16(0x3d4, (uint16_t)(cell << 8 | 0x0f));
    out16(0x3d4, (uint16_t)((cell & 0xff00) | 0x0e));
}

static void put(char character) {
    if (character == BACKSPACE) {
        if (column) put_at(row, --column, ' ', 0x07);
    } else if (character == '\n') {
        column = 0;
        row++;
    } else {
        put_at(row, column, character, 0x07);
        if (++column == COLUMNS) column = 0, row++;
    }
    if (row == ROWS) {
        row--;
        for (unsigned i = 0; i < (ROWS - 1) * COLUMNS; i++) cells[i] = cells[i + COLUMNS];
        for (unsigned x = 0; x < COLUMNS; x++) put_at(row, x, ' ', 0x07);
    }
    move_cursor();
}

static void on_key(struct trap_frame* frame) {
    static const char plain[] = "??1234567890-=\b\tqwertyuiop[]\n?asdfghjkl;'`?\\zxcvbnm,./?*? ";
    static const char shifted[] = "??!@#$%^&*()_+\b\tQWERTYUIOP{}\n?ASDFGHJKL:\"~?|ZXCVBNM<>??*? ";
    (void)frame;
    uint8_t code = in8(0x60);
    if ((code & 0x7f) == LEFT_SHIFT) {
        shift = !(code & 0x80);
    } else if (code == ESCAPE) {
        debug_exit(16);
    } else if (code < sizeof plain - 1 && plain[code] != '?') {
        put(shift ? shifted[code] : plain[code]);
    }
    out8(0x20, 0x20);
}

void guest_main(void) {
    static const char title[] = " A kernel that learns to print ";
    for (unsigned i = 0; i < ROWS * COLUMNS; i++) cells[i] = 0x0720;
    for (unsigned x = 0; x < sizeof title - 1; x++) put_at(0, x, title[x], 0x1e);
    row = 2;
    put('>');
    trap_handlers[KEYBOARD_VECTOR] = on_key;
    static const uint8_t words[][2] = {{0x20, 0x11}, {0x21, 0x20}, {0x21, 4}, {0x21, 1},
                                       {0xa0, 0x11}, {0xa1, 0x28}, {0xa1, 2}, {0xa1, 1}};
    for (unsigned i = 0; i < 8; i++) out8(words[i][0], words[i][1]);
    out8(0x21, 0xfd);
    out8(0xa1, 0xff);
    lapic_write(APIC_LVT_LINT0, 0x700);  // the 8259A pair, as firmware leaves it
    print("waiting for keys\n");
    for (;;) wait_for_interrupt();
}
