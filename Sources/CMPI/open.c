#include "quantease_mpi.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

int quantease_mpi_open(const char *path, struct quantease_mpi *table, char *message, int capacity) {
  memset(table, 0, sizeof *table);
  // MPI's own plug-ins look for its symbols among those of the process.
  void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (!library) {
    snprintf(message, capacity, "%s", dlerror());
    return -1;
  }
  quantease_mpi_start_function start;
  *(void **)&start = dlsym(library, QUANTEASE_MPI_START);
  if (!start) {
    snprintf(message, capacity, "%s is no library that tools/build-mpi made", path);
    return -1;
  }
  table->version = QUANTEASE_MPI_VERSION;
  int error = start(table);
  if (table->version != QUANTEASE_MPI_VERSION) {
    snprintf(
        message, capacity, "%s is of version %d, and this program of %d: run tools/build-mpi again", path,
        table->version, QUANTEASE_MPI_VERSION);
    return -1;
  }
  if (error) {
    snprintf(message, capacity, "MPI_Init_thread failed with code %d", error);
    return error;
  }
  return 0;
}
