// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/libzmq.hpp"

#include <dlfcn.h>

namespace coremesh::link {

LibZmq::LibZmq(const std::string& path) {
    // NOLOAD: a second copy would not know the sockets of the first. The handle is kept for the process's
    // life.
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) throw ZmqError("no libzmq is loaded from " + path);
    const auto find = [&](auto& function, const char* name) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
        if (function == nullptr) throw ZmqError(path + " has no " + name);
    };
    void (*version)(int*, int*, int*) = nullptr;
    find(version, "zmq_version");
    int major = 0, minor = 0, patch = 0;
    version(&major, &minor, &patch);
    if (major != 4 || minor < 2) {
        throw ZmqError("libzmq 4.2 or a later 4.x is needed, this is " + std::to_string(major) + "." +
                       std::to_string(minor));
    }
    find(init, "zmq_msg_init");
    find(init_size, "zmq_msg_init_size");
    find(close, "zmq_msg_close");
    find(move, "zmq_msg_move");
    find(send, "zmq_msg_send");
    find(receive, "zmq_msg_recv");
    find(data, "zmq_msg_data");
    find(size, "zmq_msg_size");
    find(more, "zmq_msg_more");
    find(gets, "zmq_msg_gets");
    find(getsockopt, "zmq_getsockopt");
}

int LibZmq::descriptor(void* socket) const {
    int descriptor = -1;
    size_t length = sizeof descriptor;
    if (getsockopt(socket, kFileDescriptor, &descriptor, &length) != 0) throw ZmqError("not a ZeroMQ socket");
    return descriptor;
}

}  // namespace coremesh::link
