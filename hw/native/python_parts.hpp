// SPDX-License-Identifier: GPL-2.0-or-later
// Parts of devices that are written in Python, as native code uses them.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "bus/bus_master.hpp"
#include "hw/native/block_store.hpp"
#include "python/module.hpp"

namespace coremesh {

namespace nb = nanobind;
using namespace nb::literals;

/// A Python object that native code holds. The last reference may be given up by a native thread, which does
/// not hold the interpreter's lock.
inline std::shared_ptr<nb::object> kept(nb::object object) {
    return std::shared_ptr<nb::object>(new nb::object(std::move(object)), [](nb::object* held) {
        nb::gil_scoped_acquire gil;
        delete held;
    });
}

/// A Python callable for native threads. What it raises goes to sys.unraisablehook.
template <typename... Args>
std::function<void(Args...)> safely(nb::object callable, const char* whose) {
    const auto held = kept(std::move(callable));
    return [held, whose](Args... args) {
        const Interpreter interpreter;
        try {
            (*held)(args...);
        } catch (nb::python_error& error) {
            error.discard_as_unraisable(whose);
        } catch (const std::exception&) {
        }
    };
}

/// Memory and interrupt fabric written in Python, for tests: `ram_read`, `ram_write`, `msi`.
class PythonBusMaster final : public BusMaster {
  public:
    PythonBusMaster(nb::object ram, nb::object fabric) : ram_(std::move(ram)), fabric_(std::move(fabric)) {}
    ~PythonBusMaster() override {
        nb::gil_scoped_acquire gil;
        ram_.reset();
        fabric_.reset();
    }
    bool read(uint64_t gpa, void* to, uint64_t length) noexcept override {
        return call([&] {
            const auto data = nb::cast<nb::bytes>(ram_.attr("ram_read")(gpa, length));
            if (data.size() != length) throw nb::value_error("short");
            std::copy_n(data.c_str(), length, static_cast<char*>(to));
        });
    }
    bool write(uint64_t gpa, const void* from, uint64_t length) noexcept override {
        return call([&] { ram_.attr("ram_write")(gpa, nb::bytes(static_cast<const char*>(from), length)); });
    }
    void message(uint64_t address, uint32_t data) noexcept override {
        call([&] { fabric_.attr("msi")(address, data); });
    }

  private:
    template <typename Action>
    static bool call(Action action) noexcept {
        const Interpreter interpreter;
        try {
            action();
            return true;
        } catch (const std::exception&) {  // IndexError: not RAM
            return false;
        }
    }
    nb::object ram_, fabric_;
};

/// A backend written in Python: hw/backend/block.py.
class PythonStore final : public BlockStore {
  public:
    explicit PythonStore(nb::object backend) : backend_(std::move(backend)) {}
    ~PythonStore() override {
        nb::gil_scoped_acquire gil;
        backend_.reset();
    }
    int read(uint64_t offset, void* to, uint64_t length) noexcept override {
        return call([&] {
            nb::object view = nb::steal(PyMemoryView_FromMemory(
                static_cast<char*>(to), static_cast<Py_ssize_t>(length), PyBUF_WRITE));
            backend_.attr("read")(offset, nb::make_tuple(view));
            view.attr("release")();
        });
    }
    int write(uint64_t offset, const void* from, uint64_t length) noexcept override {
        return call([&] {
            backend_.attr("write")(offset, nb::make_tuple(nb::bytes(static_cast<const char*>(from), length)));
        });
    }
    int flush() noexcept override {
        return call([&] { backend_.attr("flush")(); });
    }
    int discard(uint64_t offset, uint64_t length) noexcept override {
        return call([&] { backend_.attr("discard")(offset, length); });
    }
    int zeroes(uint64_t offset, uint64_t length, bool unmap) noexcept override {
        return call([&] { backend_.attr("zeroes")(offset, length, "unmap"_a = unmap); });
    }

  private:
    template <typename Action>
    static int call(Action action) noexcept {
        const Interpreter interpreter;
        try {
            action();
            return 0;
        } catch (nb::python_error& error) {
            // A backend raises OSError when the host's disk fails; anything else is a mistake, and is shown.
            if (error.matches(PyExc_OSError)) return -EIO;
            error.discard_as_unraisable("coremesh disk backend");
        } catch (const std::exception&) {
        }
        return kStoreMistake;
    }
    nb::object backend_;
};

/// The store of a disk's content: a file by its descriptor, if the backend is one; else the backend itself.
inline std::shared_ptr<BlockStore> store_of(nb::object backend, std::optional<int> fd, bool can_discard) {
    if (fd) return std::make_shared<FileStore>(*fd, can_discard);
    return std::make_shared<PythonStore>(std::move(backend));
}

/// ata/bindings.cpp: the IDE channel and its drives.
void bind_ide(nb::module_& m);

}  // namespace coremesh
