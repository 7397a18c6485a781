import Dispatch
import Synchronization

/// Runs the chunks of an operation on a fixed number of threads.
///
/// Threads take the next chunk when they are done with one, so the slowest does not hold up the others;
/// put the largest chunks first. Which thread runs a chunk must make no difference to the result.
public struct ThreadTeam: Sendable {
  /// The most threads that work at a time, the caller's among them.
  public let threads: Int
  /// Chunks that are done, of all operations so far.
  public let done = Counter()

  public init(threads: Int) {
    precondition(threads > 0, "a team has at least one thread")
    self.threads = threads
  }

  /// Calls `body` once for every chunk in `0 ..< chunks`, several at a time, and returns when all calls have.
  public func run(chunks: Int, _ body: (Int) -> Void) {
    run(chunks: chunks, scratch: {}) { chunk, _ in body(chunk) }
  }

  /// As ``run(chunks:_:)``, with scratch memory that each thread makes once and no other thread sees.
  public func run<Scratch>(chunks: Int, scratch: () -> Scratch, _ body: (Int, Scratch) -> Void) {
    let next = Atomic(0)
    func work() {
      var chunk = next.add(1, ordering: .relaxed).oldValue
      guard chunk < chunks else { return }
      let memory = scratch()
      repeat {
        body(chunk, memory)
        done.add(1)
        chunk = next.add(1, ordering: .relaxed).oldValue
      } while chunk < chunks
    }

    let workers = min(threads, chunks)
    if workers <= 1 { return work() }
    // Bodies write through pointers, which the compiler will not see cross threads. That two chunks never
    // write the same memory is the caller's promise, as it is for every ``Matrix``.
    withoutActuallyEscaping(work) { work in
      nonisolated(unsafe) let shared = work
      DispatchQueue.concurrentPerform(iterations: workers) { _ in unsafe shared() }
    }
  }
}
