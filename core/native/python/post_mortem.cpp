// SPDX-License-Identifier: GPL-2.0-or-later
// What is told of a host when its machine ends badly, or when a person asks: what each vCPU does, and the
// last messages of the page protocol.
#include "python/module.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace coremesh {
namespace {

const char* name_of(Access access) {
    return access == Access::kWrite ? "M" : access == Access::kRead ? "S" : "I";
}

nb::typed<nb::list, AnyDict> trace(Host& host, size_t count) {
    nb::list out;
    if (!host.mesh()) return out;
    for (const coherence::TraceEntry& entry : host.mesh()->memory().trace(count)) {
        nb::dict row;
        row["time_ns"] = entry.time_ns;
        row["sent"] = entry.sent;
        row["peer"] = entry.peer;
        row["kind"] = coherence::Message::kNames[entry.kind];
        row["page"] = entry.page;
        row["gpa"] = entry.page < host.ram().pages()
                         ? nb::object(nb::int_(host.ram().gpa_of(entry.page * GuestRam::kPage)))
                         : nb::object(nb::none());
        row["requester"] = entry.requester;
        row["serial"] = entry.serial;
        row["flags"] = entry.flags;
        row["before"] = name_of(entry.before);
        row["after"] = name_of(entry.after);
        row["rejected"] = entry.rejected;
        out.append(row);
    }
    return out;
}

}  // namespace

nb::list to_list(const std::vector<VcpuGlance>& vcpus) {
    nb::list out;
    for (const VcpuGlance& vcpu : vcpus) {
        nb::dict row;
        row["vcpu"] = vcpu.vcpu;
        row["state"] = vcpu.state;
        row["inside"] = vcpu.inside;
        row["waits_for_page"] =
            vcpu.waits_for == Vcpu::kNoPage ? nb::object(nb::none()) : nb::object(nb::int_(vcpu.waits_for));
        row["requested"] = vcpu.core.requested;
        row["extint"] = vcpu.core.line;
        row["request"] = vcpu.core.request;
        out.append(row);
    }
    return out;
}

void bind_post_mortem(nb::class_<Host>& host) {
    host.def("trace", &trace, "count"_a = coherence::Trace::kEntries,
             "The last messages of the page protocol to and from other hosts, oldest first; none on a "
             "machine of one "
             "host. Any thread, while the machine runs or after.")
        .def(
            "glances", [](Host& self) -> nb::typed<nb::list, AnyDict> { return to_list(self.glances()); },
            "What each vCPU does at this moment. Any thread.");
}

}  // namespace coremesh
