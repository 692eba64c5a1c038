// Preloaded into `kg`. The TORN_AT-th write makes only its first half. TORN_THEN selects the
// result: "kill", "short", or an error. A byte in TORN_LOG records that it happened.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long made;

static int is_torn(void) {
    const char *at = getenv("TORN_AT");
    return at && atomic_fetch_add(&made, 1) + 1 == atol(at);
}

static ssize_t after(ssize_t written) {
    const char *then = getenv("TORN_THEN");
    int log = open(getenv("TORN_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    real(log, "x", 1);
    close(log);
    if (!strcmp(then, "kill")) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    if (!strcmp(then, "short")) return written;
    errno = ENOSPC;
    return -1;
}

// A write of one byte cannot be split.
static size_t half(size_t length) { return length > 1 ? length / 2 : length; }

ssize_t write(int fd, const void *bytes, size_t length) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (!is_torn()) return real(fd, bytes, length);
    return after(real(fd, bytes, half(length)));
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
    ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    if (!is_torn()) return real(fd, bytes, length, at);
    return after(real(fd, bytes, half(length), at));
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) { return pwrite64(fd, bytes, length, at); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    ssize_t (*real)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");
    if (!is_torn() || count == 0) return real(fd, parts, count);
    return after(write(fd, parts[0].iov_base, half(parts[0].iov_len)));
}
