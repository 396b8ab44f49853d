// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/tcp.hpp"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "base/pi_mutex.hpp"
#include "link/tcp_connection.hpp"

namespace coremesh::link {
namespace {

using Drained = ProtocolThread::Drained;
using Connection = TcpConnection;

constexpr unsigned kBatch = 64;                  // frames handed on before the timers are looked at
constexpr int64_t kAgainNs = 100'000'000;        // a connection that was refused is tried again after this
constexpr int64_t kPatienceNs = 10'000'000'000;  // for the other side to prove its key
constexpr size_t kUnproven = 2;                  // accepted connections that are kept unproven, for each host
constexpr size_t kOut = 512 << 10;               // bytes that wait for one peer beyond the kernel's buffer
constexpr unsigned kFew = 2;                     // peers that are read without asking epoll

/// What a host that sends to a peer uses. Under `lock`, which comes after the sender's: by any thread that
/// sends, and by the protocol thread.
struct Way {
    PiMutex lock;
    Connection* open = nullptr;  // proven, and not ended
    std::vector<uint8_t> out;    // records that the kernel has not taken: begin to end
    size_t begin = 0, end = 0;
    bool waits_for_room = false;  // EPOLLOUT is asked for
};

/// ## Threads
///
/// A thread that sends uses the peer's Way, the descriptor and the sealing half of its connection, under the
/// Way's lock; the protocol thread takes that lock before it ends the connection. All else is the protocol
/// thread's. epoll_ctl(2) is safe from any thread.
class TcpWire final : public Wire {
  public:
    explicit TcpWire(const TcpOptions& options)
        : self_(options.self),
          sodium_(options.libsodium),
          keys_(options.keys),
          listener_(options.listener),
          source_(options.source),
          peers_(options.peers),
          epoll_(epoll_create1(EPOLL_CLOEXEC)),
          ways_(options.hosts),
          again_(options.hosts, -1),
          connections_(options.hosts * (1 + kUnproven)) {
        if (epoll_.get() < 0) throw std::system_error(errno, std::generic_category(), "epoll");
        descriptor_ = epoll_.get();
        watch(listener_.get(), kListener, EPOLLIN, EPOLL_CTL_ADD);
    }

    Put put(HostId to, std::span<const uint8_t> frame) noexcept override {
        Way& way = ways_[to];
        const std::lock_guard guard(way.lock);
        // A connection that has ended is not made again: the peer's silence then ends the machine.
        if (way.open == nullptr) return Put::kFull;
        const size_t need = frame.size() + SecureChannel::kOverhead;
        if (kOut - way.end < need) {
            std::memmove(way.out.data(), way.out.data() + way.begin, way.end - way.begin);
            way.end -= std::exchange(way.begin, 0);
            if (kOut - way.end < need) return Put::kFull;
        }
        way.open->channel.seal(frame, way.out.data() + way.end);
        way.end += need;
        return Put::kTaken;
    }

    void notify(HostId to) noexcept override {
        Way& way = ways_[to];
        const std::lock_guard guard(way.lock);
        if (way.open != nullptr && !way.waits_for_room) write_out(way);
    }

    std::span<const int> descriptors() const noexcept override { return {&descriptor_, 1}; }

    void begins() noexcept override {
        for (unsigned host = self_ + 1U; host < ways_.size(); ++host) again_[host] = 0;
        set_timer();
    }

    Drained drain(int64_t now_ns, unsigned, Sink& sink) noexcept override {
        now_ns_ = now_ns;
        if (next_timer_ >= 0 && now_ns >= next_timer_) run_timers();
        unsigned left = kBatch;
        if (std::exchange(more_, false)) {
            for (const auto& each : connections_) {
                if (each != nullptr && each->more) left -= take(*each, left, sink);
            }
        }
        // With one peer or two, reading at once is cheaper than asking first which of them to read.
        if (met_count_ <= kFew && left == kBatch) {
            for (const auto& each : connections_) {
                if (each != nullptr && each->stage == Stage::kOpen) left -= read_in(*each, left, sink);
            }
            if (left != kBatch) return more_ ? Drained::kSome : Drained::kAll;
        }
        std::array<epoll_event, 16> events;
        const int found = epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
        for (int index = 0; index < found; ++index) {
            const epoll_event& event = events[static_cast<size_t>(index)];
            if (event.data.u64 == kListener) {
                accept();
            } else if (Connection* const connection = connections_[event.data.u64].get()) {
                left -= serve(*connection, event.events, left, sink);
            }
        }
        forget_ended();
        if (more_ || left == 0) return Drained::kSome;
        return left == kBatch ? Drained::kNothing : Drained::kAll;
    }

    int64_t next_arrival() const noexcept override { return next_timer_; }

    void close() noexcept override {
        for (Way& way : ways_) {
            const std::lock_guard guard(way.lock);
            way.open = nullptr;
        }
        connections_.clear();
        listener_.reset();
    }

