import Checkpoint
import Collective
import Compute
import Tensors

// Matrices as ranks send them: row after row, in the machine's order of bytes. The loops branch on nothing but their
// length, so that they vectorise.
extension Matrix {
  /// The elements, which are values of that type.
  func message(as type: DType) -> MessageBytes {
    unsafe MessageBytes(count: count * type.byteWidth) { unsafe encode(as: type, into: $0) }
  }

  /// - Returns: false for a message of another size
  func take(_ message: MessageBytes, as type: DType) -> Bool {
    unsafe message.withUnsafeBytes { bytes in
      guard bytes.count == count * type.byteWidth else { return false }
      unsafe decode(RawSpan(_unsafeBytes: bytes), as: type)
      return true
    }
  }

  /// - Parameter bytes: exactly those of the elements, aligned to their type
  @unsafe func encode(as type: DType, into bytes: UnsafeMutableRawBufferPointer) {
    precondition(bytes.count == count * type.byteWidth, "the bytes are those of the elements")
    withSpan { span in
      unsafe span.withUnsafeBufferPointer { values in
        switch type {
        case .bfloat16:
          unsafe setAll(bytes.assumingMemoryBound(to: UInt16.self)) { unsafe values[$0].bfloat16Bits }
        case .float16:
          unsafe setAll(bytes.assumingMemoryBound(to: UInt16.self)) { unsafe values[$0].float16Bits }
        default: unsafe bytes.copyMemory(from: UnsafeRawBufferPointer(values))
        }
      }
    }
  }

  /// - Parameter bytes: exactly those of the elements
  func decode(_ bytes: RawSpan, as type: DType) {
    _ = withMutableSpan { convertWeights(bytes, type, into: &$0) }
  }

  func message(of tile: GramTile) -> MessageBytes {
    withSpan { span in
      unsafe span.withUnsafeBufferPointer { values in
        unsafe MessageBytes(count: tile.byteCount) { bytes in
          for (place, row) in tile.rows.enumerated() {
            let elements = unsafe UnsafeBufferPointer(rebasing: values[self.elements(of: tile, row)])
            unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[(place * tile.rowBytes)...])
              .copyMemory(from: UnsafeRawBufferPointer(elements))
          }
        }
      }
    }
  }

  /// - Returns: false for a message of another size
  func take(_ message: MessageBytes, as tile: GramTile) -> Bool {
    guard message.count == tile.byteCount else { return false }
    withMutableSpan { span in
      unsafe span.withUnsafeMutableBufferPointer { values in
        unsafe message.withUnsafeBytes { bytes in
          for (place, row) in tile.rows.enumerated() {
            let elements = unsafe UnsafeMutableBufferPointer(rebasing: values[self.elements(of: tile, row)])
            unsafe UnsafeMutableRawBufferPointer(elements)
              .copyMemory(
                from: UnsafeRawBufferPointer(
                  rebasing: bytes[place * tile.rowBytes..<(place + 1) * tile.rowBytes]))
          }
        }
      }
    }
    return true
  }

  private func elements(of tile: GramTile, _ row: Int) -> Range<Int> {
    precondition(row < rows && tile.columns.upperBound <= columns, "the tile is the matrix's")
    return row * columns + tile.columns.lowerBound..<row * columns + tile.columns.upperBound
  }
}

extension GramTile {
  fileprivate var rowBytes: Int { columns.count * MemoryLayout<Float>.stride }
  fileprivate var byteCount: Int { rows.count * rowBytes }
}

@inline(__always)
private func setAll<Element>(
  _ target: UnsafeMutableBufferPointer<Element>, _ value: (_ place: Int) -> Element
) {
  guard let first = target.baseAddress else { return }
  for place in 0..<target.count { unsafe first[place] = value(place) }
}
