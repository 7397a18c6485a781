import Dispatch
import Synchronization

/// Runs the chunks of an operation on a fixed number of threads.
///
/// Threads take the next chunk when they are done with one, so the slowest does not hold up the others;
/// put the largest chunks first. Which thread runs a chunk must make no difference to the result.
struct ThreadTeam: Sendable {
  /// The most threads that work at a time, the caller's among them.
  let threads: Int
  /// Chunks that are done, of all operations so far.
  let done = Counter()

  init(threads: Int) {
    precondition(threads > 0, "a team has at least one thread")
    self.threads = threads
  }

  /// Calls `body` once for every chunk in `0 ..< chunks`, several at a time, and returns when all calls have.
  func run(chunks: Int, _ body: (Int) -> Void) {
    run(chunks: chunks, scratch: {}) { chunk, _ in body(chunk) }
  }

  /// As ``run(chunks:_:)``, with scratch memory that each thread makes once and no other thread sees.
  func run<Scratch>(chunks: Int, scratch: () -> Scratch, _ body: (Int, Scratch) -> Void) {
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

/// A length cut into blocks of nearly the same size. The cut depends on the length alone, never on threads.
struct Division: Sendable {
  let length: Int
  /// The size of every block but the last, which may be shorter.
  let size: Int

  /// - Parameters:
  ///   - maximum: no block is longer
  ///   - unit: sizes are multiples of it, where `maximum` is
  init(_ length: Int, blocksOfAtMost maximum: Int, multipleOf unit: Int = 1) {
    precondition(length >= 0 && maximum > 0 && unit > 0, "a division has positive blocks")
    self.length = length
    let blocks = max(1, length.dividedRoundingUp(by: maximum))
    let evenly = length.dividedRoundingUp(by: blocks).dividedRoundingUp(by: unit) * unit
    size = max(1, min(evenly, maximum))
  }

  var count: Int { length.dividedRoundingUp(by: size) }

  subscript(block: Int) -> Range<Int> {
    block * size..<min((block + 1) * size, length)
  }
}

extension Int {
  func dividedRoundingUp(by divisor: Int) -> Int { (self + divisor - 1) / divisor }
}
