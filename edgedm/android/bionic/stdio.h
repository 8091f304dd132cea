#pragma once
#include <stdarg.h>
#include <sys/types.h>

typedef struct __sFILE FILE;
#define EOF (-1)
#define SEEK_SET 0
#define SEEK_CUR 1
#define SEEK_END 2

FILE *fopen(const char *path, const char *mode);
int fclose(FILE *file);
int fflush(FILE *file);
int ferror(FILE *file);
int fileno(FILE *file);
int fseek(FILE *file, long offset, int whence);
long ftell(FILE *file);
size_t fread(void *data, size_t size, size_t count, FILE *file);
size_t fwrite(const void *data, size_t size, size_t count, FILE *file);
int fprintf(FILE *file, const char *format, ...) __attribute__((format(printf, 2, 3)));
int fscanf(FILE *file, const char *format, ...) __attribute__((format(scanf, 2, 3)));
int snprintf(char *text, size_t room, const char *format, ...) __attribute__((format(printf, 3, 4)));
int vsnprintf(char *text, size_t room, const char *format, va_list arguments) __attribute__((format(printf, 3, 0)));
int remove(const char *path);
int rename(const char *from, const char *to);
