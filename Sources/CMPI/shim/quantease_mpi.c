// Built by tools/build-mpi with a site's mpicc; see quantease_mpi.h.
#include "quantease_mpi.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static MPI_Request *requests;
static int capacity;

// A free place for a request, which is doubled in number where none is left; -1 without memory.
static int free_place(void) {
  for (int place = 0; place < capacity; place++)
    if (requests[place] == MPI_REQUEST_NULL) return place;
  int count = capacity ? 2 * capacity : 64;
  MPI_Request *more = realloc(requests, count * sizeof *more);
  if (!more) return -1;
  for (int place = capacity; place < count; place++) more[place] = MPI_REQUEST_NULL;
  int place = capacity;
  requests = more;
  capacity = count;
  return place;
}

static int start_send(const void *bytes, int count, int to, int *request) {
  if ((*request = free_place()) < 0) return MPI_ERR_NO_MEM;
  return MPI_Isend(bytes, count, MPI_BYTE, to, 0, MPI_COMM_WORLD, &requests[*request]);
}

static int start_receive(void *bytes, int count, int from, int *request) {
  if ((*request = free_place()) < 0) return MPI_ERR_NO_MEM;
  return MPI_Irecv(bytes, count, MPI_BYTE, from, 0, MPI_COMM_WORLD, &requests[*request]);
}

// Frees the place once the request is done.
static int poll_request(int request, int *done) {
  return MPI_Test(&requests[request], done, MPI_STATUS_IGNORE);
}

static int finish(void) { return MPI_Finalize(); }

int quantease_mpi_start(struct quantease_mpi *table) {
  int asked = table->version;
  table->version = QUANTEASE_MPI_VERSION;
  if (asked != QUANTEASE_MPI_VERSION) return -1;
  int threads, length;
  char library[MPI_MAX_LIBRARY_VERSION_STRING];
  int error = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &threads);
  if (error) return error;
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &table->rank);
  MPI_Comm_size(MPI_COMM_WORLD, &table->size);
  MPI_Get_library_version(library, &length);
  library[strcspn(library, ",\n")] = 0;
  snprintf(table->library, sizeof table->library, "%.255s", library);
  table->send = start_send;
  table->receive = start_receive;
  table->poll = poll_request;
  table->finish = finish;
  return 0;
}
