// SPDX-License-Identifier: GPL-2.0-or-later
// A guest's view of a machine of many hosts: which cores are on which, and memory that each is home of.
//
// The SRAT says both (ACPI 6.4, 5.2.16): one proximity domain a host. Without one (a single host, another
// emulator) the option hosts=N splits cores and memory evenly, so that the same tests run.
#pragma once

#include "guest.h"

#define MAX_HOSTS 64u
#define PAGE 4096u
// The runtime's own memory ends below; of what a host is home of, the first MESH_BYTES above it are used.
#define RUNTIME_END 0x1900000u
#define OWN_PAGES 0u            // a page for each core
#define SHARED_PAGES 0x100000u  // pages for what a test shares
#define BULK 0x200000u
#define BULK_BYTES 0x400000u
#define MESH_BYTES (BULK + BULK_BYTES)

static uint32_t mesh_hosts, mesh_host_of[MAX_CORES];
static uint64_t mesh_base[MAX_HOSTS];

static inline uint32_t mesh_read32(uint64_t at) {
    uint32_t value;
    memcpy(&value, (void*)at, 4);
    return value;
}

static inline uint64_t mesh_read64(uint64_t at) {
    return mesh_read32(at) | (uint64_t)mesh_read32(at + 4) << 32;
}

static inline uint64_t mesh_table(const char* signature) {
    if (!acpi_rsdp) return 0;
    bool wide = ((uint8_t*)acpi_rsdp)[15] >= 2 && mesh_read32(acpi_rsdp + 24);
    uint64_t root = mesh_read32(acpi_rsdp + (wide ? 24 : 16));
    for (uint64_t at = root + 36; at < root + mesh_read32(root + 4); at += wide ? 8 : 4) {
        uint64_t table = mesh_read32(at);
        if (!memcmp((void*)table, signature, 4)) return table;
    }
    return 0;
}

static inline void mesh_core(uint32_t apic_id, uint32_t host) {
    for (uint32_t core = 0; core < cores_found; core++)
        if (core_apic_ids[core] == apic_id) mesh_host_of[core] = host;
    if (host >= mesh_hosts) mesh_hosts = host + 1;
}

static inline void mesh_memory(uint64_t from, uint64_t to, uint32_t host) {
    if (from < RUNTIME_END) from = RUNTIME_END;
    if (to > 0xc0000000u) to = 0xc0000000u;
    from = (from + PAGE - 1) & ~(uint64_t)(PAGE - 1);
    if (!mesh_base[host] && from + MESH_BYTES <= to) mesh_base[host] = from;
}

// Once, by the first core, before anything below.
static inline void mesh_begin(void) {
    uint64_t srat = option("hosts") ? 0 : mesh_table("SRAT");
    if (srat) {
        for (uint64_t at = srat + 48; at < srat + mesh_read32(srat + 4); at += ((uint8_t*)at)[1]) {
            const uint8_t* entry = (const uint8_t*)at;
            if (entry[0] == 0 && entry[4] & 1)
                mesh_core(entry[3], entry[2]);
            else if (entry[0] == 2 && entry[12] & 1)
                mesh_core(mesh_read32(at + 8), mesh_read32(at + 4));
            else if (entry[0] == 1 && entry[28] & 1 && mesh_read32(at + 2) < MAX_HOSTS)
                mesh_memory(mesh_read64(at + 8), mesh_read64(at + 8) + mesh_read64(at + 16),
                            mesh_read32(at + 2));
        }
    } else {
        uint64_t bytes = option_number("mib", 128) << 20;
        mesh_hosts = (uint32_t)option_number("hosts", 1);
        for (uint32_t core = 0; core < cores_found; core++)
            mesh_host_of[core] = core * mesh_hosts / cores_found;
        for (uint32_t host = 0; host < mesh_hosts; host++)
            mesh_memory(bytes / mesh_hosts * host, bytes / mesh_hosts * (host + 1), host);
    }
    for (uint32_t host = 0; host < mesh_hosts; host++) {
        if (!check(mesh_base[host], "host %u is home of less than %u KiB above %x", host, MESH_BYTES >> 10,
                   RUNTIME_END))
            finish();
    }
    print("mesh hosts=%u cores=%u srat=%u\n", mesh_hosts, cores_found, srat != 0);
}

// A page that only this core uses, at home on its host.
static inline uint64_t mesh_own(uint32_t core) {
    return mesh_base[mesh_host_of[core]] + OWN_PAGES + core * PAGE;
}
// Page number n (0..255) for sharing whose home is that host.
static inline uint64_t mesh_shared(uint32_t host, uint32_t n) {
    return mesh_base[host % mesh_hosts] + SHARED_PAGES + n * PAGE;
}
static inline uint64_t mesh_bulk(uint32_t host) { return mesh_base[host % mesh_hosts] + BULK; }

// Core number n of a host, in the order of the machine; MAX_CORES when it has not as many.
static inline uint32_t mesh_core_of(uint32_t host, uint32_t n) {
    for (uint32_t core = 0; core < cores_running; core++)
        if (mesh_host_of[core] == host && !n--) return core;
    return MAX_CORES;
}

// All cores, host after host in turn: neighbours in this list are on different hosts as far as possible.
static inline uint32_t mesh_spread(uint32_t list[MAX_CORES]) {
    uint32_t count = 0;
    for (uint32_t n = 0; count < cores_running; n++)
        for (uint32_t host = 0; host < mesh_hosts; host++) {
            uint32_t core = mesh_core_of(host, n);
            if (core < MAX_CORES) list[count++] = core;
        }
    return count;
}

static inline uint64_t mesh_random(uint64_t* state) {  // xorshift64
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}
