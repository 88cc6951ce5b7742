/* Preloaded into the program under test: counts its state-changing calls on files below one directory, and at call n kills
   it, tears the write, or fails it; or records every call with its data, for the power-loss model. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { KILL, KILL_AFTER, TORN, ENOSPC_ONCE, ENOSPC_ALWAYS, EIO_ONCE };

static char watched_dir[4096];
static size_t watched_length;
static long calls, fire_at, fired;
enum { KINDS_MAX = 65536 };
static char kinds[KINDS_MAX]; /* of each call so far: 0 no data, 1 takes space, 2 writes data */
static int mode, disk_full, trace_fd = -1;

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off64_t);
static int (*real_unlink)(const char *);
static int (*real_rename)(const char *, const char *);
static int (*real_link)(const char *, const char *);

__attribute__((constructor)) static void begin(void) {
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    real_rename = dlsym(RTLD_NEXT, "rename");
    real_link = dlsym(RTLD_NEXT, "link");
}

void shim_arm(const char *directory, long at, int how) {
    strncpy(watched_dir, directory, sizeof watched_dir - 1);
    watched_length = strlen(watched_dir);
    calls = fired = disk_full = 0;
    fire_at = at;
    mode = how;
}
void shim_disarm(void) { watched_length = 0; }
void shim_trace(int fd) { trace_fd = fd; }
long shim_calls(void) { return calls; }
long shim_fired(void) { return fired; }
const char *shim_kinds(void) { return kinds; }

/* One record: op, path length, offset, data length, path, data. */
static void record(char op, const char *path, int64_t offset, const void *data, uint32_t length) {
    if (trace_fd < 0) return;
    uint16_t path_length = (uint16_t)strlen(path);
    char head[15];
    head[0] = op;
    memcpy(head + 1, &path_length, 2);
    memcpy(head + 3, &offset, 8);
    memcpy(head + 11, &length, 4);
    real_write(trace_fd, head, sizeof head);
    real_write(trace_fd, path, path_length);
    if (length) real_write(trace_fd, data, length);
}
/* What the program's own observer wants to remember at this point of the trace. */
void shim_note(const char *text) { record('N', text, 0, NULL, 0); }

static int below(const char *path) { return watched_length && strncmp(path, watched_dir, watched_length) == 0; }

static int watched(int fd, char *path) {
    if (!watched_length) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, 4095);
    if (length <= 0) return 0;
    path[length] = 0;
    return below(path);
}
static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

/* Whether the call fails with errno set: 1; whether it is to be torn or killed after: 2, 3. */
static int boundary(int writes) {
    if (calls < KINDS_MAX) kinds[calls] = (char)writes;
    calls++;
    if (disk_full && writes) { errno = ENOSPC; return 1; }
    if (calls != fire_at) return 0;
    switch (mode) {
    case KILL: fired = 1; die(); break;
    case KILL_AFTER: fired = 1; return 3;
    case TORN: if (writes == 2) { fired = 1; return 2; } return 0;
    case ENOSPC_ONCE: if (writes) { fired = 1; errno = ENOSPC; return 1; } return 0;
    case ENOSPC_ALWAYS: if (writes) { fired = 1; disk_full = 1; errno = ENOSPC; return 1; } return 0;
    case EIO_ONCE: fired = 1; errno = EIO; return 1;
    }
    return 0;
}

ssize_t write(int fd, const void *data, size_t length) {
    char path[4096];
    if (!watched(fd, path)) return real_write(fd, data, length);
    int what = boundary(2);
    if (what == 1) return -1;
    if (what == 2) { real_write(fd, data, length / 2); die(); }
    int64_t offset = (fcntl(fd, F_GETFL) & O_APPEND) ? -1 : (int64_t)lseek(fd, 0, SEEK_CUR);
    record('W', path, offset, data, (uint32_t)length);
    ssize_t result = real_write(fd, data, length);
    if (what == 3) die();
    return result;
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    char path[4096];
    if (!watched(fd, path)) return real_pwrite(fd, data, length, offset);
    int what = boundary(2);
    if (what == 1) return -1;
    if (what == 2) { real_pwrite(fd, data, length / 2, offset); die(); }
    record('W', path, offset, data, (uint32_t)length);
    ssize_t result = real_pwrite(fd, data, length, offset);
    if (what == 3) die();
    return result;
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return pwrite64(fd, data, length, offset); }

static int sync_with(int fd, int (*sync)(int)) {
    char path[4096];
    if (!watched(fd, path)) return sync(fd);
    int what = boundary(0);
    if (what == 1) return -1;
    int result = sync(fd);
    record('S', path, 0, NULL, 0);
    if (what == 3) die();
    return result;
}
int fsync(int fd) { return sync_with(fd, real_fsync); }
int fdatasync(int fd) { return sync_with(fd, real_fdatasync); }

int ftruncate64(int fd, off64_t length) {
    char path[4096];
    if (!watched(fd, path)) return real_ftruncate(fd, length);
    int what = boundary(1);
    if (what == 1) return -1;
    record('T', path, length, NULL, 0);
    int result = real_ftruncate(fd, length);
    if (what == 3) die();
    return result;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int unlink(const char *path) {
    if (!below(path)) return real_unlink(path);
    int what = boundary(0);
    if (what == 1) return -1;
    record('U', path, 0, NULL, 0);
    int result = real_unlink(path);
    if (what == 3) die();
    return result;
}
int rename(const char *from, const char *to) {
    if (!below(to)) return real_rename(from, to);
    int what = boundary(1);
    if (what == 1) return -1;
    record('R', from, 0, to, (uint32_t)strlen(to));
    int result = real_rename(from, to);
    if (what == 3) die();
    return result;
}
int link(const char *from, const char *to) {
    if (!below(to)) return real_link(from, to);
    int what = boundary(1);
    if (what == 1) return -1;
    int result = real_link(from, to);
    if (what == 3) die();
    return result;
}
