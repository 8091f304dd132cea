#pragma once
#include <sys/types.h>
#include <time.h>

struct stat {
#if defined(__aarch64__)
  unsigned long st_dev, st_ino;
  unsigned st_mode, st_nlink, st_uid, st_gid;
  unsigned long st_rdev, padding1;
  off_t st_size;
  int st_blksize, padding2;
  long st_blocks;
  struct timespec st_atim, st_mtim, st_ctim;
  unsigned unused[2];
#elif defined(__x86_64__)
  unsigned long st_dev, st_ino, st_nlink;
  unsigned st_mode, st_uid, st_gid, padding1;
  unsigned long st_rdev;
  off_t st_size;
  long st_blksize, st_blocks;
  struct timespec st_atim, st_mtim, st_ctim;
  long unused[3];
#else
  unsigned long long st_dev;
  unsigned char padding1[4];
  unsigned long truncated_ino;
  unsigned st_mode, st_nlink, st_uid, st_gid;
  unsigned long long st_rdev;
  unsigned char padding2[4];
  long long st_size;
  unsigned long st_blksize;
  unsigned long long st_blocks;
  struct timespec st_atim, st_mtim, st_ctim;
  unsigned long long st_ino;
#endif
};

#define S_ISREG(mode) (((mode) & 0170000) == 0100000)
#define S_ISDIR(mode) (((mode) & 0170000) == 0040000)

int fstat(int fd, struct stat *status);
int stat(const char *path, struct stat *status);
