/* A disk that breaks, for programs that it is preloaded into (see tools/faults).

   FAULT_FOLDER   what lies below this folder is on the disk
   FAULT_ERRNO    what its system calls fail with
   FAULT_AT       the number of the first call that fails, from 1; all after it fail too
   FAULT_COUNTER  a file of eight bytes in which the calls are counted, shared by all threads and processes

   Calls are those that write: opening to write, making folders, writing, waiting for the disk, renaming. Removing files
   works to the end. */
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
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FILES 65536

static const char *folder;
static long first;
static int reason;
static long *counter;
static unsigned char on_disk[FILES];
static pthread_mutex_t preparing = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void prepare(void) {
  const char *place = getenv("FAULT_FOLDER"), *path = getenv("FAULT_COUNTER");
  if (!place || !path) return;
  pthread_mutex_lock(&preparing);
  if (!folder) {
    const char *at = getenv("FAULT_AT"), *code = getenv("FAULT_ERRNO");
    first = at ? atol(at) : 0;
    reason = code ? atoi(code) : EIO;
    int file = NEXT(open)(path, O_RDWR);
    void *found = MAP_FAILED;
    if (file >= 0) {
      found = mmap(NULL, sizeof *counter, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
      close(file);
    }
    if (found != MAP_FAILED) {
      counter = found;
      folder = strdup(place);
    }
  }
  pthread_mutex_unlock(&preparing);
}

/* A process that was forked may be told of its disk only then. */
static int below(const char *path) {
  if (!folder) prepare();
  return folder && path && !strncmp(path, folder, strlen(folder));
}

/* Whether this call fails. */
static int fails(void) {
  long number = __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
  if (!first || number < first) return 0;
  errno = reason;
  return 1;
}

static int note(int file, const char *path) {
  if (file >= 0 && file < FILES) on_disk[file] = below(path);
  return file;
}

static int known(int file) { return folder && file >= 0 && file < FILES && on_disk[file]; }

static int writes(int flags) { return (flags & (O_CREAT | O_TRUNC)) || (flags & O_ACCMODE) != O_RDONLY; }

#define OPEN(name)                                                                                                     \
  int name(const char *path, int flags, ...) {                                                                         \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = va_arg(rest, mode_t);                                                                                \
    va_end(rest);                                                                                                      \
    if (below(path) && writes(flags) && fails()) return -1;                                                            \
    return note(NEXT(name)(path, flags, mode), writes(flags) ? path : NULL);                                           \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
  int name(int where, const char *path, int flags, ...) {                                                              \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = va_arg(rest, mode_t);                                                                                \
    va_end(rest);                                                                                                      \
    if (below(path) && writes(flags) && fails()) return -1;                                                            \
    return note(NEXT(name)(where, path, flags, mode), writes(flags) ? path : NULL);                                    \
  }
OPENAT(openat)
OPENAT(openat64)

#define ON_FILE(type, name, declared, given)                                                                           \
  type name declared {                                                                                                 \
    if (known(file) && fails()) return -1;                                                                             \
    return NEXT(name) given;                                                                                           \
  }
ON_FILE(ssize_t, write, (int file, const void *data, size_t size), (file, data, size))
ON_FILE(ssize_t, writev, (int file, const struct iovec *data, int count), (file, data, count))
ON_FILE(ssize_t, pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
ON_FILE(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at))
ON_FILE(int, fsync, (int file), (file))
ON_FILE(int, fdatasync, (int file), (file))
ON_FILE(int, ftruncate, (int file, off_t size), (file, size))
ON_FILE(int, ftruncate64, (int file, off64_t size), (file, size))

int mkdir(const char *path, mode_t mode) {
  struct stat found;
  if (below(path) && stat(path, &found) && fails()) return -1;
  return NEXT(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
  if (below(to) && fails()) return -1;
  return NEXT(rename)(from, to);
}

int renameat(int a, const char *from, int b, const char *to) {
  if (below(to) && fails()) return -1;
  return NEXT(renameat)(a, from, b, to);
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  if (below(to) && fails()) return -1;
  return NEXT(renameat2)(a, from, b, to, flags);
}
