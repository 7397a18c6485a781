import SystemIO

/// What llama-quantize weighs the columns of matrices by: the energy of every input, summed up over the calibration tokens.
///
/// A GGUF file with `NAME.in_sum2` `[experts, width]` and `NAME.counts` `[experts, 1]` for every matrix or stack of them NAME, as
/// llama-imatrix writes it; a matrix that is no expert's counts as one.
public struct ImportanceMatrix: Sendable {
  /// Of a matrix, or of a stack of them, one for each expert.
  private struct Entry {
    /// Σ x² of every input, one expert's after the other's.
    var sums: [Float]
    var tokens: [Float]
  }

  /// By the name that the matrix has in the model's file.
  private var entries: [String: Entry] = [:]
  /// The calibration file's name, for whoever looks.
  private let dataset: String
  private let samples: Int
  private let sequenceLength: Int

  public init(dataset: String, samples: Int, sequenceLength: Int) {
    self.dataset = dataset
    self.samples = samples
    self.sequenceLength = sequenceLength
  }

  /// - Parameter energies: Σ x² of every input of the matrix
  public mutating func add(_ tensor: String, energies: [Float]) {
    add(tensor, energies: energies, tokens: samples * sequenceLength, expert: 0, of: 1)
  }

  /// - Parameters:
  ///   - energies: Σ x² of every input of one expert of the stack
  ///   - tokens: those that reach it
  public mutating func add(_ stack: String, energies: [Float], tokens: Int, expert: Int, of experts: Int) {
    let width = energies.count
    var entry =
      entries[stack]
      ?? Entry(
        sums: [Float](repeating: 0, count: width * experts), tokens: [Float](repeating: 0, count: experts))
    entry.sums.replaceSubrange(expert * width..<(expert + 1) * width, with: energies)
    entry.tokens[expert] = Float(tokens)
    entries[stack] = entry
  }

  public func write(to path: String) throws(FileError) { try AtomicFile.write(bytes, to: path) }

  private static let (textType, arrayType, numberType): (UInt32, UInt32, UInt32) = (8, 9, 4)

  var bytes: [UInt8] {
    let tensors = entries.sorted { $0.key < $1.key }.flatMap { name, entry in
      [("\(name).counts", entry.tokens), ("\(name).in_sum2", entry.sums)].map {
        (name: $0, values: $1, rows: entry.tokens.count)
      }
    }
    var bytes = GGUFHeader.magic
    bytes.append(littleEndian: GGUFHeader.version)
    bytes.append(littleEndian: UInt64(tensors.count))
    bytes.append(littleEndian: UInt64(4))
    bytes.append(text: "general.type")
    bytes.append(littleEndian: Self.textType)
    bytes.append(text: "imatrix")
    bytes.append(text: "imatrix.datasets")
    bytes.append(littleEndian: Self.arrayType)
    bytes.append(littleEndian: Self.textType)
    bytes.append(littleEndian: UInt64(1))
    bytes.append(text: dataset)
    for (key, value) in [("imatrix.chunk_count", samples), ("imatrix.chunk_size", sequenceLength)] {
      bytes.append(text: key)
      bytes.append(littleEndian: Self.numberType)
      bytes.append(littleEndian: UInt32(value))
    }
    var end = 0
    for (name, values, rows) in tensors {
      bytes.append(text: name)
      bytes.append(littleEndian: UInt32(2))
      bytes.append(littleEndian: UInt64(values.count / rows))
      bytes.append(littleEndian: UInt64(rows))
      // float32
      bytes.append(littleEndian: UInt32(0))
      bytes.append(littleEndian: UInt64(end))
      end = GGUFHeader.padded(end + 4 * values.count, to: GGUFHeader.standardAlignment)
    }
    for (_, values, _) in tensors {
      bytes += repeatElement(
        0, count: GGUFHeader.padded(bytes.count, to: GGUFHeader.standardAlignment) - bytes.count)
      for value in values { bytes.append(littleEndian: value.bitPattern) }
    }
    bytes += repeatElement(
      0, count: GGUFHeader.padded(bytes.count, to: GGUFHeader.standardAlignment) - bytes.count)
    return bytes
  }
}
