import Collective
import Compute
import Decoder
import Tensors

// Batches on their way from one rank's cache to another's.
extension StagedStates {
  /// What there is of a batch, behind a step if it is there already, or else before it: for another rank's cache. The last
  /// byte says which.
  func message(ofBatch batch: Int, beyond step: Transition, tokens: Int) throws -> MessageBytes {
    let isOver = try step.isWritten(batch: batch)
    let versions = isOver ? step.after : versions
    let state = try read(Set(versions.keys), versions: versions, batch: batch, tokens: tokens)
    let places = places(versions, tokens: tokens)
    return unsafe MessageBytes(count: places.byteCount + 1) { bytes in
      for (slot, _, range) in places.slots {
        guard let matrix = state[slot] else { preconditionFailure("what is held can be read") }
        backend.withHostMatrix(matrix, for: .reading) {
          unsafe $0.encode(as: elementType, into: UnsafeMutableRawBufferPointer(rebasing: bytes[range]))
        }
      }
      unsafe bytes[places.byteCount] = isOver ? 1 : 0
    }
  }

  /// Stores what another rank's ``message(ofBatch:beyond:tokens:)`` made.
  /// - Returns: false for a message of another size
  func take(_ message: MessageBytes, asBatch batch: Int, beyond step: Transition, tokens: Int) throws -> Bool
  {
    try unsafe message.withUnsafeBytes { bytes in
      guard let isOver = unsafe bytes.last else { return false }
      let places = places(isOver == 1 ? step.after : versions, tokens: tokens)
      guard bytes.count == places.byteCount + 1 else { return false }
      for (slot, version, range) in places.slots {
        let matrix = Matrix(uninitializedRows: tokens, columns: version.columns)
        unsafe matrix.decode(RawSpan(_unsafeBytes: bytes).extracting(range), as: elementType)
        try store.write(matrix, key: key(slot, version, batch))
      }
      return true
    }
  }

  /// Where the slots of a batch stand in a message.
  private func places(
    _ versions: [Slot: Version], tokens: Int
  ) -> (slots: [(Slot, Version, Range<Int>)], byteCount: Int) {
    var end = 0
    let slots = Slot.allCases.compactMap { slot in
      versions[slot].map { version in
        let start = end
        end += tokens * version.columns * elementType.byteWidth
        return (slot, version, start..<end)
      }
    }
    return (slots, end)
  }
}
