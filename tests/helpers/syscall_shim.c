/* Loaded before libc (LD_PRELOAD): counts the calls that write, rename or remove below one folder, and fails the n-th.

   A test arms it within the process: fault_arm(folder, n, errno, for_good, kinds, log). With n = 0 nothing fails and
   every call is written to the log as "kind path". Reading calls are left alone unless "read" is among the kinds. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX], kinds[256];
static long wanted = -1, passed = 0;
static int code = 0, for_good = 0, log_file = -1;
static __thread int inside = 0;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__) = 0; \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

long fault_passed(void) { return passed; }

void fault_arm(const char *below, long number, int error, int always, const char *which, const char *log) {
    wanted = -1;
    snprintf(folder, sizeof folder, "%s/", below);
    snprintf(kinds, sizeof kinds, " %s ", which);
    code = error, for_good = always, passed = 0;
    inside = 1;
    log_file = log && *log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    inside = 0;
    wanted = number;
}

/* Whether this call fails: it is of a wanted kind, below the folder, and its turn has come. */
static int fails(const char *kind, const char *path) {
    if (wanted < 0 || inside || !path || strncmp(path, folder, strlen(folder))) return 0;
    char word[32];
    snprintf(word, sizeof word, " %s ", kind);
    if (!strstr(kinds, word)) return 0;
    pthread_mutex_lock(&lock);
    long mine = ++passed;
    pthread_mutex_unlock(&lock);
    if (log_file >= 0) {
        inside = 1;
        dprintf(log_file, "%s %s\n", kind, path);
        inside = 0;
    }
    if (wanted == 0 || !(mine == wanted || (for_good && mine > wanted))) return 0;
    errno = code;
    return 1;
}

static const char *path_of(int descriptor, char *found) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, found, PATH_MAX - 1);
    if (length < 0) return 0;
    found[length] = 0;
    return found;
}

static const char *at(int where, const char *name, char *found) {
    if (!name) return 0;
    if (*name == '/') return name;
    char place[PATH_MAX];
    if (where == AT_FDCWD ? !getcwd(place, sizeof place) : !path_of(where, place)) return 0;
    if (snprintf(found, PATH_MAX, "%s/%s", place, name) >= PATH_MAX) return 0;
    return found;
}

static int fails_at(const char *kind, int where, const char *name) {
    char found[PATH_MAX];
    return wanted >= 0 && !inside && fails(kind, at(where, name, found));
}

static int fails_on(const char *kind, int descriptor) {
    char found[PATH_MAX];
    return wanted >= 0 && !inside && fails(kind, path_of(descriptor, found));
}

static const char *opening(int flags) { return flags & (O_CREAT | O_WRONLY | O_RDWR) ? "open" : "read"; }

#define OPEN(function) \
    int function(const char *path, int flags, ...) { \
        REAL(int, #function, const char *, int, ...); \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        return fails_at(opening(flags), AT_FDCWD, path) ? -1 : real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function) \
    int function(int where, const char *path, int flags, ...) { \
        REAL(int, #function, int, const char *, int, ...); \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        return fails_at(opening(flags), where, path) ? -1 : real(where, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    return fails_on("write", file) ? -1 : real(file, data, size);
}

ssize_t writev(int file, const struct iovec *data, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return fails_on("write", file) ? -1 : real(file, data, count);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t place) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    return fails_on("write", file) ? -1 : real(file, data, size, place);
}

int ftruncate64(int file, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t);
    return fails_on("write", file) ? -1 : real(file, size);
}

/* No test sees a power cut: what does not fail need not wait for the disk. */
int fsync(int file) { return fails_on("fsync", file) ? -1 : 0; }

int fdatasync(int file) { return fsync(file); }

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return fails_at("rename", AT_FDCWD, to) ? -1 : real(from, to);
}

int renameat(int one, const char *from, int other, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    return fails_at("rename", other, to) ? -1 : real(one, from, other, to);
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    return fails_at("unlink", AT_FDCWD, path) ? -1 : real(path);
}

int unlinkat(int where, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    return fails_at(flags & AT_REMOVEDIR ? "rmdir" : "unlink", where, path) ? -1 : real(where, path, flags);
}

int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    return fails_at("rmdir", AT_FDCWD, path) ? -1 : real(path);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return fails_at("mkdir", AT_FDCWD, path) ? -1 : real(path, mode);
}

int mkdirat(int where, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    return fails_at("mkdir", where, path) ? -1 : real(where, path, mode);
}

int chmod(const char *path, mode_t mode) {
    REAL(int, "chmod", const char *, mode_t);
    return fails_at("chmod", AT_FDCWD, path) ? -1 : real(path, mode);
}