    void describe(LinkFacts& facts) const noexcept override {
        facts.wire = "tcp";
        facts.keys_accepted = accepted_.load(std::memory_order_relaxed);
        facts.keys_refused = refused_.load(std::memory_order_relaxed);
    }

  private:
    static constexpr uint64_t kListener = ~uint64_t{0};
    using Stage = Connection::Stage;

    void watch(int fd, uint64_t slot, uint32_t events, int how) noexcept {
        epoll_event event{};
        event.events = events;
        event.data.u64 = slot;
        epoll_ctl(epoll_.get(), how, fd, &event);
    }

    // --- connections begin and end ----------------------------------------------------------------------

    void run_timers() noexcept {
        for (unsigned host = 0; host < ways_.size(); ++host) {
            if (again_[host] < 0 || now_ns_ < again_[host]) continue;
            again_[host] = -1;
            connect(static_cast<HostId>(host));
        }
        for (const auto& each : connections_) {
            if (each != nullptr && each->unproven() && now_ns_ >= each->deadline) end(*each);
        }
        forget_ended();
        set_timer();
    }

    void set_timer() noexcept {
        next_timer_ = -1;
        const auto sooner = [this](int64_t at) {
            if (at >= 0 && (next_timer_ < 0 || at < next_timer_)) next_timer_ = at;
        };
        for (const int64_t at : again_) sooner(at);
        for (const auto& each : connections_) {
            if (each != nullptr && each->unproven()) sooner(each->deadline);
        }
    }

    void connect(HostId host) noexcept {
        Socket fd = Socket::connecting(peers_[host], source_);
        if (fd.get() < 0 || keep(std::move(fd), host, Stage::kConnecting, EPOLLOUT) == nullptr) {
            again_[host] = now_ns_ + kAgainNs;
        }
    }

