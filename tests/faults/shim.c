/* Preloaded into a program: counts what changes files below one folder, and lets the n-th change fail or be the last.
 *
 * shim_arm(folder, at, mode) begins to count; shim_count() tells how many there were. Modes: 'k' kills the process
 * before the change, 'h' after half of it (of a write; before, of the rest), 'e' refuses it with ENOSPC, and every
 * write after it, as a full disk does; 'r' likewise, and removing too, with EROFS, as a file system that may not be
 * written; 0 only counts. C extensions are caught too: they call the same C library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static size_t folder_length;
static long target_event;
static int mode;
static atomic_long events;

void shim_arm(const char *path, long at, int how) {
  events = 0;
  target_event = at;
  mode = how;
  folder_length = (size_t)snprintf(folder, sizeof folder, "%s", path);
}

long shim_count(void) { return events; }

static int below(const char *path) {
  return folder_length && path && !strncmp(path, folder, folder_length);
}

static int below_fd(int fd) {
  char link[64], path[PATH_MAX];
  if (!folder_length) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

enum { GO_ON, HALF, REFUSE };

static int event(void) {
  long number = ++events;
  if (!target_event || number < target_event) return GO_ON;
  if (mode == 'e' || mode == 'r') return REFUSE;
  if (number > target_event) return GO_ON;
  if (mode == 'k') kill(getpid(), SIGKILL);
  return mode == 'h' ? HALF : GO_ON;
}

static int refused(void) {
  errno = mode == 'r' ? EROFS : ENOSPC;
  return -1;
}

static void die(void) { kill(getpid(), SIGKILL); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
  int what = below_fd(fd) ? event() : GO_ON;
  if (what == REFUSE) return refused();
  ssize_t done = REAL(write)(fd, data, what == HALF ? size / 2 : size);
  if (what == HALF) die();
  return done;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
  int what = below_fd(fd) ? event() : GO_ON;
  if (what == REFUSE) return refused();
  ssize_t done = REAL(pwrite64)(fd, data, what == HALF ? size / 2 : size, place);
  if (what == HALF) die();
  return done;
}

ssize_t writev(int fd, const struct iovec *pieces, int count) {
  int what = below_fd(fd) ? event() : GO_ON;
  if (what == REFUSE) return refused();
  ssize_t done = REAL(writev)(fd, pieces, what == HALF && count > 1 ? count / 2 : count);
  if (what == HALF) die();
  return done;
}

ssize_t sendfile64(int to, int from, off64_t *place, size_t size) {
  int what = below_fd(to) ? event() : GO_ON;
  if (what == REFUSE) return refused();
  ssize_t done = REAL(sendfile64)(to, from, place, what == HALF ? size / 2 : size);
  if (what == HALF) die();
  return done;
}

ssize_t sendfile(int to, int from, off_t *place, size_t size) { return sendfile64(to, from, place, size); }

ssize_t copy_file_range(int from, off64_t *in, int to, off64_t *out, size_t size, unsigned flags) {
  int what = below_fd(to) ? event() : GO_ON;
  if (what == REFUSE) return refused();
  ssize_t done = REAL(copy_file_range)(from, in, to, out, what == HALF ? size / 2 : size, flags);
  if (what == HALF) die();
  return done;
}

#define OF_DESCRIPTOR(name)                          \
  int name(int fd) {                                 \
    int what = below_fd(fd) ? event() : GO_ON;       \
    if (what == HALF) die();                         \
    return what == REFUSE ? refused() : REAL(name)(fd); \
  }
OF_DESCRIPTOR(fsync)
OF_DESCRIPTOR(fdatasync)

int ftruncate64(int fd, off64_t length) {
  int what = below_fd(fd) ? event() : GO_ON;
  if (what == HALF) die();
  return what == REFUSE ? refused() : REAL(ftruncate64)(fd, length);
}

#define OF_TWO_NAMES(name, parameters, arguments)        \
  int name parameters {                                  \
    int what = below(to) ? event() : GO_ON;              \
    if (what == REFUSE) return refused();                \
    int done = REAL(name) arguments;                     \
    if (what == HALF) die();                             \
    return done;                                         \
  }
OF_TWO_NAMES(rename, (const char *from, const char *to), (from, to))
OF_TWO_NAMES(renameat, (int a, const char *from, int b, const char *to), (a, from, b, to))
OF_TWO_NAMES(renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags))
OF_TWO_NAMES(link, (const char *from, const char *to), (from, to))

/* A full disk does not refuse to remove; it may be the last that is done. */
#define REMOVAL(name, parameters, arguments)             \
  int name parameters {                                  \
    int what = below(path) ? event() : GO_ON;            \
    if (what == HALF) die();                             \
    if (what == REFUSE && mode == 'r') return refused(); \
    return REAL(name) arguments;                         \
  }
REMOVAL(unlink, (const char *path), (path))
REMOVAL(rmdir, (const char *path), (path))

int mkdir(const char *path, mode_t rights) {
  int what = below(path) ? event() : GO_ON;
  if (what == REFUSE) return refused();
  int done = REAL(mkdir)(path, rights);
  if (what == HALF) die();
  return done;
}

static int opened(const char *path, int flags) {
  return (flags & (O_CREAT | O_TRUNC)) && below(path) ? event() : GO_ON;
}

#define OPENING(name, first, pass)                         \
  int name(first const char *path, int flags, ...) {       \
    va_list more;                                          \
    va_start(more, flags);                                 \
    mode_t rights = flags & O_CREAT ? va_arg(more, mode_t) : 0; \
    va_end(more);                                          \
    int what = opened(path, flags);                        \
    if (what == REFUSE) return refused();                  \
    int done = REAL(name)(pass path, flags, rights);       \
    if (what == HALF) die();                               \
    return done;                                           \
  }
#define NOTHING
OPENING(open64, NOTHING, NOTHING)
#define AT_FOLDER int at,
#define AT_PASS at,
OPENING(openat64, AT_FOLDER, AT_PASS)
int open(const char *path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  mode_t rights = flags & O_CREAT ? va_arg(more, mode_t) : 0;
  va_end(more);
  return open64(path, flags, rights);
}
