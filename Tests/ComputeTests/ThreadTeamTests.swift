import Compute
import Synchronization
import Testing

@testable import ComputeOpenBLAS

@Suite struct ThreadTeamTests {
  @Test(arguments: [0, 1, 2, 100], [1, 2, 5])
  func `every chunk runs once`(chunks: Int, threads: Int) {
    let runs = Mutex([Int](repeating: 0, count: chunks))
    ThreadTeam(threads: threads).run(chunks: chunks) { chunk in runs.withLock { $0[chunk] += 1 } }
    #expect(runs.withLock { $0 } == [Int](repeating: 1, count: chunks))
  }

  @Test func `threads that get no chunk make no scratch memory, and no two share theirs`() {
    final class Scratch: Sendable {
      let use = Mutex(())
    }
    let made = Atomic(0)
    func makeScratch() -> Scratch {
      made.add(1, ordering: .relaxed)
      return Scratch()
    }
    ThreadTeam(threads: 3).run(chunks: 50, scratch: makeScratch) { _, scratch in
      #expect(scratch.use.withLockIfAvailable { _ in true } == true)
    }
    #expect((1...3).contains(made.load(ordering: .relaxed)))
  }

  @Test(arguments: [0, 1, 63, 64, 65, 576, 1000], [(1, 1), (64, 1), (64, 8), (768, 8)])
  func `a division covers its length with blocks that do not overlap`(
    length: Int, _ block: (maximum: Int, unit: Int)
  ) {
    let division = Division(length, blocksOfAtMost: block.maximum, multipleOf: block.unit)
    let blocks = (0..<division.count).map { division[$0] }
    #expect(blocks.flatMap(Array.init) == Array(0..<length))
    #expect(blocks.allSatisfy { !$0.isEmpty && $0.count <= block.maximum })
    #expect(blocks.allSatisfy { $0.lowerBound % block.unit == 0 })
  }
}
