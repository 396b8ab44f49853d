// SPDX-License-Identifier: GPL-2.0-or-later
// A test of native code is a program of stories; the first check that fails ends it with status 1.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string_view>
#include <type_traits>
#include <vector>

namespace check {

struct Story {
    const char* name;
    void (*body)();
};

inline std::vector<Story>& stories() {
    static std::vector<Story> all;
    return all;
}

inline const char*& current() {
    static const char* name = "";
    return name;
}

struct Registration {
    Registration(const char* name, void (*body)()) { stories().push_back({name, body}); }
};

/// Ends the program at once: other threads of the story may still run, and destructors would wait for them.
[[noreturn]] inline void fail(const char* file, int line) {
    std::cout << "\nFAILED: " << current() << "\n  at " << file << ":" << line << std::endl;
    std::fflush(nullptr);
    std::_Exit(1);
}

template <typename T>
auto printable(const T& value) {
    if constexpr (std::is_enum_v<T>) {
        return static_cast<long long>(value);
    } else if constexpr (requires { value.load(); }) {
        return value.load();
    } else if constexpr (sizeof(T) == 1) {
        return static_cast<int>(value);
    } else {
        return value;
    }
}

template <typename A, typename B>
void equal(const A& a, const B& b, const char* text, const char* file, int line) {
    if (a == b) return;
    std::cout << "\n  " << text << "\n  left  " << printable(a) << "\n  right " << printable(b);
    fail(file, line);
}

/// Whether `call` throws an Error.
template <typename Error, typename Call>
bool throws(Call call) {
    try {
        call();
    } catch (const Error&) {
        return true;
    }
    return false;
}

/// Runs the stories whose name contains the first argument; all without one.
inline int run(int count, char** arguments) {
    const std::string_view wanted = count > 1 ? arguments[1] : "";
    for (const Story& story : stories()) {
        if (std::string_view(story.name).find(wanted) == std::string_view::npos) continue;
        current() = story.name;
        std::cout << "story: " << story.name << std::endl;
        story.body();
    }
    return 0;
}

}  // namespace check

#define CHECK_JOIN2(a, b) a##b
#define CHECK_JOIN(a, b) CHECK_JOIN2(a, b)

/// STORY("given ..., when ..., then ...") { body }
#define STORY(name)                                                                                     \
    static void CHECK_JOIN(story_, __LINE__)();                                                         \
    static const check::Registration CHECK_JOIN(registration_, __LINE__){name,                          \
                                                                         CHECK_JOIN(story_, __LINE__)}; \
    static void CHECK_JOIN(story_, __LINE__)()

#define CHECK(condition)                                           \
    do {                                                           \
        if (!(condition)) {                                        \
            std::cout << "\n  not true: " #condition << std::endl; \
            check::fail(__FILE__, __LINE__);                       \
        }                                                          \
    } while (false)

#define CHECK_EQ(a, b) check::equal((a), (b), #a " == " #b, __FILE__, __LINE__)

/// Once in each test program.
#define RUN_STORIES() \
    int main(int count, char** arguments) { return check::run(count, arguments); }
