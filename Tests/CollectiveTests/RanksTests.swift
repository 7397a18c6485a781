import Glibc
import Synchronization
import TestSupport
import Testing

@testable import Collective

/// Messages between ranks, over pairs of sockets.
struct RanksTests {
  private static func label(_ number: Int) -> MessageLabel {
    MessageLabel(.input, layer: 1, stage: 2, number: number)
  }

  @Test(arguments: [1, 2, 3, 5]) func `all ranks get what each gives, in their order`(count: Int) throws {
    let results = withRanks(count) { ranks in
      try (0..<20).map { turn in
        // Of many sizes, nothing among them, and more than a socket takes at once.
        let own = [UInt8](repeating: UInt8(ranks.rank), count: turn * turn * turn * 97 * (ranks.rank + 1))
        let all = try ranks.gather(own, Self.label(turn))
        return all.map { [$0.count, Int($0.first ?? 0), Int($0.last ?? 0)] }
      }
    }
    #expect(results.count == count)
    for result in results {
      for (turn, all) in try result.get().enumerated() {
        #expect(
          all
            == (0..<count).map { rank in
              let size = turn * turn * turn * 97 * (rank + 1)
              return [size, size == 0 ? 0 : rank, size == 0 ? 0 : rank]
            })
      }
    }
  }

  @Test func `what one rank makes is on all, and nobody else makes it`() throws {
    let results = withRanks(3) { ranks in
      try (0..<3).map { source in
        String(
          decoding: try ranks.share(from: source, Self.label(source)) {
            #expect(ranks.rank == source)
            return Array("of \(source)".utf8)
          }, as: UTF8.self)
      }
    }
    for result in results { #expect(try result.get() == ["of 0", "of 1", "of 2"]) }
  }

  @Test func `bytes are counted by what they are`() throws {
    let results = withRanks(3) { ranks in
      ranks.postToAll([1, 2, 3], Self.label(0))
      for other in ranks.others { _ = try ranks.receive(Self.label(0), from: other) }
      return ranks.bytesSent[.input]
    }
    for result in results { #expect(try result.get() == 6) }
  }

  @Test func `another message than the one expected is told of by both names`() throws {
    let results = withRanks(2) { ranks in
      ranks.postToAll([], MessageLabel(.gram, layer: 7, number: 3))
      for other in ranks.others {
        _ = try ranks.receive(MessageLabel(.input, layer: 7, stage: 1, number: 41), from: other)
      }
    }
    for result in results {
      let error = #expect(throws: RankError.self) { try result.get() }
      guard case .unexpected(_, let expected, let found) = error else { continue }
      #expect(expected == "input 41 of layer 7, stage 1" && found == "gram 3 of layer 7")
    }
  }

  @Test func `a rank that fails ends the others with its reason and its status`() throws {
    struct Fault: Error, CustomStringConvertible { let description = "no space on /cache" }
    let results = withRanks(3) { ranks in
      if ranks.rank == 1 { throw Fault() }
      // It would wait for ever.
      _ = try ranks.receive(Self.label(0), from: ranks.rank == 0 ? 2 : 0)
    }
    #expect(throws: Fault.self) { try results[1].get() }
    for other in [0, 2] {
      let error = #expect(throws: RankError.self) { try results[other].get() }
      // One of the others may have passed it on before.
      #expect(error?.description.contains("no space on /cache") == true, "\(String(describing: error))")
      #expect(error?.exitCode == 70)
    }
  }

  @Test func `a rank that computes hears at once that another one gives up`() throws {
    struct Fault: Error, CustomStringConvertible { let description = "no space on /cache" }
    let heard = Mutex<[RankError]>([])
    _ = withRanks(3) { ranks in
      if ranks.rank == 1 { throw Fault() }
      guard ranks.rank == 0 else { return _ = try ranks.receive(Self.label(0), from: 1) }
      ranks.whenOneFails { error in heard.withLock { $0.append(error) } }
      // Receives nothing.
      for _ in 0..<1_000 where heard.withLock(\.isEmpty) { usleep(10_000) }
    }
    let errors = heard.withLock { $0 }
    #expect(errors.count == 1 && errors[0].description.contains("no space on /cache"), "\(errors)")
  }

  @Test func `a rank that is silent is named with what is missing, and for how long`() throws {
    let sockets = SocketTransport.sockets(2)
    // The other one has its end, and never says a word.
    let mute = SocketTransport.take(sockets[1], rank: 1)
    let error = #expect(throws: RankError.self) {
      try Ranks(patience: 1) { () throws(RankError) in SocketTransport.take(sockets[0], rank: 0) }
    }
    guard case .silent(let rank, let missing, let seconds) = error else {
      Issue.record("\(String(describing: error))")
      return
    }
    #expect(rank.rank == 1 && missing == "opening" && seconds >= 1)
    withExtendedLifetime(mute) {}
  }

  @Test func `a rank that has long work is waited for`() throws {
    let results = withRanks(2, patience: 8) { ranks in
      if ranks.rank == 0 { return try ranks.receive(Self.label(0), from: 1) }
      sleep(11)
      ranks.postToAll([9], Self.label(0))
      return []
    }
    #expect(try results[0].get() == [9])
  }

  @Test func `a header is what it was, and what is none is found`() {
    let label = MessageLabel(.rows, layer: 79, stage: -1, number: 1 << 40)
    let header = MessageHeader(label, byteCount: 1 << 35)
    #expect(MessageHeader(words: header.words) == header)
    var words = header.words
    words[1] = 999
    #expect(MessageHeader(words: words) == nil)
    words = header.words
    words[5] = UInt64.max
    #expect(MessageHeader(words: words) == nil)
  }
}
