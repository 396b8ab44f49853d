// SPDX-License-Identifier: GPL-2.0-or-later
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>

#include "python/module.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace coremesh {
namespace {

using Entry = decltype(CoreState::Part::entry);

nb::dict to_dict(Entry entry_at, const uint64_t* words) {
    nb::dict out;
    for (size_t i = 0; const cm_state_entry* entry = entry_at(i); ++i) {
        if (!entry->count) {
            out[entry->name] = *words++;
            continue;
        }
        nb::list list;
        for (unsigned n = 0; n < entry->count; ++n) list.append(*words++);
        out[entry->name] = list;
    }
    return out;
}

/// The caller has compared the shape with a state of the same machine. Throws std::invalid_argument for a
/// number that is not one of 64 bits.
void from_dict(Entry entry_at, const char* part, const nb::dict& in, uint64_t* words) {
    for (size_t i = 0; const cm_state_entry* entry = entry_at(i); ++i) {
        try {
            if (!entry->count) {
                *words++ = nb::cast<uint64_t>(in[entry->name]);
                continue;
            }
            const auto list = nb::cast<std::vector<uint64_t>>(in[entry->name]);
            if (list.size() != entry->count) throw nb::cast_error();
            for (uint64_t word : list) *words++ = word;
        } catch (const nb::cast_error&) {
            throw std::invalid_argument(std::string(part) + "." + entry->name);
        }
    }
}

AnyDict save(Host& host) {
    const Host::Saved saved = host.save();
    nb::list vcpus;
    for (const CoreState& vcpu : saved.vcpus) {
        nb::dict numbered, out;
        for (const CoreState::Part& part : vcpu.parts) {
            out[part.name] = to_dict(part.entry, part.words.data());
        }
        for (const auto& [number, value] : vcpu.numbered) {
            numbered[nb::str("{:#x}").attr("format")(number)] = value;
        }
        out[vcpu.numbered_name] = numbered;
        vcpus.append(out);
    }
    nb::dict out;
    out["tsc"] = saved.tsc;
    out["vcpus"] = vcpus;
    return out;
}

void load(Host& host, const AnyDict& state) {
    Host::Saved saved = host.save();  // for the sizes
    saved.tsc = nb::cast<uint64_t>(state["tsc"]);
    size_t index = 0;
    for (nb::handle item : nb::cast<nb::list>(state["vcpus"])) {
        const nb::dict in = nb::cast<nb::dict>(item);
        CoreState& vcpu = saved.vcpus.at(index++);
        for (CoreState::Part& part : vcpu.parts) {
            from_dict(part.entry, part.name, nb::cast<nb::dict>(in[part.name]), part.words.data());
        }
        for (auto [key, value] : nb::cast<nb::dict>(in[vcpu.numbered_name])) {
            const auto number = std::stoul(nb::cast<std::string>(key), nullptr, 16);
            vcpu.numbered[static_cast<uint32_t>(number)] = nb::cast<uint64_t>(value);
        }
    }
    host.load(saved);
}

using Member = nb::typed<nb::tuple, nb::str, nb::str, int, int>;

/// (name, role, offset, size) of each member of the engine's CPU state, the size of all, and their bytes.
nb::typed<nb::tuple, nb::typed<nb::list, Member>, int, nb::bytes> engine_image(Host& host, size_t vcpu) {
    static const char* const roles[] = {"saved", "fixed", "scratch"};
    size_t count, size;
    const cm_engine_functions& engine = host.platform().engine_functions();
    const cm_state_member* members = engine.state_members(&count, &size);
    host.require_at_rest();
    nb::list out;
    for (size_t i = 0; i < count; ++i) {
        out.append(
            nb::make_tuple(members[i].name, roles[members[i].role], members[i].offset, members[i].size));
    }
    return nb::make_tuple(out, size, nb::bytes(engine.state_image(host.vcpu(vcpu).engine()), size));
}

}  // namespace

void bind_state(nb::class_<Host>& host) {
    host.def("save_vcpus", &save, "See coremesh.core.engine.Host.save_state.")
        .def("load_vcpus", &load, "state"_a, "The reverse; ValueError names the word that does not fit.")
        .def(
            "ram_extents",
            [](Host& self) {
                std::vector<std::tuple<uint64_t, uint64_t>> out;
                for (const auto [offset, length] : self.ram().extents()) {
                    for (const RamRegion& region : self.ram().layout().regions()) {
                        const uint64_t begin = std::max(offset, region.offset);
                        const uint64_t end = std::min(offset + length, region.offset + region.bytes);
                        if (begin < end) out.emplace_back(region.gpa + (begin - region.offset), end - begin);
                    }
                }
                return out;
            },
            "(gpa, length) of the RAM that was ever touched; the rest reads as zeros. While paused.")
        .def("engine_image", &engine_image, "vcpu"_a,
             "Every member of the engine's CPU state, and what a save makes of it; for tests.");
}

}  // namespace coremesh
