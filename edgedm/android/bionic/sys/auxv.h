#pragma once
#include <linux/auxvec.h>
unsigned long getauxval(unsigned long type);
