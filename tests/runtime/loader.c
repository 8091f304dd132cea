/* Runs the main function of a library that it loads, as Python and Java load theirs. */
#include <dlfcn.h>
#include <stdio.h>

int main(int count, char **arguments) {
  void *library = count > 1 ? dlopen(arguments[1], RTLD_NOW) : NULL;
  int (*run)(int, char **) = NULL;
  if (library) *(void **)&run = dlsym(library, "main");
  if (!run) return fprintf(stderr, "%s\n", dlerror()), 2;
  return run(count - 1, arguments + 1);
}
