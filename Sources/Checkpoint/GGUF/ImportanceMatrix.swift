import SystemIO

/// What llama-quantize weighs the columns of matrices by: the energy of every input, summed up over the calibration tokens.
///
/// A GGUF file with `NAME.in_sum2` `[1, width]` and `NAME.counts` `[1, 1]` for every matrix NAME, as llama-imatrix writes it.
public struct ImportanceMatrix: Sendable {
  /// Σ x² of every input, by the name that the matrix has in the model's file.
  public private(set) var sums: [String: [Float]] = [:]
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
  public mutating func add(_ tensor: String, energies: [Float]) { sums[tensor] = energies }

  public func write(to path: String) throws(FileError) { try AtomicFile.write(bytes, to: path) }

  private static let (textType, arrayType, numberType): (UInt32, UInt32, UInt32) = (8, 9, 4)

  var bytes: [UInt8] {
    let tokens = Float(samples * sequenceLength)
    let tensors = sums.sorted { $0.key < $1.key }.flatMap { name, energies in
      [("\(name).counts", [tokens]), ("\(name).in_sum2", energies)]
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
    for (name, values) in tensors {
      bytes.append(text: name)
      bytes.append(littleEndian: UInt32(2))
      bytes.append(littleEndian: UInt64(values.count))
      bytes.append(littleEndian: UInt64(1))
      // float32
      bytes.append(littleEndian: UInt32(0))
      bytes.append(littleEndian: UInt64(end))
      end = GGUFHeader.padded(end + 4 * values.count, to: GGUFHeader.standardAlignment)
    }
    for (_, values) in tensors {
      bytes += repeatElement(
        0, count: GGUFHeader.padded(bytes.count, to: GGUFHeader.standardAlignment) - bytes.count)
      for value in values { bytes.append(littleEndian: value.bitPattern) }
    }
    bytes += repeatElement(
      0, count: GGUFHeader.padded(bytes.count, to: GGUFHeader.standardAlignment) - bytes.count)
    return bytes
  }
}
