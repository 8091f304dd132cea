#pragma once
#include <sys/types.h>
#define _SC_PAGESIZE 0x27
#define _SC_NPROCESSORS_CONF 0x60
#define _SC_NPROCESSORS_ONLN 0x61
int close(int fd);
int fsync(int fd);
ssize_t read(int fd, void *data, size_t bytes);
pid_t getpid(void);
long sysconf(int name);
long syscall(long number, ...);
