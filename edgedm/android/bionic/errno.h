#pragma once
#include <asm/errno.h>
int *__errno(void);
#define errno (*__errno())
#define ENOTSUP EOPNOTSUPP
