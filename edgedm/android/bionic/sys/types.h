#pragma once
#include <stddef.h>
#include <stdint.h>
typedef long long off_t; /* of 64 bits on every machine, as with -D_FILE_OFFSET_BITS=64 */
typedef long time_t;
#if defined(__LP64__)
typedef long ssize_t;
#else
typedef int ssize_t;
#endif
typedef int pid_t, clockid_t;
