// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/tcp.hpp"

#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

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
/// Way's lock, which is taken before the connection ends. All else belongs to the thread with the receiver's
/// role, but for atomics. epoll_ctl(2) is safe from any thread.
///
/// All sockets are in one epoll, and that is in an outer one, which wakes the protocol thread. A thread that
/// waits for an answer takes the inner one out of the outer one meanwhile and sleeps on it itself.
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
          outer_(epoll_create1(EPOLL_CLOEXEC)),
          recall_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
          ways_(options.hosts),
          again_(options.hosts, -1),
          connections_(options.hosts * (1 + kUnproven)) {
        if (epoll_.get() < 0 || outer_.get() < 0 || recall_.get() < 0) {
            throw std::system_error(errno, std::generic_category(), "epoll");
        }
        descriptor_ = outer_.get();
        watch(listener_.get(), kListener, EPOLLIN, EPOLL_CTL_ADD);
        watch(recall_.get(), kRecall, EPOLLIN, EPOLL_CTL_ADD);
        epoll_event inner{};
        epoll_ctl(outer_.get(), EPOLL_CTL_ADD, epoll_.get(), &inner);
        show(true);
        kept_.reserve(kHeaderBytes + kMaxPayload);
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
        hand_on_kept(sink);
        take_more(left, sink);
        // With one peer or two, reading at once is cheaper than asking first which of them to read.
        if (met_count_ <= kFew && left == kBatch) {
            for (const auto& each : connections_) {
                if (each != nullptr && each->stage == Stage::kOpen) left -= read_in(*each, left, sink);
            }
            if (left != kBatch) return more_ ? Drained::kSome : Drained::kAll;
        }
        find_events(0);
        for (int index = 0; index < std::exchange(found_, 0); ++index) {
            const epoll_event& event = events_[static_cast<size_t>(index)];
            if (event.data.u64 == kListener) {
                accept();
            } else if (event.data.u64 == kRecall) {
                forget_recall();
            } else if (Connection* const connection = connections_[event.data.u64].get()) {
                left -= serve(*connection, event.events, left, sink);
            }
        }
        forget_ended();
        if (more_ || left == 0) return Drained::kSome;
        return left == kBatch ? Drained::kNothing : Drained::kAll;
    }

    int64_t next_arrival() const noexcept override { return next_timer_; }

    void awake() noexcept override {
        if (blind_.load(std::memory_order_seq_cst)) show(true);
    }

    bool lends() const noexcept override { return true; }

    bool arm_lent() noexcept override {
        if (!std::exchange(sleeps_alone_, true)) show(false);
        recallable_.store(true, std::memory_order_seq_cst);
        return !pending();
    }

    void sleep_lent() noexcept override { find_events(-1); }

    Lent drain_lent(int64_t now_ns, Sink& sink) noexcept override {
        now_ns_ = now_ns;
        recallable_.store(false, std::memory_order_relaxed);
        unsigned left = kBatch;
        if (!hand_on_kept(sink)) return Lent::kKept;
        take_more(left, sink);
        const int found = std::exchange(found_, 0);
        bool others = false;  // connections begin or prove themselves, which takes memory and long
        for (int index = 0; index < found && left != 0 && !has_kept_; ++index) {
            const epoll_event& event = events_[static_cast<size_t>(index)];
            if (event.data.u64 == kRecall) {
                forget_recall();
                continue;
            }
            Connection* const connection =
                event.data.u64 == kListener ? nullptr : connections_[event.data.u64].get();
            if (connection == nullptr || connection->stage != Stage::kOpen) {
                others = true;
            } else {
                left -= serve(*connection, event.events, left, sink);
            }
        }
        forget_ended();
        if (others || has_kept_) return Lent::kKept;
        return left == kBatch ? Lent::kNothing : Lent::kSome;
    }

    void give_back() noexcept override {
        recallable_.store(false, std::memory_order_relaxed);
        found_ = 0;  // epoll tells of them again
        if (std::exchange(sleeps_alone_, false)) show(true);
    }

    /// Until the thread with the role has taken the inner epoll out, this one would be woken again and again,
    /// and if it outranks that thread, for ever.
    bool silence(unsigned ready) noexcept override {
        if (ready != 0) show(false);
        return ready != 0;
    }

    /// What is in the kernel epoll tells of.
    bool pending() const noexcept override { return more_.load(std::memory_order_relaxed); }

    void recall() noexcept override {
        if (recallable_.exchange(false, std::memory_order_seq_cst)) eventfd_write(recall_.get(), 1);
    }

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
    static constexpr uint64_t kListener = ~uint64_t{0}, kRecall = kListener - 1;
    using Stage = Connection::Stage;

    void watch(int fd, uint64_t slot, uint32_t events, int how) noexcept {
        epoll_event event{};
        event.events = events;
        event.data.u64 = slot;
        epoll_ctl(epoll_.get(), how, fd, &event);
    }

    /// Whether the outer epoll tells of the inner one. A thread that shows it says so before, and one that
    /// hides it after: hidden, `blind_` is set whatever the other does.
    void show(bool on) noexcept {
        if (on) blind_.store(false, std::memory_order_seq_cst);
        epoll_event event{};
        event.events = on ? EPOLLIN : 0U;
        epoll_ctl(outer_.get(), EPOLL_CTL_MOD, epoll_.get(), &event);
        if (!on) blind_.store(true, std::memory_order_seq_cst);
    }

    void find_events(int timeout_ms) noexcept {
        found_ = epoll_wait(epoll_.get(), events_.data(), static_cast<int>(events_.size()), timeout_ms);
    }

    void forget_recall() noexcept {
        eventfd_t ignored;
        eventfd_read(recall_.get(), &ignored);
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

    /// The frame that a thread that waits has left. False: it is left again.
    bool hand_on_kept(Sink& sink) noexcept {
        if (has_kept_ && sink.arrived(kept_, kept_from_)) has_kept_ = false;
        return !has_kept_;
    }

    void take_more(unsigned& left, Sink& sink) noexcept {
        if (!more_.exchange(false, std::memory_order_relaxed)) return;
        for (const auto& each : connections_) {
            if (each != nullptr && each->more) left -= take(*each, left, sink);
        }
    }

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
        set_timer();
        accepted_.fetch_add(1, std::memory_order_relaxed);
        return true;
    }

    /// Hands on the frames that have arrived, `most` at most; returns how many.
    unsigned take(Connection& connection, unsigned most, Sink& sink) noexcept {
        for (unsigned taken = 0;; ++taken) {
            const Connection::Next next = connection.next();
            connection.more = next != Connection::Next::kPart;
            if (!connection.more) return taken;
            if (taken == most || has_kept_) {
                more_.store(true, std::memory_order_relaxed);
                return taken;
            }
            const auto frame = next == Connection::Next::kFrame ? connection.take(frame_) : std::nullopt;
            if (!frame) {
                refuse(connection, sink);
                return taken;
            }
            if (!sink.arrived(*frame, connection.channel.peer())) {
                kept_.assign(frame->begin(), frame->end());
                kept_from_ = connection.channel.peer();
                has_kept_ = true;
            }
        }
    }

    const HostId self_;
    const LibSodium sodium_;
    const ChannelKeys keys_;
    Socket listener_;
    const sockaddr_storage source_;
    const std::vector<sockaddr_storage> peers_;
    const Socket epoll_, outer_, recall_;
    int descriptor_ = -1;
    std::vector<Way> ways_;  // by host
    std::atomic<uint64_t> accepted_{0}, refused_{0};
    std::atomic<bool> more_{false};        // a connection has a whole record that was not taken
    std::atomic<bool> recallable_{false};  // a thread that waits is in sleep_lent(), or on its way there
    std::atomic<bool> blind_{false};       // the inner epoll is hidden from the protocol thread
    // With the receiver's role.
    std::array<epoll_event, 16> events_;
    int found_ = 0;              // of events_
    bool sleeps_alone_ = false;  // the thread that waits has hidden the inner epoll
    std::vector<uint8_t> kept_;  // a frame that was left to the protocol thread
    HostId kept_from_ = 0;
    bool has_kept_ = false;
    std::vector<int64_t> again_;  // by host: when to connect, -1: not
    std::vector<std::unique_ptr<Connection>> connections_;
    int64_t next_timer_ = -1;
    uint64_t met_ = 0;  // hosts that have, or had, a connection
    unsigned met_count_ = 0;
    bool ended_ = false;
    int64_t now_ns_ = 0;
    std::array<uint8_t, kHeaderBytes + kMaxPayload> frame_;
};

}  // namespace

std::unique_ptr<Wire> make_tcp_wire(const TcpOptions& options) {
    if (options.hosts < 2 || options.hosts > kMaxHosts || options.self >= options.hosts ||
        options.peers.size() != options.hosts || options.keys.of_hosts.size() != options.hosts) {
        throw std::invalid_argument("an address and a key for each of 2 to 64 hosts, and self one of them");
    }
    return std::make_unique<TcpWire>(options);
}

}  // namespace coremesh::link
