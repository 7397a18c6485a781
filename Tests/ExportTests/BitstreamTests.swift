import Testing

@testable import Export

struct BitstreamTests {
  /// Bit by bit, as the formats define it.
  private func referencePack(_ codes: [UInt8], bits: Int) -> [UInt32] {
    var words = [UInt32](repeating: 0, count: (codes.count * bits + 31) / 32)
    for (index, code) in codes.enumerated() {
      for bit in 0..<bits where code >> bit & 1 == 1 {
        let position = index * bits + bit
        words[position / 32] |= 1 << (position % 32)
      }
    }
    return words
  }

  private func randomCodes(_ count: Int, bits: Int) -> [UInt8] {
    var dice = Dice(state: UInt64(count * 8 + bits))
    return (0..<count).map { _ in UInt8.random(in: 0...UInt8((1 << bits) - 1), using: &dice) }
  }

  @Test(arguments: [2, 3, 4, 8], [1, 5, 31, 32, 33, 64, 321])
  func `packing agrees with the definition and unpacking undoes it`(bits: Int, count: Int) {
    let codes = randomCodes(count, bits: bits)
    var words = [UInt32](repeating: 0, count: wordCount(codes: count, bits: bits))
    var output = words.mutableSpan
    pack(codes.span, bits: bits, into: &output)
    #expect(words == referencePack(codes, bits: bits))

    var unpacked = [UInt8](repeating: 0, count: count)
    var codeOutput = unpacked.mutableSpan
    unpack(words.span, bits: bits, count: count, into: &codeOutput)
    #expect(unpacked == codes)
  }

  @Test(arguments: [2, 3, 4, 8])
  func `a stride interleaves streams`(bits: Int) {
    let streams = (0..<3).map { randomCodes(64 + $0, bits: bits) }
    var words = [UInt32](repeating: 0, count: 3 * wordCount(codes: 66, bits: bits))
    var output = words.mutableSpan
    for (index, codes) in streams.enumerated() {
      pack(codes.span, bits: bits, into: &output, start: index, stride: 3)
    }
    for (index, codes) in streams.enumerated() {
      let column = stride(from: index, to: words.count, by: 3).map { words[$0] }
      let expected = referencePack(codes, bits: bits)
      #expect(Array(column.prefix(expected.count)) == expected)
      var unpacked = [UInt8](repeating: 0, count: codes.count + 1)
      var codeOutput = unpacked.mutableSpan
      unpack(
        words.span, bits: bits, start: index, stride: 3, count: codes.count, into: &codeOutput, at: 1)
      #expect(Array(unpacked.dropFirst()) == codes)
    }
  }

  @Test func `a code that is too large leaves its neighbours alone`() {
    var words: [UInt32] = [0]
    var output = words.mutableSpan
    pack([0xFF, 0, 0xFF].span, bits: 4, into: &output)
    #expect(words == [0xF0F])
  }
}
