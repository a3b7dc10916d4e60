// Preloaded into a command: calls on files whose path holds $BROKEN_PATH fail with EIO after the first $BROKEN_AFTER.
// $BROKEN_CALLS: "read" or "write".
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int fails(int fd, const char *calls) {
    static int count = 0;
    const char *path = getenv("BROKEN_PATH"), *wanted = getenv("BROKEN_CALLS"), *after = getenv("BROKEN_AFTER");
    if (!path || !wanted || !after || strcmp(wanted, calls))
        return 0;
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0)
        return 0;
    name[length] = 0;
    if (!strstr(name, path) || count++ < atoi(after))
        return 0;
    errno = EIO;
    return 1;
}

#define BREAK(type, name, calls, parameters, arguments)                                                              \
    type name parameters {                                                                                            \
        static type(*real) parameters;                                                                                \
        if (fails(fd, calls))                                                                                         \
            return -1;                                                                                                \
        if (!real)                                                                                                    \
            real = dlsym(RTLD_NEXT, #name);                                                                           \
        return real arguments;                                                                                        \
    }

BREAK(ssize_t, read, "read", (int fd, void *to, size_t n), (fd, to, n))
BREAK(ssize_t, pread, "read", (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
BREAK(ssize_t, pread64, "read", (int fd, void *to, size_t n, off64_t at), (fd, to, n, at))
BREAK(ssize_t, write, "write", (int fd, const void *from, size_t n), (fd, from, n))
BREAK(ssize_t, pwrite, "write", (int fd, const void *from, size_t n, off_t at), (fd, from, n, at))
BREAK(ssize_t, writev, "write", (int fd, const struct iovec *from, int n), (fd, from, n))
BREAK(int, fsync, "write", (int fd), (fd))
BREAK(ssize_t, sendfile, "write", (int fd, int from, off_t *at, size_t n), (fd, from, at, n))
BREAK(ssize_t, sendfile64, "write", (int fd, int from, off64_t *at, size_t n), (fd, from, at, n))
