import ActivationCache
import Export
import Glibc
import Quantization
import Tensors

extension Suite {
  /// Writing a batch of hidden states and reading it back, in bytes of bfloat16.
  func addActivationCache() {
    let (tokens, features) = (16_384, 576)
    let work = Work.bytes(tokens * features * 2)
    let key = HiddenStatesKey(stream: 0, stage: 0, batch: 0)
    func open() throws -> HiddenStatesStore {
      try HiddenStatesStore(
        path: "\(Surroundings.temporaryDirectory)/quantease-benchmark-\(getpid()).mdb",
        elementType: .bfloat16, threads: threads)
    }
    add("cache.write", work, iterations: 15) {
      let store = try open()
      let states = smoothStates(tokens: tokens, features: features)
      return Trial(
        run: { try store.write(states, key: key) },
        storedPerThousand: {
          store.statistics.compressedBytesWritten * 1_000 / max(store.statistics.rawBytesWritten, 1)
        })
    }
    add("cache.read", work, iterations: 15) {
      let store = try open()
      let states = smoothStates(tokens: tokens, features: features)
      try store.write(states, key: key)
      return Trial { try store.read(key, into: states) }
    }
  }

  /// Packing codes into words and back, in bytes of codes: one byte a weight.
  func addPacking() {
    let count = 1 << 24
    for width in BitWidth.allCases {
      let bits = width.rawValue
      func codes() -> [UInt8] {
        var noise = Noise(seed: 6)
        let middle = Float(width.maximumCode) / 2
        return (0..<count).map { _ in
          UInt8(min(max(middle + noise.normal() * middle / 2, 0), Float(width.maximumCode)))
        }
      }
      func words() -> [UInt32] { [UInt32](repeating: 0, count: wordCount(codes: count, bits: bits)) }
      func pack(_ codes: [UInt8], into words: inout [UInt32]) {
        var output = words.mutableSpan
        Export.pack(codes.span, bits: bits, into: &output)
      }
      add("pack.\(bits)-bits", .bytes(count)) {
        let codes = codes()
        var packed = words()
        return Trial { pack(codes, into: &packed) }
      }
      add("unpack.\(bits)-bits", .bytes(count)) {
        var codes = codes()
        var packed = words()
        pack(codes, into: &packed)
        return Trial {
          var output = codes.mutableSpan
          unpack(packed.span, bits: bits, count: count, into: &output)
        }
      }
    }
  }
}

/// States that change slowly from token to token, with features of very different size, as those between the
/// layers of a language model.
private func smoothStates(tokens: Int, features: Int) -> Matrix {
  var noise = Noise(seed: 7)
  let states = noise.matrix(rows: tokens, columns: features)
  let sizes = (0..<features).map { _ in exp(noise.normal()) }
  for feature in 0..<features { states[0, feature] *= sizes[feature] }
  for token in 1..<tokens {
    for feature in 0..<features {
      states[token, feature] =
        0.9 * states[token - 1, feature] + 0.44 * sizes[feature] * states[token, feature]
    }
  }
  return states
}
