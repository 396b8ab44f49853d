// SPDX-License-Identifier: GPL-2.0-or-later
// A story that ends its process, told by a child.
#pragma once

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

/// Runs `story` in a child process and returns its wait status. The child leaves by _exit or by a signal.
inline int in_a_child(const std::function<void()>& story) {
    const pid_t child = fork();
    if (child == 0) {
        const rlimit none{0, 0};
        setrlimit(RLIMIT_CORE, &none);
        story();
        _exit(99);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status;
}
