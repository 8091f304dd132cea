#pragma once
#define NAN __builtin_nanf("")
#define INFINITY __builtin_inff()
#define isfinite(x) __builtin_isfinite(x)
#define isnan(x) __builtin_isnan(x)
double fabs(double), floor(double), log(double), exp(double), sqrt(double);
float fabsf(float), floorf(float), logf(float), expf(float), sqrtf(float), sinf(float), cosf(float);
