/* Nearest integers of x / s, by division and by fused multiply-adds (edgedm/targets/kernels/mathematics.py): s of every
 * significand, x the floats next to (n + 1/2) s for n from argv[1] to before argv[2]. Prints how many differ with one
 * step of Markstein's, and with none, which shows that these x tell. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIGNIFICANDS = 1 << 23, NEAR = 3 };

static float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

int main(int count, char **arguments) {
  if (count != 3) return 2;
  long stepped = 0, plain = 0;
  for (int n = atoi(arguments[1]); n < atoi(arguments[2]); ++n)
    for (uint32_t significand = 0; significand < SIGNIFICANDS; ++significand) {
      float s = float_of(0x3f800000U | significand), r = 1.0F / s, bound = ((float)n + 0.5F) * s;
      uint32_t bits;
      memcpy(&bits, &bound, sizeof bits);
      for (int32_t away = -NEAR; away <= NEAR; ++away) {
        float x = float_of(bits + (uint32_t)away), expected = rintf(x / s), q = x * r;
        plain += rintf(q) != expected;
        stepped += rintf(fmaf(fmaf(-s, q, x), r, q)) != expected;
      }
    }
  printf("%ld %ld\n", stepped, plain);
  return 0;
}
