#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "device.h"

namespace cuda_on_cpu {

Device device;
thread_local bool has_context = false;

void complain(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("CUDA on the CPU: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  abort();
}

namespace memory {
namespace {

// Set in every device address. No process has memory there (x86-64 and ARM64 give 47 and 48 bits unless asked
// for more, and ARM64 ignores only the highest eight), so the host crashes where it takes such an address for
// its own.
constexpr qe_device_address device_bit = 1ull << 52;
constexpr size_t granularity = 256;

/// [guard page][unwritten up to first][bytes asked for][unwritten up to the page's end][guard page]
struct Allocation {
  size_t bytes;
  char *mapping;
  size_t mapping_bytes;
  char *first;
};

// By device address.
std::map<qe_device_address, Allocation> allocations;
size_t used_bytes = 0;
size_t peak_bytes = 0;

size_t rounded_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

size_t page_size() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

char *accessible_from(const Allocation &allocation) { return allocation.mapping + page_size(); }
char *accessible_to(const Allocation &allocation) {
  return allocation.mapping + allocation.mapping_bytes - page_size();
}

bool is_unwritten(const char *from, const char *to) {
  for (; from < to; ++from) {
    const auto position = reinterpret_cast<uintptr_t>(from) % sizeof unwritten;
    if (*from != reinterpret_cast<const char *>(&unwritten)[position]) return false;
  }
  return true;
}

}  // namespace

int allocate(qe_device_address *address, size_t bytes) {
  if (bytes == 0) return invalid_value;
  if (bytes > device.memory) return out_of_memory;
  const size_t counted = rounded_up(bytes, granularity);
  if (used_bytes + counted > device.memory) return out_of_memory;
  const size_t accessible = rounded_up(counted, page_size());
  const size_t mapping_bytes = accessible + 2 * page_size();
  void *mapping = mmap(nullptr, mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return out_of_memory;
  const Allocation allocation{
      bytes, static_cast<char *>(mapping), mapping_bytes,
      static_cast<char *>(mapping) + page_size() + accessible - counted};
  if (mprotect(accessible_from(allocation), accessible, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping, mapping_bytes);
    return out_of_memory;
  }
  std::fill_n(
      reinterpret_cast<uint32_t *>(accessible_from(allocation)), accessible / sizeof unwritten, unwritten);
  *address = reinterpret_cast<uintptr_t>(allocation.first) | device_bit;
  allocations[*address] = allocation;
  used_bytes += counted;
  peak_bytes = std::max(peak_bytes, used_bytes);
  return success;
}

void free(qe_device_address address) {
  const auto found = allocations.find(address);
  if (found == allocations.end()) complain("free of %#llx, where no allocation begins", address);
  const Allocation &allocation = found->second;
  if (!is_unwritten(accessible_from(allocation), allocation.first))
    complain("something wrote before the beginning of an allocation of %zu bytes", allocation.bytes);
  if (!is_unwritten(allocation.first + allocation.bytes, accessible_to(allocation)))
    complain("something wrote past the end of an allocation of %zu bytes", allocation.bytes);
  used_bytes -= rounded_up(allocation.bytes, granularity);
  munmap(allocation.mapping, allocation.mapping_bytes);
  allocations.erase(found);
}

size_t used() { return used_bytes; }
size_t peak() { return peak_bytes; }
void reset_peak() { peak_bytes = used_bytes; }

void *at(qe_device_address address, size_t bytes, size_t alignment, const char *user) {
  auto next = allocations.upper_bound(address);
  if (next == allocations.begin())
    complain("%s: %#llx, %zu bytes, is in no allocation", user, address, bytes);
  const auto &[start, allocation] = *std::prev(next);
  const size_t offset = address - start;
  if (offset > allocation.bytes || bytes > allocation.bytes - offset)
    complain(
        "%s: %#llx, %zu bytes, is in no allocation: it ends %zu bytes past the end of one of %zu bytes", user,
        address, bytes, offset + bytes - allocation.bytes, allocation.bytes);
  if (address % alignment != 0) complain("%s: %#llx is not aligned to %zu bytes", user, address, alignment);
  return allocation.first + offset;
}

void require_host(const void *pointer, const char *user) {
  if (pointer == nullptr || (reinterpret_cast<uintptr_t>(pointer) & device_bit) != 0)
    complain("%s: %p is no address of the host", user, pointer);
}

void describe(const void *pointer, char *text, size_t length) {
  const auto *byte = static_cast<const char *>(pointer);
  for (const auto &[start, allocation] : allocations) {
    if (byte < allocation.mapping || byte >= allocation.mapping + allocation.mapping_bytes) continue;
    snprintf(
        text, length, "%td bytes from the beginning of an allocation of %zu bytes", byte - allocation.first,
        allocation.bytes);
    return;
  }
  snprintf(text, length, "near no allocation");
}

}  // namespace memory
}  // namespace cuda_on_cpu
