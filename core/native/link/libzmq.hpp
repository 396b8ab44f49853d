// SPDX-License-Identifier: GPL-2.0-or-later
// The libzmq that Python's zmq package brought, found again in this process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace coremesh::link {

/// libzmq cannot be used: not loaded from there, or too old. The text says which.
class ZmqError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// zmq_msg_t of ZeroMQ 4.x: 64 bytes that belong to libzmq (zmq.h; the size is part of its ABI). A message
/// must be moved by `LibZmq::move`, never copied.
union alignas(void*) ZmqMessage {
    unsigned char opaque[64];
    void* alignment;
};

/// The few functions of the stable C interface that a link needs (zmq(7)). Immutable after construction.
class LibZmq {
  public:
    /// @param path of a library that the process has loaded already; none is loaded. Throws ZmqError.
    explicit LibZmq(const std::string& path);

    // zmq_getsockopt(3), option numbers of zmq.h
    static constexpr int kFileDescriptor = 14;  // ZMQ_FD
    static constexpr int kMore = 13;            // ZMQ_RCVMORE
    // zmq_msg_send(3), zmq_msg_recv(3)
    static constexpr int kDontWait = 1;
    static constexpr int kSendMore = 2;

    int (*init)(ZmqMessage*) = nullptr;
    int (*init_size)(ZmqMessage*, size_t) = nullptr;
    int (*close)(ZmqMessage*) = nullptr;
    int (*move)(ZmqMessage* to, ZmqMessage* from) = nullptr;
    int (*send)(ZmqMessage*, void* socket, int flags) = nullptr;
    int (*receive)(ZmqMessage*, void* socket, int flags) = nullptr;
    void* (*data)(ZmqMessage*) = nullptr;
    size_t (*size)(const ZmqMessage*) = nullptr;
    int (*more)(const ZmqMessage*) = nullptr;
    const char* (*gets)(const ZmqMessage*, const char* property) = nullptr;
    int (*getsockopt)(void* socket, int option, void* value, size_t* length) = nullptr;

    /// The descriptor that becomes readable when a socket's state may have changed; edge-triggered: read the
    /// socket until EAGAIN before sleeping on it (zmq_getsockopt(3), ZMQ_FD). Throws ZmqError.
    int descriptor(void* socket) const;
};

}  // namespace coremesh::link