    void accept() noexcept {
        for (;;) {
            Socket fd(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
            if (fd.get() < 0) {
                if (errno == EINTR || errno == ECONNABORTED) continue;
                return;
            }
            Connection* const made = keep(std::move(fd), std::nullopt, Stage::kGreeting, EPOLLIN);
            if (made != nullptr && !made->send_whole(made->channel.greeting())) end(*made);
        }
    }

    /// Null, and the socket is closed, without a free place or memory.
    Connection* keep(Socket fd, std::optional<HostId> peer, Stage stage, uint32_t events) noexcept {
        const auto place = std::find(connections_.begin(), connections_.end(), nullptr);
        if (place == connections_.end()) return nullptr;
        const int yes = 1;
        setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        try {
            *place = std::make_unique<Connection>(std::move(fd), sodium_, self_, peer, stage,
                                                  now_ns_ + kPatienceNs);
        } catch (const std::exception&) {
            return nullptr;
        }
        Connection& made = **place;
        made.slot = static_cast<uint64_t>(place - connections_.begin());
        watch(made.fd.get(), made.slot, events, EPOLL_CTL_ADD);
        set_timer();
        return &made;
    }

    /// The connection stays in its place until forget_ended().
    void end(Connection& connection) noexcept {
        if (connection.stage == Stage::kOpen) {
            Way& way = ways_[connection.channel.peer()];
            const std::lock_guard guard(way.lock);
            way.open = nullptr;
        }
        if (connection.unproven() && connection.to) again_[*connection.to] = now_ns_ + kAgainNs;
        connection.stage = Stage::kEnded;
        connection.more = false;
        connection.fd.reset();
        ended_ = true;
    }

    void forget_ended() noexcept {
        if (!std::exchange(ended_, false)) return;
        for (auto& each : connections_) {
            if (each != nullptr && each->stage == Stage::kEnded) each.reset();
        }
        set_timer();
    }

    void refuse(Connection& connection, Sink& sink) noexcept {
        if (connection.unproven()) refused_.fetch_add(1, std::memory_order_relaxed);
        sink.stranger(Refusal::kNotAFrame);
        end(connection);
    }

    // --- bytes go out -----------------------------------------------------------------------------------

    /// With the way's lock.
    void write_out(Way& way) noexcept {
        while (way.begin != way.end) {
            const ssize_t sent = ::send(way.open->fd.get(), way.out.data() + way.begin, way.end - way.begin,
                                        MSG_DONTWAIT | MSG_NOSIGNAL);
            if (sent >= 0) {
                way.begin += static_cast<size_t>(sent);
                continue;
            }
            if (errno == EINTR) continue;
            // Anything but a full buffer is the connection's end, which the protocol thread will find.
            if (errno == EAGAIN || errno == ENOBUFS) ask_for_room(way, true);
            return;
        }
        way.begin = way.end = 0;
        if (way.waits_for_room) ask_for_room(way, false);
    }

    void ask_for_room(Way& way, bool wanted) noexcept {
        way.waits_for_room = wanted;
        watch(way.open->fd.get(), way.open->slot, EPOLLIN | (wanted ? EPOLLOUT : 0U), EPOLL_CTL_MOD);
    }

    // --- bytes come in ----------------------------------------------------------------------------------

    /// Returns how many frames were handed on, `most` at most.
    unsigned serve(Connection& connection, uint32_t events, unsigned most, Sink& sink) noexcept {
        if (connection.stage == Stage::kEnded) return 0;
        if (connection.stage == Stage::kConnecting) {
            connected(connection);
            return 0;
        }
        if (connection.stage == Stage::kOpen && (events & EPOLLOUT) != 0) {
            Way& way = ways_[connection.channel.peer()];
            const std::lock_guard guard(way.lock);
            write_out(way);
        }
        if ((events & ~uint32_t{EPOLLOUT}) == 0) return 0;
        return read_in(connection, most, sink);
    }

    /// Returns how many frames were handed on, `most` at most.
    unsigned read_in(Connection& connection, unsigned most, Sink& sink) noexcept {
        if (connection.more) return 0;  // those first
        if (!connection.receive()) {
            end(connection);
            return 0;
        }
        if (connection.unproven()) {
            const Connection::Proof proof = connection.shake_hands(keys_, frame_);
            if (proof == Connection::Proof::kNone ||
                (proof == Connection::Proof::kGiven && !admit(connection))) {
                refuse(connection, sink);
                return 0;
            }
        }
        return connection.stage == Stage::kOpen ? take(connection, most, sink) : 0;
    }

    void connected(Connection& connection) noexcept {
        if (!connection.greet()) return end(connection);
        watch(connection.fd.get(), connection.slot, EPOLLIN, EPOLL_CTL_MOD);
    }

    /// The other side has proved its key, and becomes the way to its host. False: that host has a connection.
    bool admit(Connection& connection) noexcept {
        Way& way = ways_[connection.channel.peer()];
        const std::lock_guard guard(way.lock);
        if (met_ >> connection.channel.peer() & 1) return false;
        met_ |= uint64_t{1} << connection.channel.peer();
        ++met_count_;
        way.out.resize(kOut);
        way.open = &connection;
        connection.stage = Stage::kOpen;
        accepted_.fetch_add(1, std::memory_order_relaxed);
        return true;
    }

    /// Hands on the frames that have arrived, `most` at most; returns how many.
    unsigned take(Connection& connection, unsigned most, Sink& sink) noexcept {
        connection.more = false;
        for (unsigned taken = 0;; ++taken) {
            const Connection::Next next = connection.next();
            if (next == Connection::Next::kPart) return taken;
            if (taken == most) {
                connection.more = more_ = true;
                return taken;
            }
            const auto frame = next == Connection::Next::kFrame ? connection.take(frame_) : std::nullopt;
            if (!frame) {
                refuse(connection, sink);
                return taken;
            }
            sink.arrived(*frame, connection.channel.peer());
        }
    }

    const HostId self_;
    const LibSodium sodium_;
    const ChannelKeys keys_;
    Socket listener_;
    const sockaddr_storage source_;
    const std::vector<sockaddr_storage> peers_;
    const Socket epoll_;
    int descriptor_ = -1;
    std::vector<Way> ways_;  // by host
    std::atomic<uint64_t> accepted_{0}, refused_{0};
    // Protocol thread.
    std::vector<int64_t> again_;  // by host: when to connect, -1: not
    std::vector<std::unique_ptr<Connection>> connections_;
    int64_t next_timer_ = -1;
    uint64_t met_ = 0;  // hosts that have, or had, a connection
    unsigned met_count_ = 0;
    bool more_ = false, ended_ = false;
    int64_t now_ns_ = 0;
    std::array<uint8_t, kHeaderBytes + kMaxPayload> frame_;
};

}  // namespace

sockaddr_storage socket_address(const std::string& address, unsigned port) {
    sockaddr_storage storage{};
    auto& v4 = reinterpret_cast<sockaddr_in&>(storage);
    auto& v6 = reinterpret_cast<sockaddr_in6&>(storage);
    if (port <= 0xffff && inet_pton(AF_INET, address.c_str(), &v4.sin_addr) == 1) {
        v4.sin_family = AF_INET;
        v4.sin_port = htons(static_cast<uint16_t>(port));
    } else if (port <= 0xffff && inet_pton(AF_INET6, address.c_str(), &v6.sin6_addr) == 1) {
        v6.sin6_family = AF_INET6;
        v6.sin6_port = htons(static_cast<uint16_t>(port));
    } else {
        throw std::invalid_argument("no IP address and port: " + address);
    }
    return storage;
}

std::unique_ptr<Wire> make_tcp_wire(const TcpOptions& options) {
    if (options.hosts < 2 || options.hosts > kMaxHosts || options.self >= options.hosts ||
        options.peers.size() != options.hosts || options.keys.of_hosts.size() != options.hosts) {
        throw std::invalid_argument("an address and a key for each of 2 to 64 hosts, and self one of them");
    }
    return std::make_unique<TcpWire>(options);
}

}  // namespace coremesh::link
