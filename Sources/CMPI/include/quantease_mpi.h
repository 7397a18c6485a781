// What the engine asks of MPI: bytes from one rank to another, and nothing else.
//
// No MPI has the binary interface of another, so the program has none of it: a small library, which a site's own mpicc
// builds from shim/quantease_mpi.c, fills this table when the program opens it at run time.
#ifndef QUANTEASE_MPI_H
#define QUANTEASE_MPI_H

#ifdef __cplusplus
extern "C" {
#endif

// Raised with every change of the table.
#define QUANTEASE_MPI_VERSION 1

// Functions that return int return 0, or an MPI error code. All are called on the thread that called the first one.
struct quantease_mpi {
  int version;
  int rank;
  int size;
  // What the library calls itself, in one line.
  char library[256];
  // Begin to send or to receive `count` bytes; `request` is handed to `poll` until it is done. Messages from one rank to
  // another arrive in the order in which they were sent.
  int (*send)(const void *bytes, int count, int to, int *request);
  int (*receive)(void *bytes, int count, int from, int *request);
  int (*poll)(int request, int *done);
  int (*finish)(void);
};

// The function that the library exports. Initialises MPI and fills the table, whose version is what the program asks for; a
// library of another one only says its own there, as its table may be longer.
#define QUANTEASE_MPI_START "quantease_mpi_start"
typedef int (*quantease_mpi_start_function)(struct quantease_mpi *table);

// Opens the library at `path` and has it fill `table`.
// Returns 0; otherwise `message`, of `capacity` bytes, says why not.
int quantease_mpi_open(const char *path, struct quantease_mpi *table, char *message, int capacity);

#ifdef __cplusplus
}
#endif

#endif
